"""A hundred million tokens: `python tests/large_text.py TEXT TOKENIZER FOLDER` cuts them, trains on them, and resumes.

TEXT is a folder of WikiText-2, TOKENIZER one with vocab.json and merges.txt. FOLDER gets the text as shards of parquet:
copies of the training split, each with its articles in another order and other digits, so that no two shards are alike;
it is removed at the end. Each part runs in a process of its own and says what that took: seconds, and the most memory
that was its own (anonymous pages, without those of files, which the system takes back), its helpers' beside it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SAMPLE_SECONDS = 0.05
SPLITS = ("train", "validation")
STEPS, TOKENS, N_SEQ = 10, 512, 128
VALIDATION_LINES = 30


def main() -> None:
    options = _options()
    if options.part:
        PARTS[options.part](options)
        return
    options.folder.mkdir(parents=True)
    try:
        make(options)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}", flush=True)
        for part in PARTS:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True)
        print(f"load {os.getloadavg()[0]:.1f} at the end")
    finally:
        shutil.rmtree(options.folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("text", "tokenizer", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--copies", type=int, default=42, help="of the training split (default: 42, 100 M tokens)")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def make(options: argparse.Namespace) -> None:
    """Write the shards of the training split, and a few lines of the validation split."""
    import pyarrow
    from pyarrow import parquet

    text = (options.text / "train.txt").read_text(encoding="utf-8")
    articles = re.split(r"(?m)^(?= = [^=])", text)
    sizes = []
    for at in range(options.shards):
        path = options.folder / f"train-{at:05d}-of-{options.shards:05d}.parquet"
        with parquet.ParquetWriter(path, pyarrow.schema([("text", pyarrow.string())])) as writer:
            for copy in range(at, options.copies, options.shards):
                random.Random(copy).shuffle(articles)
                digits = str.maketrans("0123456789", "".join(str((digit + copy) % 10) for digit in range(10)))
                lines = "".join(articles).translate(digits).splitlines(keepends=True)
                writer.write_table(pyarrow.table({"text": lines}), row_group_size=10_000)
                sizes.append(sum(len(line.encode()) for line in lines))
    few = (options.text / "validation.txt").read_text(encoding="utf-8").splitlines(keepends=True)[:VALIDATION_LINES]
    (options.folder / "validation.txt").write_text("".join(few), encoding="utf-8")
    print(f"text: {sum(sizes) / 1e6:.0f} MB in {options.copies} copies, {options.shards} shards")


class Peak:
    """The most memory of its own that this process has, and with its helpers, while the block runs; in bytes."""

    def __enter__(self) -> Peak:
        self.before, self.own, self.all, self.ended = _anonymous(os.getpid()), 0, 0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            own, helpers = _anonymous(os.getpid()), 0
            for helper in psutil.Process().children(recursive=True):
                with suppress(OSError):
                    helpers += _anonymous(helper.pid)
            self.own, self.all = max(self.own, own), max(self.all, own + helpers)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def __str__(self) -> str:
        before, own, every = (f"{size / 2**20:.0f}" for size in (self.before, self.own, self.all))
        return f"own memory {before} MiB before, at most {own} ({every} with its helpers)"


def _anonymous(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def read(options: argparse.Namespace):
    from muse.data.corpora import load_corpus

    return load_corpus(str(options.folder), str(options.tokenizer), splits=SPLITS, cache_dir=options.folder / "cache")


def cut(options: argparse.Namespace, what: str = "cut") -> None:
    """Cut the text into tokens, or find them."""
    import muse.data.corpora  # noqa: F401  (before the first look at memory)

    began = time.monotonic()
    with Peak() as peak:
        number = len(read(options).splits["train"].ids)
    took = time.monotonic() - began
    print(f"{what}: {number:,} tokens in {took:.1f} s, {number / took:,.0f} a second; {peak}", flush=True)


def train(options: argparse.Namespace) -> None:
    """Train a small model on the tokens, whole and with a stop exactly in the middle; losses and weights are equal."""
    import torch

    from muse.models.build import build_model
    from muse.training import trainer
    from muse.training.recipe import Recipe

    torch.set_num_threads(1)
    corpus = read(options)
    recipe = Recipe(STEPS * TOKENS, TOKENS, N_SEQ, 1e-3, evaluations=2, checkpoint_every_steps=10**6)
    build = partial(build_model, "stage1", vocab_size=corpus.vocab_size, d_model=16, n_layers=1, n_seq=N_SEQ)

    def trained(name: str, on_report: Callable | None = None):
        return trainer.train("stage1", build, recipe, corpus, options.folder / name, on_report=on_report)

    def stop(report) -> None:
        if report.step == STEPS // 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with Peak() as peak:
        began = time.monotonic()
        whole = trained("whole")
        took = time.monotonic() - began
        with suppress(KeyboardInterrupt):
            trained("halves", stop)
        resumed = trained("halves")
    assert resumed.resumed_from_steps == (STEPS // 2,), resumed.resumed_from_steps
    assert resumed.validation_curve == whole.validation_curve
    weights = [Path(result.weights).read_bytes() for result in (whole, resumed)]
    alike = "byte for byte the same weights" if weights[0] == weights[1] else "OTHER WEIGHTS"
    size = corpus.splits["train"].ids.numel() * 4 / 2**20
    print(f"train: {STEPS} steps of {TOKENS:,} tokens in {took:.1f} s from {size:.0f} MiB of tokens; {peak}")
    print(f"resumed at step {STEPS // 2} of {STEPS}: {alike} and validation loss {resumed.best_validation_loss:.4f}")


PARTS = {"cut": cut, "found": partial(cut, what="found again"), "train": train}

if __name__ == "__main__":
    main()
