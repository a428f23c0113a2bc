"""A still picture of every figure of a run's pages, as SVG, drawn by the pages' own script in a headless Chromium."""

from __future__ import annotations

import html
import re
from importlib.util import find_spec
from pathlib import Path

from muse.host.files import write_atomic

from .browser import find_browser, open_page, window
from .html import render

FOLDER = "stills"
"""Where, in the folder of a run, the pictures lie."""

STILLS = re.compile(r'<p class="muse-stills" data-svg="([^"]*)" data-with="([^"]*)">([^<]*)</p>')
"""The line of a page that says whether there are pictures, and what it says and calls a link where there are."""

ALT, FILES = r'class="muse-alt">([^<]*)</p>', r'class="muse-files"[^>]*>'
"""Where a figure has its words, and where its files are linked."""

DRAW = """async box => {
  const plot = box.querySelector(".js-plotly-plot");
  if (!plot) return "";
  const image = await Plotly.toImage(plot, { format: "svg", width: 680, height: plot._fullLayout.height });
  return decodeURIComponent(image.replace(/^data:image.svg.xml,/, ""));
}"""
"""A figure as it is drawn for paper: light and as wide as a sheet."""


def draw_stills(folder: Path, pages: list[Path]) -> int:
    """Draw the figures of these pages into `stills/` of the run's folder and let the pages show and link them.

    Returns how many there are: none where no Chromium or no playwright is installed, and then pages stay as they are,
    which say so.
    """
    pages = [page for page in pages if page.exists() and STILLS.search(page.read_text(encoding="utf-8"))]
    browser = find_browser()
    if browser is None or find_spec("playwright") is None or not pages:
        return 0
    count = 0
    with window(browser) as context:
        for page in pages:
            count += _draw_page(context, folder, page)
    return count


def _draw_page(context, folder: Path, page: Path) -> int:
    text = page.read_text(encoding="utf-8")
    found = STILLS.search(text)
    tab = open_page(context, page)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")  # light, and in the layout of a sheet
    pictures = {}
    for box in tab.locator("figure[id]:has(.muse-figure)").all():
        name = f"{page.stem}-{box.get_attribute('id')}.svg"
        if picture := box.locator(".muse-figure").evaluate(DRAW):
            write_atomic(folder / FOLDER / name, _lean(picture))
            pictures[box.get_attribute("id")] = name
    tab.close()
    up = "" if page.parent == folder else "../"
    for id, name in pictures.items():
        text = _shown(text, id, f"{up}{FOLDER}/{name}", found[1])
    said = found[0].replace(found[3], found[2])
    write_atomic(page, text.replace(found[0], said))
    return len(pictures)


def _shown(text: str, id: str, href: str, link: str) -> str:
    """The page with the picture in place of the words where there is no script, and a link to it beside the data."""
    start = text.index(f'id="{id}"')
    end = text.index("</figure>", start)
    figure = text[start:end]
    alt, files = re.search(ALT, figure, re.S), re.search(FILES, figure)
    shown = str(render("still", href=href, alt=html.unescape(alt[1])))
    linked = str(render("still", href=href, alt="", link=html.unescape(link)))
    figure = figure[: alt.end()] + shown + figure[alt.end() : files.end()] + linked + figure[files.end() :]
    return text[:start] + figure + text[end:]


def _lean(picture: str) -> str:
    """The picture without what only a page needs: parts that answer the pointer, and ten digits of a pixel."""
    picture = re.sub(r'<rect class="(?:n|s|e|w|ns?[ew]*|drag)[^"]*drag"[^>]*/>', "", picture)
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", picture)
