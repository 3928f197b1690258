"""Where the passes of a preparation run: on this machine, on a Slurm cluster or on a Ray cluster, by datatrove."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from tqdm import tqdm

from codegen_jax.errors import UserError, require

EXECUTORS = ("local", "slurm", "ray")


class Pass(NamedTuple):
    """A pipeline over all documents, or over what the passes before left; passes run one after the other."""

    name: str
    steps: list[PipelineStep]
    tasks: int


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's executor without its narration of every task on stderr; an error comes back as an exception.

    Its processes end when this one does, however that ends. datatrove's own `run` counts tasks in a manager process,
    which outlives a SIGKILL, as does a worker in the middle of a task: it would go on writing beside the next launch.
    """

    def run(self) -> None:
        self.save_executor_as_json()
        first = self.local_rank_offset
        ranks = self.get_incomplete_ranks(range(first, first + self.local_tasks))
        if self.workers == 1:
            logger.disable("datatrove")
            try:
                pipeline = self.pipeline
                for rank in ranks:
                    self.pipeline = deepcopy(pipeline)  # its steps count documents
                    self._run_for_rank(rank)
            finally:
                logger.enable("datatrove")
        elif ranks:
            with multiprocessing.get_context(self.start_method).Pool(self.workers, _start_worker) as pool:
                for _ in pool.imap_unordered(self._run_for_rank, ranks):
                    pass


def _start_worker() -> None:
    logger.disable("datatrove")  # in a process of its own, where nothing is quiet yet
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker has one
    parent.join()
    os._exit(1)


def parse_options(words: list[str]) -> dict[str, Any]:
    """["time=10:00:00", "cpus_per_task=2"] as keyword arguments; a value that is JSON is read as such.

    Raises:
        UserError: for a word without "=".
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"executor_option: {word!r} must be NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def run_passes(passes: list[Pass], logs: str, executor: str, workers: int | None, options: dict[str, Any]) -> bool:
    """Run what is not yet done of each pass.

    Args:
        passes: in order.
        logs: folder for a folder of logs, statistics and completed tasks each.
        executor: one of `EXECUTORS`.
        workers: tasks at a time; None: 1 on this machine, no limit elsewhere.
        options: further arguments of datatrove's executor, such as Slurm's time and partition.

    Returns:
        Whether all is done; False: Slurm has it in its queue.

    Raises:
        UserError: for options that the executor does not take, or tasks that failed.
    """
    if executor == "slurm":
        require(
            shutil.which("sbatch") is not None, "executor: slurm: this machine has no sbatch; run it on a login node"
        )
    if executor == "ray":
        try:
            import ray
        except ImportError as error:
            raise UserError("executor: ray: needs pip install 'codegen_jax[ray]'") from error
        ray.init(ignore_reinit_error=True, log_to_driver=False)  # RAY_ADDRESS, a cluster on this machine, or a new one
    before: Any = None
    for number, (name, steps, tasks) in enumerate(passes):
        arguments: dict[str, Any] = {"tasks": tasks, "logging_dir": f"{logs}/{number}_{name}"}
        if executor == "slurm":
            arguments |= {"depends": before, "job_name": f"prepare_{name}"}
        job = _executor(executor, steps, workers, arguments | options)
        if executor != "slurm":
            with _progress(job, name):
                job.run()
            missing = job.get_incomplete_ranks(skip_completed=True)
            if missing:
                raise UserError(f"{name}: {len(missing)} of {tasks} tasks failed; see {logs}/{number}_{name}/logs")
        before = job
    if executor == "slurm":
        try:
            before.run()  # and those it depends on, before it
        except subprocess.CalledProcessError as error:
            raise UserError("executor: slurm: sbatch refused the job, for the reason that it gives above") from error
    return executor != "slurm"


def _executor(kind: str, steps: list[PipelineStep], workers: int | None, arguments: dict[str, Any]) -> Any:
    if kind == "local":
        executor, workers = QuietExecutor, min(workers or 1, arguments["tasks"])
    elif kind == "slurm":
        from datatrove.executor import SlurmPipelineExecutor as executor
    else:
        from datatrove.executor import RayPipelineExecutor as executor
    try:
        return executor(steps, workers=workers or -1, **arguments)
    except TypeError as error:
        raise UserError(f"executor_option: {error}") from error


@contextmanager
def _progress(job: PipelineExecutor, name: str) -> Iterator[None]:
    """A bar of a pass's tasks, drawn by a thread that counts the completed ones; only on a terminal."""
    bar = tqdm(total=job.world_size, desc=name, unit="task", disable=None)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            bar.update(job.world_size - len(job.get_incomplete_ranks(skip_completed=True)) - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
        bar.update(bar.total - bar.n)
    finally:
        done.set()
        bar.close()
