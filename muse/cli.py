"""The `muse` command."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from muse.host.exit_codes import BAD_PARAMETERS, CRITERION_FAILED, FAILED, INTERRUPTED, NOT_MEASURED, OK
from muse.host.files import check_no_dangling_link
from muse.host.lines import cut, near, one_line
from muse.host.output import kept_output
from muse.host.paths import some_home
from muse.host.signals import Interruptions
from muse.host.workbook import copy_workbook, profiles, to_install
from muse.report.published import FILE as PUBLISHED
from muse.runner.check import disk_problems, place_problems, raise_problems, resolved, working_folder
from muse.runner.notebooks import find_notebooks, folders_and_problems, stage_parameters
from muse.runner.rows import run_rows
from muse.runner.run import BASIC_TEST, check, default_out, render, run, run_info

from .catalog import CARDS, LANGUAGES, REPORT, STAGE_NAMES
from .params import ParamsError, Row, Settings, load_params, load_rows, of_rows

if TYPE_CHECKING:
    from muse.cluster.settings import Executor
    from muse.stages.stage import Stage
    from muse.training.recipe import TrainingResult

Commands = argparse._SubParsersAction  # what `add_subparsers` returns; argparse has no public name for it
Argument = Callable[..., argparse.Action]
FOLDER = {"type": Path, "metavar": "FOLDER"}

BENCH_KEYS = {
    *("vocab_size", "d_model", "n_layers", "n_seq", "memory_batch_size", "seed", "device", "recompute"),
    *("corpus", "tokenizer", "cache_dir"),
}
"""Settings that decide what `muse bench` does, beside those that start with `throughput_` and `bench_`."""

EXIT_CODES = f"""\
exit codes:
  {OK:<4} every stage ran
  {CRITERION_FAILED:<4} with --gate: a criterion fails
  {BAD_PARAMETERS:<4} bad parameters; nothing was started
  {NOT_MEASURED:<4} with --gate: no criterion fails, but one was not measured
  {FAILED:<4} a stage or the run itself failed (after a stage, the report is written all the same)
  {INTERRUPTED:<4} interrupted (Ctrl-C or SIGTERM)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code, which is that of the work: what cannot be printed changes none.

    Only a command whose output is its product has not done its work where nobody could take it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with kept_output() as output:
        try:
            options = _parser().parse_args(arguments)
            options.arguments, options.command = arguments, shlex.join(["muse", *arguments])
            code, product = _call(options), options.product
        except SystemExit as end:  # of argparse, after its help or usage
            output.flush()
            if end.code or not output.error:
                raise
            code, product = OK, True
        output.flush()
        if product and output.error and code == OK:
            print(f"muse: the output could not be written: {output.error}", file=sys.stderr)
            return FAILED
    return code


def _call(options: argparse.Namespace) -> int:
    """Run a command and return its exit code, with a line on stderr for what kept it from its work."""
    try:
        with Interruptions(wait=False), some_home():
            _check_place()
            return options.call(options)
    except ParamsError as error:
        print(f"muse: {error}", file=sys.stderr)
        return BAD_PARAMETERS
    except KeyboardInterrupt:
        print("muse: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # a full disk, say: no fault of the code, so no traceback
        print(f"muse: {error}", file=sys.stderr)
        return FAILED
    except Exception:
        traceback.print_exc()  # a bug or a broken machine; Python's own exit code 1 would speak of a criterion
        return FAILED


def _check_place() -> None:
    """Raise ParamsError where the working folder was deleted: names of files mean nothing there."""
    try:
        os.getcwd()
    except OSError as error:
        raise ParamsError("the working folder is gone; expected one that is there") from error


class _Version(argparse.Action):
    def __init__(self, *names: object, **more: object) -> None:
        super().__init__(*names, nargs=0, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"muse-workbook {version('muse-workbook')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muse", description="Measure planar complex half-precision language models against real ones."
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    first = (_add_run, _add_basic_test, _add_benchmark, _add_check, _add_train, _add_plan, _add_export, _add_eval)
    then = (_add_bench, _add_generate, _add_params, _add_report, _add_list, _add_compare, _add_check_pages, _add_init)
    for add in (*first, *then):
        add(commands)
    _add(commands, "schema", _schema, "print the JSON schema of report.json", product=True)
    return parser


def _add(
    commands: Commands, name: str, call: Callable[[argparse.Namespace], int], words: str, product: bool = False, **more
) -> Argument:
    """Add a command and return what adds an argument to it; `more` are argparse's.

    With `product` what it prints is what it was asked for, and nothing else keeps it.
    """
    command = commands.add_parser(name, help=words, **more)
    command.set_defaults(call=call, product=product)
    return command.add_argument


def _add_settings(add: Argument, optional: bool = False) -> None:
    words = "a params file, or the name of one that came along, such as quick"
    words += " (default: the published sizes)" if optional else ""
    add("params", type=Path, metavar="PARAMS", help=words, nargs="?" if optional else None)
    _add_overrides(add)


def _add_overrides(add: Argument) -> None:
    words = "set one parameter, as often as needed; the value is YAML: -p seeds=[0,1]"
    add("-p", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=words)


def _settings(options: argparse.Namespace) -> Settings:
    """The settings of a params file that is one run."""
    return load_params(_params_file(options), options.overrides)


def _rows(options: argparse.Namespace) -> list[Row]:
    """The runs of a params file."""
    return load_rows(_params_file(options), options.overrides)


def _params_file(options: argparse.Namespace) -> Path | None:
    """The params file, which may be called by its name where it came with the workbook."""
    path = options.params
    if path is not None and path.name == str(path) and not path.suffix and not path.exists():
        known = _known()
        if path.name not in known:
            name, hint = one_line(path.name), near(path.name, known)
            expected = f"a params file or one of {', '.join(known)}" + (f"; {hint}" if hint else "")
            raise ParamsError(f"{cut(name)}: no such file, expected {expected}")
        options.params = known[path.name]
    return options.params


def _known() -> dict[str, Path]:
    """The params files that came with the workbook, by name."""
    try:
        return profiles()
    except FileNotFoundError as error:
        raise ParamsError(str(error)) from error


def _add_run(commands: Commands) -> None:
    add = _add(
        commands, "run", _run, "run the notebooks of a params file and write a report", epilog=EXIT_CODES,
        description="Run the stages of a params file as notebooks and write their records, pages and the report.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_settings(add)
    add("--out", **FOLDER, help="where the report goes, or those of a matrix (default: reports/<profile>)")
    add("--notebooks", **FOLDER, help="the notebooks to run (default: those that came with muse)")
    add("--gate", action="store_true", help="let the exit code tell whether every criterion passes")


def _run(options: argparse.Namespace) -> int:
    rows = _rows(options)
    _check_out(options.out)
    return run_rows(rows, out=options.out, notebooks=options.notebooks, gate=options.gate, command=options.command)


def _add_basic_test(commands: Commands) -> None:
    add = _add(
        commands, "basic-test", partial(_published, profile="basic-test", gate=BASIC_TEST),
        "the published basic test: build, forward, backward, less than 8 GB",
        description="Run the published basic test of Stage 1 (the params file basic-test), print what passes, and "
        f"write the report and {PUBLISHED}.", epilog=EXIT_CODES.replace("criterion", "line of the basic test"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_run_options(add, "basic-test")


def _add_benchmark(commands: Commands) -> None:
    add = _add(
        commands, "benchmark", partial(_published, profile="wikitext2", gate=True),
        "the published benchmark on WikiText-2: perplexity, memory, throughput, health",
        description="Run the published benchmark of Stage 1 (the params file wikitext2), print what passes, and "
        f"write the report and {PUBLISHED}.", epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add("--skip-phase2", action="store_true", help="leave the baseline out; ratios are then not measured")
    add("--max-ppl-batches", metavar="N", help="stop perplexity after N batches (default: the whole split)")
    _add_run_options(add, "wikitext2")


def _add_run_options(add: Argument, profile: str) -> None:
    _add_overrides(add)
    add("--out", **FOLDER, help=f"where the report goes (default: reports/{profile})")
    add("--gate", action="store_true", help="let the exit code tell whether everything passes")


def _published(options: argparse.Namespace, profile: str, gate: bool | str) -> int:
    """Run a params file that came along, whatever lies in the working folder; options come after those of -p."""
    named = {"skip_phase2": getattr(options, "skip_phase2", False) and "true"}
    named |= {"max_ppl_batches": getattr(options, "max_ppl_batches", None)}
    overrides = [*options.overrides, *(f"{key}={value}" for key, value in named.items() if value)]
    settings = load_params(_known()[profile], overrides)
    _check_out(options.out)
    return run(settings, out=options.out, gate=options.gate and gate, command=options.command)


def _add_check(commands: Commands) -> None:
    add = _add(
        commands, "check", _check, "look at everything that can be wrong before a run, and start nothing",
        description="Check parameters, corpus, tokenizer, sizes, folders and disk as muse run does at its start.",
        epilog=f"exit codes: {OK} no problem, {BAD_PARAMETERS} bad parameters, one line each",
    )  # fmt: skip
    _add_settings(add)
    add("--out", **FOLDER, help="where the report would go (default: reports/<profile>)")


def _check(options: argparse.Namespace) -> int:
    rows = _rows(options)
    check(rows, options.out)
    runs = f"{len(rows):,} runs; " if rows[0].values else ""
    print(f"{one_line(str(options.params))}: no problem found; {runs}stages: {', '.join(rows[0].settings.stages)}")
    return OK


def _add_train(commands: Commands) -> None:
    add = _add(
        commands, "train", _train, "train the models of a params file, or go on where an interrupted training stopped",
        description="Train every model and seed of a params file. The same command resumes; finished ones are reused.",
    )  # fmt: skip
    _add_settings(add)
    words = "train N at a time, over all visible CUDA devices (default: in turn)"
    add("--processes", type=int, metavar="N", help=words)
    words = "train each model on N cards of this machine at once, which share its batches (on a CPU: by N processes)"
    add("--gpus-per-model", dest="cards", type=int, default=1, metavar="N", help=words)
    words = "local: one training at a time on each device; FILE: on the workers that it describes (extra: cluster)"
    add("--executor", type=Path, metavar="local|FILE", help=words)
    words = "train the I-th training of the file alone, counted from 0: for the job arrays of a cluster"
    add("--index", type=int, metavar="I", help=words)
    add("--json", type=Path, metavar="FILE", help="write where finished trainings lie to FILE as well")


def _train(options: argparse.Namespace) -> int:
    rows = [Row(row.values, resolved(row.settings)) for row in _rows(options)]
    executor = _check_train(options, rows)
    problems = place_problems(rows[0].settings, {}, {"--json": options.json})
    from muse.stages.stage import Stage
    from muse.training.parallel import visible_devices
    from muse.training.ranks import is_one_of_several, joined
    from muse.training.rows import check_number, entry
    from muse.training.together import check_share, train_together

    only = ()
    if options.index is not None:
        own_row, only = entry(rows, options.index)
        rows = [own_row]
    if options.executor or rows[0].values:
        check_number(rows)
    own = {"record_dir": default_out(rows[0].settings).absolute() / "records"}
    own |= {"device": "auto"} if executor else {}  # trainings run elsewhere: this machine need not have their device
    stages = [Stage("train", row.settings.model_dump() | own) for row in rows]
    for before, stage in itertools.pairwise(stages):
        stage.share(before)
    if is_one_of_several():  # whoever started it has checked all this
        with joined():
            return _train_in_turn(options, rows, stages, only)
    devices = [None] if executor else visible_devices(stages[0].device.type)
    for row in rows:
        check_share(row.settings, options.cards, devices)
    _checked(rows, stages, None, problems)
    if options.executor and not executor and not options.processes:
        options.processes = max(1, len(devices) // options.cards)
    if executor or options.processes:
        return _train_beside(options, rows, stages, executor)
    if options.cards > 1:
        return train_together(options.arguments, (devices * options.cards)[: options.cards])
    return _train_in_turn(options, rows, stages, only)


def _train_beside(
    options: argparse.Namespace, rows: Sequence[Row], stages: Sequence[Stage], executor: Executor | None
) -> int:
    """Train what stages compare side by side: on an executor's workers, or here, so many at a time."""
    from muse.cluster.sweep import EngineError, train_on
    from muse.models.build import build_model
    from muse.training.parallel import train_side_by_side
    from muse.training.tuning import Plan, known_tries

    where = f"on {one_line(str(options.executor))}" if executor else f"{options.processes} at a time"
    corpora = ", ".join(dict.fromkeys(stage.corpus.name for stage in stages))
    print(f"corpus {corpora}, {where}", flush=True)  # read and cached only once
    given = [str(options.params), *(part for override in options.overrides for part in ("-p", override))]
    try:
        plans = []
        for row, stage in zip(rows, stages, strict=True):
            models, own_row = tuple(dict.fromkeys(stage.compared)), row if row.values else None
            known = known_tries(row.settings, models, stage.corpus, build_model, stage.device, own_row)
            plans.append(Plan(row.settings, models, known, row=own_row))
        if executor:
            well = train_on(executor, plans, given, options.cards)
        else:
            well = train_side_by_side(plans, stages[0].device.type, given, options.processes, options.cards)
        return OK if well else FAILED
    except ParamsError:
        raise
    except (EngineError, ValueError) as error:
        print(f"muse: {error}", file=sys.stderr)
        return FAILED


def _check_train(options: argparse.Namespace, rows: Sequence[Row]) -> Executor | None:
    """The executor of a file, where one is asked for; ParamsError for what options ask for and cannot be."""
    from muse.cluster.settings import check_engine, load_executor

    if not all(row.settings.train_tokens for row in rows):
        raise ParamsError(f"{options.params}: train_tokens: got 0, expected the token budget of a training")
    if options.processes is not None and options.processes < 1:
        raise ParamsError(f"--processes: got {options.processes}, expected at least 1")
    for name in ("--processes", "--executor"):
        if options.index is not None and getattr(options, name.strip("-")):
            raise ParamsError(f"--index: got it with {name}, expected one of them: an index is one training")
    if options.executor in (None, Path("local")):
        return None
    if options.processes:
        raise ParamsError("--processes: got it with an executor file, expected one of them: the file names its workers")
    executor = load_executor(options.executor)
    check_engine(options.executor, to_install("cluster"))
    return executor


def _train_in_turn(
    options: argparse.Namespace, rows: Sequence[Row], stages: Sequence[Stage], only: Sequence[int]
) -> int:
    """Train what stages compare, one after the other; `only` are the seeds that are wanted, all where it is empty.

    A row of a matrix whose training fails keeps the next ones from nothing.
    """
    from muse.data.hub import CorpusUnavailable
    from muse.training.parallel import heading, write_outcome
    from muse.training.ranks import LOST, Ranks, lost_another
    from muse.training.trainer import DeadGradientError, NonFiniteLossError

    finished, failed = [], []
    for row, stage in zip(rows, stages, strict=True):
        if row.values:
            print(heading(row), flush=True)
        try:
            _train_stage(stage, only, finished)
        except (NonFiniteLossError, DeadGradientError, CorpusUnavailable, ValueError) as error:
            print(f"muse: {f'{row.name}: ' if row.values else ''}{error}", file=sys.stderr)
            failed.append(error)
        except RuntimeError as error:
            if not lost_another(error):
                raise
            return LOST
    if options.json and Ranks.here().first:
        write_outcome(options.json, finished, diverged=any(isinstance(error, NonFiniteLossError) for error in failed))
    return FAILED if failed else OK


def _train_stage(stage: Stage, only: Sequence[int], finished: list[TrainingResult]) -> None:
    """Train what one stage compares; what is finished is printed and added to a list."""
    from muse.training.choices import common_choice
    from muse.training.tuning import result_line

    tries = {}
    for name in stage.compared:
        trained = stage.train(name, only)
        tries[name] = trained.tries
        for result in trained.results:
            finished.append(result)
            print(result_line(result))
    if common := common_choice(tries):
        print(common)


def _add_plan(commands: Commands) -> None:
    add = _add(
        commands, "plan", _plan, "say what the trainings of a params file need on a card, without one",
        description="Estimate parameters, peak memory, speed and time of every model of a params file on a card, and "
        "what the trainings that are not finished take.",
        epilog=f"exit codes: {OK} planned, {BAD_PARAMETERS} bad parameters", product=True,
    )  # fmt: skip
    _add_settings(add)
    add("--card", default=next(iter(CARDS)), metavar="CARD", help=f"{', '.join(CARDS)} (default: {next(iter(CARDS))})")
    add("--price", type=float, metavar="P", help="of a card for an hour, in any currency: the cost is told too")
    words = "each model is trained on N such cards of one machine, which share its batches"
    add("--gpus-per-model", dest="cards", type=int, default=1, metavar="N", help=words)


def _plan(options: argparse.Namespace) -> int:
    rows, problems = [], []
    for row in _rows(options):
        settings, found = folders_and_problems(row.settings, working_folder(), to_come=("corpus", "test_corpus"))
        rows.append(Row(row.values, settings))
        problems += [(row.name, line) for line in found]
    raise_problems(of_rows(problems, len(rows)))
    if options.price is not None and not 0 < options.price < float("inf"):
        raise ParamsError(f"--price: got {options.price}, expected a price of an hour above 0")
    from muse.report.tables import written
    from muse.stages.plan_tables import planned
    from muse.training.together import check_share

    for row in rows:
        check_share(row.settings, options.cards, [None])
    if options.card not in CARDS:
        hint = near(options.card, list(CARDS))
        raise ParamsError(f"--card: got {one_line(options.card)}, expected one of {', '.join(CARDS)}. {hint}".rstrip())
    for found in planned(rows, CARDS[options.card], options.price, options.cards):
        print(found if isinstance(found, str) else written([found], "terminal"), flush=True)
    return OK


def _resolved(options: argparse.Namespace) -> Settings:
    return resolved(_settings(options))


def _checked(rows: Sequence[Row], stages: Sequence[Stage], out: Path | None, problems: list[str]) -> None:
    """Raise ParamsError of these problems and of what packages and data tell of each stage, in this process."""
    from muse.stages.check import bytes_of_all, examine

    found = [examine(stage.settings, [stage.name], lambda stage=stage: stage.corpus) for stage in stages]
    lines = [(row.name, line) for row, one in zip(rows, found, strict=True) for line in one.problems]
    num_bytes = bytes_of_all([stage.settings for stage in stages], found)
    raise_problems([*problems, *of_rows(lines, len(rows))] or disk_problems(rows[0].settings, out, num_bytes))


def _check_out(path: Path | None) -> None:
    """A link to nothing is a bad parameter: what is written there would make its target."""
    with _given_by_the_user():
        if path is not None:
            check_no_dangling_link(path)


@contextmanager
def _given_by_the_user() -> Iterator[None]:
    """What cannot be read or used is a bad parameter."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ParamsError(str(error)) from error


def _add_export(commands: Commands) -> None:
    add = _add(
        commands, "export", _export, "write a trained model as a folder with config.json, model.safetensors and a "
        "model card", description="Write the model of a finished training as a folder that muse.from_pretrained reads.",
    )  # fmt: skip
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoints/<model>-s<seed>-<key>")
    add("out", type=Path, metavar="OUT", help="the folder that gets the model")
    add("--float32", action="store_true", help="as trained, not stored in float16 planes")
    add("--tokenizer", metavar="FOLDER", help="its files go along: a folder, gpt2, or corpus (words of --corpus)")
    add("--corpus", metavar="FOLDER", help="whose words --tokenizer corpus takes: a folder or a name")


def _export(options: argparse.Namespace) -> int:
    from muse.models.pretrained import export_checkpoint

    with _given_by_the_user():
        given = {"float32": options.float32, "tokenizer": options.tokenizer, "corpus": options.corpus}
        model = export_checkpoint(options.checkpoint, options.out, **given)
    parameters = list(model.parameters())
    count, dtype = sum(p.numel() for p in parameters), str(parameters[0].dtype).removeprefix("torch.")
    print(f"{options.out}: {type(model).__name__}, {count:,} parameters in {dtype}")
    return OK


def _add_eval(commands: Commands) -> None:
    add = _add(
        commands, "eval", _eval, "ask the lm-evaluation-harness about a saved model (extra: eval)",
        description="Run tasks of EleutherAI's lm-evaluation-harness on a saved model and print their results as JSON.",
        product=True,
    )  # fmt: skip
    add("model", type=Path, metavar="MODEL", help="a folder that muse export wrote")
    add("--tokenizer", metavar="FOLDER", help="gpt2 (from the hub) or a folder; default: the model's own, else gpt2")
    add("--tasks", nargs="+", default=["muse_wikitext"], metavar="TASK", help="default: muse_wikitext")
    add("--corpus", metavar="FOLDER", help="the text of muse_wikitext: a folder with test.txt or parquet")
    add("--include-path", metavar="FOLDER", help="where tasks of your own lie, as YAML of the harness")
    add("--limit", type=int, metavar="N", help="only the first N documents of each task")
    add("--batch-size", type=int, default=4, metavar="N", help="sequences at once (default: 4)")
    add("--device", metavar="DEVICE", help="default: cuda where there is one, else cpu")


def _eval(options: argparse.Namespace) -> int:
    try:
        from muse.harness.harness import MuseLM, evaluate
    except ModuleNotFoundError as error:
        raise ParamsError(f"{error}; muse eval needs an extra: {to_install('eval')}") from error
    with _given_by_the_user():
        model = MuseLM(options.model, options.tokenizer, options.device, options.batch_size)
        found = evaluate(model, options.tasks, options.corpus, options.limit, options.include_path)
    print(json.dumps(found, indent=1, allow_nan=False))
    return OK


def _add_generate(commands: Commands) -> None:
    add = _add(
        commands, "generate", _generate, "let a saved model write on from a text",
        description="Print what a model writes after a text, as it is written. Equal seeds write equal texts.",
        product=True,
    )  # fmt: skip
    add("model", type=Path, metavar="FOLDER", help="a folder that muse export wrote, or a finished training's")
    add("text", metavar="TEXT", help="what stands before; - reads it from the standard input, less its last line end")
    add("--tokens", type=int, default=100, metavar="N", help="how many to write (default: 100)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 takes the likeliest token (default: 1)")
    add("--top-p", type=float, metavar="P", help="draw from the fewest tokens that hold a share P (default: all)")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    add("--tokenizer", metavar="FOLDER", help="where the model has none: gpt2 (from the hub) or a folder")


def _generate(options: argparse.Namespace) -> int:
    if options.tokens < 1:
        raise ParamsError(f"--tokens: got {options.tokens}, expected at least 1")
    if not 0 <= options.seed < 2**63:
        raise ParamsError(f"--seed: got {options.seed}, expected 0 to 2^63 - 1")
    chosen = {name: getattr(options, name) for name in ("temperature", "top_p", "top_k")}
    with _given_by_the_user():
        text = _read_text(options.text)
        from muse.models.generate import check_choices
        from muse.models.writer import Writer

        check_choices(**chosen)
        pieces = Writer(options.model, options.tokenizer).written(text, options.tokens, seed=options.seed, **chosen)
    last = ""
    try:
        for last in pieces:
            print(last, end="", flush=True)
            if getattr(sys.stdout, "error", None):  # the reader left
                break
    except ValueError as error:  # logits that are not finite
        print(f"\nmuse: {error}", file=sys.stderr)
        return FAILED
    print("" if last.endswith("\n") else "\n", end="")
    return OK


def _read_text(text: str) -> str:
    """The text itself, or for - that of the standard input; ValueError for none."""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8") if sys.stdin else ""
        except UnicodeDecodeError as error:
            raise ValueError(f"text: expected UTF-8 on the standard input, got other bytes ({error})") from error
        text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("text: got nothing, expected something to write on from")
    return text


def _add_bench(commands: Commands) -> None:
    add = _add(
        commands, "bench", _bench, "time fast paths beside naive ones and other libraries, each found equal first",
        description="Time forward, training step, head, complex stack and writing in turn: this package's paths, naive "
        "ones and other libraries. Each is timed once it was found equal to a float64 reference. Writes "
        "FOLDER/bench.json.",
    )  # fmt: skip
    _add_settings(add, optional=True)
    add("--out", **FOLDER, default=Path("reports", "bench"), help="where bench.json goes (default: reports/bench)")


def _bench(options: argparse.Namespace) -> int:
    settings = _resolved(options)
    _check_out(options.out)
    problems = place_problems(settings, {"--out": options.out}, {})
    from muse.records.environment import hardware, utc_now
    from muse.records.schema import BenchRecord
    from muse.records.store import write_record
    from muse.report.plain import bench_tables
    from muse.stages import throughput
    from muse.stages.stage import Stage

    info = run_info(settings, options.command, hardware()).model_copy(update={"params": {}})  # they are the stage's
    every = settings.model_dump()
    chosen = {key: every[key] for key in every if key in BENCH_KEYS or key.startswith(("throughput_", "bench_"))}
    stage = Stage("bench", chosen | {"record_dir": options.out.absolute()})
    _checked([Row({}, settings)], [stage], options.out.absolute(), problems)
    unfinished = stage.record_path.with_suffix(".unfinished.json")  # a bench that is cut displaces no finished one
    shown = 0

    def keep(so_far) -> None:
        """Write what there is and print the lines that are new."""
        nonlocal shown
        metrics = so_far.metrics()
        record = BenchRecord(run=info.model_copy(update={"finished_utc": utc_now()}), stage=stage.record(metrics))
        write_record(record, unfinished)
        lines = bench_tables(metrics)
        print("\n".join(lines[shown:]), flush=True)
        shown = len(lines)

    took = throughput.run_bench(stage, keep).seconds
    unfinished.replace(stage.record_path)
    print(f"\ntook {took:.0f} s: {stage.record_path}")
    return OK


def _add_params(commands: Commands) -> None:
    add = _add(
        commands, "params", _params, "print the parameters of one stage's notebook, for plain papermill",
        description="Print the parameters of one stage as YAML: papermill notebooks/NN_STAGE.ipynb out.ipynb -f FILE",
        product=True,
    )  # fmt: skip
    _add_settings(add)
    names = (*STAGE_NAMES, REPORT)
    add("stage", metavar="STAGE", choices=names, help=", ".join(names))
    add("--out", **FOLDER, help="the run folder that gets the stage's record")


def _params(options: argparse.Namespace) -> int:
    import yaml  # the reader of papermill: what it writes, papermill reads back as the same values

    settings = _resolved(options)
    (notebook,) = [found for found in find_notebooks([options.stage]) if found.stage == options.stage]
    values = stage_parameters(settings, notebook, (options.out or default_out(settings)) / "records")
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")
    return OK


def _add_report(commands: Commands) -> None:
    add = _add(
        commands, "report", _report,
        "make the pages of a finished run again, in another language or with other runs beside it",
        description="Make a run's pages again from its records, without measuring anything.",
    )  # fmt: skip
    add("folder", **FOLDER, help="a run's folder, such as reports/quick")
    add("--language", choices=LANGUAGES, default="en", help="language of the pages (default: en)")
    words = "folders of runs that the report shows as companions, from now on"
    add("--with", dest="companions", nargs="+", action="extend", type=Path, default=[], metavar="OTHER", help=words)
    words = "let index.html load assets/figures.js as the stages' pages do: 2 MB less, but it must stay in its folder"
    add("--shared-script", action="store_true", help=words)
    words = "draw each figure as an SVG picture too, for readers without JavaScript; takes a Chromium and half a minute"
    add("--stills", action="store_true", help=words)
    words = "print the table of models and the citation instead; no page is made"
    add("--format", dest="form", choices=("md", "tex", "csv"), help=words)


def _report(options: argparse.Namespace) -> int:
    if options.form:
        from muse.report.citation import exported
        from muse.report.runs import read_run

        print(exported(read_run(options.folder), options.form))
        return OK
    given = {"companions": options.companions, "shared_script": options.shared_script, "stills": options.stills}
    return render(options.folder, options.language, **given)


def _add_check_pages(commands: Commands) -> None:
    add = _add(
        commands, "check-pages", _check_pages,
        "look at the pages of finished runs as a reader would, in a headless browser where there is one",
        description="Check the pages of runs: nothing remote, nothing lost, nothing cut on paper.",
        epilog=f"exit codes: {OK} no problem, {CRITERION_FAILED} a problem, {BAD_PARAMETERS} bad parameters",
    )  # fmt: skip
    add("folders", **FOLDER, nargs="+", help="a run's folder: reports/quick; or that of runs, for their list")


def _check_pages(options: argparse.Namespace) -> int:
    from muse.report.check import check_folders
    from muse.report.run_list import is_run_list

    for folder in options.folders:
        if not (folder / "run.json").is_file() and not is_run_list(folder / "index.html"):
            raise ParamsError(f"{folder}: got no run.json, expected the folder of a run")
    return check_folders(options.folders)


def _add_list(commands: Commands) -> None:
    add = _add(
        commands, "list", _list, "list the runs of a folder, or the trainings of one",
        description="List runs (date, models, scale, text, verdict, end) or trainings (model, seed, tokens, loss).",
    )  # fmt: skip
    add("what", nargs="?", choices=("reports", "checkpoints"), default="reports", help="default: reports")
    add("folder", **FOLDER, nargs="?", help="where they lie (default: reports or checkpoints)")
    add("--html", action="store_true", help="write the list of runs as index.html of the folder")
    add("--language", choices=LANGUAGES, default="en", help="language of that page (default: en)")


def _list(options: argparse.Namespace) -> int:
    from muse.report import run_list, runs, tables

    folder, problems = options.folder or Path(options.what), []
    if options.what == "checkpoints":
        if options.html:
            raise ParamsError("--html: got checkpoints, expected reports: only runs have a page")
        table = run_list.checkpoints_table(runs.find_checkpoints(folder, problems.append))
    else:
        found = runs.find_runs(folder, problems.append)
        table = run_list.runs_table(found, folder)
    print(tables.written([table], "terminal"))
    for problem in problems:
        print(f"muse: {problem}", file=sys.stderr)
    if options.html:
        print(run_list.write_index(found, folder, options.language, problems).resolve().as_uri())
    return OK


def _add_compare(commands: Commands) -> None:
    add = _add(
        commands, "compare", _compare, "compare runs: settings, code, and paired differences of what can be compared",
        description="Compare finished runs with one of them. A number counts as another one only where both were "
        "measured in the same way; models that are not shown to differ are one group.",
    )  # fmt: skip
    add("folders", **FOLDER, nargs="+", help="two or more folders of runs")
    add("--baseline", **FOLDER, help="the run that the others are compared with (default: the first)")
    add("--out", type=Path, metavar="FOLDER|FILE", help="write a page there: FILE.html or FOLDER/compare.html")
    add("--format", dest="form", choices=("md", "tex", "csv", "json"), help="print every number in this form")
    add("--language", choices=LANGUAGES, default="en", help="language of the page (default: en)")


def _compare(options: argparse.Namespace) -> int:
    from muse.report import compare, compare_tables, tables
    from muse.report.runs import read_run

    base = options.baseline or options.folders[0]
    others = [folder for folder in options.folders if folder.resolve() != base.resolve()]
    others += [base] * (options.folders.count(base) - 1)  # a run beside itself is asked for on purpose
    found = compare.compare([read_run(folder) for folder in (base, *others)])
    if options.form == "json":
        print(json.dumps(asdict(found), indent=1, allow_nan=False, default=str))
    else:
        made = compare_tables.tables(found, shown="all" if options.form else "headlines")
        print(tables.written(made, options.form or "terminal"))
    if options.out:
        page = options.out if options.out.suffix == ".html" else options.out / "compare.html"
        compare_tables.page(found, page, options.language)
        print(page.resolve().as_uri(), file=sys.stderr if options.form else sys.stdout)
    return OK


def _add_init(commands: Commands) -> None:
    words = "copy the notebooks and params files into a folder, to change them"
    add = _add(commands, "init", _init, words, description=f"{words.capitalize()}; muse run --notebooks takes them.")
    add("folder", **FOLDER, help="where they go; nothing there is written over")


def _init(options: argparse.Namespace) -> int:
    with _given_by_the_user():
        copies = copy_workbook(options.folder)
    print(f"{one_line(str(options.folder))}: {len(copies)} files; run them from there with:")
    print("muse run params/quick.yaml --notebooks notebooks")
    return OK


def _schema(options: argparse.Namespace) -> int:
    from muse.records.store import schema

    print(json.dumps(schema(), indent=1))
    return OK


if __name__ == "__main__":
    sys.exit(main())
