"""Adapters in the training step: gradients on every mesh, dropout, and frozen weights that stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.errors import UserError
from codegen_jax.model import cpu
from codegen_jax.model.codegen import init_params, module
from codegen_jax.model.quantized import dense as dense_matrix
from codegen_jax.sharding import make_mesh
from codegen_jax.training.frozen import load_frozen
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import (
    abstract_state,
    accumulated_gradients,
    batch_sharding,
    init_state,
    make_eval_step,
    make_train_step,
)
from tests.runs import InMemory, devices, tiny_run

ADAPTER = {"rank": 4, "alpha": 6.0, "targets": ["all-linear", "lm_head"], "trainable_tokens": [3, 500]}
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]


def tokens():
    rows = np.random.default_rng(0).integers(0, 512, (32, 33)).astype(np.int32)
    rows[:, ::5] = 500
    return rows


def run_of(mesh=(1, 1, 1), training=(), width=32, **adapter):
    training = {"batch_size": 32, **dict(training)}
    sections = {"model": {"n_embd": width, "head_dim": width // 4}, "training": training}
    config = tiny_run(mesh=MeshConfig(*mesh), init_from="unused", adapter=ADAPTER | adapter, **sections)
    return resolve(config, make_mesh(config.mesh, devices(int(np.prod(mesh)))))


def trained(run):
    """An adapter whose updates are not 0, and the weights below it, on the run's mesh."""
    abstract = abstract_state(run)
    place = lambda x, like: jax.device_put(x.astype(like.dtype), like.sharding)
    frozen = jax.tree.map(place, init_params(run.model, 0), abstract.frozen)
    params = init_state(run, frozen=frozen).params
    rng = np.random.default_rng(1)
    noise = lambda x: jax.device_put(x + rng.normal(0, 0.05, x.shape).astype(np.float32), x.sharding)
    return jax.tree.map(noise, params), frozen


def loss_and_gradients(run, step=0):
    with jax.set_mesh(run.mesh):
        params, frozen = trained(run)
        batch = jax.device_put(tokens(), batch_sharding(run.mesh))
        return jax.device_get(jax.jit(accumulated_gradients, static_argnums=0)(run, params, batch, frozen, step))


def merged(run, params, frozen):
    """The frozen weights plus the updates, by definition."""
    scale = 6.0 / 4
    layers = list(run.adapter.layers) or list(range(run.model.n_layer))
    new = jax.tree.map(lambda x: x, frozen)
    blocks = new["blocks"]

    def add(name, update):
        blocks[name] = blocks[name].at[jnp.array(layers)].add(scale * update)

    of = params["blocks"]
    qkv = jnp.einsum("LDR,LRPHK->PLDHK", of["qkv_proj"]["a"], of["qkv_proj"]["b"])
    for position, name in enumerate(("query", "key", "value")):
        add(name, qkv[position])
    add("attention_out", jnp.einsum("LHKR,LRD->LHKD", of["out_proj"]["a"], of["out_proj"]["b"]))
    add("fc_in", of["fc_in"]["a"] @ of["fc_in"]["b"])
    add("fc_out", of["fc_out"]["a"] @ of["fc_out"]["b"])
    new["head"] = new["head"] + scale * params["lm_head"]["a"] @ params["lm_head"]["b"]
    new["embedding"] = new["embedding"].at[jnp.array([3, 500])].set(params["tokens"])
    return new


def assert_equal(found, expected):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def expected():
    """Loss and gradients through merged weights: one device, dense logits."""
    run, batch = run_of(), tokens()
    params, frozen = trained(run)

    def loss(params):
        logits = module(run.model, merged(run, params, frozen))(batch[:, :-1])
        log_z = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]
        return jnp.mean(log_z - target + run.training.z_loss * log_z**2)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_are_those_of_merged_weights_on_every_mesh(mesh, expected):
    loss, gradients = loss_and_gradients(run_of(mesh))
    assert_equal((loss.total, gradients), expected)


def test_updates_that_are_products_of_their_own_as_on_accelerators_give_the_same(expected, monkeypatch):
    monkeypatch.setattr(cpu, "on_cpu", lambda: False)
    loss, gradients = loss_and_gradients(run_of())
    assert_equal((loss.total, gradients), expected)


def test_layers_without_updates_are_the_models_own():
    run = run_of(layers=[1])
    params, frozen = trained(run)
    assert params["blocks"]["fc_in"]["a"].shape[0] == 1
    batch = jnp.asarray(tokens())
    summed, count = make_eval_step(run)(params, batch, frozen)
    logits = module(run.model, merged(run, params, frozen))(batch[:, :-1])
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch[:, 1:, None], axis=-1)
    np.testing.assert_allclose(summed / count, -log_p.mean(), rtol=1e-5)


def test_dropout_depends_on_step_and_row_but_not_on_mesh_and_micro_batches():
    one = loss_and_gradients(run_of(dropout=0.5))
    assert_equal(loss_and_gradients(run_of((2, 2, 2), dropout=0.5)), one)
    assert_equal(loss_and_gradients(run_of((1, 1, 1), training={"gradient_accumulation_steps": 4}, dropout=0.5)), one)
    assert loss_and_gradients(run_of(dropout=0.5), step=1)[0].total != one[0].total
    assert loss_and_gradients(run_of())[0].total != one[0].total


def test_steps_change_the_adapter_only():
    run = run_of((2, 2, 2))
    with jax.set_mesh(run.mesh):
        params, frozen = trained(run)
        before = jax.device_get(frozen)
        state = init_state(run, params, frozen)
        step = make_train_step(run)
        batch = jax.device_put(tokens(), batch_sharding(run.mesh))
        losses = []
        for _ in range(8):
            state, metrics = step(state, batch)
            losses.append(float(metrics["cross_entropy"]))
    assert losses[-1] < losses[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen), before)
    sizes = sum(x.size for x in jax.tree.leaves((state.params, state.opt_state)))
    assert sizes < 3.1 * sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantized_model_gives_the_loss_and_gradients_of_its_dequantized_weights_on_every_mesh(kind):
    def with_frozen(run, dequantize):
        with jax.set_mesh(run.mesh):
            params, dense = trained(run_of(tuple(run.mesh.shape.values()), width=128))
            frozen, _ = load_frozen(run, InMemory(run.model, jax.device_get(dense)))
            if dequantize:
                is_array = lambda x: not isinstance(x, dict)
                frozen = jax.tree.map(lambda x: dense_matrix(x, "float32"), frozen, is_leaf=is_array)
            batch = jax.device_put(tokens(), batch_sharding(run.mesh))
            program = jax.jit(accumulated_gradients, static_argnums=0)
            return jax.device_get(program(run, params, batch, frozen, 0)), jax.device_get(frozen)

    expected, _ = with_frozen(run_of(width=128, quantize=kind), True)
    for mesh in ((1, 1, 1), (2, 1, 2), (1, 2, 2)):
        found, frozen = with_frozen(run_of(mesh, width=128, quantize=kind), False)
        assert_equal(found, expected)
        assert frozen["blocks"]["fc_in"].qvalue.dtype == ("uint4" if kind == "nf4" else "int8")
    assert abs(found[0].total - loss_and_gradients(run_of(width=128))[0].total) > 1e-6


def test_shards_of_a_quantized_model_must_be_whole_tiles():
    with pytest.raises(UserError, match=r"^mesh.fsdp: 8 does not divide the 1 tiles of adapter.quantize"):
        abstract_state(run_of((1, 8, 1), quantize="nf4"))
