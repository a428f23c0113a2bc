"""Figures show what the record holds, in colours that can be told apart, and say it in words as well."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import metric, record, series, soup

from muse.measure import dynamics
from muse.report import figures
from muse.report.figures import bench, stage
from muse.report.figures.dynamics import percents
from muse.report.figures.panels import DIGIT, end_labels, width_of, wrapped
from muse.report.figures.style import MODELS, PLOTLY_MIME, metric_label, mimebundle, style
from muse.report.numbers import number, rounded
from muse.report.texts import LANGUAGES, texts


def words(note):
    """What the label of a curve says, without the patch of its colour."""
    return re.sub(r"<span.*?</span> ", "", note.text)


def norms(samples, labels, **values):
    return record("gradients_stability", metrics=[metric("gradient_norm", samples=samples, labels=labels, **values)])


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("page", ["#fdfdfc", "#14171b"])
def test_every_model_colour_stands_out_on_both_pages(name, page):
    assert contrast(style(name).color, page) >= 3


def test_models_differ_by_more_than_colour():
    looks = [style(name) for name in MODELS]
    assert len({look.color for look in looks}) == len({look.symbol for look in looks}) == len(looks)
    assert len({look.dash for look in looks}) == len(looks)


@pytest.mark.parametrize(
    ("model", "label"),
    [("stage1", "Stage 1"), ("stage1 seed 0", "Stage 1, seed 0"), ("gpt2 (seed 1)", "GPT-2 (seed 1)"),
     ("stage1_memory", "Stage 1 with memory"), ("stage12", "stage12"), ("gpt2_large", "gpt2_large")],
)  # fmt: skip
def test_model_labels(model, label):
    assert style(model).label == label


def test_seeds_of_a_model_share_its_colour():
    assert style("phase2 (seed 3)").color == style("phase2").color != style("stage1").color
    assert style("stage1_memory").color != style("stage1").color


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (0, "0"), (80937553, "80,937,553"), (54430.93, "54,431"), (0.52, "0.52"), (2e-8, "2×10⁻⁸"),
     (1e-6, "10⁻⁶"), (-1.5e-7, "-1.5×10⁻⁷"), (1.0305, "1.03"), (9999.6, "10,000"), (9999.4, "9999")],
)  # fmt: skip
def test_numbers_read_well(value, words):
    assert number(value) == words


def test_loss_curves_hold_every_series_and_say_the_last_validation_loss():
    curves = [
        series("training_loss"),
        series("validation_loss", y=(5.1, 4.2, 3.71)),
        series("validation_loss", "phase2"),
    ]
    figure = figures.loss_curves(record("train", series=[*curves, series("other")]))
    assert [trace.name for trace in figure.data] == ["Stage 1, training", "Stage 1, validation", "Phase 2, validation"]
    assert list(figure.data[1].y) == [5.1, 4.2, 3.71]
    assert "Stage 1 3.710; Phase 2 3.500" in figure.layout.meta["caption"]
    assert "5.100 to 3.710" in figure.layout.meta["alt"]


def test_seeds_share_a_name_at_the_end_of_their_curves_and_a_mean_in_the_caption():
    names = (("stage1", 0), ("stage1", 1), ("phase2", 0))
    curves = [series("validation_loss", name, y=(5.0, 4.0, 3.5 + i), seed=s) for i, (name, s) in enumerate(names)]
    figure = figures.loss_curves(record("train", series=curves))
    assert [words(note) for note in figure.layout.annotations] == ["Stage 1", "Phase 2"]
    assert [note.y for note in figure.layout.annotations] == sorted(note.y for note in figure.layout.annotations)
    assert "Stage 1 4.000 (mean of 2 seeds, 3.500 to 4.500); Phase 2 5.500" in figure.layout.meta["caption"]


def test_the_first_tenth_of_a_training_does_not_stretch_the_axis():
    curves = [series("validation_loss", x=range(1, 21), y=[11.0, *np.linspace(5, 4, 19)])]
    figure = figures.loss_curves(record("train", series=curves))
    low, high = figure.layout.yaxis.range
    assert 3.5 < low < 4 < 5 < high < 5.5
    assert "from 11" in figure.layout.meta["caption"]
    late = figures.loss_curves(record("train", series=[series("validation_loss", x=range(3), y=[4, 11, 3])]))
    assert late.layout.yaxis.range[1] > 11, "what is high later is shown"
    assert "leaves out" not in late.layout.meta["caption"]


def test_labels_at_the_ends_of_curves_keep_apart_and_in_the_order_of_the_curves():
    ends = [("a", "#000000", 1.0), ("b<br>b", "#000000", 1.01), ("c", "#000000", 0.0), ("d", "#000000", 0.99)]
    notes = end_labels(ends, (0.0, 1.0), 300)
    assert [words(SimpleNamespace(**note)) for note in notes] == ["c", "d", "a", "b<br>b"]
    heights = [note["y"] * 300 for note in notes]
    halves = [8, 8, 8, 16]
    for i in range(3):
        assert heights[i + 1] - heights[i] >= halves[i] + halves[i + 1] - 0.1
    assert 0 <= heights[0] <= 10
    assert heights[-1] + 16 <= 300.1
    assert heights[1] > 240, "a label stays as near its curve as it can"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Phase 2", ["Phase 2"]), ("Phase 2 with a low-rank table", ["Phase 2 with a", "low-rank table"]),
        ("複素メモリ付き Stage 1", ["複素メモリ付き", "Stage 1"]),
        ("コンパクト版の実数モデル", ["コンパクト版の実", "数モデル"]),
    ],
)  # fmt: skip
def test_words_are_parted_whole_and_letters_of_japanese_count_twice(text, lines):
    assert wrapped(text, 17).split("<br>") == lines


def test_perplexity_shows_interval_and_floors():
    found = [
        metric("perplexity", value=20.0, interval=(18.0, 23.0)),
        metric("word_perplexity", value=90.0),
        metric("bigram_floor_perplexity", "", 17.5),
    ]
    figure = figures.perplexity_bars(record(metrics=found))
    dot, floor = figure.data
    assert (dot.x[0], dot.error_x.array[0], dot.error_x.arrayminus[0]) == (20.0, 3.0, 2.0)
    assert floor.x[0] == 17.5
    assert "17.5" in floor.name
    assert "20 (18 – 23)" in figure.layout.meta["caption"]
    assert figure.layout.xaxis.type == "log"


def test_averaged_trainings_have_a_row_of_their_own_that_says_what_it_is():
    found = [
        metric("perplexity", value=20.0),
        metric("perplexity", "gpt2", 22.0),
        metric("ensemble_perplexity", value=18.5, interval=(18.0, 19.0), labels=["seed 0", "seed 1", "seed 2"]),
    ]
    figure = figures.perplexity_bars(record(metrics=found))
    assert list(figure.layout.yaxis.ticktext) == ["Stage 1", "Stage 1<br>3 trainings averaged", "GPT-2"]
    assert [trace.y[0] for trace in figure.data] == list(figure.layout.yaxis.tickvals) == [0, 1, 2]
    assert "<b>18.50</b><br>18.00 – 19.00" in figure.layout.annotations[1].text
    assert [trace.marker.symbol for trace in figure.data] == ["circle", "circle-open", "triangle-up"]
    single, averaged, _ = figure.data
    assert (averaged.x[0], averaged.error_x.array[0]) == (18.5, 0.5)
    assert averaged.marker.color == single.marker.color
    told = "Stage 1, 3 trainings averaged: mean of their probabilities, 18.50 (18.00 – 19.00)"
    assert told in figure.layout.meta["caption"]
    assert told in figure.layout.meta["alt"]


def test_a_floor_far_from_all_models_is_said_and_not_drawn():
    found = [metric("perplexity", value=20.0), metric("uniform_perplexity", "", 50257.0)]
    figure = figures.perplexity_bars(record(metrics=found))
    assert len(figure.data) == 1
    assert "Beyond the axis: uniform guessing (50,257)" in figure.layout.meta["caption"]
    assert figure.layout.meta["caption"].count("50,257") == 1
    near = figures.perplexity_bars(record(metrics=[found[0], metric("uniform_perplexity", "", 50.0)]))
    assert list(near.data[1].x) == [50, 50]
    assert "Beyond" not in near.layout.meta["caption"]


@pytest.mark.parametrize(
    ("samples", "said"),
    [([], "interval over documents."), ([19.0, 21.0], "interval over documents and seeds."), (None, None)],
)
def test_captions_say_what_an_interval_ranges_over(samples, said):
    found = metric("perplexity", value=20.0, **({} if samples is None else {"interval": (18, 23), "samples": samples}))
    caption = figures.perplexity_bars(record(metrics=[found])).layout.meta["caption"]
    assert (f"95 % bootstrap {said}" in caption) if said else ("Whiskers" not in caption)


def test_loss_by_position_is_what_a_model_has_beyond_the_baseline():
    shared = np.random.default_rng(0).normal(4, 1, 128)
    curves = [series("loss_by_position", name, x=range(128), y=shared + more) for name, more in
              (("stage1", np.linspace(0, 1, 128)), ("phase2", 0))]  # fmt: skip
    figure = figures.loss_by_position(record(series=curves))
    (one,) = figure.data
    assert one.name == "Stage 1"
    assert one.y[0] == pytest.approx(1.5 / 127, abs=1e-4)
    assert one.y[-1] == pytest.approx(125.5 / 127, abs=1e-4)
    assert [words(note) for note in figure.layout.annotations] == ["Phase 2", "Stage 1"]
    assert "against Phase 2" in figure.layout.title.text
    assert f"Phase 2: {np.mean(shared[:2]):.3f} at the start" in figure.layout.meta["caption"]


def test_loss_by_position_averages_runs_of_positions():
    values = np.arange(200.0)
    figure = figures.loss_by_position(record(series=[series("loss_by_position", x=values, y=values)]))
    assert list(figure.data[0].y[:2]) == [1.0, 4.0]
    assert "mean of 3 positions" in figure.layout.meta["caption"]


def test_estimates_are_hatched_and_measured_bars_are_not():
    found = [
        metric("peak_memory", value=1.5, unit="GiB", basis="estimate"),
        metric("peak_memory", "phase2", 3.0, "GiB"),
        metric("parameter_memory", "phase2", 0.3, "GiB"),
    ]
    figure = figures.memory_bars(record("memory", metrics=found))
    estimated, measured = figure.data
    assert estimated.marker.pattern.shape == "/"
    assert measured.marker.pattern.shape is None
    assert "(estimate)" in estimated.hovertext
    assert "1.50 GiB (estimate)" in figure.layout.meta["alt"]
    assert "measured" in figure.layout.meta["caption"]
    assert "All values are estimates" in figures.memory_bars(record("memory", metrics=found[:1])).layout.meta["caption"]


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "peak GPU memory, over that of Phase 2"), ("ja", "ピーク GPUメモリの比（Phase 2 に対する）")],
)
def test_a_ratio_is_named_by_what_it_divides_and_by_which_model(language, words):
    assert metric_label("peak_memory_ratio_to_phase2", language) == words


def test_memory_compares_the_peaks_of_models_variant_by_variant():
    found = [
        metric(f"{kind}_memory{variant}", model, 1.0, "GiB")
        for model in ("stage1", "phase2")
        for kind in ("peak", "held", "parameter")
        for variant in ("", "_matched")
    ]
    drawn = figures.memory_bars(record("memory", metrics=found)).data
    assert [(bar.meta, bar.name) for bar in drawn] == [
        ("peak GPU memory (GiB)", "Stage 1"),
        ("peak GPU memory (GiB)", "Phase 2"),
        ("peak GPU memory, matched precision (GiB)", "Stage 1"),
        ("peak GPU memory, matched precision (GiB)", "Phase 2"),
    ]
    assert [(bar.xaxis, bar.y[0]) for bar in drawn] == [("x", 0), ("x", 1), ("x2", 0), ("x2", 1)]
    alone = figures.memory_bars(record("memory", metrics=found[:4])).data
    assert [bar.meta.removesuffix(" (GiB)") for bar in alone] == [
        "peak GPU memory", "peak GPU memory, matched precision", "held GPU memory", "held GPU memory, matched precision"
    ]  # fmt: skip


def test_memory_has_its_target_where_a_criterion_asks_and_nowhere_else():
    found = [
        metric(f"peak_memory{variant}", model, value, "GiB")
        for variant in ("", "_matched", "_recomputed")
        for model, value in (("stage1", 1.0), ("phase2", 2.0))
    ]
    figure = figures.memory_bars(record("memory", metrics=found))
    assert [(line.xref, line.x0, line.x1) for line in figure.layout.shapes] == [("x", 1.04, 1.04), ("x3", 1.04, 1.04)]
    assert [note.text for note in figure.layout.annotations].count("target: 0.52 × Phase 2") == 2
    without = figures.memory_bars(record("memory", metrics=[*found[::2], metric("peak_memory", "gpt2", 1.0, "GiB")]))
    assert not without.layout.shapes


def test_panels_stand_below_each_other_on_a_phone_each_with_the_names_of_its_rows():
    found = [metric(f"peak_memory{v}", m, 1.0, "GiB") for v in ("", "_matched", "_plain", "_bfloat16")
             for m in ("stage1_memory", "phase2")]  # fmt: skip
    layout = figures.memory_bars(record("memory", metrics=found)).layout
    assert [layout[f"yaxis{n}"].showticklabels for n in ("", 2, 3, 4)] == [True, False, False, True]
    assert layout.xaxis.domain[1] < layout.xaxis2.domain[0]
    narrow = layout.meta["narrow"]
    tops = [narrow[f"yaxis{n}"]["domain"] for n in ("", 2, 3, 4)]
    assert all(below[1] < above[0] for above, below in pairwise(tops))
    assert narrow["height"] > layout.height
    for n in ("", 2, 3, 4):
        assert narrow[f"xaxis{n}"]["domain"] == [0, 1]
        assert narrow[f"yaxis{n}"]["ticktext"] == ["Stage 1 with<br>memory", "Phase 2"]


def test_throughput_names_the_share_of_the_ceiling():
    found = [
        metric("throughput_training", value=1000.0, unit="token/s", interval=(900.0, 1200.0)),
        metric("ceiling_share", value=0.5, samples=[0.5, 0.25], labels=["logits", "training"]),
    ]
    figure = figures.throughput_bars(record("throughput", metrics=found))
    assert "1,000 · 25.0%" in [note.text for note in figure.layout.annotations]
    assert "share of the measured ceiling" in figure.layout.meta["caption"]
    assert figure.data[0].error_x.array[0] == 200


def test_curves_over_the_same_tokens_name_them_once_on_a_page():
    curves = [series("training_loss", name, x=range(10, 200, 10), y=np.linspace(5, 4, 19)) for name in MODELS][:3]
    figure = figures.loss_curves(record("train", series=[*curves, series("validation_loss")]))
    drawn = json.loads(soup(mimebundle(figure)["text/html"]).script.string)
    first, second, third, other = (trace["x"] for trace in drawn["data"])
    assert first == list(range(10, 200, 10))
    assert second == third == 0, "the number of the trace that has them"
    assert isinstance(other, list)
    assert [list(trace.x) for trace in figure.data[:3]] == [first] * 3, "JupyterLab has them all"


def test_a_long_training_is_drawn_in_means_and_the_caption_says_so():
    losses = np.linspace(5, 4, 200)
    figure = figures.loss_curves(record("train", series=[series("training_loss", x=range(200), y=losses)]))
    assert len(figure.data[0].y) == 66
    assert figure.data[0].y[0] == pytest.approx(losses[:3].mean(), abs=1e-4)
    assert "the mean of 3" in figure.layout.meta["caption"]
    short = figures.loss_curves(record("train", series=[series("training_loss", x=range(99), y=losses[:99])]))
    assert len(short.data[0].y) == 99
    assert "the mean of" not in short.layout.meta["caption"]


def test_numbers_of_a_picture_have_five_digits_or_are_whole():
    values = rounded([131072.0, 80937553.0, 3.14159265, 103762.6, 1e-7, math.nan])
    assert json.dumps(values) == "[131072, 80937553, 3.1416, 103760, 1e-07, null]"


def test_gradient_norms_name_what_lies_outside():
    figure = figures.gradient_norms(norms([0.5, 2e-8, 0.0], ["head", "gamma", "beta"]))
    assert list(figure.layout.yaxis.ticktext) == ["head", "gamma", "beta"]
    assert list(figure.data[0].y) == list(figure.layout.yaxis.tickvals) == [0, 1, 2]
    assert figure.data[0].marker.symbol == ("circle", "circle", "x")
    caption = figure.layout.meta["caption"]
    assert "1 of 3" in caption
    assert "gamma 2×10⁻⁸; beta 0" in caption
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (1e-6, 1e3)
    assert figure.data[0].x[2] < 2e-8


def test_gradient_norms_of_all_blocks_share_a_row_and_keep_their_names():
    labels = ["head", "blocks.0.linear.weight", "blocks.1.linear.weight", "norm.gamma"]
    figure = figures.gradient_norms(norms([0.5, 2e-8, 0.25, 1.0], labels))
    (dots,) = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["head", "blocks.*.linear.weight", "norm.gamma"]
    assert list(dots.y) == [0, 1, 1, 2]
    assert dots.text[2] == "blocks.1.linear.weight: 0.25"
    assert "Outside: blocks.0.linear.weight 2×10⁻⁸." in figure.layout.meta["caption"]
    more_blocks = figures.gradient_norms(norms([0.5] * 3, ["a.0.b", "a.1.b", "a.2.b"]))
    assert more_blocks.layout.height == figures.gradient_norms(norms([0.5], ["a.0.b"])).layout.height


def test_gradient_norms_name_parameters_without_a_norm():
    stage = norms([0.5], ["head"])
    more = [
        metric("parameters_without_gradient", labels=["lost"]),
        metric("parameters_with_non_finite_gradient", labels=["nan"]),
    ]
    figure = figures.gradient_norms(stage.model_copy(update={"metrics": [*stage.metrics, *more]}))
    assert "Zero or missing: lost." in figure.layout.meta["caption"]
    assert "Not finite: nan." in figure.layout.meta["caption"]


def test_scale_stress_uses_log_axes_where_values_range_far():
    wide = figures.scale_stress(record(series=[series("scale_stress", x=(1e-3, 1, 1e3), y=(1, 10, 1e4))]))
    flat = figures.scale_stress(record(series=[series("scale_stress", x=(0, 1, 2), y=(1, 1.5, 2))]))
    assert (wide.layout.xaxis.type, wide.layout.yaxis.type) == ("log", "log")
    assert (flat.layout.xaxis.type, flat.layout.yaxis.type) == (None, None)


def test_phase_and_magnitude_of_known_values():
    figure = figures.phase_magnitude(torch.tensor([[2j, 2j], [2j, 4j]], dtype=torch.complex64))
    magnitude, phase = figure.data
    assert sum(magnitude.y) == pytest.approx(1)
    assert phase.theta[int(np.argmax(phase.r))] == pytest.approx(95)
    assert "Mean magnitude 2.5, largest 4" in figure.layout.meta["caption"]
    assert "1.000" in figure.layout.meta["caption"]


def test_planar_values_are_split_and_zeros_have_no_phase():
    planar = torch.tensor([[0.0, 3.0, 0.0, 0.0, 4.0, -2.0]], dtype=torch.float16)
    phase = figures.phase_magnitude(planar).data[1]
    assert sum(phase.r) == pytest.approx(1)
    assert max(phase.r) == pytest.approx(0.5)
    caption = figures.phase_magnitude(planar).layout.meta["caption"]
    assert "3 complex values. Mean magnitude 2.333, largest 5" in caption
    assert "1 of them are exactly zero" in caption
    with pytest.raises(ValueError, match=r"\(3,\).*even last axis"):
        figures.phase_magnitude(torch.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        figures.phase_magnitude([complex("nan")])


ONE_PHASE = {"en": ("one phase", "one direction"), "ja": ("一つの位相", "一方向")}
EVENLY = {"en": "spread evenly over the circle", "ja": "円周上に"}


def claims(caption):
    """What a caption says that 0 and 1 mean: {0: words, 1: words}."""
    found = re.findall(r"[(（]([01])[:：] ?(.*?)[,、] ?([01])[:：] ?(.*?)[)）]", caption)
    ((first, of_first, second, of_second),) = found
    return {int(first): of_first, int(second): of_second}


def phases(kind):
    angles = 2 * np.pi * np.arange(64) / 64 if kind == "even" else np.full(64, 0.7)
    return np.tile([1, 2], 32) * np.exp(1j * angles)


@pytest.mark.parametrize("language", ONE_PHASE)
@pytest.mark.parametrize("kind", ["one", "even"])
def test_captions_say_what_the_ends_of_their_measures_mean(kind, language):
    """Values of one phase, and of phases all around the circle, are measured; the caption must describe what it got."""
    z = torch.tensor(phases(kind))[None, :, None]
    memory_of_one_head = SimpleNamespace(
        log_decay=lambda u: -torch.ones(1, 64, 1), remembered=lambda u: [torch.ones(1, 1, 64, 1)], turn_bias=None
    )
    spread = dynamics._layer(memory_of_one_head, z, torch.cat([z.real, z.imag], -1)).phase_spread
    layers = metric("phase_spread", "stage1_memory", samples=[spread], labels=["layer 0"])
    plane = figures.plane_use(record("dynamics", metrics=[layers]), language).layout.meta["caption"]
    assert spread == pytest.approx(round(spread))
    length = abs(np.mean(phases(kind) / abs(phases(kind))))
    directions = figures.phase_magnitude(phases(kind), language).layout.meta["caption"]
    for caption, measured in ((plane, spread), (directions, length)):
        said = claims(caption)[round(measured)]
        assert (EVENLY[language] in said) == (kind == "even")
        assert any(words in said for words in ONE_PHASE[language]) == (kind == "one")


def test_complex_plane_is_thinned():
    figure = figures.complex_plane(np.arange(1001) + 3j, max_points=100)
    assert len(figure.data[0].x) == 91
    assert set(figure.data[0].y) == {3.0}


def test_a_record_without_data_draws_nothing():
    empty = record()
    assert figures.of_stage(empty) == []
    for draw in stage.FIGURES:
        with pytest.raises(figures.NothingToDraw, match="perplexity"):
            draw(empty)


def everything():
    found = [
        metric("perplexity", value=20.0),
        metric("perplexity_ratio_to_phase2", value=2.0),
        metric("perplexity_ratio_to_stage1_memory", "real_twin"),
        metric("peak_memory", unit="GiB"),
        metric("throughput_a", unit="token/s"),
    ]
    curves = [series(name) for name in ("training_loss", "loss_by_position", "scale_stress")]
    curves.append(series("layer 0 period", layer=0))
    gradients = metric("gradient_norm", samples=[0.1], labels=["w"])
    return record(metrics=[*found, gradients, *memory()], series=curves)


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_name_the_text_that_was_read(language):
    found = everything()
    plain, named = (figures.of_stage(each, language) for each in (found, found.model_copy(update={"text": "own-v1"})))
    for before, after in zip(plain, named, strict=True):
        caption = after.layout.meta["caption"]
        assert caption.startswith(before.layout.meta["caption"])
        assert "own-v1" in caption.removeprefix(before.layout.meta["caption"])


HEADS = {"labels": [f"layer {i} head {h}" for i in range(2) for h in range(2)], "layers": [0, 0, 1, 1]}


def memory(**changes):
    """Two layers of two heads; the last head lives longest and is hardly read."""
    samples = {
        "memory_half_life": [2.0, 20.0, 5.0, 300.0],
        "memory_half_life_low": [1.0, 10.0, 4.0, 30.0],
        "memory_half_life_high": [4.0, 40.0, 6.0, 3000.0],
        "memory_read_share": [0.75, 0.25, 0.9, 0.1],
    }
    heads = [metric(name, "stage1_memory", samples=s, **HEADS) for name, s in (samples | changes).items() if s]
    share = metric("imaginary_energy_share", "stage1_memory", samples=[0.5, 0.25], labels=["layer 0", "layer 1"])
    spread = metric("phase_spread", "stage1_memory", samples=[0.9, 0.625], labels=["layer 0", "layer 1"])
    return [share, spread, *heads]


def test_plane_use_shows_both_shares_behind_each_layer():
    figure = figures.plane_use(record("dynamics", metrics=memory()))
    assert [list(trace.y) for trace in figure.data] == [[0.5, 0.25], [0.9, 0.625]]
    assert [list(trace.x) for trace in figure.data] == [[0, 1]] * 2
    assert [trace.xaxis for trace in figure.data] == ["x", "x2"]
    assert "not recorded" in figure.layout.meta["caption"]
    assert "Energy in the imaginary plane: 0.500; 0.250; spread of phases: 0.900; 0.625" in figure.layout.meta["alt"]


@pytest.mark.parametrize(("factor", "said"), [(1.02, "left rotation where it began"), (1.5, "moved the rotation")])
def test_what_training_did_to_the_memory_stands_beside_what_it_became(factor, said):
    before = [one.model_copy(update={"name": f"{one.name}_untrained", "samples": [x / 2 for x in one.samples]})
              for one in memory()]  # fmt: skip
    curves = [series("layer 0 period", "stage1_memory", x=range(3), y=[10, 100, 1000 * factor], layer=0),
              series("untrained layer 0 period", "stage1_memory", x=range(3), y=[10 * factor, 100 / factor, 1000],
                     layer=0)]  # fmt: skip
    found = record("dynamics", metrics=[*memory(), *before], series=curves)
    plane = figures.plane_use(found)
    assert [list(trace.y) for trace in plane.data] == [[0.5, 0.25], [0.25, 0.125], [0.9, 0.625], [0.45, 0.3125]]
    lives, start = figures.half_lives(found).data
    assert list(start.y) == [x / 2 for x in lives.y]
    turns = figures.rotation_periods(found)
    assert [trace.name for trace in turns.data] == ["layer 0", "before training"]
    assert said in turns.layout.meta["caption"]
    assert f"{factor - 1:.1%}" in turns.layout.meta["caption"]
    for figure in (plane, figures.half_lives(found)):
        assert "before its training" in figure.layout.meta["caption"]
        assert "not recorded" not in figure.layout.meta["caption"]


def test_half_lives_say_how_long_what_is_read_lives():
    figure = figures.half_lives(record("dynamics", metrics=memory()))
    (dots,) = figure.data
    assert list(dots.y) == [2, 20, 5, 300]
    assert list(dots.x) == [-0.15, 0.15, 0.85, 1.15]
    assert list(dots.error_y.array) == [2, 20, 1, 2700]
    assert list(dots.error_y.arrayminus) == [1, 10, 1, 270]
    assert dots.marker.size[2] > dots.marker.size[0] > dots.marker.size[1] > dots.marker.size[3]
    caption = figure.layout.meta["caption"]
    assert "From 2 (layer 0 head 0) to 300 tokens (layer 1 head 1)" in caption
    assert "83% comes from heads that live less than 10 tokens, 12% from those up to 100, 5% from longer" in caption


@pytest.mark.parametrize(
    ("shares", "words"),
    [((0.006, 0.206, 0.788), "1% 20% 79%"), ((1 / 3, 1 / 3, 1 / 3), "34% 33% 33%"), ((0.5, 0.5, 0.0), "50% 50% 0%")],
)
def test_percents_of_a_whole_add_up(shares, words):
    assert " ".join(percents(shares)) == words


def test_half_lives_without_shares_and_spreads_are_drawn_alike():
    lives = memory(memory_half_life_low=None, memory_half_life_high=None, memory_read_share=None)
    (dots,) = figures.half_lives(record("dynamics", metrics=lives)).data
    assert set(dots.error_y.array) == {0}
    assert len(set(dots.marker.size)) == 1


def test_rotation_periods_are_a_line_per_layer_over_the_share_of_channels():
    curves = [
        series(f"layer {i} period", "stage1_memory", x=range(4), y=(6.3, 20.0, 80.0, 1e4 * (i + 1)), layer=i)
        for i in (0, 1)
    ]
    others = [series("layer 0 half-life", layer=0), series("untrained layer 7 half-life", layer=0)]
    figure = figures.rotation_periods(record("dynamics", series=[*curves, *others]))
    assert [trace.name for trace in figure.data] == ["layer 0", "layer 1"]
    assert list(figure.data[0].x) == [0.125, 0.375, 0.625, 0.875]
    assert list(figure.data[1].y) == [6.3, 20, 80, 20000]
    assert "layer 1: 6.3 to 20,000 tokens, median 50" in figure.layout.meta["alt"]
    assert figure.data[0].line.dash != figure.data[1].line.dash


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_figure_has_title_caption_alternative_and_little_weight(language):
    found = [*figures.of_stage(everything(), language), figures.phase_magnitude([1j], language)]
    assert len(found) == 13
    for figure in found:
        assert figure.layout.title.text
        assert figure.layout.meta["caption"]
        assert figure.layout.meta["alt"]
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
        assert len(figure.to_json()) < 4000


def test_bundle_serves_the_lab_and_the_page():
    figure = figures.loss_curves(record(series=[series("training_loss", "evil </script><b>")]))
    bundle = mimebundle(figure, caption="a < b", alt='say "hi"')
    assert bundle[PLOTLY_MIME]["data"][0]["y"] == [5.0, 4.0, 3.5]
    assert bundle[PLOTLY_MIME]["config"]["showSendToCloud"] is False, "plotly's own default offers an upload"
    page = bundle["text/html"]
    assert soup(page).select_one(".muse-alt").text == 'say "hi"'
    assert "role" not in soup(page).figure.attrs, "it holds links, which a picture must not"
    assert "a &lt; b" in page
    inside = re.search(r'<script type="application/json">(.*?)</script>', page)[1]
    assert "<" not in inside
    plain = json.loads(inside)
    assert plain["data"][0]["name"].startswith("evil </script><b>")
    assert "title" not in plain["layout"]
    assert bundle["text/plain"] == 'say "hi"'


def test_default_caption_and_alternative_are_the_figures_own():
    figure = figures.loss_curves(record(series=[series("training_loss")]))
    page = mimebundle(figure)["text/html"]
    assert figure.layout.meta["caption"] in soup(page).figcaption.text
    assert soup(page).select_one(".muse-alt").text == figure.layout.meta["alt"]


def test_metric_labels_fall_back_to_the_name():
    assert metric_label("peak_memory", "ja") == texts("ja")["metric.peak_memory"]
    assert metric_label("odd_thing") == "odd thing"


def race():
    """The record of a bench with a baseline, a faster and a slower path, and one without a speed."""
    speeds = {"naive": 1000.0, "muse graph": 25_000.0, "other": 999.0}
    found = [metric("bench_stack_2x16_speed", name, speed, interval=(speed, speed * 1.1))
             for name, speed in speeds.items()]  # fmt: skip
    found += [metric("bench_stack_2x16_ratio", name, speed / 1000) for name, speed in speeds.items()]
    found.append(metric("bench_stack_2x16_matrix_share", "muse graph", 0.211))
    found.append(metric("bench_stack_2x16_speed", "absent", None, reason="missing: " + "no such library here " * 4))
    return record("bench", metrics=found)


def test_a_race_names_its_paths_at_the_left_and_marks_the_baseline():
    (figure,) = bench.bench_figures(race())
    assert list(figure.layout.yaxis.ticktext) == ["muse graph", "naive (baseline)", "other", "absent"]
    assert [(bar.y[0], bar.x[0]) for bar in figure.data] == [(0, 25_000), (1, 1000), (2, 999)]
    told = [note.text for note in figure.layout.annotations]
    assert told[:3] == ["25,000 · 25.00× · 21.1%", "1,000 · 1.00×", "999 · 0.999×"], "not the baseline, so not 1.00×"
    assert "missing" in told[3]
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1, line.y0, line.y1) == (1000, 1000, -0.5, 1.5), "the words of slower rows stand right of it"


@pytest.mark.parametrize("where", ["page", "phone"])
def test_the_values_of_a_race_stand_at_the_ends_of_their_bars_and_fit(where):
    (figure,) = bench.bench_figures(race())
    layout = figure.layout.to_plotly_json()
    if where == "phone":
        layout = layout | layout["meta"]["narrow"]
    px = {"page": bench.PLOT, "phone": bench.NARROW_PLOT}[where]
    ends = [25_000 * 1.1, 1100, 999 * 1.1, 0]
    low, high = layout["xaxis"]["range"]
    rows = 0
    for note, end in zip(layout["annotations"], ends, strict=True):
        lines = note["text"].split("<br>")
        assert (note["x"], note["xanchor"]) == (pytest.approx(end), "left")
        assert (note["x"] - low) / (high - low) * px + DIGIT * max(map(width_of, lines)) <= px
        rows = max(rows, len(lines))
    assert layout["height"] >= 4 * 15 * rows
