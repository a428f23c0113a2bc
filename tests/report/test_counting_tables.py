"""The counting bench becomes tables: an arm a row, a task a column, gaps left out, and theory marked."""

from __future__ import annotations

from builders import make_report, metric, run_info, stage

from muse.records.schema import Series
from muse.records.store import write_record
from muse.report import counting_tables

PARAMS = {"counting_seeds": [0, 1], "counting_learning_rates": [1e-3], "counting_steps": 4000, "counting_batch": 8,
          "counting_length": 60}  # fmt: skip


def write(folder, name, arms, task="mod3"):
    metrics, series = [], []
    for arm, (score, solved) in arms.items():
        for quantity, value in (("counting_score", score), ("counting_skewed", -0.001)):
            metrics.append(metric(quantity, f"{arm} {task}", value))
        metrics.append(metric("counting_solved", f"{arm} {task}", solved, n=2))
        series += [
            Series(name="counting_score", model=f"{arm} {task}", seed=seed, x_name="length", y_name="score",
                   x=[60.0, 1000.0], y=[1.0, last])
            for seed, last in enumerate((0.2, 0.4))
        ]  # fmt: skip
    run = run_info(hardware={"gpu": "a card", "gpu_count": "2"})
    found = make_report([stage("counting", metrics=metrics, series=series, params=PARAMS)], run)
    (folder / counting_tables.FOLDER).mkdir(exist_ok=True)
    write_record(found, folder / counting_tables.FOLDER / name)


def test_without_a_bench_there_are_no_tables(tmp_path):
    assert counting_tables.tables(tmp_path) == []


def test_an_arm_has_its_score_its_seeds_and_a_star_where_theory_lets_it_count(tmp_path):
    write(tmp_path, "report.json", {"complex_angles": (0.876, 1), "real_decay": (0.1, 0)})
    write(tmp_path, "two-layers.json", {"gru": (1.0, 2)}, task="s3")
    one, two = counting_tables.tables(tmp_path)
    assert "2 x a card" in one
    assert "4,000 steps of 8 sequences" in one
    assert "| Complex, angles by the token | 0.88, 1 of 2 * |" in one
    assert "| Real, decays in (0, 1) | 0.10, 0 of 2 |" in one
    assert "| Real, decays in (0, 1) | 0.00 |" in one  # no zero has a sign
    assert "| Complex, angles by the token | 0.30 |" in one  # at the longest, the mean of the seeds
    assert "GRU" not in one
    assert "| GRU | 1.00, 2 of 2 * |" in two
    assert counting_tables.DRIFT not in one + two
