import jax
import numpy as np
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.data.batches import Batches, prefetch, validation_batches
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.sharding import make_mesh
from codegen_jax.training.step import batch_sharding


def sharding(*axes):
    return batch_sharding(make_mesh(MeshConfig(*axes), jax.devices()[: np.prod(axes)]))


@pytest.fixture(scope="module")
def windows(token_folder):
    return Windows(TokenFiles(token_folder), sequence_length=16)


class Numbered:
    """Stands in for windows: row i is i everywhere; remembers what was read."""

    sequence_length = 3

    def __init__(self, count):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return np.full(4, index, np.int32)


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_batches_do_not_depend_on_the_mesh(windows, axes):
    one, many = Batches(windows, 16, 5, sharding(1, 1, 1)), Batches(windows, 16, 5, sharding(*axes))
    for step in (0, 1, 7, 1000):
        np.testing.assert_array_equal(one(step), many(step))


def test_a_batch_is_a_function_of_seed_and_step(windows):
    batches, again = (Batches(windows, 8, 5, sharding(1, 1, 1)) for _ in range(2))
    for step in (3, 0, 3):
        np.testing.assert_array_equal(batches(step), again(step))
    assert not np.array_equal(batches(0), batches(1))
    assert not np.array_equal(batches(0), Batches(windows, 8, 6, sharding(1, 1, 1))(0))


def test_an_epoch_has_every_window_once_and_the_next_another_order():
    batches = Batches(Numbered(40), 8, 0, sharding(1, 1, 1))
    epochs = [[int(row) for step in range(5 * e, 5 * e + 5) for row in batches(step)[:, 0]] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_cross_the_end_of_an_epoch():
    batches = Batches(Numbered(10), 8, 0, sharding(1, 1, 1))
    rows = [int(row) for step in range(5) for row in batches(step)[:, 0]]
    assert [sorted(rows[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4


def test_a_device_reads_the_rows_that_it_owns():
    windows = Numbered(100)
    batch = Batches(windows, 16, 0, sharding(2, 4, 1))(3)
    assert len(windows.read) == 16  # each row once, not the batch once a device
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(batch)[shard.index])


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("steps", [range(0), range(3, 4), range(2, 12)])
def test_prefetch_yields_each_step_in_order(steps, depth):
    assert list(prefetch(lambda step: step * step, steps, depth)) == [step * step for step in steps]


def test_an_error_while_loading_reaches_the_loop():
    def load(step):
        if step == 3:
            raise OSError("disk gone")
        return step

    with pytest.raises(OSError, match="disk gone"):
        list(prefetch(load, range(10)))


def test_validation_rows_are_in_order_and_padded_at_the_end():
    rows = [np.asarray(b)[:, 0].tolist() for b in validation_batches(Numbered(10), 4, sharding(1, 1, 1), most=16)]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]


def test_validation_uses_at_most_so_many_batches():
    rows = [np.asarray(b)[:, 0].tolist() for b in validation_batches(Numbered(10), 4, sharding(1, 1, 1), most=1)]
    assert rows == [[0, 1, 2, 3]]
