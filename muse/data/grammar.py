"""A seeded toy language whose true entropy is known exactly, so that a perplexity has a floor to stand on.

A document is   newline topic (name colour)^names sentence*
A sentence is   name "is" colour "."        the colour given at the top: recall of a binding
           or   det phrase [that verb det phrase] verb [det phrase] "."
                every verb agrees in number with the first det: agreement across the inner clause
A phrase is     adjective* noun             nouns and verbs depend on the topic: a latent of the whole document

The generator is unifilar: the state is a function of the symbols so far, so the entropy of the next symbol given the
state is the entropy given the whole past (Shannon 1948, section 7), and the rate is its mean over the stationary law.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from muse.host.lines import near, shown

TOPICS = ("sea", "farm", "forest", "city", "desert", "school", "harbour", "market")
NAMES = ("ann", "bob", "eve", "joe")
COLOURS = ("red", "blue", "green", "white")
ADJECTIVES = ("old", "small", "big", "quiet", "young", "strange", "clever", "slow")
NOUNS = (
    "fish", "boat", "wave", "crab", "horse", "barn", "field", "cow", "fox", "tree", "owl", "bear", "tram", "tower",
    "clerk", "bridge", "camel", "dune", "snake", "well", "pupil", "desk", "book", "clock", "crane", "sailor", "rope",
    "crate", "baker", "stall", "coin", "basket",
)  # fmt: skip
VERBS = ("sleep", "sing", "wait", "run", "hide", "fall", "work", "turn")
START, SINGULAR, PLURAL, THAT, IS, STOP = "\n", "the", "many", "that", "is", "."


@dataclass(frozen=True)
class Grammar:
    """Sizes and probabilities of the language; symbol ids are positions in `symbols`."""

    num_topics: int = 8  # latent of a document, named by its first word
    num_names: int = 3  # bindings (name to colour) given at the top of a document
    num_colours: int = 4  # values that a name can be bound to
    num_adjectives: int = 8  # words that say nothing about topic or number
    num_nouns: int = 32  # shared by all topics
    nouns_per_topic: int = 8  # consecutive ones; neighbouring topics overlap where this exceeds num_nouns / num_topics
    num_verbs: int = 8  # stems, each with a singular and a plural form
    verbs_per_topic: int = 2  # consecutive stems
    end_probability: float = 0.1  # that a document ends where a sentence could begin
    recall_probability: float = 0.3  # that a sentence recalls a binding
    adjective_probability: float = 0.35  # of one more adjective in a phrase
    clause_probability: float = 0.3  # of an inner clause after the first phrase
    object_probability: float = 0.5  # of a second phrase after the main verb

    def __post_init__(self):
        for words in ("topics", "names", "colours", "adjectives", "nouns", "verbs"):
            size, most = getattr(self, f"num_{words}"), len(globals()[words.upper()])
            if not 1 <= size <= most:
                raise ValueError(f"num_{words} must be 1 to {most}, got {size}")
        for per_topic, available in (("nouns_per_topic", self.num_nouns), ("verbs_per_topic", self.num_verbs)):
            if not 1 <= getattr(self, per_topic) <= available:
                raise ValueError(f"{per_topic} must be 1 to {available}, got {getattr(self, per_topic)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0 < value < 1:
                raise ValueError(f"{field.name} must be inside (0, 1), got {value}")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The word of every symbol id; id 0 is the newline that starts a document."""
        verbs = VERBS[: self.num_verbs]
        return (
            START, SINGULAR, PLURAL, THAT, IS, STOP,
            *TOPICS[: self.num_topics], *NAMES[: self.num_names], *COLOURS[: self.num_colours],
            *ADJECTIVES[: self.num_adjectives], *NOUNS[: self.num_nouns], *(verb + "s" for verb in verbs), *verbs,
        )  # fmt: skip

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    @cached_property
    def automaton(self) -> Automaton:
        """The generator with one state for each distinguishable past, found by walking from the topic state."""
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        states, edges = {("topic",): 0}, []
        queue = list(states)
        for state in queue:
            for word, probability, following in self._rules(*state):
                if following not in states:
                    states[following] = len(states)
                    queue.append(following)
                edges.append((states[state], ids[word], probability, states[following]))
        source, symbol, probability, target = (np.array(column) for column in zip(*edges, strict=True))
        return Automaton(len(states), self.vocab_size, source, symbol, probability, target)

    def _rules(self, node: str, topic: int = 0, colours: tuple[int, ...] = (), extra: int = 0):
        """Yields (word, probability, following state) of a state; extra is the number (0, 1) or a name's index."""

        def to(following: str, extra: int = 0):
            return (following, topic, colours, extra)

        match node:
            case "topic":
                yield from ((TOPICS[new], 1 / self.num_topics, ("name", new, (), 0)) for new in range(self.num_topics))
            case "name":
                yield NAMES[len(colours)], 1.0, to("colour")
            case "colour":
                following = "name" if len(colours) + 1 < self.num_names else "sentence"
                for new in range(self.num_colours):
                    yield COLOURS[new], 1 / self.num_colours, (following, topic, (*colours, new), 0)
            case "sentence":
                yield from self._openings(to)
            case "recall":
                yield IS, 1.0, to("recalled", extra)
            case "recalled":
                yield COLOURS[colours[extra]], 1.0, to("stop")
            case "subject" | "inner" | "object":
                following = {"subject": "clause", "inner": "verb", "object": "stop"}[node]
                yield from self._phrase(topic, to(node, extra), to(following, extra))
            case "clause":
                yield THAT, self.clause_probability, to("inner verb", extra)
                yield from self._verbs(topic, extra, 1 - self.clause_probability, to("done"))
            case "verb" | "inner verb":
                yield from self._verbs(topic, extra, 1.0, to("done") if node == "verb" else to("inner det", extra))
            case "inner det":
                yield from ((det, 0.5, to("inner", extra)) for det in (SINGULAR, PLURAL))
            case "done":
                yield STOP, 1 - self.object_probability, to("sentence")
                yield from ((det, self.object_probability / 2, to("object")) for det in (SINGULAR, PLURAL))
            case "stop":
                yield STOP, 1.0, to("sentence")

    def _openings(self, to: Callable[..., tuple]):
        """Yields what may stand where a sentence could begin: the next document, a name, or a det with its number."""
        goes_on = 1 - self.end_probability
        yield START, self.end_probability, ("topic",)
        for name in range(self.num_names):
            yield NAMES[name], goes_on * self.recall_probability / self.num_names, to("recall", name)
        for number, det in enumerate((SINGULAR, PLURAL)):
            yield det, goes_on * (1 - self.recall_probability) / 2, to("subject", number)

    def _phrase(self, topic: int, same: tuple, following: tuple):
        """Yields one more adjective, which leaves the state the same, or a noun of the topic."""
        for index, weight in enumerate(falling(self.num_adjectives)):
            yield ADJECTIVES[index], self.adjective_probability * weight, same
        for index, weight in enumerate(falling(self.nouns_per_topic)):
            noun = (topic * self.num_nouns // self.num_topics + index) % self.num_nouns
            yield NOUNS[noun], (1 - self.adjective_probability) * weight, following

    def _verbs(self, topic: int, number: int, probability: float, following: tuple):
        """Yields the verbs of a topic in the given number (0 singular, 1 plural), most frequent first."""
        for index, weight in enumerate(falling(self.verbs_per_topic)):
            stem = VERBS[(topic * self.num_verbs // self.num_topics + index) % self.num_verbs]
            yield stem if number else stem + "s", probability * weight, following

    def sample(self, num_tokens: int, seed: int | Sequence[int]) -> np.ndarray:
        """int32 (num_tokens,) symbol ids: whole documents in a row, the last one cut; same seed, same ids."""
        return self.automaton.sample(num_tokens, seed)

    def nll_nats(self, ids: Sequence[int]) -> np.ndarray:
        """float64 (len(ids),): -log probability of each symbol given all before it, ids beginning with a document."""
        return self.automaton.nll_nats(ids)

    def entropy_nats(self) -> float:
        """Exact entropy per token of the endless stream of documents: no model's expected loss is lower."""
        return self.automaton.entropy_nats

    def bigram_entropy_nats(self) -> float:
        """Exact entropy of a token given only the one before it: the floor of a model that does not mix positions."""
        return conditional_entropy_nats(self.automaton.bigram_probabilities)

    def decode(self, ids: Sequence[int]) -> str:
        """Words with spaces between them; a document is a line."""
        words = " ".join(self.symbols[index] for index in ids)
        return words.replace(f" {START}", START).replace(f"{START} ", START)

    def encode(self, text: str) -> list[int]:
        """Ids of a text's words and line ends, the inverse of `decode`; ValueError names a word of another language."""
        ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        words = re.findall(r"\n|\S+", text)
        if unknown := next((word for word in words if word not in ids), None):
            hint = near(unknown, self.symbols[1:]) or f"such as {', '.join(self.symbols[1:9])}"
            raise ValueError(f"got {shown(unknown)}, expected words of the synthetic language; {hint}")
        return [ids[word] for word in words]


class Automaton:
    """A unifilar generator as parallel edge arrays; state 0 is the one after the start symbol 0.

    Raises ValueError where the edges out of a state do not sum to one or share a symbol.
    """

    def __init__(self, num_states: int, vocab_size: int, source, symbol, probability, target):
        order = np.argsort(source, kind="stable")
        self.num_states, self.vocab_size = num_states, vocab_size
        self.source, self.symbol, self.target = source[order], symbol[order], target[order]
        self.probability = probability[order]
        self._edge_of = np.full(num_states * vocab_size, -1, np.int32)  # (state, symbol) -> edge, -1 where impossible
        self._edge_of[self.source * vocab_size + self.symbol] = np.arange(len(order))
        totals = np.bincount(self.source, self.probability, num_states)
        if np.abs(totals - 1).max() > 1e-12:
            raise ValueError(f"probabilities out of a state must sum to 1, got {totals.min()} to {totals.max()}")
        if (self._edge_of >= 0).sum() != len(order):
            raise ValueError("two edges out of one state carry the same symbol: the generator is not unifilar")

    @cached_property
    def visits(self) -> np.ndarray:
        """float64 (num_states,): expected visits in one document, v = e_0 + v P with the edges into state 0 cut."""
        inside = self.target != 0
        source, target, probability = self.source[inside], self.target[inside], self.probability[inside]
        visits = wave = np.eye(1, self.num_states)[0]
        while wave.sum() > 1e-13:
            wave = np.bincount(target, wave[source] * probability, self.num_states)
            visits = visits + wave
        return visits

    @property
    def tokens_per_document(self) -> float:
        return self.visits.sum()

    @cached_property
    def entropy_nats(self) -> float:
        surprise = -self.probability * np.log(self.probability)
        return float((self.visits[self.source] * surprise).sum() / self.tokens_per_document)

    @cached_property
    def bigram_probabilities(self) -> np.ndarray:
        """float64 (V V): stationary probability of symbol a followed by symbol b."""
        flow = self.visits[self.source] * self.probability / self.tokens_per_document
        joint = np.zeros((self.vocab_size, self.vocab_size))
        for first in range(self.vocab_size):
            edges = self.symbol == first
            arrived = np.bincount(self.target[edges], flow[edges], self.num_states)
            joint[first] = np.bincount(self.symbol, arrived[self.source] * self.probability, self.vocab_size)
        return joint

    def sample(self, num_tokens: int, seed: int | Sequence[int]) -> np.ndarray:
        """int32 (num_tokens,): documents drawn side by side, a step of all of them at a time, then laid end to end."""
        generator = np.random.Generator(np.random.PCG64(seed))
        last_edge = np.searchsorted(self.source, np.arange(self.num_states), side="right") - 1
        cumulative = np.cumsum(self.probability)  # each state's edges share an interval: state s owns [s, s + 1)
        cumulative[last_edge] = np.arange(1, self.num_states + 1)
        pieces, num_drawn = [], 0
        while num_drawn < num_tokens:
            num_documents = 1 + int((num_tokens - num_drawn) / self.tokens_per_document * 1.02)
            document, state = np.arange(num_documents), np.zeros(num_documents, np.int64)
            columns = [(document, np.zeros(num_documents, np.int64))]
            while len(document):
                edge = np.searchsorted(cumulative, state + generator.random(len(state)), side="right")
                edge = np.minimum(edge, last_edge[state])
                document, state, symbol = document[self.target[edge] != 0], self.target[edge], self.symbol[edge]
                state, symbol = state[state != 0], symbol[state != 0]
                columns.append((document, symbol))
            owner, symbols = (np.concatenate(column) for column in zip(*columns, strict=True))
            pieces.append(symbols[np.argsort(owner, kind="stable")].astype(np.int32))
            num_drawn += len(symbols)
        return np.concatenate(pieces)[:num_tokens] if pieces else np.zeros(0, np.int32)

    def nll_nats(self, ids: Sequence[int]) -> np.ndarray:
        """float64 (len(ids),): 0 for the first symbol, which must be the start; ValueError for an impossible symbol."""
        ids = np.asarray(ids).tolist()
        if ids[:1] != [0]:
            raise ValueError(f"the first symbol must be 0 (a document's start), got {ids[:1]}")
        edge_of, targets = self._edge_of.tolist(), self.target.tolist()
        state, edges = 0, []
        for position, symbol in enumerate(ids[1:], start=1):
            edge = edge_of[state * self.vocab_size + symbol] if 0 <= symbol < self.vocab_size else -1
            if edge < 0:
                raise ValueError(f"symbol {symbol} at position {position} cannot follow what stands before it")
            edges.append(edge)
            state = targets[edge]
        return np.concatenate([[0.0], -np.log(self.probability[edges])])


def falling(count: int) -> list[float]:
    """Probabilities proportional to 1, 1/2, 1/3, ... that sum to one."""
    total = sum(1 / rank for rank in range(1, count + 1))
    return [1 / rank / total for rank in range(1, count + 1)]


def conditional_entropy_nats(joint: np.ndarray) -> float:
    """H(b | a) of joint probabilities (a b), nats."""
    first = np.broadcast_to(joint.sum(1, keepdims=True), joint.shape)
    seen = joint > 0
    return float(-(joint[seen] * np.log(joint[seen] / first[seen])).sum())
