"""The first words of the test text as two trained models read them: what stays of the explorer in a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from muse.catalog import BASELINE, MODELS, SYNTHETIC
from muse.data.grammar import Grammar
from muse.measure import reads, switches
from muse.measure.windows import pieces
from muse.models.pretrained import served
from muse.records.reading import Place, Reading, ReadShares

from .stage import Stage

TOKENS = 48
PLACES, CANDIDATES = 3, 5
"""After how many tokens, and how many next ones of each model."""

EARLIEST_READ = 8
"""A memory is read at the first of the places that has so many tokens before it, where there is one."""

DIGITS = 5


def reading(stage: Stage, name: str, model: nn.Module) -> Reading | None:
    """Return how a trained memory model, and the baseline or its twin, read the first tokens of the test text.

    All in float32 on the CPU, with the weights as they are served; None for a memory without complex numbers.
    """
    seed, other = stage.first_trained(name)[0], beside(stage, name)
    read_by, seeds = {name: model}, {name: seed}
    if other:
        seeds[other], trained = stage.first_trained(other)
        read_by[other] = served(trained)
    read_by = {key: switches.switched(one, "float32").cpu() for key, one in read_by.items()}
    if "no_imaginary" not in switches.switches_of(read_by[name]):
        return None
    longest = min(TOKENS, *(one.config.n_seq for one in read_by.values()))
    ids = stage.corpus.splits["test"].ids[:longest].long()
    losses = {key: switches.token_losses(one, ids).tolist() for key, one in read_by.items()}
    places = _places(losses)
    decode = stage.corpus.decode
    found = [
        Place(
            position=at,
            candidates={
                key: [(decode([index]), round(share, DIGITS)) for index, share in _next(one, ids[: at + 1])]
                for key, one in read_by.items()
            },
        )
        for at in places
    ]
    return Reading(
        seeds=seeds,
        pieces=pieces(ids.tolist(), decode),
        losses={key: _rounded(values) for key, values in losses.items()},
        floor=_floor(ids.tolist()) if stage.corpus.name == SYNTHETIC else None,
        places=found,
        read=_read(read_by[name], ids, next((at for at in places if at >= EARLIEST_READ), max(places))),
    )


def beside(stage: Stage, name: str) -> str | None:
    """Return the model that is shown beside another: the baseline, else the other's twin; None without either."""
    twins = [row.name for row in MODELS if row.twin_of == name]
    return next((other for other in (BASELINE, *twins) if other in stage.compared), None)


def _places(losses: Mapping[str, list[float]]) -> list[int]:
    """The tokens before those at which two models differ most, or which surprise a single one most; the most first."""
    ours, *others = (np.asarray(values) for values in losses.values())
    size = np.abs(ours - others[0]) if others else ours
    return np.argsort(-size, kind="stable")[:PLACES].tolist()


def _next(model: nn.Module, ids: Tensor) -> list[tuple[int, float]]:
    return switches.next_tokens(model, ids, CANDIDATES)


def _read(model: nn.Module, ids: Tensor, position: int) -> ReadShares:
    """The read that rotation moves furthest at a position."""
    found = reads.reads_at(model, ids, position)
    layer, head = reads.most_turned(found)
    rotated, plain = (_rounded(one.signed.tolist()) for one in found[layer, head])
    return ReadShares(layer=layer, head=head, rotated=rotated, plain=plain)


def _floor(ids: list[int]) -> list[float] | None:
    """What the language itself leaves open of each token but the first; None where the text is no sentence of it."""
    try:
        return _rounded(Grammar().nll_nats(ids)[1:].tolist())
    except ValueError:
        return None


def _rounded(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
