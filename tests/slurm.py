"""A SLURM of one node on this machine, from the packages slurmctld, slurmd, slurm-client and munge, for a test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
CONFIG = """\
ClusterName=muse
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


class Slurm:
    """Starts the daemons of a cluster of its own, or skips the test and says why it cannot."""

    def __enter__(self) -> Slurm:
        self.daemons: list[subprocess.Popen] = []
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            pytest.skip(f"needs SLURM (apt-get install slurmctld slurmd slurm-client munge): no {', '.join(missing)}")
        if os.geteuid():
            pytest.skip("needs root: SLURM's daemons start jobs for others")
        self.folder = Path(tempfile.mkdtemp(prefix="muse-slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.config = self.folder / "slurm.conf"
        self.config.write_text(CONFIG.format(folder=self.folder, ports=free_ports(2)))
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "seed"
        try:
            self._start("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-f", str(self.config))
            self._start("slurmd", "-D", "-f", str(self.config), "-N", "localhost")
            self._wait(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as log:
            self.daemons.append(subprocess.Popen([name, *arguments], stdout=log, stderr=log))

    def _wait(self, ready, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [daemon.args[0] for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                said = [path.read_text(errors="replace").strip()[-300:] for path in self.folder.glob("*.out")]
                pytest.skip(f"SLURM does not start here: {ended or 'no idle node'}: {' | '.join(filter(None, said))}")
            time.sleep(0.2)

    def ask(self, *command: str) -> str:
        environment = os.environ | {"SLURM_CONF": str(self.config)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20).stdout

    def jobs(self) -> list[str]:
        """Numbers of the jobs that run."""
        return self.ask("squeue", "--noheader", "--format=%i", "--states=running").split()

    def cancel(self, job: str) -> None:
        self.ask("scancel", job)

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
