"""The frame around the `main` of a page: style sheet, links to other pages, table of contents, script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from markupsafe import Markup
from pygments.formatters import HtmlFormatter

from muse.host.files import write_atomic
from muse.records.scale import in_words
from muse.records.schema import Reduction

from .html import asset, render
from .texts import texts
from .typography import typeset, typeset_text

INDEX, TEXT_PAGE = "index.html", "text.html"
"""Pages of a run: its report, and losses by document and token."""


def page_text(
    soup: BeautifulSoup,
    title: str,
    *,
    links: Sequence[tuple[str, str]],
    language: str,
    here: str,
    num_figures: int = 0,
    script: str = "",
    assets: str = "",
    css: str = "",
) -> str:
    """Return a whole page around the `main` of the soup, whose headings get ids; `links` are (label, href).

    `css` are rules beside those of all pages.
    """
    typeset(soup, language)
    contents = _contents(soup.main)
    main = Markup(soup)
    return render(
        "page", language, title=typeset_text(title, language), links=links, here=here, num_figures=num_figures,
        css=_css(main) + css, contents=contents, main=main, script=script, assets=assets,
    )  # fmt: skip


def write_page(
    path: Path, main: str, title: str, *, links: Sequence[tuple[str, str]] = (), language: str, css: str = ""
) -> None:
    """Write a page without figures, whole or not at all."""
    soup = BeautifulSoup(main, "html.parser")
    write_atomic(Path(path), page_text(soup, title, links=links, language=language, here=Path(path).name, css=css))


def _css(body: str) -> Markup:
    """Return the page's style sheet, with the syntax colours that occur in it, for light and dark."""
    used = set(re.findall(r'<span class="([a-z0-9]{1,3})">', body))

    def rules(style: str) -> str:
        lines = HtmlFormatter(style=style).get_style_defs(".highlight").splitlines()
        kept = [line for line in lines if (found := re.match(r"\.highlight \.(\w+) \{", line)) and found[1] in used]
        return "\n".join(re.sub(r" /\*.*\*/", "", line) for line in kept)

    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{rules('github-dark')}\n}}"
    return Markup("\n").join([asset("parts.css"), asset("page.css"), Markup(rules("default")), Markup(dark)])


def _contents(main: Tag) -> list[tuple[tuple[str, str], list[tuple[str, str]]]]:
    """Give every heading an id of its own and return the table of contents: those of level 2 with those below them."""
    headings, found = main.find_all(["h1", "h2", "h3"]), []
    taken = {main["id"], *(tag["id"] for tag in main.find_all(id=True) if tag not in headings)}
    for heading in headings:
        text = heading.get_text().strip()
        heading["id"] = slug(text, taken)
        if heading.name == "h3" and found:
            found[-1][1].append((heading["id"], text))
        elif heading.name != "h1":
            found.append(((heading["id"], text), []))
    return found


def scale_label(reductions: Sequence[Reduction], language: str) -> str:
    """Return the sentence that marks numbers of a reduced profile, with what is smaller; an empty text for none."""
    words = texts(language)
    if not reductions:
        return ""
    return words["scale.reduced"] + words["scale.where"].format(note=in_words(reductions, words))


def slug(text: str, taken: set[str]) -> str:
    """Return an id made of a text, other than those that are taken, and take it."""
    found = base = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
    count = 1
    while found in taken:
        count += 1
        found = f"{base}-{count}"
    taken.add(found)
    return found
