"""The automatic choice of a remat policy by chip memory."""

import pytest

from codegen_jax.config import AdapterConfig
from codegen_jax.config_file import load_config
from codegen_jax.training.remat import choose_remat


def choice(size, rows, fsdp, kind="TPU v4"):
    return choose_remat(load_config(f"configs/{size}_nl.yaml").model, AdapterConfig(), rows * 2048, fsdp, 1, kind)


@pytest.mark.parametrize(
    ("size", "rows", "fsdp", "expected"),
    # each size on v4-512, then on the smaller slices used for the paper's smaller runs
    [
        *[("16b", 2, 64, "dots"), ("6b", 2, 64, "dots"), ("2b", 2, 32, "dots"), ("350m", 1, 32, "dots")],
        *[("6b", 8, 16, "attention"), ("2b", 16, 4, "attention"), ("350m", 16, 2, "dots"), ("16b", 64, 64, "full")],
    ],
)
def test_auto_chooses_a_policy_that_fits_the_chip(size, rows, fsdp, expected):
    assert choice(size, rows, fsdp) == expected


def test_16b_recomputes_no_product_on_v5e_with_one_row_per_chip():
    assert choice("16b", 1, 64, "TPU v5 lite") == "dots"  # 13.9 GiB; the compiler needs 13.4 of 15.75


def test_chips_with_more_memory_recompute_less():
    chosen = [choice("6b", 8, 16, kind) for kind in ("TPU v5 lite", "TPU v4", "TPU v5p")]
    order = ["full", "attention", "qkv_attention", "dots"]
    assert [order.index(name) for name in chosen] == sorted(order.index(name) for name in chosen)
    assert chosen[0] != chosen[-1] == "dots"


def test_qlora_of_6b_recomputes_blocks_where_a_24_gb_gpu_needs_it():
    config = load_config("configs/finetune_6b_qlora.yaml")
    rows = config.training.batch_size // config.training.gradient_accumulation_steps
    choose = lambda kind: choose_remat(config.model, config.adapter, rows * 2048, 1, 1, kind)
    assert choose("NVIDIA GeForce RTX 4090") == "attention" and choose("NVIDIA H100") == "dots"


def test_unknown_device_recomputes_no_product():
    assert choice("16b", 64, 1, "cpu") == "dots"
