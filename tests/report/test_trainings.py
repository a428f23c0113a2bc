"""Trainings kept beside the comparison become tables: seeds are paired, settings kept apart, gaps left out."""

from __future__ import annotations

import json
import math

from builders import metric, stage

from muse.records.store import write_record
from muse.report import trainings


def keep(reports, model, seed, loss, optimizer="muon", n_seq=1024, batch_tokens=8192, dropout=0.3):
    recipe = {"optimizer": optimizer, "n_seq": n_seq, "batch_tokens": batch_tokens, "dropout": dropout}
    result = {"model_name": model, "seed": seed, "best_validation_loss": loss, "hardware": "a card"}
    folder = reports / trainings.FOLDER
    folder.mkdir(exist_ok=True)
    values = {"config": {"recipe": recipe}, "result": result | {"finished_utc": "2026-11-29T13:00:00+00:00"}}
    (folder / f"{model}-{len(list(folder.iterdir()))}.json").write_text(json.dumps(values))


def rows(text):
    return {cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
            for cells in (line.split("|") for line in text.splitlines() if line.startswith("|"))}  # fmt: skip


def test_without_trainings_there_are_no_tables(tmp_path):
    assert [make(tmp_path) for make in (trainings.changed, trainings.recipes, trainings.lengths)] == ["", "", ""]
    assert trainings.by_adamw(tmp_path) == ""


def test_a_change_is_compared_with_the_whole_seed_by_seed(tmp_path):
    for seed, loss in ((0, 4.0), (1, 3.0)):
        keep(tmp_path, "stage1_compact", seed, loss)
    keep(tmp_path, "stage1_compact_real_table", 1, 3.0 + math.log(1.5))  # beside seed 0 it would look better
    keep(tmp_path, "stage1_compact_half_rank", 0, 4.0 + math.log(1.1))
    keep(tmp_path, "stage1_compact_half_rank", 1, 3.0 + math.log(1.3))
    keep(tmp_path, "stage1_compact_half_rank", 2, 9.0)  # a seed that the whole one has not
    keep(tmp_path, "stage1_compact_real_scores", 0, 1.0, dropout=0.1)  # another setting
    found = rows(trainings.changed(tmp_path))
    assert found["Compact with a real table"][-1] == "1.500"
    assert found["Compact with half the rank"][-1] == f"{math.sqrt(1.1 * 1.3):.3f} (1.100 to 1.300)"
    assert found["Stage 1 compact"] == ["4.0000, 3.0000", "3.5000", "1"]
    assert "Compact with real scores" not in found


def test_by_adamw_each_model_stands_at_the_better_of_its_dropouts(tmp_path):
    for model, worse, better in (("phase2", 5.0, 4.0), ("stage1_compact", 3.0, 6.0)):
        keep(tmp_path, model, 0, worse, "adamw", dropout=0.4)
        keep(tmp_path, model, 0, better, "adamw", dropout=0.1)
    keep(tmp_path, "phase2", 1, 4.2, "adamw", dropout=0.1)
    keep(tmp_path, "stage1_compact", 1, 4.2 + math.log(1.25), "adamw", dropout=0.4)
    told = rows(trainings.recipes(tmp_path))
    assert told["Phase 2"] == ["4.1000", "1"]
    mean = math.exp((3.0 - 4.0 + math.log(1.25)) / 2)
    assert told["Stage 1 compact"][1] == f"{mean:.3f} ({math.exp(-1):.3f} to 1.250)"
    folder = tmp_path / trainings.ADAMW_TEST
    folder.mkdir()
    losses = {"stage1_compact": [2.0, 2.0], "phase2": [2.0, 2.0 - math.log(1.21)]}
    for model, values in losses.items():  # each from a stage of its own
        assert trainings.by_adamw(tmp_path) == ""
        write_record(stage(metrics=[metric("loss", model, 2.0, samples=values)]), folder / f"{model}.json")
    assert trainings.by_adamw(tmp_path) == "1.100 (1.000 to 1.210)"
    assert rows(trainings.recipes(tmp_path))["Stage 1 compact"][2:] == [f"{math.exp(2):.2f}", "1.100 (1.000 to 1.210)"]


def test_lengths_are_told_where_both_sides_have_them(tmp_path):
    for n_seq, loss in ((1024, 3.0), (2048, 2.5)):
        keep(tmp_path, "stage1_compact", 0, loss, n_seq=n_seq, batch_tokens=16384, dropout=0.1)
        keep(tmp_path, "phase2", 0, 3.0, n_seq=n_seq, batch_tokens=16384, dropout=0.1)
    found = rows(trainings.lengths(tmp_path))
    assert found["2,048"] == ["2.5000", "3.0000", f"{math.exp(-0.5):.3f}"]
