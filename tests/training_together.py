"""What several processes do together in tests/training/test_together.py: forks of the one that runs this file.

python training_together.py FOLDER writes FOLDER/<scenario>-SIZE-RANK.json with a result, or an error's text.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from muse.data.corpus import Corpus, TokenSplit
from muse.models import stage1
from muse.models.build import build_model
from muse.training import trainer
from muse.training.code_key import code_sha256
from muse.training.ranks import MEETING, RANK, SIZE, Ranks, joined
from muse.training.recipe import Recipe
from muse.training.trainer import NonFiniteLossError, train

VOCAB_SIZE, N_SEQ = 13, 8
SIZES = {"vocab_size": VOCAB_SIZE, "d_model": 8, "n_layers": 1, "n_seq": N_SEQ}
RECIPE = Recipe(train_tokens=24 * 64, batch_tokens=64, n_seq=N_SEQ, learning_rate=0.01, evaluations=4,
                checkpoint_every_steps=1000)  # fmt: skip
DROPOUT = replace(RECIPE, dropout=0.3)
STOP_AT = 12
MODELS = ("stage1", "real_twin", "phase2", "stage1_compact", "phase2_compact")


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = VOCAB_SIZE
    dropout: float = 0.0


class Toy(nn.Module):
    """A bigram table whose loss is infinite where an input is the token BAD."""

    BAD = 5

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = ToyConfig(dropout=dropout)
        self.table = nn.Embedding(VOCAB_SIZE, VOCAB_SIZE)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(seed))
        self.blocks = nn.ModuleList()

    def loss(self, token_ids, targets, reduction="mean"):
        loss = F.cross_entropy(self.table(token_ids).flatten(0, 1), targets.flatten(), reduction=reduction)
        return loss * (math.inf if self.training and (token_ids == self.BAD).any() else 1.0)


def corpus_of(train_ids: torch.Tensor) -> Corpus:
    """A corpus of these tokens, with a validation split that grows by 3."""

    def split(name: str, ids: torch.Tensor) -> TokenSplit:
        ids = ids.to(torch.int32)
        return TokenSplit(name, ids, torch.zeros(1, dtype=torch.int64), len(ids), len(ids), f"{name} {ids.tolist()}")

    splits = {"train": split("train", train_ids), "validation": split("validation", torch.arange(150) * 3 % VOCAB_SIZE)}
    return Corpus("made", "corpus", VOCAB_SIZE, splits, (), None, str)


def usual() -> Corpus:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.rand(700, generator=generator) < 0.1
    noise = noisy * torch.randint(VOCAB_SIZE, (700,), generator=generator)
    return corpus_of((torch.arange(700) * 3 + noise) % VOCAB_SIZE)


def rarely_bad() -> Corpus:
    """Tokens among which the bad one is rare: one window in all, so one process's part of one batch."""
    ids = torch.arange(700) % 4
    ids[350] = Toy.BAD
    return corpus_of(ids)


def stop(rank: int):
    """Ask one process alone to end, once, when it reports step STOP_AT."""
    return lambda report: (
        os.kill(os.getpid(), signal.SIGTERM) if (report.step, Ranks.here().rank) == (STOP_AT, rank) else None
    )


def scenarios(size: int) -> dict[str, object]:
    """Each scenario's training as a function of the folder of checkpoints."""
    memory, corpus = partial(build_model, "stage1_memory", **SIZES), usual()

    def of(recipe, **more):
        return partial(train, "stage1_memory", memory, recipe, corpus, **more)

    found = {
        "adamw": of(RECIPE),
        "stopped": of(RECIPE, on_report=stop(size - 1)),
        "alone": of(RECIPE),  # begun by one process
        "bad": partial(train, "toy", Toy, RECIPE, rarely_bad()),
    }
    if size == 2:
        found |= {"muon": of(replace(RECIPE, optimizer="muon")), "dropout": of(DROPOUT)}
        found |= {"stopped-dropout": of(DROPOUT, on_report=stop(0)), "resumed-dropout": of(DROPOUT)}
        few = replace(RECIPE, train_tokens=3 * 64, evaluations=1)
        found |= {f"model-{n}": partial(train, n, partial(build_model, n, **SIZES), few, corpus) for n in MODELS}
    return found


def run(name: str, act, folder: Path) -> dict[str, object]:
    """What a scenario gave: a result's values, the text of an error, or that it was interrupted."""
    try:
        return asdict(act(directory=folder / name.replace("resumed", "stopped"))) | {"weights": None}
    except NonFiniteLossError as error:
        return {"error": str(error)}
    except KeyboardInterrupt:
        return {"interrupted": True}


def go_through(folder: Path, size: int, rank: int) -> None:
    """All scenarios of this many processes, as one of them."""
    os.environ |= {RANK: str(rank), SIZE: str(size), MEETING: str(folder / f"meeting-{size}")}
    with joined():
        for name, act in scenarios(size).items():
            told = run(name, act, folder / str(size))
            (folder / f"{name}-{size}-{rank}.json").write_text(json.dumps(told))


def main(folder: Path) -> int:
    """Fork every process before anything is computed, and return how many failed."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    code_sha256(stage1.__file__, trainer.__file__)  # parses what all of them ask for
    started = []
    for size, rank in [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (4, 3)]:
        started.append(os.fork())
        if not started[-1]:
            code = 1
            try:
                go_through(folder, size, rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in started)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
