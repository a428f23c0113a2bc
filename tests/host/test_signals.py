"""Signals that end a program: noted or at once, and what was ignored stays ignored."""

from __future__ import annotations

import signal
import threading

import pytest

from muse.host.signals import ENDING, Interrupted, Interruptions


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    assert {number: signal.getsignal(number) for number in ENDING} == before


@pytest.mark.parametrize("number", ENDING)
def test_each_interrupts_at_once(number):
    with pytest.raises(KeyboardInterrupt), Interruptions(wait=False):
        signal.raise_signal(number)


@pytest.mark.parametrize("number", ENDING)
def test_each_is_noted_until_it_suits(number):
    with Interruptions(wait=True) as signals:
        signals.check()
        signal.raise_signal(number)
        assert signals.received == number
        with pytest.raises(Interrupted):
            signals.check()


def test_a_second_one_interrupts_at_once_where_that_is_wanted():
    with Interruptions(wait=True):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Interruptions(wait=True, insist=False):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("number", ENDING)
def test_what_was_ignored_stays_ignored(number, wait):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interruptions(wait=wait) as signals:
            signal.raise_signal(number)
            signals.check()
            assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_another_thread_changes_nothing():
    found = []

    def work():
        with Interruptions(wait=False):
            found.append([signal.getsignal(number) for number in ENDING])

    before = [signal.getsignal(number) for number in ENDING]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
