"""Look at the pages of a run the way a reader would: `muse check-pages reports/quick`.

First the files themselves, then, where a Chromium is installed, the drawn pages, with every remote request refused.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

from muse.catalog import STAGE_NAMES
from muse.records.criteria import CRITERIA
from muse.records.store import RecordError

from .assemble import stage_record
from .frame import INDEX, TEXT_PAGE
from .run_list import is_run_list

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
BROWSER_FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync")  # fmt: skip
SOURCES = dict.fromkeys(("script", "img", "iframe", "source", "video"), "src") | {"link": "href", "object": "data"}
"""The attribute of an element that names what a browser fetches for it."""

DRAWS, KEEPS = "window.musePlotly=", "showSendToCloud: false"
"""What the script has that draws figures, and what it says so that plotly offers no upload of them."""

PAPER = 718
"""Width of A4 in CSS pixels between the narrowest usual margins, 10 mm."""

FAR_BUTTONS = """buttons => buttons.map(button => button.dataset.title || button.ariaLabel || "")
  .filter(name => /cloud|share|studio|upload/i.test(name))"""
"""Names of the buttons that would send a figure elsewhere."""

CUT = """paper => [...document.querySelectorAll(".muse-figure")].map(box => {
  const left = box.getBoundingClientRect().left;
  const frame = box.querySelector(".svg-container")?.getBoundingClientRect();
  return Math.max(0, ...[...box.querySelectorAll(".main-svg, .main-svg text")].map(part => {
    const { left: start, right: end, width } = part.getBoundingClientRect();
    return width && Math.max(left - start, end - left - paper, end - frame.right);
  }));
})"""
"""By how many pixels each figure reaches over the paper, or its text over the figure's own edges."""


def check_page(page: Path) -> list[str]:
    """Return what is wrong with one exported page, each problem as one line; nothing when it is fine."""
    page = Path(page)
    text = page.read_text(encoding="utf-8")
    soup = BeautifulSoup(text, "html.parser")
    problems = [f"remote reference {url}" for url in _remote(soup)]
    problems += [f"broken link {href}" for href in _broken_links(soup, page)]
    problems += _figure_problems(soup, page)
    if soup.find(["h2", "h3"]) and not soup.select("details.toc nav a"):
        problems.append("no table of contents")
    problems += ["code that is not folded" for block in soup.select("div.highlight") if _unfolded(block)]
    problems += [f"error output: {block.b.get_text() if block.b else ''}" for block in soup.select(".failure.raised")]
    if page.name == "index.html" and not is_run_list(page):
        problems += [f"no verdict on {name}" for name in CRITERIA if name not in _verdicts(soup)]
    return [f"{page.name}: {problem}" for problem in problems]


def _verdicts(soup: BeautifulSoup) -> set[str]:
    return {card["data-criterion"] for card in soup.select(".muse-card[data-criterion]") if card.select(".muse-badge")}


def _unfolded(block) -> bool:
    folded = block.find_parent("details")
    return block.find_parent(class_="cell") is not None and (folded is None or folded.has_attr("open"))


def _remote(soup: BeautifulSoup) -> list[str]:
    found = [tag.get(SOURCES[tag.name], "") for tag in soup.find_all(list(SOURCES))]
    styles = [tag.get_text() for tag in soup.find_all("style")] + [tag["style"] for tag in soup.select("[style]")]
    for start, end in (("url(", ")"), ("@import", ";")):
        found += [part.split(end)[0].strip("'\" ") for part in " ".join(styles).split(start)[1:]]
    return [url for url in found if urlsplit(url).scheme in ("http", "https", "ws", "wss") or url.startswith("//")]


def _broken_links(soup: BeautifulSoup, page: Path) -> list[str]:
    ids, broken = {tag["id"] for tag in soup.find_all(id=True)}, []
    links = [tag["href"] for tag in soup.select("a[href]")] + [tag["src"] for tag in soup.select("script[src]")]
    for link in links:
        url = urlsplit(link)
        if url.scheme or url.netloc:
            continue
        lost_place = not url.path and url.fragment and unquote(url.fragment) not in ids
        if lost_place or not (page.parent / unquote(url.path)).exists():
            broken.append(link)
    return broken


def _figure_problems(soup: BeautifulSoup, page: Path) -> list[str]:
    about = soup.find("meta", {"name": "muse-figures"})
    if about is None:
        return ["not a page made by muse (no muse-figures)"]
    figures, wanted = soup.select("figure .muse-figure"), int(about["content"])
    problems = [] if len(figures) == wanted else [f"{len(figures)} figures where the notebook had {wanted}"]
    scripts = [script for script in _scripts(soup, page) if DRAWS in script]
    if figures and not scripts:
        problems.append("figures without the script that draws them")
    problems += ["figures with a button that uploads them"] * any(KEEPS not in script for script in scripts)
    unnamed = [figure for figure in soup.select("figure:has(.muse-figure)") if not figure.get("aria-label")]
    return problems + ["figure without a text alternative"] * len(unnamed)


def _scripts(soup: BeautifulSoup, page: Path) -> list[str]:
    """The scripts of a page: its own, and those of files beside it."""
    files = [page.parent / unquote(tag["src"]) for tag in soup.select("script[src]")]
    own = [tag.get_text() for tag in soup.select("script:not([src])")]
    return own + [file.read_text(encoding="utf-8") for file in files if file.is_file()]


def find_browser() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def check_in_browser(pages: Sequence[Path], browser: str) -> list[str]:
    """Open pages without network and return what goes wrong.

    That is: figures that are not drawn, offer an upload or are cut on paper, requests, errors on the console.
    """
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=browser, headless=True, args=list(BROWSER_FLAGS),
            viewport={"width": 1280, "height": 900},
        )  # fmt: skip
        with contextlib.closing(context):
            for page in pages:
                problems += [f"{page.name}: {problem}" for problem in _look_at(context, page)]
    return problems


def _look_at(context, page: Path) -> list[str]:
    tab, problems = context.new_page(), []

    def answer(route) -> None:
        if urlsplit(route.request.url).scheme in ("file", "data", "blob"):
            route.continue_()
        else:
            problems.append(f"asked the network for {route.request.url}")
            route.abort()

    tab.route("**/*", answer)
    tab.on("console", lambda message: problems.append(f"console: {message.text}") if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(f"script error: {error}"))
    tab.goto(page.resolve().as_uri())
    boxes = tab.locator(".muse-figure")
    if boxes.count():
        try:
            tab.wait_for_function("document.documentElement.dataset.figures === 'done'", timeout=30_000)
        except Exception as error:  # playwright's own TimeoutError
            problems.append(f"figures were not drawn: {str(error).splitlines()[0]}")
    for place, box in enumerate(boxes.all(), 1):
        if box.locator(".main-svg").count() == 0:
            problems.append(f"figure {place} was not drawn: {box.get_attribute('data-error') or 'no plot'}")
    sending = tab.eval_on_selector_all(".modebar-btn", FAR_BUTTONS)
    problems += [f"a button that sends a figure elsewhere: {name}" for name in dict.fromkeys(sending)]
    too_wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if too_wide > 1:
        problems.append(f"wider than the window by {too_wide} px")
    problems += _on_paper(tab)
    tab.close()
    return problems


def _on_paper(tab) -> list[str]:
    """Turn a drawn page to paper and return the figures that do not fit."""
    tab.emulate_media(media="print")
    with contextlib.suppress(Exception):  # playwright's own TimeoutError: what does not fit is named below
        tab.wait_for_function(f"Math.max(0, ...({CUT})({PAPER})) < 1", timeout=5_000)
    over = tab.evaluate(CUT, PAPER)
    return [f"figure {place} is cut on paper by {round(px)} px" for place, px in enumerate(over, 1) if px >= 1]


def check_run(folder: Path) -> list[str]:
    """Return what is wrong with the pages of a run folder, read as files."""
    folder = Path(folder)
    pages = pages_of(folder)
    if not (folder / "index.html").exists():
        return [f"{folder}: no index.html"]
    problems = [problem for page in pages for problem in check_page(page)]
    if _is_reduced(folder):
        unmarked = [page for page in pages if "muse-scale" not in _main_of(page)]
        problems += [f"{page.name}: the run is reduced, the page does not say so" for page in unmarked]
    return problems


def pages_of(folder: Path) -> list[Path]:
    """Return the pages of a run folder, the index first."""
    pages = (folder / INDEX, folder / TEXT_PAGE, *sorted((folder / "pages").glob("*.html")))
    return [page for page in pages if page.exists()]


def _main_of(page: Path) -> str:
    return str(BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find("main") or "")


def _is_reduced(folder: Path) -> bool:
    for stage in STAGE_NAMES:
        with contextlib.suppress(RecordError):
            if stage_record(folder, stage).scale == "reduced":
                return True
    return False


def check_folders(folders: Sequence[Path]) -> int:
    """Check the folders of runs; print every problem and return 1 when there is one."""
    browser, bad = find_browser(), False
    for folder in folders:
        problems, pages = check_run(folder), pages_of(folder)
        if browser and pages:
            problems += check_in_browser(pages, browser)
        for problem in problems:
            print(f"{folder}: {problem}")
        how = "files and drawn pages" if browser else f"files only: no browser found (looked for {', '.join(BROWSERS)})"
        print(f"{folder}: {len(problems)} problems on {len(pages)} pages ({how})")
        bad = bad or bool(problems)
    return 1 if bad else 0
