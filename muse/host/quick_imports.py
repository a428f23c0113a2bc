"""Imports that leave out what nobody here asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

GRAMMARS = "rfc3987_syntax"


@contextmanager
def without_grammars() -> Iterator[None]:
    """Import nbformat, and what imports it, within this block: two seconds less in every process that does.

    The library that checks notebooks against their schema, where no IRI occurs, makes ready to check IRIs too if
    another package is there, which then reads forty grammars. Within the block that package is as if it were missing.
    """
    if GRAMMARS in sys.modules:
        yield
        return
    sys.modules[GRAMMARS] = None  # to import it is an ImportError, which is what the library expects
    try:
        yield
    finally:
        del sys.modules[GRAMMARS]
