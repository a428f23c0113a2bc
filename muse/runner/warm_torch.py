"""As `warm`, with what nearly every stage imports: torch, what optimizers load of its compiler, the library of GPT-2.

Beside a driver of NVIDIA's cards they are left to the kernels: a process that had asked for CUDA could not hand it on
to those forked from it. So they are on other systems than Linux, where libraries of the system may not be forked.
Nothing of ours is imported: modules of ours look at the kernel in which they come to be.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from muse.host.processes import getting_ready

NVIDIA = "/proc/driver/nvidia"

with getting_ready():
    with suppress(Exception):  # whatever is wrong shows again in the stage that imports it
        if sys.platform == "linux" and not os.path.exists(NVIDIA):
            import torch._dynamo  # noqa: F401
            import transformers.models.gpt2.modeling_gpt2  # noqa: F401
    from . import warm  # noqa: F401
