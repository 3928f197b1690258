"""The step's results do not depend on sharding, and its arrays have the specified shardings."""

import dataclasses
import re
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from codegen_jax import sharding
from codegen_jax.config import MeshConfig
from codegen_jax.data.rows import make_row
from codegen_jax.model.codegen import REMAT_POLICIES, init_params, module
from codegen_jax.sharding import make_mesh
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import (
    abstract_batch,
    abstract_state,
    accumulated_gradients,
    batch_loss,
    batch_sharding,
    documents_of,
    init_state,
    make_eval_step,
    make_train_step,
)
from tests.runs import devices, tiny_run

ONE = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]


def tokens():
    return np.random.default_rng(0).integers(0, 512, (32, 33)).astype(np.int32)


def loss_and_gradients(config):
    mesh = make_mesh(config.mesh, devices(int(np.prod(dataclasses.astuple(config.mesh)))))
    with jax.set_mesh(mesh):
        params = init_state(resolve(config, mesh)).params
        batch = jax.device_put(tokens(), batch_sharding(mesh))
        return jax.device_get(jax.jit(accumulated_gradients, static_argnums=0)(resolve(config, mesh), params, batch))


@pytest.fixture(scope="module")
def expected():
    """Reference loss and gradients: one device, dense logits, no scan over micro-batches."""
    config = tiny_run()
    params, batch = init_params(config.model, config.seed), tokens()

    def loss(params):
        logits = module(config.model, params)(batch[:, :-1])
        log_z = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, batch[:, 1:, None], axis=-1)[..., 0]
        return jnp.mean(log_z - target + config.training.z_loss * log_z**2)

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_equal(actual, expected):
    loss, gradients = actual
    np.testing.assert_allclose(loss.total, expected[0], rtol=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    for (path, gradient), reference in zip(leaves, jax.tree.leaves(expected[1]), strict=True):
        difference = np.abs(gradient - reference).max() / np.abs(reference).max()
        assert difference < 1e-5, jax.tree_util.keystr(path)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_loss_and_gradients_do_not_depend_on_mesh_or_micro_batches(mesh, micro_batches, expected):
    training = {"batch_size": len(tokens()), "gradient_accumulation_steps": micro_batches}
    config = tiny_run(mesh=MeshConfig(*mesh), training=training)
    assert_equal(loss_and_gradients(config), expected)


@pytest.mark.parametrize(("limit", "value", "mesh"), [("LARGE_MATRIX", 0, (1, 2, 4)), ("LANES", 8, (2, 4, 1))])
def test_gradients_do_not_depend_on_the_shapes_in_which_weights_are_sent(limit, value, mesh, monkeypatch, expected):
    monkeypatch.setattr(sharding, limit, value)  # otherwise, heads of 8 channels are sent flat, as are all matrices
    assert_equal(loss_and_gradients(tiny_run(mesh=MeshConfig(*mesh))), expected)  # meshes that no other test compiles


def test_meshes_differ_only_by_rounding_over_sixty_steps():
    def losses(axes):
        optimizer = {"learning_rate": 1e-2, "end_learning_rate": 1e-3, "warmup_steps": 5, "decay_steps": 55}
        config = tiny_run(mesh=MeshConfig(*axes), optimizer=optimizer, training={"steps": 60, "batch_size": 32})
        mesh = make_mesh(config.mesh, devices(int(np.prod(axes))))
        run = resolve(config, mesh)
        with jax.set_mesh(mesh):
            state, train_step, found = init_state(run), make_train_step(run), []
            for _ in range(60):
                state, metrics = train_step(state, jax.device_put(tokens(), batch_sharding(mesh)))
                found.append(float(metrics["loss"]))
        return np.array(found)

    one = losses((1, 1, 1))
    assert one[-1] < 0.8 * one[0]
    np.testing.assert_allclose(losses((2, 2, 2)), one, rtol=2e-6)  # docs/training.md reports how this grows


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_loss_and_gradients_do_not_depend_on_remat(remat, expected):
    assert_equal(loss_and_gradients(tiny_run(mesh=MeshConfig(2, 2, 2), training={"remat": remat})), expected)


@pytest.mark.parametrize("kernels", ["pallas", "splash"])
def test_kernels_on_a_mesh_match_the_reference_gradients(kernels):
    def run(backend):
        config = tiny_run(
            mesh=MeshConfig(2, 2, 2),
            model={"attention": backend, "n_positions": 128},
            data={"sequence_length": 128},
            training={"batch_size": 8},
        )
        mesh = make_mesh(config.mesh)
        rows = np.random.default_rng(0).integers(0, 512, (8, 129)).astype(np.int32)
        with jax.set_mesh(mesh):
            batch = jax.device_put(rows, batch_sharding(mesh))
            params = init_state(resolve(config, mesh)).params
            gradients = jax.jit(accumulated_gradients, static_argnums=0)(resolve(config, mesh), params, batch)
            return jax.device_get(gradients)

    loss, expected = run("xla")
    assert_equal(run(kernels), (loss.total, expected))


def test_micro_batches_are_weighted_by_tokens():
    batch = tokens()
    batch[::2, 5:] = -1  # these rows go to micro-batch 0 of 2
    config = tiny_run(mesh=MeshConfig(1, 1, 1))
    halves = tiny_run(mesh=MeshConfig(1, 1, 1), training={"gradient_accumulation_steps": 2})
    params = init_params(config.model, 0)
    one, two = (accumulated_gradients(resolve(c, ONE), params, batch) for c in (config, halves))
    np.testing.assert_allclose(one[0].total, two[0].total, rtol=1e-6)
    np.testing.assert_allclose(one[1]["head"], two[1]["head"], rtol=1e-4, atol=1e-7)


def test_parameters_and_moments_are_sharded_by_their_logical_axes():
    config = tiny_run(mesh=MeshConfig(2, 2, 2))
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state, _ = make_train_step(resolve(config, mesh))(
            init_state(resolve(config, mesh)), jax.device_put(tokens(), batch_sharding(mesh))
        )
    expected = {
        "embedding": P("tensor", "fsdp"),
        "head": P("fsdp", "tensor"),
        "head_bias": P("tensor"),
        "ln_f": {"scale": P(None), "bias": P(None)},
        "blocks": {
            "ln": {"scale": P(None, None), "bias": P(None, None)},
            "query": P(None, "fsdp", "tensor", None),
            "key": P(None, "fsdp", "tensor", None),
            "value": P(None, "fsdp", "tensor", None),
            "attention_out": P(None, "tensor", None, "fsdp"),
            "fc_in": P(None, "fsdp", "tensor"),
            "fc_in_bias": P(None, "tensor"),
            "fc_out": P(None, "tensor", "fsdp"),
            "fc_out_bias": P(None, None),
        },
    }
    adam = state.opt_state[1]
    for tree in (state.params, adam.mu, adam.nu):
        assert jax.tree.map(lambda leaf: leaf.sharding.spec, tree) == expected
    shard = state.params["blocks"]["fc_in"].addressable_shards[0].data
    assert shard.shape == (2, 32 // 2, 128 // 2)


def test_state_is_donated():
    config = tiny_run()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        before = init_state(resolve(config, mesh))
        after, _ = make_train_step(resolve(config, mesh))(before, jax.device_put(tokens(), batch_sharding(mesh)))
    assert before.params["head"].is_deleted() and not after.params["head"].is_deleted()


def compiled_for_one_device(**model):
    config = tiny_run(model=model, training={"batch_size": 1}, mesh=MeshConfig(1, 1, 1))
    run = resolve(config, make_mesh(config.mesh, jax.devices()[:1]))
    with jax.set_mesh(run.mesh):
        return run, make_train_step(run).lower(abstract_state(run), abstract_batch(run)).compile()


def test_update_is_in_place():
    """XLA copied both moments of all parameters before it updated them, 2.7 GiB at 350M."""
    run, step = compiled_for_one_device(n_embd=256)
    parameters = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_state(run).params))
    assert parameters < step.memory_analysis().temp_size_in_bytes < 2 * parameters  # the gradients and little else


def test_step_on_one_device_has_no_collectives():
    """XLA on CPU copies what a collective over a single device is given."""
    _, step = compiled_for_one_device()
    assert not re.search("all-gather|all-reduce|reduce-scatter", step.as_text())


def test_first_update_has_learning_rate_zero_and_second_lowers_the_loss():
    config = tiny_run()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state, batch = init_state(resolve(config, mesh)), jax.device_put(tokens(), batch_sharding(mesh))
        step = make_train_step(resolve(config, mesh))
        metrics = []
        for _ in range(3):
            state, values = step(state, batch)
            metrics.append(jax.device_get(values))
    assert metrics[0]["learning_rate"] == 0 and metrics[0]["loss"] == metrics[1]["loss"] > metrics[2]["loss"]
    assert metrics[1]["learning_rate"] == pytest.approx(config.optimizer.learning_rate / 2)
    assert int(state.step) == 3


def test_validation_ignores_padded_rows():
    config = tiny_run(mesh=MeshConfig(1, 1, 1))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    padded = tokens()
    padded[4:] = -1
    with jax.set_mesh(mesh):
        params = init_state(resolve(config, mesh)).params
        cross_entropy, count = make_eval_step(resolve(config, mesh))(params, padded, None)
    model = module(config.model, params)
    log_p = jax.nn.log_softmax(model(padded[:4, :-1]))
    expected = -jnp.take_along_axis(log_p, padded[:4, 1:, None], axis=-1).sum()
    assert count == 4 * 32
    np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5)


EOS = 7


def marked(ids):
    """A row in which documents end with `EOS`."""
    starts = np.concatenate([[True], ids[:-1] == EOS])
    return make_row(ids, np.ones_like(starts), starts)


PACKED = [11, 12, EOS, 13, EOS, EOS, 14, 15, 16, 17, EOS, 18]  # the third document is empty, the last one continues
PACKED_ROW = marked(np.array(PACKED)).tolist()
DOCUMENTS = [[11, 12, EOS], [13, EOS], [EOS], [14, 15, 16, 17, EOS], [18]]


def test_documents_end_with_eos_and_positions_restart():
    segment_ids, positions = documents_of(jnp.array([PACKED_ROW]))
    assert segment_ids.tolist() == [[1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4, 5]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4, 0]]


def test_packed_documents_have_the_same_logits_as_separate_ones():
    config = tiny_run().model
    model = module(config, init_params(config, 0))
    segment_ids, positions = documents_of(jnp.array([PACKED_ROW]))
    packed = model(jnp.array([PACKED]), segment_ids_BT=segment_ids, positions_BT=positions)
    separate = np.concatenate([model(jnp.array([document])) for document in DOCUMENTS], axis=1)
    np.testing.assert_allclose(packed, separate, atol=1e-5)
    # without segments, as the authors trained, documents attend to each other
    assert np.abs(model(jnp.array([PACKED])) - separate).max() > 0.05


@pytest.mark.parametrize("document_mask", [False, True])
def test_document_mask_gives_the_loss_of_separate_documents(document_mask):
    config = tiny_run(data={"document_mask": document_mask})
    params = init_params(config.model, 0)
    row = np.array([[*PACKED, 19]])
    marked = jnp.array([[*PACKED_ROW, 19]])
    loss = batch_loss(resolve(config, ONE), params, marked, scale=1.0, z_loss=0.0).cross_entropy
    ends = np.cumsum([0, *map(len, DOCUMENTS)])
    documents = [row[:, start : end + 1] for start, end in pairwise(ends)]  # the last token is only a target
    plain = resolve(tiny_run(), ONE)
    separate = sum(batch_loss(plain, params, jnp.array(p), scale=1.0, z_loss=0.0).cross_entropy for p in documents)
    assert (abs(loss - separate) < 1e-4) == document_mask


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_with_document_mask_do_not_depend_on_the_mesh(mesh):
    def gradients(axes):
        config = tiny_run(mesh=MeshConfig(*axes), data={"document_mask": True})
        device_mesh = make_mesh(config.mesh, devices(int(np.prod(axes))))
        with jax.set_mesh(device_mesh):
            batch = jax.device_put(np.stack([marked(row) for row in tokens() % 50]), batch_sharding(device_mesh))
            resolved = resolve(config, device_mesh)
            params = init_state(resolved).params
            return jax.device_get(jax.jit(accumulated_gradients, static_argnums=0)(resolved, params, batch))

    loss, expected = gradients((1, 1, 1))
    assert_equal(gradients(mesh), (loss.total, expected))
