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
from tqdm import tqdm

from codegen_jax.errors import UserError, require

EXECUTORS = ("local", "slurm", "ray")


class Pass(NamedTuple):
    """A pipeline over all documents, or over the output of earlier passes. Passes run one after the other."""

    name: str
    steps: list[PipelineStep]
    tasks: int


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor without its per-task logging on stderr; errors propagate as exceptions.

    Its worker processes always exit with this process. datatrove's own `run` counts tasks in a manager process, which
    survives a SIGKILL of its parent. So does one of its workers in the middle of a task, which would keep writing to
    the same folder as a resumed preparation.
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
            with multiprocessing.get_context(self.start_method).Pool(self.workers, _start_worker) as pool:
                for _ in pool.imap_unordered(self._run_for_rank, ranks):
                    pass


def _start_worker() -> None:
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
        ray.init(ignore_reinit_error=True, log_to_driver=False)  # RAY_ADDRESS, else a local cluster, else a new one
    previous: Any = None
    for number, (name, steps, tasks) in enumerate(passes):
        arguments: dict[str, Any] = {"tasks": tasks, "logging_dir": f"{logs}/{number}_{name}"}
        if executor == "slurm":
            arguments |= {"depends": previous, "job_name": f"prepare_{name}"}
        job = _executor(executor, steps, workers, arguments | options)
        if executor != "slurm":
            with _progress(job, name):
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
def _progress(job: PipelineExecutor, name: str) -> Iterator[None]:
    """Show a progress bar for the tasks of a pass, updated by a thread; only on a terminal."""
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
