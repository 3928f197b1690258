"""Configs for small test runs."""

import dataclasses
from typing import Any

import jax
import pytest

from codegen_jax.config import (
    CheckpointConfig,
    CodeGenConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
)
from codegen_jax.weights.base import Weights


def tiny_run(output="unused", tokens="unused", **sections) -> RunConfig:
    """A run of six float32 steps on 16 x 32 tokens each; `training={"steps": 9}` changes fields of a section."""
    config = RunConfig(
        output=str(output),
        model=CodeGenConfig(n_layer=2, n_embd=32, n_head=4, rotary_dim=4, vocab_size=512, dtype="float32"),
        data=DataConfig(train=str(tokens), sequence_length=32),
        optimizer=OptimizerConfig(learning_rate=1e-2, end_learning_rate=1e-3, warmup_steps=2, decay_steps=4),
        training=TrainingConfig(steps=6, batch_size=16, z_loss=1e-4, log_every=1, eval_every=3, eval_batches=2),
        checkpoint=CheckpointConfig(save_every=2),
        mesh=MeshConfig(1, 8, 1),
    )
    for name, fields in sections.items():
        old = getattr(config, name)
        new = dataclasses.replace(old, **fields) if isinstance(fields, dict) else fields
        config = dataclasses.replace(config, **{name: new})
    return config


def devices(count: int) -> list[Any]:
    """The first `count` devices; skips the test if there are fewer, for example on a machine with one GPU."""
    if len(jax.devices()) < count:
        pytest.skip(f"requires {count} devices, found {len(jax.devices())}")
    return jax.devices()[:count]


class InMemory(Weights):
    """Weights of a parameter tree."""

    def __init__(self, config, params):
        super().__init__("memory", config, None)
        self.params = params

    def _array(self, name):
        value = self.params
        for key in name.split("."):
            value = value[key]
        return value

    def dtype(self, name):
        return self._array(name).dtype

    def read(self, name, index):
        return self._array(name)[index]
