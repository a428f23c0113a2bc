"""`python -m muse` is the `muse` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
