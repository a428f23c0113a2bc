"""Functions that tests call in a process of its own; it imports this file, so this file imports little."""

from __future__ import annotations

import json
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


SAVES = """
import signal, sys, time
from pathlib import Path
from muse.host.signals import Interrupted, Interruptions
file = Path(sys.argv[1])
try:
    with Interruptions(wait=True) as signals:
        file.write_text("training")
        while True:
            time.sleep(0.02)
            signals.check()
except Interrupted:
    time.sleep(0.3)
    file.write_text("saved")
"""


def train(file):
    """Start what saves its work when it is told to end, and wait for it."""
    subprocess.run([sys.executable, "-c", SAVES, str(file)], start_new_session=True)


def tell_modules(names, file):
    """Write which of these modules were imported before anything asked for them, and whether a kernel can be forked."""
    found = [name for name in names if name in sys.modules]
    from muse.runner.kernels import can_fork

    Path(file).write_text(json.dumps(found + ["a kernel can be forked"] * can_fork()))
