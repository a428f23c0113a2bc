"""The folder of a run to its report: records, verdicts, companions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from muse import catalog
from muse.catalog import REPORT, STAGE_NAMES
from muse.host.files import write_atomic
from muse.host.paths import shortened
from muse.params import ParamsError
from muse.records.criteria import judge, judge_beside, summarise
from muse.records.environment import utc_now
from muse.records.scale import in_words, reductions_of
from muse.records.schema import Judged, Report, RunInfo, StageRecord
from muse.records.store import RecordError, read_record

from .companions import Companion, check_names, in_bins, read_companion
from .texts import texts

COMPANIONS = "companions"
"""Where, in the folder of a run, the reports of its companions lie."""


def assemble(run_dir: str | Path, language: str = "en", *, without_run: bool = False) -> Report:
    """Return the report of a run folder, from its run.json and the records of its stages; reasons in `language`.

    A report that is kept without its records has them in its report.json. `without_run` lets records do that notebooks
    left by themselves, beside which there is no run.json.
    """
    run_dir = Path(run_dir)
    explored = without_run and not (run_dir / "run.json").exists()
    info = info_of_records(run_dir) if explored else read_record(RunInfo, run_dir / "run.json")
    records = []
    for stage in (*(name for name in STAGE_NAMES if name in info.params["stages"]), REPORT):
        try:
            records.append(stage_record(run_dir, stage))
        except RecordError as error:
            if stage != REPORT:
                records.append(failed_record(info.params, stage, info.started_utc, f"no valid record: {error}"))
    stages = [record for record in records if record.stage != REPORT or record.status != "ok"]
    judged = []
    for name in info.params.get("candidates", [catalog.REFERENCE]):
        skipped = bool(info.params.get("skip_phase2"))
        asked = {"candidate": name, "skipped_baseline": skipped}
        criteria, beside = (ask(stages, texts(language), **asked) for ask in (judge, judge_beside))
        summary = summarise(stages, criteria, candidate=name)
        judged.append(Judged(model=name, criteria=criteria, summary=summary, beside=beside))
    return Report.of(info, judged, stages)


def info_of_records(run_dir: Path) -> RunInfo:
    """Return what records without a run tell of it: their stages, models and settings, and when they were made.

    RecordError where there is none.
    """
    paths = [run_dir / "records" / f"{stage}.json" for stage in STAGE_NAMES]
    records = [read_record(StageRecord, path) for path in paths if path.exists()]
    if not records:
        raise RecordError(
            f"record_dir: got {shortened(str(run_dir / 'records'))}, which holds no records; run another notebook "
            "first, or name the records of a run, such as reports/quick/records after `make report`"
        )
    params = {key: value for record in records for key, value in record.params.items()}
    models = list(dict.fromkeys(name for record in records for name in record.params.get("models", ())))
    params |= {"stages": [record.stage for record in records], "candidates": catalog.usual_candidates(models)}
    return RunInfo(
        id=run_dir.name,
        profile=str(params.get("profile", "custom")),
        started_utc=min(record.started_utc for record in records),
        finished_utc=max(record.finished_utc for record in records),
        git_commit=None,
        git_dirty=None,
        versions={},
        hardware={},
        seeds=params.get("seeds", [params.get("seed", 0)]),
        command="",
        params=params | ({"models": models} if models else {}),
    )


def stage_record(run_dir: Path, stage: str) -> StageRecord:
    """Return the record of a stage, from `records/` or else from report.json; RecordError where there is none."""
    path, report = run_dir / "records" / f"{stage}.json", run_dir / "report.json"
    if stage != REPORT and not path.exists() and report.exists():
        for record in read_record(Report, report).stages:
            if record.stage == stage:
                return record
    return read_record(StageRecord, path)


def companions_of(run_dir: str | Path) -> list[Companion]:
    """Return the companions that a run's report shows, by name; ParamsError when one of them is broken."""
    return [read_companion(path, path.stem) for path in sorted(Path(run_dir, COMPANIONS).glob("*.json"))]


def add_companions(run_dir: Path, others: Sequence[Path]) -> None:
    """Copy the reports of other runs into a run's folder; ParamsError, with nothing copied, unless all can be.

    Each must be readable, and of a name that no other run has there.
    """
    check_names(others, run_dir)
    copies = {other: run_dir / COMPANIONS / f"{other.name}.json" for other in others}
    for other in others:
        read_companion(other / "report.json", other.name)
    companions_of(run_dir)
    for other, copy in copies.items():
        if copy.exists() and copy.read_text(encoding="utf-8") != _copied(other):
            raise ParamsError(
                f"--with: {other}: got a name that {copy} holds another report under; expected a folder of another "
                "name, or that file removed"
            )
    for other, copy in copies.items():
        write_atomic(copy, _copied(other))


def _copied(other: Path) -> str:
    """The report of a run as a companion: without indentation, losses by position as means over runs of positions."""
    report = json.loads((other / "report.json").read_text(encoding="utf-8"))
    for series in (series for stage in report["stages"] for series in stage["series"]):
        if series["name"] == "loss_by_position":
            series |= {axis: in_bins(series[axis]) for axis in ("x", "y")}
    return json.dumps(report, ensure_ascii=False, separators=(",", ":")) + "\n"


def failed_record(params: Mapping[str, object], stage: str, started: datetime, error: str) -> StageRecord:
    """Return the record of a stage that left none of its own."""
    smaller = reductions_of(params)
    return StageRecord(
        stage=stage,
        status="failed",
        error=error,
        started_utc=started,
        finished_utc=utc_now(),
        scale="reduced" if smaller else "published",
        reductions=smaller,
        scale_note=in_words(smaller, texts("en")),
        params=dict(params),
    )
