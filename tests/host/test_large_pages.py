"""Who asks Linux for pages of 2 MiB: processes of our own, unless the user has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from calls import LARGE_PAGES, in_large_pages

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not LARGE_PAGES.exists(), reason="Linux alone is asked for them")

VARIABLE = "THP_MEM_ALLOC_ENABLE"
COMMAND = """
from muse import __main__, cli
cli.main = lambda: print(in_large_pages())
__main__.main()
"""
HARNESS = """
import runpy
from types import SimpleNamespace
sys.modules["muse.harness.harness"] = SimpleNamespace(command_line=lambda: print(in_large_pages()))
runpy.run_module("muse.harness", run_name="__main__")
"""
IMPORT = """
import muse.cli, muse.runner.run
from muse import *
print(in_large_pages())
"""


def asked(program, value=None):
    tests = str(Path(__file__).parent.parent)
    environment = {key: text for key, text in os.environ.items() if key != VARIABLE}
    environment |= {} if value is None else {VARIABLE: value}
    program = f"import sys\nsys.path.append({tests!r})\nfrom calls import in_large_pages\n{program}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("program", [COMMAND, HARNESS], ids=["muse", "python -m muse.harness"])
def test_a_command_does_unless_the_user_says_otherwise(program):
    assert asked(program)
    assert not asked(program, "0")


def test_who_only_imports_the_package_does_not():
    assert not asked(IMPORT)
    assert asked(IMPORT, "1")


@pytest.mark.skipif(os.environ.get(VARIABLE) == "0", reason="the user says otherwise")
def test_the_tests_do():
    assert in_large_pages()
