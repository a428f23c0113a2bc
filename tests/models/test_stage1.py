from __future__ import annotations

import copy
import math

import pytest
import reference
import torch
import torch.nn.functional as F

from muse.models.stage1 import Block, Phase3Stage1Config, Phase3Stage1Model
from muse.ops import norms, planar


def tiny(seed=0, **changes):
    """A model with odd sizes: V 41, D 14, L 3, 19 positions."""
    sizes = {"vocab_size": 41, "d_model": 14, "n_layers": 3, "n_seq": 19, "use_complex32": False} | changes
    return Phase3Stage1Model(Phase3Stage1Config(**sizes), seed=seed)


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
    """The model of the published size, complex32, with the gradients of one [2, 128] batch."""
    model = Phase3Stage1Model(Phase3Stage1Config())
    model.initial_loss = model.loss(random_ids(50257, 2, 128), random_ids(50257, 2, 128, seed=1))
    model.initial_loss.backward()
    return model


def test_published_size_has_80937553_parameters_in_float16(published):
    assert sum(p.numel() for p in published.parameters()) == 80_937_553
    assert published.parameter_groups() == {
        "embedding": 2 * 50257 * 512,
        "positions": 1024 * 512,
        "blocks": 6 * (2 * 512 * 512 + 2 * 512 + 512 + 2 * 2 * 512),
        "norm": 2 * 512,
        "head": 50257 * 512 + 50257,
    }
    assert {p.dtype for p in published.parameters()} == {torch.float16}


def test_published_size_starts_at_uniform_guessing_with_healthy_gradients(published):
    assert abs(published.initial_loss.item() / math.log(50257) - 1) < 0.02
    norms = {name: p.grad.double().norm().item() for name, p in published.named_parameters() if p.requires_grad}
    assert len(norms) == len(list(published.parameters())) - 1
    assert all(1e-6 < norm < 1e3 for norm in norms.values()), norms


@pytest.mark.parametrize(
    ("use_complex32", "cpu_compute", "loss_bound", "logit_bound", "gradient_bound"),
    [(False, "auto", 1e-5, 1e-6, 5e-6), (True, "float32", 5e-4, 1.5e-3, 8e-3), (True, "auto", 1e-2, 1e-2, 0.12)],
)
def test_logits_loss_and_gradients_match_the_reference(
    use_complex32, cpu_compute, loss_bound, logit_bound, gradient_bound
):
    model = randomised(tiny(use_complex32=use_complex32))
    with torch.no_grad():
        for block in model.blocks:
            block.activation.bias.abs_()  # open everywhere: rounding cannot move an element across the kink
    ids, targets = random_ids(41, 3, 17), random_ids(41, 3, 17, seed=1)
    weights = {name: p.detach().double().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    want = reference.stage1_logits(weights, ids, n_layers=3)
    want_loss = reference.cross_entropy(want, targets).mean()
    want_loss.backward()
    with planar.cpu_compute(cpu_compute):
        logits, loss = model(ids), model.loss(ids, targets)
        loss.backward()
    assert logits.dtype == (torch.float16 if use_complex32 else torch.float32)
    assert loss.dtype == torch.float32
    assert reference.rms_error(logits, want) < logit_bound
    assert abs(loss.item() - want_loss.item()) < loss_bound
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert reference.rms_error(parameter.grad, weights[name].grad) < gradient_bound, name


def test_float64_model_matches_the_reference_to_the_last_digits():
    model = randomised(tiny()).double()
    ids = random_ids(41, 2, 19)
    want = reference.stage1_logits(dict(model.named_parameters()), ids, n_layers=3)
    assert reference.rms_error(model(ids), want) < 1e-13


def test_logits_are_the_head_of_the_features():
    model = randomised(tiny())
    ids, targets = random_ids(41, 2, 5), random_ids(41, 2, 5, seed=1)
    weight, bias = model.head_parameters()
    features = model.features(ids)
    assert features.shape == (2, 5, 14)
    logits = model(ids)
    assert reference.rms_error(logits, F.linear(features, weight, bias)) < 1e-6
    for reduction in ("mean", "sum", "none"):
        want = F.cross_entropy(logits.transpose(1, 2), targets, reduction=reduction)
        assert reference.rms_error(model.loss(ids, targets, reduction=reduction), want) < 1e-6


def test_parameter_groups_sum_to_all_parameters():
    model = tiny()
    assert sum(model.parameter_groups().values()) == sum(p.numel() for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["positions"]


def test_causal_and_without_mixing():
    """Changing token t changes the logits at t and nowhere else: causality, and the documented absence of mixing."""
    model = randomised(tiny())
    ids = random_ids(41, 1, 19)
    before = model(ids)
    for t in (0, 7, 18):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 41
        moved = (model(changed) != before).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == [t]


def test_positions_matter_and_calls_do_not():
    model = tiny()
    ids = torch.full((1, 19), 3)
    logits = model(ids)[0]
    assert torch.pdist(logits).min() > 1e-3
    assert torch.equal(model(ids)[0], logits)
    assert reference.rms_error(model(ids[:, :4])[0], logits[:4]) < 1e-6


def test_equal_seeds_give_equal_weights_whatever_the_global_state():
    torch.manual_seed(1)
    first, state = tiny(seed=3), torch.get_rng_state()
    torch.manual_seed(2)
    again, other = tiny(seed=3), tiny(seed=4)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert name == "positions" or not torch.equal(a, c) or a.unique().numel() == 1, name
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_complex32_is_the_rounded_float32_model():
    master, built = tiny(seed=3), tiny(seed=3, use_complex32=True)
    served = master.to_complex32()
    assert served.config == built.config
    assert served.config.use_complex32
    assert not master.config.use_complex32
    for a, b, m in zip(served.parameters(), built.parameters(), master.parameters(), strict=True):
        assert a.dtype == torch.float16
        assert m.dtype == torch.float32
        assert torch.equal(a, b)
        assert torch.equal(a, m.half())
    assert served(random_ids(41, 1, 3)).dtype == torch.float16


def train(seed, dropout=0.0, steps=60):
    """Losses of a few steps of AdamW on one batch whose next token depends on the current one."""
    torch.manual_seed(seed)
    model = tiny(seed=seed, dropout=dropout)
    ids = random_ids(41, 4, 19)
    targets = (ids * 7 + 3) % 41
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = model.loss(ids, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_overfits_one_batch():
    losses = train(seed=0)
    assert losses[0] == pytest.approx(math.log(41), rel=0.1)
    assert losses[-1] < 0.05


def test_two_seeded_runs_are_equal():
    first, again, other = train(1, dropout=0.2, steps=8), train(1, dropout=0.2, steps=8), train(2, dropout=0.2, steps=8)
    assert first == again
    assert first != other


def test_dropout_acts_in_training_only():
    model, ids = tiny(dropout=0.5), random_ids(41, 2, 7)
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
    plain = tiny()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(ids), model(ids))


def test_autocast_keeps_float32_masters():
    model, ids, targets = randomised(tiny()), random_ids(41, 3, 17), random_ids(41, 3, 17, seed=1)
    want = model.loss(ids, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids).dtype == torch.bfloat16
        got = model.loss(ids, targets)
    got.backward()
    assert got.dtype == torch.float32
    assert abs(got.item() - want.item()) < 2e-2
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "attention"}, "mixer must be one of .* got 'attention'"),
        ({"d_model": 7}, "even, got 7"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
        ({"dropout": 1.0}, r"\[0, 1\), got 1.0"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Phase3Stage1Config(**changes)


def test_bad_token_ids_are_refused():
    with pytest.raises(ValueError, match="got 0 to 41"):
        tiny()(torch.tensor([[0, 41]]))
    with pytest.raises(ValueError, match="n_seq=19"):
        tiny()(torch.zeros(1, 20, dtype=torch.int64))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_block_is_its_equation_bit_for_bit(precision):
    block = randomised(Block(6, 0.4))
    z = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    results = []

    def one_after_the_other(z):
        update = block.activation(block.linear(block.norm1(z)))
        return block.norm2(z + norms.dropout(update, 0.4, training=True))

    for run in (block, one_after_the_other):
        block.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            y = run(z)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in block.parameters())])
    assert results[0][0].dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_blocks_that_hand_on_the_next_norm_change_nothing(precision):
    model, ids = randomised(tiny(dropout=0.4)).train(), random_ids(41, 2, 9)
    results = []
    for features in (model.features, lambda ids: model._features_with_kernels(model.embed(ids))):
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            y = features(ids)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert results[0][0].dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = "cuda"


def gradients_of(module, run, *inputs, precision=None):
    """Output and all gradients of the sum of its squares (a loss: of 256 times itself, for float16)."""
    module.zero_grad(set_to_none=True)
    with torch.autocast(CUDA, precision, enabled=precision is not None):
        y = run(*inputs)
    (256 * y if y.ndim == 0 else y.float().square().sum()).backward()
    return {"": y.detach()} | {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


@cuda
@pytest.mark.filterwarnings("ignore")  # torch warns while it compiles; this test is about numbers
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["block", "loss"])
def test_cuda_compiled_gradients_equal_eager_ones(part, precision):
    """The kernels are the same; a compiler may only order the roundings around them in another way."""
    torch.compiler.reset()
    if part == "block":
        module = run = randomised(Block(64, 0.0)).to(CUDA)
        inputs = [torch.randn(3, 50, 128, generator=torch.Generator().manual_seed(0)).to(CUDA)]
    else:
        module = randomised(tiny(d_model=64, n_seq=50)).to(CUDA)
        run, inputs = module.loss, [random_ids(41, 3, 50, seed=seed).to(CUDA) for seed in (0, 1)]
    eager = gradients_of(module, run, *inputs, precision=precision)
    compiled = gradients_of(module, torch.compile(run), *inputs, precision=precision)
    for name, want in eager.items():
        assert want.any(), name
        assert reference.rms_error(compiled[name], want) < (1e-4 if precision is None else 2e-2), name


@cuda
@pytest.mark.parametrize(("precision", "bound"), [(None, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_cuda_gradients_equal_those_of_float64(precision, bound):
    model = randomised(tiny(d_model=64, n_seq=50))
    with torch.no_grad():
        for block in model.blocks:
            block.activation.bias.abs_().mul_(0.1)  # open everywhere, and little of what grows as b / |z|
    inputs = [random_ids(41, 3, 50, seed=seed).to(CUDA) for seed in (0, 1)]
    exact = copy.deepcopy(model).double().to(CUDA)
    model.to(CUDA)
    want = gradients_of(exact, exact.loss, *inputs)
    got = gradients_of(model, model.loss, *inputs, precision=precision)
    for name in want:
        assert reference.rms_error(got[name], want[name]) < bound, name


@cuda
@pytest.mark.filterwarnings("ignore")
def test_cuda_compiled_dropout_drops_and_leaves_gradients():
    torch.compiler.reset()
    block = randomised(Block(64, 0.5)).to(CUDA)
    z = torch.randn(3, 50, 128, generator=torch.Generator().manual_seed(0)).to(CUDA)
    run = torch.compile(block)
    gradients = gradients_of(block, run, z)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())
    assert not torch.equal(run(z), run(z))
    assert torch.equal(block.eval()(z), block(z))
