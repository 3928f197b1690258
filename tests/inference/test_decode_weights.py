"""Weights for decoding: read one tensor at a time, and sharded by groups of heads."""

import subprocess
import sys

import jax
import pytest

import codegen_jax
from codegen_jax.config import MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.inference.decode_weights import load_weights
from codegen_jax.sharding import make_mesh
from codegen_jax.weights.open import open_model
from tests.peers import peer, save, tiny_bpe
from tests.runs import devices


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save(peer(n_head=8, rotary_dim=2), tmp_path_factory.mktemp("model") / "hf", tokenizer=tiny_bpe()))


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_sharded_model_is_split_and_gives_the_same_tokens_as_one_device(folder, quantize):
    prompts, options = ["def f", "return x: return"], dict(max_new_tokens=8, temperature=0)
    devices(8)
    one = codegen_jax.load(folder, quantize=quantize)
    many = codegen_jax.load(folder, quantize=quantize, mesh=MeshConfig(2, 1, 4))
    assert many.complete(prompts, **options) == one.complete(prompts, **options)
    for mine, theirs in zip(jax.tree.leaves(many.weights.layers), jax.tree.leaves(one.weights.layers), strict=True):
        if mine.ndim == 2:
            assert mine.addressable_shards[0].data.size == theirs.size // 4


def test_heads_that_cannot_be_split_are_an_error(folder):
    mesh = make_mesh(MeshConfig(1, 1, 3), devices(3))
    weights = open_model(folder)
    with pytest.raises(UserError, match="tensor: must divide the 8 heads and the vocabulary of 300, got 3"):
        load_weights(weights, weights.config, mesh, None)


def test_peak_memory_of_loading_is_the_model_plus_one_tensor(tmp_path):
    folder = save(peer(n_layer=12, n_embd=512, n_head=8, rotary_dim=32), tmp_path / "hf", tokenizer=tiny_bpe())
    program = (
        "import resource, sys, jax, codegen_jax, gc\n"
        "from codegen_jax.inference.generator import Generator\n"
        "jax.block_until_ready(jax.numpy.zeros(1))\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "model = codegen_jax.load(sys.argv[1], dtype=sys.argv[2])\n"
        "size = sum(x.nbytes for x in jax.tree.leaves(model.weights))\n"
        "print(peak() - before, size)\n"
    )
    for dtype in ("float32", "bfloat16"):
        done = subprocess.run([sys.executable, "-c", program, folder, dtype], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown, size = map(int, done.stdout.split())
        largest = 4 * 512 * (3 * 512 + 2048)  # the largest tensor, in float32
        assert grown < size + 4 * largest + 30e6  # stored, concatenated, transposed and cast; plus libraries
