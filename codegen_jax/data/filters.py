"""Which documents are dropped for what they are: the paper's rules for code, and lines that no tokenizer can take."""

from functools import cached_property
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from codegen_jax.data.cut import PLACE, Cutter
from codegen_jax.data.tokenizer import load_tokenizer

# of the six languages of BigQuery
CODE_EXTENSIONS = (
    *(".c", ".h"),
    *(".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".h++"),
    ".go",
    ".java",
    *(".js", ".mjs", ".cjs", ".jsx"),
    ".py",
)
MOST_PIECE = 16_000_000  # characters; tokenizing takes about a hundred times that in bytes


class CodeFilter(BaseFilter):
    """The paper's rules for code (its section on the data sets).

    Dropped are documents of other file extensions (those without a path are kept), with an average line of 100
    characters or more, a line of more than 1000, or more than 90 % of the characters decimal or hexadecimal digits.
    Line ends do not count as characters of a line.
    """

    name = "code rules"

    def __init__(self, extensions: tuple[str, ...] = CODE_EXTENSIONS):
        super().__init__()
        self.extensions = extensions

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        path = doc.metadata["path"].lower()
        if path and not path.endswith(self.extensions):
            return False, "file extension"
        lengths = [len(line) for line in doc.text.splitlines()]
        if sum(lengths) >= 100 * len(lengths):
            return False, "average line of 100 characters or more"
        if max(lengths) > 1000:
            return False, "line of more than 1000 characters"
        encoded = doc.text.encode()
        digits = len(encoded) - len(encoded.translate(None, b"0123456789abcdefABCDEF"))
        if digits > 0.9 * len(doc.text):
            return False, "more than 90 % digits"
        return True


class LineFilter(BaseFilter):
    """Drops documents that a tokenizer would have to encode in pieces of more than 16 million characters.

    Args:
        tokenizer: its folder.
    """

    name = "encodable"

    def __init__(self, tokenizer: Path):
        super().__init__()
        self.folder = tokenizer

    @cached_property
    def cutter(self) -> Cutter:
        return Cutter(load_tokenizer(self.folder))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        longest = len(doc.text) if len(doc.text) <= MOST_PIECE else max(map(len, self.cutter.pieces(doc.text)))
        if longest <= MOST_PIECE:
            return True
        why = "that this tokenizer must encode as one" if PLACE.search(doc.text) else "without whitespace to cut at"
        return False, f"more than {MOST_PIECE:,} characters {why}"
