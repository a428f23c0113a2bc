"""A process that ends with its parent, and saves first."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from muse.host.parents import PARENT_VARIABLE, followed

CHILD = {
    "follow_parent": """
import os, sys, time
from pathlib import Path
from muse.host.parents import follow_parent
from muse.host.signals import Interruptions
follow_parent()
try:
    with Interruptions(wait=False):
        print(os.getpid(), flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    Path(sys.argv[1]).write_text("saved")
""",
    "the command": """
import os, sys, time
from pathlib import Path
from muse import __main__, cli
from muse.host.signals import Interruptions
def train():
    with Interruptions(wait=True) as signals:
        print(os.getpid(), flush=True)
        while not signals.received:
            time.sleep(0.02)
        Path(sys.argv[1]).write_text("saved")
cli.main = train
__main__.main()
""",
    "following_parent": """
import os, time
from muse.host.parents import following_parent
with following_parent():
    print(os.getpid(), flush=True)
    for _ in range(600):
        time.sleep(1)
""",
}
PARENT = """
import os, subprocess, sys, time
from muse.host.parents import followed
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env=os.environ | followed(), start_new_session=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", CHILD)
def test_a_child_ends_soon_after_its_parent_was_killed(tmp_path, how):
    file = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD[how], str(file)], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=5)
        assert gone
    assert file.exists() == (how != "following_parent")


ONCE = """
import os, signal, threading
from muse.host.parents import PARENT_VARIABLE, follow_parent, following_parent
before = signal.getsignal(signal.SIGALRM)
with following_parent():
    print(PARENT_VARIABLE in os.environ, signal.getitimer(signal.ITIMER_REAL)[1])
print(signal.getitimer(signal.ITIMER_REAL)[1], signal.getsignal(signal.SIGALRM) is before)
follow_parent()
print(threading.active_count())
"""


@pytest.mark.parametrize(("asked", "told"), [(True, "False 0.5\n0.0 True\n1\n"), (False, "False 0.0\n0.0 True\n1\n")])
def test_nobody_is_followed_unasked_and_a_grandchild_does_not_inherit_the_wish(monkeypatch, asked, told):
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    environment = os.environ | (followed() if asked else {})
    assert subprocess.run([sys.executable, "-c", ONCE], env=environment, capture_output=True, text=True).stdout == told
