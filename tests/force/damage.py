"""Damages files of trainings and exports at random, and counts what is then wrong and not refused in one line.

    python -m tests.force.damage [--trials N] [--seed K]

Exit code 1 if anything was found. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from muse import cli
from muse.data.corpora import load_corpus
from muse.models.build import build_model
from muse.models.pretrained import check_tokenizer, read_pretrained
from muse.models.tensor_file import read_tensors
from muse.models.weights import load_trained
from muse.training.recipe import Recipe, read_result
from muse.training.trainer import train

MODEL, SIZES = "phase2", {"d_model": 8, "n_layers": 1, "n_seq": 8}
RECIPE = Recipe(train_tokens=8 * 16, batch_tokens=16, n_seq=8, learning_rate=0.01, evaluations=2,
                checkpoint_every_steps=2)  # fmt: skip
KINDS = ("tracebacks", "silent_changes", "wrong_weights", "unloadable", "hangs")
HANG_SECONDS = 10
NO_NUMBERS = ("weights", "weights_sha256", "verified", "reused")
TIMES = ("tokens_per_second", "tokens_per_second_samples", "seconds", "started_utc", "finished_utc", "hardware")
IDS = torch.arange(16).reshape(2, 8)


class Hangs(BaseException):
    """A trial that took too long."""


@dataclass(frozen=True)
class Home:
    """Two of each, seeds 0 and 1: finished trainings, interrupted ones, exports."""

    finished: tuple[Path, Path]
    stopped: tuple[Path, Path]
    exports: tuple[Path, Path]


@cache
def corpus():
    """A little of the synthetic language."""
    return load_corpus("synthetic", "corpus", synthetic_tokens=dict.fromkeys(("train", "validation", "test"), 1000))


def trained(folder: Path, seed: int, **options):
    """The result of a training of this seed, as `train` gives it."""
    build = partial(build_model, MODEL, vocab_size=corpus().vocab_size, **SIZES)
    return train(MODEL, build, replace(RECIPE, seed=seed), corpus(), folder, **options)


def make_home(root: Path) -> Home:
    """Train, interrupt and export with two seeds."""

    def stop(report) -> None:
        if report.step == 5:
            signal.raise_signal(signal.SIGINT)

    finished, stopped, exports = [], [], []
    for seed in (0, 1):
        finished.append(trained(root / "finished", seed).weights.parent)
        with contextlib.suppress(KeyboardInterrupt):
            trained(root / "stopped", seed, on_report=stop)
        stopped += [path for path in (root / "stopped").iterdir() if f"-s{seed}-" in path.name]
        exports.append(root / f"export-{seed}")
        quietly(cli.main, ["export", str(finished[-1]), str(exports[-1])])
    return Home(tuple(finished), tuple(stopped), tuple(exports))


def quietly(function: Callable, *arguments: object) -> tuple[object, str]:
    """Call a function; return its result and what it said on stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        return function(*arguments), errors.getvalue()


# What is asked of a folder: each returns numbers, or raises ValueError with one line


def find_finished(folder: Path) -> object:
    return numbers_of(trained(folder.parent, 0))


def read_finished(folder: Path) -> object:
    return numbers_of(read_result(folder))


def numbers_of(result) -> object:
    """What a result says, the times only if it was found, and what its weights compute."""
    said = {name: value for name, value in asdict(result).items() if name not in NO_NUMBERS}
    times = {name: said.pop(name) for name in TIMES}
    return Numbers(said | {"logits": load_trained(result.weights, build_model)(IDS).tolist()}, times, result.reused)


@dataclass
class Numbers:
    """Equal to others where all is equal that both have from the same training."""

    said: dict
    times: dict
    found: bool

    def __eq__(self, other: object) -> bool:
        return self.said == other.said and (self.times == other.times or not self.found)


def load_finished(folder: Path) -> object:
    return load_trained(folder, build_model)(IDS).tolist()


def export_finished(folder: Path) -> object:
    out = folder.parent / "out"
    code, errors = quietly(cli.main, ["export", str(folder), str(out)])
    if code == 2 and errors.count("\n") == 1:
        raise ValueError(errors)
    assert code == 0, errors
    return load_export(out)


def resume(folder: Path) -> object:
    result = trained(folder.parent, 0)
    return result.weights.read_bytes(), result.validation_curve, result.training_curve, result.best_validation_loss


def load_export(folder: Path) -> object:
    model, about = read_pretrained(folder)
    check_tokenizer(about, corpus().tokenizer_sha256, "corpus")
    try:
        check_tokenizer(about, "0" * 64, "another")
    except ValueError:
        return model(IDS).tolist()
    raise AssertionError("another tokenizer was taken")


ASKED = {
    "finished": (find_finished, read_finished, load_finished, export_finished),
    "stopped": (resume,),
    "exports": (load_export,),
}
FILES = {
    "finished": ("model.safetensors", "result.json", "config.json"),
    "stopped": ("state.safetensors", "weights", "config.json"),
    "exports": ("model.safetensors", "config.json"),
}
ESSENTIAL = {load_finished: ("model.safetensors",), export_finished: ("model.safetensors",)}
"""Files that a question reads, where it is not all of them."""


# Damages: each takes random choices, a file and the file of the same name of the other seed


def flip(choice: random.Random, path: Path, other: Path) -> None:
    """One to three bits, half of the time in the first 200 bytes."""
    content = bytearray(path.read_bytes())
    for _ in range(choice.choice((1, 1, 3))):
        bit = choice.randrange(8 * (len(content) if choice.random() < 0.5 else min(len(content), 200)))
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def flip_metadata(choice: random.Random, path: Path, other: Path) -> None:
    """One bit near a word of the header."""
    content = bytearray(path.read_bytes())
    word = choice.choice((b"sha256", b"format", b"muse", b"step", b"key", b"F32", b"n_seq", b"seed"))
    at = content.find(word)
    if at >= 0:
        content[at + choice.randrange(len(word) + 12)] ^= 1 << choice.randrange(8)
    path.write_bytes(content)


def truncate(choice: random.Random, path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: choice.randrange(path.stat().st_size)])


def append(choice: random.Random, path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + choice.randbytes(choice.randint(1, 64)))


def zero(choice: random.Random, path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    begin = choice.randrange(len(content))
    end = min(len(content), begin + choice.randint(1, 4096))
    content[begin:end] = bytes(end - begin)
    path.write_bytes(content)


def swap(choice: random.Random, path: Path, other: Path) -> None:
    shutil.copy(other, path)


def remove(choice: random.Random, path: Path, other: Path) -> None:
    path.unlink()


def edit(choice: random.Random, path: Path, other: Path) -> None:
    """Another value for, or none of, one key of a JSON file at any depth."""
    values = json.loads(path.read_text())
    place, depth = values, choice.randint(1, 3)
    key = choice.choice(sorted(place))
    while depth and isinstance(place[key], dict) and place[key]:
        place, depth = place[key], depth - 1
        key = choice.choice(sorted(place))
    old = place[key]
    new = [None, True, 1e9, -1, "x", [], {}, "../../etc/passwd", str(other), float("nan"), "1" * 64]
    new += [old + 1, old * 2, old / 3] if isinstance(old, int | float) else []
    new += [other.parent.name + "/" + path.name] if isinstance(old, str) else []
    if choice.random() < 0.2:
        del place[key]
    else:
        place[key] = choice.choice(new)
    path.write_text(json.dumps(values))


TENSORS = (flip, flip, flip, flip_metadata, truncate, append, zero, swap, remove)
TEXTS = (edit, edit, edit, flip, swap, truncate, zero, remove)


# What must change nothing


def nothing(choice: random.Random, folder: Path) -> None:
    pass


def leftovers(choice: random.Random, folder: Path) -> None:
    """Of a killed process."""
    (folder / ".0123456789abcdef.tmp").mkdir()
    (folder / ".0123456789abcdef.tmp" / "state.safetensors").write_bytes(b"half")


def of_before(choice: random.Random, folder: Path) -> None:
    """The same, from before files carried a SHA-256; of a finished training and an export."""
    from muse.host.files import sha256_of

    path = folder / "model.safetensors"
    if not path.exists():
        return
    tensors, about = read_tensors(path, "muse-weights-1")
    save_file(tensors, path, {"muse": json.dumps(about)})
    later_keys = {"result.json": ("key", "sha256", "skipped_steps"), "config.json": ("sha256", "weights_sha256")}
    for name, later in later_keys.items():
        if (folder / name).exists():
            values = json.loads((folder / name).read_text())
            kept = {key: value for key, value in values.items() if key not in later}
            kept |= {"weights_sha256": sha256_of(path)} if name == "result.json" else {}
            (folder / name).write_text(json.dumps(kept))


HARMLESS = (nothing, leftovers, of_before)


@dataclass
class Trials:
    """Trials on copies of a home, and the faults that they found."""

    home: Home
    choice: random.Random
    scratch: Path

    def __post_init__(self) -> None:
        self.expected = {
            (kind, ask, seed): ask(self.copy(getattr(self.home, kind)[seed]))
            for kind, asked in ASKED.items()
            for ask in asked
            for seed in (0, 1)
            if seed == 0 or ask in (load_finished, load_export)
        }
        self.faults = dict.fromkeys(KINDS, 0)

    def copy(self, folder: Path) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        return Path(shutil.copytree(folder, self.scratch / folder.name))

    def one(self) -> None:
        """One damage and one question."""
        kind = self.choice.choice(sorted(ASKED))
        ask = self.choice.choice(ASKED[kind])
        folder = self.copy(getattr(self.home, kind)[0])
        harmless = self.choice.random() < 0.15
        told = self.harmless(folder) if harmless else self.damage(kind, ask, folder)
        outcome = self.ask(ask, folder)
        expected = self.expected[kind, ask, 0]
        if isinstance(outcome, str):
            found = "unloadable" if harmless and outcome == "refused" else outcome
        elif outcome[0] == expected:
            return
        else:
            foreign = outcome[0] == self.expected.get((kind, ask, 1))
            found = "wrong_weights" if foreign else "silent_changes"
        if found != "refused":
            self.faults[found] += 1
            print(f"{found}: {kind}, {told}, {ask.__name__}")

    def harmless(self, folder: Path) -> str:
        act = self.choice.choice(HARMLESS)
        act(self.choice, folder)
        return act.__name__

    def damage(self, kind: str, ask: Callable, folder: Path) -> str:
        name = self.choice.choice(ESSENTIAL.get(ask, FILES[kind]))
        other = getattr(self.home, kind)[1]
        path, theirs = (
            next(place.glob("weights-*")) if name == "weights" else place / name for place in (folder, other)
        )
        act = self.choice.choice(TENSORS if path.suffix == ".safetensors" else TEXTS)
        act(self.choice, path, theirs)
        return f"{act.__name__} {name}"

    def ask(self, ask: Callable, folder: Path) -> str | tuple[object]:
        """"refused", another word for a fault, or the numbers that came back."""

        def alarm(*_: object) -> None:
            raise Hangs

        before = signal.signal(signal.SIGALRM, alarm)
        signal.alarm(HANG_SECONDS)
        try:
            found, _ = quietly(ask, folder)
        except Hangs:
            return "hangs"
        except (ValueError, RuntimeError) as error:
            known = type(error).__module__.startswith("muse.") or type(error) is ValueError
            if known and str(self.scratch) in str(error) and "\n" not in str(error).strip():
                return "refused"
            traceback.print_exc(file=sys.stdout)
            return "tracebacks"
        except Exception:
            traceback.print_exc(file=sys.stdout)
            return "tracebacks"
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        return (found,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files, damage copies of them, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    options = parser.parse_args(arguments)
    began, threads = time.monotonic(), torch.get_num_threads()
    print(f"seed {options.seed}")
    torch.set_num_threads(1)
    logging.getLogger("muse").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="muse-damage-") as folder:
            home = make_home(Path(folder).resolve() / "home")
            trials = Trials(home, random.Random(options.seed), Path(folder).resolve() / "scratch")
            for _ in range(options.trials):
                trials.one()
    finally:
        torch.set_num_threads(threads)
        logging.getLogger("muse").setLevel(logging.NOTSET)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"script": "damage", "trials": options.trials, "faults": trials.faults, "seconds": seconds}))
    return int(any(trials.faults.values()))


if __name__ == "__main__":
    sys.exit(main())
