"""Counting tasks: the answers are right, uniform, and told by nothing but the tokens."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from muse.data.counting import normalised, sequences, task

NAMES = ("mod2", "mod3", "mod5", "mod7", "s3", "a5")


def drawn(name, count=64, length=33, seed=0):
    return sequences(task(name), count, length, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_products_so_far(name):
    tokens, answers = drawn(name, count=5)
    table = task(name).products
    for row, found in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert found == [*itertools.accumulate(row, lambda a, b: table[a][b])]
        if name.startswith("mod"):
            assert found == [sum(row[: t + 1]) % task(name).order for t in range(len(row))]


@pytest.mark.parametrize(("name", "order", "commutes"), [
    ("mod2", 2, True), ("mod7", 7, True), ("s3", 6, False), ("a5", 60, False),
])  # fmt: skip
def test_each_table_is_a_group_of_its_order(name, order, commutes):
    table = task(name).products
    assert (task(name).order, task(name).chance) == (order, 1 / order)
    assert table[0] == tuple(range(order)) == tuple(row[0] for row in table)
    assert all(sorted(row) == [*range(order)] for row in table)
    some = range(0, order, max(1, order // 12))
    assert all(table[table[a][b]][c] == table[a][table[b][c]] for a in some for b in some for c in some)
    assert (table == tuple(zip(*table, strict=True))) == commutes


def test_a5_is_simple_where_s3_is_not():
    """The commutators generate all of A5, and three of six elements of S3: one is solvable, the other is not."""
    for name, expected in (("s3", 3), ("a5", 60)):
        table = task(name).products
        inverse = [row.index(0) for row in table]
        commutators = {functools.reduce(lambda x, y: table[x][y], (a, b, inverse[a], inverse[b]))
                       for a in range(len(table)) for b in range(len(table))}  # fmt: skip
        reached = set(commutators)
        for _ in range(3):
            reached |= {table[a][b] for a in reached for b in commutators}
        assert len(reached) == expected


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_balanced_at_every_position_and_after_every_token(name):
    count, order = 20_000, task(name).order
    tokens, answers = drawn(name, count, 6)
    for t in range(6):
        shares = torch.bincount(answers[:, t], minlength=order) / count
        assert (shares - 1 / order).abs().max() < 5 * (1 / order / count) ** 0.5
    for last in range(min(order, 3)):
        there = answers[tokens[:, 5] == last, 5]
        shares = torch.bincount(there, minlength=order) / len(there)
        assert (shares - 1 / order).abs().max() < 5 * (1 / order / len(there)) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_frequent_token_leaves_answers_uniform_and_lets_counts_run_away(name):
    order = task(name).order
    tokens, answers = sequences(task(name), 20_000, 5, torch.Generator().manual_seed(3), skewed=True)
    share = (tokens[:, 1:] == 1).float().mean().item()
    assert share == pytest.approx(0.75 + 0.25 / order, abs=0.01)
    assert (tokens[:, 0] == 1).float().mean().item() == pytest.approx(1 / order, abs=0.015)
    for t in range(5):
        shares = torch.bincount(answers[:, t], minlength=order) / 20_000
        assert (shares - 1 / order).abs().max() < 5 * (1 / order / 20_000) ** 0.5
    table = task(name).products
    assert answers[0].tolist() == [*itertools.accumulate(tokens[0].tolist(), lambda a, b: table[a][b])]
    assert sequences(task(name), 2, 1, torch.Generator().manual_seed(3), skewed=True)[0].shape == (2, 1)


def test_a_seed_decides_and_every_token_counts():
    first, again, other = drawn("mod5"), drawn("mod5"), drawn("mod5", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == first[1].shape == (64, 33)
    assert set(first[0].unique().tolist()) == set(range(5))  # nothing but the group's elements: no padding, no end


@pytest.mark.parametrize("name", ["mod1", "mod0", "mod-3", "mod", "mod2.5", "s4", ""])
def test_other_tasks_are_refused(name):
    with pytest.raises(ValueError, match=r"^task: got .*, expected mod2, mod3, \.\.\., or one of s3, a5$"):
        task(name)


@pytest.mark.parametrize(("count", "length"), [(0, 5), (5, 0), (1, -1)])
def test_sequences_of_nothing_are_refused(count, length):
    with pytest.raises(ValueError, match=f"got {count} of length {length}, expected at least 1 and 1"):
        drawn("mod2", count, length)


def test_guessing_is_zero_and_all_right_is_one():
    assert normalised(1 / 60, task("a5")) == pytest.approx(0)
    assert normalised(1.0, task("a5")) == 1
    assert normalised(0.75, task("mod2")) == 0.5
