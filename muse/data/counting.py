"""Tasks whose answer is what a sequence has added up to: sums modulo m, products in the groups S3 and A5.

Tokens are the elements of a group, drawn uniformly; the answer at each position is the product of all so far. It is
uniform too, at every position and whatever came before the last token: guessing is right with probability 1 / order,
exactly. All sequences of a batch have one length, and nothing marks an end.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from torch import Tensor

GROUPS = {"s3": 3, "a5": 5}  # permutations of so many things; of five the even ones
SUM = "mod"
SKEW = 0.75


@dataclass(frozen=True)
class Task:
    """A group by its table: `products[a][b]` is the element that a followed by b is; element 0 changes nothing."""

    name: str
    products: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> int:
        """Elements of the group: tokens, and possible answers."""
        return len(self.products)

    @property
    def chance(self) -> float:
        """Share of right answers by guessing, exactly."""
        return 1 / self.order


@functools.cache
def task(name: str) -> Task:
    """Return a task by name: mod2, mod3, ... for sums, s3, a5; ValueError for another one."""
    if name in GROUPS:
        return Task(name, _table(GROUPS[name]))
    modulus = name.removeprefix(SUM)
    if not name.startswith(SUM) or not modulus.isdecimal() or int(modulus) < 2:
        raise ValueError(f"task: got {name!r}, expected {SUM}2, {SUM}3, ..., or one of {', '.join(GROUPS)}")
    m = int(modulus)
    return Task(name, tuple(tuple((a + b) % m for b in range(m)) for a in range(m)))


def _table(things: int) -> tuple[tuple[int, ...], ...]:
    """The table of all permutations of three things, or of the even ones of more, in alphabetical order."""
    elements = [p for p in permutations(range(things)) if things == 3 or _is_even(p)]
    places = {element: place for place, element in enumerate(elements)}
    return tuple(tuple(places[tuple(b[i] for i in a)] for b in elements) for a in elements)


def _is_even(permutation: Sequence[int]) -> bool:
    return sum(a > b for a, b in combinations(permutation, 2)) % 2 == 0


def sequences(
    task: Task, count: int, length: int, generator: torch.Generator, skewed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return tokens and answers, int64 (count length) each, on the generator's device; ValueError below 1.

    Uniform tokens are a random walk that stays near its start: sums modulo 3 can be read off the small difference of
    how often 1 and 2 came. Where `skewed`, all tokens but the first are element 1 with a share SKEW of the draws, so
    that every such count runs away; the first keeps all answers uniform.
    """
    if count < 1 or length < 1:
        raise ValueError(f"sequences: got {count} of length {length}, expected at least 1 and 1")
    device = generator.device
    tokens = torch.randint(task.order, (count, length), generator=generator, device=device)
    if skewed:
        often = torch.rand((count, length - 1), generator=generator, device=device) < SKEW
        tokens[:, 1:] = torch.where(often, 1, tokens[:, 1:])
    if task.name.startswith(SUM):
        return tokens, tokens.cumsum(1) % task.order
    products, answers = torch.tensor(task.products, device=device), [tokens[:, 0]]
    for t in range(1, length):
        answers.append(products[answers[-1], tokens[:, t]])
    return tokens, torch.stack(answers, 1)


def normalised(accuracy: float, task: Task) -> float:
    """Return an accuracy on a scale where guessing is 0 and all right is 1."""
    return (accuracy - task.chance) / (1 - task.chance)
