"""Notebooks in a user's hands: mistakes that are told in a line, and any working folder, by each of three programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from builders import code, export_cells
from nbformat.v4 import new_output

from muse.host.signals import Interrupted
from muse.params import ParamsError
from muse.records.schema import StageRecord
from muse.records.store import RecordError, read_record
from muse.report.assemble import assemble
from muse.report.figures import style as figures
from muse.report.figures.style import PLOTLY_MIME
from muse.runner.notebooks import REPOSITORY
from muse.stages.notebook import CellError, assigned, declared, lines_of, parameters_of, read_names, ready, record_of
from muse.stages.stage import Stage
from muse.training.trainer import NonFiniteLossError

NOTEBOOKS = REPOSITORY / "notebooks"
PARAMETERS = 'seeds: list = [0]  # help\nd_model: int = 16\ndevice = "cpu"\nrecord_dir: str = "x"'
CALL = 'record = memory.run(Stage("memory", globals()))'


def after(*cells: str) -> dict[str, object]:
    """The globals of a kernel in which these cells ran, as far as they set names, before one that calls a stage."""
    space: dict[str, object] = {}
    for cell in cells:
        if assigned(cell):
            exec(cell, space)
    return space | {"In": ["", *cells, CALL]}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([PARAMETERS.replace("seeds", "seed_list")], "unknown key seed_list: did you mean seeds?"),
        ([PARAMETERS, "# Parameters\nseed_list = [0]\n"], "unknown key seed_list: did you mean seeds?"),
        ([PARAMETERS, CALL, "import os", "d_modle = 8"], "unknown key d_modle: did you mean d_model?"),
        ([PARAMETERS.replace("record_dir", "recrod_dir")], "record_dir: not set, did you mean recrod_dir?"),
        ([PARAMETERS.replace("16", "'16'")], "d_model: got '16' (str), expected"),
        ([], "record_dir: not set, expected a folder; run the cell of parameters first"),
    ],
)
def test_a_misspelt_parameter_is_refused(cells, message):
    with pytest.raises(ParamsError) as caught:
        Stage("memory", after(*cells))
    assert message in str(caught.value)
    assert len(lines_of(caught.value)) == 1


def test_a_corrected_parameter_is_taken_and_names_of_other_cells_are_nobodys_business():
    wrong = PARAMETERS.replace("seeds", "seed_list")
    space = after(wrong, PARAMETERS, "import os\nwidth = 3", "width = 3", "print(width)")
    assert "seed_list" in space
    assert parameters_of(space) == {"seeds": [0], "d_model": 16, "device": "cpu"}
    names = ["seeds", "d_model", "device", "record_dir", "seed", "x"]
    assert declared(after(PARAMETERS, "seed = 4", CALL, "y = 2", CALL, "x = 1")) == names
    assert assigned("a, b = 1, 2") == assigned("a = f(1)") == assigned("a = b") == assigned("a = (") == []
    assert assigned("a = b = -1\nc: float = 1e-3 * 2") == ["a", "b", "c"]


def test_parameters_that_changed_are_noticed_by_the_stage_and_by_later_cells(tmp_path):
    space = {"d_model": 16, "seeds": [0], "device": "cpu", "language": "en", "record_dir": str(tmp_path / "records")}
    stage = Stage("memory", space)
    space["record"] = stage.write([])
    assert record_of("memory", space) is space["record"]
    space |= {"language": "ja", "device": "auto"}
    assert record_of("memory", space) is space["record"]
    space["seeds"].append(1)
    told = r'^parameters changed, seeds was \[0\] and is \[0, 1\]: run the cell with Stage\("memory", globals'
    for call in (lambda: record_of("memory", space), lambda: stage.train("stage1"), lambda: stage.write([])):
        with pytest.raises(CellError, match=told):
            call()
    space["d_model"] = 8
    with pytest.raises(CellError, match=r"\(and 1 more\)"):
        record_of("memory", space)


def test_a_cell_out_of_order_says_which_one_is_missing(tmp_path):
    with pytest.raises(CellError, match=r"run the cell of parameters and then the cell with Stage\(\"memory\""):
        record_of("memory", {})
    space = {"device": "cpu", "record_dir": str(tmp_path)}
    with pytest.raises(CellError, match=r"nothing measured yet: run the cell with Stage\(\"memory\", globals\(\)\)"):
        record_of("memory", space)
    space["record"] = Stage("memory", space).write([])
    with pytest.raises(CellError, match=r"Stage\(\"train\""):
        record_of("train", space)


def test_errors_of_the_project_take_three_lines_at_most():
    many = ParamsError("\n".join(f"key {n}" for n in range(7)))
    assert many._render_traceback_() == ["ParamsError: key 0", "key 1", "and 5 more that are wrong"]
    assert Interrupted("stopped")._render_traceback_() == ["Interrupted: stopped"]
    assert NonFiniteLossError("")._render_traceback_() == ["NonFiniteLossError"]
    assert not hasattr(ValueError(), "_render_traceback_")


def test_an_interrupted_training_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(*arguments):
        with arguments[6]("stage1 seed 0", RECIPE, 3) as show:
            show(1, 2.0, 0)
            raise Interrupted

    class RECIPE:
        steps, tokens_per_step = 9, 16

    monkeypatch.setattr("muse.stages.stage.choose_and_train", stopped)
    space = {"device": "cpu", "record_dir": str(tmp_path), "cache_dir": str(tmp_path)}
    with pytest.raises(Interrupted, match=r"^stage1 seed 0: stopped at step 4 of 9; run this cell again to go on$"):
        Stage("train", space).train("stage1")


def test_folders_start_at_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = Stage("memory", {"device": "cpu", "record_dir": "reports/explore/records", "checkpoint_dir": "somewhere",
                             "corpus": "synthetic"})  # fmt: skip
    assert stage.record_path == REPOSITORY / "reports" / "explore" / "records" / "memory.json"
    assert stage.settings.checkpoint_dir == str(REPOSITORY / "somewhere")
    assert stage.settings.corpus == "synthetic"
    assert stage.params["checkpoint_dir"] == "somewhere"
    stage = Stage("memory", {"device": "cpu", "record_dir": str(tmp_path), "corpus": "texts/mine"})
    assert stage.settings.corpus == str(REPOSITORY / "texts" / "mine")
    with pytest.raises(ParamsError, match="mine"):
        _ = stage.corpus


def test_records_that_notebooks_left_make_a_report_without_a_run(tmp_path):
    space = {"device": "cpu", "d_model": 16, "record_dir": str(tmp_path / "explore" / "records")}
    with pytest.raises(RecordError, match="holds no records; run another notebook first"):
        assemble(tmp_path / "explore", without_run=True)
    Stage("memory", space | {"models": ["stage1", "phase2"]}).write([])
    Stage("dynamics", space | {"models": ["stage1_memory"]}).write([])
    report = assemble(tmp_path / "explore", without_run=True)
    assert [stage.stage for stage in report.stages] == ["memory", "dynamics"]
    assert report.run.params["models"] == ["stage1", "phase2", "stage1_memory"]
    with pytest.raises(RecordError, match="RunInfo"):
        assemble(tmp_path / "explore")


def test_a_figure_has_its_caption_below_it_in_jupyterlab_and_once_on_the_page(tmp_path, monkeypatch):
    """The drawing itself has no title there, so that a legend of two lines meets none."""
    outputs = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda data, raw, metadata=None: outputs.append(new_output("display_data", data, metadata=metadata or {})),
    )
    figure = figures.make_figure("memory_bars", "en", [], fields={"caption": "Lower <b> is better."})
    figures.show(figure)
    drawn, below = outputs
    assert "title" not in drawn.data[PLOTLY_MIME]["layout"]
    assert figure.layout.title.text in below.data["text/html"]
    assert "Lower &lt;b&gt; is better." in below.data["text/html"]
    page = export_cells(tmp_path, code("x", *outputs))
    assert page.read_text().count("Lower &lt;b&gt; is better.") == 1


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the code and of the cheapest notebook, so that what a notebook leaves by default lies there."""
    if not NOTEBOOKS.is_dir():
        pytest.skip("not a checkout")
    house = tmp_path_factory.mktemp("house")
    shutil.copytree(REPOSITORY / "muse", house / "muse", ignore=shutil.ignore_patterns("__pycache__"))
    (house / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS / "00_planar_complex.ipynb", house / "notebooks")
    return house


@pytest.mark.parametrize(
    "program",
    [
        ["papermill", "{notebook}", "out.ipynb", "-k", "python3", "--no-progress-bar"],
        ["nbconvert", "--execute", "--to", "notebook", "--output-dir", ".", "--output", "out.ipynb", "{notebook}"],
        ["jupyter", "execute", "--output", "{folder}/out.ipynb", "{notebook}"],
    ],
    ids=lambda program: program[0],
)
def test_a_notebook_runs_by_each_program_from_any_folder_and_leaves_its_record_in_the_checkout(
    checkout, tmp_path, program
):
    notebook = checkout / "notebooks" / "00_planar_complex.ipynb"
    done = execute(checkout, tmp_path, [part.format(notebook=notebook, folder=tmp_path) for part in program])
    assert done.returncode == 0, done.stderr[-2000:]
    record = checkout / "reports" / "explore" / "records" / "planar_complex.json"
    assert read_record(StageRecord, record).status == "ok"
    record.unlink()
    outputs = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert outputs
    assert [output for output in outputs if output.get("name") == "stderr"] == [], "red without an error"


def test_plain_papermill_refuses_a_misspelt_parameter_in_a_line(checkout, tmp_path):
    notebook = checkout / "notebooks" / "00_planar_complex.ipynb"
    done = execute(checkout, tmp_path, ["papermill", str(notebook), "out.ipynb", "-k", "python3", "-p", "sede", "7"])
    assert done.returncode == 1
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    (error,) = [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert (error.ename, error.evalue) == ("ParamsError", "parameters: unknown key sede: did you mean seed?")
    assert error.traceback == ["ParamsError: parameters: unknown key sede: did you mean seed?"]


def execute(house: Path, folder: Path, program: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(house), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-m", *program], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )


def test_a_cell_out_of_order_says_what_is_not_set_yet():
    cell = "from muse.stages.notebook import ready\n\nready(globals())\nx = [f(i, rms) for i in range(3)]\nprint(x, z)"
    space = {"In": ["", cell], "ready": ready}
    for names, told in (({}, "f is not set yet (and 2 more): "), ({"f": 1, "rms": 2}, "z is not set yet: ")):
        with pytest.raises(CellError) as caught:
            ready(space | names)
        assert str(caught.value) == told + "run the cell above that sets it, then this one"
    ready(space | {"f": 1, "rms": 2, "z": 3})
    ready({})  # a script


def test_names_that_a_cell_sets_itself_are_not_read_from_others():
    assert read_names("import a.b, c as d\nfor i in e: g = lambda h: h + i\na + d + g(i)\nj[k] = 1") == ["e", "j", "k"]
    assert read_names("%magic") == []


def test_every_cell_of_the_first_notebook_asks_for_what_stands_above_it():
    """The two first ones set parameters and import; what they need is said by the stage."""
    cells = [c.source for c in nbformat.read(NOTEBOOKS / "00_planar_complex.ipynb", 4).cells if c.cell_type == "code"]
    asking = "from muse.stages.notebook import ready\n\nready(globals())\n"
    assert [cell.startswith(asking) for cell in cells] == [False, False, *[True] * (len(cells) - 2)]
    for cell in cells[2:]:
        with pytest.raises(CellError):
            ready({"In": [cell], "ready": ready})
