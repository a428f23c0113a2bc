"""Executed notebooks to HTML pages that need no network: own nbconvert template, offline maths, packed plotly."""

from __future__ import annotations

import base64
import gzip
import html
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert as latex_to_mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from muse.host.files import write_atomic
from muse.records.scale import in_words, reductions_of
from muse.records.schema import Reduction

from .figures.style import PLOTLY_MIME, figure_html
from .texts import texts

TEMPLATES = resources.files(__package__).joinpath("templates")
SCRIPT_PLACE = '<script data-muse="figures"></script>'
NOTEBOOK_ONLY = "notebook-only"
"""Cells with this tag help the reader of the notebook and are left out of the page."""


def math(latex: str, display: str) -> str:
    """Return MathML for a formula without its dollars; where that fails, the LaTeX itself as code."""
    try:
        made = latex_to_mathml(html.unescape(latex).strip(), display=display)
    except Exception:  # the converter raises many types for LaTeX that it does not know
        return f"<code>{html.escape(latex)}</code>"
    if re.search(r">\\[A-Za-z]", made):
        return f"<code>{html.escape(latex)}</code>"
    return made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


class _Renderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML."""

    def block_math(self, body: str) -> str:
        return math(body, "block")

    def inline_math(self, body: str) -> str:
        return math(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return math(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def template_text(name: str) -> str:
    return TEMPLATES.joinpath("muse", name).read_text(encoding="utf-8")


@cache
def figures_script() -> str:
    """Return the script that unpacks plotly in the browser and draws the page's figures (about 1.9 MB)."""
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode("ascii")
    return f'window.musePlotly="{packed}";\n{template_text("figures.js")}'


def write_assets(folder: Path) -> None:
    """Write what stage pages share, `figures.js`, into `folder`."""
    write_atomic(Path(folder) / "figures.js", figures_script())


def assets_folder(page: Path) -> str:
    """Return the folder of what a run's pages share, as seen from one of them: index.html lies beside it."""
    return "assets" if page.name == "index.html" else "../assets"


def _failure(notebook: NotebookNode) -> str | None:
    """Mark the cell that failed and return its error in a line."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                cell.metadata["muse_failed"] = True
                return f"{output.ename}: {output.evalue}"
    return None


def _prepare(notebook: NotebookNode) -> int:
    """Leave out cells that are not for the page, give every figure its HTML, and return how many there are."""
    left_out = {NOTEBOOK_ONLY, "papermill-error-cell-tag"}
    notebook.cells = [cell for cell in notebook.cells if not left_out & set(cell.metadata.get("tags", []))]
    count = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            plain = output.get("data", {}).get(PLOTLY_MIME)
            if plain is None:
                continue
            count += 1
            if "muse-figure" not in output.data.get("text/html", ""):
                output.data["text/html"] = figure_html(plain, "", output.data.get("text/plain", ""))
    return count


def _own_scale(notebook: NotebookNode, language: str) -> str:
    """Return the scale label that follows from the parameters papermill gave to this notebook."""
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    return scale_label(reductions_of(given), language)


def scale_label(reductions: Sequence[Reduction], language: str) -> str:
    """Return the sentence that marks numbers of a reduced profile, with what is smaller; an empty text for none."""
    words = texts(language)
    if not reductions:
        return ""
    return words["scale.reduced"] + words["scale.where"].format(note=in_words(reductions, words))


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
    words = texts(language)
    node = nbformat.read(notebook, as_version=4)
    failure, num_figures = _failure(node), _prepare(node)
    exporter = HTMLExporter(
        template_name="muse",
        extra_template_basedirs=[str(TEMPLATES)],
        filters={"markdown2html": _markdown},
    )
    about = {
        "title": title,
        "links": links,
        "here": Path(page).name,
        "language": language,
        "words": words,
        "num_figures": num_figures,
        "css": "/*css*/",
        "notice": _own_scale(node, language) if notice is None else notice,
        "error": error or failure,
        "failed_cell": failure is not None,
    }
    body, _ = exporter.from_notebook_node(node, {"muse": about})
    soup = BeautifulSoup(body, "html.parser")
    _add_title_and_contents(soup, title)
    text = str(soup).replace("/*css*/", _css(str(soup)), 1)
    write_atomic(Path(page), text.replace(SCRIPT_PLACE, _script(num_figures, Path(page), inline_assets), 1))


def _script(num_figures: int, page: Path, inline: bool) -> str:
    if num_figures == 0:
        return ""
    shared = f'<script src="{assets_folder(page)}/figures.js"></script>'
    return f"<script>{figures_script()}</script>" if inline else shared


def _css(body: str) -> str:
    """Return the page's style sheet, with the syntax colours that occur in it, for light and dark."""
    used = set(re.findall(r'<span class="([a-z0-9]{1,3})">', body))

    def rules(style: str) -> str:
        lines = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        kept = [line for line in lines if (found := re.match(r"\.highlight \.(\w+) \{", line)) and found[1] in used]
        return "\n".join(re.sub(r" /\*.*\*/", "", line) for line in kept)

    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{rules('github-dark')}\n}}"
    return "\n".join([template_text("parts.css"), template_text("page.css"), rules("default"), dark])


def _slug(text: str, taken: set[str]) -> str:
    slug = base = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
    count = 1
    while slug in taken:
        count += 1
        slug = f"{base}-{count}"
    taken.add(slug)
    return slug


def _add_title_and_contents(soup: BeautifulSoup, title: str) -> None:
    """Put the title first where the notebook has none, give headings ids, and build the table of contents."""
    main = soup.find("main")
    for style in main.select("style.muse-lab"):
        style.decompose()
    for folded in main.select("section.cell > details.code:first-child"):
        folded.parent.append(folded)  # results first, then the code that made them
    heading = main.find("h1")
    if heading is None:
        heading = soup.new_tag("h1")
        heading.string = title
    elif (before := heading.find_parent("section")) is not None:
        for section in reversed(before.find_previous_siblings("section")):
            main.append(section)  # parameters that stand before the title
    main.insert(0, heading)
    if (question := heading.get_text().strip()) != title:
        soup.title.string = f"{question} – {title}"
    taken = {tag["id"] for tag in soup.find_all(id=True) if tag.name not in ("h1", "h2", "h3")}
    for heading in main.find_all(["h1", "h2", "h3"]):
        heading["id"] = _slug(heading.get_text(), taken)
    headings = main.find_all(["h2", "h3"])
    contents = soup.select_one("details.toc nav")
    if not headings:
        soup.select_one("details.toc").decompose()
        return
    contents.append(_list_of(soup, headings))


def _list_of(soup: BeautifulSoup, headings: list[Tag]) -> Tag:
    top = soup.new_tag("ul")
    inner = None
    for heading in headings:
        item, link = soup.new_tag("li"), soup.new_tag("a", href=f"#{heading['id']}")
        link.string = heading.get_text().strip()
        item.append(link)
        if heading.name == "h3" and top.contents:
            if inner is None:
                inner = soup.new_tag("ul")
                top.contents[-1].append(inner)
            inner.append(item)
        else:
            inner = None
            top.append(item)
    return top
