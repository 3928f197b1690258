"""Conversion between transformers' tensors and our parameters, checked against NumPy and by properties."""

import jax
import ml_dtypes
import numpy as np
import pytest

from codegen_jax.config import CodeGenConfig, MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import abstract_params, param_axes
from codegen_jax.sharding import make_mesh, tree_shardings
from codegen_jax.weights.base import load_params, shapes
from codegen_jax.weights.huggingface_layout import HuggingFaceWeights, tensor_shapes, tensor_streams

CONFIGS = {
    "one head per group": CodeGenConfig(2, 32, 4, 4, vocab_size=40),
    "three heads per group": CodeGenConfig(1, 48, 12, 2, vocab_size=40),
    "heads wider than n_embd": CodeGenConfig(2, 16, 8, 6, vocab_size=40, head_dim=10),
}


def random_tensors(config, dtype=np.float32):
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in tensor_shapes(config).items()}


def whole(shape):
    return tuple(slice(0, size) for size in shape)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("mp_num", [1, 2, 4])
def test_each_head_maps_to_its_rows_in_the_authors_layout(config, mp_num):
    """Reference: qkv_proj.weight reshaped to (group, q|v|k, head in group, channel), rotary channels interleaved."""
    tensors = random_tensors(config)
    weights = HuggingFaceWeights(tensors, config, mp_num)
    H, K, D = config.n_head, config.head_dim, config.n_embd
    grouped = tensors["transformer.h.0.attn.qkv_proj.weight"].reshape(mp_num, 3, H // mp_num, K, D)
    for position, name in enumerate(("query", "value", "key")):
        ours = weights.read(f"blocks.{name}", whole((1, D, H, K)))[0]
        for head in range(H):
            theirs = grouped[head // (H // mp_num), position, head % (H // mp_num)]
            for i in range(config.rotary_dim // 2 if name != "value" else 0):
                np.testing.assert_array_equal(ours[:, head, i], theirs[2 * i])
                np.testing.assert_array_equal(ours[:, head, i + config.rotary_dim // 2], theirs[2 * i + 1])
            rest = config.rotary_dim if name != "value" else 0
            np.testing.assert_array_equal(ours[:, head, rest:].T, theirs[rest:])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_reading_a_region_matches_slicing_the_whole_parameter(config):
    random = np.random.default_rng(1)
    weights = HuggingFaceWeights(random_tensors(config), config)
    for name, shape in shapes(config).items():
        full = weights.read(name, whole(shape))
        assert full.shape == shape
        for _ in range(20):
            bounds = [sorted(random.choice(size + 1, 2, replace=False)) for size in shape]
            index = tuple(slice(int(a), int(b)) for a, b in bounds)
            np.testing.assert_array_equal(weights.read(name, index), full[index], err_msg=f"{name} {index}")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize(
    ("config", "mp_num"), [(CONFIGS["one head per group"], 4), (CONFIGS["three heads per group"], 2)]
)
def test_a_round_trip_is_bit_for_bit(config, mp_num, dtype):
    tensors = random_tensors(config, dtype)
    streams = dict(tensor_streams(HuggingFaceWeights(tensors, config, mp_num), mp_num))
    assert streams.keys() == tensors.keys()
    for name, stream in streams.items():
        written = np.concatenate([chunk.reshape(-1) for chunk in stream.chunks()])
        assert written.dtype == stream.dtype == tensors[name].dtype
        assert written.tobytes() == tensors[name].tobytes() and stream.shape == tensors[name].shape


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2), (4, 1, 2)])
def test_on_a_mesh_every_byte_is_read_once_and_one_shard_at_a_time(axes):
    config = CodeGenConfig(2, 32, 4, 4, vocab_size=40, dtype="float32")
    weights = HuggingFaceWeights(random_tensors(config), config)
    reads = []
    read = weights.read

    def counted(name, index):
        region = read(name, index)
        reads.append((name, region.size))
        return region

    weights.read = counted
    shardings = tree_shardings(make_mesh(MeshConfig(*axes)), param_axes(config))
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_params(config), shardings
    )
    params = load_params(weights, abstract)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert sum(size for _, size in reads) == config.n_params
    shards = axes[1] * axes[2]
    assert max(size for name, size in reads if name == "embedding") == config.vocab_size * config.n_embd // shards
    for name, shape in shapes(config).items():
        leaf = params
        for key in name.split("."):
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf, read(name, whole(shape)))


def test_at_most_five_problems_are_listed():
    config = CONFIGS["one head per group"]
    with pytest.raises(UserError) as error:
        HuggingFaceWeights({}, config)
    assert str(error.value).count("missing") == 5 and str(error.value).endswith("; and 16 more")


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int32, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float64]
)
def test_unsupported_dtypes_are_reported_and_narrow_ones_considered_quantized(dtype):
    tensors = random_tensors(CONFIGS["one head per group"])
    tensors["lm_head.weight"] = np.zeros((40, 32), dtype)
    with pytest.raises(UserError, match=f"lm_head.weight has dtype {np.dtype(dtype).name}, expected float16") as error:
        HuggingFaceWeights(tensors, CONFIGS["one head per group"])
    assert ("use the original, unquantized model" in str(error.value)) == (dtype != np.float64)


def test_all_kinds_of_problems_are_listed():
    config = CONFIGS["one head per group"]
    tensors = random_tensors(config)
    del tensors["lm_head.bias"]
    tensors["transformer.h.1.mlp.gate.weight"] = np.zeros(3, np.float32)
    tensors["transformer.ln_f.bias"] = np.zeros(33, np.float32)
    tensors["transformer.ln_f.weight"] = np.zeros(32, np.int64)
    tensors["transformer.h.0.attn.masked_bias"] = np.float32(-1e9)
    with pytest.raises(UserError) as error:
        HuggingFaceWeights(tensors, config)
    for words in (
        "missing lm_head.bias",
        "unexpected transformer.h.1.mlp.gate.weight",
        "transformer.ln_f.bias has shape [33], expected [32]",
        "transformer.ln_f.weight has dtype int64, expected float16",
    ):
        assert words in str(error.value)
    assert "masked_bias" not in str(error.value)


@pytest.mark.parametrize("mp_num", [0, 3, 8])
def test_groups_that_do_not_divide_the_heads_are_rejected(mp_num):
    config = CONFIGS["one head per group"]
    with pytest.raises(UserError, match="mp_num: "):
        HuggingFaceWeights(random_tensors(config), config, mp_num)
