"""What notebooks are read with is imported without the grammars that nobody here asks for."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXPORT = "from muse.report import export"
WARM = "import muse.runner.warm"
CALL = """from pathlib import Path
from muse.runner.notebook_calls import execute_notebook
execute_notebook(Path(), Path(), {})"""


@pytest.mark.parametrize("program", [f"{EXPORT}\n{WARM}", CALL], ids=["export", "call"])
def test_what_reads_notebooks_leaves_the_grammars_out_and_still_checks_them(program):
    after = f"""{program}
import importlib.util, sys
assert "nbformat" in sys.modules and "rfc3987_syntax" not in sys.modules, sorted(sys.modules)
importlib.util.find_spec("rfc3987_syntax")  # a ValueError where a trace of the block is left
import nbformat
try:
    nbformat.validate({{"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": 3}})
except nbformat.ValidationError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", after], capture_output=True, text=True)
    assert done.stdout.endswith("refused\n"), done.stderr
