"""Filters that drop documents by content: the paper's rules for code, and long text that can't be split into chunks."""

from functools import cached_property
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from codegen_jax.data.cut import CANDIDATE, Cutter
from codegen_jax.data.tokenizer import load_tokenizer

# extensions of the six languages in the paper's BigQuery data set
CODE_EXTENSIONS = (
    *(".c", ".h"),
    *(".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".h++"),
    ".go",
    ".java",
    *(".js", ".mjs", ".cjs", ".jsx"),
    ".py",
)
MAX_CHUNK_LENGTH = 16_000_000  # characters; tokenizing needs about 100 bytes of memory per character


class CodeFilter(BaseFilter):
    """The paper's filtering rules for code (see its section on datasets).

    It drops documents with unlisted file extensions (documents without a path are kept), with an average line length of
    100 characters or more, with a line of more than 1,000 characters, or in which more than 90% of the characters are
    decimal or hexadecimal digits. Line endings do not count toward the length of a line.
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
            return False, "average line length of 100 characters or more"
        if max(lengths) > 1000:
            return False, "line of more than 1,000 characters"
        encoded = doc.text.encode()
        digits = len(encoded) - len(encoded.translate(None, b"0123456789abcdefABCDEF"))
        if digits > 0.9 * len(doc.text):
            return False, "more than 90% digits"
        return True


class ChunkFilter(BaseFilter):
    """Drops documents that would have to be encoded in chunks of more than 16 million characters.

    Args:
        tokenizer: the tokenizer's folder.
        whole: whether documents are encoded as a whole rather than in chunks.
    """

    name = "encodable"

    def __init__(self, tokenizer: Path, whole: bool = False):
        super().__init__()
        self.folder, self.whole = tokenizer, whole

    @cached_property
    def cutter(self) -> Cutter:
        return Cutter(load_tokenizer(self.folder))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        length = len(doc.text)
        if self.whole:
            return length <= MAX_CHUNK_LENGTH or (False, f"more than {MAX_CHUNK_LENGTH:,} characters")
        longest = length if length <= MAX_CHUNK_LENGTH else max(map(len, self.cutter.chunks(doc.text)))
        if longest <= MAX_CHUNK_LENGTH:
            return True
        reason = "that this tokenizer can't encode in chunks" if CANDIDATE.search(doc.text) else "without whitespace"
        return False, f"more than {MAX_CHUNK_LENGTH:,} characters {reason}"
