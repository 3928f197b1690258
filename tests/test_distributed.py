"""Tests with a single process; training/test_processes.py tests multi-process runs."""

import threading
import time

from codegen_jax import distributed
from codegen_jax.config import DistributedConfig


class SlowStore:
    """A coordinator's key-value store that answers slowly."""

    def key_value_set(self, *_):
        time.sleep(0.3)

    def key_value_dir_get(self, _):
        return []

    def key_value_try_get(self, _):
        raise KeyError


def test_watcher_thread_ends_with_the_run(monkeypatch):
    monkeypatch.setattr(distributed, "_initialize", lambda config: None)
    monkeypatch.setattr(distributed, "_client", SlowStore)
    before = set(threading.enumerate())
    with distributed.joined(DistributedConfig(coordinator="127.0.0.1:1", num_processes=1, process_id=0)):
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before
