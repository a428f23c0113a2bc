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
    with pytest.raises(Interrupted), Interruptions(wait=True) as signals:
        ask_before_and_after(signals, number)


def ask_before_and_after(signals, number):
    signals.check()
    signal.raise_signal(number)
    assert signals.received == number
    signals.check()
    raise AssertionError("nothing was raised")


def test_one_that_nobody_asked_for_is_not_lost():
    with pytest.raises(Interrupted), Interruptions(wait=True):
        signal.raise_signal(signal.SIGTERM)


def test_a_terminal_that_closes_hangs_up_twice_and_interrupts_once():
    steps = []

    def close(wait):
        with Interruptions(wait=wait):
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGHUP)
                steps.append(wait)

    for wait in (True, False):
        with pytest.raises(KeyboardInterrupt):
            close(wait)
    assert steps == [True, False]


def test_a_second_one_interrupts_at_once_where_that_is_wanted():
    steps = []

    def twice(first, second, **how):
        with Interruptions(wait=True, **how):
            signal.raise_signal(first)
            steps.append("noted")
            signal.raise_signal(second)
            steps.append("noted again")

    with pytest.raises(KeyboardInterrupt):
        twice(signal.SIGTERM, signal.SIGINT)
    assert steps == ["noted"]
    with pytest.raises(Interrupted):
        twice(signal.SIGTERM, signal.SIGTERM, insist=False)
    assert steps == ["noted", "noted", "noted again"]


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
