"""Hostile and valid params files and -p arguments, generated.

Most trials are read in this process, by the function that every command calls; some are whole `muse params` commands.
Run as `python -m tests.force.params --trials 4000 --processes 40`. The last line printed is one JSON object; the
exit code is 1 where anything is at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from muse.catalog import BENCH_GROUPS, LANGUAGES, MODEL_NAMES
from muse.params import ParamsError, Settings, load_params
from muse.runner.check import resolved

FAULTS = ("traceback", "hang", "bad_accepted", "good_refused", "long_line", "control_character")
LONGEST_LINE = 400
READ_SECONDS, COMMAND_SECONDS = 3, 10

Trial = tuple[str, list[str], bool]  # text of the file, overrides, whether it is good

COUNTS = ("seed", "vocab_size", "n_layers", "evaluations", "ppl_batch_size", "stability_trials", "train_tokens")
NAMES = {"models": MODEL_NAMES, "bench_groups": BENCH_GROUPS, "formats": ("float32", "bfloat16")}
WORDS = {"device": ("auto", "cpu", "cuda"), "optimizer": ("adamw", "muon"), "language": LANGUAGES}
TEXTS = ("checkpoint_dir", "cache_dir", "results_dir")
RATES = ("gradient_clip", "warmup_share", "bench_seconds", "muon_learning_rate")
CHARACTERS = "\x00\x1b\x07\x9b\u202e\u2066\u200f\ud800\U000e0041\x7f\u2028\x85"


def good(r: random.Random) -> Trial:
    """Return settings that are fine, some in the file and some as overrides; texts are any that are meant."""
    values: dict[str, object] = {"stages": ["memory"]}
    for key in r.sample(COUNTS, 3):
        values[key] = r.choice((1, 2, 3, 1000)) if key != "stages" else values[key]
    for key in r.sample(list(NAMES), 2):
        values[key] = r.sample(list(NAMES[key]), r.randint(1, 2))
    for key in r.sample(list(WORDS), 2):
        values[key] = r.choice(list(WORDS[key]))
    values[r.choice(RATES)] = r.choice((1e-3, 0.25, 0.5))
    values["seeds"] = r.sample(range(2**40), r.randint(1, 5))
    values["learning_rates"] = r.sample((1e-4, 3e-4, 1e-3, 0.01), r.randint(1, 3))
    overrides = [f"{key}={json.dumps(values.pop(key))}" for key in r.sample(list(values), r.randint(0, 3))]
    meant = (
        "data/run #3",
        "007",
        "null",
        ": ",
        "a: b",
        "[x",
        "{",
        "- a",
        "&x",
        "*x",
        "!x",
        "%x",
        "@x",
        "`",
        "é ñ 漢",
        "true",
    )
    overrides += [f"{key}={r.choice(meant)}" for key in r.sample(TEXTS, r.randint(0, 2))]
    text = json.dumps(values) if r.random() < 0.3 else "".join(f"{k}: {json.dumps(v)}\n" for k, v in values.items())
    return text, overrides, True


def bad(r: random.Random) -> Trial:
    """Return one thing that is wrong, in the file or as an override, beside settings that are fine."""
    key, value = r.choice(BAD)(r)
    base = "" if r.random() < 0.5 else "profile: fine\nseeds: [1, 2]\n"
    if key is None:
        return value, [], False
    if r.random() < 0.4 and "\0" not in key + value and not any(0xD800 <= ord(c) < 0xE000 for c in key + value):
        return "{}", [f"{key}={value}"], False
    return f"{base}{key}: {value}\n", [], False


def _number(r: random.Random) -> tuple[str, str]:
    huge = (
        "-1",
        "1" + "0" * r.choice((20, 25, 400, 4000, 6000)),
        "0x" + "f" * r.choice((17, 5000)),
        "1.5",
        ".nan",
        "true",
    )
    return r.choice(COUNTS), r.choice(huge)


def _rate(r: random.Random) -> tuple[str, str]:
    return r.choice(RATES), r.choice((".nan", ".inf", "-.inf", "1e308", "-1", "1e999999", "[]", "a", "1" + "0" * 5000))


def _twice(r: random.Random) -> tuple[str, str]:
    key = r.choice((*NAMES, "seeds", "learning_rates", "dropouts", "batch_tokens", "weight_decays"))
    value = r.choice(NAMES[key]) if key in NAMES else "0.5" if key in ("learning_rates", "dropouts") else "4096"
    return key, f"[{value}, {value}]"


def _near(r: random.Random) -> tuple[str, str]:
    key = r.choice((*NAMES, *WORDS))
    word = list(r.choice(list(NAMES.get(key) or WORDS[key])))
    word[r.randrange(len(word))] = r.choice("xzq7")
    return key, f"[{''.join(word)}]" if key in NAMES else "".join(word)


def _key(r: random.Random) -> tuple[str, str]:
    odd = ("7", "true", "null", "3.5", "[a, b]", "? ", "x" * 900, "Seed", "<<", "~", "''", "2001-01-01")
    return r.choice(odd), r.choice(("1", "x", "[1]"))


def _characters(r: random.Random) -> tuple[str, str]:
    dirty = "".join(r.choice((*CHARACTERS, "a", "b/")) for _ in range(r.randint(2, 30))) + r.choice(CHARACTERS[:3])
    quoted = '"' + "".join(f"\\U{ord(c):08x}" for c in dirty) + '"'
    return (r.choice(("corpus", "device", *TEXTS)), quoted) if r.random() < 0.6 else (quoted, "1")


def _raw(r: random.Random) -> tuple[None, str]:
    return None, "seed: 1\n" + "".join(
        r.choice((*CHARACTERS, "a", ":", "\n")) for _ in range(r.randint(1, 60))
    ) + "\x1b: 1\n"


def _folder(r: random.Random) -> tuple[str, str]:
    names = ("~nosuchuser7/x", "x" * 300, "a/" * 3000, "x" * 5000)
    return r.choice(("checkpoint_dir", "corpus", "tokenizer")), r.choice(names[3:] if r.random() < 0.5 else names[:1])


def _bomb(r: random.Random) -> tuple[None, str]:
    n = r.choice((500, 5000, 100_000))
    aliases = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{this}: &{this} [{','.join([f'*{before}'] * 9)}]\n"
        for before, this in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return None, r.choice(
        (
            aliases,
            "[" * n,
            "a: " + "[" * n + "]" * n,
            "- " * n,
            "{a: " * n,
            "seed: " + "9" * n,
            "? " * n,
            "&a " * n,
            "".join(f"k{i}: 1\n" for i in range(n)),
            "# " + "x" * 20 * n + "\nzzz: 1\n",
            "'" * (2 * n + 1),
            "a: &a [*a]",
            "\t" * n,
            "zzz: |\n" + "  x\n" * n,
            "!" * n + " x",
            "*" + "a" * n,
            "{" + ",".join(f"a{i}" for i in range(n)) + "}",
            '"\\x41' * n,
        )
    )


def _tag(r: random.Random) -> tuple[str, str]:
    tags = (
        "!!bool 7",
        "!!int x",
        "!!float x",
        "!!timestamp x",
        "!!binary '%'",
        "!!set {a}",
        "!!omap [a: 1]",
        "!x y",
        "!!null x",
        "!!python/object/apply:os.system [true]",
        "2001-99-99",
        "2001-01-01",
        "<<: 1",
        "*x",
        "&x",
        "!!seq {}",
        "!!map []",
    )
    return "seeds", r.choice(tags)


def _noise(r: random.Random) -> tuple[None, str]:
    return None, "".join(r.choice("{}[]:,-?&*!|>%@`#'\" \nab1~") for _ in range(r.randint(1, 200))) + "\nzzz: 1"


BAD: tuple[Callable[[random.Random], tuple[str | None, str]], ...] = (
    _number,
    _rate,
    _twice,
    _near,
    _key,
    _characters,
    _raw,
    _folder,
    _bomb,
    _tag,
    _noise,
)


class HangError(Exception):
    """A trial that takes too long."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise HangError in the block once it takes longer."""

    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(lines: Sequence[str]) -> list[str]:
    """Return what is wrong with what was printed, whether or not it is right."""
    found = ["long_line"] if any(len(line) > LONGEST_LINE for line in lines) else []
    return found + (["control_character"] if any(not line.isprintable() for line in lines) else [])


def read(path: Path, overrides: Sequence[str], is_good: bool) -> list[str]:
    """Return the faults of a trial that this process reads."""
    try:
        with limit(READ_SECONDS):
            resolved(load_params(path, overrides))
    except ParamsError as error:
        return (["good_refused"] if is_good else []) + judge(str(error).split("\n"))
    except HangError:
        return ["hang"]
    except Exception:
        return ["traceback"]
    return [] if is_good else ["bad_accepted"]


def command(path: Path, overrides: Sequence[str], is_good: bool) -> list[str]:
    """Return the faults of a trial that is a command of its own."""
    given = [part for override in overrides for part in ("-p", override)]
    arguments = [sys.executable, "-m", "muse", "params", str(path), "memory", *given]
    try:
        done = subprocess.run(
            arguments, capture_output=True, timeout=COMMAND_SECONDS, env=os.environ | {"COLUMNS": "100"}
        )
    except subprocess.TimeoutExpired:
        return ["hang"]
    errors = done.stderr.decode("utf-8", "replace")
    if "Traceback" in errors or done.returncode not in (0, 2):
        return ["traceback"]
    wrong = {(True, 2): ["good_refused"], (False, 0): ["bad_accepted"]}.get((is_good, done.returncode), [])
    return wrong + judge(errors.removesuffix("\n").split("\n"))


def trials(number: int, seed: int) -> Iterator[Trial]:
    """Yield generated trials: a third of them good, the rest each with something wrong."""
    for at in range(number):
        r = random.Random(f"{seed} {at}")
        yield good(r) if at % 3 == 0 else bad(r)


def force(number: int, processes: int, seed: int, show: Callable[[str], None] = print) -> dict[str, object]:
    """Try all and return {"script", "trials", "faults", "seconds"}; a trial at fault is shown."""
    began, faults, files = time.monotonic(), Counter(dict.fromkeys(FAULTS, 0)), (number, processes)
    folder = Path(tempfile.mkdtemp(prefix="muse-force-"))
    try:
        for ask, count, own in ((read, number, seed), (command, processes, seed + 1)):
            for text, overrides, is_good in trials(count, own):
                path = folder / "p.yaml"
                path.write_bytes(text.encode("utf-8", "surrogatepass"))
                if found := ask(path, overrides, is_good):
                    faults.update(found)
                    show(f"{found}: {text[:200]!r} {[override[:200] for override in overrides]!r}")
    finally:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - began, 1)
    return {"script": "params", "trials": sum(files), "faults": dict(faults), "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, metavar="N", help="in this process (default: 1000)")
    parser.add_argument("--processes", type=int, default=20, metavar="M", help="as commands of their own (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="K")
    options = parser.parse_args()
    found = force(options.trials, options.processes, options.seed)
    print(json.dumps(found))
    return int(any(found["faults"].values()))


if __name__ == "__main__":
    assert set(COUNTS) <= set(Settings.model_fields)
    sys.exit(main())
