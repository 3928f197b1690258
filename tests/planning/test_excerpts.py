"""The loops over layers of compiled programs cost what their matrices do: ours, and MaxText's of the same shape.

Both are steps of 16B on v4-512 at the paper's batch (see excerpts.py).
"""

from pathlib import Path

import pytest

from codegen_jax.planning.hlo import Module
from codegen_jax.planning.links import Links
from codegen_jax.planning.schedule import operations
from codegen_jax.planning.slices import parse_slice

WIDTH = 6144
MATRICES = 12 * WIDTH**2  # of a layer: four of attention, and two of four widths in the MLP
V4_512 = parse_slice("v4-512")


def loops(file):
    """The operations of one iteration of the loops over layers, forward and backward."""
    module = Module((Path(__file__).parent / file).read_text())
    called = {i.called("calls") for computation in module.computations.values() for i in computation.values()}
    # fsdp has whole planes of the torus, so the order of the chips on the axes does not matter
    x, y, z = V4_512.shape
    links = Links(V4_512, [(n // (y * z), n // z % y, n % z, 0) for n in range(x * y * z)])
    result = []
    for name in module.computations:
        if name not in called and name != "nothing":
            module.entry = name
            result.append(operations(module, links, {}))
    return sorted(result, key=lambda found: sum(o.flops for o in found))


def total(found, attribute, *kinds):
    return sum(getattr(o, attribute) for o in found if not kinds or o.kind in kinds)


@pytest.mark.parametrize(
    ("file", "tokens", "chips", "recomputed"),
    [
        # two micro-batches of two rows per chip, fsdp over a plane of 64 chips; `dots` recomputes no product
        ("codegen_16b.hlo", 2 * 2048, 64, 0),
        # four rows per chip, fsdp over all chips; `save_qkv_proj` recomputes attention's output and the MLP's states
        ("maxtext_16b.hlo", 4 * 2048, 256, 5 / 12),
    ],
)
def test_products_and_collectives_are_those_of_a_layers_matrices(file, tokens, chips, recomputed):
    forward, backward = loops(file)
    assert total(forward, "flops") == pytest.approx(2 * tokens * MATRICES, rel=0.02)
    assert total(backward, "flops") == pytest.approx(2 * tokens * MATRICES * (2 + recomputed), rel=0.02)
    received = 2 * MATRICES * (chips - 1) / chips  # bfloat16
    for found in (forward, backward):
        assert total(found, "bytes", "all-gather") == pytest.approx(received, rel=0.01)
        assert total(found, "exposed", "all-gather") < 0.2 * total(found, "seconds", "all-gather")
    reduced = total(backward, "bytes", "reduce-scatter") + total(backward, "bytes", "all-reduce") / 2
    assert reduced == pytest.approx(received, rel=0.01)
    peak = V4_512.chip.peak_flops
    assert 0.7 < total(backward, "flops") / peak / total(backward, "seconds", "matmul") < 0.97
