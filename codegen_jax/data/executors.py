"""Run the passes of a preparation through datatrove: on this machine, on a Slurm cluster or on a Ray cluster."""

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

from codegen_jax.errors import UserError, require
from codegen_jax.progress import Progress

EXECUTORS = ("local", "slurm", "ray")


class Pass(NamedTuple):
    """A pipeline over all documents, or over the output of earlier passes. Passes run one after the other.

    Attributes:
        name: part of its folder's name.
        title: what it does, for the progress bar.
        steps: the pipeline.
        tasks: number of tasks.
        sizes: bytes that each task reads, which weight its progress; None gives all tasks the same weight.
    """

    name: str
    title: str
    steps: list[PipelineStep]
    tasks: int
    sizes: list[int] | None = None


_fractions: Any = None  # how much of each local task is done; shared by its worker processes


def note_progress(rank: int, fraction: float) -> None:
    """Report how much of a task is done, for the progress bar of a pass that runs on this machine."""
    if _fractions is not None:
        _fractions[rank] = fraction


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor without its per-task logging on stderr; errors propagate as exceptions.

    Its worker processes always exit with this process. datatrove's own `run` counts tasks in a manager process, which
    survives a SIGKILL of its parent. A worker in the middle of a task survives, too, and would keep writing to the
    same folder as a resumed preparation.
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
                    self.pipeline = deepcopy(pipeline)  # its steps keep document counts
                    self._run_for_rank(rank)
            finally:
                logger.enable("datatrove")
        elif ranks:
            context = multiprocessing.get_context(self.start_method)
            with context.Pool(self.workers, _start_worker, (_fractions,)) as pool:
                for _ in pool.imap_unordered(self._run_for_rank, ranks):
                    pass

    def _run_for_rank(self, rank: int, *arguments: Any, **keywords: Any) -> Any:
        found = super()._run_for_rank(rank, *arguments, **keywords)
        note_progress(rank, 1)
        return found


def _start_worker(fractions: Any) -> None:
    global _fractions
    _fractions = fractions
    logger.disable("datatrove")  # a new process starts with logging enabled
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # true in every worker
    parent.join()
    os._exit(1)


def parse_options(assignments: list[str]) -> dict[str, Any]:
    """Parse options such as ["time=10:00:00", "cpus_per_task=2"] into keyword arguments. JSON values are decoded.

    Raises:
        UserError: if an option has no "=".
    """
    options = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UserError(f"executor_option: must be NAME=VALUE, got {assignment!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def run_passes(passes: list[Pass], logs: str, executor: str, workers: int | None, options: dict[str, Any]) -> bool:
    """Run the unfinished tasks of each pass.

    Args:
        passes: the passes, in order.
        logs: folder that gets one subfolder per pass for logs, statistics and completed tasks.
        executor: one of `EXECUTORS`.
        workers: number of parallel tasks; None means 1 on this machine and no limit elsewhere.
        options: further arguments for datatrove's executor, such as Slurm's time and partition.

    Returns:
        True if everything is done, False if the passes were submitted to Slurm.

    Raises:
        UserError: if the executor does not accept an option, or tasks failed.
    """
    if executor == "slurm":
        require(
            shutil.which("sbatch") is not None,
            "executor: slurm: sbatch was not found; run the command on a login node of the cluster",
        )
    if executor == "ray":
        try:
            import ray
        except ImportError as error:
            raise UserError("executor: ray: ray is not installed; pip install 'codegen_jax[ray]'") from error
        ray.init(ignore_reinit_error=True, log_to_driver=False)  # joins RAY_ADDRESS or a local cluster, else starts one
    previous: Any = None
    for number, one in enumerate(passes):
        name, tasks = one.name, one.tasks
        arguments: dict[str, Any] = {"tasks": tasks, "logging_dir": f"{logs}/{number}_{name}"}
        if executor == "slurm":
            arguments |= {"depends": previous, "job_name": f"prepare_{name}"}
        job = _executor(executor, one.steps, workers, arguments | options)
        if executor != "slurm":
            with _progress(job, f"{one.title} ({number + 1}/{len(passes)})", one.sizes):
                job.run()
            missing = job.get_incomplete_ranks(skip_completed=True)
            if missing:
                raise UserError(f"{name}: {len(missing)} of {tasks} tasks failed; see {logs}/{number}_{name}/logs")
        previous = job
    if executor == "slurm":
        try:
            previous.run()  # also submits the jobs it depends on
        except subprocess.CalledProcessError as error:
            raise UserError("executor: slurm: sbatch rejected the job; see its message above") from error
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
def _progress(job: PipelineExecutor, title: str, sizes: list[int] | None) -> Iterator[None]:
    """Show the progress of a pass: bytes read if it runs on this machine, else completed tasks; a thread updates it."""
    global _fractions
    tasks = range(job.world_size)
    incomplete = lambda: set(job.get_incomplete_ranks(skip_completed=True))
    left = incomplete()
    is_local = isinstance(job, QuietExecutor)
    if is_local:
        shared = multiprocessing.get_context(job.start_method).RawArray("d", len(tasks))
        shared[:] = [float(rank not in left) for rank in tasks]
        _fractions = shared
    weights, unit = (sizes, "B") if sizes and len(sizes) == len(tasks) else ([1] * len(tasks), "task")

    def measure() -> int:
        if is_local:
            return int(sum(weight * min(1, fraction) for weight, fraction in zip(weights, _fractions)))
        left = incomplete()
        return sum(weights[rank] for rank in tasks if rank not in left)

    ended = threading.Event()
    with Progress(title, sum(weights), unit, initial=measure()) as progress:

        def watch() -> None:
            while not ended.wait(1 if is_local else 5):
                progress.move_to(measure())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
            progress.move_to(measure())
        finally:
            ended.set()
            thread.join()
            _fractions = None
