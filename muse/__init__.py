"""MUSE: planar complex language models and the measurements that test them."""

import importlib

_HOMES = {
    "Phase2Config": "models.phase2",
    "Phase2Model": "models.phase2",
    "Phase3Stage1Config": "models.stage1",
    "Phase3Stage1Model": "models.stage1",
    "from_pretrained": "models.pretrained",
    "save_pretrained": "models.pretrained",
}

__all__ = [
    "Phase2Config", "Phase2Model", "Phase3Stage1Config", "Phase3Stage1Model", "from_pretrained", "save_pretrained",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that the command line starts without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
