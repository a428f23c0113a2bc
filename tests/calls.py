"""Functions that tests call in a process of its own; it imports this file, so this file imports little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def die(how):
    os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else os._exit(3)


def hang(file):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    file.write_text(str(child.pid))
    time.sleep(600)


def look_around(name):
    print("on stdout")
    print("on stderr", file=sys.stderr)
    return f"{os.environ.get(name)} {Path.cwd()}"
