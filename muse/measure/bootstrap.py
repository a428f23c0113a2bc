"""What another test set would have given: losses of resampled documents, for intervals of one model and of ratios."""

from __future__ import annotations

import numpy as np

INTERVAL = (2.5, 97.5)  # percentiles
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 4_000_000  # elements of one block of multinomial counts


def document_losses(
    nll_nats: np.ndarray, targets: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return mean losses of resampled documents, float64 (resamples, seeds), in nat per target.

    nll_nats (seeds, documents) are summed losses, targets (documents,) their counts, none of them 0. Documents are
    drawn with replacement; the statistic of a resample is its summed loss over its number of targets.
    """
    num_documents = len(targets)
    even, block = np.full(num_documents, 1 / num_documents), max(1, RESAMPLES_AT_ONCE // num_documents)
    found = []
    for first in range(0, resamples, block):
        counts = generator.multinomial(num_documents, even, min(block, resamples - first))  # (resamples, documents)
        found.append((counts @ nll_nats.T.astype(float)) / (counts @ targets.astype(float))[:, None])
    return np.concatenate(found)


def loss_interval(
    document_nll_nats: np.ndarray, document_targets: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of one model's mean loss; None with fewer than two documents."""
    used = document_targets > 0
    if used.sum() < 2:
        return None
    generator = np.random.default_rng(seed)
    losses = document_losses(document_nll_nats[None, used], document_targets[used], generator, resamples)
    low, high = np.percentile(losses, INTERVAL)
    return float(low), float(high)
