"""The kernel of a notebook, forked from a process that has imported what notebooks import.

An interpreter of its own would take five seconds of computing for the imports of each stage. What a fork inherits and
an interpreter of its own would not have is put away before the kernel begins: the driver's pipes and its server of
processes, its log, its random numbers.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe, connection, forkserver, process, resource_tracker, set_start_method
from pathlib import Path

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

GIVEN = {os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place}
PATH = tuple(place for place in sys.path if place not in GIVEN)
"""Where modules are looked for, but for what the environment says, which is another one for a kernel."""

LAUNCHER = ["-m", "ipykernel_launcher"]
CARDS = ("/proc/driver/nvidia", "/dev/dxg", "/dev/nvmap")
"""What there is beside NVIDIA's driver: on Linux, on Linux within Windows, on a Tegra."""


def may_be_forked() -> bool:
    """Whether kernels of this machine may come from a process that has torch.

    Beside a card they may not: a process that had asked for CUDA could not hand it on to those forked from it. Nor may
    they on other systems than Linux, where libraries of the system do not outlive a fork.
    """
    return sys.platform == "linux" and not any(map(os.path.exists, CARDS))


def can_fork() -> bool:
    """Whether this process has torch for a kernel, and no thread but Python's own: a fork would lack the others."""
    loaded = may_be_forked() and "torch" in sys.modules
    return loaded and len(os.listdir("/proc/self/task")) == threading.active_count()


class Kernel:
    """A process that waits to become a kernel; its manager asks of it what it would ask of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        """Fork it; what it has of this process is what is imported by now."""
        here, there = Pipe()
        self.returncode: int | None = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with warnings.catch_warnings():  # of the thread that waits for the driver's end; it holds no lock of a kernel's
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            here.close()
            _wait(there)
        there.close()
        self._channel = here  # open as long as this process lives: the other one ends with it
        with suppress(EOFError):  # it died; whoever sends it a command will see that
            here.recv()  # it leads a group of its own by now: a signal to that group spares this process

    def become(self, command: list[str], environment: Mapping[str, str], folder: str | None) -> None:
        """Let it be the kernel that this command would start; ChildProcessError where it has died before."""
        about = (command[command.index("-m") + 1 :], dict(environment) | {"JPY_PARENT_PID": str(os.getpid())}, folder)
        try:
            self._channel.send(about)
        except OSError as error:
            raise ChildProcessError(f"the kernel died before it began (exit code {self.wait()})") from error

    def poll(self) -> int | None:
        """Return the exit code, minus the number of the signal that ended it, None while it runs."""
        if self.returncode is None:
            self._ended(os.WNOHANG)
        return self.returncode

    def wait(self) -> int | None:
        """Wait for its end and return the exit code."""
        if self.returncode is None:
            self._ended(0)
        return self.returncode

    def _ended(self, options: int) -> None:
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:  # it ended where SIGCHLD is ignored, and nobody learns how
            pid, status = self.pid, 0
        self.returncode = os.waitstatus_to_exitcode(status) if pid else None

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def manager(kernel: Kernel) -> type[AsyncKernelManager]:
    """Return a kind of kernel manager whose kernel is that process, where its specification asks for this Python."""

    class Provisioner(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **kwargs: object) -> dict[str, object]:
            if not _is_this_python(cmd):
                kernel.kill()
                return await super().launch_kernel(cmd, **kwargs)
            kernel.become(cmd, kwargs.get("env") or os.environ, kwargs.get("cwd"))
            self.process, self.pid, self.pgid = kernel, kernel.pid, kernel.pid
            return self.connection_info

    class Manager(AsyncKernelManager):
        def __init__(self, **about: object) -> None:
            super().__init__(**about)
            if "kernel_provisioner" not in self.kernel_spec.metadata:
                self.provisioner = Provisioner(kernel_spec=self.kernel_spec, parent=self)

    return Manager


def _is_this_python(command: list[str]) -> bool:
    """Whether a command starts the kernel that a fork can be, as the specification that every ipykernel brings does."""
    asked, own = Path(command[0]), Path(sys.executable)
    with suppress(OSError):
        return command[1:3] == LAUNCHER and asked.parent == own.parent and asked.samefile(own)
    return False


def _wait(channel: connection.Connection) -> None:
    """Wait for what to be, be it, and end."""
    code = 1
    try:
        os.setsid()
        _close_all_but(channel.fileno())
        channel.send("waiting")
        with suppress(EOFError):  # nobody needs a kernel any more
            command, environment, folder = channel.recv()
            threading.Thread(target=_follow, args=(channel,), daemon=True).start()
            _begin(command, environment, folder)
            code = _run(command)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.__stdout__, sys.__stderr__):
            with suppress(BaseException):  # whatever is wrong with it, this process goes no further
                stream.flush()
        os._exit(code)


def _follow(channel: connection.Connection) -> None:
    """End this process when the one that forked it is gone, whoever inherits it then."""
    with suppress(EOFError, OSError):
        channel.recv()
    os._exit(1)


def _close_all_but(kept: int) -> None:
    """Let what is open of the driver lead nowhere; the numbers stay taken, for objects that would close them."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):
        if number > 2 and number not in (kept, nowhere):
            with suppress(OSError):  # the one that was open for the list
                os.fstat(number)
                os.dup2(nowhere, number, inheritable=False)


def _begin(command: list[str], environment: dict[str, str], folder: str | None) -> None:
    """Make of this process what an interpreter of its own would be at its first line."""
    os.environ.clear()
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
    own = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [*own, *(place for place in PATH if place not in (*own, ""))]
    sys.argv = command
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    _draw_anew()
    _own_processes()


def _draw_anew() -> None:
    """Have random numbers that nobody gave a seed; else all kernels of a run would draw the same."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


def _own_processes() -> None:
    """Start processes as the first one of a program does: below it, where its end is seen to, not by the server."""
    set_start_method(None, force=True)
    process.current_process().name = "MainProcess"
    process._parent_process, process._children = None, set()
    forkserver._forkserver.__init__()
    resource_tracker._resource_tracker.__init__()


def _run(command: list[str]) -> int:
    """Run the kernel and what was left to do at its end; return the exit code."""
    try:
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(command[1:])
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        atexit._run_exitfuncs()
