"""The executor file of a sweep: which engine gives the machines, how many workers each has, and what they need."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muse.host.lines import cut, near, one_line, shown
from muse.host.plain_yaml import TextError, parse, read_text
from muse.params import ParamsError

PROVIDERS = ("local", "slurm", "kubernetes")
Line = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\r\n\x00]*$")]
Number = Annotated[int, Field(ge=1, le=4096)]


class Executor(BaseModel):
    """An executor file; each key has one meaning, for every provider unless it is said."""

    model_config = ConfigDict(extra="forbid", strict=True)

    provider: Literal[PROVIDERS] = Field(description="what starts workers: processes here, sbatch, or pods")
    workers: Number = Field(1, description="trainings at once on a node")
    nodes: Number = Field(1, description="nodes that one job asks for")
    blocks: Number = Field(1, description="jobs at once, at most; one that ended is replaced while there is work")
    devices: list[Line] = Field(
        [], max_length=1024,
        description="what CUDA_VISIBLE_DEVICES says for each worker of a node in turn, such as 0 or a UUID, or 0,1 "
        "with --gpus-per-model 2; empty: what the worker finds",
    )  # fmt: skip
    init: list[Line] = Field([], max_length=100, description="lines of shell before workers start on a node")
    python: Line | None = Field(None, description="the Python of workers; null: that of this command")
    address: Line | None = Field(None, description="where workers reach this machine; null: they try what it has")
    retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="how often a training that lost its worker or its time is started again; it resumes"
    )
    walltime: Annotated[str, Field(pattern=r"^\d{1,4}:[0-5]\d:[0-5]\d$")] = Field(
        "01:00:00", description="slurm: time of a job, hours:minutes:seconds"
    )
    partition: Line | None = Field(None, description="slurm: its partition")
    account: Line | None = Field(None, description="slurm: its account")
    gpus: Number | None = Field(None, description="slurm: cards of a node that a job asks for")
    cores: Number | None = Field(None, description="slurm: cores of a node that a job asks for")
    options: list[Line] = Field([], max_length=100, description="slurm: further lines for sbatch, such as #SBATCH -q x")
    image: Line | None = Field(None, description="kubernetes: the image of pods, with muse and its extra cluster")
    namespace: Line = Field("default", description="kubernetes: the namespace of pods")
    claims: list[Annotated[list[Line], Field(min_length=2, max_length=2)]] = Field(
        [], max_length=100, description="kubernetes: volumes, each a claim and the folder where pods see it"
    )


OF_SLURM = ("walltime", "partition", "account", "gpus", "cores", "options")
OF_KUBERNETES = ("image", "namespace", "claims")


def load_executor(path: Path) -> Executor:
    """Read an executor file; ParamsError names the file, the key, what was got and what is expected."""
    where = cut(one_line(str(path)), 120)
    try:
        values = parse(read_text(path))
    except TextError as error:
        raise ParamsError(f"{where}: {error}; expected local or a YAML file of an executor") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{where}: got {type(values).__name__}, expected a mapping that names a provider")
    try:
        executor = Executor(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        raise ParamsError("\n".join(f"{where}: {_told(problem)}" for problem in error.errors()[:20])) from error
    others = {"slurm": OF_KUBERNETES, "kubernetes": OF_SLURM, "local": (*OF_SLURM, *OF_KUBERNETES)}
    lines = [
        f"{where}: {key}: got it with provider {executor.provider}, expected it with "
        f"{'slurm' if key in OF_SLURM else 'kubernetes'} alone"
        for key in values
        if key in others[executor.provider]
    ]
    if executor.provider == "kubernetes" and executor.image is None:
        lines.append(f"{where}: image: got nothing, expected the image of the pods")
    if lines:
        raise ParamsError("\n".join(lines))
    return executor


def _told(problem: dict) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        hint = near(key, Executor.model_fields) or f"expected one of {', '.join(Executor.model_fields)}"
        return f"unknown key {cut(one_line(key), 60)}: {hint}"
    if problem["type"] == "missing":
        return f"{key}: got nothing, expected {', '.join(PROVIDERS[:-1])} or {PROVIDERS[-1]}"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}: got {shown(problem['input'])} ({type(problem['input']).__name__}), expected {expected}"


def check_engine(path: Path, install: str) -> None:
    """Raise ParamsError, which says how to `install` it, where the engine of an executor file is missing."""
    if importlib.util.find_spec("parsl") is None:
        where = cut(one_line(str(path)), 120)
        raise ParamsError(f"--executor: got {where}, expected local, or the engine of such a file: {install}")
