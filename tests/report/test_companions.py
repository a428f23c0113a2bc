"""Companions: told apart by their records, compared only where they may be, and refused whole or taken whole."""

from __future__ import annotations

import json
import math

import pytest
from bs4 import BeautifulSoup
from builders import fake_export, run_notebook, write_notebook
from companion_builders import PARAMS, beside, make_report, metric, peaks, perplexities, record

from muse import cli
from muse.params import ParamsError
from muse.records.scale import reductions_of
from muse.records.schema import Report, Series
from muse.records.store import read_record, write_record
from muse.report import check, companion_tables, companions
from muse.report.assemble import add_companions, companions_of
from muse.report.companions import Companion, in_bins, kind
from muse.report.figures import companions as companion_figures
from muse.report.texts import LANGUAGES, texts
from muse.runner.run import render

MAIN = make_report(perplexities(), peaks(1.5))
RATIO = {"interval": (1.0, 1.125), "samples": (1.02, 1.08)}
CHANGES = make_report(
    [
        *perplexities(),
        metric("perplexity_ratio_to_stage1_memory", "stage1_memory_no_rotation", 1.05, **RATIO),
        metric("perplexity_ratio_to_stage1_memory", "real_twin", 1.25),
        metric("perplexity_ratio_to_phase2", "stage1_memory", 0.925),
    ],
    profile="gpu-ablations",
)
LONGER = make_report(perplexities((45.0,)), peaks(3.0), profile="gpu-length", n_seq=2048)
AGAIN = make_report(perplexities((51.5,), ("stage1_memory",)))


def soup(text):
    return BeautifulSoup(text, "html.parser")


# --- kinds


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (CHANGES, "changes"),
        (LONGER, "lengths"),
        (AGAIN, "repeat"),
        (make_report(perplexities(), profile="gpu-other"), "other"),
        (make_report(memory=peaks(1.0), profile="gpu-memory"), "other"),
        (make_report(perplexities((51.0,)), train_tokens=2000), "other"),
        (make_report(perplexities((51.0,), ("gpt2",))), "other"),
        (make_report([metric("perplexity_ratio_to_stage1_memory", "real_twin", 1.01)], optimizer="adamw"), "other"),
        (make_report(perplexities((51.0,)), data="b"), "other"),
        (make_report(perplexities((51.0,)), data="b", test_corpus=".../code"), "texts"),
        (make_report(perplexities((51.0,)), data="b", test_corpus=".../code", train_tokens=2000), "other"),
        (make_report(perplexities((51.0,)), data="b", test_corpus=".../code", n_seq=2048), "other"),
        (LONGER.model_copy(update={"stages": [record("perplexity", perplexities(), PARAMS, "b")]}), "other"),
        (make_report(perplexities((51.0,)), train_n_seq=128), "lengths"),
        (make_report(perplexities((51.0,)), n_seq=256, train_n_seq=1024, profile="same-length"), "other"),
    ],
)
def test_what_a_companion_is_follows_from_its_record(report, expected):
    assert kind(MAIN, report) == expected


def test_settings_that_one_of_two_records_lacks_or_that_decide_nothing_do_not_differ():
    assert companions.changed_settings(MAIN, make_report(perplexities(), evaluations=6, device="cpu", n_seq=4)) == {}
    changed = companions.changed_settings(MAIN, make_report(perplexities(), train_tokens=5, train_d_model=8))
    assert changed == {"d_model": (8, 512), "train_tokens": (5, 1000)}


def test_a_recipe_of_before_is_compared_under_the_names_of_today():
    before = make_report(perplexities(), train_batch_tokens=16384, weight_decay=0.1, muon_weight_decay=0.2)
    today = {"batch_tokens": [16384], "weight_decays": [0.1], "muon_weight_decays": [0.2]}
    assert companions.changed_settings(before, make_report(perplexities(), **today)) == {}
    more = make_report(perplexities(), **today | {"weight_decays": [0.1, 1.0]})
    assert companions.changed_settings(before, more) == {"weight_decays": ([0.1, 1.0], [0.1])}
    assert before.run.params["train_batch_tokens"] == 16384


def test_files_are_the_same_by_content_and_not_compared_without_a_perplexity():
    assert companions.same_data(MAIN, CHANGES) is True
    assert companions.same_data(MAIN, make_report(perplexities(), data="b")) is False
    assert companions.same_data(MAIN, make_report(memory=peaks(1.0))) is None


def test_a_repeat_is_held_against_the_spread_of_the_seeds():
    (found,) = companions.repeats(MAIN, AGAIN)
    assert (found.model, found.seed) == ("stage1_memory", "0")
    assert (found.first, found.again, found.difference) == (50, 51.5, 1.5)
    assert found.sd == pytest.approx(1.0)
    assert found.within is True
    limit = 2 * math.sqrt(2)  # sd 1
    for away, within in ((limit - 0.01, True), (limit + 0.01, False), (-limit - 0.01, False)):
        (found,) = companions.repeats(MAIN, make_report(perplexities((50 + away,), ("stage1_memory",))))
        assert found.within is within
    (found,) = companions.repeats(make_report(perplexities((50.0,))), AGAIN)
    assert found.sd is None
    assert found.within is None


def test_a_training_that_gives_the_very_same_number_again_is_identical():
    one = make_report(perplexities((50.0,), ("stage1_memory",)))
    shown = soup(companion_tables.tables(one, beside(one)))
    assert shown.select_one(".muse-badge").get_text(" ", strip=True) == "✓ identical"


# --- figures


def test_changes_of_the_memory_are_the_ratios_of_the_companion():
    figure = companion_figures.memory_changes(Companion("abl", CHANGES))
    twin, rotation, seeds = figure.data
    assert [shape.x0 for shape in figure.layout.shapes] == [1]
    assert (twin.name, twin.x[0]) == ("Real twin", 1.25)
    assert (rotation.name, rotation.x[0]) == ("Complex memory without rotation", 1.05)
    assert list(seeds.x) == [1.02, 1.08]
    assert "Complex memory without rotation 1.050 (1.000 – 1.125)" in figure.layout.meta["alt"]
    assert "(abl)" in figure.layout.title.text


def test_perplexity_over_length_joins_the_run_and_its_companions():
    longest = make_report(perplexities((40.0,)), n_seq=8192)
    figure = companion_figures.perplexity_by_length([MAIN, longest, LONGER])
    assert [trace.name for trace in figure.data] == ["Stage 1 with memory", "Phase 2"]
    for trace in figure.data:
        assert list(trace.y) == [51.0, 45.0, 40.0]
        assert list(trace.x) == pytest.approx([1024, 2048, 8192], rel=0.02)
        assert (list(trace.error_y.array), list(trace.error_y.arrayminus)) == ([6, 5, 5], [5, 4, 4])
    assert figure.data[0].x[0] < figure.data[1].x[0]
    assert list(figure.layout.xaxis.tickvals) == [1024, 2048, 8192]
    assert "Phase 2: 51 (46 – 57) (1,024), 45 (41 – 50) (2,048)" in figure.layout.meta["alt"]


def test_memory_over_length_shows_estimates_hollow():
    longest = make_report(perplexities((40.0,)), peaks(12.0, "estimate"), n_seq=8192)
    figure = companion_figures.memory_by_length([MAIN, LONGER, longest])
    assert list(figure.data[0].y) == [1.5, 3.0, 12.0]
    assert list(figure.data[0].marker.symbol) == ["square", "square", "square-open"]
    assert figure.data[0].error_y.array is None
    assert "12 estimate (8,192)" in figure.layout.meta["alt"]
    assert "of 2 sequences" in figure.layout.meta["caption"]


def test_models_of_a_single_length_and_companions_on_other_data_are_not_drawn():
    main = make_report(perplexities(models=("stage1", "phase2")))
    figure = companion_figures.perplexity_by_length([main, LONGER])
    assert [trace.name for trace in figure.data] == ["Phase 2"]
    foreign = [make_report(perplexities(), data="b", n_seq=2048), make_report(CHANGES.stages[0].metrics, data="b")]
    assert companion_figures.of_companions(MAIN, beside(*foreign)) == []
    assert companion_figures.of_companions(MAIN, beside(AGAIN)) == []


def test_a_companion_of_the_same_length_adds_only_models_that_the_run_lacks():
    same = make_report(perplexities((99.0,), ("stage1_memory", "gpt2")), profile="gpu-length")
    longer = make_report(perplexities((45.0,), ("stage1_memory", "gpt2")), profile="gpu-length", n_seq=2048)
    (figure,) = companion_figures.of_companions(MAIN, beside(same, longer))
    assert {trace.name: list(trace.y) for trace in figure.data} == {
        "Stage 1 with memory": [51.0, 45.0], "GPT-2": [99.0, 45.0]
    }  # fmt: skip
    assert companion_figures.of_companions(MAIN, beside(same)) == []


def test_a_run_of_another_recipe_has_no_place_on_the_lines_of_its_companions():
    short = {"profile": "gpu-length", "train_tokens": 10}
    same = make_report(perplexities((99.0,), ("stage1_memory",)), **short)
    longer = make_report(perplexities((45.0,), ("stage1_memory",)), n_seq=2048, **short)
    main = make_report(perplexities(), train_tokens=20)
    (figure,) = companion_figures.of_companions(main, beside(same, longer))
    assert {trace.name: list(trace.y) for trace in figure.data} == {"Stage 1 with memory": [99.0, 45.0]}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_figure_has_a_caption_an_alternative_and_no_open_field(language):
    found = companion_figures.of_companions(MAIN, beside(AGAIN, CHANGES, LONGER), language)
    assert len(found) == 3
    for figure in found:
        assert figure.layout.meta["caption"]
        assert figure.layout.meta["alt"]
        assert "{" not in figure.layout.meta["caption"] + figure.layout.meta["alt"]


# --- tables


def test_captions_of_perplexities_name_the_texts_that_were_read():
    def named(report, text):
        read = [s.model_copy(update={"text": text if s.stage == "perplexity" else ""}) for s in report.stages]
        return report.model_copy(update={"stages": read})

    found = companion_figures.of_companions(named(MAIN, "one"), beside(named(CHANGES, "two"), named(LONGER, "one")))
    endings = [figure.layout.meta["caption"].split(" Text: ")[1:] for figure in found]
    assert endings == [["two."], ["one."], []]



@pytest.mark.parametrize("language", LANGUAGES)
def test_lines_say_what_where_when_and_from_what(language):
    page = soup(companion_tables.lines(MAIN, beside(AGAIN, CHANGES, LONGER), language))
    first, second, third = (item.get_text(" ") for item in page.select("li"))
    words = texts(language)
    for text in (first, second, third):
        for told in ("NVIDIA X", "2026-01-02", "abc123", "muse run <x>"):
            assert told in text
    assert words["companions.repeat"] in first
    assert words["companions.changes"] in second
    assert words["companions.lengths"].format(n="2,048") in third
    assert [link["href"] for link in page.select("a")] == [f"companions/run-{i}.json" for i in range(3)]
    assert not page.select(".muse-warning")


def test_a_run_on_another_text_is_told_by_its_name_and_not_as_other_data():
    code = make_report(perplexities((51.0,)), data="b", test_corpus=".../code")
    page = soup(companion_tables.lines(MAIN, beside(code)))
    assert "another text, code," in page.text
    assert not page.select(".muse-warning")


def test_lines_warn_of_other_data_other_settings_failed_stages_and_uncommitted_changes():
    other = make_report(perplexities(), data="b", train_tokens=5, run={"git_dirty": True})
    smaller = {"scale": "reduced", "reductions": reductions_of({"n_seq": 8})}
    failed = other.stages[0].model_copy(update={"status": "failed", **smaller})
    other = other.model_copy(update={"stages": [failed]})
    told = [p.text for p in soup(companion_tables.lines(MAIN, beside(other))).select(".muse-warning")]
    assert "other data" in told[0]
    assert "train_tokens 5 (this run: 1,000)" in told[1]
    assert "n_seq 8" in told[2]
    assert "1 of 1 stages did not finish" in told[3]
    assert "uncommitted" in told[4]
    assert len(told) == 5


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("main", "again", "verdict", "css"),
    [(MAIN, 51.5, "within", "pass"), (MAIN, 60.0, "outside", "fail"),
     (make_report(perplexities((50.0,))), 51.5, "unknown", "not_measured")],
)  # fmt: skip
def test_the_table_of_repeats_has_a_verdict_in_words(main, again, verdict, css, language):
    other = make_report(perplexities((again,), ("stage1_memory",)))
    page = soup(companion_tables.tables(main, beside(other), language))
    badge = page.select_one(".muse-badge")
    assert css in badge["class"]
    assert texts(language)[f"repeat.{verdict}"] in badge.text
    cells = [cell.text for cell in page.select_one("tbody tr").select("td")]
    places = 0 if again == 60 else 2  # whole numbers have none
    assert cells[1:5] == ["0", *(f"{value:+.{places}f}".removeprefix(sign) for value, sign in
                                 ((50, "+"), (again, "+"), (again - 50, "")))]  # fmt: skip
    assert (f"{50:.{places}f}" in cells[5]) == (verdict != "unknown")
    assert "2.828" in page.get_text()


def test_a_difference_that_is_not_zero_never_reads_like_zero():
    again = make_report(perplexities((50.00004,), ("stage1_memory",)))
    cells = soup(companion_tables.tables(MAIN, beside(again))).select_one("tbody tr").select("td")
    assert [cell.text for cell in cells[2:5]] == ["50.00000", "50.00004", "+0.00004"]


def test_headline_numbers_of_every_companion_are_folded():
    broken = make_report([metric("perplexity", "gpt2", None, reason="seed 1: not finite")], profile="broken")
    page = soup(companion_tables.tables(MAIN, beside(CHANGES, broken, make_report(memory=peaks(1.0)))))
    rows = [[cell.text for cell in row.select("td")] for row in page.select("details tbody tr")]
    assert rows[0] == ["run-0", "Stage 1 with memory", "1,024", "51", "46 – 57", "3", "Phase 2 0.925"]
    assert rows[2] == ["run-1", "GPT-2", "1,024", "–", "", "", "seed 1: not finite"]
    assert rows[3][:4] == ["run-2", "no perplexity", "1,024", "–"]
    assert len(rows) == 4
    assert not page.select(".muse-badge")


# --- the command


def write_run(folder, report):
    write_record(report.run, folder / "run.json")
    write_record(report, folder / "report.json")
    for stage in report.stages:
        write_record(stage, folder / "records" / f"{stage.stage}.json")
    return folder


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("03_perplexity.ipynb", "04_memory.ipynb"):
        write_notebook(folder, name, "raise RuntimeError('measured again')")
    write_notebook(folder, "07_report.ipynb", "1", parameters="language = 'en'\nrecord_dir = '.'")
    return folder


@pytest.fixture
def home(tmp_path):
    """A run, and two that belong to it."""
    write_run(tmp_path / "main", MAIN)
    write_run(tmp_path / "longer", LONGER)
    write_run(tmp_path / "again", AGAIN)
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_companions_are_copied_and_stay(home, books):
    added = [home / "longer", home / "again"]
    assert render(home / "main", "en", companions=added, notebooks=books, export=fake_export) == 0
    for name in ("longer", "again"):
        copy = home / "main" / "companions" / f"{name}.json"
        report = home / name / "report.json"
        assert json.loads(copy.read_bytes()) == json.loads(report.read_bytes())
        assert len(copy.read_bytes()) < len(report.read_bytes()), "the copy spends nothing on indentation"
    assert render(home / "main", "ja", notebooks=books, export=fake_export) == 0
    assert [(c.name, c.report.run.profile) for c in companions_of(home / "main")] == [
        ("again", "gpu"), ("longer", "gpu-length")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no readable file"),
        ("{", "no valid Report, which first fails with Invalid JSON"),
        ('{"a": 1}', "no valid Report, which first fails with run: Field required"),
    ],
)
def test_a_companion_that_is_none_is_refused_with_nothing_changed(home, books, text, problem):
    bad = home / "bad" / "report.json"
    if text:
        bad.parent.mkdir()
        bad.write_text(text)
    before = files(home)
    with pytest.raises(ParamsError) as raised:
        render(home / "main", "en", companions=[home / "longer", bad.parent], notebooks=books, export=fake_export)
    assert f"{bad}: got {problem}" in str(raised.value)
    assert "expected the report.json that muse run writes" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert files(home) == before
    assert not (home / "main" / "companions").exists()


def test_a_run_is_no_companion_of_its_own_and_names_differ(home, books):
    twin = write_run(home / "elsewhere" / "longer", LONGER)
    for added, problem in (([home / "main"], "the run itself"), ([home / "longer", twin], "two folders named longer")):
        with pytest.raises(ParamsError, match=problem):
            render(home / "main", "en", companions=added, notebooks=books, export=fake_export)
    assert not (home / "main" / "companions").exists()


def test_a_second_run_of_a_companions_name_does_not_replace_the_first(home):
    """Nor does `--with` given twice forget what it was given first."""
    main, longer, kept = home / "main", home / "longer", home / "main" / "companions" / "longer.json"
    add_companions(main, [longer])
    before = kept.read_bytes()
    add_companions(main, [longer])
    write_run(home / "elsewhere" / "longer", make_report(perplexities((1.0, 2.0))))
    with pytest.raises(ParamsError, match="holds another report under") as refused:
        add_companions(main, [home / "again", home / "elsewhere" / "longer"])
    assert "\n" not in str(refused.value)
    assert kept.read_bytes() == before
    assert not (kept.parent / "again.json").exists()
    options = cli._parser().parse_args(["report", "x", "--with", "a", "b", "--with", "c"])
    assert [path.name for path in options.companions] == ["a", "b", "c"]


def test_a_companion_broken_since_is_named(home, books):
    broken = home / "main" / "companions" / "old.json"
    broken.parent.mkdir()
    broken.write_text("[]")
    with pytest.raises(ParamsError, match="companion old"):
        render(home / "main", "en", companions=[home / "longer"], notebooks=books, export=fake_export)
    assert [path.name for path in broken.parent.iterdir()] == ["old.json"]


def test_the_command_line_hands_companions_over(tmp_path, monkeypatch):
    from muse import cli

    calls = []
    monkeypatch.setattr(cli, "render", lambda *arguments, **options: calls.append((arguments, options)) or 0)
    assert cli.main(["report", "a", "--with", "b", "c", "--language", "ja"]) == 0
    assert cli.main(["report", "a"]) == 0
    (first, second) = calls
    assert [str(path) for path in first[1]["companions"]] == ["b", "c"]
    assert first[0][1] == "ja"
    assert second[1]["companions"] == []
    assert cli.main(["report", "a", "--shared-script"]) == 0
    assert [options["shared_script"] for _, options in calls] == [False, False, True]


# --- the page


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_shows_companions_after_its_results(home, monkeypatch, language):
    words = texts(language)
    alone = soup(run_notebook(home / "main", language, monkeypatch).read_text()).main
    assert words["companions.title"] not in [h.text for h in alone.select("h2")]
    for name, report in (("again", AGAIN), ("changes", CHANGES), ("longer 2", LONGER)):
        write_record(report, home / "main" / "companions" / f"{name}.json")
    page = run_notebook(home / "main", language, monkeypatch)
    main = soup(page.read_text()).main
    headings = [h.text for h in main.select("h2")]
    places = [headings.index(words[key]) for key in ("report.results", "companions.title", "report.provenance")]
    assert places == sorted(places)
    assert len(main.select("figure")) == len(alone.select("figure")) + 3
    assert [problem for problem in check.check_page(page) if "companions" in problem] == []
    assert {"companions/again.json", "companions/changes.json", "companions/longer%202.json"} <= {
        link["href"] for link in main.select("ul.muse a")
    }
    assert read_record(Report, home / "main" / "report.json").run.profile == "gpu"


def test_a_copy_has_losses_by_position_in_bins(home, books):
    """8,192 positions in 256 runs of 32; the report of the other run stays as it is."""
    curve = {"name": "loss_by_position", "model": "phase2", "x_name": "position", "y_name": "loss"}
    x = list(range(8192))
    long = Series(x=x, y=[9 - i / 1000 for i in x], **curve)
    kept = long.model_copy(update={"name": "validation_loss"})
    stages = [stage.model_copy(update={"series": [long, kept]}) for stage in LONGER.stages]
    write_run(home / "longer", LONGER.model_copy(update={"stages": stages}))
    render(home / "main", "en", companions=[home / "longer"], notebooks=books, export=fake_export)
    (companion,) = companions_of(home / "main")
    binned, other = companion.report.stages[0].series
    assert (len(binned.x), binned.x[:2]) == (256, [15.5, 47.5])
    assert binned.y == pytest.approx([9 - at / 1000 for at in binned.x])
    assert other == kept
    assert read_record(Report, home / "longer" / "report.json").stages[0].series[0] == long
    assert in_bins([1.0, 2.0, 6.0], 2) == [1.5, 6.0]


def test_the_copied_report_is_strict_json(home, books):
    render(home / "main", "en", companions=[home / "longer"], notebooks=books, export=fake_export)
    assert json.loads((home / "main" / "companions" / "longer.json").read_text())["run"]["profile"] == "gpu-length"
