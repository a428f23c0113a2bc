"""What several tests build: records, reports, notebooks and pages."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook, new_output

from muse.data.corpora import load_corpus
from muse.records.criteria import CRITERIA
from muse.records.schema import Criterion, Judged, Metric, Report, RunInfo, Series, StageRecord, Summary
from muse.records.store import write_record
from muse.report.export import export_html

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "07_report.ipynb"


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


LATER = datetime(2026, 1, 2, 4, 9, 5, tzinfo=UTC)


VERDICTS = dict.fromkeys(CRITERIA, "pass") | {"perplexity": "fail", "vram": "not_measured"}


@lru_cache
def corpus():
    """A little of the synthetic language."""
    return load_corpus("synthetic", "corpus", synthetic_tokens=dict.fromkeys(("train", "validation", "test"), 3000))


def criterion(name, verdict="pass", **values):
    values = {
        "target": "at most <1.03>",
        "value": 1.25,
        "basis": "measured",
        "reason": f"because of {name} <more>",
    } | values
    return Criterion(name=name, verdict=verdict, **values)


def stage(name="perplexity", **values):
    return StageRecord(stage=name, **{"started_utc": NOW, "finished_utc": LATER, "scale": "published"} | values)


def basic_test_record(drop=(), params=None, status="ok", **changes):
    """The record of a basic test at the published size on CUDA, with changes of metrics by name."""
    values = {"parameters": 80_937_553, "nan_logits": 0, "infinite_logits": 0, "untrained_loss": 10.83}
    values |= {"gradient_norm": 0.1, "gradient_norm_min": 0.1, "gradient_norm_max": 0.2}
    values |= {"parameters_without_gradient": 0, "layout_violations": 0, "bytes_per_complex": 4}
    values |= {"peak_memory": 0.4, "held_memory": 0.3}
    metrics = {name: Metric(name=name, model="stage1", value=value, unit="1") for name, value in values.items()}
    metrics["gradient_norm"] = metrics["gradient_norm"].model_copy(update={"samples": [0.1, 0.2], "labels": ["a", "b"]})
    metrics |= {name: metrics[name].model_copy(update=update) for name, update in changes.items()}
    sizes = {"vocab_size": 50257, "d_model": 512, "n_layers": 6, "n_seq": 1024, "device": "cuda"}
    sizes |= {"gradient_batch_size": 2, "gradient_n_tokens": 128, "memory_batch_size": 2}
    kept = [metric for name, metric in metrics.items() if name not in drop]
    return stage("basic_test", metrics=kept, params=sizes | (params or {}), status=status)


def run_info(**values):
    about = {"id": "quick-1", "profile": "quick", "started_utc": NOW, "git_commit": "abc123", "git_dirty": False}
    about |= {"versions": {"torch": "9.9"}, "hardware": {"cpu": "slow"}, "seeds": [0, 7], "command": "muse run <x>"}
    return RunInfo(**about | values)


def make_report(stages=(), run=None, verdicts=VERDICTS):
    criteria = [criterion(name, verdict) for name, verdict in verdicts.items()]
    return Report.of(run or run_info(), [Judged(model="stage1", criteria=criteria, summary=Summary())], stages)


def soup(text):
    return BeautifulSoup(text, "html.parser")


def code(source="1 + 1  # sum", *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)}, execution_count=1)


def shown(data):
    return new_output("display_data", data)


def export_cells(folder, *cells, page="pages/03_perplexity.html", parameters=None, **options):
    source = folder / "source.ipynb"
    metadata = {"papermill": {"parameters": parameters}} if parameters else {}
    nbformat.write(new_notebook(cells=list(cells), metadata=metadata), source)
    options = {"title": "A title", "links": [], "language": "en", "inline_assets": False} | options
    export_html(source, folder / page, **options)
    return folder / page


def run_notebook(folder, language, monkeypatch):
    """Run the cells of 07_report here and return its outputs as one page."""
    outputs = []

    def display(*bundles, raw, metadata=None):
        outputs.extend(new_output("display_data", bundle, metadata=metadata or {}) for bundle in bundles)

    monkeypatch.setattr("IPython.display.display", display)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    values = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, values)
        if "parameters" in cell.metadata.get("tags", ()):
            values |= {"record_dir": str(folder / "records"), "language": language}
    return export_cells(folder, code("x", *outputs), page="index.html", language=language, inline_assets=True)


def write_run(folder, *stages):
    names = [record.stage for record in stages] or ["perplexity"]
    write_record(run_info(params={"stages": names}), folder / "run.json")
    for record in stages:
        write_record(record, folder / "records" / f"{record.stage}.json")


PARAMETERS = "seed: int = 7  # help\nd_model = 512\nrecord_dir: str = '.'"


def write_notebook(folder, name, *cells, parameters=PARAMETERS, heading="# The title\n\ntext"):
    def cell(kind, source, **more):
        return {"cell_type": kind, "id": f"cell-{len(made)}", "metadata": {}, "source": source.splitlines(True)} | more

    made = []
    made.append(cell("markdown", heading))
    for i, source in enumerate((parameters, *cells)):
        tags = {"tags": ["parameters"]} if i == 0 and parameters else {}
        if source is not None:
            made.append(cell("code", source, metadata=tags, outputs=[], execution_count=None))
    kernel = {"kernelspec": {"name": "not-installed", "display_name": "x", "language": "python"}}
    path = folder / name
    path.write_text(json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def fake_export(notebook, page, **about):
    """Stand in for the real export, which has tests of its own."""
    if notebook.stem == "00_planar_complex":
        raise RuntimeError("no export today")
    page.write_text(json.dumps(about, default=lambda record: record.model_dump()))


def record(stage="perplexity", **values):
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return StageRecord(stage=stage, started_utc=now, finished_utc=now, scale="published", **values)


def metric(name, model="stage1", value=1.0, unit="1", **values):
    return Metric(name=name, model=model, value=value, unit=unit, **values)


def series(name, model="stage1", x=(1, 2, 3), y=(5.0, 4.0, 3.5), **values):
    return Series(name=name, model=model, x_name="tokens", y_name="loss", x=list(x), y=list(y), **values)


def ratio(model, value, interval=None, samples=(), baseline="phase2"):
    labels = [f"seed {seed}" for seed in range(len(samples))]
    values = {"interval": interval, "samples": list(samples), "labels": labels}
    return metric(f"perplexity_ratio_to_{baseline}", model, value, **values)


TINY_TRAINING = {"train_tokens": 512, "batch_tokens": [128], "train_d_model": 8, "train_n_layers": 1,
                 "train_n_seq": 16, "evaluations": 1, "device": "cpu"}  # fmt: skip


def write_tiny_training(folder, **values):
    """A params file of a training that takes a moment, with a small text of its own; return its path."""
    text = folder / "text"
    text.mkdir()
    for split, count in (("train", 80), ("validation", 5), ("test", 5)):
        (text / f"{split}.txt").write_text("the sun and the moon go round and a cat looks at the moon \n" * count)
    path = folder / "p.yaml"
    path.write_text(json.dumps(TINY_TRAINING | {"corpus": str(text), "cache_dir": str(folder / "cache")} | values))
    return str(path)
