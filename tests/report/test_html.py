"""What records say is shown as it is and never becomes HTML, whatever it says."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import jinja2
import pytest
from builders import code, criterion, export_cells, run_info, run_notebook, soup, stage
from companion_builders import make_report as companion_report
from companion_builders import metric as of_companion
from companion_builders import perplexities
from nbformat.v4 import new_output

from muse.records.schema import Excerpt, InputFile, Judged, Metric, Report, Series, Summary
from muse.records.store import write_record
from muse.report import page, plain
from muse.report.figures.style import figure_html
from muse.report.html import css_string, render
from muse.report.texts import LANGUAGES


def hostile(field):
    return f"""<script>alert("{field}")</script>"onload='x'<b id={field}>{{{{7*7}}}}{{% raw %}}&lt;"""


def check_harmless(text):
    """Nothing of a hostile text has become an element or an attribute."""
    found = soup(text)
    scripts = [script.get_text() for script in found.select("script:not([type='application/json'])")]
    attributes = {name for tag in found.find_all(True) for name in tag.attrs}
    assert not [script for script in scripts if "alert(" in script]
    assert "onload" not in {name.lower() for name in attributes}
    assert not found.select("b[id]")


def write_hostile_run(folder):
    """A run of which every text is hostile; return those that its report shows."""
    shown = {}

    def text(field):
        shown[field] = hostile(field)
        return shown[field]

    info = run_info(
        id=text("id"), profile=text("profile"), git_commit=text("commit"), command=text("command"), git_dirty=True,
        versions={text("package"): text("version")}, hardware={text("part"): text("machine")},
        params={"stages": ["perplexity", "memory"], text("setting"): text("value")},
    )  # fmt: skip
    found = [Metric(name=text("metric"), model=text("model"), value=1, unit=text("unit"), note=text("note"))]
    found.append(Metric(name="perplexity", model=text("measured model"), value=2.5, unit="1"))
    quoted = Excerpt(name=text("excerpt"), model=text("writer"), text=text("written"))
    files = [InputFile(path=text("file"), sha256=text("digest"), num_bytes=1)]
    curve = Series(name="training_loss", model=hostile("curve"), x_name="x", y_name="y", x=[1], y=[1])
    measured = stage(metrics=found, excerpts=[quoted], inputs=files, series=[curve])
    beside = companion_report(
        [*perplexities(), of_companion("perplexity", text("its model"), None, reason=text("its reason"))],
        run={"git_commit": text("its commit"), "command": text("its command"), "hardware": {"gpu": text("its gpu")}},
    )  # fmt: skip
    shown["companion"] = hostile("companion").replace("/", "")  # the name of a file
    write_record(info, folder / "run.json")
    write_record(measured, folder / "records" / "perplexity.json")
    write_record(stage("memory", status="failed", error=text("error")), folder / "records" / "memory.json")
    write_record(beside, folder / "companions" / f"{shown['companion']}.json")
    return shown


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "</style>", "url(x)", "量 (GiB)", "a; b: c"])
def test_a_string_of_a_style_ends_where_it_should(text):
    quoted = css_string(text)
    assert quoted[0] == quoted[-1] == '"'
    inside = quoted[1:-1]
    assert not set(inside) & set('"<>;\n')
    assert re.sub(r"\\([0-9a-f]+) ", lambda code: chr(int(code[1], 16)), inside) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_of_a_record_becomes_html_and_every_one_is_shown_as_it_is(tmp_path, monkeypatch, language):
    shown = write_hostile_run(tmp_path)
    text = run_notebook(tmp_path, language, monkeypatch).read_text()
    check_harmless(text)
    main = soup(text).main
    told = main.get_text()
    said_otherwise = set() if language == "en" else {"its reason"}  # by the metric's name
    assert {field for field, words in shown.items() if words not in told} == said_otherwise
    (data,) = [script.get_text() for script in main.select("script") if "curve" in script.get_text()]
    assert json.loads(data)["data"][0]["name"].startswith(hostile("curve"))


def test_names_of_stages_targets_and_reasons_are_shown_as_they_are():
    judged = [criterion("vram", target=hostile("target"), reason=hostile("reason"))]
    asked = [Judged(model=hostile("candidate"), criteria=judged, summary=Summary())] * 2
    report = Report.of(run_info(), asked, [stage(hostile("stage"), status="failed", error=hostile("error"))])
    figure = {"layout": {"title": hostile("title"), "height": 'x"onload="'}}
    for text, fields in (
        (page.verdicts(report), ("candidate", "target", "reason")),
        (page.lead(report), ("candidate",)),
        (page.stage_table(report), ("stage", "error")),
        (page.numbers_table(report.stages[0]), ("error",)),
        (plain.page(hostile("title"), "en", [tuple(map(hostile, ("name", "outcome", "page", "log")))],
                    hostile("lead"), judged), ("title", "name", "outcome", "lead", "reason")),
        (figure_html(figure, hostile("caption"), hostile("alt")), ("title", "caption", "alt")),
    ):  # fmt: skip
        check_harmless(text)
        assert not [field for field in fields if hostile(field) not in soup(text).get_text()]


def test_a_page_around_a_notebook_shows_its_title_links_and_error_as_they_are(tmp_path):
    raised = new_output("error", ename=hostile("ename"), evalue=hostile("evalue"), traceback=[hostile("traceback")])
    out = new_output("stream", name="stdout", text=hostile("out"))
    text = export_cells(
        tmp_path, code("x", out, raised), title=hostile("title"), links=[(hostile("label"), hostile("href"))],
        notice=hostile("notice"), error=hostile("error"),
    ).read_text()  # fmt: skip
    check_harmless(text)
    fields = ("title", "label", "notice", "error", "out", "ename", "evalue", "traceback")
    assert not [field for field in fields if hostile(field) not in soup(text).get_text()]
    assert soup(text).select_one("header a")["href"] == hostile("href")


def test_a_template_that_lacks_a_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="text"):
        render("heading", level=2)


TAGS = re.compile(r"</?(a|code|d[dlt]|details|div|figure|h[1-6]|html|li|p|pre|script|span|style|t[dhr]|ul)\b")


def test_html_stands_in_templates_only():
    """Python puts no values into tags; the `<b>` and `<extra>` in labels of figures are plotly's own."""
    for path in Path(page.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
                assert not TAGS.findall(text), f"{path}:{node.lineno}"
