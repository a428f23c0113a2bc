from __future__ import annotations

import dataclasses
import math

import pytest
import reference
import reference_memory
import torch

from muse.measure.dynamics import measure_dynamics
from muse.models.build import build_model
from muse.models.memory_block import RMSNorm
from muse.models.memory_options import MemoryOptions
from muse.models.phase2 import Phase2Config
from muse.models.stage1 import Phase3Stage1Config, Phase3Stage1Model
from muse.models.weights import WithoutDraws
from muse.ops import planar
from muse.ops.linear_attention import rotate

PUBLISHED_PARAMETERS = 80_937_553
REAL = {"numbers": "real", "imaginary_scores": False}
VARIANTS = (
    {}, {"rotation": "data", "qk_norm": True}, {"rotation": "none", "input_scaling": True}, {"decay": "fixed"},
    {"decay": "none", "convolution": 1}, {"imaginary_scores": False, "last_rate_cap": 0.2}, {"tied": False},
    {"output_gate": False, "feed_forward": "modrelu"}, {"positions": True, "n_heads": 7, "d_ff": 5},
    {**REAL, "rotation": "none"}, {**REAL, "rotation": "fixed", "tied": False},
    {"table_rank": 6, "positions": True}, {**REAL, "rotation": "none", "table_rank": 10},
    {"table_rank": 10, "table": "real"}, {"table_rank": 6, "adjoint_head": True},
    {"table_rank": 6, "table": "real", "adjoint_head": True},
    {**REAL, "rotation": "none", "table_rank": 6, "adjoint_head": True},
)  # fmt: skip


def tiny(seed=0, dropout=0.0, use_complex32=False, n_layers=2, **options):
    """A model with odd sizes: V 41, D 14, 37 positions, chunks of 5."""
    memory = MemoryOptions(**{"chunk_tokens": 5} | options)
    config = Phase3Stage1Config(
        vocab_size=41,
        d_model=14,
        n_layers=n_layers,
        n_seq=37,
        dropout=dropout,
        mixer="memory",
        use_complex32=use_complex32,
        memory=memory,
    )
    return Phase3Stage1Model(config, seed=seed)


def randomised(model):
    """Every trainable parameter moved away from its initial value, so that no term is silently zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((0.2 * noise).to(parameter.dtype))
    return model


def random_ids(vocab_size, *shape, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def published():
    """The model of the published size in float32, with the gradients of one [2, 128] batch."""
    model = Phase3Stage1Model(Phase3Stage1Config(mixer="memory", use_complex32=False))
    model.initial_loss = model.loss(random_ids(50257, 2, 128), random_ids(50257, 2, 128, seed=1))
    model.initial_loss.backward()
    return model


def test_published_size_is_within_the_published_budget(published):
    num = sum(p.numel() for p in published.parameters())
    assert 0.99 * PUBLISHED_PARAMETERS < num <= PUBLISHED_PARAMETERS
    groups = published.parameter_groups()
    assert sum(groups.values()) == num
    assert groups["embedding"] == 2 * 50257 * 512
    assert groups["head"] == 50257
    assert groups["positions"] == 0


def test_published_size_starts_at_uniform_guessing_with_healthy_gradients(published):
    assert abs(published.initial_loss.item() / math.log(50257) - 1) < 0.02
    norms = {name: p.grad.double().norm().item() for name, p in published.named_parameters()}
    assert min(norms.values()) > 1e-6, norms
    assert max(norms.values()) < 1e3, norms


@pytest.mark.parametrize("options", VARIANTS[:8], ids=str)
def test_every_ablation_is_within_the_budget(options):
    """Counted from a thinner model: width 512 and 6 layers, but a short vocabulary; the missing rows are added."""
    config = Phase3Stage1Config(vocab_size=3, mixer="memory", use_complex32=False, memory=MemoryOptions(**options))
    num = sum(p.numel() for p in Phase3Stage1Model(config).parameters()) + (50257 - 3) * (2 * 512 + 1)
    assert 0.97 * PUBLISHED_PARAMETERS < num <= PUBLISHED_PARAMETERS


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_logits_and_gradients_match_the_token_by_token_reference(options):
    reference_memory.check(randomised(tiny(**options)).double(), random_ids(41, 2, 17))


@pytest.mark.parametrize(
    ("use_complex32", "cpu_compute", "bound"), [(False, "auto", 1e-5), (True, "float32", 1e-2), (True, "auto", 5e-2)]
)
def test_float32_and_complex32_are_near_the_reference(use_complex32, cpu_compute, bound):
    model = randomised(tiny(use_complex32=use_complex32))
    ids, targets = random_ids(41, 2, 37), random_ids(41, 2, 37, seed=1)
    with planar.cpu_compute(cpu_compute):
        logits, loss = model(ids), model.loss(ids, targets)
    want = reference_memory.logits(dict(model.named_parameters()), ids, model.config)
    assert logits.dtype == (torch.float16 if use_complex32 else torch.float32)
    assert loss.dtype == torch.float32
    assert reference.rms_error(logits, want) < bound
    assert abs(loss.item() - reference.cross_entropy(want, targets).mean().item()) < bound


def test_autocast_is_near_float32_and_gives_gradients():
    model, ids, targets = randomised(tiny()), random_ids(41, 3, 37), random_ids(41, 3, 37, seed=1)
    want = model.loss(ids, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(ids, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - want.item()) < 2e-2
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"rotation": "data", "imaginary_scores": False}], ids=str)
def test_causal_and_mixing_over_chunk_borders(options):
    model = randomised(tiny(**options)).double()
    ids = random_ids(41, 1, 37)
    before = model(ids)
    for t in (0, 4, 5, 20, 36):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 41
        moved = (model(changed) - before).abs().amax(-1)[0]
        assert t == 0 or moved[:t].max() < 1e-12
        assert moved[t:].min() > 1e-7


def test_calls_leave_no_state_and_a_prefix_gives_the_same_logits():
    model, ids = randomised(tiny()), random_ids(41, 2, 37)
    logits = model(ids)
    assert torch.equal(model(ids), logits)
    assert reference.rms_error(model(ids[:, :11]), logits[:, :11]) < 1e-5


def test_what_is_equivariant_turns_with_the_phase():
    """Without gates and data-dependent rates a block commutes with one turn of all phases, as RMSNorm always does."""
    model = randomised(tiny(output_gate=False, feed_forward="modrelu", decay="fixed")).double()
    z = torch.randn(2, 11, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor(0.9, dtype=torch.float64)
    for module in (*model.blocks, model.blocks[0].memory_norm, model.norm):
        assert reference.rms_error(module(rotate(z, angle)), rotate(module(z), angle)) < 1e-12
    gated = randomised(tiny()).double().blocks[0]
    assert reference.rms_error(gated(rotate(z, angle)), rotate(gated(z), angle)) > 1e-3
    assert RMSNorm(3, 1)  # the real norm has a gain per plane and need not commute


def test_a_token_does_not_predict_itself_at_the_start():
    """The spread phases of the output gain keep the tied head at uniform guessing even for repeated tokens."""
    model = Phase3Stage1Model(Phase3Stage1Config(vocab_size=77, d_model=64, n_layers=2, n_seq=32, mixer="memory",
                                                 use_complex32=False))  # fmt: skip
    ids = random_ids(77, 4, 32)
    for targets in (ids, random_ids(77, 4, 32, seed=1)):
        assert abs(model.loss(ids, targets).item() / math.log(77) - 1) < 0.05


def test_table_planes_are_views_of_the_head_weight():
    model = tiny()
    weight, bias = model.head_parameters()
    assert weight is model.embedding.weight
    assert bias is model.head_bias
    assert torch.equal(torch.cat([model.embedding.weight_real, model.embedding.weight_imag], 1), weight)
    assert model.embedding.weight_imag.data_ptr() == weight.data_ptr() + 14 * weight.element_size()
    assert model.features(random_ids(41, 2, 3)).shape == (2, 3, 28)
    assert tiny(tied=False).features(random_ids(41, 2, 3)).shape == (2, 3, 14)


def test_initial_decays_and_turns_are_log_spaced():
    model = Phase3Stage1Model(Phase3Stage1Config(vocab_size=7, d_model=64, n_layers=2, n_seq=512, mixer="memory",
                                                 memory=MemoryOptions(last_rate_cap=0.1)))  # fmt: skip
    u = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(0)).half()
    first, last = (block.memory for block in model.blocks)
    for memory, shortest in ((first, 2.0), (last, 20.0)):
        lives = -1 / memory.log_decay(u)[0, :, 0].double()
        want = [shortest * (256 / shortest) ** ((h + 0.5) / 4) for h in range(4)]
        assert lives.tolist() == pytest.approx(want, rel=1e-5)
        assert memory.log_decay(u).dtype == memory.frequencies().dtype == torch.float32
    assert first.frequencies()[1].tolist() == pytest.approx([1e-4 ** ((j + 0.5) / 16) for j in range(16)], rel=1e-5)
    with torch.no_grad():
        last.decay.weight.fill_(10.0)
    assert last.log_decay(u.abs()).min().item() == pytest.approx(-0.1)


def test_equal_seeds_give_equal_weights_and_served_form_rounds_them():
    first, again, other = tiny(seed=3), tiny(seed=3), tiny(seed=4)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)
    served = first.to_complex32()
    assert served.config == dataclasses.replace(first.config, use_complex32=True)
    assert all(torch.equal(s, a.half()) for s, (a, _, _) in zip(served.parameters(), pairs, strict=True))


def train(seed, dropout=0.0, steps=60):
    """Losses of AdamW on one batch of random tokens, which only a memory can learn by heart."""
    torch.manual_seed(seed)
    model, ids = tiny(seed=seed, dropout=dropout, n_layers=1, chunk_tokens=16), random_ids(41, 3, 25)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-2), []
    for _ in range(steps):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_overfits_one_batch():
    losses = train(seed=0)
    assert losses[0] == pytest.approx(math.log(41), rel=0.05)
    assert losses[-1] < 0.1


def test_two_seeded_runs_are_equal():
    first, again, other = train(1, dropout=0.2, steps=5), train(1, dropout=0.2, steps=5), train(2, dropout=0.2, steps=5)
    assert first == again != other


@pytest.mark.parametrize("options", [{}, REAL | {"rotation": "none"}], ids=str)
def test_dropout_acts_in_training_only(options):
    model, ids = tiny(dropout=0.5, **options), random_ids(41, 2, 7)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    plain = tiny(**options)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(ids), model(ids))


def test_features_compile_without_graph_breaks():
    model, ids = tiny(), random_ids(41, 2, 17)
    compiled = torch.compile(model.features, backend="eager", fullgraph=True)
    assert reference.rms_error(compiled(ids), model.features(ids)) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": "sometimes"}, "rotation must be one of"),
        ({"n_heads": 3}, "3 heads"),
        ({"n_heads": -1}, "n_heads must"),
        ({"convolution": 0}, "convolution must be at least 1"),
        ({"last_rate_cap": 5.0}, "last_rate_cap"),
        ({"numbers": "real"}, "no imaginary scores"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_options_survive_a_record():
    config = tiny(rotation="data").config
    assert Phase3Stage1Config(**dataclasses.asdict(config)) == config


def test_dynamics_of_known_layers():
    model = tiny(decay="fixed", rotation="fixed", n_heads=2)
    with torch.no_grad():
        for block in model.blocks:
            for writing in (block.memory.writing, block.feed.writing):
                writing.weight_real.zero_(), writing.weight_imag.zero_()
        model.embedding.weight_imag.copy_(2 * model.embedding.weight_real)
    result = measure_dynamics(model, random_ids(41, 2, 37))
    for layer in result.layers:
        assert layer.imaginary_share == pytest.approx(0.8, rel=1e-5)  # y = 2 x everywhere
        # the phase is that of 1 + 2i or its opposite, by the sign of x
        x = model.embedding.weight_real[random_ids(41, 2, 37).flatten()]
        assert layer.phase_spread == pytest.approx(1 - (x.sum(0).abs() / x.abs().sum(0)).mean().item(), rel=1e-4)
        lives = [math.log(2) * 2 * (18.5 / 2) ** ((h + 0.5) / 2) for h in range(2)]
        assert [life[1] for life in layer.half_life_tokens] == pytest.approx(lives, rel=1e-4)
        assert layer.periods_tokens[0][0] == pytest.approx(2 * math.pi * 1e4 ** (0.5 / 7), rel=1e-4)
        assert sum(layer.read_share) == pytest.approx(1.0)
    names = [metric.name for metric in result.metrics("m")]
    lives = ["memory_half_life", "memory_half_life_low", "memory_half_life_high"]
    assert names == ["imaginary_energy_share", "phase_spread", *lives, "memory_read_share"]
    for metric, quantile in zip(result.metrics("m")[2:5], (1, 0, 2), strict=True):
        assert metric.samples == [life[quantile] for layer in result.layers for life in layer.half_life_tokens]
    shares = result.metrics("m")[5]
    assert shares.samples == [share for layer in result.layers for share in layer.read_share]
    assert shares.labels == ["layer 0 head 0", "layer 0 head 1", "layer 1 head 0", "layer 1 head 1"]
    assert [len(series.x) for series in result.series("m")] == [2, 14, 2, 14]
    reference_model = Phase3Stage1Model(Phase3Stage1Config(vocab_size=5, d_model=4, n_layers=1, n_seq=5))
    with pytest.raises(ValueError, match="memory"):
        measure_dynamics(reference_model, random_ids(5, 1, 3))


def test_initial_gains_and_writing_matrices():
    """Output gains of one size whose phases cancel; what writes to the stream is smaller by 1/sqrt(2 L)."""
    model = Phase3Stage1Model(Phase3Stage1Config(vocab_size=7, d_model=64, n_layers=3, n_seq=8, mixer="memory",
                                                 use_complex32=False))  # fmt: skip
    gain = torch.complex(model.norm.gain_real, model.norm.gain_imag).detach()
    assert torch.allclose(gain.abs(), torch.full((64,), 0.5))
    assert gain.sum().abs() < 1e-4
    for matrix, width, share in ((model.blocks[0].memory.qkv, 64, 1), (model.blocks[2].memory.writing, 64, 6),
                                 (model.blocks[1].feed.writing, 88, 6)):  # fmt: skip
        for weight in (matrix.weight_real, matrix.weight_imag):
            assert weight.var().item() == pytest.approx(1 / (2 * width * share), rel=0.1)


def test_rates_of_the_served_form_are_computed_in_float32():
    memory = randomised(tiny(use_complex32=True)).blocks[0].memory
    u = torch.randn(1, 9, 28, generator=torch.Generator().manual_seed(0)).half()
    served = memory.log_decay(u)
    assert reference.rms_error(served, memory.float().log_decay(u.float())) < 1e-6


def test_large_queries_and_keys_do_not_overflow_the_served_form():
    """Trained models reach |q|, |k|, |v| of 10 and more; before the norm per head that is beyond float16."""
    model = tiny().eval()
    with torch.no_grad():
        for block in model.blocks:
            for weight in (block.memory.qkv.weight_real, block.memory.qkv.weight_imag):
                weight.mul_(20)
        ids = random_ids(model.config.vocab_size, 2, model.config.n_seq)
        with planar.cpu_compute("float32"):
            served, exact = model.to_complex32()(ids), model(ids)
    assert served.isfinite().all()
    assert reference.rms_error(served, exact) < 0.02


def test_a_memory_that_forgets_nothing_does_not_overflow_the_served_form():
    """A thousand equal tokens with |k| and |v| of 10: the memory itself, which is kept in float16 between chunks."""
    options = MemoryOptions(decay="none", rotation="none", convolution=1)
    config = Phase3Stage1Config(41, 128, 1, 1024, use_complex32=False, mixer="memory", memory=options)
    mixer = Phase3Stage1Model(config).eval().blocks[0].memory
    u = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0)).expand(-1, 1024, -1)
    with torch.no_grad(), planar.cpu_compute("storage"):
        for weight in (mixer.qkv.weight_real, mixer.qkv.weight_imag):
            weight.mul_(10)
        exact, served = mixer(u)[0], mixer.half()(u.half())[0]
    assert served.isfinite().all()
    assert reference.rms_error(served, exact) < 0.02


@pytest.mark.parametrize("options", [{"table_rank": 7}, {"table_rank": 1}, {"table_rank": -2}, {"table_rank": 30},
                                     {"table_rank": 8, "tied": False}, {"head_norm_eps": 0.0}, {"table": "real"},
                                     {"adjoint_head": True}], ids=str)  # fmt: skip
def test_a_rank_or_an_epsilon_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"^(table_rank|head_norm_eps) must be .*, got|^table.*: got"):
        tiny(**options)


@pytest.mark.parametrize("rank", [3, 1, 40])
def test_phase2_refuses_such_a_rank_too(rank):
    with pytest.raises(ValueError, match=f"table_rank must be 0 or even, 2 to d_model = 16, got {rank}"):
        Phase2Config(vocab_size=11, d_model=16, table_rank=rank)


@pytest.mark.parametrize(("name", "parameters"), [
    ("stage1_compact", 41_982_337), ("real_twin_compact", 42_222_953), ("phase2_compact", 45_442_674),
])  # fmt: skip
def test_compact_models_have_their_published_size_and_start_at_uniform_guessing(name, parameters):
    with WithoutDraws():
        model = build_model(name, vocab_size=50257, d_model=512, n_layers=6, n_seq=1024)
    assert sum(p.numel() for p in model.parameters()) == sum(model.parameter_groups().values()) == parameters
    small = build_model(name, vocab_size=211, d_model=64, n_layers=2, n_seq=32)
    loss = small.loss(random_ids(211, 4, 32), random_ids(211, 4, 32, seed=1))
    assert abs(loss.item() / math.log(211) - 1) < 0.04
