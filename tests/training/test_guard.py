"""Bad steps only change a counter, and too many of them end the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codegen_jax.errors import UserError
from codegen_jax.sharding import make_mesh
from codegen_jax.training.guard import SETTLED, Guard, judge
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.resolve import resolve
from codegen_jax.training.step import batch_sharding, init_state, make_train_step
from tests.runs import tiny_run


def batch(config, mesh, seed):
    tokens = np.random.default_rng(seed).integers(
        0, config.model.vocab_size, (config.training.batch_size, 33), np.int32
    )
    return jax.device_put(tokens, batch_sharding(mesh))


def test_nonfinite_step_leaves_weights_and_moments_unchanged():
    config = tiny_run()
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        train_step = make_train_step(resolve(config, mesh))
        state, _ = train_step(init_state(resolve(config, mesh)), batch(config, mesh, 0))
        state, _ = train_step(state, batch(config, mesh, 1))
        poisoned = state.params | {"head": state.params["head"].at[0, 0].set(jnp.nan)}
        before = jax.tree.map(np.array, (poisoned, state.opt_state))
        after, metrics = train_step(state._replace(params=poisoned), batch(config, mesh, 2))
        floats = lambda tree: [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
        for old, new in zip(floats(before), floats((after.params, after.opt_state))):
            np.testing.assert_array_equal(old, new)
        assert (metrics["bad_steps"], metrics["skipped"], after.step, after.guard.accepted) == (1, 1, 3, 2)
        healed = after._replace(params=after.params | {"head": jnp.nan_to_num(after.params["head"])})
        _, metrics = train_step(healed, batch(config, mesh, 3))
        assert (metrics["bad_steps"], metrics["skipped"]) == (0, 1)


def norms_and_verdicts(norms, sigmas):
    guard, verdicts = Guard.new(), []
    for norm in norms:
        good, guard = judge(guard, jnp.float32(1.0), jnp.float32(norm), sigmas)
        verdicts.append(bool(good))
    return guard, verdicts


def test_spikes_are_skipped_once_the_running_statistics_have_settled():
    norms = np.random.default_rng(0).normal(2.0, 0.1, SETTLED + 50).astype(np.float32)
    early, spike, rise = 10, SETTLED + 5, SETTLED + 20
    norms[early], norms[spike], norms[rise] = 9.0, 9.0, 2.6
    norms[early + 1 : SETTLED] = norms[early + 1 : SETTLED]
    guard, verdicts = norms_and_verdicts(norms, 6.0)
    assert [i for i, good in enumerate(verdicts) if not good] == [spike]
    # the running mean over the accepted steps, computed with NumPy
    weights = 0.99 ** np.arange(len(norms) - 1)[::-1]
    accepted = np.delete(norms, spike)
    weight = 1 - 0.99 ** len(accepted)
    np.testing.assert_allclose(guard.mean / weight, np.average(accepted, weights=weights), rtol=1e-4)
    assert norms_and_verdicts(norms, None)[1] == [True] * len(norms)


def test_too_many_consecutive_bad_steps_end_the_run_and_name_the_steps(tmp_path, token_folder):
    diverging = {"learning_rate": 1e36, "clip_norm": 1e30, "warmup_steps": 0}
    config = tiny_run(tmp_path / "run", token_folder, optimizer=diverging, training={"steps": 50, "max_bad_steps": 3})
    with pytest.raises(UserError, match=r"steps (\d+) to (\d+) were all skipped, .*--data.skip_steps \[\[\1,\2\]\]"):
        train(config)
    last = read_metrics(tmp_path / "run")[-1]
    assert last["skipped"] == 3 and last["loss"] is None
    assert "were all skipped" in (tmp_path / "run/summary.md").read_text()
