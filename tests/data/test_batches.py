"""Batches are a function of seed and step, whatever the mesh, number of hosts and first step."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from codegen_jax.config import MeshConfig
from codegen_jax.data.batches import Batches, prefetch, validation_batches
from codegen_jax.data.order import Order
from codegen_jax.data.tokens import TokenFiles, Windows
from codegen_jax.sharding import make_mesh
from codegen_jax.training.step import batch_sharding
from tests.runs import devices


def sharding(*axes):
    return batch_sharding(make_mesh(MeshConfig(*axes), devices(int(np.prod(axes)))))


def make_batches(windows, batch_size, seed, sharding):
    return Batches([windows], Order([len(windows)], [1], batch_size, seed), sharding)


@pytest.fixture(scope="module")
def windows(token_folder):
    return Windows(TokenFiles(token_folder), sequence_length=16)


class Numbered:
    """Fake windows: every token of row i is i; records each read."""

    sequence_length = 3

    def __init__(self, count, first=0):
        self.count, self.first, self.reads = count, first, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        return np.full(4, self.first + index, np.int32)


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_batches_do_not_depend_on_the_mesh(windows, axes):
    one, many = make_batches(windows, 16, 5, sharding(1, 1, 1)), make_batches(windows, 16, 5, sharding(*axes))
    for step in (0, 1, 7, 1000):
        np.testing.assert_array_equal(one(step), many(step))


def test_a_batch_is_a_function_of_seed_and_step(windows):
    batches, again = (make_batches(windows, 8, 5, sharding(1, 1, 1)) for _ in range(2))
    for step in (3, 0, 3):
        np.testing.assert_array_equal(batches(step), again(step))
    assert not np.array_equal(batches(0), batches(1))
    assert not np.array_equal(batches(0), make_batches(windows, 8, 6, sharding(1, 1, 1))(0))


def test_each_epoch_has_every_window_once_in_a_new_order():
    batches = make_batches(Numbered(60), 12, 0, sharding(1, 1, 1))
    epochs = [[int(row) for step in range(5 * e, 5 * e + 5) for row in batches(step)[:, 0]] for e in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(60))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_cross_the_end_of_an_epoch():
    batches = make_batches(Numbered(10), 8, 0, sharding(1, 1, 1))
    rows = [int(row) for step in range(5) for row in batches(step)[:, 0]]
    assert [sorted(rows[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4


def test_a_device_reads_only_its_own_rows():
    windows = Numbered(100)
    batch = make_batches(windows, 16, 0, sharding(2, 4, 1))(3)
    assert len(windows.reads) == 16  # each row once, not the whole batch once per device
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(batch)[shard.index])


def test_a_batch_mixes_its_sources_in_proportion():
    batches = Batches([Numbered(50), Numbered(50, 1000)], Order([50, 50], [3, 1], 16, 0), sharding(2, 4, 1))
    for step in range(20):
        assert np.sum(np.asarray(batches(step))[:, 0] >= 1000) == 4


HOST = """
import sys
import jax
process, processes, port, folder, out = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
jax.config.update("jax_num_cpu_devices", 8 // processes)
if processes > 1:
    jax.distributed.initialize(f"localhost:{port}", processes, int(process))
import numpy as np
from codegen_jax.config import DataConfig, MeshConfig, SourceConfig
from codegen_jax.data.batches import Batches, prefetch
from codegen_jax.data.order import Order
from codegen_jax.data.sources import open_sources
from codegen_jax.sharding import make_mesh
from codegen_jax.training.step import batch_sharding
sources, _ = open_sources(DataConfig(
    sources={name: SourceConfig(folder, weight) for name, weight in (("a", 0.7), ("b", 0.3))}, sequence_length=16))
windows = [source.rows for source in sources]
order = Order([len(w) for w in windows], [0.7, 0.3], 16, 5, [[4, 6]])
class Counting:
    sequence_length = 16
    def __init__(self, windows): self.windows = windows
    def __getitem__(self, index): read.append(index); return self.windows[index]
for first in (5, 0):
    read = []
    batches = Batches([Counting(w) for w in windows], order, batch_sharding(make_mesh(MeshConfig(2, 4, 1))))
    for step, batch in enumerate(prefetch(batches, range(first, 8), depth=processes), first):
        for shard in batch.addressable_shards:
            np.save(f"{out}/{first}_{step}_{shard.index[0].start or 0}.npy", shard.data)
    assert len(read) == (8 - first) * 16 // processes, "a host reads only the rows of its devices"
"""


def batches_on_hosts(tmp_path, token_folder, processes):
    """Batches as bytes by (first, step), from steps 0 and 5, made by processes that share eight devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / str(processes)
    out.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    args = [str(processes), port, str(token_folder), str(out)]
    hosts = [subprocess.Popen([sys.executable, "-c", HOST, str(i), *args], env=environment) for i in range(processes)]
    assert [host.wait(timeout=100) for host in hosts] == [0] * processes
    batches = {}
    for first in (0, 5):
        for step in range(first, 8):
            files = sorted(out.glob(f"{first}_{step}_*.npy"), key=lambda file: int(file.stem.split("_")[2]))
            batches[first, step] = np.concatenate([np.load(file) for file in files]).tobytes()
    return batches


def test_batches_do_not_depend_on_the_number_of_hosts_or_the_first_step(tmp_path, token_folder):
    """Real processes joined by jax.distributed, with a prefetch depth equal to the number of hosts."""
    one = batches_on_hosts(tmp_path, token_folder, 1)
    assert batches_on_hosts(tmp_path, token_folder, 2) == one
    assert batches_on_hosts(tmp_path, token_folder, 4) == one
    assert [one[5, step] for step in (5, 6, 7)] == [one[0, step] for step in (5, 6, 7)]
    assert len(set(one.values())) == 8


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
    rows = [
        np.asarray(b)[:, 0].tolist() for b in validation_batches(Numbered(10), 4, sharding(1, 1, 1), max_batches=16)
    ]
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]


def test_validation_uses_at_most_max_batches():
    rows = [np.asarray(b)[:, 0].tolist() for b in validation_batches(Numbered(10), 4, sharding(1, 1, 1), max_batches=1)]
    assert rows == [[0, 1, 2, 3]]
