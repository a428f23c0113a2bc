"""How long each notebook takes as it is opened, kernel start included: `python tests/lab_seconds.py --busy 3 05 08`.

Each runs with the parameters that stand in it and what `make lab` sets, in a copy of the checkout without trainings,
one after the other; the report comes last and shows what the others left. `--busy` loops of one thread each run beside
them. The exit code is 1 where one takes more than 20 s on a quiet machine, or 60 s beside such loops. Wall seconds are
of the machine as it is: the load printed with them says how quiet it was, CPU seconds what the notebook took itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CHECKOUT = Path(__file__).resolve().parent.parent
QUIET_SECONDS, BUSY_SECONDS = 20, 60
LAST = "07_report"
SET = re.compile(r"[A-Z_]+=").match
"""A word of a command that sets a variable of the environment."""


def main() -> int:
    """Run the notebooks whose names begin so, all of them by default, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, help="loops beside them, a thread each")
    parser.add_argument("names", nargs="*", help="beginnings of names, such as 05")
    asked = parser.parse_args()
    paths = sorted((CHECKOUT / "notebooks").glob("*.ipynb"), key=lambda path: (path.stem == LAST, path.stem))
    chosen = [path for path in paths if not asked.names or path.stem.startswith(tuple(asked.names))]
    limit, late = BUSY_SECONDS if asked.busy else QUIET_SECONDS, []
    print(f"{'notebook':24}{'wall s':>8}{'CPU s':>8}{'load':>7}   at most {limit} s, {asked.busy} loops beside")
    with copy_of_checkout() as folder, loops(asked.busy):
        for path in chosen:
            wall, cpu = seconds(folder / "notebooks" / path.name, folder)
            late += [path.stem] * (wall > limit)
            print(f"{path.stem:24}{wall:8.1f}{cpu:8.1f}{os.getloadavg()[0]:7.2f}   {'LATE' * (wall > limit)}".rstrip())
    return 1 if late else 0


def lab_words() -> list[str]:
    """Return the words of the command by which `make lab` starts JupyterLab, with what it sets before."""
    planned = subprocess.run(["make", "-n", "lab"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return shlex.split(next(line for line in planned.replace("\\\n", " ").splitlines() if "jupyter lab" in line))


@contextlib.contextmanager
def copy_of_checkout() -> Iterator[Path]:
    """A folder with the package and its notebooks; kernels that are started within import that package."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("muse", "notebooks", "params"):
            shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "mine"))
        os.environ |= {"PYTHONPATH": str(folder), "MUSE_CACHE_DIR": str(folder / "cache")}
        os.environ |= {"IPYTHONDIR": str(folder / "ipython")}
        os.environ |= dict(word.split("=") for word in lab_words() if SET(word))
        yield folder


@contextlib.contextmanager
def loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but work, for as long as the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(notebook: Path, folder: Path) -> tuple[float, float]:
    """Run a notebook without any training on disk; return seconds of the clock and of CPU time, its kernel's too."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    node = nbformat.read(notebook, as_version=4)
    client = NotebookClient(node, timeout=1800, resources={"metadata": {"path": str(notebook.parent)}})
    began, before = time.perf_counter(), used()
    client.execute()
    return time.perf_counter() - began, used() - before


def used() -> float:
    """Seconds of CPU time of this process' children that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    sys.exit(main())
