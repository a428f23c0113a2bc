"""Paths as they are shown: nothing of this machine, and still readable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from muse.host import paths
from muse.host.paths import shorten_file, shortened, with_short_paths


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


def test_what_lies_here_is_relative_and_what_lies_elsewhere_keeps_its_name(tmp_path):
    here, data = Path.cwd(), tmp_path / "data" / "wiki-2"
    assert shortened(f"{here}/reports/x.json") == "reports/x.json"
    assert shortened(f"read {here}, then {here}; ") == "read ., then .; "
    assert shortened(f"It is {data}.", [data]) == "It is .../wiki-2."
    assert shortened(f"'{data}/train.txt' in {data}", [data]) == "'.../wiki-2/train.txt' in .../wiki-2"
    assert shortened(f"{here}/data/train.txt", [here / "data"]) == "data/train.txt"


def test_a_name_that_only_begins_alike_stays(tmp_path):
    assert shortened(f"{tmp_path}/data-two/a", [tmp_path / "data"]) == f"{tmp_path}/data-two/a"
    assert shortened("a / b // c", ["/"]) == "a / b // c"


def test_the_users_and_pythons_folders_are_not_told(tmp_path):
    assert shortened(f"{tmp_path}/user/secret/x") == "~/secret/x"
    assert "site-packages/torch" in shortened(f"{sys.base_prefix}/lib/site-packages/torch")
    assert sys.base_prefix not in shortened(f"{sys.base_prefix}/lib/site-packages/torch")


def test_settings_know_their_own_folders(tmp_path):
    values = {"corpus": f"{tmp_path}/data/wiki", "n_seq": 8, "cache_dir": None, "checkpoint_dir": f"{Path.cwd()}/c"}
    shown = with_short_paths(values)
    assert shown == {"corpus": ".../wiki", "n_seq": 8, "cache_dir": None, "checkpoint_dir": "c"}


def test_files_are_shortened_in_place_and_bytes_left_alone(tmp_path):
    text, raw = tmp_path / "log", tmp_path / "raw"
    text.write_text(f"in {Path.cwd()}/x\n")
    raw.write_bytes(b"\xff" + str(Path.cwd()).encode())
    before = raw.read_bytes()
    for path in (text, raw, tmp_path / "missing"):
        shorten_file(path)
    assert (text.read_text(), raw.read_bytes()) == ("in x\n", before)


def test_an_installed_package_is_no_place_for_what_a_notebook_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.from_checkout("reports") == paths.CHECKOUT / "reports"
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path / "site-packages")
    assert paths.from_checkout("reports") == tmp_path / "reports"
