"""What `muse plan` prints: two tables, and what all trainings together take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from muse.catalog import CORPORA, Card
from muse.data.corpora import is_cheap, load_corpus
from muse.data.corpus import Corpus
from muse.data.hub import CorpusUnavailable
from muse.host.lines import cut, one_line
from muse.host.progress import duration
from muse.measure.memory import GIB
from muse.measure.roofline import USABLE_SHARE
from muse.params import ParamsError, Row, Settings
from muse.report.tables import Table
from muse.training.rows import compared, trained

from .plan import ModelPlan, plan

SIZES = ("parameters", "forward MFLOP/token", "training MFLOP/token", "largest step (tokens)", "trainings", "there",
         "card hours")  # fmt: skip
STEPS = ("tokens a step", "peak, blocks kept (GiB)", "peak, recomputed (GiB)", "tokens/s", "")


def planned(rows: Sequence[Row], card: Card, price: float | None, cards: int = 1) -> Iterator[Table | str]:
    """Yield tables and lines, of a matrix row by row and then of all; ParamsError for corpora, tokenizers and sizes.

    Each model is trained on so many cards of one machine.
    """
    found: dict[object, ModelPlan] = {}  # what rows share is trained once
    for row in rows:
        if row.values:
            yield f"{row.name}\n"
        made: list[ModelPlan] = []
        yield from _of_row(row.settings, card, price, cards, made)
        for model in made:
            found.setdefault((model.name, trained(row.settings, (model.name,))), model)
        if row.values:
            yield ""
    if rows[0].values:
        yield f"{len(rows):,} runs; what several of them share counts once.{_sweep(list(found.values()), price)}"


def _of_row(
    settings: Settings, card: Card, price: float | None, cards: int, found: list[ModelPlan]
) -> Iterator[Table | str]:
    """Yield tables and a line of one run, and add what its models need to a list."""
    corpus, told = _corpus(settings)
    vocab_size = corpus.vocab_size if corpus else settings.vocab_size
    for name in compared(settings):
        try:
            found += plan(settings, [name], corpus, vocab_size, card, cards)
        except ValueError as error:
            raise ParamsError(f"models: {name} to train: {error}") from error
    usable = f"{USABLE_SHARE * card.memory_bytes / GIB:.1f} of {card.memory_bytes / GIB:.1f} GiB"
    way = "compiled" if settings.compile else "not compiled"
    yield Table("Models", ("", *SIZES), [_sizes(model) for model in found], range(1, 8), note=told)
    of_cards = f"each on {cards} cards, whose peak is that of one; " if cards > 1 else ""
    note = f"{of_cards}on {card.title}, {way}, {settings.optimizer}, bfloat16 autocast; "
    note += f"{usable} can be used; * as it is trained"
    yield Table("Training steps", ("", *STEPS), [row for model in found for row in _steps(model, card)],
                range(1, 5), note=note)  # fmt: skip
    yield _sweep(found, price)


def _corpus(settings: Settings) -> tuple[Corpus | None, str]:
    """The corpus, or none and a line about why no training counts as finished."""
    cache_dir = Path(settings.cache_dir) if settings.cache_dir else None
    told = f"vocab_size = {settings.vocab_size}, and no training counts as finished"
    if settings.corpus not in CORPORA and not Path(settings.corpus).exists():
        return None, f"{told}: no corpus in {cut(settings.corpus, 100)}"
    try:
        splits = ("train", "validation")
        if not is_cheap(settings.corpus, settings.tokenizer, splits, cache_dir):
            return None, f"{told}: the tokens of {cut(settings.corpus, 100)} are not in the cache yet"
        return load_corpus(settings.corpus, settings.tokenizer, splits=splits, cache_dir=cache_dir), ""
    except CorpusUnavailable as error:
        return None, f"{told}: {one_line(str(error).partition(chr(10))[0])}"
    except ValueError as error:
        raise ParamsError(f"corpus, tokenizer: {error}") from error


def _sizes(model: ModelPlan) -> list[str]:
    return [
        model.name,
        f"{model.num_parameters:,}",
        f"{model.forward_flops / 1e6:.1f}",
        f"{model.training_flops / 1e6:.1f}",
        f"{model.largest_tokens:,}",
        str(model.trainings),
        str(model.there),
        f"{model.card_seconds / 3600:.2f}",
    ]


def _steps(model: ModelPlan, card: Card) -> Iterator[list[str]]:
    for tokens, speed in model.tokens_per_second.items():
        peaks = {peak.recompute: peak.num_bytes for peak in model.peaks if peak.batch_tokens == tokens}
        shown = [f"{peaks[again] / GIB:.3f}{'*' * (again == model.recompute)}" for again in (False, True)]
        fits = model.peak_bytes(tokens) <= USABLE_SHARE * card.memory_bytes
        yield [model.name, f"{tokens:,}", *shown, f"{speed:,.0f}", "" if fits else "does not fit"]


def _sweep(found: list[ModelPlan], price: float | None) -> str:
    seconds, card_seconds = sum(model.seconds for model in found), sum(model.card_seconds for model in found)
    every = sum(model.trainings for model in found)
    left = every - sum(model.there for model in found)
    cards = "one card" if all(model.cards == 1 for model in found) else f"{found[0].cards} cards"
    cost = "" if price is None else f", {price * card_seconds / 3600:,.2f} at {price:g} an hour"
    return f"\nTrainings left: {left} of {every}; {duration(seconds)} of {cards}{cost}."
