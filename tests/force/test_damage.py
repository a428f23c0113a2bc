"""A slice of the trials by force, with a seed of its own each time."""

from __future__ import annotations

import json
import random

from force import damage


def test_damaged_files_are_refused_or_change_nothing(capsys):
    code = damage.main(["--trials", "20", "--seed", str(random.SystemRandom().randrange(2**31))])
    printed = capsys.readouterr().out
    said = json.loads(printed.splitlines()[-1])
    assert code == 0, printed
    assert (said["script"], said["trials"]) == ("damage", 20)
    assert said["faults"] == dict.fromkeys(damage.KINDS, 0)


def test_the_trials_find_what_is_not_refused(monkeypatch, capsys):
    """Without the check of what is read, some damage becomes other numbers."""
    monkeypatch.setattr(damage, "TENSORS", (damage.swap,))
    monkeypatch.setattr(damage, "ASKED", {"finished": (damage.load_finished,)})
    monkeypatch.setattr("muse.models.weights._check_home", lambda path, about: None)
    assert damage.main(["--trials", "3", "--seed", "1"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"]["wrong_weights"] > 0
