"""Accelerator specifications, by prefix of JAX's `device_kind`."""

from dataclasses import dataclass

GIB = 2**30
LANES = 128  # lanes of a TPU vector register: the last axis of an array is padded to a multiple of this


@dataclass(frozen=True)
class Chip:
    """One chip; numbers from the vendors' data sheets.

    Attributes:
        peak_flops: dense bfloat16 FLOP/s.
        hbm_bytes: memory available to a program: for TPUs from libtpu's messages (0.0.52), for GPUs the 75% that
            JAX preallocates.
        hbm_bandwidth: bytes/s; set for TPUs only, like the fields below.
        link_bandwidth: bytes/s of one inter-chip link in one direction (the scaling book's table of TPUs).
        clock: cycles/s, the unit of the compiler's estimates.
        sparse_cores: whether the chip has SparseCores on which the compiler can run collectives.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float = 0.0
    link_bandwidth: float = 0.0
    clock: float = 0.0
    sparse_cores: bool = False


CHIPS = {
    "TPU v4": Chip(275e12, int(30.75 * GIB), 1228e9, 45e9, 1.05e9),
    "TPU v5 lite": Chip(197e12, int(15.75 * GIB), 819e9, 45e9, 1.5e9),
    "TPU v5e": Chip(197e12, int(15.75 * GIB), 819e9, 45e9, 1.5e9),
    "TPU v5": Chip(459e12, int(95.73 * GIB), 2765e9, 90e9, 1.75e9, sparse_cores=True),
    "TPU v6": Chip(918e12, int(31.24 * GIB), 1640e9, 90e9, 1.75e9, sparse_cores=True),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 30 * GIB),
    "NVIDIA A100": Chip(312e12, 60 * GIB),
    "NVIDIA H100": Chip(989e12, 60 * GIB),
    "NVIDIA H200": Chip(989e12, 105 * GIB),
    "NVIDIA L40S": Chip(362e12, 33 * GIB),
    "NVIDIA L40": Chip(181e12, 33 * GIB),
    "NVIDIA L4": Chip(121e12, 16 * GIB),
    "NVIDIA A10G": Chip(70e12, 16 * GIB),
    "NVIDIA A10": Chip(125e12, 16 * GIB),
    "NVIDIA GeForce RTX 3090": Chip(71e12, 17 * GIB),
    "NVIDIA GeForce RTX 4090 Laptop": Chip(165e12, 11 * GIB),  # the peak is that of the desktop's card
    "NVIDIA GeForce RTX 4090": Chip(165e12, 17 * GIB),
}


def chip_of(device_kind: str) -> Chip | None:
    """Return the chip of this kind, or None if unknown (CPUs)."""
    return next((chip for kind, chip in CHIPS.items() if device_kind.startswith(kind)), None)
