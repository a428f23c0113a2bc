"""Params files to validated settings: every key, its type, its meaning and its default, in one place."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from .catalog import (
    BASELINE,
    BENCH_GROUPS,
    CANDIDATES,
    HUB_CORPORA,
    LANGUAGES,
    MODEL_NAMES,
    OPTIMIZERS,
    REFERENCE,
    STAGE_NAMES,
    SYNTHETIC,
    WIKITEXT,
    YARDSTICK,
    memory_models,
    stage,
    usual_candidates,
    usual_stages,
)

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]
StageName = Literal[STAGE_NAMES]
ModelName = Literal[MODEL_NAMES]

GRID = {
    "learning_rate": "learning_rates",
    "dropout": "dropouts",
    "batch_tokens": "batch_tokens",
    "weight_decay": "weight_decays",
    "muon_weight_decay": "muon_weight_decays",
}
"""What is tried on validation, each with the setting that lists its values."""

RENAMED = {
    "train_batch_tokens": "batch_tokens",
    "weight_decay": "weight_decays",
    "muon_weight_decay": "muon_weight_decays",
}
"""Keys of before, each with the one that has a list of such values in its place."""

NO_CUDA = "device: got cuda, expected auto or cpu: torch finds no CUDA device on this machine"


class ParamsError(ValueError):
    """Bad settings; the message names the file, the key, what was got and what is expected."""


class Settings(BaseModel):
    """One flat set of settings: the keys of a params file, of `-p key=value` and of the notebooks' parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    profile: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")] = Field("custom", description="name of the run's profile")
    models: list[ModelName] = Field(
        [REFERENCE, BASELINE, YARDSTICK], min_length=1, description="models that are trained"
    )
    candidates: list[Literal[CANDIDATES]] = Field(
        default_factory=lambda before: usual_candidates(before.get("models", ())),
        min_length=1,
        description="models that the five criteria are asked of; the first decides --gate. Default: stage1, or "
        "stage1_memory in a run without it",
    )
    stages: list[StageName] = Field(
        default_factory=lambda before: usual_stages(before.get("models", ())),
        min_length=1,
        description="which stages run; all, but dynamics only where a model has a complex memory",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models live; auto takes CUDA if present")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of weights and random inputs of measurements")

    corpus: str = Field(
        SYNTHETIC,
        description=f"{SYNTHETIC}, a folder of text or parquet, or from the hub {', '.join(HUB_CORPORA)}; {WIKITEXT} "
        f"stands for {HUB_CORPORA[WIKITEXT]}",
    )
    tokenizer: str = Field(
        "corpus", description="gpt2 (from the hub), a folder with vocab.json and merges.txt, or corpus"
    )
    cache_dir: str | None = Field(None, description="folder of tokenized corpora; null takes the user's cache folder")

    vocab_size: Count = Field(50257, description="vocabulary of the measured models")
    d_model: Annotated[int, Field(ge=2, multiple_of=2)] = Field(512, description="complex channels per token")
    n_layers: Count = Field(6, description="blocks")
    n_seq: Annotated[int, Field(ge=2)] = Field(1024, description="longest sequence, and the evaluation window")
    skip_phase2: bool = Field(False, description="leave the baseline out; ratios are then not measured")

    ppl_batch_size: Count = Field(4, description="windows per perplexity batch")
    max_ppl_batches: Count | None = Field(None, description="stop after so many batches; null measures the whole split")
    formats: list[Literal["float32", "bfloat16"]] = Field(
        [], description="further number formats in which trained complex models are measured, beside complex32"
    )
    memory_batch_size: Count = Field(2, description="sequences of n_seq tokens in the memory protocol")
    throughput_batch_size: Count = Field(4, description="sequences in the throughput protocol")
    throughput_n_tokens: Count = Field(1024, description="tokens per sequence in the throughput protocol")
    throughput_warmups: Count = Field(10, description="untimed calls before the timed ones")
    throughput_samples: Count = Field(30, description="timed calls per path")
    bench: bool = Field(False, description="race fast paths, naive ones and peers in the throughput stage")
    bench_groups: list[Literal[BENCH_GROUPS]] = Field(list(BENCH_GROUPS), min_length=1, description="what is raced")
    bench_seconds: Rate = Field(2.0, description="a path that has been timed for so long gets fewer samples")
    bench_forward_batches: list[Count] | None = Field(None, description="raced batches; null: 4 and 64, or 4 on a CPU")
    bench_training_batches: list[Count] | None = Field(
        None, description="raced batches; null: 16 and 64, or 1 on a CPU"
    )
    bench_head_tokens: Count = Field(2048, description="tokens in the race of heads")
    bench_stack_batch_size: Count = Field(2, description="sequences in the race of complex stacks")
    gradient_batch_size: Count = Field(2, description="sequences in the gradient check")
    gradient_n_tokens: Count = Field(128, description="tokens per sequence in the gradient check")
    stability_trials: Count = Field(100, description="random forward and backward trials")
    stability_batch_size: Count = Field(2, description="sequences per stability trial")
    stability_n_tokens: Count = Field(128, description="tokens per sequence in a stability trial")
    dynamics_windows: Count = Field(4, description="windows of the test split on which a memory is watched")
    excerpt_tokens: Count = Field(200, description="tokens that the trained memory model writes")

    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="one training run per model and seed"
    )
    train_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="token budget of each training run; 0 trains nothing"
    )
    train_d_model: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(None, description="null: d_model")
    train_n_layers: Count | None = Field(None, description="null: n_layers")
    train_n_seq: Annotated[int, Field(ge=2)] | None = Field(None, description="null: n_seq")
    learning_rates: list[Rate] = Field([1e-3], min_length=1, description="tries per model, chosen on validation")
    dropouts: list[Share] = Field([0.0], min_length=1, description="tries per model, chosen on validation")
    batch_tokens: list[Count] = Field(
        [16384], min_length=1, description="tokens per optimizer step; tries per model, chosen on validation"
    )
    weight_decays: list[Decay] = Field(
        [0.1], min_length=1, description="AdamW, on matrices and tables only; tries per model, chosen on validation"
    )
    tune_tokens: Annotated[int, Field(ge=0)] = Field(0, description="token budget of each try; 0 takes train_tokens")
    optimizer: Literal[OPTIMIZERS] = Field(
        "adamw", description="adamw, or muon for the matrices of blocks and adamw for the rest"
    )
    muon_learning_rate: Rate = Field(0.02, description="highest learning rate of muon; the other one is AdamW's")
    muon_weight_decays: list[Decay] = Field(
        [0.1], min_length=1, description="of what muon trains; tries per model, chosen on validation"
    )
    warmup_share: Share = Field(0.05, description="share of the steps with a rising learning rate")
    gradient_clip: Rate = Field(1.0, description="largest global gradient norm")
    evaluations: Count = Field(10, description="validation passes, evenly spaced; the best one is kept")
    checkpoint_every_steps: Count = Field(200, description="an interrupted training loses at most so many steps")
    checkpoint_dir: str = Field("checkpoints", description="where trainings keep their state and results")
    results_dir: str | None = Field(
        None, description="where finished trainings leave their numbers; a try that is known there is not done again"
    )
    compile: bool = Field(False, description="torch.compile the training step")
    recompute: bool | None = Field(
        None, description="halves of blocks keep only their input for backward; null: as a model does by default"
    )

    language: Literal[LANGUAGES] = Field("en", description="language of the report")
    stage_timeout_minutes: Rate = Field(60.0, description="a stage that takes longer is stopped and shown as failed")


def load_params(path: str | Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Read a params file and apply `key=value` overrides; ParamsError says what is wrong and what is expected.

    Without a path the defaults, which are the published sizes, take the place of the file.
    """
    given, path = path is not None, Path(path or "parameters")
    try:
        values = _yaml(path.read_text(encoding="utf-8")) if given else {}
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror}); expected a YAML file of settings") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path}: got {type(values).__name__}, expected a mapping of setting to value")
    sources = dict.fromkeys(values, str(path))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ParamsError(f"-p {override}: expected key=value")
        try:
            values[key] = _yaml(text)
        except YAMLError as error:
            raise ParamsError(f"-p {override}: the value is not YAML: {error}") from error
        sources[key] = f"-p {override}"
    settings = validate(values, sources, default_source=str(path))
    if problems := _contradictions(settings):
        raise ParamsError("\n".join(f"{path}: {problem}" for problem in problems))
    return settings


def _contradictions(settings: Settings) -> list[str]:
    """Return where two settings of a whole run contradict each other."""
    found = []
    for name in ("throughput_n_tokens", "gradient_n_tokens", "stability_n_tokens"):
        if getattr(settings, name) > settings.n_seq:
            found.append(f"{name} = {getattr(settings, name)} is more than n_seq = {settings.n_seq}")
    if len(set(settings.stages)) != len(settings.stages):
        found.append(f"stages names one stage twice: {settings.stages}")
    if len(set(settings.candidates)) != len(settings.candidates):
        found.append(f"candidates names one model twice: {settings.candidates}")
    for name in settings.stages:
        if stage(name).needs_memory and not memory_models(settings.models):
            found.append(f"stages names {name}, but none of models has a complex memory: {settings.models}")
    n_seq = settings.train_n_seq or settings.n_seq
    for at, tokens in enumerate(settings.batch_tokens):
        if tokens < n_seq:
            found.append(f"batch_tokens[{at}] = {tokens} holds no sequence of {n_seq} tokens")
    if len(settings.muon_weight_decays) > 1 and settings.optimizer != "muon":
        found.append(
            f"muon_weight_decays = {settings.muon_weight_decays} are tries that optimizer = {settings.optimizer} "
            "knows nothing of, expected one value or optimizer = muon"
        )
    return found


def of_today(params: Mapping[str, object]) -> dict[str, object]:
    """Return a record's parameters with every key of before as the one in its place, which lists its value."""
    return {RENAMED.get(key, key): [value] if key in RENAMED else value for key, value in params.items()}


def validate(
    values: Mapping[str, object], sources: Mapping[str, str] | None = None, default_source: str = "parameters"
) -> Settings:
    """Return the settings for these values, each checked by itself; `sources` tells for each key where it came from."""
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = [_explain(problem, sources or {}, default_source) for problem in error.errors()]
        raise ParamsError("\n".join(lines)) from error


def _yaml(text: str) -> object:
    """Parse YAML 1.2, where 1e-3 is a float, 010 is ten and yes is a word."""
    return YAML(typ="safe", pure=True).load(text)


def _explain(problem: Mapping[str, object], sources: Mapping[str, str], default_source: str) -> str:
    if not problem["loc"]:
        return f"{default_source}: {str(problem['msg']).removeprefix('Value error, ')}"
    key = str(problem["loc"][0])
    where = sources.get(key, default_source)
    if problem["type"] == "extra_forbidden" and key in RENAMED:
        return f"{where}: unknown key {key}: it is {RENAMED[key]} now, a list of values to try"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Settings.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(Settings.model_fields))}"
        return f"{where}: unknown key {key}: {hint}"
    got = problem["input"]
    at = key + "".join(f"[{part}]" for part in problem["loc"][1:] if isinstance(part, int))
    expected = str(problem["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    return f"{where}: {at}: got {got!r} ({type(got).__name__}), expected {expected}"
