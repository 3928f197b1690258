"""Build reports in ASCII Markdown."""

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. All columns but the first contain numbers and are right-aligned.

    >>> print(table(["k", "pass@k"], [["1", "12%"]]))
    | k | pass@k |
    | --- | ---: |
    | 1 | 12% |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]  # a task_id may contain a |
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def fenced(text: str, language: str) -> str:
    """A fenced code block; the fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, _longest_fence(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def span(text: str) -> str:
    """Inline code, even if the text contains backticks.

    >>> print(span("a"), span("a `b"))
    `a` `` a `b ``
    """
    longest = _longest_fence(text)
    return f"`{text}`" if not longest else f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"


def _longest_fence(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def page(paragraphs: Iterable[str]) -> str:
    """A whole page. Model output can contain anything, so non-ASCII and control characters are escaped."""
    return re.sub(r"[^\n\t -~]", lambda character: ascii(character[0])[1:-1], "\n\n".join(paragraphs)) + "\n"
