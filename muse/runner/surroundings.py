"""What a process of a run gets of the user's surroundings: all but what would bring in other code or settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from muse.records.environment import PACKAGE_VARIABLE, without_git

PACKAGE = Path(__file__).resolve().parent.parent
FOREIGN = ("IPYTHON", "JUPYTER")
STARTS = ("PYTHONSTARTUP", "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONINSPECT")
PROFILE = "c.InteractiveShellApp.ignore_cwd = True\nc.InteractiveShellApp.exec_PYTHONSTARTUP = False\n"


def surroundings(own: Path, **more: str) -> Mapping[str, str]:
    """Return the environment of a process that imports the driver's muse and nobody's profile or working folder.

    `own` is an empty folder, which gets an IPython profile of our own; `more` is added.
    """
    profile = own / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    first = own / "first"  # a kernel takes the first place of its path away where that is its working folder
    first.mkdir(exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(PROFILE, encoding="utf-8")
    kept = {key: value for key, value in without_git(os.environ).items() if not key.startswith(FOREIGN)}
    kept = {key: value for key, value in kept.items() if key not in STARTS}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(first), str(PACKAGE.parent)]),
        "PYTHONSAFEPATH": "1",
        "IPYTHONDIR": str(own / "ipython"),
        "JUPYTER_CONFIG_DIR": str(own / "jupyter"),
        "JUPYTER_DATA_DIR": str(own / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        PACKAGE_VARIABLE: str(PACKAGE),
        **more,
    }
