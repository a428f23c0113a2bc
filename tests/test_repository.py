"""The house itself: imports go one way, lists agree with each other, notebooks are clean and declare what they take."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from muse.catalog import COUNTING, EXPLORER, STAGE_NAMES, stem
from muse.params import Settings, load_params, of_today, validate
from muse.records.schema import BenchRecord, Report, StageRecord
from muse.records.store import read_record
from muse.report.companions import metrics_of, repeats
from muse.report.docs import comparison, pages
from muse.report.texts import LANGUAGES, texts
from muse.report.trainings import OF_COMPACT, by_adamw, ratio, read
from muse.stages import explore

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "muse").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES_NOTEBOOKS = [path for path in NOTEBOOKS if path.stem != stem(EXPLORER)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_view_of_the_dependencies_does_not_drift():
    text = (ROOT / "environment.yml").read_text()
    extras = re.search(r"-e \.\[([a-z,]+)\]", text).group(1).split(",")
    assert set(extras) == {"lab", "test"} <= PROJECT["optional-dependencies"].keys()
    assert f"python{PROJECT['requires-python']}" in text
    listed = [line.strip(" -") for line in text.splitlines() if line.strip().startswith("- ")]
    assert listed == ["conda-forge", f"python{PROJECT['requires-python']}", "pip", "pip:", f"e .[{','.join(extras)}]"]


def test_lock_pins_every_dependency_within_its_range():
    lock = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    lock = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lock.items()}
    assert lock["torch"] == "2.13.0"
    wanted = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["lab"],
        *PROJECT["optional-dependencies"]["test"],
    ]
    for requirement in map(Requirement, wanted):
        version = lock[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


DISTRIBUTIONS = {"bs4": "beautifulsoup4", "ruamel": "ruamel-yaml", "yaml": "pyyaml", "IPython": "ipykernel"}
"""What is imported under another name than it is installed by; IPython is a part of what a kernel needs."""

EXTRAS = {"browser": "test", "check": "test", "engine": "cluster", "harness": "eval", "libraries": "peers"}
"""Modules that need an extra, which they say when it is missing."""

STARTED = {"ipykernel", "jupyterlab", "psutil", "pytest-timeout", "pytest-xdist", "ruff"}
"""Requirements that nothing imports: a kernel, programs that the Makefile starts, plugins of pytest."""


def distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", DISTRIBUTIONS.get(name, name)).lower()


def named(requirements) -> set[str]:
    return {distribution(Requirement(text).name) for text in requirements}


def imported(path: Path) -> set[str]:
    """The distributions whose modules a file imports, by `import` or by a module's name as a text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in IMPORTING:
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    names = {name.split(".")[0] for name in found if re.fullmatch(r"\w+(\.\w+)*", name)}
    return {distribution(name) for name in names - sys.stdlib_module_names - {"muse"}}


IMPORTING = {"import_module", "importorskip", "_import", "files"}


def test_every_import_is_a_declared_dependency():
    declared = named(PROJECT["dependencies"])
    for path in MODULES:
        allowed = declared | named(PROJECT["optional-dependencies"].get(EXTRAS.get(path.stem, ""), ()))
        found = imported(path) - {"triton"}  # of PyTorch for CUDA; its extra is for the interpreter of the tests
        assert found <= allowed, f"{path}: {found - allowed} is not declared"


def test_every_declared_dependency_is_used():
    everywhere = set().union(*(imported(path) for path in (*MODULES, *(ROOT / "tests").rglob("*.py"))))
    used = set().union(*map(imported, MODULES)) | STARTED
    assert named(PROJECT["dependencies"]) <= used
    optional = named(text for texts in PROJECT["optional-dependencies"].values() for text in texts)
    assert optional <= everywhere | STARTED, f"{optional - everywhere - STARTED} is used by nothing"


def test_every_locked_package_is_declared_or_needed_by_one_that_is():
    """A package that is locked and not installed here, as for another system, is not followed."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["lab"]]
    waiting, needed = [*wanted, *PROJECT["optional-dependencies"]["test"]], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        for extra in ("", *requirement.extras):
            if (found := (distribution(requirement.name), extra)) in needed:
                continue
            needed.add(found)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                lines = importlib.metadata.requires(requirement.name) or ()
                waiting += [text for text in lines if applies(Requirement(text), extra)]
    locked = re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert {distribution(name) for name in locked} <= {name for name, _ in needed}


def applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_clean_and_declare_settings(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code), "committed with outputs"
    assert not any("papermill" in cell["metadata"] for cell in cells)
    (parameters,) = (cell for cell in code if "parameters" in cell["metadata"].get("tags", []))
    namespace: dict[str, object] = {}
    exec("".join(parameters["source"]), namespace)
    declared = {name: value for name, value in namespace.items() if not name.startswith("__")}
    if path in STAGES_NOTEBOOKS:
        settings = {name: value for name, value in declared.items() if name in Settings.model_fields}
        assert declared.keys() - settings.keys() == {"record_dir"}
        validate(settings)  # the defaults are valid settings
    else:
        assert declared.keys() == explore.Choices.model_fields.keys()
        explore.Choices(**declared)
    for line in "".join(parameters["source"]).splitlines():
        said = re.fullmatch(r"\w+: \w+ = .+  # .+|# .+", line)
        assert said, f"{path.name}: {line!r} is not `name: type = value  # help`"
    if len(declared) > 10:
        first, rest = "".join(parameters["source"]).split("# the rest\n")
        assert first.startswith("# what one changes first\n")
        assert len(first.splitlines()) == 1 + 6
        assert len(rest.splitlines()) == len(declared) - 6
    source = "\n".join("".join(cell["source"]) for cell in code)
    assert not re.search(r"^\s*def ", source, re.MULTILINE), "logic belongs in muse, not in a cell"


@pytest.mark.parametrize("name", [name for name in STAGE_NAMES if name != "planar_complex"])
def test_a_stages_notebook_asks_makes_one_call_shows_figures_and_answers(name):
    cells = json.loads((ROOT / "notebooks" / f"{stem(name)}.ipynb").read_text())["cells"]
    assert "**Question.**" in "".join(cells[0]["source"])
    _, call, shown, *more, answer = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert call.splitlines()[-1] == f'record = {name}.run(Stage("{name}", globals()))'
    found = f'record_of("{name}", globals()), language)'
    assert shown.endswith(f"\n\nfor figure in figures.of_stage({found}:\n    figures.show(figure)")
    assert answer.endswith(f"\n\nanswers.show({found}")
    assert len(more) == (name == "dynamics")  # how a text is read


def test_notebooks_that_look_for_a_training_declare_all_that_decides_it():
    declared = {}
    for path in STAGES_NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        (parameters,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        declared[path.stem] = {line.split(":")[0] for line in "".join(parameters["source"]).splitlines()}
    looking = [name for name, found in declared.items() if "checkpoint_dir" in found and name != stem(COUNTING)]
    assert len(looking) == 3
    for name in looking:
        assert not declared["02_train"] - declared[name], name


def test_every_folder_is_on_the_readme_map_and_every_name_there_exists():
    readme = (ROOT / "README.md").read_text()
    parts = {path.name for path in (ROOT / "muse").iterdir() if not path.name.startswith("__")}
    assert parts <= set(re.findall(r"`muse/([\w.]+?)/?`", readme))
    texts_of_users = readme + (ROOT / "docs" / "using.md").read_text()
    for name in re.findall(r"`?((?:muse|notebooks|params|tests)/[\w./]*\w\.\w+|muse/\w+/)", texts_of_users):
        assert (ROOT / name).exists(), f"{name} is named and not there"


def test_tracked_files_are_small_and_hold_no_absolute_paths():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.exists():
            continue
        if name.startswith("reports/") and path.suffix in {".json", ".html"}:
            assert not re.search(r"/(home|root|Users|tmp|work)/", path.read_text(encoding="utf-8")), name
        if name.startswith("reports/"):
            continue
        assert path.stat().st_size < 2**20, name
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".json"}:
            assert not re.search(r"(^|[\s\"'`=])/(home|root|Users)/", path.read_text()), name


def committed(name: str = "report.json") -> dict[str, StageRecord]:
    """The stages of the committed comparison, or of one of its companions."""
    return {stage.stage: stage for stage in read_record(Report, ROOT / "reports" / "gpu" / name).stages}


def test_the_index_of_decisions_leads_to_headings_and_to_every_one():
    text = (ROOT / "DECISIONS.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) == anchors


def test_what_the_readme_says_of_speed_is_what_the_records_say():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    said = "writes nearly twice as fast as with a static cache in a graph and trains at two thirds of the speed"
    assert said in readme
    stage = read_record(BenchRecord, ROOT / "reports" / "bench-h200" / "generation.json").stage
    for length in (128, 1024, 4096, 8192, 32768):
        ours, theirs = (
            stage.find(f"bench_generation_{length}_speed", path).value
            for path in ("stage1_compact one graph", "gpt2 static cache, one graph")
        )
        assert ours / theirs > 1.75, length
    profile = json.loads((ROOT / "reports" / "bench-h200" / "profile.json").read_text(encoding="utf-8"))
    step = {one["model"]: one["by"]["adamw"]["step_us"] for one in profile["steps"]}
    assert step["gpt2"] / step["stage1_compact"] == pytest.approx(2 / 3, abs=0.03)


def test_docs_and_the_readmes_table_are_made_from_the_records():
    """To renew them: `make docs`."""
    for name, text in pages(ROOT).items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: make docs"


def test_the_table_of_results_shows_a_value_where_it_was_chosen():
    report = read_record(Report, ROOT / "reports" / "gpu" / "report.json")
    train = next(stage for stage in report.stages if stage.stage == "train")
    decay = train.find("weight_decay", "gpt2")
    others = [metric for metric in train.metrics if metric is not decay]
    decay = decay.model_copy(update={"value": 0.25})
    for decays in ([0.25], [0.1, 0.25]):
        params = of_today(train.params) | {"weight_decays": decays}
        tried = train.model_copy(update={"params": params, "metrics": [*others, decay]})
        stages = [tried if stage is train else stage for stage in report.stages]
        run = report.run.model_copy(update={"params": params})
        shown = comparison(report.model_copy(update={"stages": stages, "run": run}))
        row = "| weight decay, chosen on validation | 1 | 1 | 1 | 1 | 0.1 | 1 | 1 | 0.25 |"
        assert (row in shown) == (len(decays) > 1)
        assert "learning rate" not in shown


def test_the_readme_can_be_read_in_two_minutes():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 130
    assert len(re.findall(r"\d[\d.,]*", re.sub(r"\]\([^)]*\)|`[^`]*`", "", readme))) <= 60


def test_the_readmes_answer_is_what_the_records_say():
    """The compact form passes all five, the others one fewer each, and its real twin does as well."""
    report, stages = read_record(Report, ROOT / "reports" / "gpu" / "report.json"), committed()
    failed = {one.model: [c.name for c in one.criteria if c.verdict != "pass"] for one in report.judged}
    compact = failed.pop("stage1_compact")
    assert compact == []
    assert failed == {"stage1": ["perplexity"], "stage1_memory": ["vram"]}
    perplexity, memory = stages["perplexity"], stages["memory"]
    whole = perplexity.find("perplexity_ratio_to_phase2", "stage1_compact")
    twin = perplexity.find("perplexity_ratio_to_stage1_compact", "real_twin_compact")
    kinds = ("_ratio_to_phase2", "_matched_ratio_to_phase2", "_ratio_to_phase2_bfloat16")
    peaks = [memory.find(f"peak_memory{kind}", "stage1_compact") for kind in kinds]
    peaks += [memory.find("peak_memory_recomputed_ratio_to_phase2", "real_twin_compact")]
    found = [one.value for one in (whole, twin, *peaks)]
    told = [by_adamw(ROOT / "reports").split()[0]]
    told += [f"{value:.3f}" for value in (*found, *whole.interval, *twin.interval)]
    said = re.search(r"\*\*The answer.*?<!-- begin", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert sorted(re.findall(r"\d\.\d{3}", said)) == sorted(told)
    assert twin.interval[0] < 1 < twin.interval[1]
    assert (report.run.seeds, report.run.hardware["gpu"]) == ([0, 1, 2, 3, 4], "NVIDIA H200")


def test_what_the_readme_says_of_counting_is_what_its_record_says():
    (record,) = read_record(Report, ROOT / "reports" / "counting" / "report.json").stages
    tasks = [f"mod{m}" for m in (3, 5, 7)]

    def counted(*arms):
        found = [record.find("counting_solved", f"{arm} {task}") for arm in arms for task in tasks]
        return sum(one.value for one in found), sum(one.n for one in found)

    said = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    angles, seeds = counted("complex_angles")
    assert f"sums modulo 3, 5 and 7 at four times the trained length in {angles:.0f} of {seeds} trainings" in said
    assert counted("real_rotations") == (angles, seeds)
    assert counted("gru") == (seeds, seeds)
    guessing = ("complex_fixed", "complex_none", "memory_fixed", "real_decay", "real_signed", "real_householder")
    unbalanced = [one.y[one.x.index(240)] for one in record.series if one.name == "counting_skewed"
                  and one.model in {f"{arm} {task}" for arm in guessing for task in tasks}]  # fmt: skip
    assert len(unbalanced) == len(guessing) * seeds
    assert max(unbalanced) < 0.01
    cost = over_whole("stage1_compact_angles") - 1
    assert f"there they cost {100 * cost:.0f} %" in said


def over_whole(model):
    """A changed compact model's perplexity on validation over the whole one's."""
    found = [one for one in read(ROOT / "reports") if one.setting == OF_COMPACT]
    sides = [{one.seed: one.loss for one in found if one.model == name} for name in (model, "stage1_compact")]
    return float(ratio(*sides).split()[0])


def test_what_the_readme_says_that_the_numbers_do_not_say_is_of_the_records():
    train = committed()["train"]
    tried = math.prod(
        len(train.params[name]) for name in ("learning_rates", "batch_tokens", "dropouts", "weight_decays")
    )
    said = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    assert f"the same {tried} tries for every model" in said
    level = committed("companions/gpu-common.json")["perplexity"].find("perplexity_ratio_to_phase2", "stage1_compact")
    assert f"({level.value:.3f} on test, three seeds)" in said
    assert len(level.samples) == 3
    for model, better in (("adjoint_head", True), ("real_scores", True), ("angles", False)):
        assert (over_whole(f"stage1_compact_{model}") < 0.98) == better
    assert over_whole("stage1_compact_angles") > 1.02
    for path in (ROOT / "reports" / "gpu" / "companions").glob("gpu-on-*.json"):
        found = metrics_of(read_record(Report, path), "perplexity", "perplexity")
        values = {metric.model: metric.value for metric in found}
        assert min(values.values()) > 5000
        assert min(values, key=values.get) != "stage1_compact"


def test_a_training_done_again_lands_within_the_spread_of_the_seeds():
    first, again = (read_record(Report, ROOT / "reports" / "gpu" / name)
                    for name in ("report.json", "companions/gpu-again.json"))  # fmt: skip
    (found,) = repeats(first, again)
    assert found.within
    assert (found.model, found.seed) == ("stage1_compact", "0")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_metric_of_the_committed_report_has_a_name_in_words(language):
    names = {metric.name.partition("_ratio_to_")[0] for stage in committed().values() for metric in stage.metrics}
    assert len(names) > 50
    assert sorted(name for name in names if f"metric.{name}" not in texts(language)) == []


def test_what_is_tracked_of_reports_is_small_and_told_once():
    listed = subprocess.run(["git", "ls-files", "-z", "reports"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in filter(None, listed.stdout.split("\0"))]
    sizes = {path: path.stat().st_size for path in paths if path.exists()}
    assert sum(sizes.values()) <= 5e6
    script = ROOT / "reports" / "gpu" / "assets" / "figures.js"
    assert max(size for path, size in sizes.items() if path != script) <= 2**20
    assert not [path for path in sizes if path.parent.name in ("records", "losses")]


@pytest.mark.parametrize("run", ["gpu", "wikitext2-cpu-full", "quick"])
def test_losses_of_targets_stay_out_of_the_repository(run):
    path = f"reports/{run}/losses/stage1.npz"
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0, f"{path} is not ignored"


def test_every_committed_perplexity_says_of_which_text_it_is():
    for path in (path for at in ("gpu*", "wikitext2-cpu-*") for path in (ROOT / "reports").glob(f"{at}/**/*.json")):
        if path.parent.name == "gpu-trainings" or path.name == "run.json":
            continue
        if path.parent.name == "adamw":  # the record of a stage by itself
            assert read_record(StageRecord, path).text == "wikitext-2-v1", path
            continue
        report = read_record(Report, path)
        read = {stage.stage: stage.text for stage in report.stages if stage.metrics or stage.stage != "perplexity"}
        if "perplexity" not in read:
            continue
        assert read["perplexity"] == ("another text" if report.run.params.get("test_corpus") else "wikitext-2-v1"), path
        assert not read.get("memory")


def test_the_committed_comparison_is_what_its_params_file_makes():
    report = read_record(Report, ROOT / "reports" / "gpu" / "report.json")
    settings = load_params(ROOT / "params" / "gpu.yaml").model_dump()
    train = of_today(next(stage for stage in report.stages if stage.stage == "train").params)
    assert {"batch_tokens", "weight_decays"} <= train.keys()
    elsewhere = {"corpus", "tokenizer", "cache_dir", "checkpoint_dir", "checkpoint_every_steps"}
    assert {k: v for k, v in train.items() if k in settings and k not in elsewhere} == {
        k: settings[k] for k in train if k in settings and k not in elsewhere
    }


def test_jupyterlab_is_told_to_look_for_no_updates_news_or_extensions():
    """Each of them connects to somebody when the page opens. The names are those that the installed version knows."""
    planned = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = next(line for line in planned.replace("\\\n", " ").splitlines() if "jupyter lab" in line)
    told = {"check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "news_url": "None"}
    told["extension_manager"] = "readonly"
    spec = importlib.util.find_spec("jupyterlab")
    for name, value in told.items():
        assert f" --LabApp.{name}={value}" in line
        assert spec is None or f"    {name} = " in Path(spec.origin).with_name("labapp.py").read_text(encoding="utf-8")
    if spec:
        assert "NeverCheckForUpdate" in Path(spec.origin).read_text(encoding="utf-8")
        names = [entry.name for entry in importlib.metadata.entry_points(group="jupyterlab.extension_manager_v1")]
        assert "readonly" in names


def test_every_test_that_a_promise_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "promises.md").read_text()))
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    assert named
    assert not named - there


def test_the_walk_shows_three_pictures_that_are_quickly_loaded():
    shown = re.findall(r"!\[.{20,}\]\((walk/\w+\.png)\)", (ROOT / "docs" / "walk.md").read_text())
    assert sorted(shown) == sorted(f"walk/{path.name}" for path in (ROOT / "docs" / "walk").iterdir())
    assert len(shown) == 3
    assert all((ROOT / "docs" / name).stat().st_size <= 120_000 for name in shown)
    assert "docs/walk.md" in (ROOT / "README.md").read_text()
