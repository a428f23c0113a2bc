"""As `warm`, with what nearly every stage imports: torch, what optimizers load of its compiler, the library of GPT-2.

Where kernels may not be forked (`kernels.may_be_forked`) each of them imports those for itself. Nothing of ours is
imported: modules of ours look at the kernel in which they come to be.
"""

from __future__ import annotations

from contextlib import suppress

from muse.host.processes import getting_ready

with getting_ready():
    from . import warm  # noqa: F401

    with suppress(Exception):  # whatever is wrong shows again in the stage that imports it
        from .kernels import may_be_forked

        if may_be_forked():
            import torch._dynamo  # noqa: F401
            import transformers.models.gpt2.modeling_gpt2  # noqa: F401
