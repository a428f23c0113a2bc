"""Pages: nothing remote, nothing lost, verdicts first, failures plain, and figures that a browser really draws."""

from __future__ import annotations

import contextlib
import re
import string
import threading

import nbformat
import pytest
from builders import (
    NOTEBOOK,
    VERDICTS,
    code,
    criterion,
    export_cells,
    make_report,
    run_info,
    run_notebook,
    shown,
    soup,
    stage,
    write_run,
)
from markupsafe import Markup
from nbformat.v4 import new_markdown_cell, new_output

from muse.catalog import STAGE_NAMES
from muse.records import criteria
from muse.records.criteria import CRITERIA
from muse.records.scale import reductions_of
from muse.records.schema import Excerpt, InputFile, Judged, Metric, Reduction, Report, Series, Summary
from muse.records.store import write_record
from muse.report import browser, check, export, figures, plain, stills
from muse.report import page as report
from muse.report.figures.style import PLOTLY_MIME, mimebundle
from muse.report.provenance import provenance
from muse.report.texts import LANGUAGES, texts


def asked(criteria):
    return Report.of(run_info(), [Judged(model="stage1", criteria=criteria, summary=Summary())], [])


def test_further_candidates_have_cards_and_a_headline_of_their_own():
    other = Judged(model="stage1_memory", criteria=[criterion("vram", "pass")], summary=Summary())
    only = make_report([stage()])
    found = Report.of(only.run, [*only.judged, other], only.stages)
    table = soup(report.verdicts(found))
    assert [h.text for h in table.select("h3") if "same criteria" in h.text] == [
        "The same criteria for Stage 1 with memory"
    ]
    assert [len(table.select(f"header {level}")) for level in ("h3", "h4")] == [len(VERDICTS), 1]
    assert len(table.select("[data-criterion]")) == len(VERDICTS) + 1
    first, second = (line.text for line in table.select(".muse-counts"))
    counts = [list(VERDICTS.values()).count(verdict) for verdict in ("pass", "fail", "not_measured")]
    assert first == "Stage 1: {} of the five criteria pass, {} fail, {} not measured.".format(*counts)
    assert second == "Stage 1 with memory: All five Stage 1 criteria are met."


def two_candidates(**peaks):
    """A report on Stage 1 and Stage 1 with memory, with peaks of memory: {variant: (ours, with memory, Phase 2's)}."""
    models = ("stage1", "stage1_memory", "phase2")
    found = [
        Metric(name=f"peak_memory{variant and '_'}{variant}", model=model, value=value, unit="GiB", basis=basis)
        for variant, (values, basis) in peaks.items()
        for model, value in zip(models, values, strict=True)
        if value is not None
    ]
    other = Judged(model="stage1_memory", criteria=[criterion(name) for name in CRITERIA], summary=Summary())
    run = run_info(params={"candidates": ["stage1", "stage1_memory"]})
    only = make_report([stage("memory", metrics=found)], run)
    return Report.of(only.run, [*only.judged, other], only.stages)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_card_asks_about_its_own_model_with_the_limit_and_the_baseline(language):
    words, cards = texts(language), soup(report.verdicts(two_candidates(), language)).select(".muse-card")
    first, second = words["model.stage1"], words["model.stage1_memory"]
    assert len(cards) == 2 * len(CRITERIA)
    for place, card in enumerate(cards):
        question = card.select_one("p").text
        assert (second in question) == (place >= len(CRITERIA))
        assert first in question
        assert "{" not in card.text
        if card["data-criterion"] in ("perplexity", "vram"):
            limit = {"perplexity": criteria.PERPLEXITY_RATIO, "vram": criteria.VRAM_RATIO}[card["data-criterion"]]
            assert str(limit) in question
            assert words["model.phase2"] in question
            assert words["model.phase2"] in card.select_one(".value").text


def test_the_limit_of_the_question_is_the_one_of_the_verdict(monkeypatch):
    for name, limit in (("perplexity", criteria.PERPLEXITY_RATIO), ("vram", criteria.VRAM_RATIO)):
        (judged,) = [found for found in criteria.judge([], texts("en")) if found.name == name]
        assert f" {limit} times that of Phase 2" in judged.target
    monkeypatch.setitem(report.LIMITS, "vram", 0.625)
    assert "at most 0.625 times the peak GPU memory" in soup(report.verdicts(two_candidates())).text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_memory_card_says_what_was_measured_and_what_is_harder(language):
    peaks = {
        "": ((0.4, 0.8, 1.0), "measured"),
        "with_optimizer": ((1.5, 2.1, 1.4), "measured"),
        "matched": ((0.7, None, 1.0), "measured"),
        "recomputed": ((0.32, 0.4, 0.64), "estimate"),
    }
    words = texts(language)
    cards = soup(report.verdicts(two_candidates(**peaks), language)).select("[data-criterion=vram]")
    wanted = (
        {"with_optimizer": "1.071", "matched": "0.700", "recomputed": "0.500"},
        {"with_optimizer": "1.500", "recomputed": "0.625"},
    )
    for card, ratios in zip(cards, wanted, strict=True):
        value, *lines = [line.text for line in card.select("dd")]
        assert value.startswith("1.250")
        estimate = {"recomputed": f"{words['basis.estimate']} "}
        assert lines[: len(ratios)] == [
            words[f"criterion.vram.{variant}"].format(value=estimate.get(variant, "") + ratio)
            for variant, ratio in ratios.items()
        ]
        assert lines[len(ratios) :] == ["at most <1.03>", words["basis.measured"]], "nothing else stands beside it"
    assert "float32" not in str(soup(report.verdicts(two_candidates(), language)).select("[data-criterion=vram]"))
    failed = two_candidates(**peaks)
    failed = failed.model_copy(update={"stages": [failed.stages[0].model_copy(update={"status": "failed"})]})
    assert "float32" not in report.verdicts(failed, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_memory_card_shows_the_verdict_on_equal_terms_and_what_is_left(language):
    words, measured = texts(language), "measured"
    peaks = {
        "": ((0.4, None, 1.0), measured),
        "bfloat16": ((None, None, 0.5), measured),
        "training_step": ((1.2, None, 1.0), measured),
        "recomputed": ((0.375, None, 0.6), measured),
        "recipe_step": ((7.5, None, None), measured),
    }

    def card(found, beside=(), extra=()):
        stages = [found.stages[0].model_copy(update={"metrics": [*found.stages[0].metrics, *extra]})]
        first = found.judged[0].model_copy(
            update={"beside": list(beside), "criteria": [criterion(name) for name in CRITERIA]}
        )
        found = found.model_copy(update={"judged": [first], "stages": stages})
        return soup(report.verdicts(found, language)).select_one("[data-criterion=vram]")

    beside = [criterion("vram_recomputed", "fail")]
    parameters = [
        Metric(name="parameter_memory_recomputed", model=model, value=value, unit="GiB")
        for model, value in (("stage1", 0.15), ("phase2", 0.25))
    ]
    fits = Metric(name="trains_within_8_gib", model="stage1", value=1.0, unit="1")
    found = card(two_candidates(**peaks), beside, [*parameters, fits])
    lines = [" ".join(line.text.split()) for line in found.select("dd")]
    assert words["criterion.vram.bfloat16"].format(value="0.800") in lines
    assert words["criterion.vram.training_step"].format(value="1.200") in lines
    (judged,) = [line for line in lines if line.startswith(words["criterion.vram.recomputed"].format(value="0.625"))]
    assert judged.endswith(words["verdict.fail"])
    assert [badge.text.split()[-1] for badge in found.select("dd .muse-badge")] == [words["verdict.fail"].split()[-1]]
    told = found.text
    for number in ("0.300", "0.375", "0.500", "0.600", "0.625", "7.500"):
        assert number in told
    assert words["criterion.vram.trains"].format(model=words["model.stage1"]) in told
    out_of_memory = card(two_candidates(**peaks), beside, [fits.model_copy(update={"value": 0.0})])
    assert words["criterion.vram.trains_not"].format(model=words["model.stage1"]) in out_of_memory.text
    assert "0.300" not in out_of_memory.text, "without the sizes of parameters nothing is said of them"
    guessed = two_candidates(**peaks | {"recomputed": ((0.375, None, 0.6), "estimate")})
    assert "0.300" not in card(guessed, beside, parameters).text, "nor from estimates"
    assert not card(two_candidates(**peaks)).select("dd .muse-badge")


def test_the_memory_question_does_not_speak_of_a_training():
    for language, training in (("en", "training"), ("ja", "学習")):
        assert training not in texts(language)["criterion.vram.question"]


@pytest.mark.parametrize(("value", "words"), [(0.52004, "0.52004"), (0.52, "0.520"), (0.3948, "0.395")])
def test_a_ratio_on_a_card_never_reads_like_its_limit_without_being_on_it(value, words):
    found = asked([criterion("vram", value=value)])
    assert soup(report.verdicts(found)).select_one(".value").text.split()[0] == words


def figure(label="stage1"):
    curve = Series(name="training_loss", model=label, x_name="tokens", y_name="loss", x=[1, 2], y=[3, 2])
    return figures.loss_curves(stage("train", series=[curve]))






ERROR = new_output("error", ename="ValueError", evalue="got <5>", traceback=["\x1b[31mValueError\x1b[0m: got <5>"])
MESSAGE = new_output("stream", name="stderr", text="a <message>")




# --- texts


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_keys_and_fields(language):
    english, words = texts("en"), texts(language)
    assert set(english) == set(words)
    for key, text in words.items():
        assert text.strip()
        assert fields(text) - {"colon"} == fields(english[key]) - {"colon"}, key


def test_no_words_were_left_in_english():
    english, japanese = texts("en"), texts("ja")
    same = {key for key in english if english[key] == japanese[key]}
    assert not {key for key in same if re.search("[A-Za-z]{4}", re.sub(r"\{\w+\}|Stage|Phase|GPT", "", english[key]))}


def test_every_stage_and_criterion_has_a_name():
    for language in LANGUAGES:
        assert not [name for name in STAGE_NAMES if f"stage.{name}" not in texts(language)]
        assert not [name for name in CRITERIA if f"criterion.{name}.question" not in texts(language)]


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match=r"'fr', expected one of .*en.*ja"):
        texts("fr")


# --- HTML from records


@pytest.mark.parametrize("language", LANGUAGES)
def test_cards_tell_verdict_value_target_basis_and_reason(language):
    page = soup(report.verdicts(make_report(), language))
    assert [card["data-criterion"] for card in page.select(".muse-card")] == list(CRITERIA)
    for card, verdict in zip(page.select(".muse-card"), VERDICTS.values(), strict=True):
        badge = card.select_one(".muse-badge")
        assert verdict in badge["class"]
        assert texts(language)[f"verdict.{verdict}"] in badge.text
        assert {"pass": "✓", "fail": "✕", "not_measured": "–"}[verdict] in badge.text
        assert "1.25" in card.select_one(".value").text
        assert "at most <1.03>" in card.text
        assert texts(language)["basis.measured"] in card.text
        assert f"because of {card['data-criterion']} <more>" in card.text


def test_an_estimate_is_called_one_beside_its_value_and_no_value_is_none():
    found = asked([criterion("vram", "not_measured", basis="estimate"), criterion("layout", value=None)])
    values = [value.text for value in soup(report.verdicts(found)).select(".value")]
    assert values[0].startswith("estimate 1.25")
    assert values[1] == "no value"


def test_summary_counts_verdicts_and_failed_stages():
    found = make_report([stage(), stage("memory", status="failed", error="boom")])
    assert "3 of the five criteria pass, 1 fail, 1 not measured" in soup(report.verdicts(found)).text
    text = soup(report.lead(found)).text
    assert "1 of 2 stages did not finish" in text
    passed = make_report([stage()], verdicts=dict.fromkeys(CRITERIA, "pass"))
    assert "All five" in report.verdicts(passed)
    assert "did not finish" not in report.lead(passed)
    assert "nothing was measured" in report.lead(make_report())


def test_scale_is_named_when_any_stage_is_reduced():
    reduced = stage("memory", scale="reduced", reductions=reductions_of({"n_seq": 8, "d_model": 4}))
    again = stage("throughput", scale="reduced", reductions=reductions_of({"n_seq": 8}))
    notice = report.scale_notice([stage(), reduced, again])
    assert notice.startswith("Reduced profile: toy-scale.")
    assert notice.count("n_seq 8") == 1
    assert "d_model 4" in notice
    assert report.scale_notice([stage()]) == ""
    assert not soup(report.lead(make_report([stage()]))).select(".muse-scale")
    assert soup(report.lead(make_report([reduced]))).select_one(".muse-scale").text.startswith("Reduced profile")


def test_the_report_says_that_stage_1_does_not_mix():
    for language in LANGUAGES:
        note = soup(report.verdicts(make_report(), language)).select_one(".muse-note").text
        assert note == texts(language)["note.no_mixing"]


def test_stage_table_shows_failed_and_missing_stages():
    found = make_report(
        [stage(), stage("memory", status="failed", error="out of <memory>")],
        run=run_info(params={"stages": ["perplexity", "memory", "train"]}),
    )
    page = soup(report.stage_table(found))
    rows = [row.get_text(" ") for row in page.select("tbody tr")]
    assert [row.split()[0] for row in rows] == ["Training", "Perplexity", "GPU", "out"]
    assert "no record" in rows[0]
    assert "1 h 05 min" in rows[1]
    assert "failed" in rows[2]
    assert "out of <memory>" in rows[3]
    links = [link["href"] for link in page.select("a")]
    assert links == ["pages/03_perplexity.html", "pages/04_memory.html", "logs/memory.log"]


def test_a_row_of_a_table_weighs_little_more_than_its_words():
    metrics = [Metric(name="peak_memory", model="stage1", value=1.5, unit="GiB", note="allocator")] * 100
    page = soup(report.numbers_table(stage(metrics=metrics)))
    words = sum(len(cell.get_text()) for cell in page.select("td"))
    assert len(str(page)) < words + 100 * 100


def test_a_long_note_of_three_rows_stands_once_below_the_table():
    notes = ["own: <long enough to be told only once>", "shared by two, so it stays in both rows", "short"]
    order = (0, 1, 0, 2, 2, 1, 2, 0)
    metrics = [Metric(name="peak_memory", model="stage1", value=1.5, unit="GiB", note=notes[k]) for k in order]
    page = soup(report.numbers_table(stage(metrics=metrics)))
    told = [row.select("td")[-1].text for row in page.select("tbody tr")]
    assert told == ["note 1", notes[1], "note 1", "short", "short", notes[1], "short", "note 1"]
    assert [item.text for item in page.select("details ol.muse-notes li")] == [notes[0]]
    assert not soup(report.numbers_table(stage(metrics=metrics[:2]))).select(".muse-notes")


def test_numbers_table_shows_every_metric():
    metric = Metric(
        name="peak_memory",
        model="phase2",
        value=1.5,
        unit="GiB",
        n=30,
        interval=(1.25, 1.75),
        basis="estimate",
        note="a<b",
    )
    none = Metric(name="odd", value=None, unit="1", note="overflow")
    rows = soup(report.numbers_table(stage(metrics=[metric, none]))).select("tbody tr")
    cells = [cell.text for cell in rows[0].select("td")]
    assert cells == ["peak GPU memory", "Phase 2", "1.500", "GiB", "30", "1.250 – 1.750", "estimate", "a<b"]
    assert "–" in rows[1].text
    assert "overflow" in rows[1].text
    assert "no numbers" in report.numbers_table(stage())
    assert "bo&lt;om" in report.numbers_table(stage(status="failed", error="bo<om"))


def test_a_failed_stage_shows_its_error_and_the_numbers_that_it_kept():
    metric = Metric(name="perplexity", model="phase2", value=12.5, unit="per token")
    page = soup(report.numbers_table(stage(status="failed", error="killed", metrics=[metric])))
    assert page.select_one(".failure pre").text == "killed"
    assert "before the failure" in page.select_one("summary").text
    assert "12.5" in page.select_one("tbody tr").text
    assert "before the failure" not in report.numbers_table(stage(metrics=[metric]))


def test_excerpts_are_quoted_as_they_are():
    item = Excerpt(name="continuation", model="stage1", text="a <unk> b")
    assert "a <unk> b" in soup(report.numbers_table(stage(excerpts=[item]))).text
    assert not soup(report.numbers_table(stage())).select(".muse-excerpt")


def test_provenance_tells_what_repeats_the_run(tmp_path):
    files = [InputFile(path="test.txt", sha256="f" * 64, num_bytes=1234)]
    clean = make_report([stage(inputs=files), stage("memory", inputs=files)], run=run_info(params={"d_model": 512}))
    text = soup(provenance(clean, tmp_path)).get_text(" ")
    for expected in (
        "abc123",
        "no uncommitted changes",
        "torch 9.9",
        "cpu: slow",
        "0, 7",
        "muse run <x>",
        "1,234",
        "d_model",
    ):
        assert expected in text
    assert text.count("f" * 64) == 1
    assert "muse-warning" not in provenance(clean, tmp_path)
    dirty = provenance(make_report(run=run_info(git_dirty=True)), tmp_path)
    assert "uncommitted changes" in soup(dirty).select_one(".muse-warning").text
    assert "No file was read" in dirty
    unknown = make_report(run=run_info(git_commit=None, git_dirty=None))
    assert "not run from a git checkout" in provenance(unknown, tmp_path)


def test_downloads_link_records_and_those_notebooks_of_finished_stages_that_are_there(tmp_path):
    found = make_report([stage(), stage("memory", status="failed", error="x"), stage("throughput"), stage("train")])
    (tmp_path / "notebooks").mkdir()
    for record in found.stages[:3]:
        write_record(record, tmp_path / "records" / f"{record.stage}.json")
    for name in ("03_perplexity", "04_memory"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    links = [link["href"] for link in soup(provenance(found, tmp_path)).select("a")]
    assert links == [
        "report.json",
        "run.json",
        "records/perplexity.json",
        "notebooks/03_perplexity.ipynb",
        "records/memory.json",
        "records/throughput.json",
    ]


# --- export


def test_a_page_keeps_everything_and_folds_code(tmp_path):
    page = export_cells(
        tmp_path,
        new_markdown_cell("# Own title\n\nSome **bold** text."),
        code("n: int = 3", tags=["parameters"]),
        code("n = 4", tags=["injected-parameters"]),
        code("print('out')", new_output("stream", name="stdout", text="out <b>"), MESSAGE),
        new_markdown_cell("for the notebook", metadata={"tags": ["notebook-only"]}),
        links=[("Report", "../index.html"), ("Here", "03_perplexity.html")],
    )
    found = soup(page.read_text())
    assert [h.text for h in found.select("h1")] == ["Own title"]
    assert found.title.text == "Own title – A title"
    assert "out <b>" in found.select_one("pre.output").text
    assert "a <message>" in found.text
    assert "for the notebook" not in found.text
    assert [s.text for s in found.select("details.code > summary")] == [
        "parameters and their defaults", "parameters of this run", "messages", "code"
    ]  # fmt: skip
    assert all(not block.find_parent("details").has_attr("open") for block in found.select(".highlight"))
    assert found.select_one("header a[aria-current]").text == "Here"
    assert len(page.read_text()) < 20_000


def test_tables_of_text_can_be_scrolled_by_keys(tmp_path):
    page = export_cells(tmp_path, new_markdown_cell("| a | b |\n|---|---|\n| 1 | 2 |"))
    assert [table["tabindex"] for table in soup(page.read_text()).select("section table")] == ["0"]


def test_headings_of_text_and_outputs_are_in_the_contents(tmp_path):
    page = export_cells(
        tmp_path,
        new_markdown_cell("## First\n\n### Inner"),
        code("x", shown({"text/html": "<h2>結果</h2><h3>First</h3>"})),
        code("y", shown({"text/markdown": "## Last **one**"})),
    )
    found = soup(page.read_text())
    assert [link.text for link in found.select("details.toc a")] == ["First", "Inner", "結果", "First", "Last one"]
    assert [link.text for link in found.select("details.toc ul ul a")] == ["Inner", "First"]
    ids = [heading["id"] for heading in found.select("main h2, main h3")]
    assert len(set(ids)) == 5
    assert [link["href"] for link in found.select("details.toc a")] == [f"#{i}" for i in ids]
    assert found.h1.text == "A title"


def test_the_title_stands_first_even_when_parameters_precede_it(tmp_path):
    page = export_cells(
        tmp_path,
        code("p = 1", tags=["parameters"]),
        code("p = 2", tags=["injected-parameters"]),
        code("x", shown({"text/html": "<h1>From output</h1><p>lead</p>"})),
    )
    main = soup(page.read_text()).main
    assert main.find(True).text == "From output"
    assert main.text.index("lead") < main.text.index("parameters and their defaults") < main.text.index("of this run")


def test_formulas_become_mathml_and_unknown_ones_stay_readable(tmp_path):
    text = "Inline $e^{i\\theta}$ and\n\n$$\\frac{a}{b} < c$$\n\n"
    text += "$\\big\\langle k \\big\\rangle$ and $\\nosuchmacro{x}$, price 5$"
    main = soup(export_cells(tmp_path, new_markdown_cell(text)).read_text()).main
    assert len(main.select("math")) == 3
    assert main.select_one("math[display=block] mfrac")
    assert main.select("math")[-1].text == "⟨k⟩"
    assert main.select_one("code").text == "\\nosuchmacro{x}"
    assert "mathjax" not in str(main).lower()


def test_a_failed_cell_is_shown_first_and_in_place(tmp_path):
    page = export_cells(tmp_path, new_markdown_cell("# T"), code("fail()", MESSAGE, ERROR))
    main = soup(page.read_text()).main
    top, message, raised = main.select(".failure")
    assert top["role"] == "alert"
    assert "ValueError: got <5>" in top.text
    assert top.a["href"] == "#failed-cell"
    assert main.select_one("#failed-cell .failure.raised") is raised
    assert "a <message>" in message.text
    assert raised.select_one("details")["open"] == ""
    assert "\x1b" not in page.read_text()
    assert check.check_page(page) == ["03_perplexity.html: error output: ValueError"]


def test_a_failure_that_the_notebook_does_not_know_is_shown(tmp_path):
    main = soup(export_cells(tmp_path, new_markdown_cell("# T"), error="took too <long>").read_text()).main
    assert "took too <long>" in main.select_one(".failure[role=alert]").text
    assert not main.select(".failure a")


def test_scale_label_from_the_notice_or_the_notebooks_own_parameters(tmp_path):
    cell = new_markdown_cell("# T")
    own = soup(export_cells(tmp_path, cell, parameters={"n_seq": 8}).read_text())
    assert "n_seq 8 (published: 1024)" in own.select_one(".muse-scale").text
    given = soup(export_cells(tmp_path, cell, parameters={"n_seq": 8}, notice="NOTICE").read_text())
    assert given.select_one(".muse-scale").text == "NOTICE"
    assert not soup(export_cells(tmp_path, cell, parameters={"n_seq": 1024}).read_text()).select("main .muse-scale")


def test_every_figure_of_the_notebook_is_on_the_page(tmp_path):
    foreign = {PLOTLY_MIME: {"data": [{"y": [1, 2]}], "layout": {"title": {"text": "foreign"}}}, "text/plain": "words"}
    page = export_cells(tmp_path, code("a", shown(mimebundle(figure()))), code("b", shown(foreign)))
    found = soup(page.read_text())
    assert len(found.select("figure .muse-figure")) == 2
    assert found.select(".muse-alt")[1].text == "words"
    assert found.select_one("script[src]")["src"] == "../assets/figures.js"
    assert found.find("meta", {"name": "muse-figures"})["content"] == "2"


def test_assets_are_inlined_once_or_not_at_all(tmp_path):
    cells = [code("a", shown(mimebundle(figure()))), code("b", shown(mimebundle(figure())))]
    page = export_cells(tmp_path, *cells, page="index.html", inline_assets=True)
    assert page.read_text().count("window.musePlotly=") == 1
    assert not soup(page.read_text()).select("script[src]")
    assert page.stat().st_size < 2_200_000
    bare = export_cells(tmp_path, new_markdown_cell("# T"), page="index.html", inline_assets=True)
    assert bare.stat().st_size < 16_000
    export.write_assets(tmp_path / "assets")
    assert (tmp_path / "assets" / "figures.js").read_text() == export.figures_script()


def test_pages_in_japanese(tmp_path):
    found = soup(export_cells(tmp_path, new_markdown_cell("## 見出し"), code("x = 1"), language="ja").read_text())
    assert found.html["lang"] == "ja"
    assert found.select_one("details.toc summary").text == "目次"
    assert found.select_one("details.code summary").text == "コード"
    assert found.h2["id"] == "見出し"


# --- the report's notebook


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_report_leads_with_verdicts_and_shows_failures(tmp_path, monkeypatch, language):
    curve = Series(name="training_loss", model="stage1", x_name="tokens", y_name="loss", x=[1, 2], y=[3, 2])
    reduced = {"scale": "reduced", "reductions": reductions_of({"n_seq": 8}), "text": "own-v1"}
    write_run(tmp_path, stage("train", series=[curve], **reduced), stage("memory", status="failed", error="out of it"))
    main = soup(run_notebook(tmp_path, language, monkeypatch).read_text()).main
    words = texts(language)
    assert main.find(True).text == words["report.title"]
    assert main.find("h2").text == words["report.verdicts"]
    assert {card["data-criterion"] for card in main.select(".muse-card")} == set(CRITERIA)
    assert f"{words['setting.n_seq']} 8" in main.select_one(".muse-scale").text
    titled = words["figure.with_unit"].format(name=words["stage.train"], unit="own-v1")
    assert titled in [heading.text for heading in main.select("h3")]
    assert "out of it" in main.select_one(".failure").text
    assert len(main.select("figure")) == 1
    assert words["note.no_mixing"] in main.text


def test_the_report_of_a_run_without_records_still_says_so(tmp_path, monkeypatch):
    write_run(tmp_path)
    main = soup(run_notebook(tmp_path, "en", monkeypatch).read_text()).main
    assert {"not_measured"} == {card["class"][1] for card in main.select(".muse-card")}
    assert "0 of the five criteria pass, 0 fail, 5 not measured" in main.text


def test_the_notebook_is_committed_clean():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert not any("def " in cell.source for cell in cells)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in cells) == 1


# --- check


@pytest.fixture
def good(tmp_path):
    """A run folder with an index of cards and one figure, and one stage page."""
    cards = report.verdicts(make_report())
    cells = [code("c", shown({"text/html": cards})), code("f", shown(mimebundle(figure())))]
    export_cells(tmp_path, *cells, page="index.html", inline_assets=True)
    export_cells(tmp_path, new_markdown_cell("## Part"), code("f", shown(mimebundle(figure("phase2")))))
    export.write_assets(tmp_path / "assets")
    write_record(stage(), tmp_path / "records" / "perplexity.json")
    return tmp_path


def test_good_pages_have_no_problems(good):
    assert check.check_run(good) == []
    assert [page.name for page in check.pages_of(good)] == ["index.html", "03_perplexity.html"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('<link rel="icon" href="data:,"', '<link href="https://cdn.example/x.css"', "remote reference https://cdn.example/x.css"),
        ("<main", '<img src="//cdn.example/x.png"><main', "remote reference //cdn.example/x.png"),
        ("<style>", "<style>@import 'https://x.example/a.css';", "remote reference https://x.example/a.css"),
        ("<style>", "<style>b{background:url(https://x.example/a.png)}", "remote reference https://x.example/a.png"),
        ('class="muse-figure"', 'class="other"', "0 figures where the notebook had 1"),
        ('data-criterion="vram"', "", "no verdict on vram"),
        ('<details class="toc">', '<details class="gone">', "no table of contents"),
        ('<details class="code"><summary>code', '<details class="code" open><summary>code', "code that is not folded"),
        ("window.musePlotly=", "window.other=", "figures without the script that draws them"),
        ("showSendToCloud: false", "showSendToCloud: true", "figures with a button that uploads them"),
        ("showSendToCloud: false, ", "", "figures with a button that uploads them"),
        ("<main", '<a href="gone.html">x</a><main', "broken link gone.html"),
        ("<main", '<a href="#gone">x</a><main', "broken link #gone"),
        ('class="muse-alt"', 'class="other"', "figure without a text alternative"),
    ],
)  # fmt: skip
def test_check_finds(good, old, new, problem):
    page = good / "index.html"
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new))
    assert f"index.html: {problem}" in check.check_run(good)


def test_check_reads_the_script_that_stage_pages_share(good):
    script = good / "assets" / "figures.js"
    script.write_text(script.read_text().replace("showSendToCloud: false", "showSendToCloud: true"))
    assert check.check_run(good) == ["03_perplexity.html: figures with a button that uploads them"]


@pytest.mark.parametrize("place", ["records/perplexity.json", "report.json"])
def test_check_wants_the_scale_on_every_page(good, place):
    """The scale is that of the records, or of the report where it is kept without them."""
    (good / "records" / "perplexity.json").unlink()
    reduced = stage(scale="reduced")
    write_record(make_report([reduced]) if place == "report.json" else reduced, good / place)
    assert [problem.split(":")[0] for problem in check.check_run(good)] == ["index.html", "03_perplexity.html"]


def test_an_index_can_share_the_script_of_the_stages_pages(good):
    alone = (good / "index.html").stat().st_size
    export_cells(good, code("f", shown(mimebundle(figure()))), page="index.html", inline_assets=False)
    assert soup((good / "index.html").read_text()).select_one("script[src]")["src"] == "assets/figures.js"
    assert (good / "index.html").stat().st_size < alone - 10**6
    assert not [problem for problem in check.check_run(good) if "verdict" not in problem]


def test_browsers_side_by_side_tell_of_pages_in_their_order(tmp_path, monkeypatch):
    pages = [tmp_path / f"{name}.html" for name in "bac"]
    for size, page in enumerate(pages):
        page.write_text("x" * size)
    together, opened = threading.Barrier(2), []

    def look_at(context, page):
        if page.stem in "ca":  # the two largest, one in each browser
            together.wait(20)
        opened.append(page)
        return [f"problem {len(page.read_text())}"]

    monkeypatch.setattr(check, "usable_cores", lambda: 2)
    monkeypatch.setattr(check, "window", lambda browser: contextlib.nullcontext())
    monkeypatch.setattr(check, "_look_at", look_at)
    found = check.check_in_browser(pages, "chromium")
    assert found == ["b.html: problem 0", "a.html: problem 1", "c.html: problem 2"]
    assert sorted(opened) == sorted(pages)
    monkeypatch.setattr(check, "_look_at", lambda context, page: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check.check_in_browser(pages, "chromium")


def test_check_command(good, monkeypatch, capsys):
    monkeypatch.setattr(check, "find_browser", lambda: None)
    assert check.check_folders([good]) == 0
    assert "no browser found" in capsys.readouterr().out
    (good / "index.html").unlink()
    assert check.check_folders([good]) == 1


@pytest.fixture
def plain_run(tmp_path):
    """The pages of a run whose notebooks could not be shown."""
    links = [("Report", "index.html"), ("Perplexity", "pages/03_perplexity.html")]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "perplexity.log").write_text("why")
    reduced = [Reduction(setting="d_model", value=8, published=512)]
    row = ("Perplexity", "a <b>", "pages/03_perplexity.html", "logs/perplexity.log")
    rows, judged = [row, ("Memory", "-", "", "")], make_report().criteria
    index = plain.page("MUSE", "en", rows, "No report.", judged, links=links, here="index.html", reductions=reduced)
    (tmp_path / "index.html").write_text(index)
    links, row = ([tuple(f"../{v}" if "/" in v or v == "index.html" else v for v in one) for one in found]
                  for found in (links, [row]))  # fmt: skip
    page = plain.page("Perplexity", "en", row, links=links, here="../pages/03_perplexity.html", reductions=reduced)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "03_perplexity.html").write_text(page)
    write_record(stage(scale="reduced", reductions=reduced), tmp_path / "records" / "perplexity.json")
    return tmp_path


def test_plain_pages_have_no_problems_and_say_what_is_known(plain_run):
    assert check.check_run(plain_run) == []
    index, page = (soup(path.read_text()) for path in check.pages_of(plain_run))
    assert index.select_one("header.top a[aria-current]").text == "Report"
    assert page.select_one("header.top a[aria-current]").text == "Perplexity"
    assert "a <b>" in page.main.get_text()
    assert "d_model 8" in page.select_one(".muse-scale").text
    assert [cell.get_text() for cell in index.select("tbody tr")[1].select("td")] == ["Memory", "-", "", ""]


@pytest.mark.skipif(check.find_browser() is None, reason="no Chromium installed")
def test_plain_pages_are_in_every_readers_reach(plain_run):
    pytest.importorskip("playwright")
    assert check.check_in_browser(check.pages_of(plain_run), check.find_browser()) == []


# --- browser


def test_tables_show_all_of_their_columns_on_a_phone(tmp_path, dark_tab):
    long = {"note": "a long note " * 9, "samples": [1.0], "labels": ["seed 0"]}
    metrics = [Metric(name="perplexity_ratio_to_phase2", model="stage1", value=123456.0, unit="per token", **long)]
    record = stage(metrics=metrics, status="failed", error="x" * 99)
    found = make_report([record], run=run_info(hardware={"cpu": "y" * 99}))
    parts = [report.numbers_table(record), report.stage_table(found), provenance(found, tmp_path)]
    parts.append(Markup(f"<p><code>{'z' * 99}</code></p>"))
    page = export_cells(tmp_path, code("x", *(shown({"text/html": part}) for part in parts)), inline_assets=True)
    dark_tab.set_viewport_size({"width": 375, "height": 900})
    dark_tab.goto(page.resolve().as_uri())
    assert dark_tab.locator(".muse-rows").count() >= 2
    assert dark_tab.evaluate(check.HIDDEN) == []
    assert dark_tab.evaluate("document.documentElement.scrollWidth") == 375
    dark_tab.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    labels = "box => getComputedStyle(box.querySelector('td:nth-child(3)'), '::before').content"
    assert "Value" in dark_tab.locator(".muse-rows").first.evaluate(labels)
    dark_tab.set_viewport_size({"width": 1280, "height": 900})
    assert dark_tab.locator(".muse-rows thead").first.is_visible()
    assert dark_tab.locator(".muse-rows").first.evaluate(labels) == "none"



def test_the_words_of_panels_leave_their_bars_room_on_paper(tmp_path, dark_tab):
    peaks = [Metric(name="peak_memory", model="stage1", value=1.5, unit="GiB", n=1)]
    drawn = shown(mimebundle(figures.memory_bars(stage("memory", metrics=peaks))))
    dark_tab.goto(export_cells(tmp_path, code("f", drawn), inline_assets=True).resolve().as_uri())
    dark_tab.wait_for_function(browser.DRAWN)
    sizes = "document.querySelector('.js-plotly-plot')._fullLayout.annotations.map(note => note.font.size)"
    assert set(dark_tab.evaluate(sizes)) == {12}
    dark_tab.emulate_media(media="print")
    dark_tab.wait_for_function(f"{sizes}.every(size => size === 9)", timeout=5_000)


def test_a_curve_that_names_the_tokens_of_another_is_drawn_and_in_the_data(tmp_path, dark_tab):
    curves = [Series(name="training_loss", model=name, x_name="t", y_name="l", x=[7, 8], y=[3, 2]) for name in "ab"]
    drawn = shown(mimebundle(figures.loss_curves(stage("train", series=curves))))
    dark_tab.goto(export_cells(tmp_path, code("f", drawn), inline_assets=True).resolve().as_uri())
    dark_tab.wait_for_function(browser.DRAWN)
    assert dark_tab.evaluate("document.querySelector('.js-plotly-plot').data.map(trace => trace.x)") == [[7, 8]] * 2
    data = dark_tab.evaluate("fetch(document.querySelector('.muse-files a').href).then(file => file.text())")
    assert [line.split(",")[-5:-3] for line in data.splitlines()[1:]] == [["7", "3"], ["8", "2"]] * 2


@pytest.mark.skipif(check.find_browser() is None, reason="no Chromium installed")
def test_a_browser_draws_every_figure_without_network(good):
    pytest.importorskip("playwright")
    broken = good / "pages" / "04_memory.html"
    text = (good / "pages" / "03_perplexity.html").read_text()
    text = text.replace('{"data":[', '{"data":oops[', 1).replace(
        "<main", '<img src="http://remote.invalid/x.png"><main', 1
    )
    broken.write_text(text)
    problems = check.check_in_browser([*check.pages_of(good)], check.find_browser())
    assert [problem for problem in problems if not problem.startswith("04_memory.html")] == []
    assert "04_memory.html: asked the network for http://remote.invalid/x.png" in problems
    assert any("figure 1 was not drawn: SyntaxError" in problem for problem in problems)


def changed(page, name, *changes):
    """A copy of a page beside it, with changes (old, new)."""
    text = page.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    page.with_name(name).write_text(text)
    return page.with_name(name)


@pytest.mark.browser
@pytest.mark.skipif(check.find_browser() is None, reason="no Chromium installed")
def test_a_browser_finds_figures_that_are_cut_on_paper_or_offer_an_upload(good):
    pytest.importorskip("playwright")
    page = good / "index.html"
    wide = changed(page, "wide.html", ("print.addEventListener", "root.addEventListener"))
    cloud = changed(page, "cloud.html", ("showSendToCloud: false, displayModeBar: false", "displayModeBar: true"))
    problems = check.check_in_browser([page, wide, cloud], check.find_browser())
    assert [problem.rpartition(" by ")[0] or problem for problem in problems] == [
        "wide.html: figure 1 is cut on paper", "cloud.html: a button that sends a figure elsewhere: Share chart..."
    ]  # fmt: skip


@pytest.fixture
def dark_tab():
    """A tab of a browser, dark and 1280 pixels wide."""
    if check.find_browser() is None:
        pytest.skip("no Chromium installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=check.find_browser(), args=list(browser.BROWSER_FLAGS))
        yield opened.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        opened.close()


STATE = """() => {
  const { width, height, font } = document.querySelector(".js-plotly-plot")._fullLayout;
  return [width, height, font.color];
}"""


@pytest.mark.parametrize(("height", "printed"), [(400, 400), (1100, 860), (1400, 1400)])
def test_printing_fits_figures_to_paper_in_light_colours_and_the_screen_comes_back(good, dark_tab, height, printed):
    page = changed(good / "index.html", "other.html", ('"height":400', f'"height":{height}'))
    dark_tab.goto(page.resolve().as_uri())
    dark_tab.wait_for_function("document.documentElement.dataset.figures === 'done'")
    screen = dark_tab.evaluate(STATE)
    paper, back = (
        dark_tab.evaluate(f"() => {{ dispatchEvent(new Event('{event}')); return ({STATE})(); }}")
        for event in ("beforeprint", "afterprint")
    )
    assert screen[0] > check.PAPER > paper[0] > 600
    assert (screen[1], paper[1]) == (height, printed), "one sheet holds it, where its rows can be so low"
    assert paper[2] == "#3d444d" != screen[2]
    assert back == screen


def test_a_stage_without_figures_has_its_numbers_on_paper(tmp_path, dark_tab):
    numbers = report.numbers_table(stage(metrics=[Metric(name="perplexity", value=20.0, unit="1")]))
    drawn = [
        shown({"text/html": "<h3>Drawn</h3>"}),
        shown(mimebundle(figure())),
        shown({"text/html": numbers}),
    ]
    bare = [shown({"text/html": "<h3>Bare</h3>"}), shown({"text/html": numbers})]
    page = export_cells(tmp_path, code("x", *drawn, *bare), page="index.html", inline_assets=True)
    dark_tab.goto(page.resolve().as_uri())
    heights = "[...document.querySelectorAll('table')].map(table => table.checkVisibility() && table.offsetHeight > 0)"
    assert dark_tab.evaluate(heights) == [False, False]
    dark_tab.emulate_media(media="print")
    assert dark_tab.evaluate(heights) == [False, True]


# --- numbers, ids and pictures of figures


def test_figures_have_a_number_an_id_and_a_link_and_title_apart_from_caption(tmp_path):
    cells = [code("a", shown(mimebundle(figure()))), code("b", shown(mimebundle(figure())))]
    page = export_cells(tmp_path, *cells, page="index.html")
    found = soup(page.read_text()).select("figure")
    assert [one["id"] for one in found] == ["fig-loss-curves", "fig-loss-curves-2"]
    for number, one in enumerate(found, 1):
        link = one.select_one(".muse-title a")
        assert (link["href"], link.text) == (f"#{one['id']}", f"Figure {number}")
        title, caption = one.select("figcaption > p")
        assert "Loss during training" in title.text
        assert "Loss during training" not in caption.text
        assert caption.text.startswith("Thin lines")


def test_a_figure_of_an_old_notebook_gets_its_number_too(tmp_path):
    old = '<figure role="img" aria-label="a"><div class="muse-figure"><p class="muse-alt">a</p></div>'
    page = export_cells(tmp_path, code("a", shown({PLOTLY_MIME: {}, "text/html": old + "<figcaption/></figure>"})))
    assert soup(page.read_text()).select_one("figcaption .muse-number").text == "Figure 1"


@pytest.mark.parametrize("page", ["index.html", "pages/03_perplexity.html"])
def test_the_list_of_pages_marks_the_page_that_is_shown(tmp_path, page):
    up = "" if page == "index.html" else "../"
    links = [("Report", f"{up}index.html"), ("Perplexity", f"{up}pages/03_perplexity.html")]
    made = export_cells(tmp_path, code("a"), page=page, links=links)
    marked = soup(made.read_text()).select("header a[aria-current=page]")
    assert [link["href"] for link in marked] == [up + page]


def test_without_a_browser_a_page_says_that_it_has_no_pictures(good, monkeypatch):
    monkeypatch.setattr(stills, "find_browser", lambda: None)
    before = (good / "index.html").read_text()
    assert stills.draw_stills(good, check.pages_of(good)) == 0
    assert (good / "index.html").read_text() == before
    assert "No still pictures of the figures were made" in soup(before).select_one(".muse-stills").text


@pytest.mark.browser
@pytest.mark.skipif(check.find_browser() is None, reason="no Chromium installed")
def test_pictures_stand_where_there_is_no_script_and_are_linked(good):
    pytest.importorskip("playwright")
    assert stills.draw_stills(good, check.pages_of(good)) == 2
    for page in check.pages_of(good):
        one = soup(page.read_text()).figure
        picture, link = one.select_one("noscript img"), one.select_one(".muse-files a")
        assert picture["src"] == link["href"]
        assert picture["alt"] == one.select_one(".muse-alt").text
        drawn = (page.parent / picture["src"]).read_text()
        assert drawn.startswith("<svg")
        assert "training tokens" in drawn
        assert len(drawn) < 60_000
    assert "no Chromium" not in (good / "index.html").read_text()
    assert check.check_run(good) == []
    assert check.check_in_browser(check.pages_of(good), check.find_browser()) == []


@pytest.mark.browser
@pytest.mark.skipif(check.find_browser() is None, reason="no Chromium installed")
def test_a_browser_finds_what_keeps_readers_out(good):
    pytest.importorskip("playwright")
    page = good / "index.html"
    nav = '<header class="top"><nav aria-label="x"><a href="index.html">a</a></nav></header>'
    wide_table = '<details><summary>x</summary><div class="muse muse-table muse-rows" tabindex="0"><table><tr>'
    wide_table += '<th style="min-width:500px">Long</th></tr></table></div></details>'
    broken = {
        "the first stop of the Tab key does not skip to the content": ('class="skip"', 'class="other"'),
        "one does not see that the focus is on": (":focus-visible { outline: 2px solid", ":focus-visible { outline: 0"),
        "the list of pages does not mark this one": ('<div class="frame">', nav + '<div class="frame">'),
        "at 375 px: wider than the window": ("<main", '<div style="width:500px">x</div><main'),
        "at 375 px: the table of Long hides": ("</main", wide_table + "</main"),
        "at 375 px: figure 1 is cut": ("<main", "<style>.muse-figure > div { width: 600px }</style><main"),
        "shows nothing for": ("<body>", "<body><script>for(const t=Date.now();Date.now()<t+1500;);</script>"),
    }
    if check._axe_source():
        broken["axe: image-alt"] = ("<main", '<img src="data:,"><main')
        broken["axe, dark: color-contrast"] = ("--dim: #9aa3af", "--dim: #333")
        broken["axe, phone: target-size"] = ("<main", '<a href="#content">a</a><a href="#content">b</a><main')
    pages = [changed(page, f"{i}.html", change) for i, change in enumerate(broken.values())]
    found = check.check_in_browser(pages, check.find_browser())
    for i, words in enumerate(broken):
        assert [problem for problem in found if problem.startswith(f"{i}.html: {words}")], (words, found)


def test_a_stage_with_nothing_reduced_says_that_its_run_is():
    found = reductions_of({"d_model": 64})
    for language in ("en", "ja"):
        assert report.scale_notice([stage()], language) == ""
        assert "64" in report.scale_notice([stage()], language, found)
