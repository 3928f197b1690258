"""Parsing compiled HLO: instructions, trip counts and FLOPs."""

from pathlib import Path

import pytest

from codegen_jax.planning.hlo import Module, UnknownForm, nbytes

# a hand-written TPU program: a loop with three iterations of a product and a concurrent gather; a windowed product
TEXT = (Path(__file__).parent / "hand_made.hlo").read_text()


@pytest.fixture(scope="module")
def module():
    return Module(TEXT)


def test_instructions_keep_their_order_shape_and_operands(module):
    assert module.entry == "main"
    assert list(module.computations["main"]) == ["p", "heads", "loop", "copy"]
    product = module.computations["body"]["product"]
    assert (product.opcode, product.operands, product.cycles) == ("fusion", ("x", "w"), 1050)
    assert product.op_name == "jit(step)/mlp/dot_general" and product.called("calls") == "fused_product"
    assert product.arrays == [("bf16", (8, 32))] and nbytes(product.arrays[0]) == 512
    assert module.computations["main"]["loop"].arrays == [("s32", ()), ("bf16", (8, 32))]


def test_the_trip_count_of_a_loop_is_read_from_its_condition(module):
    runs = {i.name: count for i, count in module.executed()}
    assert (runs["heads"], runs["product"], runs["gather-start"], runs["copy"]) == (1, 3, 3, 1)
    assert "convolution.1" not in runs  # part of a fusion, not a separate operation


def test_flops_of_a_product_include_the_contracted_dimension(module):
    assert module.matmul_flops(module.computations["body"]["product"]) == 2 * 8 * 32 * 16
    assert module.matmul_flops(module.computations["main"]["copy"]) == 0


def test_padded_positions_of_a_windowed_product_are_not_counted(module):
    # a product with 24 batched heads: only 24 of the window's 24 x 24 pairs, the equal ones, are inside
    assert module.matmul_flops(module.computations["main"]["heads"]) == 2 * 4 * 24 * 16 * 8


def test_a_loop_that_counts_by_two_takes_half_as_many_turns():
    by_two = TEXT.replace("constant(1)", "constant(2)").replace("s32[]", "u32[]")
    assert {i.name: count for i, count in Module(by_two).executed()}["product"] == 2  # 0 and 2 are below 3


@pytest.mark.parametrize(
    ("old", "new"),
    [("constant(3)", "parameter(1)"), ("add(%turn, %one)", "multiply(%turn, %one)"), ("index=0", "index=1")],
)
def test_a_loop_that_does_not_count_to_a_constant_is_an_error(old, new):
    with pytest.raises(UnknownForm, match="loop"):
        list(Module(TEXT.replace(old, new)).executed())


def test_the_metadata_of_a_kernel_is_read_from_the_lines_after_it():
    text = TEXT.replace("copy(%p), backend", 'copy(%p), frontend_attributes={kernel_metadata={\n"x":"y"\n}}, backend')
    copy = Module(text).computations["main"]["copy"]
    assert copy.cycles == 9 and '"x":"y"' in copy.attributes
