"""Peak FLOP/s of known devices."""

import pytest

from codegen_jax.chips import chip_of


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("cpu", None),
    ],
)
def test_a_device_kind_determines_the_peak_flops(kind, flops):
    chip = chip_of(kind)
    assert flops == (chip and chip.peak_flops)
