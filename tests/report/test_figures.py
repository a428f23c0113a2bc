"""Figures show what the record holds, in colours that can be told apart, and say it in words as well."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import metric, record, series, soup

from muse.measure import dynamics
from muse.report import figures
from muse.report.figures import stage
from muse.report.figures.style import MODELS, PLOTLY_MIME, metric_label, mimebundle, style
from muse.report.numbers import number
from muse.report.texts import LANGUAGES, texts


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


def test_seeds_share_an_entry_of_the_legend_and_of_the_caption():
    names = (("stage1", 0), ("stage1", 1), ("phase2", 0))
    curves = [series("validation_loss", name, y=(5.0, 3.5 + i), seed=s) for i, (name, s) in enumerate(names)]
    figure = figures.loss_curves(record("train", series=curves))
    assert [trace.showlegend for trace in figure.data] == [True, False, True]
    assert "Stage 1 3.500, 4.500; Phase 2 5.500" in figure.layout.meta["caption"]


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
    assert [trace.y[0] for trace in figure.data] == ["Stage 1", "Stage 1<br>3 trainings averaged", "GPT-2"]
    assert [trace.marker.symbol for trace in figure.data] == ["circle", "circle-open", "triangle-up"]
    single, averaged, _ = figure.data
    assert (averaged.x[0], averaged.error_x.array[0]) == (18.5, 0.5)
    assert averaged.marker.color == single.marker.color
    told = "Stage 1, 3 trainings averaged: mean of their probabilities, 18.50 (18.00 – 19.00)"
    assert told in figure.layout.meta["caption"]
    assert told in figure.layout.meta["alt"]


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
    assert "estimate" in estimated.name
    assert "1.5 GiB (estimate)" in figure.layout.meta["alt"]
    assert "measured" in figure.layout.meta["caption"]
    assert "All values are estimates" in figures.memory_bars(record("memory", metrics=found[:1])).layout.meta["caption"]


@pytest.mark.parametrize(
    ("language", "words"), [("en", "peak memory, over that of Phase 2"), ("ja", "ピークメモリの比（Phase 2 に対する）")]
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
    texts = [note.text for note in figures.memory_bars(record("memory", metrics=found)).layout.annotations]
    assert [text.split(":")[0] for text in texts] == [
        "Stage 1, peak memory",
        "Phase 2, peak memory",
        "Stage 1, peak memory, matched precision",
        "Phase 2, peak memory, matched precision",
    ]
    alone = figures.memory_bars(record("memory", metrics=found[:4])).layout.annotations
    assert [note.text.split(":")[0] for note in alone] == [
        "Stage 1, peak memory",
        "Stage 1, peak memory, matched precision",
        "Stage 1, held memory",
        "Stage 1, held memory, matched precision",
    ]


def test_throughput_names_the_share_of_the_ceiling():
    found = [
        metric("throughput_training", value=1000.0, unit="token/s", interval=(900.0, 1200.0)),
        metric("ceiling_share", value=0.5, samples=[0.5, 0.25], labels=["logits", "training"]),
    ]
    figure = figures.throughput_bars(record("throughput", metrics=found))
    assert "1,000 token/s, 25.0% of the ceiling" in figure.layout.annotations[0].text
    assert figure.data[0].error_x.array[0] == 200


def test_gradient_norms_name_what_lies_outside():
    figure = figures.gradient_norms(norms([0.5, 2e-8, 0.0], ["head", "gamma", "beta"]))
    assert list(figure.data[0].y) == ["head", "gamma", "beta"]
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
    assert list(dots.y) == ["head", "blocks.*.linear.weight", "blocks.*.linear.weight", "norm.gamma"]
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
EVENLY = {"en": "spread evenly over the circle", "ja": "円周上に均等に広がる"}


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
    assert figure.data[0].line.dash != figure.data[1].line.dash
    assert "energy in the imaginary plane: 0.500; 0.250; spread of phases: 0.900; 0.625" in figure.layout.meta["alt"]


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
    assert "82% comes from heads that live less than 10 tokens, 12% from those up to 100, 5% from longer" in caption


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
    others = [series("layer 0 half-life", layer=0), series("untrained layer 0 period", layer=0)]
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
    assert soup(page).figure["aria-label"] == soup(page).select_one(".muse-alt").text == 'say "hi"'
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
    assert soup(page).figure["aria-label"] == figure.layout.meta["alt"]


def test_metric_labels_fall_back_to_the_name():
    assert metric_label("peak_memory", "ja") == texts("ja")["metric.peak_memory"]
    assert metric_label("odd_thing") == "odd thing"
