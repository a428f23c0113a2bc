"""`python -m muse` is the `muse` command: from its first import to its end a program that signals end as promised."""

import sys

from muse.host.exit_codes import INTERRUPTED
from muse.host.signals import Interruptions


def main() -> int:
    """Run the command line of this process and return the exit code, which no later signal changes."""
    signals = Interruptions(wait=False).__enter__()  # and never left: this is the whole program
    try:
        from muse.host.parents import follow_parent

        follow_parent()
        from .cli import main as command

        code = command()
    except KeyboardInterrupt:
        code = INTERRUPTED
    signals.exit_code = code
    return code


if __name__ == "__main__":
    sys.exit(main())
