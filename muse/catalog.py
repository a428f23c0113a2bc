"""Every name that a run can use, one row each: models, stages, corpora, tokenizers, benches, cards, languages.

Plain data that imports nothing of the package: what a name means is said here, and nobody asks how it begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

NOTHING: Mapping[str, object] = MappingProxyType({})


class Model(NamedTuple):
    """A model by name; `baselines` are those that its numbers are divided by, where a run has both."""

    name: str
    candidate: bool = False  # whether the five criteria can be asked of it
    baselines: tuple[str, ...] = ("phase2", "gpt2")
    has_memory: bool = False  # whether the stage `dynamics` can look at it
    ablates: str = ""  # the model of which it changes one thing
    twin_of: str = ""  # the model whose wiring it has with real numbers
    options: Mapping[str, object] = NOTHING  # what is changed in that model's memory and token table
    removes_complex: bool = False  # whether that takes away one thing which only complex numbers have
    rank_divisor: int = 0  # d_model over the numbers that its low-rank token table keeps for a token; 0: no such table
    recompute: bool = False  # whether halves of its blocks keep only their input where a run does not say


class Stage(NamedTuple):
    """A stage by name; `number` is that of its notebook and page, `needs` are stages without which it cannot run."""

    name: str
    number: int
    needs: tuple[str, ...] = ()
    needs_memory: bool = False  # whether it has something to look at only where a model has a complex memory
    when_counting: bool = False  # whether it has something to look at only where a profile says what is counted


ANGLES = "angles"
"""The rotation by angles from the token, of a model of its own."""
REFERENCE, WITH_MEMORY, BASELINE, YARDSTICK, TWIN = "stage1", "stage1_memory", "phase2", "gpt2", "real_twin"
COMPACT, COMPACT_TWIN, COMPACT_BASELINE = "stage1_compact", "real_twin_compact", "phase2_compact"
COMPACT_ANGLES = f"{COMPACT}_{ANGLES}"


def _ablation(change: str, *, of: str = WITH_MEMORY, **different: object) -> Model:
    about = {"baselines": (BASELINE, YARDSTICK, of), "has_memory": True, "ablates": of}
    if of == COMPACT:
        about |= {"rank_divisor": 2, "recompute": True}
    return Model(f"{of}_{change}", **about | different)


MODELS = (
    Model(REFERENCE, candidate=True),
    Model(WITH_MEMORY, candidate=True, has_memory=True),
    Model(BASELINE, baselines=(YARDSTICK,)),
    Model(YARDSTICK, baselines=(BASELINE,)),
    Model(TWIN, baselines=(BASELINE, YARDSTICK, WITH_MEMORY), twin_of=WITH_MEMORY),
    Model(
        COMPACT,
        candidate=True,
        baselines=(BASELINE, YARDSTICK, COMPACT_BASELINE),
        has_memory=True,
        rank_divisor=2,
        recompute=True,
    ),
    Model(COMPACT_TWIN, baselines=(BASELINE, YARDSTICK, COMPACT), rank_divisor=2, twin_of=COMPACT),
    Model(COMPACT_BASELINE, baselines=(BASELINE, YARDSTICK), rank_divisor=2),
    _ablation("no_rotation", removes_complex=True, options={"rotation": "none"}),
    _ablation("real_scores", removes_complex=True, options={"imaginary_scores": False}),
    _ablation("no_decay", options={"decay": "none"}),
    _ablation("untied", options={"tied": False}),
    _ablation("modrelu", options={"feed_forward": "modrelu"}),
    _ablation("positions", options={"positions": True}),
    _ablation("half_rank", of=COMPACT, rank_divisor=4),
    _ablation("double_rank", of=COMPACT, rank_divisor=1),
    _ablation("real_table", of=COMPACT, removes_complex=True, options={"table": "real"}),
    _ablation("adjoint_head", of=COMPACT, options={"adjoint_head": True}),
    _ablation("no_rotation", of=COMPACT, removes_complex=True, options={"rotation": "none"}),
    _ablation("real_scores", of=COMPACT, removes_complex=True, options={"imaginary_scores": False}),
    _ablation(ANGLES, of=COMPACT, options={"rotation": ANGLES}),
)
"""An ablation changes one thing of a model; those of the memory fit its budget at the published sizes."""

COUNTING = "counting"
STAGES = (
    Stage("planar_complex", 0),
    Stage("basic_test", 1),
    Stage("train", 2),
    Stage("perplexity", 3, needs=("train",)),
    Stage("memory", 4),
    Stage("throughput", 5),
    Stage("gradients_stability", 6),
    Stage("dynamics", 8, needs=("train",), needs_memory=True),
    Stage(COUNTING, 10, when_counting=True),
)
"""In the order in which they run; the report follows whatever was chosen and keeps its own number."""

READING = ("train", "perplexity", "dynamics")
"""Stages that read the corpus."""

REPORT = "report"
REPORT_NUMBER = 7
EXPLORER, EXPLORER_NUMBER = "explore", 9
"""The notebook for looking at saved models by hand: no stage of a run, it leaves no record."""

MODEL_NAMES = tuple(model.name for model in MODELS)
CANDIDATES = tuple(model.name for model in MODELS if model.candidate)
COMPARED = tuple(model.name for model in MODELS if not model.ablates)
"""The models of a comparison: all but the ablations."""
ABLATIONS = {model.name: model.ablates for model in MODELS if model.ablates}
"""What the rest change one thing of, by their names."""
STAGE_NAMES = tuple(stage.name for stage in STAGES)

SYNTHETIC, WIKITEXT = "synthetic", "wikitext-2"
WITH_UNK, RAW = "wikitext-2-v1", "wikitext-2-raw-v1"
HUB_CORPORA = {WIKITEXT: RAW, WITH_UNK: WITH_UNK, RAW: RAW}
"""What each corpus of the hub stands for: a text of the data set Salesforce/wikitext. In the text with <unk> rare words
are replaced; the published protocol reads the raw one."""

CORPORA = (SYNTHETIC, *HUB_CORPORA)
TOKENIZERS = ("gpt2", "corpus")
NAMED = {"corpus": CORPORA, "test_corpus": tuple(HUB_CORPORA), "tokenizer": TOKENIZERS}
"""Settings that are a folder or one of some names."""
WRITTEN = ("cache_dir", "checkpoint_dir", "results_dir")
"""Settings that are folders which are written to."""

OPTIMIZERS = ("adamw", "muon")

SUMS, PARITY, PRODUCTS = "sums", "parity", "products"
"""What one layer of an arm can track for ever, by theory: all sums, those modulo 2, or products of any group too."""

THEORY = {
    "complex_angles": SUMS,
    "complex_fixed": "",
    "complex_none": "",
    "real_rotations": SUMS,
    "real_decay": "",
    "real_signed": PARITY,
    "real_householder": PARITY,
    "real_householder_2": PRODUCTS,
    "gru": PRODUCTS,
    "attention": "",
    "counts": "",
    "memory_angles": SUMS,
    "memory_fixed": "",
}
"""The arms of the counting bench, each with what theory says of it."""
ARMS = tuple(THEORY)
COUNTING_GROUPS = ("s3", "a5")


WORKSPACE_BYTES = 36_986_880
"""Held by cuBLAS on Hopper and by the allocator for each thread that multiplies, the forward and the backward one: half
of what reports/gpu has of the reference model after a backward pass beyond its parameters and gradients."""

SMALL_WORKSPACE_BYTES = 13_107_200
"""The same with 8.125 MiB of cuBLAS in place of Hopper's 32."""


class Card(NamedTuple):
    """What a card's data sheet says, without sparsity; bytes are as its driver counts them, bandwidths in bytes/s."""

    name: str
    title: str  # of the data sheet
    bfloat16_flops: float
    float32_flops: float  # of products, which a training runs as TF32
    bandwidth: float
    link_bandwidth: float  # to other cards of its machine, in one direction
    memory_bytes: int
    workspace_bytes: int = SMALL_WORKSPACE_BYTES  # for each of the two threads that multiply


CARDS = {
    card.name: card
    for card in (
        Card("h100", "NVIDIA H100 SXM 80 GB", 989e12, 494e12, 3.35e12, 450e9, int(79.2 * 2**30), WORKSPACE_BYTES),
        Card("h200", "NVIDIA H200 SXM 141 GB", 989e12, 494e12, 4.8e12, 450e9, int(139.8 * 2**30), WORKSPACE_BYTES),
        Card("a100", "NVIDIA A100 SXM 80 GB", 312e12, 156e12, 2.039e12, 300e9, int(79.2 * 2**30)),
        Card("a100-40gb", "NVIDIA A100 SXM 40 GB", 312e12, 156e12, 1.555e12, 300e9, int(39.4 * 2**30)),
        Card("l40s", "NVIDIA L40S 48 GB", 362e12, 183e12, 0.864e12, 32e9, int(44.4 * 2**30)),
        Card("l4", "NVIDIA L4 24 GB", 121e12, 60e12, 0.3e12, 32e9, int(22.2 * 2**30)),
        Card("rtx4090", "NVIDIA GeForce RTX 4090 24 GB", 165e12, 82.6e12, 1.008e12, 32e9, int(23.5 * 2**30)),
    )
}
"""Cards that a plan can be made for; the first one where nothing is said."""


def can_track(arm: str, task: str) -> bool:
    """Return whether one layer of an arm can track a counting task for ever, by theory."""
    kinds = {SUMS: task not in COUNTING_GROUPS, PARITY: task == "mod2", PRODUCTS: True, "": False}
    return kinds[THEORY[arm]]


BENCH_GROUPS = ("gradients", "forward", "training", "head", "stack", "models", ANGLES, "memory", "generation")
"""What `muse bench` compares, in the order in which it runs."""
BENCH_MODES = ("eager", "compiled")
"""How the trainings of its models run."""

WRITTEN_TOKENS = 64
"""That a timed call of the group `generation` writes behind its prompts."""

GATE_STATES = ("fresh", "perturbed", "trained")
"""In which a bench compares every model's gradients with those of its plain form."""

TEXTS = Path(__file__).parent / "report" / "texts"
LANGUAGES = tuple(sorted(path.stem for path in TEXTS.glob("*.json")))
"""The languages of the report: those that it has texts in."""


def model(name: str) -> Model:
    """Return the row of a model; KeyError for a name that is none."""
    return {row.name: row for row in MODELS}[name]


def recomputes(name: str, setting: bool | None) -> bool:
    """Return whether a model's blocks keep only their input: as the setting says, or as the model does by default."""
    return any(row.recompute for row in MODELS if row.name == name) if setting is None else setting


def stage(name: str) -> Stage:
    """Return the row of a stage, the report's included; a stage that later versions know has a number behind all."""
    rows = {row.name: row for row in (*STAGES, Stage(REPORT, REPORT_NUMBER), Stage(EXPLORER, EXPLORER_NUMBER))}
    return rows.get(name, Stage(name, len(rows)))


def stem(name: str) -> str:
    """Return the name that a stage's notebook and page share, such as `03_perplexity`."""
    return f"{stage(name).number:02d}_{name}"


def page(name: str) -> str:
    """Return where a stage's page lies in the folder of a run."""
    return "index.html" if name == REPORT else f"pages/{stem(name)}.html"


def notebook_page(name: str) -> str:
    """Return where the page of a stage's executed notebook lies where the stage's own page is made from its record."""
    return f"pages/{stem(name)}_notebook.html"


def memory_models(models: Sequence[str]) -> list[str]:
    """Return those of the models whose memory the stage `dynamics` can look at, in the catalog's order."""
    return [row.name for row in MODELS if row.has_memory and row.name in models]


def usual_stages(models: Sequence[str], counted: Sequence[object] = ()) -> list[str]:
    """Return every stage that has something to look at in a run of these models that counts these things."""
    return [
        row.name
        for row in STAGES
        if (counted or not row.when_counting) and (memory_models(models) or not row.needs_memory)
    ]


def usual_candidates(models: Sequence[str]) -> list[str]:
    """Return what the criteria are asked of where a run does not say."""
    return [name for name in CANDIDATES if name in models][:1] or [REFERENCE]


def comparisons(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (model, baseline) pairs worth a ratio, baseline by baseline."""
    bases = dict.fromkeys(base for row in MODELS for base in row.baselines)
    return [(name, base) for base in bases if base in models for name in models if base in model(name).baselines]
