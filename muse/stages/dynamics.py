"""Stage 08: what does a trained complex memory do inside, and what does it write?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from muse import measure
from muse.catalog import memory_models
from muse.host.progress import growing_text
from muse.models.generate import generate
from muse.ops import planar
from muse.records.reading import write_reading
from muse.records.schema import Excerpt, Metric, StageRecord

from .method import by
from .reading import reading
from .stage import Stage

PROMPT_TOKENS = 32
WRITING = {"temperature": 0.8, "top_p": 0.95}
"""How a trained model's text is drawn."""


def run(stage: Stage) -> StageRecord:
    """Let the memory model write, watch its memory, and return the record; an empty one without such a model.

    A trained one is watched as it was before its training too, on the same windows, and how it reads the first words of
    the test text is kept beside the run's losses.
    """
    name, trained = memory_model(stage), bool(stage.settings.train_tokens)
    write_reading(stage.run_dir, None)
    if name is None:
        print(f"no complex memory among {stage.settings.models}: nothing to do")
        return stage.write([])
    print(f"{name}, {'trained' if trained else 'untrained'}")
    model = next(iter(stage.models_by_seed(name).values()))
    excerpts, watched = write_text(stage, model, name), watch(stage, model)
    metrics, series = marked(watched.metrics(name), trained), watched.series(name)
    if trained:
        before = watch(stage, stage.before_training(name))
        found = marked(before.metrics(name), trained=False)
        metrics += [one.model_copy(update={"name": f"{one.name}_untrained"}) for one in found]
        series += [one.model_copy(update={"name": f"untrained {one.name}"}) for one in before.series(name)]
        write_reading(stage.run_dir, reading(stage, name, model))
    return stage.write(metrics, series=series, excerpts=excerpts)


def marked(metrics: Sequence[Metric], trained: bool) -> list[Metric]:
    """Return the metrics of `watch` with whether they are of a trained model; their notes say it where they are not."""
    untrained = "" if trained else "untrained; "
    return by((one.model_copy(update={"trained": trained, "note": untrained + one.note}) for one in metrics), watch)


def memory_model(stage: Stage) -> str | None:
    """Return the model that is watched: Stage 1 with memory, else the first of its ablations; None without one."""
    return next(iter(memory_models(stage.compared)), None)


def watch(stage: Stage, model: nn.Module) -> measure.DynamicsResult:
    """Return what the numbers of a memory model do on the first windows of the test split."""
    n_seq, ids = model.config.n_seq, stage.corpus.splits["test"].ids.long()
    count = max(1, min(stage.settings.dynamics_windows, len(ids) // n_seq))
    with planar.cpu_compute("float32"):
        return measure.measure_dynamics(model, ids[: count * n_seq].reshape(count, -1).to(stage.device))


def write_text(stage: Stage, model: nn.Module, label: str) -> list[Excerpt]:
    """Let a model go on after the first tokens of the test split, show the text as it grows, and return it."""
    corpus, n_new, seed = stage.corpus, stage.settings.excerpt_tokens, stage.settings.seed
    if model.positions is not None:
        n_new = min(n_new, model.config.n_seq // 2)
    prompt = corpus.splits["test"].ids[: min(PROMPT_TOKENS, model.config.n_seq // 2)].long()
    before = corpus.decode(prompt.tolist())
    print(before, "...")
    written, show = [], growing_text()
    with planar.cpu_compute("float32"):
        for token in generate(model, prompt[None].to(stage.device), n_new, seed=seed, **WRITING):
            written.append(token.item())
            text = corpus.decode(written)
            if not text.endswith("\ufffd"):  # half of a letter
                show(text)
    choices = ", ".join(f"{name} {value}" for name, value in WRITING.items())
    named = {
        f"prompt: first {len(prompt)} tokens of the test split": before,
        f"written: {n_new} tokens, {choices}, seed {seed}": corpus.decode(written),
    }
    return [Excerpt(name=name, model=label, text=text) for name, text in named.items()]
