"""Kernels that are forked: they begin where an interpreter of their own would, and a manager can end them."""

from __future__ import annotations

import _thread
import atexit
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from builders import write_notebook
from ipykernel.kernelapp import IPKernelApp

from muse.catalog import STAGE_NAMES
from muse.host import processes
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


def test_places_that_only_the_environment_of_the_server_names_are_none_of_a_kernels():
    program = "import sys; from muse.runner import kernels; print(*(set(sys.path) - set(kernels.PATH)))"
    repository = str(Path(kernels.__file__).parent.parent.parent)
    own = os.environ | {"PYTHONPATH": os.pathsep.join([repository, "/foreign"])}
    done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)
    assert {*done.stdout.split()} == {repository, "/foreign"}


def open_files():
    """Where what is open leads, but for the standard streams, pipes to the one that forked, and the list itself."""
    links = [Path(f"/proc/self/fd/{number}") for number in map(int, os.listdir("/proc/self/fd")) if number > 2]
    return sorted(str(link.readlink()) for link in links if link.is_symlink())


def drawn():
    return np.random.rand(), torch.rand(()).item()


def look(argv):
    seen = {"argv": sys.argv, "given": argv, "path": sys.path, "environment": dict(os.environ), "folder": os.getcwd()}
    seen |= {"level": logging.root.level, "handlers": len(logging.root.handlers), "group": os.getpgrp()}
    seen |= {"parent": multiprocessing.parent_process() is not None, "drawn": drawn()}
    seen |= {"name": multiprocessing.current_process().name, "method": multiprocessing.get_start_method(True)}
    seen |= {"server": forkserver._forkserver._forkserver_alive_fd, "tracker": resource_tracker._resource_tracker._fd}
    if sys.platform == "linux":
        seen["open"] = open_files()
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


def test_nothing_of_the_driver_is_open_in_it(tmp_path, monkeypatch):
    """Neither its pipes, which a reader would find open, nor its server, whose children are not below the kernel."""
    monkeypatch.setattr(IPKernelApp, "launch_instance", look)
    monkeypatch.setattr(forkserver._forkserver, "_forkserver_alive_fd", 1000)
    monkeypatch.setattr(multiprocessing.process, "_parent_process", multiprocessing.current_process())
    monkeypatch.setattr(resource_tracker._resource_tracker, "_fd", None)
    multiprocessing.set_start_method("forkserver", force=True)
    before = np.random.get_state(), torch.get_rng_state()
    with (tmp_path / "of the driver").open("w") as file:
        seen = seen_by(Kernel(), tmp_path, {})
        assert not file.closed
        file.write("and still open here")
    multiprocessing.set_start_method(None, force=True)
    assert (seen["parent"], seen["server"], seen["tracker"]) == (False, None, None)
    assert (seen["name"], seen["method"]) == ("MainProcess", None)
    if sys.platform == "linux":
        (channel,) = [place for place in seen["open"] if place.startswith("socket:")]
        assert {*seen["open"]} - {channel} <= {"/dev/null", str(tmp_path / "seen.json")}
    np.random.set_state(before[0])
    torch.set_rng_state(before[1])
    assert not {*drawn()} & {*seen["drawn"]}, "each kernel draws its own numbers where nobody gave a seed"


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


def test_what_is_left_to_do_at_the_end_is_done(tmp_path, monkeypatch):
    last = tmp_path / "last"
    monkeypatch.setattr(IPKernelApp, "launch_instance", lambda argv: atexit.register(last.write_text, "words") and None)
    kernel = Kernel()
    kernel.become(["python", "-m", "ipykernel_launcher"], {}, None)
    assert (kernel.wait(), last.read_text()) == (0, "words")


def test_one_that_died_before_it_began_says_so():
    kernel = Kernel()
    os.kill(kernel.pid, signal.SIGKILL)
    os.waitid(os.P_PID, kernel.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ChildProcessError, match=r"the kernel died before it began \(exit code -9\)"):
        kernel.become(["python", "-m", "ipykernel_launcher"], {}, None)


def test_it_ends_with_whoever_forked_it_before_ipykernel_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(IPKernelApp, "launch_instance", lambda argv: time.sleep(600))
    kernel = Kernel()
    kernel.become(["python", "-m", "ipykernel_launcher"], {}, None)
    assert kernel.poll() is None
    kernel._channel.close()  # as it does when the process that forked it ends
    assert ended_within(kernel, 10) == 1


def ended_within(kernel, seconds):
    deadline = time.monotonic() + seconds
    while kernel.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return kernel.poll()


@pytest.mark.parametrize(("end", "number"), [(Kernel.kill, signal.SIGKILL), (Kernel.terminate, signal.SIGTERM)])
def test_it_can_be_ended(kernel, end, number):
    assert kernel.poll() is None
    end(kernel)
    assert kernel.wait() == -number


def test_its_end_is_seen_where_whoever_started_the_program_ignores_the_ends_of_children():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        kernel = Kernel()
        assert kernel.poll() is None
        kernel.kill()
        assert (kernel.wait(), kernel.poll()) == (0, 0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_signal_to_its_group_spares_whoever_forked_it(kernel):
    assert os.getpgid(kernel.pid) == kernel.pid != os.getpgrp()
    os.killpg(kernel.pid, signal.SIGKILL)
    assert kernel.wait() == -signal.SIGKILL


def test_one_that_nobody_needs_ends():
    kernel = Kernel()
    kernel._channel.close()  # as it does when the process that forked it ends
    assert ended_within(kernel, 10) == 1


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ([sys.executable, "-m", "ipykernel_launcher", "-f", "x"], True),
        ([sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "x"], False),
        ([sys.executable, "-m", "another_kernel", "-f", "x"], False),
        (["/another/python", "-m", "ipykernel_launcher", "-f", "x"], False),
        (["xpython", "-f", "x"], False),
    ],
)
def test_only_the_kernel_of_this_python_is_forked(command, ours):
    assert kernels._is_this_python(command) == ours


def test_a_kernel_of_its_own_kind_is_started_as_it_says():
    """Neither another command nor a provisioner that the specification names gives way to a fork."""
    made = kernels.manager(SimpleNamespace(pid=1))
    assert type(made(kernel_name="python3").provisioner).__name__ == "Provisioner"

    class Named(made):
        kernel_spec = SimpleNamespace(metadata={"kernel_provisioner": {"provisioner_name": "of a cluster"}})

    assert Named(kernel_name="python3").provisioner is None


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux")
def test_no_process_is_forked_that_has_threads_which_python_does_not_know(monkeypatch):
    monkeypatch.setattr(kernels, "CARDS", ())
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    monkeypatch.setattr(threading, "active_count", lambda: len(os.listdir("/proc/self/task")))
    assert kernels.can_fork()
    more = _thread.allocate_lock()
    known = threading.active_count()
    monkeypatch.setattr(threading, "active_count", lambda: known)
    more.acquire()
    _thread.start_new_thread(more.acquire, ())
    assert not kernels.can_fork()
    more.release()
    monkeypatch.delitem(sys.modules, "torch")
    assert not kernels.can_fork()


def test_none_is_forked_beside_a_card(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    monkeypatch.setattr(kernels, "CARDS", (str(tmp_path),))
    assert not kernels.may_be_forked()
    assert not kernels.can_fork()


DRIVES = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
sys.modules["torch"] = SimpleNamespace(default_generator=SimpleNamespace(seed=int))  # so that kernels are forked
from muse.host import processes
from muse.host.signals import Interruptions
from muse.runner import notebook_calls
from muse.runner.surroundings import surroundings
if __name__ == "__main__":
    processes.CENSUS_SECONDS = 0
    with Interruptions(wait=False):
        processes.warm_up(notebook_calls.PRELOADED)
        arguments = {"notebook": Path("book.ipynb"), "output": Path("out.ipynb"), "parameters": {"record_dir": "."}}
        error = processes.call(notebook_calls.execute_notebook, arguments, log=Path("log"),
                               environment=surroundings(Path("own").resolve()))
        print(error)
"""
WAITS = """
import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
started = Path("pids.tmp").write_text(f"{os.getppid()} {os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
time.sleep(600)
"""


@pytest.mark.skipif(not kernels.may_be_forked(), reason="kernels are not forked here")
@pytest.mark.parametrize(
    ("whom", "number", "code", "said"),
    [
        ("driver", signal.SIGKILL, -signal.SIGKILL, ""),
        ("driver", signal.SIGTERM, -signal.SIGINT, ""),
        ("server", signal.SIGKILL, 0, "the process that ran it died"),
        ("call", signal.SIGKILL, 0, "the process that ran it died (exit code -9)"),
        ("kernel", signal.SIGKILL, 0, "DeadKernelError: Kernel died"),
    ],
)
def test_whoever_is_ended_nothing_outlives_it(whom, number, code, said, tmp_path):
    write_notebook(tmp_path, "book.ipynb", WAITS)
    (tmp_path / "drives.py").write_text(DRIVES)
    own = os.environ | {"PYTHONPATH": str(Path(kernels.__file__).parent.parent.parent)}
    command, pids = [sys.executable, "drives.py"], tmp_path / "pids"
    with subprocess.Popen(command, cwd=tmp_path, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 100
        while not pids.exists() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        call, kernel, child = (psutil.Process(int(pid)) for pid in pids.read_text().split())
        server = call.parent()
        assert "forkserver" in " ".join(kernel.cmdline()), "which shows that it was forked"
        below = [*psutil.Process(driver.pid).children(recursive=True)]
        assert {server, call, kernel, child} <= {*below}
        time.sleep(4 * processes.TICK_SECONDS)  # by then the driver has seen them all
        ended = {"driver": driver, "server": server, "call": call, "kernel": kernel}[whom]
        ended.send_signal(number)
        _, left = psutil.wait_procs(below if whom == "driver" else [kernel, child], timeout=10)
        assert not left
        output, errors = driver.communicate(timeout=20)
    _, left = psutil.wait_procs(below, timeout=10)
    assert not left
    assert driver.returncode == code
    assert said in output.decode()
    assert b"leaked" not in errors


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
    computing = ["torch._dynamo", "transformers.models.gpt2.modeling_gpt2", "a kernel can be forked"]
    expected = ["papermill", *computing * (preloaded == "COMPUTING" and kernels.may_be_forked())]
    assert json.loads((tmp_path / "told.json").read_text()) == expected


def test_a_notebook_computes_where_it_imports_a_stage():
    computing = {notebook.stage for notebook in find_notebooks([*STAGE_NAMES]) if notebook.computes}
    assert computing == {*STAGE_NAMES}
