"""SIGTERM stops a run after the current step, and has no effect on it afterwards."""

import os
import signal
import threading

import pytest

from codegen_jax.training.preemption import watch_preemption


@pytest.fixture
def received():
    """Records each signal that reaches the handler installed before the run."""
    received = []
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append("outer"))
    yield received
    signal.signal(signal.SIGTERM, previous)


def test_sigterm_stops_the_run_after_the_current_step(received):
    with watch_preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2) and preemption.reached(3)
    assert received == []


def test_previous_handler_is_restored_after_a_run(received):
    with watch_preemption() as preemption:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == ["outer"] and not preemption.reached(1)


def test_previous_handler_is_restored_after_a_failed_run(received):
    with pytest.raises(RuntimeError, match="no memory"), watch_preemption():
        raise RuntimeError("no memory")
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == ["outer"]


def test_run_in_a_thread_does_not_handle_signals(received):
    reached = []

    def run():
        with watch_preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(preemption.reached(1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert received == ["outer"] and reached == [False]


def test_first_ctrl_c_saves_and_second_ends_the_run_at_once(received):
    with watch_preemption() as preemption:
        preemption.training = True
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.reached(1) and preemption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and received == []


def test_ctrl_c_before_the_first_step_ends_the_run_at_once():
    with watch_preemption() as preemption, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert not preemption.reached(1)
