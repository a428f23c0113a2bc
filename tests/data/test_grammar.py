"""The synthetic language: its floor by three independent ways, and a reader of its own that checks its rules."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from muse.data.grammar import PLURAL, SINGULAR, START, Automaton, Grammar, conditional_entropy_nats

GRAMMAR = Grammar()
SMALL = Grammar(
    num_topics=3, num_names=2, num_colours=2, num_adjectives=2, num_nouns=5, nouns_per_topic=2, num_verbs=3,
    end_probability=0.2, recall_probability=0.4, adjective_probability=0.25, clause_probability=0.2,
)  # fmt: skip


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities)


def falling_entropy(count: int) -> float:
    total = sum(1 / rank for rank in range(1, count + 1))
    return entropy(*(1 / rank / total for rank in range(1, count + 1)))


def entropy_by_chain_rule(g: Grammar) -> tuple[float, float]:
    """(entropy per token, tokens per document): each choice's entropy times how often a document should make it."""
    adjective, clause, second = g.adjective_probability, g.clause_probability, g.object_probability
    noun, verb = falling_entropy(g.nouns_per_topic), falling_entropy(g.verbs_per_topic)
    words = 1 / (1 - adjective)
    phrase = noun + words * (entropy(adjective, 1 - adjective) + adjective * falling_entropy(g.num_adjectives))
    sentence = phrase + verb + entropy(clause, 1 - clause) + clause * (verb + math.log(2) + phrase)
    sentence += entropy(second, 1 - second) + second * (math.log(2) + phrase)
    sentence_tokens = 1 + words + 1 + clause * (3 + words) + second * (1 + words) + 1
    ends, recalls = g.end_probability, g.recall_probability
    named, described = (1 - ends) * recalls, (1 - ends) * (1 - recalls)
    boundary = entropy(ends, *[named / g.num_names] * g.num_names, described / 2, described / 2)
    top = math.log(g.num_topics) + g.num_names * math.log(g.num_colours)
    tokens = 2 + 2 * g.num_names + (named * 4 + described * sentence_tokens) / ends
    return (top + (boundary + described * sentence) / ends) / tokens, tokens


@pytest.mark.parametrize("grammar", [GRAMMAR, SMALL, Grammar(num_topics=1, num_names=1, verbs_per_topic=1)])
def test_entropy_matches_the_chain_rule(grammar):
    expected, tokens = entropy_by_chain_rule(grammar)
    assert grammar.automaton.tokens_per_document == pytest.approx(tokens, rel=1e-11)
    assert grammar.entropy_nats() == pytest.approx(expected, rel=1e-11)


def test_entropy_matches_a_dense_stationary_solve():
    """pi = pi P with sum 1 over the endless stream, and both entropies from pi, without the visits of one document."""
    a = SMALL.automaton
    transition = np.zeros((a.num_states, a.vocab_size, a.num_states))
    transition[a.source, a.symbol, a.target] = a.probability
    balance = np.vstack([transition.sum(1).T - np.eye(a.num_states), np.ones(a.num_states)])
    pi = np.linalg.lstsq(balance, np.eye(a.num_states + 1)[-1], rcond=None)[0]
    emission = transition.sum(2)
    logs = np.log(emission, where=emission > 0, out=np.zeros_like(emission))
    assert SMALL.entropy_nats() == pytest.approx(-(pi @ (emission * logs)).sum(), rel=1e-9)
    joint = np.einsum("s,sat,tb->ab", pi, transition, emission, optimize=True)
    np.testing.assert_allclose(a.bigram_probabilities, joint, atol=1e-12)


def test_entropies_match_a_long_sample():
    grammar = GRAMMAR
    ids = grammar.sample(400_000, seed=5)
    nll_nats = grammar.nll_nats(ids)
    documents = np.split(nll_nats, np.flatnonzero(ids == 0)[1:])[:-1]
    rate = grammar.entropy_nats()
    spread = np.std([document.sum() - rate * len(document) for document in documents]) * math.sqrt(len(documents))
    assert abs(nll_nats.sum() - rate * len(ids)) < 3 * spread
    assert spread / len(ids) < 0.005  # so that the line above says something
    counts = np.bincount(ids[:-1] * grammar.vocab_size + ids[1:], minlength=grammar.vocab_size**2)
    joint = counts.reshape(grammar.vocab_size, -1) / counts.sum()
    assert conditional_entropy_nats(joint) == pytest.approx(grammar.bigram_entropy_nats(), abs=0.012)


def test_string_probabilities_sum_to_one():
    """Every continuation of every history of up to 9 symbols: exp(-nll) is a distribution over strings."""
    grammar = Grammar(
        num_topics=2, num_names=1, num_colours=2, num_adjectives=1, num_nouns=1, nouns_per_topic=1, num_verbs=1,
        verbs_per_topic=1,
    )  # fmt: skip
    strings = {(0,): 1.0}
    for _ in range(8):
        longer = {}
        for string in strings:
            for symbol in range(grammar.vocab_size):
                try:
                    longer[*string, symbol] = math.exp(-grammar.nll_nats((*string, symbol)).sum())
                except ValueError:
                    continue
        strings = longer
        assert sum(strings.values()) == pytest.approx(1, rel=1e-12)
    assert len(strings) > 20


def test_bigram_floor_is_far_above_the_true_floor():
    grammar = GRAMMAR
    true, bigram = math.exp(grammar.entropy_nats()), math.exp(grammar.bigram_entropy_nats())
    assert 3 < true < 4
    assert 7.5 < bigram < 8.5
    assert bigram < grammar.vocab_size


def test_every_document_keeps_the_rules():
    grammar = GRAMMAR
    recalls = agreements = 0
    for line in grammar.decode(grammar.sample(20_000, seed=3).tolist()).split(START)[1:-1]:
        words = line.split()
        colour_of = dict(zip(words[1:7:2], words[2:7:2], strict=True))
        for sentence in " ".join(words[7:]).split(".")[:-1]:
            first, *rest = sentence.split()
            if first in colour_of:
                recalls += 1
                assert rest == ["is", colour_of[first]]
                continue
            verbs = [word for word in rest if word in grammar.symbols[-2 * grammar.num_verbs :]]
            assert len(verbs) == 1 + rest.count("that")
            assert all(word.endswith("s") == (first == SINGULAR) for word in verbs)
            agreements += len(verbs)
            assert first in (SINGULAR, PLURAL)
    assert recalls > 500
    assert agreements > 1500


def test_words_belong_to_the_topic():
    grammar = GRAMMAR
    seen = {}
    for line in grammar.decode(grammar.sample(100_000, seed=4).tolist()).split(START)[1:-1]:
        topic, *words = line.split()
        seen.setdefault(topic, set()).update(set(words) & set(grammar.symbols[-48:-16]))
    assert len(seen) == grammar.num_topics
    assert all(len(nouns) == grammar.nouns_per_topic for nouns in seen.values())
    assert len(set.union(*seen.values())) == grammar.num_nouns


def test_samples_are_the_same_everywhere():
    grammar = GRAMMAR
    ids = grammar.sample(1000, seed=[77, 0])
    assert ids.dtype == np.int32
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:16] == "55b6379a22e2ee3d"
    np.testing.assert_array_equal(ids, Grammar().sample(1000, seed=[77, 0]))
    assert (ids != grammar.sample(1000, seed=[77, 1])).any()
    assert ids[0] == 0


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 101])
def test_sample_has_the_size_asked_for(num_tokens):
    assert len(SMALL.sample(num_tokens, seed=0)) == num_tokens


def test_symbols_are_distinct_words():
    symbols = GRAMMAR.symbols
    assert len(set(symbols)) == len(symbols) == GRAMMAR.vocab_size
    assert all(symbol == START or symbol.split() == [symbol] for symbol in symbols)


def test_impossible_text_is_refused():
    start, topic, that = (SMALL.symbols.index(word) for word in (START, "sea", "that"))
    assert SMALL.nll_nats([start, topic])[1] == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match="position 2 cannot follow"):
        SMALL.nll_nats([start, topic, that])
    with pytest.raises(ValueError, match="position 1 cannot follow"):
        SMALL.nll_nats([start, SMALL.vocab_size])
    with pytest.raises(ValueError, match="first symbol must be 0"):
        SMALL.nll_nats([topic])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_topics", 9), ("num_names", 0), ("nouns_per_topic", 33), ("verbs_per_topic", 0), ("end_probability", 0.0)],
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=rf"{setting} must be .* got {value}"):
        Grammar(**{setting: value})


def test_automaton_refuses_what_has_no_exact_entropy():
    zeros, ones = np.zeros(2, int), np.ones(2, int)
    with pytest.raises(ValueError, match="not unifilar"):
        Automaton(2, 2, np.array([0, 0, 1]), np.array([1, 1, 0]), np.array([0.5, 0.5, 1]), np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="sum to 1"):
        Automaton(1, 2, zeros, np.array([0, 1]), 0.4 * ones, zeros)


def test_conditional_entropy_by_hand():
    assert conditional_entropy_nats(np.full((5, 7), 1 / 35)) == pytest.approx(math.log(7))
    assert conditional_entropy_nats(np.eye(4) / 4) == 0


def test_text_becomes_the_symbols_it_was_made_of():
    ids = GRAMMAR.sample(2000, seed=8).tolist()
    assert GRAMMAR.encode(GRAMMAR.decode(ids)) == ids
    fox, sings = map(GRAMMAR.symbols.index, ("fox", "sings"))
    assert GRAMMAR.encode(" the  fox\n\nsings .") == [1, fox, 0, 0, sings, 5]
    assert GRAMMAR.encode("") == []


def test_a_word_of_another_language_is_named_with_one_that_is_near():
    with pytest.raises(ValueError, match=r"^got 'foxx', expected words of the synthetic language; did you mean fox\?$"):
        GRAMMAR.encode("the foxx sings . the dragon")
    with pytest.raises(ValueError, match=r"got 'zzz', expected .* such as the, many, that"):
        GRAMMAR.encode("zzz")
