"""The `muse` command."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from muse.host.signals import Interruptions
from muse.runner.notebooks import find_notebooks, resolve_folders, stage_parameters
from muse.runner.run import BAD_PARAMETERS, INTERRUPTED, OK, STAGE_FAILED, default_out, render, run, run_info

from .catalog import LANGUAGES, REPORT, STAGE_NAMES
from .params import ParamsError, load_params

BENCH_KEYS = {"vocab_size", "d_model", "n_layers", "n_seq", "memory_batch_size", "seed", "device"}
"""Settings that decide what `muse bench` does, beside those that start with `throughput_` and `bench_`."""

EXIT_CODES = """\
exit codes:
  0    every stage ran
  1    with --gate: a criterion fails
  2    bad parameters; nothing was started
  3    with --gate: no criterion fails, but one was not measured
  4    a stage or the run itself failed (after a stage, the report is written all the same)
  130  interrupted (Ctrl-C or SIGTERM)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    try:
        with Interruptions(wait=False):
            return options.call(options, arguments)
    except ParamsError as error:
        print(f"muse: {error}", file=sys.stderr)
        return BAD_PARAMETERS
    except KeyboardInterrupt:
        print("muse: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # the reader of a pipe is gone, and so is the place for anything more
        return OK
    except Exception:
        traceback.print_exc()  # a bug or a broken machine; Python's own exit code 1 would speak of a criterion
        return STAGE_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="muse", description="Measure planar complex half-precision language models against real ones."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "run",
        help="run the notebooks of a params file and write a report",
        description="Run the stages of a params file as notebooks and write their records, pages and the report.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_settings(command)
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the report goes (default: reports/<profile>)"
    )
    command.add_argument("--gate", action="store_true", help="let the exit code tell whether every criterion passes")
    command.set_defaults(call=_run)

    command = commands.add_parser(
        "train",
        help="train the models of a params file, or go on where an interrupted training stopped",
        description="Train every model and seed of a params file. The same command resumes; finished ones are reused.",
    )
    _add_settings(command)
    command.add_argument(
        "--processes", type=int, metavar="N", help="train N at a time, over all visible CUDA devices (default: in turn)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write where finished trainings lie to FILE as well")
    command.set_defaults(call=_train)

    command = commands.add_parser(
        "export",
        help="write a trained model as a folder with config.json, model.safetensors and a model card",
        description="Write the model of a finished training as a folder that muse.from_pretrained reads.",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoints/<model>-s<seed>-<key>")
    command.add_argument("out", type=Path, metavar="OUT", help="the folder that gets the model")
    command.add_argument("--float32", action="store_true", help="as trained, not as served in float16 planes")
    command.set_defaults(call=_export)

    command = commands.add_parser(
        "eval",
        help="ask the lm-evaluation-harness about a saved model (extra: eval)",
        description="Run tasks of EleutherAI's lm-evaluation-harness on a saved model and print their results as JSON.",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="a folder that muse export wrote")
    command.add_argument(
        "--tokenizer", default="gpt2", metavar="FOLDER", help="gpt2 (from the hub, default) or a folder"
    )
    command.add_argument("--tasks", nargs="+", default=["muse_wikitext"], metavar="TASK", help="default: muse_wikitext")
    command.add_argument(
        "--corpus", metavar="FOLDER", help="the text of muse_wikitext: a folder with test.txt or parquet"
    )
    command.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task")
    command.add_argument("--batch-size", type=int, default=4, metavar="N", help="sequences at once (default: 4)")
    command.add_argument("--device", metavar="DEVICE", help="default: cuda where there is one, else cpu")
    command.set_defaults(call=_eval)

    command = commands.add_parser(
        "bench",
        help="race fast paths against naive ones and peers, each found equal first",
        description="Time forward, training step, head and complex stack: this package's paths, naive ones and peers, "
        "in turn. Each is timed only after it was found equal to a float64 reference. Writes FOLDER/bench.json.",
    )
    _add_settings(command, optional=True)
    command.add_argument("--out", type=Path, metavar="FOLDER", help="where bench.json goes (default: reports/bench)")
    command.set_defaults(call=_bench)

    command = commands.add_parser(
        "params",
        help="print the parameters of one stage's notebook, for plain papermill",
        description="Print the parameters of one stage as YAML: papermill notebooks/NN_STAGE.ipynb out.ipynb -f FILE",
    )
    _add_settings(command)
    command.add_argument(
        "stage", metavar="STAGE", choices=(*STAGE_NAMES, REPORT), help=", ".join((*STAGE_NAMES, REPORT))
    )
    command.add_argument("--out", type=Path, metavar="FOLDER", help="the run folder that gets the stage's record")
    command.set_defaults(call=_params)

    command = commands.add_parser(
        "report",
        help="make the pages of a finished run again, in another language or with other runs beside it",
        description="Make a run's pages again from its records, without measuring anything.",
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, such as reports/quick")
    command.add_argument("--language", choices=LANGUAGES, default="en", help="language of the pages (default: en)")
    command.add_argument(
        "--with",
        dest="companions",
        nargs="+",
        type=Path,
        default=[],
        metavar="OTHER",
        help="folders of runs that the report shows as companions, from now on",
    )
    command.add_argument(
        "--shared-script",
        action="store_true",
        help="let index.html load assets/figures.js as the stages' pages do: 2 MB less, but it must stay in its folder",
    )
    command.set_defaults(call=_report)

    command = commands.add_parser(
        "check-pages",
        help="look at the pages of finished runs as a reader would, in a headless browser where there is one",
        description="Check the pages of runs: nothing remote, nothing lost, nothing cut on paper.",
        epilog="exit codes: 0 no problem, 1 a problem, 2 bad parameters",
    )
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's folder: reports/quick")
    command.set_defaults(call=_check_pages)

    command = commands.add_parser("schema", help="print the JSON schema of report.json")
    command.set_defaults(call=_schema)
    return parser


def _add_settings(command: argparse.ArgumentParser, optional: bool = False) -> None:
    words = "a params file, such as params/quick.yaml" + (" (default: the published sizes)" if optional else "")
    command.add_argument("params", type=Path, metavar="PARAMS", help=words, nargs="?" if optional else None)
    command.add_argument(
        "-p",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one parameter, as often as needed; the value is YAML: -p seeds=[0,1]",
    )


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    settings = load_params(options.params, options.overrides)
    return run(settings, out=options.out, gate=options.gate, command=shlex.join(["muse", *arguments]))


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    settings = resolve_folders(load_params(options.params, options.overrides), Path.cwd())
    if not settings.train_tokens:
        raise ParamsError(f"{options.params}: train_tokens: got 0, expected the token budget of a training")
    if options.processes is not None and options.processes < 1:
        raise ParamsError(f"--processes: got {options.processes}, expected at least 1")
    from muse.data.hub import CorpusUnavailable
    from muse.stages.stage import Stage
    from muse.training.parallel import train_side_by_side, write_outcome
    from muse.training.trainer import DeadGradientError, NonFiniteLossError
    from muse.training.tuning import result_line

    stage = Stage("train", settings.model_dump() | {"record_dir": default_out(settings) / "records"})
    finished, failed = [], None
    try:
        if options.processes:
            print(f"corpus {stage.corpus.name}, {options.processes} at a time", flush=True)  # read and cached only once
            given = [str(options.params), *(part for override in options.overrides for part in ("-p", override))]
            well = train_side_by_side(settings, stage.compared, stage.device.type, given, options.processes)
            return OK if well else STAGE_FAILED
        for name in stage.compared:
            for result in stage.train(name).results:
                finished.append(result)
                print(result_line(result))
    except (NonFiniteLossError, DeadGradientError, CorpusUnavailable, ValueError) as error:
        print(f"muse: {error}", file=sys.stderr)
        failed = error
    if options.json:
        write_outcome(options.json, finished, diverged=isinstance(failed, NonFiniteLossError))
    return STAGE_FAILED if failed else OK


def _export(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from muse.models.pretrained import export_checkpoint

    try:
        model = export_checkpoint(options.checkpoint, options.out, float32=options.float32)
    except (OSError, ValueError) as error:
        print(f"muse: {error}", file=sys.stderr)
        return BAD_PARAMETERS
    num_parameters, dtype = sum(p.numel() for p in model.parameters()), next(model.parameters()).dtype
    print(
        f"{options.out}: {type(model).__name__}, {num_parameters:,} parameters in {str(dtype).removeprefix('torch.')}"
    )
    return OK


def _eval(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    try:
        from muse.harness.harness import MuseLM, evaluate
    except ModuleNotFoundError as error:
        print(f"muse: {error}; muse eval needs an extra: pip install 'muse-workbook[eval]'", file=sys.stderr)
        return BAD_PARAMETERS
    try:
        model = MuseLM(options.model, options.tokenizer, options.device, options.batch_size)
        found = evaluate(model, options.tasks, options.corpus, options.limit)
    except (OSError, ValueError) as error:
        print(f"muse: {error}", file=sys.stderr)
        return BAD_PARAMETERS
    print(json.dumps(found, indent=1, allow_nan=False))
    return OK


def _bench(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    settings = load_params(options.params, options.overrides)
    from muse.records.environment import utc_now
    from muse.records.schema import BenchRecord
    from muse.records.store import write_record
    from muse.report.plain import bench_tables
    from muse.stages import throughput
    from muse.stages.stage import Stage

    out = options.out or Path("reports", "bench")
    if out.exists() and not out.is_dir():
        raise ParamsError(f"--out: {out} is a file, expected a folder")
    info = run_info(settings, shlex.join(["muse", *arguments]))
    every = settings.model_dump()
    chosen = {key: every[key] for key in every if key in BENCH_KEYS or key.startswith(("throughput_", "bench_"))}
    stage = Stage("bench", chosen | {"record_dir": out})
    shown = 0

    def keep(so_far) -> None:
        """Write what there is and print the lines that are new."""
        nonlocal shown
        metrics = so_far.metrics()
        record = BenchRecord(run=info.model_copy(update={"finished_utc": utc_now()}), stage=stage.record(metrics))
        write_record(record, stage.record_path)
        lines = bench_tables(metrics)
        print("\n".join(lines[shown:]), flush=True)
        shown = len(lines)

    took = throughput.run_bench(stage, keep).seconds
    print(f"\ntook {took:.0f} s: {stage.record_path}")
    return OK


def _params(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import yaml  # the reader of papermill: what it writes, papermill reads back as the same values

    settings = resolve_folders(load_params(options.params, options.overrides), Path.cwd())
    notebook = next(n for n in find_notebooks([options.stage]) if n.stage == options.stage)
    out = options.out or default_out(settings)
    print(
        yaml.safe_dump(stage_parameters(settings, notebook, out / "records"), sort_keys=False, allow_unicode=True),
        end="",
    )
    return OK


def _report(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    return render(
        options.folder, options.language, companions=options.companions, shared_script=options.shared_script
    )


def _check_pages(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from muse.report.check import check_folders

    for folder in options.folders:
        if not (folder / "run.json").is_file():
            raise ParamsError(f"{folder}: got no run.json, expected the folder of a run")
    return check_folders(options.folders)


def _schema(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from muse.records.store import schema

    print(json.dumps(schema(), indent=1))
    return OK


if __name__ == "__main__":
    sys.exit(main())
