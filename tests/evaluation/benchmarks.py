"""An MBPP file in the format of mbpp.jsonl with many kinds of problems, and a judge for trusted programs."""

import json
from pathlib import Path

from codegen_jax.evaluation.verdicts import Verdict

TREE = """class Node:
    def __init__(self, data):
        self.data = data
        self.left = None
        self.right = None
def get_height(root):
    if root is None:
        return 0
    return max(get_height(root.left), get_height(root.right)) + 1
"""

# task_id, code, test_setup_code, test_list
PROBLEMS = (
    (
        367,
        TREE + "def is_tree_balanced(root):\n"
        "    if root is None:\n        return True\n"
        "    return abs(get_height(root.left) - get_height(root.right)) <= 1 and is_tree_balanced(root.left) "
        "and is_tree_balanced(root.right)",
        "root = Node(1) \nroot.left = Node(2) \nroot.left.left = Node(4) \nroot.left.left.left = Node(8) \n"
        "root1 = Node(1) \nroot1.left = Node(2) \nroot1.right = Node(3) \n",
        ["assert is_tree_balanced(root) == False", "assert is_tree_balanced(root1) == True"],
    ),
    (
        927,
        TREE.replace("get_height", "max_height"),
        "root = Node(1) \nroot.left = Node(2) \nroot.right = Node(3) \nroot.left.left = Node(4) \n",
        ["assert (max_height(root)) == 3"],
    ),
    (
        601,  # CRLF, as in the real file, and a class that the assertions instantiate
        "class Pair(object): \r\n\tdef __init__(self, a, b): \r\n\t\tself.a = a \r\n\t\tself.b = b \r\n"
        "def max_chain_length(arr, n): \r\n\tends = -1\r\n\tcount = 0\r\n"
        "\tfor pair in sorted(arr[:n], key=lambda pair: pair.b): \r\n"
        "\t\tif pair.a > ends: \r\n\t\t\tcount, ends = count + 1, pair.b\r\n\treturn count",
        "",
        [
            "assert max_chain_length([Pair(5, 24), Pair(15, 25),Pair(27, 40), Pair(50, 60)], 4) == 3",
            "assert max_chain_length([Pair(1, 2), Pair(3, 4)], 2) == 2",
        ],
    ),
    (
        2,
        "def similar_elements(a, b):\n  return tuple(set(a) & set(b))",
        "",
        ["assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))"],
    ),
    (
        82,
        "import math\ndef volume_sphere(r):\n  return (4/3)*math.pi*r*r*r",
        "",
        ["assert math.isclose(volume_sphere(10), 4188.790204786391, rel_tol=0.001)"],
    ),
    (
        312,
        "def volume_cone(r,h):\n  return (1.0/3) * 3.141592653589793 * r * r * h",
        "import math",
        ["assert math.isclose(volume_cone(5,12), 314.15926535897927, rel_tol=0.001)"],
    ),
    (
        16,
        "import re\ndef text_match(text):\n  return 'Found' if re.search('^\\d+_[a-z]+$', text) else None",
        "",
        ['assert text_match("12_cbb")==\'Found\'', 'assert text_match("aab_Cbbb") is None'],
    ),
    (
        88,
        "import collections\ndef freq_count(list1):\n  return collections.Counter(list1)",
        "",
        ["assert freq_count([10,10,20])==({10: 2, 20: 1})"],
    ),
    (
        500,
        "from itertools import groupby\ndef pack(list1):\n  return [list(group) for key, group in groupby(list1)]",
        "",
        ["assert pack([0,0,1,(2,)])==[[0, 0], [1], [(2,)]]"],
    ),
    (
        501,
        "def checked(n):\n  if n < 0:\n    raise ValueError('negative')\n  return n ** 0.5",
        "",
        ["try:\n    checked(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'negative'"],
    ),
    (
        502,
        "LIMIT = 3\ndef numbers(n):\n  yield from range(min(n, LIMIT))\nthird = lambda items: items[2]",
        "",
        ["assert list(numbers(9)) == list(range(LIMIT))", "assert third('abc') == 'c' and third((1, 2, (3,))) == (3,)"],
    ),
    (
        503,
        "def describe(x):\n  values = {True: 'b', 1.5: b'f', None: frozenset({1}), ('t',): 10**30, 'c': 1j}\n"
        "  return values.get(x, '\\u00e9')",
        "",
        ["assert [describe(x) for x in (True, 1.5, None, ('t',), 'c', 7)] == "
         "['b', b'f', {1}, 10**30, 1j, '\\u00e9']"],
    ),
)  # fmt: skip


def lines() -> list[dict]:
    return [
        {
            "text": "Write a function.",
            "code": code,
            "task_id": task_id,
            "test_setup_code": setup,
            "test_list": tests,
            "challenge_test_list": [],
        }
        for task_id, code, setup, tests in PROBLEMS
    ]


def write_lines(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def judge_here(problems, programs):
    """Run programs in this process, in one namespace with their tests."""
    for number, task_id, program in programs:
        problem, outcome, message = problems[task_id], "passed", ""
        try:
            exec("\n\n".join((program, problem.setup, problem.tests)), {})
        except AssertionError as error:
            outcome, message = "failed", f"AssertionError: {error}"
        except Exception as error:
            outcome, message = "exception", f"{type(error).__name__}: {error}"
        yield number, Verdict(outcome, message, 0.01, 0.02)
