"""Signals that ask a program to end: noted until it is good to stop, or an interruption at once, like Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal that was noted, raised where the program asked for it: what it holds is whole there."""


class Interruptions:
    """Within the block Ctrl-C, SIGTERM and SIGHUP become a KeyboardInterrupt, at once or when it suits.

    With `wait` they are only noted, and `check`, or the end of the block, raises Interrupted; with `insist` a second
    one interrupts at once. A signal that was ignored stays ignored: a background job of a script ignores Ctrl-C, nohup
    ignores SIGHUP. Only the main thread can have handlers: elsewhere the block changes nothing. Once `exit_code` is
    set the work is done, and a signal ends the program with that code.
    """

    def __init__(self, *, wait: bool, insist: bool = True) -> None:
        self.wait, self.insist = wait, insist
        self.received: int | None = None
        self.exit_code: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in ENDING if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None:
            os._exit(self.exit_code)
        again = self.received is not None
        if again and number == HANG_UP:
            return  # a terminal that closes sends two, and the second must not end what the first one began
        self.received = number
        if not self.wait or (again and self.insist):
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise Interrupted where a signal was noted."""
        if self.received is not None:
            raise Interrupted

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.wait and self.received is not None and error[0] is None:
            raise Interrupted  # it came when nobody asked any more
