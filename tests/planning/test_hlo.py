import pytest

from codegen_jax.planning.hlo import Module, nbytes

# what a TPU program looks like, by hand: a loop of three turns around a product, a gather beside it, a windowed product
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0:T(8,128)})->f32[8,16]{1,0:T(8,128)}}

%fused_product (param_0.1: bf16[8,16], param_1.1: bf16[16,32]) -> bf16[8,32] {
  %param_0.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%param_0.1, %param_1.1), dim_labels=bf_io->bf
}

%fused_heads (param_0.2: bf16[4,24,8], param_1.2: bf16[24,8,16]) -> bf16[4,24,16] {
  %param_0.2 = bf16[4,24,8]{2,1,0} parameter(0)
  %param_1.2 = bf16[24,8,16]{2,1,0} parameter(1)
  ROOT %convolution.2 = bf16[4,24,16]{2,1,0} convolution(%param_0.2, %param_1.2), window={size=24 stride=23 pad=23_23 lhs_dilate=24 rhs_reversal=1}, dim_labels=b0f_0io->b0f
}

%condition (arg.1: (s32[], bf16[8,32])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, /*index=1*/bf16[8,32]{1,0:T(8,128)(2,1)S(3)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %turns = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%counter, %turns), direction=LT
}

%body (arg.2: (s32[], bf16[8,32])) -> (s32[], bf16[8,32]) {
  %arg.2 = (s32[]{:T(128)}, bf16[8,32]{1,0}) parameter(0)
  %gather-start = (bf16[4,32]{1,0}, bf16[16,32]{1,0}) all-gather-start(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %product = bf16[8,32]{1,0:T(8,128)(2,1)S(3)} fusion(%x, /*index=1*/%w), kind=kOutput, calls=%fused_product, metadata={op_name="jit(step)/mlp/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1050"}}
  %gather-done = bf16[16,32]{1,0} all-gather-done(%gather-start)
  ROOT %result = (s32[], bf16[8,32]) tuple(%counter, %product)
}

ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0:T(8,128)} parameter(0)
  %heads = bf16[4,24,16]{2,1,0} fusion(%a, %b), kind=kOutput, calls=%fused_heads, backend_config={"window_config":{"estimated_cycles":"70"}}
  %loop = (s32[]{:T(128)}, bf16[8,32]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %copy = f32[8,16]{0,1} copy(%p), backend_config={"window_config":{"estimated_cycles":"9"}}
}
"""


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


def test_a_loops_body_runs_as_often_as_its_condition_says(module):
    runs = {i.name: count for i, count in module.executed()}
    assert (runs["heads"], runs["product"], runs["gather-start"], runs["copy"]) == (1, 3, 3, 1)
    assert "convolution.1" not in runs  # part of a fusion, not an operation of its own


def test_products_are_counted_by_what_they_contract(module):
    assert module.matmul_flops(module.computations["body"]["product"]) == 2 * 8 * 32 * 16
    assert module.matmul_flops(module.computations["main"]["copy"]) == 0


def test_padded_positions_of_a_windowed_product_do_not_count(module):
    # a product with 24 batched heads: of the window's 24 x 24 pairs only the 24 equal ones are inside
    assert module.matmul_flops(module.computations["main"]["heads"]) == 2 * 4 * 24 * 16 * 8


def test_a_loop_without_a_constant_bound_is_an_error():
    with pytest.raises(ValueError, match="loop"):
        list(Module(TEXT.replace("constant(3)", "parameter(1)")).executed())
