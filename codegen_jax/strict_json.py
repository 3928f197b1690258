"""JSON that every parser can read: NaN and Infinity, which Python's json writes by default, become null."""

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Encode a value of dicts, lists, tuples and plain values as JSON, with null for each non-finite number."""
    return json.dumps(_with_null(value), indent=indent, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Decode JSON; NaN and Infinity, which older versions wrote, become None, like null."""
    return json.loads(text, parse_constant=lambda _: None)


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
