"""Every notebook in a real JupyterLab: what a reader sees after running it, and what five mistakes say.

A part for a machine with little time: `pytest -m lab -k "mistake or basic"`.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

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
    "06_gradients_stability": 2, "08_dynamics": 3, "07_report": 8, "09_explore": 4,
}  # fmt: skip
"""How many figures each one shows at least; the report comes last and shows what the others left."""

WIDGET = "jupyterapp.shell.currentWidget"
CELLS = f"Array.from({WIDGET}.content.model.cells)"
RED = "application/vnd.jupyter.stderr"
COLOURS = """async source => {
    const image = new Image();
    image.src = source;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    return new Set(new Uint32Array(pen.getImageData(0, 0, image.width, image.height).data.buffer)).size;
}"""


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
    """A JupyterLab with the flags of `make lab`, and its address."""
    if find_spec("jupyterlab") is None or find_browser() is None:
        pytest.skip("no JupyterLab or no Chromium")
    planned = subprocess.run(["make", "-n", "lab"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    line = next(line for line in planned.replace("\\\n", " ").splitlines() if "jupyter lab" in line)
    flags = [flag for flag in shlex.split(line) if flag.startswith("--LabApp") and "default_url" not in flag]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(8), str(house / "own")
    environment = os.environ | {
        "PYTHONPATH": str(house), "IPYTHONDIR": own, "JUPYTER_CONFIG_DIR": own, "JUPYTER_DATA_DIR": own,
        "JUPYTER_RUNTIME_DIR": own, "JUPYTER_PREFER_ENV_PATH": "1", "MUSE_CACHE_DIR": own,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", *flags,
               f"--IdentityProvider.token={token}", f"--notebook-dir={house}", "--expose-app-in-browser"]  # fmt: skip
    with (house / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=house, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api?token={token}", process, house / "server.log")
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/{{}}.ipynb?token={token}&reset"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address, process, log):
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def browser(server):
    with window(find_browser(), width=1400, height=1000) as context:
        yield context


class Lab:
    """One notebook open in JupyterLab; cells are counted from 0, markdown included."""

    def __init__(self, context, address):
        self.tab = context.new_page()
        self.tab.set_default_timeout(60_000)
        self.tab.goto(address)
        ready = f"window.jupyterapp && {WIDGET}?.content?.model?.cells?.length > 2 && {WIDGET}.sessionContext?.session"
        self.tab.wait_for_function(f"() => {ready}?.kernel?.status === 'idle'")
        self.tab.evaluate(f"{WIDGET}.content.notebookConfig = "
                          f"{{...{WIDGET}.content.notebookConfig, windowingMode: 'none'}}")  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.tab.evaluate(f"{WIDGET}.context.save().then(() => {WIDGET}.sessionContext.shutdown())")
        self.tab.close()

    def run_all(self):
        self.tab.evaluate("jupyterapp.commands.execute('notebook:run-all-cells').then(() => null)")

    def cells(self):
        return self.tab.evaluate(f"{CELLS}.map(cell => cell.sharedModel.toJSON())")

    def source(self, at):
        return "".join(self.cells()[at]["source"])

    def write(self, at, text):
        self.tab.evaluate(f"([at, text]) => {CELLS}[at].sharedModel.setSource(text)", [at, text])

    def start(self, at):
        self.tab.evaluate(f"""at => {{ {WIDGET}.content.deselectAll(); {WIDGET}.content.activeCellIndex = at;
            window.done = jupyterapp.commands.execute('notebook:run-cell').then(() => null); return null; }}""", at)

    def end(self):
        self.tab.evaluate("window.done")

    def run(self, at):
        """Run a cell and return its error as it is shown, line by line; none where it has none."""
        self.start(at)
        self.end()
        return self.error(at)

    def error(self, at):
        if not any(output["output_type"] == "error" for output in self.cells()[at]["outputs"]):
            return []
        shown = f"{WIDGET}.content.widgets[{at}].node.querySelector(\"[data-mime-type='{RED}']\")"
        self.tab.wait_for_function(shown)
        return self.tab.evaluate(f"{shown}.innerText").strip().splitlines()

    def find(self, words):
        """Return the first code cell in which these words stand."""
        cells = enumerate(self.cells())
        return next(at for at, cell in cells if cell["cell_type"] == "code" and words in "".join(cell["source"]))

    def red(self):
        """Return what is written to stderr, which JupyterLab shows in the red of errors."""
        outputs = [output for cell in self.cells() for output in cell.get("outputs", [])]
        return ["".join(output["text"]) for output in outputs if output.get("name") == "stderr"]

    def colours(self, element):
        element.scroll_into_view_if_needed()
        picture = base64.b64encode(element.screenshot()).decode()
        return self.tab.evaluate(COLOURS, f"data:image/png;base64,{picture}")


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
