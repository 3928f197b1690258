"""A sandbox layer and a worker in it, one of each per test module."""

import pytest

from codegen_jax.evaluation.sandbox_layers import choose_layer
from codegen_jax.evaluation.worker import Worker


@pytest.fixture(scope="module")
def layer():
    return choose_layer("auto")


@pytest.fixture(scope="module")
def worker(layer):
    worker = Worker(layer)
    yield worker
    worker.close()
