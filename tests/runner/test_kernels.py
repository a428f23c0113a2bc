"""Kernels that are forked: they begin where an interpreter of their own would, and a manager can end them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ipykernel.kernelapp import IPKernelApp

from muse.catalog import STAGE_NAMES
from muse.runner import kernels
from muse.runner.kernels import Kernel
from muse.runner.notebooks import find_notebooks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def kernel():
    made = Kernel()
    yield made
    made.kill()
    made.wait()


def seen_by(kernel, tmp_path, environment):
    """What a kernel finds where it would start."""
    command = ["python", "-m", "ipykernel_launcher", "-f", "file"]
    kernel.become(command, environment | {"SEEN": str(tmp_path / "seen.json")}, str(tmp_path))
    assert kernel.wait() == 0
    return json.loads((tmp_path / "seen.json").read_text())


def look(argv):
    seen = {"argv": sys.argv, "given": argv, "path": sys.path, "environment": dict(os.environ), "folder": os.getcwd()}
    seen |= {"level": logging.root.level, "handlers": len(logging.root.handlers), "group": os.getpgrp()}
    with open(os.environ["SEEN"], "w", encoding="utf-8") as file:
        json.dump(seen, file)


def test_it_begins_as_an_interpreter_of_its_own_would(tmp_path, monkeypatch):
    monkeypatch.setattr(IPKernelApp, "launch_instance", look)
    monkeypatch.setattr(kernels, "PATH", ("/first", "", "/library"))
    monkeypatch.setenv("OF_THE_DRIVER", "1")
    monkeypatch.syspath_prepend("/of/the/driver")
    kernel = Kernel()
    seen = seen_by(kernel, tmp_path, {"PYTHONPATH": os.pathsep.join(["/own", "/first"]), "OWN": "1"})
    assert seen["path"] == ["/own", "/first", "/library"]
    assert seen["environment"]["OWN"] == "1"
    assert seen["environment"]["JPY_PARENT_PID"] == str(os.getpid()), "by which a kernel ends with its parent"
    assert "OF_THE_DRIVER" not in seen["environment"]
    assert seen["argv"] == ["ipykernel_launcher", "-f", "file"]
    assert seen["given"] == ["-f", "file"]
    assert seen["folder"] == str(tmp_path)
    assert (seen["level"], seen["handlers"]) == (logging.WARNING, 0), "what the driver's process logs is not the cells'"
    assert seen["group"] == kernel.pid


@pytest.mark.parametrize(
    ("ending", "code"),
    [(lambda argv: sys.exit(3), 3), (lambda argv: sys.exit("why"), 1), (lambda argv: 1 / 0, 1), (lambda argv: None, 0)],
)
def test_its_exit_code_is_that_of_a_process(ending, code, tmp_path, monkeypatch):
    monkeypatch.setattr(IPKernelApp, "launch_instance", ending)
    kernel = Kernel()
    assert kernel.poll() is None
    kernel.become(["python", "-m", "ipykernel_launcher"], {}, None)
    assert kernel.wait() == code
    assert kernel.poll() == code
    kernel.kill()  # which does nothing, whoever has its number by now


@pytest.mark.parametrize(("end", "number"), [(Kernel.kill, signal.SIGKILL), (Kernel.terminate, signal.SIGTERM)])
def test_it_can_be_ended(kernel, end, number):
    assert kernel.poll() is None
    end(kernel)
    assert kernel.wait() == -number


def test_a_signal_to_its_group_spares_whoever_forked_it(kernel):
    assert os.getpgid(kernel.pid) == kernel.pid != os.getpgrp()
    os.killpg(kernel.pid, signal.SIGKILL)
    assert kernel.wait() == -signal.SIGKILL


def test_one_that_nobody_needs_ends():
    kernel = Kernel()
    kernel._channel.close()  # as it does when the process that forked it ends
    deadline = time.monotonic() + 10
    while kernel.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kernel.poll() == 1


@pytest.mark.parametrize("preloaded", ["PRELOADED", "COMPUTING"])
def test_what_they_are_forked_from_has_imported_torch_only_where_notebooks_compute(preloaded, tmp_path):
    """Modules of stages look at the kernel in which they come to be; beside a card each kernel imports for itself."""
    program = f"""
import os, sys
from pathlib import Path
from calls import tell_modules
from muse.host import processes
from muse.runner import notebook_calls
if __name__ == "__main__":
    processes.warm_up(notebook_calls.{preloaded})
    names = ["papermill", "torch._dynamo", "transformers.models.gpt2.modeling_gpt2", "muse.stages"]
    arguments = {{"names": names, "file": "told.json"}}
    sys.exit(processes.call(tell_modules, arguments, log=Path("log"), environment=os.environ))
"""
    (tmp_path / "drives.py").write_text(program)
    tests = Path(__file__).parent.parent
    own = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    subprocess.run([sys.executable, "drives.py"], cwd=tmp_path, env=own, check=True)
    computing = ["torch._dynamo", "transformers.models.gpt2.modeling_gpt2"] * (preloaded == "COMPUTING")
    expected = ["papermill", *computing * (not os.path.exists("/proc/driver/nvidia"))]
    assert json.loads((tmp_path / "told.json").read_text()) == expected


def test_a_notebook_computes_where_it_imports_a_stage():
    computing = {notebook.stage for notebook in find_notebooks([*STAGE_NAMES]) if notebook.computes}
    assert computing == {*STAGE_NAMES}
