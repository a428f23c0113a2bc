"""What a stage notebook needs around its one call: validated parameters, device, corpus, models, and the record."""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from muse import measure
from muse.bench import bench
from muse.bench.bench import BenchResult
from muse.catalog import BASELINE, REFERENCE, memory_models
from muse.data.corpora import Corpus, load_corpus
from muse.host.paths import shortened, with_short_paths
from muse.host.progress import growing_text, track
from muse.models.build import build_model
from muse.models.generate import generate
from muse.models.pretrained import has_complex32, served
from muse.models.weights import WithoutDraws, load_trained
from muse.ops import planar
from muse.params import NO_CUDA, ParamsError, Settings, validate
from muse.records.environment import utc_now
from muse.records.scale import in_words, reductions_of
from muse.records.schema import Excerpt, InputFile, Metric, Series, StageRecord
from muse.records.store import write_record
from muse.report.texts import texts
from muse.training.live import live_curve, training_bar
from muse.training.recipe import TrainingResult
from muse.training.tuning import Trained, choose_and_train

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and values of glibc's malloc.h

SCAN_TOLERANCE = 1e-4
"""Largest change of an earlier logit, relative to the largest logit, that rounding in parallel scans may cause."""

PROMPT_TOKENS = 32
WRITING = {"temperature": 0.8, "top_p": 0.95}
"""How a trained model's text is drawn."""


def keep_freed_memory() -> None:
    """Let the process reuse freed memory instead of giving it back: fresh pages of 100 MB tensors cost more than sums.

    A full-size forward and backward pass of few tokens takes about half the time. Only glibc has this setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class Stage:
    """One run of one stage, from its notebook's parameters to its record."""

    def __init__(self, name: str, namespace: Mapping[str, object]):
        """Check the parameters found in `namespace` (pass `globals()`); ParamsError says what is wrong with them."""
        self.name = name
        self.started_utc = utc_now()
        self.params = {key: namespace[key] for key in Settings.model_fields if key in namespace}
        self.settings: Settings = validate(self.params)
        self.record_path = Path(str(namespace["record_dir"])).resolve() / f"{name}.json"
        self.device = self._device()
        self._corpus: Corpus | None = None
        self._untrained: tuple[str, nn.Module] | None = None
        self._trained: dict[str, tuple[TrainingResult, ...]] = {}

    def _device(self) -> torch.device:
        wanted = self.settings.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ParamsError(NO_CUDA)
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cpu":
            keep_freed_memory()
        return torch.device(wanted)

    @property
    def corpus(self) -> Corpus:
        """The corpus of this stage, read once."""
        if self._corpus is None:
            cache_dir = self.settings.cache_dir
            self._corpus = load_corpus(
                self.settings.corpus, self.settings.tokenizer, cache_dir=Path(cache_dir) if cache_dir else None
            )
        return self._corpus

    @property
    def compared(self) -> list[str]:
        """The models of the comparison, without Phase 2 where `skip_phase2` says so."""
        return [name for name in self.settings.models if not (name == BASELINE and self.settings.skip_phase2)]

    def model(self, name: str = REFERENCE, *, use_complex32: bool = True, recompute: bool | None = None) -> nn.Module:
        """Return an untrained model of the measured size on the stage's device; each call returns one of its own.

        `recompute` takes the place of the setting of that name.
        """
        if self._untrained is None or self._untrained[0] != name:  # drawing the weights takes longer than a copy
            self._untrained = name, self._build(name)
        drawn = self._untrained[1]
        model = served(drawn) if use_complex32 else drawn
        model = (copy.deepcopy(model) if model is drawn else model).to(self.device)
        model.recompute = self.settings.recompute if recompute is None else recompute
        return model

    def shaped(self, name: str = REFERENCE, *, use_complex32: bool = True, recompute: bool | None = None) -> nn.Module:
        """Return a model whose memory is asked for: `model`, but where that is an estimate its values are not drawn."""
        if self.device.type == "cuda":
            return self.model(name, use_complex32=use_complex32, recompute=recompute)
        with WithoutDraws():
            model = self._build(name)
        model = served(model) if use_complex32 else model
        model.recompute = self.settings.recompute if recompute is None else recompute
        return model

    def _build(self, name: str) -> nn.Module:
        sizes = {key: getattr(self.settings, key) for key in ("vocab_size", "d_model", "n_layers", "n_seq")}
        return build_model(name, **sizes, seed=self.settings.seed)

    def train(self, name: str) -> Trained:
        """Return the trainings of a model, one per seed; those found finished on disk are not repeated."""
        trained = choose_and_train(
            self.settings, name, self.corpus, build_model, self.device, live_curve(), training_bar
        )
        self._trained[name] = trained.results
        return trained

    def _results(self, name: str) -> tuple[TrainingResult, ...]:
        """The trainings of a model, asked for once: each is looked for by its key, under its folder's lock."""
        if name not in self._trained:
            self.train(name)
        return self._trained[name]

    def models_by_seed(self, name: str) -> dict[int, nn.Module]:
        """Return the trained models in the form in which they are served; without a training, the untrained one."""
        if not self.settings.train_tokens:
            return {self.settings.seed: self.model(name)}
        models = {}
        for result in self._results(name):
            models[result.seed] = served(load_trained(result.weights, build_model)).to(self.device)
        return models

    def evaluate(self, name: str) -> tuple[dict[int, measure.PerplexityResult], list[Metric]]:
        """Return the test perplexity of every seed of a model, and its metrics with the checks that let it count.

        A model of which any seed meets a loss that is not finite has no results, and a perplexity without a value.
        """
        results, checks = {}, []
        with planar.cpu_compute("float32"):
            for seed, model in self.models_by_seed(name).items():
                if not checks:
                    checks = [
                        *measure.check_causality(model, tolerance=SCAN_TOLERANCE).metrics(name),
                        *measure.check_mixing(model, tolerance=SCAN_TOLERANCE).metrics(name),
                        *measure.check_statefulness(model, tolerance=SCAN_TOLERANCE).metrics(name),
                    ]
                try:
                    results[seed] = self._test_perplexity(model)
                except measure.NonFiniteBatchError as error:
                    return {}, [*checks, self._no_perplexity(name, f"seed {seed}: {error}")]
        metrics = measure.seed_metrics(name, results)
        if not self.settings.train_tokens:
            metrics = [metric.model_copy(update={"note": f"untrained; {metric.note}"}) for metric in metrics]
        metrics = [metric.model_copy(update={"trained": bool(self.settings.train_tokens)}) for metric in metrics]
        return results, [*metrics, *checks]

    def _no_perplexity(self, name: str, reason: str) -> Metric:
        trained = bool(self.settings.train_tokens)
        return Metric(name="perplexity", model=name, value=None, unit="per token", trained=trained, reason=reason,
                      note=reason)  # fmt: skip

    def _test_perplexity(self, model: nn.Module) -> measure.PerplexityResult:
        return measure.measure_perplexity(
            model,
            self.corpus.splits["test"],
            n_seq=model.config.n_seq,
            batch_size=self.settings.ppl_batch_size,
            max_batches=self.settings.max_ppl_batches,
            progress=track,
        )

    def evaluate_formats(self, name: str) -> list[Metric]:
        """Return the test perplexity of a complex model's first seed, its weights rounded to each of `formats`."""
        if not self.settings.formats or not self.settings.train_tokens:
            return []
        result, found = self._results(name)[0], []
        for form in self.settings.formats:
            model = load_trained(result.weights, build_model)
            if not has_complex32(model):
                return []
            note = f"seed {result.seed}, weights and activations in {form}; "
            try:
                with planar.cpu_compute("float32"):
                    metrics = self._test_perplexity(model.to(self.device, getattr(torch, form))).metrics(name)
            except measure.NonFiniteBatchError as error:
                metrics = [self._no_perplexity(name, str(error))]
            found += [
                metric.model_copy(update={"name": f"{metric.name}_{form}", "note": note + metric.note})
                for metric in metrics
                if metric.name in ("loss", "perplexity")
            ]
        return found

    @property
    def memory_model(self) -> str | None:
        """The model whose memory is watched: Stage 1 with memory, else the first of its ablations; None without one."""
        return next(iter(memory_models(self.compared)), None)

    def dynamics(self, model: nn.Module) -> measure.DynamicsResult:
        """Return what the numbers of a memory model do on the first windows of the test split."""
        n_seq, ids = model.config.n_seq, self.corpus.splits["test"].ids.long()
        count = max(1, min(self.settings.dynamics_windows, len(ids) // n_seq))
        with planar.cpu_compute("float32"):
            return measure.measure_dynamics(model, ids[: count * n_seq].reshape(count, -1).to(self.device))

    def write_text(self, model: nn.Module, label: str) -> list[Excerpt]:
        """Let a model go on after the first tokens of the test split, show the text as it grows, and return it."""
        corpus, n_new = self.corpus, self.settings.excerpt_tokens
        if model.positions is not None:
            n_new = min(n_new, model.config.n_seq // 2)
        prompt = corpus.splits["test"].ids[: min(PROMPT_TOKENS, model.config.n_seq // 2)].long()
        before = corpus.decode(prompt.tolist())
        print(before, "...")
        written, show = [], growing_text()
        with planar.cpu_compute("float32"):
            for token in generate(model, prompt[None].to(self.device), n_new, seed=self.settings.seed, **WRITING):
                written.append(token.item())
                text = corpus.decode(written)
                if not text.endswith("\ufffd"):  # half of a letter
                    show(text)
        choices = ", ".join(f"{name} {value}" for name, value in WRITING.items())
        return [
            Excerpt(name=f"prompt: first {len(prompt)} tokens of the test split", model=label,
                    text=before),
            Excerpt(name=f"written: {n_new} tokens, {choices}, seed {self.settings.seed}", model=label,
                    text=corpus.decode(written)),
        ]  # fmt: skip

    def bench(self, on_group: Callable[[BenchResult], None] = lambda so_far: None) -> BenchResult:
        """Compare fast paths with naive ones and other libraries; `on_group` gets what there is after each group.

        Naive forms and other libraries keep all that they need for the backward pass, so the fast paths do too.
        """
        build = partial(self.model, recompute=False)
        return bench.measure_bench(build, self.settings, self.device, progress=track, on_group=on_group)

    def record(
        self,
        metrics: Iterable[Metric],
        *,
        series: Iterable[Series] = (),
        excerpts: Sequence[Excerpt] = (),
    ) -> StageRecord:
        """Return the stage's record."""
        smaller = reductions_of(self.params)
        files = self._corpus.files if self._corpus else ()
        read = (self.settings.corpus, self.settings.tokenizer)
        return StageRecord(
            stage=self.name,
            started_utc=self.started_utc,
            finished_utc=utc_now(),
            scale="reduced" if smaller else "published",
            reductions=smaller,
            scale_note=in_words(smaller, texts("en")),
            params=with_short_paths(self.params) | {"device": str(self.device)},
            inputs=[
                InputFile(path=shortened(file.path, read), sha256=file.sha256, num_bytes=file.num_bytes)
                for file in files
            ],
            metrics=list(metrics),
            series=list(series),
            excerpts=list(excerpts),
            artifacts=[
                result.artifact(self.settings.checkpoint_dir) for many in self._trained.values() for result in many
            ],
        )

    def keep(self, metrics: Iterable[Metric], progress: str, *, series: Iterable[Series] = ()) -> None:
        """Leave what there is so far in a record that says failed: a cut loses none of it, `write` replaces it."""
        record = self.record(metrics, series=series)
        unfinished = {"status": "failed", "error": f"unfinished: {progress}"}
        write_record(record.model_copy(update=unfinished), self.record_path)

    def keeping(
        self,
        names: Sequence[str],
        metrics: list[Metric],
        progress: str = "models measured",
        *,
        series: Sequence[Series] = (),
    ) -> Iterator[str]:
        """Yield the names and, each time the loop's body is through, keep what `metrics` and `series` hold by then."""
        for done, name in enumerate(names, 1):
            yield name
            self.keep(metrics, f"{done} of {len(names)} {progress}", series=series)

    def write(
        self,
        metrics: Iterable[Metric],
        *,
        series: Iterable[Series] = (),
        excerpts: Sequence[Excerpt] = (),
    ) -> StageRecord:
        """Write the stage's record, last of all, and return it."""
        record = self.record(metrics, series=series, excerpts=excerpts)
        write_record(record, self.record_path)
        return record
