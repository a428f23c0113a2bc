"""A slice of the trials by force; the whole is `python -m tests.force.lifecycle`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_few_trials_by_force_find_no_fault():
    """Runs killed while they move folders, a training stopped at random moments, outputs closed or full."""
    seed = str(random.SystemRandom().randrange(2**31))
    command = [sys.executable, "-m", "tests.force.lifecycle", "--trials", "3", "--seconds", "12", "--seed", seed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (seed, done.stdout, done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["script", "trials", "faults", "seconds"]
    assert found["trials"] > 0
    assert not any(found["faults"].values())
