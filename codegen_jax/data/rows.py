"""A row of a batch as int32 [sequence_length + 1]: ids, which of them are trained, and where documents start.

Bit 30 of a value is set where a document starts. All bits are inverted where a token is not a target of the loss, so
-1 is padding: token 0, not trained. The functions accept NumPy and JAX arrays. Rows of plain text are just ids, unless
documents are masked.
"""

from typing import Any

import numpy as np

START = 1 << 30
PADDING = -1


def make_row(ids: np.ndarray, trained: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Combine ids and two boolean arrays of the same length.

    >>> row = make_row(np.array([7, 8, 9]), np.array([False, False, True]), np.array([True, False, False]))
    >>> ids_of(row).tolist(), targets_of(row).tolist(), starts_of(row).tolist()
    ([7, 8, 9], [-1, -1, 9], [True, False, False])
    """
    values = ids.astype(np.int32) | np.where(starts, START, 0).astype(np.int32)
    return np.where(trained, values, ~values)


def ids_of(row: Any) -> Any:
    """The ids, int32; 0 for padding."""
    return (row ^ (row >> 31)) & (START - 1)


def targets_of(row: Any) -> Any:
    """The ids of trained tokens and -1 elsewhere, int32."""
    return (row & (START - 1)) | (row >> 31)


def starts_of(row: Any) -> Any:
    """Whether a document starts at the token, bool."""
    return (row ^ (row >> 31)) >= START
