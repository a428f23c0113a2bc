"""The pictures of docs/walk.md: `python tests/walk_pictures.py reports/quick reports/own` after the runs it tells of.

Two screenshots stand side by side in each, below what one types.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from pathlib import Path

from lab_server import Lab, served

from muse.report.browser import find_browser, open_page, window

CHECKOUT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 1000, 480
STRIP = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; background: #fff; font: 15px/1.4 system-ui, sans-serif; color: #1d2126; width: 978px; }
code { display: block; background: #1d2127; color: #e3e6ea; padding: 8px 14px; font-size: 15px; white-space: pre; }
div { display: flex; gap: 14px; padding: 12px; background: #eceef0; } img { width: 470px; display: block; }
</style><code>%s</code><div>%s</div>"""


def main() -> None:
    """Draw the three pictures into docs/walk/."""
    quick, own = map(Path, sys.argv[1:3])
    out = CHECKOUT / "docs" / "walk"
    out.mkdir(exist_ok=True)
    with window(find_browser(), width=WIDTH, height=HEIGHT) as browser:
        strips = {
            "report": ("$ make report", [page(browser, quick / "index.html"),
                                         page(browser, quick / "pages" / "03_perplexity.html", "figure")]),
            "lab": ("$ make lab", notebook(browser)),
            "own": ("$ muse run own.yaml --out reports/own",
                    [page(browser, own / "index.html"),
                     page(browser, own / "pages" / "08_dynamics.html", ".mx-text")]),
        }  # fmt: skip
        for name, (typed, shots) in strips.items():
            tab = browser.new_page()
            images = "".join(f'<img src="data:image/png;base64,{base64.b64encode(shot).decode()}">' for shot in shots)
            tab.set_content(STRIP % (typed, images))
            tab.locator("body").screenshot(path=out / f"{name}.png")
            tab.close()
            print(out / f"{name}.png", (out / f"{name}.png").stat().st_size // 1000, "kB")


def page(browser, path: Path, place: str = "") -> bytes:
    """A window of a page, from its top or from the first element of a kind."""
    tab = open_page(browser, path, print)
    if place:
        tab.locator(place).first.evaluate("element => scrollTo(0, element.getBoundingClientRect().top - 130)")
        tab.wait_for_timeout(300)
    shot = tab.screenshot()
    tab.close()
    return shot


def notebook(browser) -> list[bytes]:
    """The explorer's notebook as it is opened, and what it shows once it has run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("muse", "notebooks"):
            shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "mine"))
        with served(folder) as address, Lab(browser, address.format("09_explore")) as lab:
            lab.tab.wait_for_timeout(1500)
            opened = lab.tab.screenshot()
            lab.run_all()
            lab.tab.locator(".jp-OutputArea .mx-text").first.wait_for()
            lab.tab.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 3")
            lab.tab.locator(".jp-OutputArea .mx-text").first.scroll_into_view_if_needed()
            lab.tab.wait_for_timeout(1500)
            return [opened, lab.tab.screenshot()]


if __name__ == "__main__":
    main()
