"""Rows made of whole examples: one per row, or as many as fit, which do not see each other."""

from bisect import bisect_left, insort

import numpy as np

from codegen_jax.data.rows import PADDING, make_row
from codegen_jax.data.tokens import Span, TokenFiles
from codegen_jax.errors import UserError


class Examples:
    """Random access to rows of sequence_length + 1 tokens that hold whole examples, padded on the right.

    Which examples share a row depends on their lengths alone; packed rows are in random order, since packing takes the
    longest examples first and validation may take only the first rows. The same interface as `Windows`.

    Args:
        files: token files with masks.
        sequence_length: tokens trained on per row.
        packed: whether to fill rows with several examples.

    Raises:
        UserError: if an example is longer than a row.
    """

    def __init__(self, files: TokenFiles, sequence_length: int, packed: bool):
        self.files, self.sequence_length = files, sequence_length
        ends = [np.asarray(files.ends(file), np.int64) for file in range(len(files.arrays))]
        self.stops = np.concatenate(ends)
        self.starts = np.concatenate([np.concatenate([[0], each[:-1]]) for each in ends])
        self.file_of = np.repeat(np.arange(len(ends)), [len(each) for each in ends])
        lengths = self.stops - self.starts
        if lengths.max() > sequence_length + 1:
            raise UserError(
                f"{files.folder}: has examples of up to {lengths.max()} tokens, but a row has "
                f"data.sequence_length + 1 = {sequence_length + 1}; run codegen-jax prepare again with "
                f"--sequence-length {sequence_length}, or raise data.sequence_length"
            )
        row_of = np.arange(len(lengths))
        if packed:
            row_of = best_fit(lengths, sequence_length + 1)
            row_of = np.random.default_rng(0).permutation(row_of.max() + 1)[row_of]
        self.examples = np.argsort(row_of, kind="stable")
        self.first = np.searchsorted(row_of[self.examples], np.arange(row_of.max() + 2))

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Row `index`, int32 [sequence_length + 1], as in rows.py."""
        row = np.full(self.sequence_length + 1, PADDING, np.int32)
        filled = 0
        for file, start, stop in self.spans(index):
            ids, trained = self.files.arrays[file][start:stop], self.files.masks[file][start:stop]
            starts = np.arange(stop - start) == 0
            row[filled : filled + stop - start] = make_row(np.asarray(ids), np.asarray(trained), starts)
            filled += stop - start
        return row

    def spans(self, index: int) -> list[Span]:
        """The location of each example of a row."""
        examples = self.examples[self.first[index] : self.first[index + 1]]
        return [Span(int(self.file_of[e]), int(self.starts[e]), int(self.stops[e])) for e in examples]


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each item when items, longest first, go to the row with the least space that still fits them.

    >>> best_fit(np.array([3, 5, 2, 4]), 8).tolist()
    [0, 0, 1, 1]
    """
    rows = np.empty(len(lengths), np.int64)
    with_space: dict[int, list[int]] = {}  # rows by the space they have left
    spaces: list[int] = []  # the keys, sorted
    count = 0
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect_left(spaces, length)
        if place == len(spaces):
            row, space, count = count, capacity, count + 1
        else:
            space = spaces[place]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[place]
        rows[item] = row
        if (rest := space - length) > 0:
            if rest not in with_space:
                with_space[rest] = []
                insort(spaces, rest)
            with_space[rest].append(row)
    return rows
