"""What a stage notebook needs around its one call: validated parameters, device, corpus, models, and the record."""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from muse.catalog import BASELINE, NAMED, REFERENCE, WRITTEN, recomputes
from muse.data.corpora import SPLITS, load_corpus
from muse.data.corpus import Corpus
from muse.host.paths import from_checkout, shortened, with_short_paths
from muse.host.signals import Interrupted
from muse.measure.live_bytes import WithoutData
from muse.models.build import build_model
from muse.models.pretrained import served
from muse.models.weights import WithoutDraws, load_trained
from muse.params import NO_CUDA, ParamsError, Settings, validate
from muse.records.environment import imported, utc_now
from muse.records.scale import in_words, reductions_of
from muse.records.schema import Artifact, Excerpt, InputFile, Metric, Series, StageRecord, TrainingRun
from muse.records.store import write_record
from muse.report.texts import texts
from muse.training.live import Followed, live_curve, training_bar
from muse.training.recipe import OnReport, TrainingResult
from muse.training.tuning import Trained, choose_and_train

from . import tables as tables
from .notebook import parameters_of, refuse_changes, settings_in

TRAINING = ("train", "perplexity", "dynamics")
"""Stages whose models are trained ones, where there are any."""

READS = ("corpus", "tokenizer", "cache_dir")
"""Settings that decide what a stage's corpus holds."""

TOY_WIDTH = 64
"""Models up to this width are trained and measured on one thread of a CPU."""

USUAL_THREADS: dict[str, int] = {}
"""How many threads there were, while there is one."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and values of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let the process reuse freed memory instead of giving it back: fresh pages of 100 MB tensors cost more than sums.

    A full-size forward and backward pass of few tokens takes about half the time. Only glibc has this setting.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _from_checkout(settings: Settings) -> Settings:
    """Return settings whose folders are absolute."""
    names = {name: getattr(settings, name) for name in WRITTEN}
    texts = {name: getattr(settings, name) for name in NAMED}
    names |= {name: value for name, value in texts.items() if value not in NAMED[name]}
    return settings.model_copy(update={name: str(from_checkout(path)) for name, path in names.items() if path})


def use_threads(toy: bool) -> None:
    """Compute on one thread where models are tiny, else on as many as before: two that wait for each other are slower.

    At a width of 32, beside other work on two cores, one thread trained 26 thousand tokens a second and two 2.
    """
    if toy:
        USUAL_THREADS.setdefault("number", torch.get_num_threads())
        torch.set_num_threads(1)
    elif USUAL_THREADS:
        torch.set_num_threads(USUAL_THREADS.pop("number"))


class Stage:
    """One run of one stage, from its notebook's parameters to its record."""

    def __init__(self, name: str, namespace: Mapping[str, object]):
        """Check the parameters found in `namespace` (pass `globals()`); ParamsError says what is wrong with them.

        Relative folders start at the checkout, wherever the notebook runs.
        """
        self.name, self.namespace = name, namespace
        self.started_utc = utc_now()
        self.params = parameters_of(namespace)
        self.settings: Settings = _from_checkout(validate(self.params))
        self.record_path = from_checkout(str(namespace["record_dir"])) / f"{name}.json"
        self.artifacts: list[Artifact] = []  # of the record, beside the weights that were looked for
        self.trainings: list[TrainingRun] = []  # of the record
        self.device = self._device()
        self._corpus: Corpus | None = None
        self._shared: Stage | None = None  # a stage that reads the same corpus
        self._tested: Corpus | None = None
        self._curve: OnReport | None = None  # one drawing of all trainings
        self._untrained: tuple[tuple[str, float], nn.Module] | None = None
        self._trained: dict[str, tuple[TrainingResult, ...]] = {}

    def _device(self) -> torch.device:
        wanted = self.settings.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise ParamsError(NO_CUDA)
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cpu":
            keep_freed_memory()
            width = self.settings.train_d_model or self.settings.d_model
            use_threads(toy=self.name in TRAINING and self.settings.train_tokens > 0 and width <= TOY_WIDTH)
        return torch.device(wanted)

    def check_parameters(self) -> None:
        """Raise CellError where a parameter of the notebook has changed since this stage took it."""
        refuse_changes(self.name, self.params, settings_in(self.namespace))

    @property
    def corpus(self) -> Corpus:
        """The corpus of this stage, read once; a perplexity without a training asks for no more than the test split."""
        if self._corpus is None:
            splits = SPLITS if self.settings.train_tokens or self.name != "perplexity" else ("test",)
            self._corpus = self._shared.corpus if self._shared else self._read(self.settings.corpus, splits)
        return self._corpus

    @property
    def tested(self) -> Corpus:
        """The corpus on whose test split perplexity is measured: `test_corpus` where one is named, else the corpus."""
        if self._tested is None:
            other = self.settings.test_corpus
            self._tested = self.corpus if other is None else self._read(other, ("test",))
        return self._tested

    def share(self, other: Stage) -> None:
        """Take the corpus that another stage of this name reads, where this one would read the same."""
        if all(getattr(self.settings, name) == getattr(other.settings, name) for name in READS):
            self._shared = other

    def _read(self, corpus: str, splits: Sequence[str]) -> Corpus:
        cache_dir = Path(self.settings.cache_dir) if self.settings.cache_dir else None
        try:
            return load_corpus(corpus, self.settings.tokenizer, splits=splits, cache_dir=cache_dir)
        except ValueError as error:
            raise ParamsError(str(error)) from error

    @property
    def run_dir(self) -> Path:
        """The folder of the run, which holds index.html and the folder of the records."""
        return self.record_path.parent.parent

    @property
    def compared(self) -> list[str]:
        """The models of the comparison, without Phase 2 where `skip_phase2` says so."""
        return [name for name in self.settings.models if not (name == BASELINE and self.settings.skip_phase2)]

    def model(
        self,
        name: str = REFERENCE,
        *,
        use_complex32: bool = True,
        recompute: bool | None = None,
        dtype: torch.dtype | None = None,
        dropout: float = 0.0,
    ) -> nn.Module:
        """Return an untrained model of the measured size on the stage's device; each call returns one of its own.

        `recompute` takes the place of the setting of that name, `dtype` that of the precision in which it is stored.
        """
        if self._untrained is None or self._untrained[0] != (name, dropout):  # drawing weights takes longer than a copy
            self._untrained = (name, dropout), self._build(name, dropout)
        drawn = self._untrained[1]
        model = served(drawn) if use_complex32 else drawn
        model = copy.deepcopy(model) if model is drawn else model
        return self._placed(model.to(dtype), name, recompute)

    def shaped(
        self,
        name: str = REFERENCE,
        *,
        use_complex32: bool = True,
        recompute: bool | None = None,
        dtype: torch.dtype | None = None,
        dropout: float = 0.0,
    ) -> nn.Module:
        """Return a model whose memory is asked for: `model`, but where that is an estimate it has no values."""
        options = {"recompute": recompute, "dtype": dtype, "dropout": dropout}
        if self.device.type == "cuda":
            return self.model(name, use_complex32=use_complex32, **options)
        with WithoutDraws():
            model = self._build(name, dropout)
        with WithoutData():
            model = (served(model) if use_complex32 else model).to(dtype)
        return self._placed(model, name, recompute)

    def _build(self, name: str, dropout: float = 0.0) -> nn.Module:
        sizes = {key: getattr(self.settings, key) for key in ("vocab_size", "d_model", "n_layers", "n_seq")}
        return build_model(name, **sizes, dropout=dropout, seed=self.settings.seed)

    def _placed(self, model: nn.Module, name: str, recompute: bool | None) -> nn.Module:
        model = model.to(self.device)
        model.recompute = recomputes(name, self.settings.recompute if recompute is None else recompute)
        return model

    def train(self, name: str, only: Sequence[int] = ()) -> Trained:
        """Return the trainings of a model, one per seed; those found finished on disk are not repeated.

        With `only` it trains these seeds, with what all tries of the first one choose.
        An interruption says at which step it came, and that the same cell goes on from there.
        """
        self.check_parameters()
        if self._curve is None:
            self._curve = live_curve(self.corpus.entropy_nats_per_token)
        shown, followed = self._curve, Followed(training_bar)
        try:
            settings, corpus = self.settings, self.corpus
            trained = choose_and_train(settings, name, corpus, build_model, self.device, shown, followed, only)
        except Interrupted:
            raise Interrupted(followed.told) from None
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
        return {
            result.seed: served(load_trained(result.weights, build_model)).to(self.device)
            for result in self._results(name)
        }

    def before_training(self, name: str) -> nn.Module:
        """Return the model of the first training as it was before its first step, in the form in which it is served."""
        seed, trained = self.first_trained(name)
        sizes = {key: getattr(trained.config, key) for key in ("vocab_size", "d_model", "n_layers", "n_seq", "dropout")}
        return served(build_model(name, **sizes, seed=seed)).to(self.device)

    def first_trained(self, name: str) -> tuple[int, nn.Module]:
        """Return the seed of a model's first training, and the model as it was trained."""
        first = self._results(name)[0]
        return first.seed, load_trained(first.weights, build_model)

    def record(
        self,
        metrics: Iterable[Metric],
        *,
        series: Iterable[Series] = (),
        excerpts: Sequence[Excerpt] = (),
    ) -> StageRecord:
        """Return the stage's record."""
        self.check_parameters()
        read = self._tested or self._corpus
        text = read.text if read else ""
        smaller = reductions_of(self.params, text)
        files = dict.fromkeys(file for corpus in (self._corpus, self._tested) if corpus for file in corpus.files)
        named = [value for name in NAMED if (value := getattr(self.settings, name))]
        return StageRecord(
            stage=self.name,
            started_utc=self.started_utc,
            finished_utc=utc_now(),
            scale="reduced" if smaller else "published",
            reductions=smaller,
            scale_note=in_words(smaller, texts("en")),
            text=text,
            params=with_short_paths(self.params) | {"device": str(self.device)},
            inputs=[
                InputFile(**vars(file) | {"path": shortened(file.path, named), "normalized": list(file.normalized)})
                for file in files
            ],
            metrics=list(metrics),
            series=list(series),
            excerpts=list(excerpts),
            artifacts=[
                *(result.artifact(self.settings.checkpoint_dir) for many in self._trained.values() for result in many),
                *self.artifacts,
            ],
            trainings=list(self.trainings),
            imported=imported(),
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
