"""Memory in pages of 2 MiB, which a CPU fills in a fraction of the time that pages of 4 KiB take."""

from __future__ import annotations

import os


def ask_for_large_pages() -> None:
    """Let torch ask Linux for them in this process and those it starts, unless the user has chosen.

    To be called before the first tensor, where torch looks. It is for processes of our own alone: to import the package
    changes nobody's environment.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
