"""MBPP prompts for models. The CodeGen paper reports results but no prompt; these are the two in common use.

The zero-shot prompt is InCoder's (arXiv 2204.05999), which the BigCode harness uses for base models. The 3-shot prompt
is the MBPP authors' (Austin et al., arXiv 2108.07732); its examples are problems 2, 3 and 4.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from codegen_jax.data.shards import read_records
from codegen_jax.errors import require
from codegen_jax.evaluation.problems import Problem, mbpp

SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
EXAMPLES = ("2", "3", "4")
END_OF_CODE = "[DONE]"  # ends the code of an example, and so also a completion


def mbpp_for_models(path: str, split: str, shots: int) -> list[Problem]:
    """The problems of a split, with `model_prompt` set.

    Args:
        path: mbpp.jsonl; each line must have a `text` field.
        split: a key of SPLITS, which maps it to a range of task_ids.
        shots: number of examples in the prompt, 0 or 3.

    Raises:
        UserError: as for `mbpp`, or if the file lacks the problems of the split, their text, or the examples.
    """
    problems = {problem.task_id: problem for problem in mbpp(path) if int(problem.task_id) in SPLITS[split]}
    ids = SPLITS[split]
    require(
        bool(problems), f"split: {path} has none of the problems {ids.start} to {ids.stop - 1} of the {split} split"
    )
    records = {str(record["task_id"]): record for _, _, record in read_records(path) if not isinstance(record, str)}
    examples = EXAMPLES[:shots]
    for task_id in (*examples, *problems):
        require(task_id in records, f"shots: {path} lacks problem {task_id}, an example in the prompt")
        text = records[task_id].get("text")
        require(
            isinstance(text, str),
            f"{path}: problem {task_id} has no text; give the full MBPP, not the sanitized subset",
        )
    shown = "".join(_task(records[task_id]) + f"{records[task_id]['code']}\n{END_OF_CODE}\n\n" for task_id in examples)
    return [
        replace(problem, model_prompt=shown + _task(records[task_id]) if shots else _docstring(records[task_id]))
        for task_id, problem in problems.items()
    ]


def _docstring(record: Mapping[str, Any]) -> str:
    return f'"""\n{record["text"]}\n{record["test_list"][0]}\n"""\n'


def _task(record: Mapping[str, Any]) -> str:
    tests = "\n".join(record["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {record['text']} Your code should pass these "
        f"tests:\n\n{tests}\n[BEGIN]\n"
    )
