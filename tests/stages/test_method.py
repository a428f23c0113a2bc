"""The version of a measurement: which changes of the code change it, and that every number of a stage has one."""

from __future__ import annotations

import shutil

import pytest
from builders import metric

from muse import measure
from muse.stages import basic_test, dynamics, gradients_stability, memory, method, perplexity, throughput, train
from muse.stages import counting as counting_stage
from muse.stages.stage import Stage

PACKAGE = method.PACKAGE
SETTINGS = {
    "d_model": 16, "n_layers": 1, "n_seq": 32, "vocab_size": 77, "device": "cpu",
    "models": ["stage1_memory", "phase2"],
    "train_tokens": 8192, "batch_tokens": [8192], "train_d_model": 8, "train_n_layers": 1, "train_n_seq": 128,
    "evaluations": 1, "learning_rates": [0.01], "ppl_batch_size": 2, "max_ppl_batches": 2, "seeds": [0, 1],
    "compile": False,
    "candidates": ["stage1_memory"], "stability_trials": 1, "gradient_n_tokens": 16, "stability_n_tokens": 16,
    "throughput_n_tokens": 16, "throughput_warmups": 1, "throughput_samples": 1, "throughput_batch_size": 1,
    "counting_moduli": [2], "counting_arms": ["complex_angles"], "counting_steps": 2, "counting_batch": 2,
    "counting_lengths": [8], "counting_length": 8, "counting_seeds": [0], "counting_sequences": 2,
}  # fmt: skip
PERPLEXITY = (perplexity._on_test_split, measure.seed_metrics)


@pytest.fixture
def package(tmp_path):
    """A copy of the package whose code a test may change."""
    return shutil.copytree(PACKAGE, tmp_path / "muse", ignore=lambda folder, names: [n for n in names if n == "cuda"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where stages write; a training is found by the next one."""
    folder = tmp_path_factory.mktemp("run")
    return {key: str(folder / key) for key in ("record_dir", "checkpoint_dir", "cache_dir")}


def changed(package, file, before, after):
    """Change a line of a copy of the package and return the copy."""
    text = (package / file).read_text()
    assert text.count(before) == 1
    (package / file).write_text(text.replace(before, after))
    method._version.cache_clear()
    return package


def test_a_copy_of_the_package_has_the_same_versions(package):
    assert method.method_of(*PERPLEXITY) == method.method_of(*PERPLEXITY, package=package)
    assert len(method.method_of(*PERPLEXITY)) == method.DIGITS


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("measure/perplexity.py", "return self.nll_nats / self.num_targets", "return self.nll_nats / self.num_tokens"),
        ("measure/common.py", "math.exp(value)", "math.exp(2 * value)"),
        ("data/batches.py", "return len(ids) - 1", "return len(ids)"),
        ("records/bootstrap.py", "RESAMPLES = 2000", "RESAMPLES = 20"),
        ("stages/perplexity.py", "max_batches=stage.settings.max_ppl_batches", "max_batches=1"),
    ],
)
def test_a_change_of_what_measures_changes_the_version_of_what_is_measured(package, file, before, after):
    of_memory = method.method_of(measure.measure_memory)
    assert method.method_of(*PERPLEXITY, package=changed(package, file, before, after)) != method.method_of(*PERPLEXITY)
    assert method.method_of(measure.measure_memory, package=package) == of_memory


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("models/stage1.py", "import torch\n", "import torch\n\nOTHER = 1\n"),
        ("training/trainer.py", "import torch\n", "import torch\n\nOTHER = 1\n"),
        ("measure/memory.py", "import torch\n", "import torch\n\nOTHER = 1\n"),
        ("measure/common.py", "torch.randint(model.config.vocab_size", "torch.randint(1 + model.config.vocab_size"),
        ("stages/perplexity.py", "SCAN_TOLERANCE = 1e-4", "SCAN_TOLERANCE = 1e-3"),
        ("report/numbers.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nX = 1\n"),
        ("measure/perplexity.py", "import math\n", "import math  # a word\n"),
    ],
)
def test_a_change_of_anything_else_does_not(package, file, before, after):
    assert method.method_of(*PERPLEXITY, package=changed(package, file, before, after)) == method.method_of(*PERPLEXITY)


def test_a_function_from_elsewhere_has_no_version():
    (found,) = method.by([metric("loss")], changed)
    assert found.method == ""
    (found,) = method.by([metric("loss")], measure.measure_memory, lambda: None)
    assert found.method == ""


@pytest.mark.parametrize(
    "stage",
    [basic_test, train, perplexity, memory, throughput, gradients_stability, dynamics, counting_stage],
)
def test_every_number_of_a_stage_has_a_version(folders, stage):
    record = stage.run(Stage(stage.__name__.rpartition(".")[2], SETTINGS | folders))
    assert record.metrics
    assert [found.name for found in record.metrics if not found.method and found.value is not None] == []
