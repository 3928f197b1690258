"""Losses and gradients of examples: those of PyTorch with -100, and the same packed, divided or alone."""

import json
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from codegen_jax.config import MeshConfig
from codegen_jax.data.prepare import prepare
from codegen_jax.data.rows import PADDING, ids_of, targets_of
from codegen_jax.data.sources import open_rows
from codegen_jax.data.tokens import TokenFiles
from codegen_jax.errors import UserError
from codegen_jax.model.codegen import init_params, module
from codegen_jax.sharding import make_mesh
from codegen_jax.training.loop import train
from codegen_jax.training.metrics import read_metrics
from codegen_jax.training.resolve import resolve, with_steps
from codegen_jax.training.step import accumulated_gradients, batch_sharding
from tests.runs import devices, tiny_run

LENGTH = 64
CONFIG = tiny_run(
    data={"sequence_length": LENGTH, "document_mask": True}, training={"batch_size": 8}, model={"n_positions": 64}
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, texts, tokenizer):
    """Pairs of very uneven lengths, one per row and packed."""
    root = tmp_path_factory.mktemp("pairs")
    records = [
        {"prompt": text[: 5 + n % 50], "completion": text[60 : 62 + n % 7 * 9]} for n, text in enumerate(texts[:40])
    ]
    (root / "0.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for pack in (False, True):
        name = "packed" if pack else "example"
        prepare([f"{root}/0.jsonl"], f"{root}/{name}", tokenizer, format="pairs", pack=pack, sequence_length=LENGTH)
    return root


def rows_of(folder):
    rows = open_rows(TokenFiles(folder), LENGTH, document_mask=True)
    return np.stack([rows[number] for number in range(len(rows))])


@pytest.fixture(scope="module")
def gradients(folders):
    """A function of rows, mesh and micro-batches to their loss and gradients."""
    params = init_params(CONFIG.model, 0)

    def compute(rows, axes=(1, 1, 1), micro_batches=1):
        training = {"batch_size": len(rows), "gradient_accumulation_steps": micro_batches, "z_loss": 0.0}
        config = replace(CONFIG, mesh=MeshConfig(*axes), training=replace(CONFIG.training, **training))
        mesh = make_mesh(config.mesh, devices(int(np.prod(axes))))
        with jax.set_mesh(mesh):
            batch = jax.device_put(rows, batch_sharding(mesh))
            found = jax.jit(accumulated_gradients, static_argnums=0)(resolve(config, mesh), params, batch)
        return jax.device_get(found)

    return compute


def assert_equal(one, other, tolerance):
    np.testing.assert_allclose(one[0].cross_entropy, other[0].cross_entropy, rtol=tolerance)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def test_the_loss_is_that_of_pytorch_with_minus_100(folders, gradients):
    rows = rows_of(folders / "example")
    logits = module(CONFIG.model, init_params(CONFIG.model, 0))(jnp.array(ids_of(rows[:, :-1])))
    labels = targets_of(rows[:, 1:]).astype(np.int64)
    labels[labels < 0] = -100
    expected = torch.nn.functional.cross_entropy(torch.tensor(np.array(logits)).mT, torch.tensor(labels))
    np.testing.assert_allclose(gradients(rows)[0].cross_entropy, expected.item(), rtol=1e-6)


def test_packed_examples_have_the_loss_and_gradients_of_examples_alone(folders, gradients):
    alone, packed = rows_of(folders / "example"), rows_of(folders / "packed")
    assert len(packed) < 0.7 * len(alone)
    assert_equal(gradients(packed), gradients(alone), 1e-5)


@pytest.mark.parametrize(("axes", "micro_batches"), [((1, 1, 1), 4), ((4, 1, 1), 1), ((1, 2, 2), 4), ((2, 2, 2), 2)])
def test_the_mean_is_over_the_trained_tokens_of_the_whole_batch(folders, gradients, axes, micro_batches):
    rows = rows_of(folders / "packed")[:16].copy()
    for number in range(0, 16, 2):  # very uneven: some rows train 1 token, others up to 64
        [trained] = np.nonzero(rows[number] >= 0)
        rows[number, trained[1:]] = ~rows[number, trained[1:]]
    rows[5] = PADDING
    assert_equal(gradients(rows, axes, micro_batches), gradients(rows), 1e-5)


def test_epochs_and_decay_are_resolved_to_steps(folders, tmp_path):
    rows = len(rows_of(folders / "packed"))
    config = tiny_run(
        output=tmp_path / "run",
        data={"train": f"{folders}/packed", "validation": f"{folders}/example", "sequence_length": LENGTH}
        | {"document_mask": True},
        model={"n_positions": LENGTH},
        training={"epochs": 2.5, "batch_size": 8},
        optimizer={"decay_steps": 0},
    )
    steps = -(-rows * 5 // 16)
    resolved = with_steps(config, Fraction(rows))
    assert (resolved.training.steps, resolved.optimizer.decay_steps) == (steps, steps - 2)
    train(config)
    metrics = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert metrics[-1]["step"] == steps and metrics[-1]["epoch"] >= 2.5 > metrics[-2]["epoch"]
    assert metrics[-1]["learning_rate"] < 3e-3 < metrics[3]["learning_rate"]
    train(config)  # finds that all steps are done
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [*range(1, steps + 1)]
    validation = [line for line in read_metrics(tmp_path / "run") if "validation_loss" in line]
    manifest = TokenFiles(folders / "example").manifest
    assert validation[-1]["bits_per_byte"] == pytest.approx(manifest.bits_per_byte(validation[-1]["validation_loss"]))
    assert validation[-1]["validation_loss"] < validation[0]["validation_loss"]


def test_a_run_needs_steps_or_epochs():
    for training, field in (
        ({"steps": 0}, "steps"),
        ({"steps": -1, "epochs": 1.0}, "steps"),
        ({"epochs": 0.0}, "epochs"),
    ):
        with pytest.raises(UserError, match=f"^training.{field}: must be positive, got"):
            tiny_run(training=training)
