"""SIGTERM asks a run to stop while it is running, and has no effect on it afterwards."""

import os
import signal
import threading

import pytest

from codegen_jax.training.preemption import watch_preemption


@pytest.fixture
def heard():
    """The signals received by the handler that was installed before the run."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    yield heard
    signal.signal(signal.SIGTERM, before)


def test_a_run_is_told_to_stop_at_the_step_after_sigterm(heard):
    with watch_preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2) and preemption.reached(3)
    assert heard == []


def test_the_handler_from_before_is_put_back_after_a_run(heard):
    with watch_preemption() as preemption:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ["before"] and not preemption.reached(1)


def test_the_handler_from_before_is_put_back_after_a_run_that_fails(heard):
    with pytest.raises(RuntimeError, match="no memory"), watch_preemption():
        raise RuntimeError("no memory")
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == ["before"]


def test_a_run_in_a_thread_leaves_signals_to_the_program(heard):
    reached = []

    def run():
        with watch_preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(preemption.reached(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == ["before"] and reached == [False]


def test_ctrl_c_tells_a_run_to_save_and_a_second_one_ends_it_at_once(heard):
    with watch_preemption() as preemption:
        preemption.steps = True
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(1) and preemption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and heard == []


def test_ctrl_c_before_the_first_step_ends_a_run_at_once():
    with watch_preemption() as preemption, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not preemption.reached(1)
