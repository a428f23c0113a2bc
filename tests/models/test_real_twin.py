from __future__ import annotations

import pytest
import torch

from muse.models.memory_options import MemoryOptions
from muse.models.real_twin import REAL, RealTwinConfig, RealTwinModel
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model


def scalars(model):
    """Scalars of every component, and of each block's parts by name."""
    parts = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if (name.count(".") == 3 and name.startswith("blocks.0.")) or name in ("embedding",)
    }
    return model.parameter_groups(), parts


def pair(vocab_size=11, d_model=512, n_layers=2):
    sizes = {"vocab_size": vocab_size, "d_model": d_model, "n_layers": n_layers, "n_seq": 64}
    return (Phase3Stage1Model(Phase3Stage1Config(mixer="memory", use_complex32=False, **sizes)),
            RealTwinModel(RealTwinConfig(**sizes)))  # fmt: skip


def test_twin_has_as_many_scalars_and_bytes_matrix_by_matrix():
    model, twin = pair()
    (groups, parts), (twin_groups, twin_parts) = scalars(model), scalars(twin)
    assert groups["embedding"] == twin_groups["embedding"]
    assert groups["head"] == twin_groups["head"]
    assert groups["norm"] == twin_groups["norm"]
    assert abs(groups["blocks"] / twin_groups["blocks"] - 1) < 2e-3
    matrices = [name for name in parts if "decay" not in name]  # half the heads have half the rates
    assert len(matrices) >= 6
    assert {name: parts[name] for name in matrices} == {name: twin_parts[name] for name in matrices}
    sizes = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in (model, twin)]
    assert sizes[1] <= sizes[0] < 1.002 * sizes[1]


def test_twin_of_the_published_size_is_within_the_budget():
    _, twin = pair(n_layers=6)
    num = sum(p.numel() for p in twin.parameters()) + (50257 - 11) * (2 * 512 + 1)
    assert 0.99 * 80_937_553 < num <= 80_937_553


def test_states_and_streams_have_as_many_scalars():
    model, twin = pair(d_model=64)
    z = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(0))
    (out, state), (twin_out, twin_state) = (m.blocks[0].prefill(z) for m in (model, twin))
    assert out.shape == twin_out.shape
    assert state.matrix.numel() == twin_state.matrix.numel() == 3 * 4 * 16 * 16 * 2
    assert state.recent.numel() == 2 * twin_state.recent.numel()


def test_no_imaginary_part_is_left():
    """Nothing treats the halves of the stream as planes: a permutation of its channels is only a relabelling."""
    _, twin = pair(d_model=16)
    twin = twin.double()
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(len(name))))
    ids = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(0))
    before = twin(ids)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, p in twin.named_parameters():
            writes = name.endswith(("writing.weight", "_norm.gain", "norm.gain_real"))
            if writes:
                p.copy_(p[order])
            elif p.ndim == 2 and p.shape[1] == 32:
                p.copy_(p[:, order])
    assert (twin(ids) - before).abs().max() < 1e-10


def test_twin_is_real_or_refused():
    assert RealTwinConfig().memory.numbers == "real"
    with pytest.raises(ValueError, match="real numbers"):
        RealTwinConfig(memory=MemoryOptions())
    with pytest.raises(ValueError, match="mixer 'memory'"):
        RealTwinConfig(mixer="none")


def gradient_error(eps: float, seed: int) -> float:
    """Relative RMS error of all gradients in bfloat16 autocast against float32."""
    config = RealTwinConfig(
        vocab_size=101, d_model=256, n_layers=2, n_seq=128, memory=REAL | {"head_norm_eps": eps}
    )
    model, gradients = RealTwinModel(config, seed=seed), []
    ids = torch.randint(101, (4, 129), generator=torch.Generator().manual_seed(seed))
    for on in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        gradients.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def test_a_read_that_crosses_zero_does_not_blow_gradients_up():
    """At token 0 a head reads (q k) v; where a real q k is nearly zero, the norm per head divides by it."""
    found = [gradient_error(MemoryOptions().head_norm_eps, seed) for seed in range(5)]
    assert max(found) < 0.015
    assert max(gradient_error(1e-6, seed) for seed in range(5)) > 5 * max(found), "as it was before"
