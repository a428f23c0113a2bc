"""Stage 02: what does each model learn from the same text, the same number of tokens and the same recipe?"""

from __future__ import annotations

from muse.records.schema import StageRecord
from muse.training import trainer, tuning
from muse.training.choices import common_choice

from .method import by
from .stage import Stage

VALIDATION = (tuning.Trained.metrics, trainer.TrainingResult.metrics, trainer._Training.evaluate)
"""What makes numbers of a training, its loss on the validation split among them."""


def run(stage: Stage) -> StageRecord:
    """Train every model of the comparison, once a seed, and return the record; what is on disk is not repeated."""
    if not stage.settings.train_tokens:
        return stage.write([])
    tokens = len(stage.corpus.splits["train"].ids)
    print(f"corpus {stage.corpus.name}: {tokens:,} training tokens, vocabulary {stage.corpus.vocab_size:,}")
    metrics, series, tries = [], [], {}
    for name in stage.keeping(stage.compared, metrics, "models trained", series=series):
        trained = stage.train(name)
        stage.trainings += trained.runs
        losses = [result.best_validation_loss for result in trained.results]
        reached = f"best validation loss {min(losses):.4f} to {max(losses):.4f} nat/token"
        print(f"{name:14} {', '.join(filter(None, (reached, trained.told)))}")
        tries[name] = trained.tries
        metrics += by(trained.metrics(name), *VALIDATION)
        series += trained.series(name)
    if common := common_choice(tries):
        print(common)
        metrics += by(common.metrics(), common_choice)
    return stage.write(metrics, series=series)
