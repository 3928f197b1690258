"""The process of the tests: runs them, and sends their calls to the program's process in the other sandbox."""

import ast
import builtins
import json
import os
import random
import types
from contextlib import suppress

from frames import LINK, REPORT_PIPE, receive, send
from program import describe, system_number
from values import Handle, decode, encode


class Remote(BaseException):
    """Stands for a BaseException raised by a program, such as SystemExit; `except Exception` does not catch it."""


def run(task):
    """Run the task's tests, and report the result."""
    source, end = LINK

    def answer_to(request=None, args=()):
        """The program's answer. If missing or invalid, this process reports that and ends; the tests see no error."""
        try:
            if request:
                send(end, request)
            answer = receive(source)
            if "raised" in answer:
                return {"raised": checked_error(answer["raised"])}
            if "ready" in answer or "missing" in answer:
                return answer
            value = decode(answer["value"], find_handle)
            for index, after in answer["changed"].items():
                overwrite(args[int(index)], decode(after, find_handle))
            return {"value": value}
        except (EOFError, BrokenPipeError):
            report({"gone": True})
        except BaseException:
            report({"invalid": True})

    def ask(operation, target=None, args=(), kwargs=None):
        find = lambda value: value._number
        kwargs = {name: encode(value, find) for name, value in (kwargs or {}).items()}
        encoded = [encode(arg, find) for arg in args]
        answer = answer_to({"operation": operation, "target": target, "args": encoded, "kwargs": kwargs}, args)
        if "raised" in answer:
            raise exception_from(answer["raised"])
        if "missing" in answer:
            raise KeyError
        return answer["value"]

    def find_handle(number):
        return Handle(ask, number)

    namespace = {}
    try:
        random.seed(0)
        prompt, tests = task["prompt"], compile(task["tests"], "<tests>", "exec")
        # the prompt's functions come from the prompt, not the program; it may end inside a function or statement
        for text in (prompt, prompt + "\n    pass\n"):
            with suppress(Exception):
                exec(compile(text, "<prompt>", "exec"), namespace)
                break
        for name in task["entry_points"]:
            namespace.pop(name, None)
        # if the tests use a module that the reference or setup imports, such as math, they get the real one
        exec(compile(imports_of(task["reference"], names_of(tests)), "<reference>", "exec"), namespace)
        started = answer_to()
        if "raised" in started:
            report({"raised": started["raised"]})
        for name in names_of(tests):
            # some MBPP problems ask for a function with a builtin's name, such as `sum`
            if name not in namespace and (name in task["entry_points"] or not hasattr(builtins, name)):
                with suppress(KeyError):
                    namespace[name] = ask("name", args=(name,))
        exec(tests, namespace)
    except BaseException as error:
        # an error forwarded from the program, or one of the tests themselves, such as a failed assertion
        raised = getattr(error, "raised", None)
        report({"raised": raised} if raised else {"failed": describe(error)})
    report({"passed": True})


def report(verdict):
    """Report the verdict of the tests, and end this process."""
    os.write(REPORT_PIPE, json.dumps(verdict).encode())
    os._exit(0)


def imports_of(reference, names):
    """The top-level imports of a program that bind any of these names."""
    imports = []
    for node in ast.parse(reference).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in names]
            imports += [node] if node.names else []
    return ast.Module(imports, [])


def names_of(code):
    """The names that a code object and its nested code objects may read from their globals."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(names_of(constant))
    return sorted(names)


def checked_error(raised):
    """An error reported by the program, with text of bounded length."""
    texts = {name: str(raised[name])[:500] for name in ("kind", "type", "text")}
    # the report is read only after this process has ended, so it must fit in a pipe
    return texts | {"errno": system_number(raised["errno"])}


def exception_from(raised):
    """The exception to raise in the tests for one raised by the program."""
    kind, error = getattr(builtins, raised["kind"], None), Remote(raised["text"])
    if isinstance(kind, type) and issubclass(kind, Exception):
        for base in kind.__mro__:
            with suppress(TypeError):  # the type requires other arguments: use its base instead
                error = base(raised["text"])
                break
    setattr(error, "raised", raised)  # noqa: B010
    return error


def overwrite(arg, after):
    if isinstance(arg, list | bytearray):
        arg[:] = after
    elif isinstance(arg, dict | set):
        arg.clear()
        arg.update(after)
