"""Every kernel becomes machine code for NVIDIA cards, which the interpreter does not show, and fits their memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import needs_kernels

from muse.ops import norms

SCRIPT = Path(__file__).with_name("compile_kernels.py")
REPOSITORY = SCRIPT.parents[2]
SHARED_BYTES = {90: 227 * 1024, 80: 163 * 1024}
"""Of a program at most, by compute capability: H100 and H200, A100."""


@needs_kernels(norms.norms_triton)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_and_fits(capability, tmp_path):
    """Without a GPU, by a process that does not interpret; half a minute each."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(SCRIPT), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["failed"], "\n\n".join(f"{launch}: {message}" for launch, message in found["failed"].items())
    assert {launch.split()[0] for launch in found["shared_bytes"]} == set(found["kernels"])
    limit = SHARED_BYTES[capability]
    assert {launch: used for launch, used in found["shared_bytes"].items() if used > limit} == {}
