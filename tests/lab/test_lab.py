"""Every notebook in a real JupyterLab: what a reader sees after running it, and what five mistakes say.

A part for a machine with little time: `pytest -m lab -k "mistake or basic"`.
"""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec

import pytest
from lab_server import RED, Lab, served

from muse.report.browser import find_browser, window
from muse.runner.notebooks import REPOSITORY

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SMALL = {
    "d_model": 64, "n_layers": 1, "n_seq": 64, "vocab_size": 500, "train_tokens": 8192, "train_d_model": 16,
    "train_n_layers": 1, "train_n_seq": 32, "batch_tokens": [256], "evaluations": 4, "max_ppl_batches": 4,
    "gradient_n_tokens": 32, "stability_n_tokens": 32, "stability_trials": 3, "throughput_n_tokens": 32,
    "throughput_warmups": 1, "throughput_samples": 2, "memory_batch_size": 1, "excerpt_tokens": 20, "device": "cpu",
    "dynamics_windows": 2,
}  # fmt: skip
NOTEBOOKS = {
    "00_planar_complex": 2, "01_basic_test": 2, "02_train": 2, "03_perplexity": 3, "04_memory": 1, "05_throughput": 1,
    "06_gradients_stability": 2, "08_dynamics": 4, "07_report": 8, "09_explore": 4, "10_counting": 4,
}  # fmt: skip
"""How many figures each one shows at least; the report comes last and shows what the others left."""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the checkout whose notebooks have small parameters."""
    if not (REPOSITORY / "notebooks").is_dir():
        pytest.skip("not a checkout")
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(REPOSITORY / "muse", folder / "muse", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "notebooks" / "toy", folder / "notebooks" / "toy")
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for name, value in SMALL.items():
            written = repr(value).replace("'", '\\"')
            declared = re.compile(rf'^(    "{name}: \w+ = ).*?(?=  # )', re.MULTILINE)
            text = declared.sub(lambda found, value=written: found[1] + value, text)
        (folder / "notebooks" / path.name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(house):
    """A JupyterLab as `make lab` starts it, and its address."""
    if find_spec("jupyterlab") is None or find_browser() is None:
        pytest.skip("no JupyterLab or no Chromium")
    with served(house) as address:
        yield address


@pytest.fixture(scope="module")
def browser(server):
    with window(find_browser(), width=1400, height=1000) as context:
        yield context


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_figures_captions_and_an_answer_and_nothing_in_red(server, browser, name):
    with Lab(browser, server.format(name)) as lab:
        lab.run_all()
        errors = [lab.error(at) for at, cell in enumerate(lab.cells()) if cell["cell_type"] == "code"]
        assert [error for error in errors if error] == []
        assert lab.red() == []
        assert lab.tab.locator(f"[data-mime-type='{RED}']").count() == 0
        drawn = lab.tab.locator(".js-plotly-plot")
        lab.tab.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {NOTEBOOKS[name]}")
        assert drawn.count() >= NOTEBOOKS[name]
        for at in range(drawn.count()):
            assert lab.colours(drawn.nth(at)) > 8, f"figure {at} is empty"
        captions = lab.tab.locator(".muse-caption").all_inner_texts()
        assert len(captions) == drawn.count()
        assert all(len(caption) > 40 for caption in captions)
        if name != "07_report":
            answer = lab.tab.locator(".jp-Cell").last.locator(".jp-OutputArea-output li")
            assert answer.count() > 0


def test_lab_asks_nothing_and_offers_no_news(server, browser):
    """With settings that nobody has touched; what it asks it asks within a moment of its start."""
    with Lab(browser, server.format("00_planar_complex")) as lab:
        lab.tab.wait_for_timeout(4000)
        assert lab.tab.locator(".Toastify__toast, .jp-Dialog").all_inner_texts() == []
        assert lab.tab.evaluate("jupyterapp.hasPlugin('@jupyterlab/apputils-extension:notification')")


def test_mistake_in_the_first_notebook_and_an_interrupt_outside_of_a_training(server, browser):
    with Lab(browser, server.format("00_planar_complex")) as lab:
        at = lab.find("back = planar.unpack(z)")
        (line,) = lab.run(at)
        assert line == "CellError: randn is not set yet (and 2 more): run the cell above that sets it, then this one"
        lab.write(at, "import time\nprint('begun')\ntime.sleep(600)")
        lab.start(at)
        lab.tab.wait_for_function("document.body.innerText.includes('begun')")
        lab.tab.evaluate("jupyterapp.commands.execute('notebook:interrupt-kernel').then(() => null)")
        lab.end()
        assert lab.error(at) == ["KeyboardInterrupt: stopped; run this cell again to start it anew"]


@pytest.fixture(scope="module")
def training(server, browser):
    """The notebook of trainings, open, with nothing run; the tests of mistakes use it in turn."""
    with Lab(browser, server.format("02_train")) as lab:
        yield lab, lab.find("train_tokens"), lab.find("train.run"), lab.find("figures.of_stage")


def test_mistake_a_cell_out_of_order(training):
    lab, _, _, figures = training
    (line,) = lab.run(figures)
    assert line.startswith("CellError: nothing measured yet: run the cell of parameters and then the cell with Stage(")


def test_mistake_a_misspelt_parameter(training):
    lab, parameters, call, _ = training
    right = lab.source(parameters)
    lab.write(parameters, right.replace("seeds: list", "seed_list: list"))
    assert lab.run(parameters) == []
    assert lab.run(call) == ["ParamsError: parameters: unknown key seed_list: did you mean seeds?"]
    lab.write(parameters, right)


def test_mistake_a_wrong_type(training):
    lab, parameters, call, _ = training
    right = lab.source(parameters)
    lab.write(parameters, right.replace("train_tokens: int = 8192", "train_tokens: int = 'many'"))
    assert lab.run(parameters) == []
    (line,) = lab.run(call)
    assert line.startswith("ParamsError: parameters: train_tokens: got 'many' (str), expected")
    lab.write(parameters, right)


def test_mistake_parameters_that_changed_after_the_call(training):
    lab, parameters, call, figures = training
    assert lab.run(parameters) == lab.run(call) == lab.run(figures) == []
    right = lab.source(parameters)
    lab.write(parameters, right.replace("train_tokens: int = 8192", "train_tokens: int = 4096"))
    assert lab.run(parameters) == []
    (line,) = lab.run(figures)
    assert line.startswith("CellError: parameters changed, train_tokens was 8192 and is 4096: run the cell with Stage(")
    lab.write(parameters, right)


def test_mistake_a_training_that_was_too_long(training):
    lab, parameters, call, _ = training
    right = lab.source(parameters)
    lab.write(parameters, right.replace("train_tokens: int = 8192", "train_tokens: int = 80_000_000"))
    assert lab.run(parameters) == []
    lab.start(call)
    words = "[...document.querySelectorAll('svg[role=img] text')].map(text => text.textContent)"
    lab.tab.wait_for_function(f"{words}.some(text => / left$/.test(text))")
    assert {"tokens seen", "loss in nat/token: line training, dots validation"} <= set(lab.tab.evaluate(words))
    assert any(text.startswith("entropy of the text") for text in lab.tab.evaluate(words))
    lab.tab.evaluate("jupyterapp.commands.execute('notebook:interrupt-kernel').then(() => null)")
    lab.end()
    (line,) = lab.error(call)
    assert re.fullmatch(r"Interrupted: stage1 seed 0 .*: stopped at step \d+ of 312500; run this cell again .*", line)
    assert lab.red() == []
    lab.write(parameters, right)
