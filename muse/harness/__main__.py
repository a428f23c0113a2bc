"""The command line of the lm-evaluation-harness with this project's adapter: python -m muse.harness --model muse ..."""

from .harness import command_line

if __name__ == "__main__":
    command_line()
