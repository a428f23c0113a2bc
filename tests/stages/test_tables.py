"""Objects as the last line of a cell: tables that escape what others wrote, and a `repr` that stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import soup

from muse.data.corpus import Corpus, TokenSplit
from muse.models.build import build_model
from muse.params import Settings
from muse.records.environment import utc_now
from muse.records.schema import Criterion, Judged, Metric, StageRecord, Summary
from muse.stages.tables import MOST_ROWS, table
from muse.training.recipe import Recipe, TrainingResult

HOSTILE = "<script>alert('x')</script>"


def rows(thing):
    """The cells of what IPython would show, row by row."""
    return [[cell.get_text() for cell in row.select("td")] for row in soup(thing._repr_html_()).select("tr")][1:]


def record(**values):
    times = {"started_utc": utc_now(), "finished_utc": utc_now()}
    return StageRecord(stage="memory", scale="published", **times | values)


def result():
    plain = dict.fromkeys(("seed", "best_step", "steps", "tokens", "batch_tokens"), 7)
    rates = dict.fromkeys(("learning_rate", "dropout", "weight_decay", "tokens_per_second", "seconds"), 0.25)
    texts = dict.fromkeys(("precision", "started_utc", "finished_utc", "weights_sha256", "hardware"), HOSTILE)
    curves = {"training_curve": ((1, 2.0),) * 200, "validation_curve": (), "tokens_per_second_samples": (1.0,) * 200}
    return TrainingResult("stage1", **plain, **rates, **texts, **curves, muon_weight_decay=None, resumed_from_steps=(),
                          best_validation_loss=1.23456789, weights=Path(HOSTILE))  # fmt: skip


def corpus():
    ids = torch.zeros(9, dtype=torch.int32)
    split = TokenSplit("test", ids, torch.tensor([0, 4]), 8, 40, "")
    return Corpus(HOSTILE, "corpus", 77, {"test": split}, (), None, str)


def test_each_object_is_a_table():
    metric = Metric(name="peak_memory", model=HOSTILE, value=1.23456789, unit="GiB", interval=(1, 2))
    assert rows(record(metrics=[metric])) == [["peak_memory", HOSTILE, "1.23457", "GiB", "1", "1 to 2"]]
    verdict = Criterion(name="vram", target="", value=0.5, verdict="pass", basis="measured", reason=HOSTILE)
    assert rows(verdict) == [["vram", "pass", "0.5", HOSTILE]]
    assert rows(Judged(model=HOSTILE, criteria=[verdict], summary=Summary())) == rows(verdict)
    assert rows(corpus()) == [["test", "9", "2", "8", "40"]]
    found = dict(rows(result()))
    assert (found["best_validation_loss"], found["training_curve"]) == ("1.23457", "200 values")
    assert rows(Settings(d_model=8))[0][:2] == ["d_model", "8"]
    assert dict(rows(Recipe(100, 10, 5, 1e-3)))["n_seq"] == "5"


@pytest.mark.parametrize("name", ["stage1", "phase2", "gpt2", "real_twin"])
def test_the_configuration_of_a_model_is_a_table(name):
    config = build_model(name, vocab_size=11, d_model=16, n_layers=1, n_seq=8).config
    assert dict(rows(config))["d_model"] == "16"


@pytest.mark.parametrize("make", [lambda: record(error=HOSTILE), result, corpus], ids=["record", "result", "corpus"])
def test_what_others_wrote_stays_text_and_a_repr_stays_plain(make):
    assert "<script" not in make()._repr_html_()
    assert "&lt;script" in make()._repr_html_()
    assert repr(make()).startswith(f"{type(make()).__name__}(")


def test_a_long_table_says_what_it_leaves_out():
    assert table("x", ["n"], [[n] for n in range(MOST_ROWS + 3)]).endswith("<p>and 3 more</p>")
    assert table("x", ["n"], [[1]]).endswith("</table>")
