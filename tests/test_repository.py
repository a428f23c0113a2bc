"""The house itself: imports go one way, lists agree with each other, notebooks are clean and declare what they take."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from muse.params import PAGE_NAMES, Settings, load_params, validate
from muse.records import BenchRecord, Report, StageRecord, read_record

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LAYERS = (
    {
        "planar",
        "zeta",
        "green_triton",
        "head_triton",
        "layers_triton",
        "memory_triton",
        "mixer_triton",
        "replay",
        "texts",
    },
    {
        "layers",
        "head",
        "head_blocks",
        "green",
        "hebbian",
        "memory",
        "grammar",
        "tokenizers",
        "records",
        "params",
        "progress",
    },
    {"mixer", "stage1_memory", "generate", "corpora", "naive", "peers"},
    {"stage1", "real_twin", "phase2", "yardsticks", "checkpoint"},
    {"models", "measure", "recipe", "criteria", "drawing", "companions"},
    {
        "pretrained",
        "live",
        "complex_figures",
        "dynamics_figures",
        "bench_figures",
        "ratio_figures",
        "figures",
        "companion_figures",
        "twin_note",
    },
    {"train"},
    {"tuning", "export", "harness"},
    {"stage", "report", "companion_tables", "side_by_side"},
    {"warm", "check"},
    {"execute", "notebooks", "folder", "plain"},
    {"run"},
    {"cli"},
    {"__main__"},
)
"""Modules from the bottom of the house to its roof: each imports only from floors below its own, or from its own."""


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports at its top level or within its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == (2 if path.parent.name == "measure" else 1) or module.split(".")[0] == "muse":
                module = module.removeprefix("muse").lstrip(".")
                found |= {module.split(".")[0]} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("muse.")}
    return found


def floor(module: str) -> int:
    return next(i for i, modules in enumerate(LAYERS) if module in modules)


MODULES = [path for path in sorted((ROOT / "muse").rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "muse")))
def test_imports_go_one_way(path):
    own = "measure" if path.parent.name == "measure" else path.stem
    above = {module for module in imports_of(path) if floor(module) > floor(own)}
    assert not above, f"{path.name} imports {above} from a floor above its own"


def test_measurements_neither_print_nor_know_thresholds():
    for path in (ROOT / "muse" / "measure").glob("*.py"):
        text = path.read_text()
        assert "print(" not in text, path
        assert "criteria" not in imports_of(path), path


def test_only_criteria_holds_the_published_thresholds():
    for path in MODULES:
        if path.stem != "criteria":
            assert not re.search(r"\b(1\.03|0\.52)\b", path.read_text()), path


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


def test_every_import_is_a_declared_dependency():
    names = {
        "bs4": "beautifulsoup4",
        "ruamel": "ruamel-yaml",
        "yaml": "pyyaml",
        "IPython": "ipykernel",
        "lm_eval": "lm-eval",
    }
    brought = {"nbformat", "jinja2", "pygments", "tokenizers", "huggingface_hub", "pyarrow", "triton", "traitlets"}
    declared = {re.sub(r"[-_.]+", "-", Requirement(text).name) for text in PROJECT["dependencies"]}
    extras = {"check": "test", "harness": "eval"}  # modules that need an extra, which they say when it is missing
    for path in MODULES:
        optional = map(Requirement, PROJECT["optional-dependencies"].get(extras.get(path.stem), ()))
        allowed = declared | {re.sub(r"[-_.]+", "-", requirement.name) for requirement in optional}
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in (name.split(".")[0] for name in modules):
                if module in sys.stdlib_module_names or module == "muse" or module in brought:
                    continue
                assert names.get(module, module) in allowed, (path, module)


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
    assert "record_dir" in declared
    settings = {name: value for name, value in declared.items() if name in Settings.model_fields}
    assert declared.keys() - settings.keys() <= {"record_dir"}
    validate(settings)  # the defaults are valid settings
    for line in "".join(parameters["source"]).splitlines():
        assert re.fullmatch(r"\w+: \w+ = .+  # .+", line), f"{path.name}: {line!r} is not `name: type = value  # help`"
    source = "\n".join("".join(cell["source"]) for cell in code)
    assert not re.search(r"^\s*def ", source, re.MULTILINE), "logic belongs in muse, not in a cell"


def test_notebooks_that_look_for_a_training_declare_all_that_decides_it():
    declared = {}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        (parameters,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        declared[path.stem] = {line.split(":")[0] for line in "".join(parameters["source"]).splitlines()}
    looking = [name for name, found in declared.items() if "checkpoint_dir" in found]
    assert len(looking) == 3
    for name in looking:
        assert not declared["02_train"] - declared[name], name


def test_there_is_one_notebook_for_each_stage():
    stages = [path.stem[3:] for path in NOTEBOOKS]
    assert stages == list(PAGE_NAMES)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_params_files_are_valid_and_named_after_their_profile(path):
    assert load_params(path).profile == path.stem


def test_every_module_is_on_the_readme_map_and_every_name_there_exists():
    readme = (ROOT / "README.md").read_text()
    names = set(re.findall(r"`(?:muse/)?(\w+)\.py`", readme))
    modules = {path.stem for path in MODULES} - {"__main__"}
    assert modules <= names, f"not on the README's file map: {sorted(modules - names)}"
    for name in re.findall(r"`((?:muse|notebooks|params|tests)/[\w./]+)`", readme):
        assert (ROOT / name).exists(), f"README names {name}, which is not there"


def test_tracked_files_are_small_and_hold_no_absolute_paths():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.exists() or name.startswith("reports/"):
            continue
        assert path.stat().st_size < 2**20, name
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".json"}:
            assert not re.search(r"(^|[\s\"'`=])/(home|root|Users)/", path.read_text()), name


H200_ROWS = {
    "perplexity per token": ("perplexity", "perplexity", ".4g"),
    "perplexity per word": ("perplexity", "word_perplexity", ".4g"),
    "bits per byte": ("perplexity", "bits_per_byte", ".3f"),
    "peak memory, own precision (GiB)": ("memory", "peak_memory", ".3f"),
    "peak memory, all float32 (GiB)": ("memory", "peak_memory_matched", ".3f"),
    "peak memory with AdamW, all float32 (GiB)": ("memory", "peak_memory_with_optimizer", ".3f"),
    "forward with logits, eager (tokens/s)": ("throughput", "throughput_logits", ",.0f"),
}
"""Rows of the README's table: stage, metric and format."""


def test_the_readme_table_is_that_of_the_committed_comparison():
    readme = (ROOT / "README.md").read_text()
    report = read_record(Report, ROOT / "reports" / "h200" / "report.json")
    stages = {stage.stage: stage for stage in report.stages}
    after = readme[readme.index("numbers: reports/h200/report.json") :]
    table = {
        cells[1]: cells[2:5] for line in after.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 6
    }
    models = ("stage1", "phase2", "gpt2")
    for label, (stage, name, style) in H200_ROWS.items():
        assert table[label] == [format(stages[stage].find(name, model).value, style) for model in models], label
    bounds = [stages["perplexity"].find("perplexity", model).interval for model in models]
    assert table["95 % interval over documents and seeds"] == [f"{low:.4g} to {high:.4g}" for low, high in bounds]
    assert f"**{report.summary.ppl_ratio:.4g} times**" in readme
    assert f"{report.summary.vram_ratio:.3f} times the memory" in readme
    for name in ("peak_memory_matched", "peak_memory_with_optimizer"):
        assert f"{stages['memory'].find(f'{name}_ratio_to_phase2', 'stage1').value:.3f}" in readme
    verdicts = [criterion.verdict for criterion in report.criteria]
    assert (verdicts.count("pass"), verdicts.count("fail")) == (4, 1)
    assert report.run.started_utc.date().isoformat() in readme
    perplexity = next(criterion for criterion in report.criteria if criterion.name == "perplexity")
    low, high = (float(x) for x in re.search(r"seeds is ([\d.]+) to ([\d.]+?)\.?$", perplexity.reason).groups())
    assert f"{low:.3f} to {high:.3f}" in readme
    drops = {model: [] for model in models}
    for series in stages["train"].series:
        if series.name == "validation_loss":
            drops[series.model.partition(" ")[0]].append(series.y[-2] - series.y[-1])
    stage1, phase2, gpt2 = (statistics.fmean(drops[model]) for model in models)
    assert f"GPT-2 still gained {gpt2:.3f} nat, Phase 2 {phase2:.3f} and Stage 1 {stage1:.3f}" in readme


BENCH_ROWS = {
    "forward with logits, 4 x 1024": "bench_forward_4x1024",
    "head + loss, forward + backward, 2,048 tokens": "bench_head_2048",
    "six complex layers, forward + backward, 2 x 1024": "bench_stack_2x1024",
}
BENCH_PATHS = ("muse compiled", "muse eager", "naive", "naive float32", "complex64", "complextorch", "complexPyTorch")


def test_the_readme_table_is_that_of_the_committed_bench():
    readme = (ROOT / "README.md").read_text()
    record = read_record(BenchRecord, ROOT / "reports" / "bench-cpu" / "bench.json")
    assert record.run.started_utc.date().isoformat() in readme
    assert not record.run.git_dirty
    after = readme[readme.index("numbers: reports/bench-cpu/bench.json") : readme.index("numbers: reports/bench-h100")]
    table = {
        cells[1]: cells[2:9] for line in after.splitlines() if len(cells := [c.strip() for c in line.split("|")]) == 10
    }
    for label, group in BENCH_ROWS.items():
        found = [record.stage.find(f"{group}_milliseconds", path) for path in BENCH_PATHS]
        assert table[label] == ["" if metric is None else f"{metric.value:,.0f}" for metric in found], label
    shares = [
        record.stage.find("bench_stack_2x1024_matrix_share", path).value for path in ("muse compiled", "complex64")
    ]
    compiled, complex64 = (round(100 * share) for share in shares)
    assert f"reach {compiled} % of the matrix ceiling, complex64 {complex64} %" in readme
    extra = [record.stage.find("bench_head_2048_extra_memory", path).value / 2**20 for path in BENCH_PATHS[1:4]]
    assert "needs {:,.0f} MiB where naive forms need {:,.0f} and {:,.0f}".format(*extra) in readme


GPU_BENCH_ROWS = {
    "forward with logits, 4 x 1024": "forward_4x1024",
    "forward with logits, 64 x 1024": "forward_64x1024",
    "forward + backward + AdamW, 16 x 1024": "training_16x1024",
    "forward + backward + AdamW, 64 x 1024": "training_64x1024",
    "head + loss, forward + backward, 2,048 tokens": "head_2048",
    "six complex layers, forward + backward, 2 x 1024": "stack_2x1024",
}
GPU_BENCH_PATHS = (
    "muse graph", "muse compiled", "muse eager", "naive", "complex64", "complextorch", "complexPyTorch"
)  # fmt: skip


def bench_of(folder: str, gpu: str):
    """The README's rows behind the mark of a committed bench, and the bench's metrics by name and path."""
    readme = (ROOT / "README.md").read_text()
    record = read_record(BenchRecord, ROOT / "reports" / folder / "bench.json")
    assert record.run.hardware["gpu"] == gpu
    assert record.run.started_utc.date().isoformat() in readme
    after = readme[readme.index(f"numbers: reports/{folder}/bench.json") :]
    rows = [[cell.strip() for cell in line.split("|")] for line in after.splitlines()]

    def found(what: str, path: str) -> float | None:
        metric = record.stage.find(f"bench_{what}", path)
        return None if metric is None else metric.value

    return {cells[1]: cells[2:-1] for cells in reversed(rows) if len(cells) > 3}, found, readme


def test_the_readme_table_is_that_of_the_bench_on_a_gpu():
    table, found, readme = bench_of("bench-h100", "NVIDIA H100 80GB HBM3")
    for label, group in GPU_BENCH_ROWS.items():
        speeds = [found(f"{group}_speed", path) for path in GPU_BENCH_PATHS]
        if group.startswith("training"):  # its compiled step is one graph
            speeds[:2] = speeds[1], None
        assert table[label] == ["" if speed is None else f"{speed:,.0f}" for speed in speeds], label
    forward = [found(f"forward_{batch}x1024_ratio", "muse graph") for batch in (64, 4)]
    training = [found(f"training_{batch}x1024_ratio", "muse compiled") for batch in (16, 64)]
    assert "{:.1f} to {:.1f} times as fast as".format(*forward) in readme
    assert "{:.1f} to {:.1f} times in training".format(*training) in readme
    shares = (
        found("forward_64x1024_matrix_share", "muse graph"),
        found("training_64x1024_matrix_share", "muse compiled"),
    )
    forward_share, training_share = (f"{100 * share:.0f} %" for share in shares)
    assert f"reaches {forward_share} of the matrix ceiling, training {training_share}" in readme
    graph = found("stack_2x1024_speed", "muse graph")
    times = [graph / found("stack_2x1024_speed", peer) for peer in GPU_BENCH_PATHS[4:]]
    assert "{:.0f} times as fast as complex64 and {:.0f} and {:.0f} times".format(*times) in " ".join(readme.split())
    plain = [found("stack_2x1024_speed", f"muse {form}") / graph * times[0] for form in ("eager", "compiled")]
    assert "at {:.1f} (eager) and {:.1f} (compiled) times complex64".format(*plain) in readme
    ours, naive = (found("head_2048_extra_memory", path) / 2**20 for path in ("muse eager", "naive"))
    assert found("head_2048_ratio", "muse eager") < 1
    assert f"in {ours:.0f} MiB instead of {naive:,.0f}" in readme


def test_the_readme_table_of_the_other_models_is_that_of_a_bench():
    table, found, readme = bench_of("bench-h200", "NVIDIA H200")
    for label, mode in (("compiled, one CUDA graph a step", "compiled"), ("eager", "eager")):
        speeds = [found(f"models_{mode}_16x1024_speed", path) for path in ("stage1_memory", "phase2", "gpt2")]
        assert table[label] == [f"{speed:,.0f}" for speed in speeds], label
    ours, naive = (found("peak_memory", path) / 2**20 for path in ("muse eager", "naive"))
    assert f"was {ours:,.0f} MiB there, {naive:,.0f} in the naive form" in readme


def test_the_readme_table_of_the_run_that_was_cut_off_is_what_it_left():
    folder, readme = ROOT / "reports" / "gpu-interrupted", (ROOT / "README.md").read_text()
    train = read_record(StageRecord, folder / "records" / "train.json")
    notebook = json.loads((folder / "notebooks" / "03_perplexity.ipynb").read_text())
    printed = "".join("".join(out.get("text", "")) for cell in notebook["cells"] for out in cell.get("outputs", ()))
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in readme[readme.index("gpu-interrupted -->") :].splitlines()
    ]
    table = {cells[1]: cells[2:5] for cells in reversed(rows) if len(cells) == 6}
    labels = {"stage1": "Stage 1 (reference)", "stage1_memory": "Stage 1 with memory", "real_twin": "real twin",
              "phase2": "Phase 2", "gpt2": "GPT-2"}  # fmt: skip
    tests = {}
    for name, label in labels.items():
        tests[name] = re.search(rf"^{name} +seed 0: ([\d.]+), seed 1: ([\d.]+)$", printed, re.MULTILINE).groups()
        losses = [f"{loss:.4f}" for loss in train.find("validation_loss", name).samples]
        assert table[label] == [", ".join(losses), ", ".join(tests[name]), f"{train.find('dropout', name).value:g}"], (
            label
        )
    memory, phase2, twin = ([float(x) for x in tests[name]] for name in ("stage1_memory", "phase2", "real_twin"))
    ratios = [a / b for a, b in zip(memory, phase2, strict=True)]
    assert "{:.3f} and {:.3f} times its perplexity".format(*ratios) in readme
    assert max(abs(a / b - 1) for a, b in zip(twin, memory, strict=True)) < 0.008
    run = json.loads((folder / "run.json").read_text())
    assert run["started_utc"][:10] in readme
    assert run["hardware"]["gpu"].startswith("NVIDIA H100")


def test_the_committed_comparison_is_what_its_params_file_makes():
    report = read_record(Report, ROOT / "reports" / "h200" / "report.json")
    settings = load_params(ROOT / "params" / "h200.yaml").model_dump()
    train = next(stage for stage in report.stages if stage.stage == "train").params
    elsewhere = {"corpus", "tokenizer", "cache_dir", "checkpoint_dir", "checkpoint_every_steps"}
    assert {k: v for k, v in train.items() if k in settings and k not in elsewhere} == {
        k: settings[k] for k in train if k in settings and k not in elsewhere
    }


def test_readme_numbers_are_those_of_the_committed_records():
    readme = (ROOT / "README.md").read_text()
    for name, label in (("full", "perplexity per token, all"), ("ten", "the same, first 10 batches")):
        report = read_record(Report, ROOT / "reports" / f"wikitext2-cpu-{name}" / "report.json")
        (stage,) = report.stages
        row = next(line for line in readme.splitlines() if line.startswith(f"| {label}"))
        value, targets = stage.find("perplexity", "stage1").value, stage.find("num_targets", "stage1").value
        assert row.split("|")[2].strip() == f"{value:,.0f}"
        if name == "full":
            assert f"all {targets:,.0f} targets" in row
        else:
            assert targets == 10 * 4 * 1024
        assert report.run.started_utc.date().isoformat() in readme
        assert not report.run.git_dirty
        assert {str(f.sha256) for f in stage.inputs}, "the record names what was read"
