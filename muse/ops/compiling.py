"""torch.compile for a function that many models, shapes and options share in one process."""

from __future__ import annotations

from collections.abc import Callable

import torch

FORMS = 256


def compiled(function: Callable) -> Callable:
    """torch.compile of a function for exactly the shapes that it gets, anew for each of up to FORMS forms.

    Models share the code of their losses, and torch stops at the eighth form of one code: what comes then runs without
    a compiler, slower, with a line in the log. Of a second shape it makes one code for all, slower than one for each.
    """
    import torch._dynamo.config as limits

    limits.recompile_limit = max(limits.recompile_limit, FORMS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, FORMS)
    return torch.compile(function, dynamic=False)
