"""The house itself: imports go one way, lists agree with each other, notebooks are clean and declare what they take."""

from __future__ import annotations

import ast
import itertools
import json
import math
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from muse.params import Settings, load_params, validate
from muse.records.schema import BenchRecord, Metric, Report, StageRecord
from muse.records.store import read_record
from muse.report.companions import repeats
from muse.report.texts import LANGUAGES, texts

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "muse").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
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


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_params_files_are_valid_and_named_after_their_profile(path):
    assert load_params(path).profile == path.stem


def test_every_folder_is_on_the_readme_map_and_every_name_there_exists():
    readme = (ROOT / "README.md").read_text()
    parts = {path.name for path in (ROOT / "muse").iterdir() if not path.name.startswith("__")}
    named = set(re.findall(r"^\| `muse/([\w.]+?)/?` ", readme, re.MULTILINE))
    assert parts == named
    for name in re.findall(r"`((?:muse|notebooks|params|tests)/[\w./]+)`", readme):
        assert (ROOT / name).exists(), f"README names {name}, which is not there"


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


COMPARISON_ROWS = {
    "perplexity per token": ("perplexity", "perplexity", ".4g"),
    "perplexity per word": ("perplexity", "word_perplexity", ".4g"),
    "bits per byte": ("perplexity", "bits_per_byte", ".3f"),
    "dropout, chosen on validation out of 0.1 and 0.4": ("train", "dropout", "g"),
    "peak memory, own precision (GiB)": ("memory", "peak_memory", ".3f"),
    "the same, blocks recomputed (GiB)": ("memory", "peak_memory_recomputed", ".3f"),
    "peak memory, all float32 (GiB)": ("memory", "peak_memory_matched", ".3f"),
    "peak memory with AdamW, all float32 (GiB)": ("memory", "peak_memory_with_optimizer", ".3f"),
    "forward with logits, eager (tokens/s)": ("throughput", "throughput_logits", ",.0f"),
}
"""Rows of the README's table: stage, metric and format."""

COMPARED = ("stage1", "stage1_memory", "real_twin", "phase2", "gpt2")
SCALAR_BYTES = {"stage1": 2, "stage1_memory": 2, "real_twin": 2, "phase2": 4, "gpt2": 4}

CHANGES = {
    "nothing": "stage1_memory",
    "no rotation": "stage1_memory_no_rotation",
    "real scores only": "stage1_memory_real_scores",
    "the reference's positions added": "stage1_memory_positions",
    "ModReLU instead of a gated feed-forward": "stage1_memory_modrelu",
    "an untied head": "stage1_memory_untied",
    "no decay": "stage1_memory_no_decay",
}


def readme_table(mark: str) -> dict[str, list[str]]:
    """The rows of the README's first table behind a mark, by their first cell."""
    readme = (ROOT / "README.md").read_text()
    lines = readme[readme.index(f"<!-- numbers: {mark} -->") :].splitlines()[1:]
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in row.strip("|").split("|")] for row in rows)}


def committed(name: str = "report.json") -> dict[str, StageRecord]:
    """The stages of the committed comparison, or of one of its companions."""
    return {stage.stage: stage for stage in read_record(Report, ROOT / "reports" / "gpu" / name).stages}


def with_bounds(ratio: Metric | None) -> str:
    """A ratio with its interval; 1 for the baseline, which has none."""
    return "1" if ratio is None else "{:.3f} ({:.3f} to {:.3f})".format(ratio.value, *ratio.interval)


def test_the_readme_table_is_that_of_the_committed_comparison():
    table, stages = readme_table("reports/gpu/report.json"), committed()
    for label, (stage, name, style) in COMPARISON_ROWS.items():
        assert table[label] == [format(stages[stage].find(name, model).value, style) for model in COMPARED], label
    bounds = [stages["perplexity"].find("perplexity", model).interval for model in COMPARED]
    assert table["95 % interval over documents and seeds"] == [f"{low:.4g} to {high:.4g}" for low, high in bounds]
    ratios = [stages["perplexity"].find("perplexity_ratio_to_phase2", model) for model in COMPARED]
    assert table["ratio to Phase 2, paired"] == [with_bounds(ratio) for ratio in ratios]


def test_what_the_readme_says_of_the_comparison_is_what_its_records_say():
    readme = " ".join((ROOT / "README.md").read_text().split())
    report, stages = read_record(Report, ROOT / "reports" / "gpu" / "report.json"), committed()
    judged = [report.criteria, *(other.criteria for other in report.others)]
    assert [other.model for other in report.others] == ["stage1_memory"]
    for criteria, ratio in zip(judged, ("**{:.4g} times**", "**{:.3f} times**"), strict=True):
        by_name = {criterion.name: criterion for criterion in criteria}
        assert [c.verdict for c in criteria].count("pass") == 4
        low, high = re.search(r"seeds is ([\d.]+) to ([\d.]+?)\.?$", by_name["perplexity"].reason).groups()
        assert f"{float(low):.3f} to {float(high):.3f}" in readme
        assert ratio.format(by_name["perplexity"].value) in readme
    memory = stages["memory"]
    for name, model in itertools.product(("", "_matched", "_with_optimizer"), ("stage1", "stage1_memory")):
        assert f"{memory.find(f'peak_memory{name}_ratio_to_phase2', model).value:.3f}" in readme, (name, model)
    held = [memory.find("parameter_memory", model).value for model in ("stage1_memory", "phase2")]
    assert f"weights and gradients alone are {held[0] / held[1]:.2f} of" in readme
    million = {model: memory.find("parameter_memory", model).value * 2**30 / size / 1e6
               for model, size in SCALAR_BYTES.items()}  # fmt: skip
    assert f"{million['stage1_memory']:.1f}" == f"{million['real_twin']:.1f}"
    told = "{stage1_memory:.1f} million real scalars each, the reference {stage1:.1f}, Phase 2 {phase2:.1f}"
    assert f"{told}, GPT-2 {{gpt2:.1f}}".format(**million) in readme
    perplexity = stages["perplexity"]
    best = min(perplexity.find("perplexity", "stage1_memory").samples)
    assert f"{best:.2f} per token for its best seed" in readme
    twin = perplexity.find("perplexity_ratio_to_stage1_memory", "real_twin")
    assert "has {:.3f} times the perplexity of the complex memory ({:.3f} to {:.3f})".format(
        twin.value, *twin.interval
    ) in readme  # fmt: skip
    assert f"its real twin comes within {100 * (twin.value - 1):.1f} %" in readme
    gains = [math.log(perplexity.find("perplexity_ratio_to_phase2", m).value) for m in ("real_twin", "stage1_memory")]
    assert f"{100 * gains[0] / gains[1]:.0f} % of the gain in nats per token" in readme
    formats = [perplexity.find("perplexity", "stage1_memory").samples[0]]
    formats += [perplexity.find(f"perplexity_{kind}", "stage1_memory").value for kind in ("bfloat16", "float32")]
    assert "gives {:.2f}, {:.2f} and {:.2f} per token".format(*formats) in readme
    drops = {model: [] for model in COMPARED}
    for series in stages["train"].series:
        if series.name == "validation_loss":
            drops[series.model.partition(" ")[0]].append(series.y[-2] - series.y[-1])
    gained = {model: statistics.fmean(found) for model, found in drops.items()}
    yardstick = gained.pop("gpt2")
    least, most = min(gained.values()), max(gained.values())
    assert f"GPT-2 still gained {yardstick:.3f} nat, the others {least:.3f} to {most:.3f}" in readme
    assert report.run.seeds == [0, 1, 2, 3, 4]
    assert report.run.started_utc.date().isoformat() in readme
    assert report.run.hardware["gpu"].startswith("NVIDIA H100")


def test_the_readme_tables_are_those_of_the_committed_companions():
    table = readme_table("reports/gpu/companions/gpu-ablations.json")
    perplexity = committed("companions/gpu-ablations.json")["perplexity"]
    for label, model in CHANGES.items():
        value = perplexity.find("perplexity", model).value
        ratio = perplexity.find("perplexity_ratio_to_stage1_memory", model)
        assert table[label] == [f"{value:.4g}", with_bounds(ratio)], label
    assert all(perplexity.find("perplexity_ratio_to_stage1_memory", CHANGES[change]).interval[0] < 1
               for change in ("no rotation", "real scores only"))  # fmt: skip
    table = readme_table("reports/gpu/companions/gpu-length")
    for n_seq in (1024, 2048, 4096, 8192):
        stages = committed(f"companions/gpu-length-{n_seq}.json")
        found = [
            (stages["perplexity"].find("perplexity", model).value, stages["memory"].find("peak_memory", model).value)
            for model in ("stage1_memory", "phase2", "gpt2")
        ]
        assert table[f"{n_seq:,}"] == [f"{value:.4g}; {peak:.3f} GiB" for value, peak in found], n_seq


def test_a_training_done_again_lands_within_the_spread_of_the_seeds():
    readme = " ".join((ROOT / "README.md").read_text().split())
    first = read_record(Report, ROOT / "reports" / "gpu" / "report.json")
    again = read_record(Report, ROOT / "reports" / "gpu" / "companions" / "gpu-again.json")
    (found,) = repeats(first, again)
    assert found.within
    assert (found.model, found.seed) == ("stage1_memory", "0")
    assert f"gives {found.again:.2f} instead of {found.first:.2f}" in readme
    assert f"(sd {found.sd:.2f})" in readme


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_metric_of_the_committed_report_has_a_name_in_words(language):
    names = {metric.name.partition("_ratio_to_")[0] for stage in committed().values() for metric in stage.metrics}
    assert len(names) > 50
    assert sorted(name for name in names if f"metric.{name}" not in texts(language)) == []


def test_the_committed_report_is_small_enough_to_send():
    files = [path for path in (ROOT / "reports" / "gpu").rglob("*") if path.is_file()]
    kept = [path for path in files if path.relative_to(ROOT / "reports" / "gpu").parts[0] not in ("logs", "notebooks")]
    assert sum(path.stat().st_size for path in kept) <= 8e6


BENCH_ROWS = {
    "forward with logits, 4 x 1024": "bench_forward_4x1024",
    "head + loss, forward + backward, 2,048 tokens": "bench_head_2048",
    "six complex layers, forward + backward, 2 x 1024": "bench_stack_2x1024",
}
BENCH_PATHS = ("muse compiled", "muse eager", "naive", "naive float32", "complex64", "complextorch", "complexPyTorch")


@pytest.mark.parametrize("folder", ["bench-cpu", "bench-cpu-amx"])
def test_the_readme_tables_are_those_of_the_committed_benches(folder):
    record = read_record(BenchRecord, ROOT / "reports" / folder / "bench.json")
    assert record.run.started_utc.date().isoformat() in (ROOT / "README.md").read_text()
    assert not record.run.git_dirty
    assert record.run.hardware["cores"] == "2"
    table = readme_table(f"reports/{folder}/bench.json")
    for label, group in BENCH_ROWS.items():
        found = [record.stage.find(f"{group}_milliseconds", path) for path in BENCH_PATHS]
        assert table[label] == ["" if metric is None else f"{metric.value:,.0f}" for metric in found], label


def test_what_the_readme_says_of_the_benches_is_what_they_found():
    readme = " ".join((ROOT / "README.md").read_text().split())
    folders = (ROOT / "reports" / name for name in ("bench-cpu", "bench-cpu-amx"))
    plain, amx = (read_record(BenchRecord, folder / "bench.json").stage for folder in folders)
    shares = [plain.find("bench_stack_2x1024_matrix_share", path).value for path in ("muse compiled", "complex64")]
    compiled, complex64 = (round(100 * share) for share in shares)
    assert f"reach {compiled} % of the matrix ceiling, complex64 {complex64} %" in readme
    extra = [plain.find("bench_head_2048_extra_memory", path).value / 2**20 for path in BENCH_PATHS[1:4]]
    extra.append(amx.find("bench_head_2048_extra_memory", "muse eager").value / 2**20)
    told = "needs {:,.0f} MiB where naive forms need {:,.0f} and {:,.0f} (with AMX, and newer, {:,.0f})"
    assert told.format(*extra) in readme
    stack = {
        path: amx.find("bench_stack_2x1024_milliseconds", path).value for path in (BENCH_PATHS[0], *BENCH_PATHS[4:])
    }
    ours, *others = stack.values()
    told = "are {:.1f} times as fast as complex64, {:.1f} and {:.1f} times as fast as the libraries, at {:.0f} % of"
    share = 100 * amx.find("bench_stack_2x1024_matrix_share", "muse compiled").value
    assert told.format(*(other / ours for other in others), share) in readme
    share = 100 * amx.find("bench_forward_4x1024_matrix_share", "muse compiled").value
    ratio = amx.find("bench_forward_4x1024_ratio", "muse compiled").value
    assert f"forward at {share:.0f} % is {ratio:.1f} times as fast as its naive form" in readme


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
    """The metrics of a committed bench by name and path, and the README, which says when it was made."""
    readme = (ROOT / "README.md").read_text()
    record = read_record(BenchRecord, ROOT / "reports" / folder / "bench.json")
    assert record.run.hardware["gpu"] == gpu
    assert record.run.started_utc.date().isoformat() in readme

    def found(what: str, path: str) -> float | None:
        metric = record.stage.find(f"bench_{what}", path)
        return None if metric is None else metric.value

    return found, readme


def test_the_readme_table_is_that_of_the_bench_on_a_gpu():
    found, readme = bench_of("bench-h100", "NVIDIA H100 80GB HBM3")
    table = readme_table("reports/bench-h100/bench.json")
    for label, group in GPU_BENCH_ROWS.items():
        speeds = [found(f"{group}_speed", path) for path in GPU_BENCH_PATHS]
        if group.startswith("training"):  # its compiled step is one graph
            speeds[:2] = speeds[1], None
        assert table[label] == ["" if speed is None else f"{speed:,.0f}" for speed in speeds], label
    forward = [found(f"forward_{batch}x1024_ratio", "muse graph") for batch in (64, 4)]
    training = [found(f"training_{batch}x1024_ratio", "muse compiled") for batch in (16, 64)]
    assert "{:.1f} to {:.1f} times as fast as".format(*forward) in " ".join(readme.split())
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
    head = found("head_2048_ratio", "muse eager")
    told = f"at {head:.1f} times the speed of its naive form, in {ours:.0f} MiB instead of {naive:,.0f}"
    assert told in " ".join(readme.split())


def test_the_readme_table_of_the_other_models_is_that_of_the_bench_on_a_gpu():
    found, readme = bench_of("bench-h100", "NVIDIA H100 80GB HBM3")
    table = readme_table("reports/bench-h100/bench.json, other models")
    for label, mode in (("compiled, one CUDA graph a step", "compiled"), ("eager", "eager")):
        speeds = [found(f"models_{mode}_16x1024_speed", path) for path in ("stage1_memory", "phase2", "gpt2")]
        assert table[label] == [f"{speed:,.0f}" for speed in speeds], label
    ours, naive = (found("peak_memory", path) / 2**20 for path in ("muse eager", "naive"))
    assert f"is {ours:,.0f} MiB, {naive:,.0f} in the naive form" in readme


def test_the_older_bench_in_the_readme_is_the_committed_one():
    found, readme = bench_of("bench-h200", "NVIDIA H200")
    speeds = [found(f"forward_{batch}x1024_speed", "muse graph") for batch in (4, 64)]
    speeds.append(found("training_64x1024_speed", "muse compiled"))
    told = "forward {:,.0f} (4 x 1024, as a graph) and {:,.0f} (64 x 1024), training {:,.0f} (64 x 1024);"
    assert told.format(*speeds) in readme
    speeds = [found("models_compiled_16x1024_speed", model) for model in ("stage1_memory", "phase2", "gpt2")]
    assert "Stage 1 with memory {:,.0f}, Phase 2 {:,.0f}, GPT-2 {:,.0f} tokens/s".format(*speeds) in readme


def test_the_committed_comparison_is_what_its_params_file_makes():
    report = read_record(Report, ROOT / "reports" / "gpu" / "report.json")
    settings = load_params(ROOT / "params" / "gpu.yaml").model_dump()
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
