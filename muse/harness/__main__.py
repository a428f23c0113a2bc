"""The command line of the lm-evaluation-harness with `--model muse`: python -m muse.harness --model muse ..."""

from lm_eval.__main__ import cli_evaluate

from . import harness  # noqa: F401 - registers the adapter

if __name__ == "__main__":
    cli_evaluate()
