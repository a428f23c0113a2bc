"""Params files to validated settings: every key, its type, its meaning and its default, in one place."""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from muse.host.lines import cut, near, one_line, shown
from muse.host.plain_yaml import TextError, parse, read_text

from .catalog import (
    ARMS,
    BASELINE,
    BENCH_GROUPS,
    BENCH_MODES,
    CANDIDATES,
    COMPARED,
    COUNTING,
    COUNTING_GROUPS,
    HUB_CORPORA,
    LANGUAGES,
    MODEL_NAMES,
    OPTIMIZERS,
    REFERENCE,
    STAGE_NAMES,
    SYNTHETIC,
    WIKITEXT,
    WRITTEN,
    YARDSTICK,
    memory_models,
    stage,
    usual_candidates,
    usual_stages,
)

LONGEST_LIST = 100
MOST_LINES = 20
MOST_ROWS = 10_000
"""Of a matrix, and trainings of a command."""

MATRIX = "matrix"
"""The key of a params file that lists, for settings of one value, the values of which every combination is a run."""


def _plain(text: str) -> str:
    """Refuse characters that no name of a folder can have or that only do something to a terminal."""
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text):
        raise ValueError("text in UTF-8 without control characters")
    return text


def _count(most: int, least: int = 1) -> type[int]:
    return Annotated[int, Field(ge=least, le=most)]


Width = Annotated[int, Field(ge=2, le=2**16, multiple_of=2)]
Layers, Length, Batch, Repeats = _count(1024), _count(2**20, 2), _count(2**16), _count(10**6)
Tokens, Budget, StepTokens = _count(2**20), _count(10**13, 0), _count(2**26)
Vocabulary, Passes, Steps, Seed = _count(2**24), _count(10**4), _count(10**9), _count(2**63 - 1, 0)
Rate = Annotated[float, Field(gt=0, le=1e30)]  # one that diverges is a try as well
Share = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, le=100)]
Norm = Annotated[float, Field(gt=0, le=1e6)]
Seconds = Annotated[float, Field(gt=0, le=24 * 60 * 60)]
Minutes = Annotated[float, Field(gt=0, le=366 * 24 * 60)]
Profile = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$", max_length=100)]
Text = Annotated[str, Field(max_length=4096), AfterValidator(_plain)]
Folder = Annotated[Text, Field(min_length=1)]
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
    """Bad settings; each line of the message names the file, the key, what was got and what is expected.

    Whatever is said about values of others: a line is short, and what it holds is only shown.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(cut(one_line(line)) for line in message.split("\n")))


class NamedTwiceError(ValueError):
    """A list of settings that holds a value twice."""


def _counted(settings: Mapping[str, object]) -> list[object]:
    """What settings say is to be counted."""
    return [*(settings.get("counting_moduli") or ()), *(settings.get("counting_groups") or ())]


class Settings(BaseModel):
    """One flat set of settings: the keys of a params file, of `-p key=value` and of the notebooks' parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    profile: Profile = Field("custom", description="name of the run's profile")
    models: list[ModelName] = Field(
        [REFERENCE, BASELINE, YARDSTICK], min_length=1, description="models that are trained"
    )
    candidates: list[Literal[CANDIDATES]] = Field(
        default_factory=lambda before: usual_candidates(before.get("models", ())),
        min_length=1,
        description="models that the five criteria are asked of; the first decides --gate. Default: stage1, or "
        "stage1_memory in a run without it",
    )
    counting_moduli: list[_count(97, 2)] = Field([], description="sums modulo each of these are counted")
    counting_groups: list[Literal[COUNTING_GROUPS]] = Field([], description="products in these groups as well")
    stages: list[StageName] = Field(
        default_factory=lambda before: usual_stages(before.get("models", ()), _counted(before)),
        min_length=1,
        description="which stages run; all, but dynamics only where a model has a complex memory, and counting where "
        "counting_moduli or counting_groups say what",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models live; auto takes CUDA if present")
    seed: Seed = Field(0, description="seed of weights and random inputs of measurements")

    corpus: Text = Field(
        SYNTHETIC,
        description=f"{SYNTHETIC}, a folder of text or parquet, or from the hub {', '.join(HUB_CORPORA)}; {WIKITEXT} "
        f"stands for {HUB_CORPORA[WIKITEXT]}",
    )
    tokenizer: Text = Field(
        "corpus", description="gpt2 (from the hub), a folder with vocab.json and merges.txt, or corpus"
    )
    test_corpus: Text | None = Field(
        None,
        description="another corpus on whose test split trained models are measured, out of their domain, instead of "
        "that of corpus; null: corpus. For tokenizers that know every text",
    )
    cache_dir: Folder | None = Field(None, description="folder of tokenized corpora; null: the user's cache folder")

    vocab_size: Vocabulary = Field(50257, description="vocabulary of the measured models")
    d_model: Width = Field(512, description="complex channels per token")
    n_layers: Layers = Field(6, description="blocks")
    n_seq: Length = Field(1024, description="longest sequence, and the evaluation window")
    skip_phase2: bool = Field(False, description="leave the baseline out; ratios are then not measured")

    ppl_batch_size: Batch = Field(4, description="windows per perplexity batch")
    max_ppl_batches: Repeats | None = Field(None, description="stop after so many batches; null: the whole split")
    formats: list[Literal["float32", "bfloat16"]] = Field(
        [], description="further number formats in which trained complex models are measured, beside complex32"
    )
    memory_batch_size: Batch = Field(2, description="sequences of n_seq tokens in the memory protocol")
    throughput_batch_size: Batch = Field(4, description="sequences in the throughput protocol")
    throughput_n_tokens: Tokens = Field(1024, description="tokens per sequence in the throughput protocol")
    throughput_warmups: Repeats = Field(10, description="untimed calls before the timed ones")
    throughput_samples: Repeats = Field(30, description="timed calls per path")
    bench: bool = Field(False, description="race fast paths, naive ones and peers in the throughput stage")
    bench_groups: list[Literal[BENCH_GROUPS]] = Field(list(BENCH_GROUPS), min_length=1, description="what is raced")
    bench_models: list[Literal[COMPARED]] | None = Field(
        None, min_length=1, description="what the groups gradients and models compare, beside gpt2; null: all"
    )
    bench_modes: list[Literal[BENCH_MODES]] = Field(
        list(BENCH_MODES), min_length=1, description="how the groups models and angles train"
    )
    bench_seconds: Seconds = Field(2.0, description="a path that has been timed for so long gets fewer samples")
    bench_forward_batches: list[Batch] | None = Field(None, description="raced batches; null: 4 and 64, or 4 on a CPU")
    bench_training_batches: list[Batch] | None = Field(
        None, description="raced batches; null: 16 and 64, or 1 on a CPU"
    )
    bench_generation_batches: list[Batch] | None = Field(
        None, description="texts that are written at a time; null: 1 and 64, or 1 on a CPU"
    )
    bench_prompts: list[Length] | None = Field(
        None, description="tokens before what is written, as far as n_seq has room; null: 128 to 32,768 in steps"
    )
    bench_head_tokens: Tokens = Field(2048, description="tokens in the race of heads")
    bench_stack_batch_size: Batch = Field(2, description="sequences in the race of complex stacks")
    gradient_batch_size: Batch = Field(2, description="sequences in the gradient check")
    gradient_n_tokens: Tokens = Field(128, description="tokens per sequence in the gradient check")
    stability_trials: Repeats = Field(100, description="random forward and backward trials")
    stability_batch_size: Batch = Field(2, description="sequences per stability trial")
    stability_n_tokens: Tokens = Field(128, description="tokens per sequence in a stability trial")
    dynamics_windows: Repeats = Field(4, description="windows of the test split on which a memory is watched")
    excerpt_tokens: Tokens = Field(200, description="tokens that the trained memory model writes")

    seeds: list[Seed] = Field(
        [0], min_length=1, description="one training run per model and seed"
    )
    train_tokens: Budget = Field(
        0, description="token budget of each training run; 0 trains nothing"
    )
    train_d_model: Width | None = Field(None, description="null: d_model")
    train_n_layers: Layers | None = Field(None, description="null: n_layers")
    train_n_seq: Length | None = Field(None, description="null: n_seq")
    learning_rates: list[Rate] = Field([1e-3], min_length=1, description="tries per model, chosen on validation")
    dropouts: list[Share] = Field([0.0], min_length=1, description="tries per model, chosen on validation")
    batch_tokens: list[StepTokens] = Field(
        [16384], min_length=1, description="tokens per optimizer step; tries per model, chosen on validation"
    )
    weight_decays: list[Decay] = Field(
        [0.1], min_length=1, description="AdamW, on matrices and tables only; tries per model, chosen on validation"
    )
    tune_tokens: Budget = Field(0, description="token budget of each try; 0 takes train_tokens")
    optimizer: Literal[OPTIMIZERS] = Field(
        "adamw", description="adamw, or muon for the matrices of blocks and adamw for the rest"
    )
    muon_learning_rate: Rate = Field(0.02, description="highest learning rate of muon; the other one is AdamW's")
    muon_weight_decays: list[Decay] = Field(
        [0.1], min_length=1, description="of what muon trains; tries per model, chosen on validation"
    )
    warmup_share: Share = Field(0.05, description="share of the steps with a rising learning rate")
    gradient_clip: Norm = Field(1.0, description="largest global gradient norm")
    evaluations: Passes = Field(10, description="validation passes, evenly spaced; the best one is kept")
    checkpoint_every_steps: Steps = Field(200, description="an interruption loses at most so many steps")
    checkpoint_dir: Folder = Field("checkpoints", description="where trainings keep their state and results")
    results_dir: Folder | None = Field(
        None, description="where finished trainings leave their numbers; a try that is known there is not done again"
    )
    compile: bool = Field(False, description="torch.compile the training step")
    recompute: bool | None = Field(
        None, description="halves of blocks keep only their input for backward; null: as a model does by default"
    )

    counting_arms: list[Literal[ARMS]] = Field(list(ARMS), min_length=1, description="what is to count")
    counting_layers: Layers = Field(1, description="recurrences of an arm, one above the other")
    counting_width: Annotated[int, Field(ge=8, le=2**13, multiple_of=8)] = Field(
        64, description="real scalars per token in an arm's stream"
    )
    counting_state: Annotated[int, Field(ge=16, le=2**13, multiple_of=16)] = Field(
        128, description="real scalars that an arm's recurrence remembers"
    )
    counting_length: Tokens = Field(60, description="tokens of the sequences that arms are trained on")
    counting_lengths: list[Tokens] = Field(
        [60, 120, 240, 480, 1000], min_length=1, description="tokens of those that they are tested on"
    )
    counting_sequences: Batch = Field(512, description="sequences tested at each length")
    counting_steps: Passes = Field(4000, description="optimizer steps of each training and try")
    counting_batch: Batch = Field(256, description="sequences per optimizer step")
    counting_learning_rates: list[Rate] = Field(
        [1e-3, 3e-3, 1e-2], min_length=1, description="tries of each arm on each task, chosen at the training length"
    )
    counting_seeds: list[Seed] = Field(
        [0, 1, 2, 3, 4], min_length=1, description="trainings of each arm on each task; tries have a seed of their own"
    )
    counting_minutes: Annotated[float, Field(ge=0, le=366 * 24 * 60)] | None = Field(
        None, description="after so long no training of the counting bench begins; the record says what is missing"
    )
    counting_processes: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="trainings of the counting bench side by side, on the visible devices in turn"
    )

    language: Literal[LANGUAGES] = Field("en", description="language of the report")
    stage_timeout_minutes: Minutes = Field(60.0, description="a stage that takes longer is stopped and shown as failed")

    @field_validator("*")
    @classmethod
    def _each_once(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a list that is too long or that holds a value twice: what is named twice would count twice."""
        if isinstance(value, list):
            if len(value) > LONGEST_LIST:
                raise ValueError(f"at most {LONGEST_LIST} values, not {len(value)}")
            twice = [at for at, entry in enumerate(value) if entry in value[:at]]
            if twice:
                word = LISTED.get(info.field_name, "value")
                raise NamedTwiceError(f"names one {word} twice: {shown(value[twice[0]])}")
        return value


LISTED = {"stages": "stage", "models": "model", "candidates": "model"}
"""What lists of names are of, where a message speaks of it."""


@dataclass(frozen=True)
class Row:
    """One run of a matrix: the values that it has of its own, and all its settings."""

    values: Mapping[str, object]  # none in a file without a matrix, which is one run
    settings: Settings

    @property
    def name(self) -> str:
        """Its values, as a folder may be called: `n_seq=1024,optimizer=muon`."""
        return ",".join(f"{key}={_in_a_name(value)}" for key, value in self.values.items())

    @property
    def overrides(self) -> list[str]:
        """What makes a command on the same file and its overrides this run alone."""
        return as_overrides(self.values)


def _in_a_name(value: object) -> str:
    return re.sub(r"[^\w.+-]+", "-", value if isinstance(value, str) else json.dumps(value))


def as_overrides(values: Mapping[str, object]) -> list[str]:
    """Options of a command that set these values."""
    return [part for key, value in values.items() for part in ("-p", f"{key}={json.dumps(value)}")]


def load_params(path: str | Path | None, overrides: Sequence[str] = ()) -> Settings:
    """Read the settings of one run as `load_rows` does; ParamsError for a matrix."""
    (row, *others) = load_rows(path, overrides)
    if row.values:
        where = _where(str(path or "parameters"))
        number, chosen = 1 + len(others), " ".join(row.overrides)
        raise ParamsError(f"{where}: {MATRIX}: got {number:,} runs, expected one here, such as that of {chosen}")
    return row.settings


def load_rows(path: str | Path | None, overrides: Sequence[str] = ()) -> list[Row]:
    """Read a params file and apply `key=value` overrides; ParamsError says what is wrong and what is expected.

    Without a path the defaults, which are the published sizes, take the place of the file. The value of an override is
    YAML, but for a setting that is a text: that takes what stands there, or what stands between quotes around it all.
    A matrix gives a row for every combination of its values, the last key changing fastest; what an override sets is no
    longer a key of it.
    """
    given, where = path is not None, _where(str(path or "parameters"))
    try:
        values = parse(read_text(path)) if given else {}
    except TextError as error:
        expected = "" if "not YAML" in str(error) else "; expected a YAML file of settings"
        raise ParamsError(f"{where}: {error}{expected}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{where}: got {type(values).__name__}, expected a mapping of setting to value")
    values, sources = dict(values), dict.fromkeys(values, where)
    for override in overrides:
        key, separator, text = override.partition("=")
        here = _where(f"-p {override}")
        if not separator or not key:
            raise ParamsError(f"{here}: expected key=value")
        try:
            values[key] = _text_meant(key, text) if _is_text(key) else parse(text)
        except TextError as error:
            raise ParamsError(f"{here}: {error}") from error
        sources[key] = here
    matrix, rows = values.pop(MATRIX, None), []
    if isinstance(matrix, dict):
        matrix = {key: given for key, given in matrix.items() if sources.get(key, where) == where}
    for own in [{}] if matrix is None else _combinations(matrix, values, sources):
        rows.append(Row(own, validate(values | own, sources, default_source=where)))
    problems = [(row.name, problem) for row in rows for problem in _contradictions(row.settings)]
    if problems:
        raise ParamsError("\n".join(f"{where}: {line}" for line in of_rows(problems, len(rows))))
    return rows


def of_rows(problems: Sequence[tuple[str, str]], number: int) -> list[str]:
    """Lines about problems, each given with the name of its row: what all of so many rows have is said once."""
    count = Counter(problem for _, problem in dict.fromkeys(problems))
    lines = [f"{name}: {problem}" if name and count[problem] < number else problem for name, problem in problems]
    lines = list(dict.fromkeys(lines))
    if number > 1 and len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES} more that are wrong"]
    return lines


OF_THE_RUN = ("profile", "device", "language", *WRITTEN)
"""Settings of one value that a matrix cannot have: they say where a run goes, not what it computes."""


def _combinations(matrix: object, beside: Mapping[str, object], sources: Mapping[str, str]) -> Iterator[dict]:
    """Yield the values of each row of a matrix; ParamsError, a line for each key, before the first one."""
    where = f"{sources[MATRIX]}: {MATRIX}"
    if not isinstance(matrix, dict):
        got = f"{shown(matrix)} ({type(matrix).__name__})"
        raise ParamsError(f"{where}: got {got}, expected a mapping of setting to list")
    lists, lines = {}, []
    for key, given in matrix.items():
        try:
            lists[key] = _listed(key, given, where)
            if key in beside:
                raise ParamsError(f"{where}: {key}: got it beside it too ({sources[key]}), expected it in one of them")
        except ParamsError as error:
            lines.append(str(error).partition("\n")[0])
    if lines:
        raise ParamsError("\n".join(lines[:MOST_LINES]))
    if (number := math.prod(map(len, lists.values()))) > MOST_ROWS:
        raise ParamsError(f"{where}: got {number:,} combinations, expected at most {MOST_ROWS:,}")
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def _listed(key: object, given: object, where: str) -> list[object]:
    """The values of one key of a matrix, each checked by itself; ParamsError for what is wrong with them."""
    if not isinstance(key, str) or key not in Settings.model_fields:
        raise ParamsError(_unknown(key, where))
    if any(get_origin(kind) is list for kind in (Settings.model_fields[key].annotation, *_kinds(key))):
        raise ParamsError(f"{where}: {key}: got a setting that is a list by itself, expected one of a single value")
    if key in OF_THE_RUN:
        raise ParamsError(f"{where}: {key}: got a setting of the whole run, expected one that changes what is computed")
    if not isinstance(given, list) or not 0 < len(given) <= LONGEST_LIST:
        got = f"{len(given)} values" if isinstance(given, list) else f"{shown(given)} ({type(given).__name__})"
        raise ParamsError(f"{where}: {key}: got {got}, expected a list of 1 to {LONGEST_LIST}")
    values = [getattr(validate({key: value}, {key: where}), key) for value in given]
    names = [_in_a_name(value) for value in values]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise ParamsError(f"{where}: {key} names one value twice: {shown(values[at])}, expected each once")
    return values


def _where(text: str) -> str:
    """Return where a value came from, short enough to leave room for what is wrong with it."""
    return cut(one_line(text), 120)


def _kinds(key: str) -> tuple[object, ...]:
    """Return the types that a setting may have: those of its annotation, one by one."""
    field = Settings.model_fields.get(key)
    return (get_args(field.annotation) or (field.annotation,)) if field else ()


def _is_text(key: str) -> bool:
    return any(kind is str or isinstance(kind, str) or get_args(kind)[:1] == (str,) for kind in _kinds(key))


def _text_meant(key: str, text: str) -> str | None:
    """Return the text of an override as it stands; `null` is none where the setting knows it, quotes are YAML's."""
    if text == "null" and type(None) in _kinds(key):
        return None
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        quoted = parse(text)
        return quoted if isinstance(quoted, str) else text
    return text


def _contradictions(settings: Settings) -> list[str]:
    """Return where two settings of a whole run contradict each other."""
    found = []
    for name in ("throughput_n_tokens", "gradient_n_tokens", "stability_n_tokens"):
        if getattr(settings, name) > settings.n_seq:
            found.append(f"{name} = {getattr(settings, name)} is more than n_seq = {settings.n_seq}")
    for name in settings.stages:
        if stage(name).needs_memory and not memory_models(settings.models):
            found.append(f"stages names {name}, but none of models has a complex memory: {settings.models}")
    if settings.test_corpus is not None:
        if SYNTHETIC in (settings.corpus, settings.test_corpus) or settings.tokenizer == "corpus":
            found.append(
                f"test_corpus = {shown(settings.test_corpus)} with corpus = {shown(settings.corpus)} and tokenizer = "
                f"{shown(settings.tokenizer)}: expected two texts and a tokenizer that knows both, gpt2 or a folder"
            )
        if not settings.train_tokens:
            found.append(f"test_corpus = {shown(settings.test_corpus)} is for trained models, but train_tokens = 0")
    if COUNTING in settings.stages and not settings.counting_moduli and not settings.counting_groups:
        found.append("counting_moduli and counting_groups are both empty, so stage counting has nothing to count")
    n_seq = settings.train_n_seq or settings.n_seq
    for at, tokens in enumerate(settings.batch_tokens if settings.train_tokens else ()):
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
    sources = sources or {}
    known = {key: value for key, value in values.items() if isinstance(key, str) and key in Settings.model_fields}
    lines = [_unknown(key, sources.get(key, default_source)) for key in values if key not in known]
    try:
        settings = Settings(**known)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        lines += [_explain(problem, sources, default_source) for problem in problems]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"{default_source}: and {len(lines) - MOST_LINES} more that are wrong"]
    if lines:
        raise ParamsError("\n".join(lines))
    return settings


def _unknown(key: object, where: str) -> str:
    """Return what to say of a key that is no setting."""
    if not isinstance(key, str):
        return f"{where}: key {shown(key)} ({type(key).__name__}), expected the name of a setting"
    if key in RENAMED:
        return f"{where}: unknown key {key}: it is {RENAMED[key]} now, a list of values to try"
    names = sorted(Settings.model_fields)
    hint = near(key, names) or f"expected one of {', '.join(names[:8])}, ... ({len(names)} in all)"
    return f"{where}: unknown key {cut(one_line(key), 60)}: {hint}"


def _explain(problem: Mapping[str, object], sources: Mapping[str, str], default_source: str) -> str:
    key, *inside = problem["loc"]
    where, got = sources.get(key, default_source), problem["input"]
    at = f"{key}" + "".join(f"[{part}]" for part in inside if isinstance(part, int))
    if isinstance(twice := problem.get("ctx", {}).get("error"), NamedTwiceError):
        return f"{where}: {at} {twice} in {shown(got)}, expected each once"
    expected = str(problem["msg"])
    for words in ("Value error, ", "Input should be ", "a valid "):
        expected = expected.removeprefix(words)
    if problem["type"] == "literal_error":
        known = _choices(key)
        if hint := near(got, known):
            expected = f"{hint} Expected {expected}" if len(expected) < 80 else f"{hint} Expected one of {len(known)}"
        expected = expected if len(expected) < 130 else f"{', '.join(known[:6])} or another of {len(known)}"
    return f"{where}: {at}: got {shown(got)} ({type(got).__name__}), expected {expected}"


def _choices(key: str) -> list[str]:
    """Return the words that a setting, or an entry of its list, may be."""
    kinds = [inner for kind in _kinds(key) for inner in (kind, *get_args(kind))]
    return [kind for kind in kinds if isinstance(kind, str)]
