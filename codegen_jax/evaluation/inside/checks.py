"""The process of tests: run them, and ask the program's process for what they call."""

import ast
import builtins
import random
import types
from contextlib import suppress

from frames import receive, send
from program import describe
from values import Handle, decode, encode


class Remote(Exception):
    """What a program raised that tests can't catch by a builtin type."""


def run(task, pipe):
    source, end = pipe

    def ask(what, of=None, args=(), kwargs=None):
        find = lambda value: value._number
        kwargs = {name: encode(value, find) for name, value in (kwargs or {}).items()}
        send(end, {"ask": {"what": what, "of": of, "args": [encode(arg, find) for arg in args], "kwargs": kwargs}})
        reply = receive(source)
        if "raised" in reply:
            raise made(reply["raised"])
        if "missing" in reply:
            raise KeyError
        for place, after in reply.get("changed", {}).items():
            overwrite(args[int(place)], decode(after, find_handle))
        return decode(reply["value"], find_handle)

    def find_handle(number):
        return Handle(ask, number)

    namespace = {}
    try:
        random.seed(0)
        prompt, tests = task["prompt"], compile(task["tests"], "<tests>", "exec")
        if prompt:  # the functions that a prompt brings are its own, whatever the program says
            exec(compile(prompt + "\n    pass\n", "<prompt>", "exec"), namespace)
        for name in task["entry_points"]:
            namespace.pop(name, None)
        # a module that tests use by the reference's import, such as math, is the real one, not the program's
        exec(compile(imports_of(task["reference"], names_of(tests)), "<reference>", "exec"), namespace)
        for name in names_of(tests):
            if name not in namespace and not hasattr(builtins, name):
                with suppress(KeyError):
                    namespace[name] = ask("name", args=(name,))
        exec(tests, namespace)
    except BaseException as error:
        # an error of the program, passed on, or one of the tests themselves, such as an assertion's
        raised = getattr(error, "raised", None)
        send(end, {"raised": raised} if raised else {"failed": describe(error)})
        return
    send(end, {"passed": True})


def imports_of(reference, names):
    """The imports at the top of a program that bind one of these names."""
    imports = []
    for node in ast.parse(reference).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in names]
            imports += [node] if node.names else []
    return ast.Module(imports, [])


def names_of(code):
    """The names that a code object and those in it may take from their globals."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(names_of(constant))
    return sorted(names)


def made(raised):
    kind = getattr(builtins, raised["kind"], None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(raised["text"])
        except Exception:  # a type that wants other arguments
            error = Remote(raised["text"])
    else:
        error = Remote(raised["text"])
    setattr(error, "raised", raised)  # noqa: B010
    return error


def overwrite(arg, after):
    if isinstance(arg, list | bytearray):
        arg[:] = after
    elif isinstance(arg, dict | set):
        arg.clear()
        arg.update(after)
