"""Where a run was made: time, commit, versions and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from muse.host.cores import usable_cores

from . import earlier as earlier
from .schema import Imported

if TYPE_CHECKING:
    import torch


NOT_INSTALLED = "not installed"
"""Version of a package that is not there."""

PACKAGE_VARIABLE = "MUSE_PACKAGE"
"""Names, in a process of a run, the folder of the package that its driver runs from."""

NAMED = ("torch", "numpy", "transformers", "datasets", "plotly")
"""Packages that a stage may import and that decide what its numbers or its figures mean."""


def utc_now() -> datetime:
    """Return the present time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def without_git(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without git's own variables, which may point at another repository."""
    return {key: value for key, value in environment.items() if not key.startswith("GIT_")}


def git_state(folder: str | Path = ".") -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout whose top is `folder`; what a repository above it says is not asked.

    Where the code was copied without its history, MUSE_GIT_COMMIT may name the commit (dirty is then unknown); else
    (None, None).
    """

    def git(*arguments: str) -> str | None:
        given = {"cwd": folder, "env": without_git(os.environ), "capture_output": True, "text": True, "timeout": 10}
        try:
            done = subprocess.run(["git", *arguments], **given)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top, commit = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != Path(folder).resolve():
        return os.environ.get("MUSE_GIT_COMMIT"), None
    status = git("status", "--porcelain")
    return commit, None if status is None else bool(status)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what the numbers mean."""
    found = {"python": platform.python_version()}
    for name in ("muse-workbook", *NAMED, "papermill", "nbconvert"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = NOT_INSTALLED
    return found


def imported() -> Imported:
    """Return which code this process has imported: its versions by what the modules themselves say."""
    folder = Path(__file__).resolve().parent.parent
    expected = Path(os.environ.get(PACKAGE_VARIABLE) or folder).resolve()
    found = {name: str(getattr(sys.modules[name], "__version__", "unknown")) for name in NAMED if name in sys.modules}
    return Imported(
        package=folder.name if folder == expected else "/".join(("...", *folder.parts[-2:])),
        git_commit=git_state(folder.parent)[0],
        versions={"python": platform.python_version()} | found,
    )


def hardware() -> dict[str, str]:
    """Return processor, cores, memory and accelerator of this machine, as text."""
    import torch

    found = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": str(usable_cores()),
        "torch_threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if sys.platform != "win32":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory_gib"] = f"{pages / 2**30:.1f}"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = f"{properties.total_memory / 2**30:.1f}"
        found["gpu_count"] = str(torch.cuda.device_count())
        found["cuda"] = str(torch.version.cuda)
    return found


def device_hardware(device: torch.device) -> str:
    """Return the name of the CUDA device, else that of this machine's processor."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
