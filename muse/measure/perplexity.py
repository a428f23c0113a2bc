"""Perplexity of a model on a whole split of tokens: every target once, in windows that know nothing of each other.

N tokens have N - 1 targets: the first token of the split follows nothing and is not predicted. Per-token quantities are
means over the N - 1 targets; those per word, byte and character charge the first token that mean too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from torch import nn

from muse.data.batches import evaluation_batches
from muse.data.corpus import TokenSplit
from muse.data.words import has_words
from muse.records.bootstrap import loss_interval
from muse.records.reasons import NO_WORDS
from muse.records.schema import Metric, Series

from .common import Progress, device_of, passthrough, safe_exp, training_mode

WITHOUT_UNK = "perplexity_without_unk"
"""Perplexity of the targets that are no second or later piece of an <unk>; those are nearly free for any model."""


class NonFiniteBatchError(FloatingPointError):
    """A token's loss was NaN or infinite; the measurement stops there, since skipping would flatter the model."""


@dataclass(frozen=True)
class PerplexityResult:
    """Summed losses of one model on one split, in float64."""

    split: str
    nll_nats: float  # total over the targets that were measured
    num_targets: int
    num_tokens: int  # of the whole split
    num_words: int
    num_bytes: int
    document_nll_nats: np.ndarray = field(repr=False)  # (documents,)
    document_targets: np.ndarray = field(repr=False)  # (documents,) targets measured in each
    position_loss_nats: np.ndarray = field(repr=False)  # (n_seq,) mean loss; NaN where no window reached
    target_loss_nats: np.ndarray = field(repr=False)  # (targets,) of those that were measured, in the split's order
    loss_interval: tuple[float, float] | None  # 95 %, over documents, nat per token
    without_unk: Self | None = field(default=None, repr=False)  # the same, pieces inside an <unk> left out; None: none
    has_words: bool = True  # False: no spaces part the words of the text
    num_characters: int = 0  # 0: not counted

    @property
    def is_whole_split(self) -> bool:
        return self.num_targets == self.num_tokens - 1

    @property
    def target_documents(self) -> np.ndarray:
        """The document that each measured target belongs to, counted from 0: int32 (targets,)."""
        return np.repeat(np.arange(len(self.document_targets), dtype=np.int32), self.document_targets)

    @property
    def loss_nats(self) -> float:
        """Mean loss in nat per token."""
        return self.nll_nats / self.num_targets

    @property
    def perplexity(self) -> float | None:
        """Per token; None where exp overflows."""
        return safe_exp(self.loss_nats)

    @property
    def word_perplexity(self) -> float | None:
        """Per canonical word; None where exp overflows, a part of the split was left out or spaces part no words."""
        return self._perplexity_per(self.num_words) if self.has_words else None

    @property
    def byte_perplexity(self) -> float | None:
        """None where exp overflows or a part of the split was left out."""
        return self._perplexity_per(self.num_bytes)

    @property
    def character_perplexity(self) -> float | None:
        """None where exp overflows, a part of the split was left out or its characters were not counted."""
        return self._perplexity_per(self.num_characters)

    @property
    def bits_per_byte(self) -> float | None:
        """None where a part of the split was left out."""
        has = self._has(self.num_bytes)
        return self.loss_nats * self._tokens_per(self.num_bytes) / math.log(2) if has else None

    def _perplexity_per(self, count: int) -> float | None:
        return safe_exp(self.loss_nats * self._tokens_per(count)) if self._has(count) else None

    def _has(self, count: int) -> bool:
        return self.is_whole_split and count > 0

    def _tokens_per(self, count: int) -> float:
        return self.num_tokens / count

    def metrics(self, model_name: str) -> list[Metric]:
        """Return loss, perplexity, word perplexity, bits per byte, the number of targets, and perplexity without <unk>.

        The last, where the split has targets inside an <unk>, counts the other targets alone. A text whose words no
        spaces part has no word perplexity, and that per byte and per character beside it.
        """
        overflow = f"exp of a loss of {self.loss_nats:.6g} nat per token overflows"
        per_byte = self._tokens_per(max(self.num_bytes, 1)) / math.log(2)
        metrics = [
            self._metric("loss", self.loss_nats, "nat/token", 1.0, float, ""),
            self._metric("perplexity", self.perplexity, "per token", 1.0, safe_exp, overflow),
            *self._metrics_by_length(overflow),
            self._metric("bits_per_byte", self.bits_per_byte, "bit/byte", per_byte, float, self._why_not_per_length),
            Metric(name="num_targets", value=self.num_targets, unit="tokens", note=self._of),
            *([self._metric_without_unk()] if self.without_unk else []),
        ]
        return [metric.model_copy(update={"model": model_name}) for metric in metrics]

    @property
    def _of(self) -> str:
        n, targets = self.num_targets, self.num_tokens - 1
        return f"{self.split} split{'' if self.is_whole_split else f', first {n} of {targets} targets only'}"

    @property
    def _why_not_per_length(self) -> str:
        return "not the whole split" if not self.is_whole_split else "the split counts none"

    def _metric(self, name: str, value: float | None, unit: str, factor: float, convert, missing: str) -> Metric:
        """One quantity with its interval: `convert` of the loss per token times `factor`."""
        documents, interval = int((self.document_targets > 0).sum()), self.loss_interval
        how = f"bootstrap over {documents} documents" if interval else "one document: no interval"
        ends = None if interval is None or value is None else tuple(convert(end * factor) for end in interval)
        if ends is not None and None in ends:
            ends = None
        note = f"{self._of}; " + (how if value is not None else f"not given: {missing}")
        return Metric(name=name, value=value, unit=unit, n=self.num_targets, interval=ends, note=note)

    def _metrics_by_length(self, overflow: str) -> list[Metric]:
        """Perplexity per word; where no spaces part the words it is missing, and per byte and per character follow."""

        def per(unit: str, count: int, value: float | None) -> Metric:
            missing = overflow if self._has(count) else self._why_not_per_length
            factor = self._tokens_per(max(count, 1))
            return self._metric(f"{unit}_perplexity", value, f"per {unit}", factor, safe_exp, missing)

        if self.has_words:
            return [per("word", self.num_words, self.word_perplexity)]
        missing = self._metric("word_perplexity", None, "per word", 1.0, safe_exp, NO_WORDS)
        return [
            missing.model_copy(update={"reason": NO_WORDS}),
            per("byte", self.num_bytes, self.byte_perplexity),
            per("character", self.num_characters, self.character_perplexity),
        ]

    def _metric_without_unk(self) -> Metric:
        plain = next(metric for metric in self.without_unk.metrics("") if metric.name == "perplexity")
        left_out = f"{self.num_targets - plain.n} targets left out: second and later pieces of <unk>; "
        return plain.model_copy(update={"name": WITHOUT_UNK, "note": left_out + plain.note})

    def series(self, model_name: str) -> list[Series]:
        """Return the mean loss at each position of the window, where any window reached it."""
        reached = np.flatnonzero(np.isfinite(self.position_loss_nats))
        return [
            Series(
                name="loss_by_position",
                model=model_name,
                x_name="position in the window",
                y_name="loss (nat/token)",
                x=reached.astype(float).tolist(),
                y=self.position_loss_nats[reached].tolist(),
            )
        ]


def measure_perplexity(
    model: nn.Module,
    split: TokenSplit,
    *,
    n_seq: int,
    batch_size: int,
    max_batches: int | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: Progress = passthrough,
) -> PerplexityResult:
    """Return the model's losses on the split; `seed` drives the bootstrap only, `device` defaults to the model's.

    ValueError: a split of fewer than two tokens. NonFiniteBatchError, with batch and window: a loss is NaN or infinite.
    """
    if len(split.ids) < 2:
        raise ValueError(f"split {split.name} must hold at least 2 tokens, got {len(split.ids)}")
    return _result(split, _target_losses(model, split, n_seq, batch_size, max_batches, device, progress), n_seq, seed)


def average_probabilities(results: Sequence[PerplexityResult], split: TokenSplit, *, seed: int = 0) -> PerplexityResult:
    """Return what the mean of several models' probabilities loses on the split that each of them was measured on.

    A target's loss is -log of the mean over models of exp(-loss). `seed` drives the bootstrap only.
    """
    losses = np.stack([result.target_loss_nats for result in results])
    averaged = math.log(len(losses)) - np.logaddexp.reduce(-losses)
    return _result(split, averaged, len(results[0].position_loss_nats), seed)


def _result(split: TokenSplit, losses: np.ndarray, n_seq: int, seed: int) -> PerplexityResult:
    """The losses of a split's first targets (targets,), summed, with and without the later pieces of <unk>."""
    result = _summed(split, losses, np.arange(len(losses)), n_seq, seed)
    if split.inside_unk is None:
        return result
    others = np.flatnonzero(~split.inside_unk[1:].numpy())
    measured = others[others < len(losses)]
    if not 0 < len(measured) < len(losses):
        return result
    without_unk = _summed(split, losses[measured], measured, n_seq, seed)
    counts = {"num_tokens": len(others) + 1, "num_words": 0, "num_bytes": 0, "num_characters": 0}
    return replace(result, without_unk=replace(without_unk, **counts))


def _summed(split: TokenSplit, losses: np.ndarray, targets: np.ndarray, n_seq: int, seed: int) -> PerplexityResult:
    """The losses of some targets (targets,), summed: target i is token i + 1, predicted at position i % n_seq."""
    starts = split.document_starts.numpy()
    documents = np.searchsorted(starts, targets + 1, side="right") - 1
    document_nll = np.bincount(documents, losses, len(starts))
    document_targets = np.bincount(documents, minlength=len(starts))
    position_targets = np.bincount(targets % n_seq, minlength=n_seq)
    with np.errstate(invalid="ignore"):
        position_loss = np.bincount(targets % n_seq, losses, n_seq) / position_targets
    return PerplexityResult(
        split=split.name,
        nll_nats=float(losses.sum()),
        num_targets=len(losses),
        num_tokens=len(split.ids),
        num_words=split.num_words,
        num_bytes=split.num_bytes,
        document_nll_nats=document_nll,
        document_targets=document_targets,
        position_loss_nats=position_loss,
        target_loss_nats=losses,
        loss_interval=loss_interval(document_nll, document_targets, seed=seed),
        has_words=has_words(split.median_word_bytes),
        num_characters=getattr(split, "num_characters", 0),
    )


def _target_losses(
    model: nn.Module,
    split: TokenSplit,
    n_seq: int,
    batch_size: int,
    max_batches: int | None,
    device: torch.device | str | None,
    progress: Progress,
) -> np.ndarray:
    """Return the loss of every target in the order of the split, float64 (targets,) on the host."""
    device = device_of(model) if device is None else torch.device(device)
    num_windows, tail = divmod(len(split.ids) - 1, n_seq)
    total = min(-(-num_windows // batch_size) + (tail > 0), max_batches or 2**62)
    batches = evaluation_batches(split.ids, n_seq, batch_size, max_batches)
    losses, done = [], 0
    with training_mode(model, False), torch.inference_mode():
        for index, (inputs, targets) in enumerate(progress(batches, f"perplexity, {split.name} split", total)):
            expected = split.ids[done + 1 : done + 1 + targets.numel()]
            assert torch.equal(targets.flatten().cpu().to(expected.dtype), expected), "targets are not the next tokens"
            loss = model.loss(inputs.to(device, torch.int64), targets.to(device, torch.int64), reduction="none")
            loss = loss.double().cpu().numpy()
            if not np.isfinite(loss).all():
                window, position = (int(axis[0]) for axis in np.nonzero(~np.isfinite(loss)))
                raise NonFiniteBatchError(
                    f"loss of {loss[window, position]} in {split.name} split, batch {index}, window "
                    f"{done // n_seq + window}, position {position}: the perplexity of this model is not finite"
                )
            losses.append(loss.ravel())
            done += loss.size
    return np.concatenate(losses)
