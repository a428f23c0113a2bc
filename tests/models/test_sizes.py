"""Configurations that no model was meant by: refused before they take memory."""

from __future__ import annotations

import json

import pytest

from muse.models.build import build_model
from muse.models.gpt2 import Gpt2Config
from muse.models.phase2 import Phase2Config
from muse.models.pretrained import from_pretrained, save_pretrained
from muse.models.real_twin import RealTwinConfig
from muse.models.stage1 import Phase3Stage1Config
from muse.models.tensor_file import sha256_of_json


@pytest.mark.timeout(20)
@pytest.mark.parametrize("config", [Phase3Stage1Config, RealTwinConfig, Phase2Config, Gpt2Config])
@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 10**9},
        {"n_layers": 10**6},
        {"n_seq": 10**9},
        {"d_model": 2**40},
        {"vocab_size": 2**24, "d_model": 2**16},
        {"n_layers": 2**10, "d_model": 2**16},
        {"n_seq": 2**20, "d_model": 2**16},
    ],
)
def test_what_no_model_is_meant_by_is_refused(config, sizes):
    with pytest.raises(ValueError, match=r"must be at most|is more than"):
        config(**sizes)


@pytest.mark.parametrize("part", [{"d_ff": 10**9}, {"n_heads": 10**9}, {"convolution": 10**9}, {"table_rank": 10**9}])
def test_parts_of_a_memory_have_limits_too(part):
    with pytest.raises(ValueError, match="must be at most"):
        Phase3Stage1Config(mixer="memory", memory=part)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["stage1", "stage1_memory", "phase2", "gpt2", "real_twin"])
@pytest.mark.parametrize("size", [{"n_layers": 10**6}, {"vocab_size": 10**9}])
def test_a_saved_configuration_is_no_bomb(tmp_path, name, size):
    model = build_model(name, vocab_size=16, d_model=8, n_layers=1, n_seq=8)
    path = save_pretrained(model, tmp_path / "saved") / "config.json"
    config = {key: value for key, value in (json.loads(path.read_text()) | size).items() if key != "sha256"}
    path.write_text(json.dumps(config | {"sha256": sha256_of_json(config)}))  # as whoever means harm would
    with pytest.raises(ValueError, match=r"config\.json: .* must be at most"):
        from_pretrained(tmp_path / "saved")
