"""The hash of the code that a training depends on: what changes it, what does not, and what it covers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from muse.training import code_key
from muse.training.code_key import CodeKeyError, closure, code_sha256

CLOSURES = Path(__file__).parent / "code_closures.json"
TRAINER = "training/trainer.py"
MODELS = {
    "stage1": "models/stage1.py",
    "stage1_memory": "models/stage1.py",
    "real_twin": "models/real_twin.py",
    "phase2": "models/phase2.py",
    "gpt2": "models/gpt2.py",
    "stage1_compact": "models/stage1.py",
    "real_twin_compact": "models/real_twin.py",
    "phase2_compact": "models/phase2.py",
}

HOUSE = {
    "__init__.py": "",
    "model.py": "from .ops.planar import lift\nfrom .ops import norms\n\nmodel = lambda x: lift(norms.norm(x))\n",
    "ops/__init__.py": "",
    "ops/planar.py": "import torch\n\nSCALE = 2\n\ndef lift(x):\n    return torch.relu(x) * SCALE\n",
    "ops/norms.py": "try:\n    from .norms_triton import norm\nexcept ImportError:\n    norm = None\n",
    "ops/norms_triton.py": "import muse.records\n\ndef norm(x):\n    from muse.deep import eps\n    return x + eps()\n",
    "deep.py": "def eps():\n    return 1e-6\n",
    "records.py": "def write():\n    return 1\n",
    "lonely.py": "def eps():\n    return 1e-6\n",
}


def build(folder: Path, changes: dict[str, str] = {}) -> Path:  # noqa: B006 - never changed
    for name, text in (HOUSE | changes).items():
        path = folder / "muse" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "muse"


def key_of(folder: Path, changes: dict[str, str] = {}) -> str:  # noqa: B006
    package = build(folder, changes)
    return code_sha256(package / "model.py", package=package)


def test_every_level_of_import_is_followed(tmp_path):
    package = build(tmp_path)
    found = closure(package / "model.py", package=package)
    assert found == ["deep.py", "model.py", "ops/norms.py", "ops/norms_triton.py", "ops/planar.py"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"ops/planar.py": HOUSE["ops/planar.py"].replace("* SCALE", "+ SCALE")}, id="a function"),
        pytest.param({"ops/planar.py": HOUSE["ops/planar.py"].replace("SCALE = 2", "SCALE = 3")}, id="a constant"),
        pytest.param({"deep.py": "def eps():\n    return 1e-5\n"}, id="two imports away, within a function"),
        pytest.param({"ops/norms_triton.py": HOUSE["ops/norms_triton.py"].replace("+ eps", "- eps")}, id="a kernel"),
        pytest.param({"model.py": HOUSE["model.py"].replace("planar import lift", "other import lift"),
                      "ops/other.py": "def lift(x):\n    return x\n"}, id="a name bound to another definition"),
        pytest.param({"ops/norms.py": "norm = None\n"}, id="a kernel that is no longer bound"),
        pytest.param({"ops/planar.py": HOUSE["ops/planar.py"].replace("import torch", "import numpy as torch")},
                     id="another package under the same name"),
    ],
)  # fmt: skip
def test_a_change_of_what_is_done_changes_the_key(tmp_path, changes):
    assert key_of(tmp_path / "before") != key_of(tmp_path / "after", changes)


def test_a_name_rebound_between_two_modules_that_are_both_covered_changes_the_key(tmp_path):
    two = {
        "a.py": "def f():\n    return 1\n",
        "b.py": "def f():\n    return 2\n",
        "model.py": "from . import a, b\nfrom .a import f\n\nprint(f(), a, b)\n",
    }
    other = two | {"model.py": two["model.py"].replace("from .a", "from .b")}
    assert key_of(tmp_path / "before", two) != key_of(tmp_path / "after", other)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"records.py": "def write():\n    return 2\n", "lonely.py": "x = 1\n"}, id="code without effect"),
        pytest.param({"deep.py": '"""Text."""\n# word\ndef eps():\n    """More."""\n    return (1e-6)\n'}, id="words"),
        pytest.param({"ops/planar.py": "import torch\n\ndef lift(x):\n    return torch.relu(x) * SCALE\n\nSCALE = 2\n"},
                     id="the order of definitions"),
        pytest.param({"model.py": HOUSE["model.py"].replace(".ops.planar", ".models.lifts"), "models/__init__.py": "",
                      "models/lifts.py": HOUSE["ops/planar.py"]}, id="a module that moves"),
        pytest.param({"ops/planar.py": "from .scale import SCALE\nimport torch\n\ndef lift(x):\n"
                      "    return torch.relu(x) * SCALE\n", "ops/scale.py": "SCALE = 2\n"}, id="a split"),
        pytest.param({"model.py": HOUSE["model.py"].replace("from .ops.", "from muse.ops.")}, id="an absolute import"),
    ],
)  # fmt: skip
def test_a_move_or_a_split_leaves_the_key_alone(tmp_path, changes):
    assert key_of(tmp_path / "before") == key_of(tmp_path / "after", changes)


@pytest.mark.parametrize(
    "line",
    ["from .gone import f", "from . import gone", "import muse.gone", "from .ops.planar import gone",
     "from ...x import f", "from muse.ops import gone"],
)  # fmt: skip
@pytest.mark.parametrize("template", ["{}\n", "def g():\n    {}\n", "try:\n    {}\nexcept ImportError:\n    f = 0\n"])
def test_an_import_that_leads_to_nothing_is_an_error(tmp_path, line, template):
    with pytest.raises(CodeKeyError, match=r"model.py:\d: import of .* no such module or name"):
        key_of(tmp_path, {"model.py": template.format(line)})


def test_the_closure_of_each_model_is_the_committed_one():
    """A module that leaves the list no longer changes the key of a training: that must be meant.

    To renew the list: `python tests/training/test_code_key.py`.
    """
    assert covered() == json.loads(CLOSURES.read_text())


def covered() -> dict[str, list[str]]:
    return {name: closure(code_key.PACKAGE / file, code_key.PACKAGE / TRAINER) for name, file in MODELS.items()}


def test_the_models_of_the_list_are_those_that_can_be_trained():
    from muse.catalog import ABLATIONS, MODEL_NAMES

    assert set(MODELS) == set(MODEL_NAMES) - set(ABLATIONS)


if __name__ == "__main__":
    CLOSURES.write_text(json.dumps(covered(), indent=1) + "\n")
