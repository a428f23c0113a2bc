"""Exit codes of the commands, by what they say of the work."""

from __future__ import annotations

OK = 0
CRITERION_FAILED = 1  # with --gate; of check-pages: a problem was found
BAD_PARAMETERS = 2  # nothing was started
NOT_MEASURED = 3  # with --gate: no criterion fails, but one was not measured
FAILED = 4  # a stage, a training or the command itself
INTERRUPTED = 130  # by Ctrl-C, SIGTERM or SIGHUP: what had been done is kept
