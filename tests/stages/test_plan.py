"""`muse plan`: what it says of trainings on a card, beside trainings that are there and records of cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from muse import cli
from muse.catalog import CARDS
from muse.data.corpora import load_corpus
from muse.measure.as_on_cuda import Work
from muse.measure.memory import GIB
from muse.measure.roofline import HOST_SECONDS, LINK_SHARE, USABLE_SHARE, message_seconds, seconds
from muse.models.build import build_model
from muse.ops.cross_entropy import default_chunk_tokens
from muse.params import Settings, load_params
from muse.records.schema import Report
from muse.records.store import read_record
from muse.stages import plan as module
from muse.stages.check import sizes_of
from muse.stages.plan_errors import FILE, MEMORY_RUNS, Row, peaks, peaks_of, settings_of, steps, two_chunks
from muse.training import kept, trainer
from muse.training.checkpoint import RESULT_FILE, training_key
from muse.training.tuning import Plan, build_for, recipe_of

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = {"d_model": 16, "n_layers": 1, "n_seq": 16, "throughput_n_tokens": 16, "gradient_n_tokens": 16,
        "stability_n_tokens": 16, "batch_tokens": [32], "train_tokens": 6400}  # fmt: skip


def settings(tmp_path: Path, **other: object) -> Settings:
    places = {"checkpoint_dir": str(tmp_path / "checkpoints"), "results_dir": str(tmp_path / "results")}
    return Settings(**TINY | {"models": ["stage1"], "stages": ["train"]} | places | other)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("synthetic", "corpus")


def planned(given: Settings, corpus, card: str = "h100"):
    (found,) = module.plan(given, given.models, corpus, corpus.vocab_size, CARDS[card])
    return found


def test_trainings_that_are_there_take_no_time(tmp_path, corpus, monkeypatch):
    """A try in results_dir, a training in checkpoint_dir; of another dropout, seed or budget none is there."""
    given = settings(tmp_path, dropouts=[0.1, 0.2], seeds=[0, 1])
    before = planned(given, corpus)
    assert (before.trainings, before.there) == (3, 0)
    plan = Plan(given, ("stage1",))
    configs = [
        trainer.config_of("stage1", build_for(given, "stage1", corpus, build_model),
                          replace(recipe_of(given, job), precision="bfloat16"), corpus, torch.device("cuda"))
        for job in plan.tries("stage1")
    ]  # fmt: skip
    (tmp_path / "results").mkdir()
    kept._path(tmp_path / "results", configs[0]).write_text("{}")
    monkeypatch.setattr(kept, "find", lambda folder, config: kept._path(folder, config).exists() or None)
    folder = tmp_path / "checkpoints" / f"stage1-s0-{training_key(configs[1])[:12]}"
    folder.mkdir(parents=True)
    (folder / RESULT_FILE).write_text("{}")
    after = planned(given, corpus)
    assert (after.trainings, after.there) == (3, 2)
    assert after.seconds == pytest.approx(before.seconds / 3)
    for other in ({"dropouts": [0.3, 0.4]}, {"seeds": [1, 0]}, {"train_tokens": 12800}, {"tune_tokens": 3200}):
        assert planned(given.model_copy(update=other), corpus).there == 0, other


def test_tries_with_a_budget_of_their_own_and_single_combinations(tmp_path, corpus):
    tuned = planned(settings(tmp_path, dropouts=[0.0, 0.1], seeds=[0, 1], tune_tokens=640), corpus)
    assert tuned.trainings == 4, "two tries, which are no training"
    assert planned(settings(tmp_path, seeds=[0, 1, 2]), corpus).trainings == 3
    nothing = planned(settings(tmp_path, train_tokens=0), corpus)
    assert (nothing.trainings, nothing.seconds) == (0, 0.0)


def test_the_largest_step_is_where_the_peak_meets_the_memory(tmp_path, corpus):
    """Counted at the size that is told, the peak is what a card can hold, within what a line is off."""
    given = settings(tmp_path, n_seq=64, d_model=64, batch_tokens=[64])
    small = replace_card("l4", memory_bytes=2 * GIB)
    (found,) = module.plan(given, ["stage1"], corpus, corpus.vocab_size, small)
    model = module.shaped("stage1", sizes_of(given, corpus.vocab_size, "train_"))
    peak = module.counted_step(model, given, found.largest_tokens // 64, 64, False, small).peak_bytes
    assert peak == pytest.approx(USABLE_SHARE * small.memory_bytes, rel=0.03)
    (none,) = module.plan(given, ["stage1"], corpus, corpus.vocab_size, replace_card("l4", memory_bytes=2**20))
    assert none.largest_tokens == 0


def replace_card(name: str, **other: object):
    return CARDS[name]._replace(**other)


def test_a_roofline_by_hand():
    card = CARDS["h100"]
    work = Work()
    work.flops[torch.bfloat16] = 0.6 * card.bfloat16_flops
    assert seconds(work, card, compiled=True) == pytest.approx(1)
    work = Work(kernel_bytes=int(0.8 * card.bandwidth))
    assert seconds(work, card, compiled=False) == pytest.approx(1)
    work = Work(pointwise_bytes=int(0.8 * card.bandwidth))
    assert seconds(work, card, compiled=True) == pytest.approx(0.3 * seconds(work, card, compiled=False))
    assert seconds(Work(pointwise_calls=10**6), card, compiled=False) == pytest.approx(10**6 * HOST_SECONDS)
    twice = card._replace(bandwidth=2 * card.bandwidth)
    assert seconds(work, twice, compiled=True) == pytest.approx(seconds(work, card, compiled=True) / 2)


def test_of_several_cards_each_has_its_part_a_buffer_of_gradients_and_a_message(tmp_path, corpus):
    given, card = settings(tmp_path, n_seq=64, d_model=64, batch_tokens=[256]), CARDS["h100"]
    model = module.shaped("stage1", sizes_of(given, corpus.vocab_size, "train_"))
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    alone, shared = (module.counted_step(model, given, 2, 64, False, card, cards) for cards in (1, 2))
    assert 0.3 * gradients < shared.peak_bytes - alone.peak_bytes < 1.1 * gradients, "some of them are there anyway"
    assert shared.held_bytes - alone.held_bytes == pytest.approx(gradients, abs=1024), "between steps none is"
    compiled = given.model_copy(update={"compile": True})
    alone, shared = (module.counted_step(model, compiled, 2, 64, False, card, cards) for cards in (1, 2))
    assert alone.held_bytes < shared.held_bytes - gradients - 0.9 * card.workspace_bytes
    (one,), (two,) = (module.plan(given, ["stage1"], corpus, corpus.vocab_size, card, cards) for cards in (1, 2))
    assert two.training_flops == pytest.approx(one.training_flops, rel=0.05)
    assert two.peak_bytes(256) < one.peak_bytes(256) + gradients
    assert (one.card_seconds, two.card_seconds) == (one.seconds, 2 * two.seconds)
    assert 1.9 < two.largest_tokens / one.largest_tokens < 2.1
    assert message_seconds(10**9, card, 1) == 0
    assert message_seconds(10**9, card, 2) == pytest.approx(1 / 450 / LINK_SHARE)
    assert message_seconds(10**9, card, 4) == pytest.approx(1.5 / 450 / LINK_SHARE)


def test_the_committed_errors_are_those_of_this_code():
    """`python -m muse.stages.plan_errors` renews reports/plan.json."""
    kept_rows = [Row(**row) for row in json.loads((ROOT / "reports" / FILE).read_text(encoding="utf-8"))]
    found = [*peaks(ROOT / "reports", "gpu-memory", ("phase2",)), *islice(steps(ROOT / "reports"), 2)]
    assert len(found) == 7 + 2
    for row in found:
        assert row.measured > 0
        (same,) = [old for old in kept_rows if old[:5] == row[:5]]
        assert same.measured == row.measured
        assert same.estimate == pytest.approx(row.estimate, rel=1e-3), "renew reports/plan.json"


def test_with_two_chunks_of_logits_the_peak_is_one_chunk_higher_and_that_of_the_record():
    report = read_record(Report, ROOT / "reports" / MEMORY_RUNS["gpu-length-4096"])
    record = next(stage for stage in report.stages if stage.stage == "memory")
    peak = peaks_of(settings_of(record), "phase2")["peak_memory"]
    one = peak()
    with two_chunks():
        two = peak()
    chunk = default_chunk_tokens(2 * 4096) * 50304 * 4  # float32 logits, columns as padded
    assert two - one == pytest.approx(chunk, rel=1e-3)
    assert two / GIB == pytest.approx(record.find("peak_memory", "phase2").value, rel=1e-3)
    assert peak() == one


@pytest.mark.parametrize(("name", "size"), [("81m", 81e6), ("350m", 350e6), ("1300m", 1.3e9)])
def test_presets_have_the_size_they_are_called_by(name, size):
    given = load_params(ROOT / "params" / f"compact-{name}.yaml")
    with torch.device("meta"):
        model = build_model("stage1_compact", vocab_size=50257, d_model=given.d_model, n_layers=given.n_layers,
                            n_seq=given.n_seq)  # fmt: skip
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(size, rel=0.02)
    assert given.train_tokens == pytest.approx(20 * count, rel=0.01)
    assert given.d_model % 64 == 0, "heads of 64 complex channels, which the kernels take"


def test_the_command_tells_and_refuses_in_one_line(tmp_path, capsys):
    override = [part for key, value in TINY.items() for part in ("-p", f"{key}={json.dumps(value)}")]
    override += ["-p", "train_n_seq=null", "-p", "models=[stage1]", "-p", f"checkpoint_dir={tmp_path}"]
    assert cli.main(["plan", "quick", *override, "--card", "a100", "--price", "2"]) == 0
    printed = capsys.readouterr().out
    assert "A100 SXM 80 GB" in printed
    assert "Trainings left: 1 of 1; " in printed
    assert " at 2 an hour." in printed
    assert cli.main(["plan", "compact-81m", *override, "-p", f"corpus={tmp_path / 'none'}"]) == 0
    assert "no training counts as finished: no corpus in" in capsys.readouterr().out
    assert cli.main(["plan", "quick", *override, "-p", "batch_tokens=[64]", "--gpus-per-model", "2"]) == 0
    printed = capsys.readouterr().out
    assert "each on 2 cards, whose peak is that of one; on NVIDIA H100" in printed
    assert " of 2 cards." in printed
    for wrong, said in (
        (["-p", "corpus=wikitxt-2"], "corpus: got 'wikitxt-2', expected synthetic, wikitext-2, "),
        (["-p", "tokenizer=./none"], "tokenizer: got './none', expected gpt2, corpus or a folder; "),
        (["-p", "corpus=./" + "long" * 100], "expected synthetic, wikitext-2, "),
        (["-p", f"corpus={Path(__file__)}"], "; there is no folder "),
        (["--card", "h10"], "--card: got h10, expected one of h100, h200, a100"),
        (["--gpus-per-model", "0"], "--gpus-per-model: got 0, expected at least 1"),
        (["--gpus-per-model", "7"], "--gpus-per-model: got 7, expected a number that divides the "),
        (["--price", "-1"], "--price: got -1.0, expected a price of an hour above 0"),
        (["-p", "d_model=7"], "d_model: got 7"),
        (["-p", f"corpus={tmp_path}"], "corpus, tokenizer: "),
    ):
        assert cli.main(["plan", "quick", *override, *wrong]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_hub_corpus_that_is_not_here_is_planned_without(tmp_path):
    override = [part for key, value in TINY.items() for part in ("-p", f"{key}={json.dumps(value)}")]
    away = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "MUSE_CACHE_DIR": str(tmp_path)}
    kept_as_is = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}
    command = [sys.executable, "-m", "muse", "plan", "wikitext2", *override, "-p", "models=[stage1]"]
    done = subprocess.run(command, env=kept_as_is | away, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "vocab_size = 50257, and no training counts as finished: " in done.stdout
    assert "Trainings left: 1 of 1; " in done.stdout
