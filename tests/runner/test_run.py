"""The driver: notebooks that work, raise, die, hang or stay silent, and what a run leaves behind in each case."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from builders import basic_test_record, fake_export, write_notebook
from calls import die, hang, look_around, train

from muse.catalog import STAGE_NAMES, usual_stages
from muse.host import processes
from muse.host.files import sha256_of
from muse.host.parents import followed
from muse.host.signals import Interruptions
from muse.params import ParamsError, Settings
from muse.records.criteria import judge, summarise
from muse.records.environment import utc_now
from muse.records.scale import reductions_of
from muse.records.schema import Metric, Report, RunInfo, StageRecord
from muse.records.store import RecordError, read_record, write_record
from muse.report import plain
from muse.report.assemble import assemble
from muse.report.citation import PENDING
from muse.report.texts import texts
from muse.runner.folder import check_folder, fresh_folder
from muse.runner.notebooks import REPOSITORY, find_notebooks, resolve_folders, stage_parameters
from muse.runner.run import BASIC_TEST, exit_code, failed_record, previous_seconds, render, run
from muse.runner.run import run_info as started

WRITE = """
from pathlib import Path
from muse.records.environment import utc_now
from muse.records.schema import Metric, StageRecord
from muse.records.store import write_record
metrics = [Metric(name="seed", value=seed, unit="1"), Metric(name="d_model", value=d_model, unit="1")]
times = dict(started_utc=utc_now(), finished_utc=utc_now())
record = StageRecord(stage={stage!r}, {status}**times, scale="published", metrics=metrics)
written = write_record(record, Path(record_dir) / {file!r})
"""

USUAL = usual_stages(Settings().models)


def writes(stage, file=None, status=""):
    return WRITE.format(stage=stage, file=file or f"{stage}.json", status=status)


def keeps(stage):
    """What a stage leaves that has not measured everything yet."""
    return writes(stage, status="status='failed', error='unfinished: 1 of 2', ")


def write_page(notebook, page, **about):
    page.write_text("<html>")


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_within(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


KILL = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
HANG = """
import json, os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
file = Path(record_dir).parent / "pids.json"
done = Path(str(file) + ".tmp").write_text(json.dumps([os.getpid(), child.pid]))
renamed = os.rename(str(file) + ".tmp", file)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def bad_run(tmp_path_factory):
    """A run in which nearly everything goes wrong, each stage in its own way."""
    folder = tmp_path_factory.mktemp("bad")
    books, out = folder / "notebooks", folder / "out"
    books.mkdir()
    write_notebook(books, "00_planar_complex.ipynb", "print('hello from the kernel')", writes("planar_complex"))
    write_notebook(books, "01_basic_test.ipynb", writes("basic_test"), "raise ValueError('seven is too\\nmany')")
    write_notebook(books, "02_train.ipynb", keeps("train"), KILL, writes("train"))
    write_notebook(books, "03_perplexity.ipynb", writes("perplexity"))
    write_notebook(books, "04_memory.ipynb", "print('no record')")
    write_notebook(books, "05_throughput.ipynb", keeps("throughput"), HANG, writes("throughput"))
    write_notebook(books, "06_gradients_stability.ipynb", writes("memory", "gradients_stability.json"))
    write_notebook(books, "07_report.ipynb", "1 / 0")
    stream = io.StringIO()
    settings = Settings(d_model=64, seed=3, stage_timeout_minutes=0.2, train_tokens=1)
    code = run(settings, out=out, notebooks=books, command="muse run x", gate=True, export=fake_export, stream=stream)
    return code, out, stream.getvalue(), read_record(Report, out / "report.json")


def stage_of(report, name):
    return next(stage for stage in report.stages if stage.stage == name)


def test_a_failed_stage_gives_4_even_with_gate(bad_run):
    assert bad_run[0] == 4


def test_every_stage_is_in_the_report(bad_run):
    report = bad_run[3]
    assert [stage.stage for stage in report.stages] == [*USUAL, "report"]
    ok = [stage.stage for stage in report.stages if stage.status == "ok"]
    assert ok == ["planar_complex"]
    assert [criterion.verdict for criterion in report.criteria] == ["not_measured"] * 5
    assert report.run.finished_utc is not None
    assert report.run.command == "muse run x"
    assert report.run.hardware["cores"]


def test_the_notebook_gets_the_settings_it_declares(bad_run):
    stage = stage_of(bad_run[3], "planar_complex")
    assert (stage.find("seed").value, stage.find("d_model").value) == (3, 64)
    executed = json.loads((bad_run[1] / "notebooks" / "00_planar_complex.ipynb").read_text())
    injected = next(c for c in executed["cells"] if "injected-parameters" in c["metadata"].get("tags", []))
    names = {line.split(" = ")[0] for line in "".join(injected["source"]).splitlines()[1:]}
    assert names == {"seed", "d_model", "record_dir"}
    assert "hello from the kernel" in (bad_run[1] / "logs" / "planar_complex.log").read_text()


def test_an_exception_after_the_record_is_a_failure_that_keeps_the_numbers(bad_run):
    stage = stage_of(bad_run[3], "basic_test")
    assert stage.status == "failed"
    assert stage.error == "ValueError: seven is too\nmany (cell In [4])"
    assert stage.find("seed").value == 3


def test_a_dead_kernel_is_a_failure(bad_run):
    error = stage_of(bad_run[3], "train").error
    assert error.startswith("DeadKernelError: Kernel died")
    assert "cell In [4]: import os, signal" in error


@pytest.mark.parametrize("name", ["train", "throughput"])
def test_what_was_kept_survives_a_dead_kernel_and_the_time_limit(bad_run, name):
    stage = stage_of(bad_run[3], name)
    assert (stage.status, stage.find("seed").value, stage.find("d_model").value) == ("failed", 3, 64)
    assert "unfinished" not in stage.error, "how it ended is what the run says"
    assert stage.finished_utc >= stage.started_utc


def test_a_stage_does_not_run_when_what_it_needs_failed(bad_run):
    assert stage_of(bad_run[3], "perplexity").error == "not run: needs train, which failed"
    assert not (bad_run[1] / "notebooks" / "03_perplexity.ipynb").exists()
    assert "not run: needs train" in (bad_run[1] / "logs" / "perplexity.log").read_text()


def test_a_stage_without_a_record_is_a_failure(bad_run):
    assert "left no valid record" in stage_of(bad_run[3], "memory").error


def test_a_stage_that_writes_the_record_of_another_is_a_failure(bad_run):
    stage = stage_of(bad_run[3], "gradients_stability")
    assert stage.params == {"seed": 3, "d_model": 64}
    assert (stage.scale, stage.scale_note) == ("reduced", "d_model 64 (published: 512)")
    assert "wrote the record of memory" in stage.error
    assert stage.metrics == []


def test_a_hanging_stage_is_stopped_with_everything_it_started(bad_run):
    error = stage_of(bad_run[3], "throughput").error
    assert error.startswith("stopped: took longer than stage_timeout_minutes = 0.2 (cell In [4]: import json")
    assert gone_within(json.loads((bad_run[1] / "pids.json").read_text()), 1)


def test_pages_exist_for_every_stage_and_know_of_each_other(bad_run):
    pages = bad_run[1] / "pages"
    assert sorted(page.name for page in pages.iterdir()) == sorted(
        f"{i:02d}_{stage}.html" for i, stage in enumerate(USUAL)
    )
    about = json.loads((pages / "04_memory.html").read_text())
    assert about["links"][:2] == [
        ["Report", "../index.html"],
        ["Planar complex numbers", "../pages/00_planar_complex.html"],
    ]
    assert (about["title"], about["language"], about["inline_assets"]) == ("GPU memory", "en", False)
    assert "left no valid record" in about["error"]
    plain_page = (pages / "03_perplexity.html").read_text()
    assert "needs train" in plain_page
    assert "../logs/perplexity.log" in plain_page


def test_a_failed_export_is_reported_and_replaced_by_a_plain_page(bad_run):
    assert "the page of planar_complex: RuntimeError: no export today" in stage_of(bad_run[3], "report").error
    assert "Planar complex numbers" in (bad_run[1] / "pages" / "00_planar_complex.html").read_text()


def test_a_failed_report_leaves_an_honest_index(bad_run):
    assert stage_of(bad_run[3], "report").error.startswith("ZeroDivisionError: division by zero (cell In [3])")
    index = (bad_run[1] / "index.html").read_text()
    assert "seven is too" in index
    for stage in (*USUAL[1:], "report"):
        assert f"logs/{stage}.log" in index
        assert (bad_run[1] / "logs" / f"{stage}.log").stat().st_size > 0


def test_the_terminal_tells_the_story(bad_run):
    lines = bad_run[2].splitlines()
    assert lines[0] == "[1/8] planar_complex ..."
    assert lines[1].startswith("[1/8] planar_complex ... ok ")
    assert lines[3].startswith("[2/8] basic_test ... failed ")
    assert lines[3].endswith("s: ValueError: seven is too")
    names = ["perplexity", "vram", "vram_recomputed", "stability", "gradients", "layout"]
    start = lines.index("") - len(names) - 4
    assert [line.split()[0] for line in lines[start : start + len(names)]] == names
    assert all(line.startswith("basic test: ") for line in lines[start + len(names) : start + len(names) + 4])
    assert sum("Not measured: the stage" in line for line in lines) == len(names) + 4
    assert lines[-1] == (bad_run[1] / "index.html").as_uri()


def test_the_page_is_given_the_hash_of_the_finished_report(tmp_path):
    books, out = tmp_path / "notebooks", tmp_path / "out"
    books.mkdir()
    write_notebook(books, "04_memory.ipynb", writes("memory"))
    write_notebook(books, "07_report.ipynb", "1")

    run(Settings(stages=["memory"]), out=out, notebooks=books, export=citing_export, stream=io.StringIO())
    assert (out / "index.html").read_text() == f"cite {sha256_of(out / 'report.json')}"


def citing_export(notebook, page, **about):
    page.write_text(f"cite {PENDING}")


def test_no_file_of_a_run_tells_where_it_was_made(bad_run, good_run):
    for folder in (bad_run[1], good_run[1]):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {".json", ".ipynb", ".html", ".log"} <= {path.suffix for path in files}
        for path in files:
            text = path.read_text(encoding="utf-8")
            assert str(folder.parent) not in text, path
            assert str(REPOSITORY) not in text, path


def test_nothing_but_the_run_is_left(bad_run):
    names = {path.name for path in bad_run[1].iterdir()} - {"pids.json"}
    made = {"run.json", "records", "notebooks", "logs", "pages", "index.html", "report.json"}
    assert names == made | {"phase3_stage1_basic_test.json"}
    found = json.loads((bad_run[1] / "phase3_stage1_basic_test.json").read_text())
    assert "seven is too many" in found["test_results"]["model_creation"]["details"]
    assert found["overall_status"] == "NOT_MEASURED"


def test_a_record_of_unfinished_work_is_not_taken_for_a_finished_one(tmp_path):
    """Without an error in any cell: the record says itself that more was to come."""
    books, out = tmp_path / "notebooks", tmp_path / "out"
    books.mkdir()
    write_notebook(books, "03_perplexity.ipynb", keeps("perplexity"))
    write_notebook(books, "04_memory.ipynb", keeps("memory"), writes("memory"))
    write_notebook(books, "07_report.ipynb", "1")
    settings = Settings(stages=["perplexity", "memory"])
    stream = io.StringIO()
    assert run(settings, out=out, notebooks=books, export=write_page, stream=stream) == 4
    report = read_record(Report, out / "report.json")
    assert [(stage.status, stage.error) for stage in report.stages] == [("failed", "unfinished: 1 of 2"), ("ok", None)]
    assert stage_of(report, "perplexity").find("seed").value == 0
    assert "[1/3] perplexity ... failed" in stream.getvalue()
    assert "[2/3] memory ... ok" in stream.getvalue()


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    books, out = folder / "notebooks", folder / "out"
    books.mkdir()
    write_notebook(books, "04_memory.ipynb", writes("memory"))
    write_notebook(books, "07_report.ipynb", "assert record_dir.endswith('records')")
    write_record(run_info(["memory"]), out / "run.json")
    settings = Settings(stages=["memory"], language="ja")
    code = run(settings, out=out, notebooks=books, gate=True, stream=io.StringIO())
    return code, out, read_record(Report, out / "report.json")


def test_a_good_run_with_unmeasured_criteria_gives_3_with_gate_and_0_without(good_run):
    assert good_run[0] == 3
    assert exit_code(good_run[2], gate=False) == 0


def test_a_good_run_has_real_pages_and_keeps_the_run_before(good_run):
    index, page = (good_run[1] / name for name in ("index.html", "pages/04_memory.html"))
    assert "<html" in index.read_text()
    assert "../index.html" in page.read_text()
    assert any((good_run[1] / "assets").iterdir())
    assert (good_run[1].with_name("out.unfinished") / "run.json").exists()
    assert good_run[2].run.interrupted is False
    assert [stage.stage for stage in good_run[2].stages] == ["memory"]
    assert not (good_run[1] / ".lock").exists()


def test_an_interrupted_run_stops_everything_and_still_reports(tmp_path):
    books, out = tmp_path / "notebooks", tmp_path / "out"
    books.mkdir()
    write_notebook(books, "00_planar_complex.ipynb", keeps("planar_complex"), HANG)
    write_notebook(books, "01_basic_test.ipynb", writes("basic_test"))
    write_notebook(books, "07_report.ipynb")
    program = f"""
import sys
from pathlib import Path
from muse.host.signals import Interruptions
from muse.params import Settings
from muse.runner.run import run
if __name__ == "__main__":
    settings = Settings(stages=["planar_complex", "basic_test"])
    sys.exit(run(settings, out={str(out)!r}, notebooks=Path({str(books)!r})))
"""
    (tmp_path / "program.py").write_text(program)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], start_new_session=True, stdout=subprocess.PIPE, text=True
    ) as process:
        while not (out / "pids.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert gone_within(json.loads((out / "pids.json").read_text()), 1)
    report = read_record(Report, out / "report.json")
    assert [stage.error for stage in report.stages] == [
        "interrupted", "not run: the run was interrupted", "not run: the run was interrupted",
    ]  # fmt: skip
    assert [len(stage.metrics) for stage in report.stages] == [2, 0, 0], "what it had measured is kept"
    assert report.run.interrupted
    assert "interrupted" in (out / "index.html").read_text()
    assert "[1/3] planar_complex ... interrupted" in printed


# ------ processes


def call(function, arguments, tmp_path, **options):
    return processes.call(
        function, arguments, log=tmp_path / "log", environment=os.environ | {"MUSE_TEST": "here"}, **options
    )


def test_a_call_has_its_environment_folder_and_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(look_around, {"name": "MUSE_TEST"}, tmp_path) == f"here {tmp_path}"
    assert (tmp_path / "log").read_text().splitlines() == ["on stdout", "on stderr"]


def test_a_call_that_raises_says_so(tmp_path):
    assert call(look_around, {"wrong": 1}, tmp_path).startswith("TypeError: look_around() got an unexpected")
    assert "Traceback" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("how", "code"), [("killed", -9), ("exit", 3)])
def test_a_call_that_dies_says_so(tmp_path, how, code):
    assert call(die, {"how": how}, tmp_path) == f"the process that ran it died (exit code {code})"


def test_a_timeout_takes_detached_descendants_too(tmp_path):
    ticks = []
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        call(hang, {"file": tmp_path / "pid"}, tmp_path, timeout_seconds=3, tick=lambda: ticks.append(1))
    assert gone_within([int((tmp_path / "pid").read_text())], 1)
    assert len(ticks) > 3
    assert time.monotonic() - began < 3 + processes.GRACE_SECONDS, "what has ended is not waited for"


INHERITS = """
import ctypes, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
import calls
from muse.host import processes
if __name__ == "__main__":
    file = Path(sys.argv[1])
    def tick():
        if file.exists():
            raise KeyboardInterrupt
    if len(sys.argv) > 3:
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    if sys.argv[3:] == ["parent"] and (driver := os.fork()):
        os._exit(os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]))
    processes.call(calls.hang, {"file": file}, log=file.with_name("log"), environment=os.environ, tick=tick)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to play the first process of a container")
@pytest.mark.parametrize("first", ["driver", "parent"])
def test_whoever_inherits_what_a_driver_has_killed_the_driver_does_not_wait_for_it(tmp_path, first):
    """The first process of a container gets every orphan as a child, and a dead one stays until that one asks."""
    (tmp_path / "inherits.py").write_text(INHERITS)
    command = [sys.executable, tmp_path / "inherits.py", tmp_path / "pid", Path(__file__).parent.parent, first]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert gone_within([int((tmp_path / "pid").read_text())], 1)


def test_what_a_stopped_call_has_started_saves_its_work_first(tmp_path):
    file = tmp_path / "state"

    def stop():
        if file.exists() and file.read_text() == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(train, {"file": file}, tmp_path, tick=stop)
    assert file.read_text() == "saved"


DRIVES = """
import os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
import calls
from muse.host import processes
if __name__ == "__main__":
    processes.warm_up(sys.argv[3:])
    print("started", flush=True)
    file, log = Path(sys.argv[1]), Path(sys.argv[1] + ".log")
    processes.call(calls.train, {"file": file}, log=log, environment=os.environ)
"""


@pytest.mark.parametrize("early", [True, False])
def test_nothing_outlives_a_driver_that_was_killed(tmp_path, early):
    """Neither the server that still imports, nor what a call has started: that saves its work first."""
    (tmp_path / "slow.py").write_text("import time\nfrom muse.host.processes import getting_ready\n"
                                      "with getting_ready():\n    [time.sleep(0.1) for _ in range(600)]\n")  # fmt: skip
    (tmp_path / "drives.py").write_text(DRIVES)
    file = tmp_path / "state"
    command = [sys.executable, tmp_path / "drives.py", file, Path(__file__).parent.parent, *["slow"] * early]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}, stdout=subprocess.PIPE
    ) as driver:
        driver.stdout.readline()
        while not early and not file.exists():
            time.sleep(0.02)
        time.sleep(0.5)
        below = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
    assert gone_within([process.pid for process in below], 8)
    assert len(below) >= (2 if early else 4)
    assert early or file.read_text() == "saved"


def test_ctrl_c_in_a_terminal_does_not_reach_the_server_that_still_imports():
    program = """
import os, signal, time
from muse.host import processes
try:
    processes.warm_up(["muse.runner.warm"])
    server = processes.forkserver._forkserver._forkserver_pid
    for _ in range(40):
        os.kill(server, signal.SIGINT)
        time.sleep(0.01)
finally:
    print(os.waitpid(server, os.WNOHANG))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(0, 0)\n", "")


@pytest.mark.parametrize(("serves", "code", "printed"), [(True, 0, ""), (False, 3, "taken apart\n")])
def test_only_the_server_ends_without_taking_apart_what_it_has_imported(serves, code, printed):
    program = """
import atexit, sys
from muse.host.processes import getting_ready
atexit.register(print, "taken apart")
with getting_ready():
    pass
sys.exit(3)
"""
    own = os.environ | (followed() if serves else {})
    done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, printed)


def test_a_long_name_of_the_temporary_folder_leaves_room_for_sockets(tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    program = "from muse.host import processes; processes.warm_up([])"
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_sigterm_interrupts_like_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interruptions(wait=False):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_error_text_is_clean_and_short():
    assert processes.error_text("E", "\x1b[31mred\x1b[0m \ud800", "cell In [2]") == "E: red ? (cell In [2])"
    assert len(processes.error_text("E", "x" * 10**6)) < 3000
    assert processes.error_text("E", "") == "E"


# ------ notebooks and their parameters


def test_notebooks_are_found_in_order_and_the_report_last(tmp_path):
    for name in ("07_report", "04_memory", "01_basic_test", "08_explore"):
        write_notebook(tmp_path, f"{name}.ipynb")
    found = find_notebooks(["memory", "basic_test"], tmp_path)
    assert [(n.stage, n.path.name, n.title) for n in found] == [
        ("basic_test", "01_basic_test.ipynb", "The title"),
        ("memory", "04_memory.ipynb", "The title"),
        ("report", "07_report.ipynb", "The title"),
    ]
    assert found[0].declared == ("seed", "d_model", "record_dir")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "04_memory.ipynb").unlink(), "no notebook for the stage memory, expected 04_memory"),
        (lambda folder: (folder / "04_memory.ipynb").write_text("{"), "not a notebook"),
        (lambda folder: write_notebook(folder, "04_memory.ipynb", parameters=None), "got 0 cells tagged parameters"),
        (lambda folder: write_notebook(folder, "04_memory.ipynb", parameters="seed = ("), "SyntaxError"),
        (
            lambda folder: write_notebook(folder, "04_memory.ipynb", parameters="sead = 1\nrecord_dir = ''"),
            "declares sead",
        ),
        (
            lambda folder: write_notebook(folder, "07_report.ipynb", parameters="seed = 1"),
            "does not declare record_dir",
        ),
    ],
)
def test_bad_notebooks_are_parameter_errors_before_anything_starts(tmp_path, change, message):
    books = tmp_path / "books"
    books.mkdir()
    write_notebook(books, "04_memory.ipynb")
    write_notebook(books, "07_report.ipynb")
    assert len(find_notebooks(["memory"], books)) == 2
    change(books)
    with pytest.raises(ParamsError, match=message):
        run(Settings(stages=["memory"]), out=tmp_path / "out", notebooks=books)
    assert not (tmp_path / "out").exists()


def test_the_notebooks_of_the_repository_declare_settings():
    if not (REPOSITORY / "notebooks").is_dir():
        pytest.skip("not a checkout")
    settings = Settings(d_model=64)
    for notebook in find_notebooks(list(STAGE_NAMES)):
        parameters = stage_parameters(settings, notebook, Path("records"))
        assert set(parameters) == set(notebook.declared)
        assert Path(parameters["record_dir"]).is_absolute()


def test_folders_become_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "synthetic").mkdir()
    found = resolve_folders(
        Settings(corpus="data/text", tokenizer="~/data", cache_dir="c", checkpoint_dir="/x/y"), tmp_path
    )
    assert found.corpus == str(tmp_path / "data" / "text")
    assert found.tokenizer == str(tmp_path / "data")
    assert found.cache_dir == str(tmp_path / "c")
    assert found.checkpoint_dir == "/x/y"
    known = resolve_folders(Settings(corpus="synthetic", tokenizer="gpt2"), tmp_path)
    assert (known.corpus, known.tokenizer, known.cache_dir) == ("synthetic", "gpt2", None)
    assert known.checkpoint_dir == str(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "values", [{"corpus": "no/such"}, {"corpus": "wikitext2"}, {"tokenizer": "./x"}, {"tokenizer": ""}]
)
def test_unknown_folders_are_parameter_errors(tmp_path, values):
    with pytest.raises(ParamsError, match=next(iter(values))):
        resolve_folders(Settings(**values), tmp_path)


# ------ folders


def run_info(stages, **params):
    settings = Settings(stages=stages, **params)
    now = utc_now()
    return RunInfo(
        id="x", profile="custom", started_utc=now, finished_utc=now, git_commit=None, git_dirty=None, versions={},
        hardware={}, seeds=[0], command="muse", params=settings.model_dump(),
    )  # fmt: skip


def begin(folder):
    """A run that is killed before its report."""
    with fresh_folder(folder):
        (folder / "run.json").write_text("unfinished")


def finish(folder, content, report="{}"):
    with fresh_folder(folder) as previous:
        (folder / "run.json").write_text(content)
        (folder / "report.json").write_text(report)
    return previous


def test_an_earlier_run_moves_aside_and_replaces_the_one_before(tmp_path):
    folder, previous = tmp_path / "out", tmp_path / "out.previous"
    for content in ("first", "second", "third"):
        with fresh_folder(folder) as found:
            assert found == previous
            assert sorted(path.name for path in folder.iterdir()) == [".lock", "logs", "notebooks", "pages", "records"]
            assert list((folder / "records").iterdir()) == []
            (folder / "run.json").write_text(content)
            (folder / "report.json").write_text("{}")
    assert (folder / "run.json").read_text() == "third"
    assert (previous / "run.json").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.previous"]
    assert not (previous / ".lock").exists()


@pytest.mark.parametrize("interrupted", [True, False])
def test_no_number_of_unfinished_runs_displaces_a_finished_one(tmp_path, interrupted):
    """Killed ones leave no report; an interrupted one leaves a report that says so."""
    folder, report = tmp_path / "out", json.dumps({"run": {"interrupted": True}})
    finish(folder, "finished")
    for _ in range(3):
        finish(folder, "interrupted", report) if interrupted else begin(folder)
        assert (tmp_path / "out.previous" / "run.json").read_text() == "finished"
    assert finish(folder, "again") == tmp_path / "out.previous"
    begin(folder)
    assert (tmp_path / "out.previous" / "run.json").read_text() == "again"
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == ["out", "out.previous", "out.unfinished"]


@pytest.mark.parametrize("report", ["{", "[]", '{"run": null}', "\0"])
def test_a_report_that_cannot_be_read_is_not_displaced(tmp_path, report):
    finish(tmp_path / "out", "finished", report)
    for _ in range(2):
        begin(tmp_path / "out")
    assert (tmp_path / "out.previous" / "report.json").read_text() == report


@pytest.mark.parametrize("at", range(12))
def test_a_kill_at_any_step_of_the_move_leaves_a_finished_run_and_a_free_place(tmp_path, monkeypatch, at):
    """`at` counts every change of the disk; from there on none of them is made, as after a kill."""
    folder, left = tmp_path / "out", [at]
    finish(folder, "older")
    finish(folder, "finished")

    class Killed(BaseException):
        """Nobody catches it."""

    def until_killed(real):
        def step(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "unlink"), (os, "unlink"), (os, "rmdir")):
            patch.setattr(owner, name, until_killed(getattr(owner, name)))
        with suppress(Killed), fresh_folder(folder):
            pass
    found = [path / "run.json" for path in (folder, tmp_path / "out.previous")]
    assert "finished" in [path.read_text() for path in found if path.exists()]
    with fresh_folder(folder) as previous:
        (folder / "run.json").write_text("next")
        assert sorted(path.name for path in folder.iterdir()) == [
            ".lock", "logs", "notebooks", "pages", "records", "run.json"]  # fmt: skip
    assert (previous / "run.json").read_text() == "finished"
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "out.previous"} | {
        path.name for path in tmp_path.glob(".out.*.tmp")}  # fmt: skip


@pytest.mark.parametrize("name", ["out", "out.previous", "out.unfinished"])
def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    with fresh_folder(tmp_path / "out"):
        pass
    shutil.rmtree(tmp_path / "out")
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "thesis.tex").write_text("years of work")
    with pytest.raises(ParamsError, match="holds no run"), fresh_folder(tmp_path / "out"):
        pass
    assert (tmp_path / name / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(ParamsError):
        check_folder(tmp_path / "file")


def test_two_runs_do_not_share_a_folder(tmp_path):
    with fresh_folder(tmp_path / "out"):
        (tmp_path / "out" / "run.json").write_text("{}")
        with pytest.raises(ParamsError, match="another run"), fresh_folder(tmp_path / "out"):
            pass
    with fresh_folder(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_made_is_a_parameter_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ParamsError, match="--out"), fresh_folder(tmp_path / "file" / "out"):
        pass


def test_durations_come_from_a_previous_run_of_the_same_settings(tmp_path):
    info = run_info(["memory"])
    now = info.started_utc
    assert previous_seconds(tmp_path, Settings(stages=["memory"])) == {}
    later = {seconds: now.fromtimestamp(now.timestamp() + seconds, now.tzinfo) for seconds in (30, 42)}
    stage = StageRecord(stage="memory", started_utc=now, finished_utc=later[30], scale="published")
    write_record(info.model_copy(update={"finished_utc": later[42]}), tmp_path / "run.json")
    write_record(stage, tmp_path / "records" / "memory.json")
    assert previous_seconds(tmp_path, Settings(stages=["memory"])) == {"memory": 30.0, "report": 12.0}
    assert previous_seconds(tmp_path, Settings(stages=["memory"], d_model=2)) == {}
    write_record(failed_record({}, "memory", now, "x"), tmp_path / "records" / "memory.json")
    assert "memory" not in previous_seconds(tmp_path, Settings(stages=["memory"]))


# ------ the report and the exit code


def report_of(tmp_path, *stages, **params):
    write_record(run_info([stage.stage for stage in stages] or ["memory"], **params), tmp_path / "run.json")
    for stage in stages:
        write_record(stage, tmp_path / "records" / f"{stage.stage}.json")
    return assemble(tmp_path)


def test_assemble_wants_a_run_and_calls_a_missing_record_failed(tmp_path):
    with pytest.raises(RecordError):
        assemble(tmp_path)
    report = report_of(tmp_path)
    assert report.stages[0].status == "failed"
    assert "no valid record" in report.stages[0].error
    assert exit_code(report, gate=False) == 4


def test_assemble_knows_a_skipped_baseline_and_the_language(tmp_path):
    report = report_of(tmp_path, *stages_with(100.0), skip_phase2=True, language="ja")
    assert "skip_phase2" in report.criteria[0].reason
    assert report.criteria[0].reason.startswith("Not measured"), "scripts read English, whatever the page speaks"
    assert "未測定" in assemble(tmp_path, "ja").criteria[0].reason


def test_further_candidates_are_judged_too_and_the_first_decides(tmp_path):
    memory, other = stages_with(103.1), stages_with(90.0)
    for stage, more in zip(memory, other, strict=True):
        renamed = [m.model_copy(update={"model": "stage1_memory"}) for m in more.metrics if m.model == "stage1"]
        stage.metrics.extend(renamed)
    report = report_of(tmp_path, *memory, candidates=["stage1", "stage1_memory"])
    assert [c.verdict for c in report.criteria] == ["fail", "pass", "pass", "pass", "pass"]
    assert [(o.model, {c.verdict for c in o.criteria}) for o in report.others] == [("stage1_memory", {"pass"})]
    assert (report.summary.ppl, report.others[0].summary.ppl) == (103.1, 90.0)
    assert exit_code(report, gate=True) == 1
    lines = [line.split()[:4] for line in plain.verdict_table(report)]
    assert lines[0] == ["perplexity", "✕", "FAIL", "1.031"]
    assert [line[0] for line in lines[1:3]] == ["vram", "vram_recomputed"]
    assert lines[6] == ["stage1_memory", "perplexity", "✓", "PASS"]


def test_cuda_is_refused_before_anything_is_moved(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    books, out = tmp_path / "notebooks", tmp_path / "out"
    books.mkdir()
    write_notebook(books, "04_memory.ipynb", writes("memory"))
    write_notebook(books, "07_report.ipynb", "1")
    with pytest.raises(ParamsError, match="device: got cuda"):
        run(Settings(device="cuda", stages=["memory"]), out=out, notebooks=books)
    assert not out.exists()


def test_pages_are_made_again_in_another_language_without_measuring(tmp_path):
    books, out = tmp_path / "notebooks", tmp_path / "out"
    books.mkdir()
    for name in ("03_perplexity.ipynb", "04_memory.ipynb"):
        write_notebook(books, name, "raise RuntimeError('measured again')")
    write_notebook(books, "07_report.ipynb", "print(language)", parameters="language = 'en'\nrecord_dir = '.'")
    report = report_of(out, *stages_with(100.0)[:2])
    write_record(report, out / "report.json")
    before = (out / "report.json").read_bytes()
    assert render(out, "ja", notebooks=books, export=fake_export, shared_script=True) == 0
    about = json.loads((out / "index.html").read_text())
    assert (about["language"], about["inline_assets"]) == ("ja", False)
    assert (out / "report.json").read_bytes() == before
    # the records are those of the report where it is kept without them
    shutil.rmtree(out / "records")
    assert assemble(out).model_dump() == report.model_dump()
    assert render(out, "en", notebooks=books, export=fake_export) == 0
    assert json.loads((out / "index.html").read_text())["inline_assets"] is True
    # and so are its stages' pages, of which an English one stays as it is
    page = out / "pages" / "04_memory.html"
    assert '<html lang="en">' in page.read_text()
    page.write_text(kept := page.read_text() + "<!-- as it was made -->")
    assert render(out, "en", notebooks=books, export=fake_export) == 0
    assert page.read_text() == kept
    # a stage that had failed keeps saying so on its page, also where its notebook cannot know
    failed = report.stages[1].model_copy(update={"status": "failed", "error": "took too long"})
    write_record(failed, out / "records" / f"{failed.stage}.json")
    executed = next(books.glob(f"*_{failed.stage}.ipynb"))
    (out / "notebooks" / executed.name).write_text(executed.read_text())
    assert render(out, "ja", notebooks=books, export=fake_export) == 0
    beside = json.loads((out / "pages" / f"{executed.stem}_notebook.html").read_text())
    assert (beside["language"], beside["error"]) == ("en", "took too long")
    made = (out / "pages" / f"{executed.stem}.html").read_text()
    assert '<html lang="ja">' in made
    assert "took too long" in made
    assert f'href="{executed.stem}_notebook.html"' in made
    # in English the stage's page is its notebook again, and nothing is left beside it
    assert render(out, "en", notebooks=books, export=fake_export) == 0
    assert json.loads((out / "pages" / f"{executed.stem}.html").read_text())["error"] == "took too long"
    assert not (out / "pages" / f"{executed.stem}_notebook.html").exists()
    with pytest.raises(ParamsError, match="not the folder of a run"):
        render(books, "ja", notebooks=books, export=fake_export)


def stages_with(ours, theirs=100.0, stability=0):
    def metric(name, model, value, **more):
        return Metric(**{"name": name, "model": model, "value": value, "unit": "1"} | more)

    def record(stage, metrics):
        return StageRecord(
            stage=stage, started_utc=utc_now(), finished_utc=utc_now(), scale="published", metrics=metrics
        )

    pair = (("stage1", ours), ("phase2", theirs))
    perplexity = [metric("perplexity", model, value) for model, value in pair if value != "missing"]
    perplexity += [metric("causality_violations", model, 0) for model, _ in pair]
    health = [
        metric("non_finite_trials", "stage1", stability, n=100),
        metric("parameters_without_gradient", "stage1", 0),
    ]
    health += [metric("gradient_norm", "stage1", 1.0, samples=[1.0]), metric("layout_violations", "stage1", 0)]
    health += [metric("bytes_per_complex", "stage1", 4)]
    return (
        record("perplexity", perplexity),
        record("memory", [metric("peak_memory", "stage1", 0.5), metric("peak_memory", "phase2", 1.0)]),
        record("gradients_stability", health),
    )


@pytest.mark.parametrize(
    ("stages", "code"),
    [
        (stages_with(103.0), 0),
        (stages_with(103.1), 1),
        (stages_with(90.0, "missing"), 3),
        (stages_with(90.0, float("inf")), 3),
        (stages_with(90.0, float("nan")), 3),
        (stages_with(90.0, None), 3),
        (stages_with(float("nan")), 1),
        (stages_with(90.0, "missing", stability=1), 1),
        (stages_with(90.0)[:1], 3),
        ((*stages_with(103.1), failed_record({}, "report", utc_now(), "x")), 4),
    ],
)
def test_exit_codes_with_gate(stages, code):
    criteria = judge(stages, texts("en"))
    report = Report(run=run_info(["memory"]), criteria=criteria, summary=summarise(stages, criteria), stages=stages)
    assert exit_code(report, gate=True) == code
    assert exit_code(report, gate=False) == (4 if code == 4 else 0)


@pytest.mark.parametrize(("peak", "basis", "code"), [(0.4, "measured", 0), (9.0, "measured", 1), (0.4, "estimate", 3)])
def test_the_gate_of_the_basic_test_asks_its_lines_and_not_the_criteria(tmp_path, peak, basis, code):
    report = report_of(tmp_path, *stages_with(103.1), basic_test_record(peak_memory={"value": peak, "basis": basis}))
    assert exit_code(report, gate=BASIC_TEST) == code
    assert (exit_code(report, gate=True), exit_code(report, gate=False)) == (1, 0)
    lines = [line for line in plain.verdict_table(report) if line.startswith("basic test: ")]
    assert len(lines) == 2 * 4
    word = {0: "✓ PASS", 1: "✕ FAIL", 3: "– not measured"}[code]
    assert lines[3].startswith(f"basic test: memory_usage    {word}")
    assert ("(estimate)" in lines[3]) == (basis == "estimate")
    failed = [record.model_copy(update={"status": "failed"}) for record in report.stages]
    assert exit_code(report.model_copy(update={"stages": failed}), gate=BASIC_TEST) == 4


def test_the_verdict_table_is_aligned(tmp_path):
    report = report_of(tmp_path, *stages_with(103.1))
    lines = plain.verdict_table(report)
    assert lines[0].split()[:4] == ["perplexity", "✕", "FAIL", "1.031"]
    asked = report.judged[0].in_order()
    starts = {line.index(criterion.target) for line, criterion in zip(lines, asked, strict=False)}
    assert len(starts) == 1
    assert lines[len(asked) :] == ["", *(f"{c.name}: {c.reason}" for c in asked if c.verdict != "pass")]


def test_the_verdict_table_says_of_what_passes_that_it_is_smaller_than_published(tmp_path):
    *others, health = stages_with(90.0)
    smaller = {"scale": "reduced", "reductions": reductions_of({"n_seq": 8}), "scale_note": "n_seq 8 (published: 1024)"}
    lines = plain.verdict_table(report_of(tmp_path, *others, health.model_copy(update=smaller)))
    assert [line.split(":")[0] for line in lines[7:]] == ["vram_recomputed", "stability", "gradients", "layout"]
    assert all("n_seq 8 (published: 1024)" in line for line in lines[8:])


def test_a_verdict_on_equal_terms_stands_beside_the_criteria_and_decides_no_exit_code(tmp_path):
    stages = stages_with(100.0)
    for model, value in (("stage1", 0.6), ("phase2", 1.0)):
        stages[1].metrics.append(Metric(name="peak_memory_recomputed", model=model, value=value, unit="GiB"))
    report = report_of(tmp_path, *stages)
    (beside,) = report.judged[0].beside
    assert (beside.name, beside.verdict, beside.value) == ("vram_recomputed", "fail", 0.6)
    assert [c.verdict for c in report.criteria] == ["pass"] * 5
    assert exit_code(report, gate=True) == 0
    assert report.summary.pass_ is True
    assert plain.verdict_table(report)[2].split()[:4] == ["vram_recomputed", "✕", "FAIL", "0.6"]
    path = tmp_path / "report.json"
    write_record(report, path)
    assert read_record(Report, path).judged[0].beside == [beside]
    before = json.loads(path.read_text())
    for one in before["judged"]:
        del one["beside"]
    path.write_text(json.dumps(before))
    assert read_record(Report, path).judged[0].beside == []


def test_pages_that_share_a_script_get_todays_with_the_report(good_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(good_run[1], folder)
    (folder / "assets").mkdir(exist_ok=True)
    script = folder / "assets" / "figures.js"
    script.write_text("old")
    books = tmp_path / "books"
    books.mkdir()
    write_notebook(books, "04_memory.ipynb", "1")
    write_notebook(books, "07_report.ipynb", "1")
    assert render(folder, "en", notebooks=books, stream=io.StringIO()) == 0
    assert "showSendToCloud" in script.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--out", "/secret/place/mine"], ["--out", ".../mine"]),
        (["--out=/secret/place/two words"], ["--out=.../two words"]),
        (["/secret/place/p.yaml", "-p", "seed=1"], [".../p.yaml", "-p", "seed=1"]),
        (["-p", "corpus=/secret/place/text"], ["-p", "corpus=.../text"]),
        (["-p", "formats=[/secret/place/a, '/secret/place/b c']"], ["-p", "formats=[.../a, '.../b c']"]),
        ([str(REPOSITORY / "params" / "quick.yaml"), "-p", "n_seq=12"], ["params/quick.yaml", "-p", "n_seq=12"]),
    ],
)
def test_the_command_of_a_record_tells_no_folder_whoever_named_it(words, shown, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = started(Settings(stages=["memory"]), shlex.join(["muse", "run", *words]), {}).command
    assert shlex.split(found) == ["muse", "run", *shown]
