"""A JupyterLab of its own and a notebook in it, in a browser: for the tests of notebooks and for docs/walk.md."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

from lab_seconds import SET, lab_words

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


@contextlib.contextmanager
def served(house):
    """A JupyterLab of a folder, with what `make lab` gives it; yields the address of a notebook, {} for its name."""
    words = lab_words()
    flags = [flag for flag in words if flag.startswith("--LabApp") and "default_url" not in flag]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(8), str(house / "own")
    environment = os.environ | {
        "PYTHONPATH": str(house), "IPYTHONDIR": own, "JUPYTER_CONFIG_DIR": own, "JUPYTER_DATA_DIR": own,
        "JUPYTER_RUNTIME_DIR": own, "JUPYTER_PREFER_ENV_PATH": "1", "MUSE_CACHE_DIR": own,
    } | dict(word.split("=") for word in words if SET(word))  # fmt: skip
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
