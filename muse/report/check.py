"""Look at the pages of a run the way a reader would: `muse check-pages reports/quick`.

First the files themselves, then, where a Chromium is installed, the drawn pages, with every remote request refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

from muse.catalog import STAGE_NAMES
from muse.host.cores import usable_cores
from muse.host.exit_codes import CRITERION_FAILED, OK
from muse.records.criteria import CRITERIA
from muse.records.store import RecordError

from .assemble import stage_record
from .browser import BROWSERS, find_browser, open_page, window
from .frame import INDEX, TEXT_PAGE
from .run_list import is_run_list

SOURCES = dict.fromkeys(("script", "img", "iframe", "source", "video"), "src") | {"link": "href", "object": "data"}
"""The attribute of an element that names what a browser fetches for it."""

DRAWS, KEEPS = "window.musePlotly=", "showSendToCloud: false"
"""What the script has that draws figures, and what it says so that plotly offers no upload of them."""

PAPER = 718
"""Width of A4 in CSS pixels between the narrowest usual margins, 10 mm."""

WIDTHS = (375, 768, 1280)
"""Windows that a page is looked at in, in CSS pixels: a phone, a tablet, a desk."""

MOST_BROWSERS = 4
"""How many browsers look at pages side by side at most, where there are as many cores; each takes about 400 MB."""

OPENS_MS = 1000
"""Within which a page shows its first words; the best of three loads counts, for the machine may be busy."""

STEPS = 12
"""How many times the Tab key is pressed from the top of a page; each place must be seen to have the focus."""

FAR_BUTTONS = """buttons => buttons.map(button => button.dataset.title || button.ariaLabel || "")
  .filter(name => /cloud|share|studio|upload/i.test(name))"""
"""Names of the buttons that would send a figure elsewhere."""

CUT = """paper => [...document.querySelectorAll(".muse-figure")].map(box => {
  const { left, width: own } = box.getBoundingClientRect();
  const frame = box.querySelector(".svg-container")?.getBoundingClientRect(), limit = paper || own;
  return Math.max(0, ...[...box.querySelectorAll(".main-svg, .main-svg text")].map(part => {
    const { left: start, right: end, width } = part.getBoundingClientRect();
    return width && Math.max(left - start, end - left - limit, end - frame.right);
  }));
})"""
"""By how many pixels each figure reaches over the paper or its own box, or its text over the figure's own edges."""

OVERLAPS = """() => [...document.querySelectorAll(".muse-figure")].flatMap((box, place) => {
  const words = [...box.querySelectorAll(".annotation-text, .xtick text, .ytick text, .xtitle, .ytitle")]
    .map(part => [part.textContent, part.getBoundingClientRect()]).filter(([, { width }]) => width);
  return words.flatMap(([text, one], i) => words.slice(i + 1)
    .filter(([, two]) => Math.min(one.right, two.right) - Math.max(one.left, two.left) > 3
      && Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top) > 4)
    .map(([other]) => `figure ${place + 1}: ${text} lies on ${other}`));
})"""
"""Labels of a figure that lie on one another."""

HIDDEN = """() => [...document.querySelectorAll(".muse-rows, .muse-defined, .text-table")].map((box) => {
  const folds = [];
  for (let fold = box.closest("details:not([open])"); fold; fold = box.closest("details:not([open])")) {
    fold.open = true;
    folds.push(fold);
  }
  const hidden = box.scrollWidth - box.clientWidth;
  folds.forEach((fold) => { fold.open = false; });
  return [hidden, box.querySelector("th, td")?.textContent];
}).filter(([px]) => px > 1).map(([px, first]) => `the table of ${first} hides ${px} px of its columns`)"""
"""Tables, folded ones included, that show all of their columns only to who scrolls them sideways."""

FOCUS = """() => {
  const here = document.activeElement, { width, height } = here.getBoundingClientRect(), look = getComputedStyle(here);
  const shown = width > 0 && height > 0 && look.outlineStyle !== "none" && parseFloat(look.outlineWidth) > 0;
  return here === document.body ? null : { name: here.textContent.trim().slice(0, 40) || here.tagName, shown };
}"""
"""The element that has the focus, and whether one sees it."""

FIRST_WORDS = """() => new Promise(tell => {
  const found = () => performance.getEntriesByName("first-contentful-paint")[0];
  const ask = (left) => found() || !left ? tell(found()?.startTime ?? 0) : setTimeout(ask, 50, left - 1);
  ask(20);
})"""

AXE = """rules => axe.run(document, { resultTypes: ["violations"], ...(rules ? { runOnly: rules } : {}) })
  .then(({ violations }) => violations.map(({ id, help, nodes }) =>
    `${id}: ${help} (${nodes.length}, such as ${nodes[0].html.slice(0, 120)})`))"""
"""What axe finds; of all that it knows or of some rules."""

ON_A_PHONE = ("target-size", "scrollable-region-focusable")
"""Rules of axe whose answer depends on the width of the window."""


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
    if page.name == "index.html" and not is_run_list(page) and not soup.select("h1[data-question]"):
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
    unnamed = [figure for figure in figures if not figure.select_one(".muse-alt:not(:empty)")]
    return problems + ["figure without a text alternative"] * len(unnamed)


def _scripts(soup: BeautifulSoup, page: Path) -> list[str]:
    """The scripts of a page: its own, and those of files beside it."""
    files = [page.parent / unquote(tag["src"]) for tag in soup.select("script[src]")]
    own = [tag.get_text() for tag in soup.select("script:not([src])")]
    return own + [file.read_text(encoding="utf-8") for file in files if file.is_file()]


def check_in_browser(pages: Sequence[Path], browser: str) -> list[str]:
    """Open pages without network and return what is wrong: in windows of three widths, dark, on paper, by keyboard."""
    found = _look_at_all(pages, browser)
    return [f"{page.name}: {problem}" for page in pages for problem in found[page]]


def _look_at_all(pages: Sequence[Path], browser: str) -> dict[Path, list[str]]:
    """What is wrong with each page; as many browsers as there are cores take one after the other, large ones first."""
    found: dict[Path, list[str]] = {}
    waiting = sorted(set(pages), key=lambda page: (page.stat().st_size, page))

    def look() -> None:
        with window(browser) as context:
            while True:
                try:
                    page = waiting.pop()
                except IndexError:  # none is left
                    return
                found[page] = _look_at(context, page)

    count = min(usable_cores(), MOST_BROWSERS, len(waiting))
    with ThreadPoolExecutor(max(1, count)) as threads:
        for done in [threads.submit(look) for _ in range(count)]:
            done.result()
    return found


def _look_at(context, page: Path) -> list[str]:
    problems: list[str] = []
    tab = open_page(context, page, problems.append)
    for place, box in enumerate(tab.locator(".muse-figure").all(), 1):
        if box.locator(".main-svg").count() == 0:
            problems.append(f"figure {place} was not drawn: {box.get_attribute('data-error') or 'no plot'}")
    sending = tab.eval_on_selector_all(".modebar-btn", FAR_BUTTONS)
    problems += [f"a button that sends a figure elsewhere: {name}" for name in dict.fromkeys(sending)]
    problems += _by_keyboard(tab)
    if tab.locator("header.top a").count() and tab.locator("header.top a[aria-current=page]").count() != 1:
        problems.append("the list of pages does not mark this one")
    axe = _axe_source()
    if axe:
        tab.evaluate(axe)
        problems += [f"axe: {found}" for found in tab.evaluate(AXE)]
        tab.emulate_media(color_scheme="dark")
        problems += [f"axe, dark: {found}" for found in tab.evaluate(AXE, ["color-contrast"])]
        tab.emulate_media(color_scheme="light")
    for width in WIDTHS:
        problems += [f"at {width} px: {problem}" for problem in _at_width(tab, width)]
        if axe and width == min(WIDTHS):
            problems += [f"axe, phone: {found}" for found in tab.evaluate(AXE, list(ON_A_PHONE))]
    problems += _on_paper(tab)
    problems += _slow(tab)
    tab.close()
    return problems


def _axe_source() -> str:
    """The script of axe, which asks for what people need who do not see or point; empty where it is not installed."""
    with contextlib.suppress(ModuleNotFoundError):
        return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    return ""


def _by_keyboard(tab) -> list[str]:
    """Walk down from the top of a page by the Tab key; the first place is the link that skips to the content."""
    problems = []
    for step in range(STEPS):
        tab.keyboard.press("Tab")
        place = tab.evaluate(FOCUS)
        if place is None:
            break
        if not step and not tab.evaluate("document.activeElement.matches('.skip')"):
            problems.append("the first stop of the Tab key does not skip to the content")
        if not place["shown"]:
            problems.append(f"one does not see that the focus is on {place['name']}")
    tab.evaluate("document.activeElement.blur()")
    return problems


def _at_width(tab, width: int) -> list[str]:
    """Make the window so wide and return what does not fit it, and which labels lie on one another."""
    tab.set_viewport_size({"width": width, "height": 900})
    over = _settled(tab, None)
    problems = [f"figure {place} is cut by {round(px)} px" for place, px in enumerate(over, 1) if px >= 1]
    too_wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if too_wide > 1:
        problems.append(f"wider than the window by {too_wide} px")
    if width in (min(WIDTHS), max(WIDTHS)):  # between them a table may scroll, with a shadow at its edge
        problems += tab.evaluate(HIDDEN)
    return problems + tab.evaluate(OVERLAPS)


def _on_paper(tab) -> list[str]:
    """Turn a drawn page to paper and return the figures that do not fit."""
    tab.emulate_media(media="print")
    over = _settled(tab, PAPER)
    tab.emulate_media(media="screen")
    return [f"figure {place} is cut on paper by {round(px)} px" for place, px in enumerate(over, 1) if px >= 1]


def _settled(tab, limit: int | None) -> list[float]:
    """By how many pixels figures are cut, once they have been drawn anew."""
    with contextlib.suppress(Exception):  # playwright's own TimeoutError: what does not fit is named by the caller
        tab.wait_for_timeout(150)
        tab.wait_for_function(f"Math.max(0, ...({CUT})({limit or 'null'})) < 1", timeout=2_000)
    return tab.evaluate(CUT, limit)


def _slow(tab) -> list[str]:
    """Return how long a page takes to show its first words, where that is too long."""
    times = [tab.evaluate(FIRST_WORDS)]
    while min(times) > OPENS_MS and len(times) < 3:
        tab.reload()
        times.append(tab.evaluate(FIRST_WORDS))
    return [f"shows nothing for {min(times):.0f} ms"] if min(times) > OPENS_MS else []


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
    """Check the folders of runs; print every problem and return the exit code."""
    browser, bad = find_browser(), False
    drawn = _look_at_all([page for folder in folders for page in pages_of(folder)], browser) if browser else {}
    for folder in folders:
        problems, pages = check_run(folder), pages_of(folder)
        problems += [f"{page.name}: {problem}" for page in pages for problem in drawn.get(page, ())]
        for problem in problems:
            print(f"{folder}: {problem}")
        how = "files and drawn pages" if browser else f"files only: no browser found (looked for {', '.join(BROWSERS)})"
        print(f"{folder}: {len(problems)} problems on {len(pages)} pages ({how})")
        bad = bad or bool(problems)
    return CRITERION_FAILED if bad else OK
