"""The engine of a sweep, Parsl, in a process of its own: calls come in and outcomes go out, as lines of JSON.

It leads a session of its own, so that Ctrl-C reaches the sweep alone. When its input ends, be it that the sweep is over
or that its process was killed, it cancels what it has asked for and ends what it has started.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from . import marked, task
from .settings import Executor

CALLS = {"train": task.train, "problems": task.problems}
FAILED_BLOCKS = 10
"""After so many jobs in turn that failed, the engine is given up."""

BEATS = {"local": (2, 10), "slurm": (15, 60), "kubernetes": (15, 60)}
"""Seconds between signs of life of a node, and after how many without one it is lost."""


def provider_of(executor: Executor) -> tuple[str, dict[str, object]]:
    """The name of the engine's provider, and its arguments."""
    init = "\n".join(executor.init) + "\n"
    sizes = {"init_blocks": 1, "min_blocks": 0, "max_blocks": executor.blocks, "worker_init": init}
    sizes |= {"nodes_per_block": executor.nodes}
    if executor.provider == "local":
        return "LocalProvider", sizes
    if executor.provider == "slurm":
        options = "\n".join(executor.options) + "\n" if executor.options else ""
        own = {"partition": executor.partition, "account": executor.account, "walltime": executor.walltime}
        own |= {"gpus_per_node": executor.gpus, "cores_per_node": executor.cores, "scheduler_options": options}
        return "SlurmProvider", sizes | own | {"exclusive": False}
    volumes = [tuple(claim) for claim in executor.claims]
    own = {"image": executor.image, "namespace": executor.namespace, "persistent_volumes": volumes}
    return "KubernetesProvider", sizes | own


def config_of(executor: Executor, folder: Path):
    """The engine's configuration; its files go to a folder."""
    import parsl
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
    from parsl.jobs.error_handlers import windowed_error_handler
    from parsl.launchers import SimpleLauncher, SrunLauncher

    name, arguments = provider_of(executor)
    if name == "SlurmProvider" and executor.nodes > 1:
        arguments["launcher"] = SrunLauncher()
    elif name == "LocalProvider":
        arguments["launcher"] = SimpleLauncher()
    python = executor.python or sys.executable
    module = "parsl.executors.high_throughput"
    beat, lost = BEATS[executor.provider]
    workers = parsl.HighThroughputExecutor(
        label="muse",
        provider=getattr(parsl.providers, name)(**arguments),
        address=executor.address or ("127.0.0.1" if executor.provider == "local" else None),
        max_workers_per_node=executor.workers,
        cores_per_worker=1e-6,  # `workers` says how many there are
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{python} -m {module}.process_worker_pool"),
        interchange_launch_cmd=[sys.executable, "-m", "muse.cluster.interchange"],
        heartbeat_period=beat,
        heartbeat_threshold=lost,
        block_error_handler=functools.partial(windowed_error_handler, threshold=FAILED_BLOCKS),
    )

    def cost(error: Exception, _: object) -> float:
        again = isinstance(error, WorkerLost | ManagerLost | task.RowInterruptedError)
        return 1 if again else executor.retries + 1

    return parsl.Config(
        executors=[workers], run_dir=str(folder), retries=executor.retries, retry_handler=cost, strategy="simple",
        strategy_period=1, max_idletime=10**6, usage_tracking=0, exit_mode="skip",
    )  # fmt: skip


def serve(calls: TextIO, outcomes: TextIO, executor: Executor, folder: Path) -> None:
    """Make every call that comes in, until the input ends, and write how each ended."""
    import parsl

    parsl.load(config_of(executor, folder))
    apps = {name: parsl.python_app(function) for name, function in CALLS.items()}
    writing = threading.Lock()

    def ended(number: int, future) -> None:
        error = future.exception()
        said = {"error": _one_line(error)} if error else {"value": future.result()}
        with writing, suppress(OSError, ValueError):
            print(json.dumps({"call": number} | said), file=outcomes, flush=True)

    for line in calls:
        call = json.loads(line)
        future = apps[call["name"]](**call["arguments"])
        future.add_done_callback(functools.partial(ended, call["call"]))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def stop() -> None:
    """Cancel the engine's jobs, as far as that can be done in a few seconds."""
    import parsl

    with suppress(Exception):
        for executor in parsl.dfk().executors.values():
            provider = getattr(executor, "provider", None)
            if provider is not None:
                provider.cancel(list(provider.resources))


def main() -> None:
    """Serve on standard input and output; what libraries print goes to the standard error, a log."""
    outcomes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(end(1)))
    about = json.loads(sys.stdin.readline())
    code = 0
    try:
        serve(sys.stdin, outcomes, Executor(**about["executor"]), Path(about["folder"]))
    except Exception as error:
        print(json.dumps({"failed": _one_line(error)}), file=outcomes, flush=True)
        code = 1
    os._exit(end(code))  # the engine's own way out waits for what was killed


def end(code: int) -> int:
    """Leave nothing behind but trainings that save their state; return the exit code."""
    stopping = threading.Thread(target=stop, daemon=True)
    stopping.start()
    stopping.join(5.0)
    mark = os.environ.get(marked.MARK)
    for process in marked.marked(mark) if mark else ():
        if not marked.trains(process):
            with suppress(Exception):
                process.kill()
    return code


if __name__ == "__main__":
    main()
