"""What another test set would have given: losses of resampled documents, for intervals of one model and of ratios."""

from __future__ import annotations

import numpy as np

INTERVAL = (2.5, 97.5)  # percentiles
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 4_000_000  # elements of one block of multinomial counts


def resampled_losses(nll_nats: np.ndarray, targets: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return logarithms of mean perplexities of resampled documents and seeds, float64 (RESAMPLES,), in nat per target.

    nll_nats (seeds, documents) are summed losses, targets (documents,) their counts. Documents with targets are drawn
    with replacement, then the seeds; the loss of a resample is its summed loss over its number of targets. Calls with
    the same documents and number of seeds draw the same resamples (paired).
    """
    generator, used = np.random.default_rng(seed), targets > 0
    nll_nats, targets = np.compress(used, nll_nats, axis=1).T.astype(float), targets[used].astype(float)
    even, block = np.full(len(targets), 1 / len(targets)), max(1, RESAMPLES_AT_ONCE // len(targets))
    found = []
    for first in range(0, RESAMPLES, block):
        counts = generator.multinomial(len(targets), even, min(block, RESAMPLES - first))  # (resamples, documents)
        found.append((counts @ nll_nats) / (counts @ targets)[:, None])
    losses = np.concatenate(found)
    num_seeds = losses.shape[1]
    if num_seeds == 1:
        return losses[:, 0]
    picked = generator.integers(num_seeds, size=losses.shape)
    return np.log(np.exp(np.take_along_axis(losses, picked, axis=1)).mean(axis=1))


def loss_interval(
    document_nll_nats: np.ndarray, document_targets: np.ndarray, *, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of one model's mean loss; None with fewer than two documents."""
    if (document_targets > 0).sum() < 2:
        return None
    low, high = np.percentile(resampled_losses(document_nll_nats[None], document_targets, seed), INTERVAL)
    return float(low), float(high)
