"""Executed notebooks to HTML pages that need no network: own template, offline maths, packed plotly."""

from __future__ import annotations

import base64
import gzip
import html
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pygments
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert as latex_to_mathml
from markupsafe import Markup
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from muse.host.files import write_atomic
from muse.host.quick_imports import without_grammars
from muse.records.scale import reductions_of

from .figures.style import LAB_ONLY, PLOTLY_MIME, figure_html
from .frame import page_text, scale_label, slug
from .html import asset, render

with without_grammars():
    import nbformat
    from nbconvert.filters.ansi import ansi2html
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from nbformat import NotebookNode

NOTEBOOK_ONLY = "notebook-only"
"""Cells with this tag help the reader of the notebook and are left out of the page."""


SIZES = re.compile(r"\\[bB]igg?[lmr]?(?![A-Za-z])")
"""Sizes of brackets in LaTeX, which the converter does not know and browsers find themselves."""


def math(latex: str, display: str) -> str:
    """Return MathML for a formula without its dollars; where that fails, the LaTeX itself as code."""
    code = render("code", text=latex)
    plain = SIZES.sub("", html.unescape(latex).strip())
    try:
        made = latex_to_mathml(plain, display=display)
    except Exception:  # the converter raises many types for LaTeX that it does not know
        return code
    return code if re.search(r">\\[A-Za-z]", made) else made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML."""

    def block_math(self, body: str) -> str:
        return math(body, "block")

    def inline_math(self, body: str) -> str:
        return math(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return math(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def _markdown(source: str) -> Markup:
    return Markup(MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source))


def _highlight(source: str) -> Markup:
    return Markup(pygments.highlight(source, PythonLexer(), HtmlFormatter()))


def _ansi(text: str) -> Markup:
    return Markup(ansi2html(text))


@cache
def figures_script() -> Markup:
    """Return the script that unpacks plotly in the browser and draws the page's figures (about 1.8 MB).

    Base85 takes a sixteenth less than base64, and has no letter that ends a string or a script.
    """
    from plotly.offline import get_plotlyjs

    packed = base64.b85encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode("ascii")
    return Markup(f'window.musePlotly="{packed}";\n') + asset("figures.js")


def write_assets(folder: Path) -> None:
    """Write what stage pages share, `figures.js`, into `folder`."""
    write_atomic(Path(folder) / "figures.js", figures_script())


def assets_folder(page: Path) -> str:
    """Return the folder of what a run's pages share, as seen from one of them: index.html lies beside it."""
    return "assets" if page.name == "index.html" else "../assets"


def export_html(
    notebook: Path,
    page: Path,
    *,
    title: str,
    links: list[tuple[str, str]],
    language: str,
    inline_assets: bool,
    notice: str | None = None,
    error: str | None = None,
) -> None:
    """Export an executed notebook as one page.

    `links` are (label, href) of the run's pages, seen from this page; `inline_assets` puts the figure script into the
    page, else it is loaded from the `assets_folder`; `notice` is the scale label (None: from the notebook's own
    parameters); `error` tells how the stage failed where the notebook itself cannot know, such as a time limit.
    """
    node = nbformat.read(notebook, as_version=4)
    num_figures, (failed_cell, failure) = _prepare(node), _failure(node)
    if notice is None:
        notice = scale_label(reductions_of(node.metadata.get("papermill", {}).get("parameters", {})), language)
    shown = render(
        "main", language, cells=node.cells, notice=notice, error=error or failure, failed_cell=failed_cell,
        markdown=_markdown, highlight=_highlight, ansi=_ansi, num_figures=num_figures,
    )  # fmt: skip
    soup = BeautifulSoup(shown, "html.parser")
    question = _put_results_first(soup, title)
    number_figures(soup.main, language)
    for table in soup.select(".prose table"):
        table["tabindex"] = "0"  # it scrolls where the page is narrow, by keys too
    framed = page_text(
        soup, title if question == title else f"{question} – {title}", links=links, language=language,
        here=_own_href(Path(page), links), num_figures=num_figures,
        script=figures_script() if inline_assets and num_figures else "", assets=assets_folder(Path(page)),
    )  # fmt: skip
    write_atomic(Path(page), framed)


def _own_href(page: Path, links: Sequence[tuple[str, str]]) -> str:
    """Return how the list of pages names this one."""
    names = {href.rpartition("/")[2]: href for _, href in links}
    return names.get(Path(page).name, "")


def number_figures(main: Tag, language: str) -> None:
    """Give every figure of a page its number, an id that can be linked, and a place for its data and its picture."""
    taken = {tag["id"] for tag in main.find_all(id=True)}
    for number, figure in enumerate(main.select("figure:has(.muse-figure)"), 1):
        figure["id"] = slug(f"fig-{figure.get('data-name', 'figure')}".replace("_", "-"), taken)
        title = figure.select_one(".muse-title")
        if title is None:  # of a notebook that was executed when figures had no numbers
            title = BeautifulSoup('<p class="muse-title"></p>', "html.parser").p
            figure.figcaption.insert(0, title)
        added = BeautifulSoup(render("figure_number", language, id=figure["id"], number=number), "html.parser")
        link, files = added.a, added.span
        title["id"] = f"{figure['id']}-title"
        figure["aria-labelledby"] = title["id"]
        title.insert(0, link)
        link.insert_after(" ")
        title.append(files)


def _failure(notebook: NotebookNode) -> tuple[NotebookNode, str] | tuple[None, None]:
    """Return the cell that failed and its error in a line."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return cell, f"{output.ename}: {output.evalue}"
    return None, None


def _prepare(notebook: NotebookNode) -> int:
    """Leave out cells that are not for the page, give every figure its HTML, and return how many there are."""
    left_out = {NOTEBOOK_ONLY, "papermill-error-cell-tag"}
    notebook.cells = [cell for cell in notebook.cells if not left_out & set(cell.metadata.get("tags", []))]
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if LAB_ONLY not in output.get("metadata", {})]
    count = 0
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        plain = output.get("data", {}).get(PLOTLY_MIME)
        if plain is not None:
            count += 1
            if "muse-figure" not in output.data.get("text/html", ""):
                output.data["text/html"] = figure_html(plain, "", output.data.get("text/plain", ""))
    return count


def _put_results_first(soup: BeautifulSoup, title: str) -> str:
    """Put the title first, the page's where the notebook has none, and code behind its results; return the title."""
    main = soup.main
    for style in main.select("style.muse-lab"):
        style.decompose()
    for folded in main.select("section.cell > details.code:first-child"):
        folded.parent.append(folded)
    heading = main.h1
    if heading is None:
        heading = soup.new_tag("h1", string=title)
    elif (before := heading.find_parent("section")) is not None:
        for section in reversed(before.find_previous_siblings("section")):
            main.append(section)  # parameters that stand before the title
    main.insert(0, heading)
    return heading.get_text().strip()
