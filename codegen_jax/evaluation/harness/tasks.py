"""Loads lm-evaluation-harness tasks by name, folder or file, and checks them before a model is loaded."""

import logging
import os
import random
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from codegen_jax.errors import UserError, require
from codegen_jax.evaluation.harness.model import options_of
from codegen_jax.fields import did_you_mean

log = logging.getLogger(__name__)

UNSAFE = (
    "runs the model's programs in this process, with your permissions and without a sandbox; use codegen-jax evaluate "
    "MODEL humaneval or mbpp, which use a sandbox, or allow it with --unsafe"
)


def load_tasks(
    names: Sequence[str], num_fewshot: int | None = None, seed: int | None = None, unsafe: bool = False
) -> dict[str, dict[str, Any]]:
    """Tasks as accepted by `lm_eval.evaluate`: {"tasks": {name: task}, "groups": ..., "group_map": ...}.

    Like lm_eval, sets the global random states of Python and NumPy, which tasks use.

    Args:
        names: lm_eval's tasks, groups or tags; YAML files; or folders, which stand for all tasks and groups in their
            YAML files.
        num_fewshot: examples per prompt, overriding the task's own number unless that is 0.
        seed: seed for the examples and for the tasks' own random choices; None: lm_eval's defaults.
        unsafe: also accept tasks that run the model's programs.

    Raises:
        UserError: if a name is unknown, a task can't be loaded or evaluated, or, without `unsafe`, a task runs
            programs.
    """
    require(bool(names), "tasks: must not be empty")
    random.seed(DEFAULT_RANDOM_SEED if seed is None else seed)
    np.random.seed(DEFAULT_OTHER_SEED if seed is None else seed)
    folders = {
        name: TaskManager(include_path=name, include_defaults=False)
        for name in names
        if os.path.isdir(name) and any(Path(name).glob("**/*.yaml"))
    }
    # reading all of lm_eval's tasks takes seconds, but a group may refer to some of them
    needs_lm_eval = any(folder.all_groups for folder in folders.values()) or any(
        name not in folders and not os.path.isfile(name) for name in names
    )
    manager = TaskManager(include_path=list(folders), include_defaults=needs_lm_eval)
    wanted = [found for name in names for found in (_tasks_of(name, folders[name]) if name in folders else [name])]
    for name in wanted:
        is_known = name in manager.task_index or os.path.isfile(name)
        hint = did_you_mean(name, manager.all_tasks) or "; give one of its tasks, or a folder of YAML files"
        require(is_known, f"tasks: {name}: not a task of lm_eval {version('lm_eval')}{hint}")
        for task, config in _configs(manager, name):
            require(unsafe or not config.get("unsafe_code"), f"tasks: {task}: {UNSAFE}")
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in dict.fromkeys(wanted):
        for kind, found in _load(manager, name).items():
            loaded[kind] |= found
    for name, task in loaded["tasks"].items():
        _check(name, task, unsafe)
        _set_examples(name, task, num_fewshot, DEFAULT_OTHER_SEED if seed is None else seed)
    return loaded


def _tasks_of(folder: str, manager: TaskManager) -> list[str]:
    """The names of a folder's tasks and groups; warns about YAML files that define neither."""
    names = [*manager.all_subtasks, *manager.all_groups]
    known = {manager.task_index[name].yaml_path for name in names}
    for path in sorted(Path(folder).glob("**/*.yaml")):
        if path not in known:
            log.warning(
                f"{path}: ignored; it defines no task of its own (invalid YAML, no task or group, or a repeated name)"
            )
    require(bool(names), f"tasks: {folder}: contains no YAML file with a task")
    for name in names:
        require(isinstance(name, str), f"tasks: {folder}: a task's name is {name!r}, which is not text; quote it")
    return names


def _configs(manager: TaskManager, name: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tasks behind a name, including those of a tag or group, with their raw YAML configs (nothing is executed)."""
    entry = manager.task_index.get(name)
    config = (entry and entry.cfg) or {}
    children = config.get("task")
    yield name, config
    for child in sorted(entry.tags) if entry and not config else children if isinstance(children, list) else ():
        if isinstance(child, dict):
            yield name, child
            child = child.get("task", child.get("group"))
        if isinstance(child, str) and child != name:
            require(child not in above, f"tasks: {child}: a group that contains itself, through {name}; fix its YAML")
            yield from _configs(manager, child, (*above, name))


def _load(manager: TaskManager, name: str) -> Any:
    try:
        found: Any = manager.load([name])
        empty = [task for task, loaded in found["tasks"].items() if not len(loaded.eval_docs)]
    except Exception as error:  # a task's YAML, functions and data may raise anything
        text = " ".join(str(error).split())
        remedy = (
            "paths are relative to the current folder, and data on the hub needs a network connection"
            if isinstance(error, OSError)
            else "fix its YAML or data"
        )
        raise UserError(f"tasks: {name}: can't be loaded ({type(error).__name__}: {text[:300]}); {remedy}") from error
    require(not empty, f"tasks: {', '.join(empty)}: the data contains no documents")
    return found


def _check(name: str, task: Any, unsafe: bool) -> None:
    require(unsafe or not getattr(task, "UNSAFE_CODE", False), f"tasks: {name}: {UNSAFE}")
    require(
        not getattr(task, "MULTIMODAL", False), f"tasks: {name}: needs images or audio, but the model reads only text"
    )
    if task.OUTPUT_TYPE == "generate_until" and task.get_config("generation_kwargs"):
        try:
            options_of(task.get_config("generation_kwargs"), "x")
        except UserError as error:
            raise UserError(f"tasks: {name}: {str(error).removeprefix('tasks: ')}") from error


def _set_examples(name: str, task: Any, num_fewshot: int | None, seed: int) -> None:
    """Set the number of examples as `lm_eval.simple_evaluate` does, and check that the task has that many."""
    own = task.get_config("num_fewshot")
    require(
        own is None or (isinstance(own, int) and own >= 0),
        f"tasks: {name}: num_fewshot: must be a non-negative whole number, got {own!r}; fix its YAML",
    )
    if num_fewshot is not None and own == 0:
        log.warning(f"{name}: keeps num_fewshot: 0 from its YAML")
    elif num_fewshot is not None or own is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    try:
        task.fewshot_context(next(iter(task.eval_docs)), num_fewshot=task.get_config("num_fewshot"))
    except (AssertionError, ValueError) as error:
        raise UserError(f"num_fewshot: {name}: can't build a prompt ({error}); use fewer examples") from error
    task.set_fewshot_seed(seed=seed)
