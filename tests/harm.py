"""Damage to checkpoints as caused by disks and networks."""

import json
from pathlib import Path

import numpy as np
import tensorstore


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def change_a_value(params: Path, name: str) -> None:
    """Flip the lowest bit of one value through TensorStore, so that its own checksums do not notice."""
    kvstore = {"driver": "ocdbt", "base": f"file://{params}/", "path": f"{name}/"}
    array = tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result()
    place = tuple(size // 2 for size in array.shape)
    value = np.asarray(array[place].read().result())
    bits = value.view(f"uint{8 * value.itemsize}")
    array[place].write((bits ^ 1).view(value.dtype)).result()


def forget_fingerprints(checkpoint: Path) -> None:
    """Make a checkpoint look as if an older version had written it."""
    file = checkpoint / "run/metadata"
    record = json.loads(file.read_text())
    assert record.pop("fingerprints")
    file.write_text(json.dumps(record))
