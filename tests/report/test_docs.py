"""The tables of docs/ from records that hold more than the committed ones."""

from __future__ import annotations

from builders import make_report, metric, stage

from muse.report import docs


def test_averaged_seeds_have_a_row_of_their_own_where_a_record_has_them():
    models = ("stage1", "stage1_memory", "real_twin", "phase2", "gpt2")
    found = [metric("perplexity", model, 50.0, "per token", interval=(49.0, 51.0)) for model in models]
    found += [metric(f"perplexity_ratio_to_{base}", model, 1.1, interval=(1.0, 1.2))
              for base, model in (("phase2", "stage1"), ("phase2", "stage1_memory"))]  # fmt: skip
    others = [stage(name) for name in ("train", "memory", "throughput")]
    before = docs.comparison(make_report([stage(metrics=found), *others])).splitlines()
    averaged = [metric("ensemble_perplexity", model, value) for model, value in (("stage1", 40.0), ("gpt2", 41.0))]
    after = docs.comparison(make_report([stage(metrics=[*found, *averaged]), *others])).splitlines()
    row = "| the seeds averaged: mean of their probabilities, per token | 40 |  |  |  | 41 |"
    assert [line for line in after if line not in before] == [row]
    assert [line for line in after if line != row] == before
