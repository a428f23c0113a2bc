"""The kernel of a notebook, forked from a process that has imported what notebooks import.

An interpreter of its own would take five seconds of computing for the imports of each stage.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from multiprocessing import Pipe, connection

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

PATH = tuple(sys.path)
"""Where modules are looked for before a driver hands over its own places."""


class Kernel:
    """A process that waits to become a kernel; its manager asks of it what it would ask of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        """Fork it; what it has of this process is what is imported by now."""
        here, there = Pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            here.close()
            _wait(there)
        there.close()
        here.recv()  # it leads a group of its own by now: a signal to that group spares this process
        self._channel = here

    def become(self, command: list[str], environment: Mapping[str, str], folder: str | None) -> None:
        """Let it be the kernel that this command would start."""
        with self._channel as channel:
            channel.send((command, dict(environment) | {"JPY_PARENT_PID": str(os.getpid())}, folder))

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
        pid, status = os.waitpid(self.pid, options)
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
    """Return a kind of kernel manager whose kernel is that process."""

    class Provisioner(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **kwargs: object) -> dict[str, object]:
            kernel.become(cmd, kwargs.get("env") or os.environ, kwargs.get("cwd"))
            self.process, self.pid, self.pgid = kernel, kernel.pid, kernel.pid
            return self.connection_info

    class Manager(AsyncKernelManager):
        def __init__(self, **about: object) -> None:
            super().__init__(**about)
            self.provisioner = Provisioner(kernel_spec=self.kernel_spec, parent=self)

    return Manager


def _wait(channel: connection.Connection) -> None:
    """Wait for what to be, be it, and end."""
    code = 1
    try:
        os.setsid()
        channel.send("waiting")
        code = _run(*channel.recv())
    except EOFError:  # nobody needs a kernel any more
        pass
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.__stdout__, sys.__stderr__):
            stream.flush()
        os._exit(code)


def _run(command: list[str], environment: dict[str, str], folder: str | None) -> int:
    """Run the kernel as an interpreter of its own would with this environment."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or os.getcwd())
    own = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [*own, *(place for place in PATH if place not in (*own, ""))]
    sys.argv = command[command.index("-m") + 1 :]
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(sys.argv[1:])
    return 0
