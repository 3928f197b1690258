"""Which request runs when, on an engine that knows no network: the next token is the number of tokens so far."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from codegen_jax.errors import UserError
from codegen_jax.inference.request import SamplingParams
from codegen_jax.inference.scheduler import LONG, Scheduler, Ticket

EOS = 7


class FakeEngine:
    """Row by row, generates the length of the row so far as the next token."""

    num_draft_tokens, end_ids = 0, (EOS,)

    def __init__(self):
        self.rows, self.slots, self.table, self.log, self.sizes = 0, 0, {}, [], []

    def padded_rows(self, count):
        return 1 << (count - 1).bit_length()

    def slots_for(self, length):
        return -(-length // 16) * 16

    def kv_bytes(self, rows, slots):
        return rows * slots

    def clear(self):
        self.rows, self.slots, self.table = 0, 0, {}

    def resize(self, kept, slots):
        self.table = {new: self.table[old] for new, old in enumerate(kept) if old is not None}
        self.rows, self.slots = len(kept), slots
        self.sizes.append((self.rows, slots))

    def update(self, released, admitted):
        for row in released:
            self.table.pop(row, None)
        for row, ids, prompt, params, _ in admitted:
            self.table[row] = [list(ids), prompt + params.max_new_tokens, params]
            self.log.append(("admitted", ids[0], len(ids)))

    def dispatch(self, rounds):
        tokens_BC, count_B = np.zeros((self.rows, rounds), int), np.zeros(self.rows, int)
        done_B = np.ones(self.rows, bool)
        for row, (ids, limit, params) in self.table.items():
            for _ in range(rounds):
                is_end = bool(count_B[row]) and ids[-1] == EOS and not params.ignore_eos
                if len(ids) < limit and not is_end:
                    tokens_BC[row, count_B[row]] = len(ids)
                    ids.append(len(ids))
                    count_B[row] += 1
            assert len(ids) <= self.slots
            done_B[row] = len(ids) == limit or (ids[-1] == EOS and not params.ignore_eos)
        zeros_B = np.zeros(self.rows, int)
        names = {"tokens_BC": tokens_BC, "count_B": count_B, "done_B": done_B}
        self.log.append(("dispatched", rounds, sorted(ids[0] for ids, *_ in self.table.values())))
        self.chunk = SimpleNamespace(**names, proposed_B=zeros_B, accepted_B=zeros_B)

    def fetch(self):
        self.log.append(("fetched",))
        return self.chunk


class FakeText:
    """Ends at the token `stop`, if it is given."""

    def __init__(self, engine, stop=None):
        self.engine, self.ids, self.stop = engine, [], stop

    def extend(self, ids):
        self.engine.log.append(("text", len(ids)))
        for id in ids:
            self.ids.append(id)
            if id == self.stop:
                return True
        return False


def admission(*values):
    return values


def make(max_rows=4, **options):
    engine = FakeEngine()
    return engine, Scheduler(engine, admission, max_rows=max_rows, **options)


def ticket(engine, name, prompt=1, new=5, stop=None, **fields):
    params = SamplingParams(max_new_tokens=new, ignore_eos=True)
    return Ticket([name] * prompt, params, FakeText(engine, stop), may_stop=stop is not None, **fields)


def run(scheduler, limit=1000):
    for steps in range(limit):
        if not scheduler.is_busy:
            return steps
        scheduler.step()
    raise AssertionError("never ends")


def names(engine):
    return [name for kind, name, *_ in (entry for entry in engine.log if entry[0] == "admitted")]


def test_every_request_gets_all_its_tokens_and_the_table_is_freed():
    engine, scheduler = make()
    tickets = [ticket(engine, 100 + n, prompt=1 + n, new=3 + 2 * n) for n in range(11)]
    for one in tickets:
        scheduler.submit(one)
    run(scheduler)
    for n, one in enumerate(tickets):
        assert one.text.ids == list(range(1 + n, 1 + n + 3 + 2 * n)) and one.reason == "length" and one.is_done
    assert engine.rows == 0 and not engine.table


def test_higher_priorities_start_first_and_equal_ones_in_the_order_of_arrival():
    engine, scheduler = make(max_rows=1)
    for name, priority in ((100, 0), (101, 0), (102, 5), (103, 5), (104, -1)):
        scheduler.submit(ticket(engine, name, priority=priority))
    run(scheduler)
    assert names(engine) == [102, 103, 100, 101, 104]


def test_a_free_row_is_filled_at_the_next_look():
    engine, scheduler = make(max_rows=2, short=4)
    for name, new in ((100, 40), (101, 4), (102, 4)):
        scheduler.submit(ticket(engine, name, new=new))
    scheduler.step()
    scheduler.step()
    assert [entry[2] for entry in engine.log if entry[0] == "dispatched"] == [[100, 101], [100, 102]]


def test_chunks_are_short_only_while_a_request_waits_is_watched_or_may_stop():
    engine, scheduler = make(max_rows=1, short=4)
    scheduler.submit(ticket(engine, 100, new=LONG + 10))
    scheduler.step()
    scheduler.submit(ticket(engine, 101, new=40))
    scheduler.step()
    run(scheduler)
    scheduler.submit(ticket(engine, 102, new=5, watched=True))
    scheduler.submit(ticket(engine, 103, new=5, stop=99))
    run(scheduler)
    rounds = [(entry[1], entry[2][0]) for entry in engine.log if entry[0] == "dispatched"]
    assert {name: {r for r, n in rounds if n == name} for name in (100, 101, 102, 103)} == {
        100: {LONG, 4},
        101: {LONG},
        102: {4},
        103: {4},
    }


def test_the_next_chunk_is_dispatched_before_the_text_of_the_last_one_is_made():
    engine, scheduler = make()
    scheduler.submit(ticket(engine, 100, new=LONG * 3))
    run(scheduler)
    kinds = [entry[0] for entry in engine.log if entry[0] != "admitted"]
    assert kinds == ["dispatched", "fetched", "dispatched", "text", "fetched", "dispatched", "text", "fetched", "text"]


def test_a_stop_ends_a_request_and_frees_its_row_although_the_next_chunk_has_begun():
    engine, scheduler = make(max_rows=1, short=4)
    stopped, after = ticket(engine, 100, new=50, stop=3), ticket(engine, 101, new=5)
    scheduler.submit(stopped)
    scheduler.submit(after)
    run(scheduler)
    assert stopped.text.ids == [1, 2, 3] and stopped.reason == "stop"
    assert after.text.ids == [1, 2, 3, 4, 5]
    assert sum(entry[0] == "dispatched" and entry[2] == [100] for entry in engine.log) == 2


@pytest.mark.parametrize("moment", ["queued", "arrived", "decoding"])
def test_cancelling_ends_a_request_at_the_next_step_wherever_it_is(moment):
    engine, scheduler = make(max_rows=1, short=1)
    heard = []
    first = ticket(engine, 100, new=20)
    second = ticket(engine, 101, new=20, listener=heard.append)
    scheduler.submit(second if moment == "decoding" else first)
    scheduler.submit(first if moment == "decoding" else second)
    if moment != "arrived":
        scheduler.step()
        scheduler.step()
    scheduler.cancel(second)
    scheduler.step()
    assert second.is_done and second.reason == "cancelled" and heard[-1] is second
    assert all(other is not second for other in scheduler.rows.values())
    run(scheduler)
    assert first.text.ids == list(range(1, 21))
    assert len(second.text.ids) < 5


def test_a_request_past_its_deadline_ends_with_the_tokens_it_has():
    now = [0.0]
    engine, scheduler = make(max_rows=1, short=2, clock=lambda: now[0])
    late, queued = ticket(engine, 100, new=50, deadline=10.0), ticket(engine, 101, new=50, deadline=5.0)
    scheduler.submit(late)
    scheduler.submit(queued)
    scheduler.step()
    scheduler.step()
    now[0] = 20.0
    scheduler.step()
    assert (late.reason, queued.reason) == ("deadline", "deadline") and late.is_done and queued.is_done
    assert late.text.ids == [1, 2, 3, 4] and queued.text.ids == []
    assert not scheduler.is_busy


def test_the_youngest_waits_again_when_the_rows_outgrow_the_memory_and_loses_no_token():
    engine, scheduler = make(max_rows=4, max_bytes=4 * 32)
    tickets = [ticket(engine, 100 + n, prompt=4, new=40) for n in range(4)]
    for one in tickets:
        assert scheduler.fits(one.limit)
        scheduler.submit(one)
    run(scheduler)
    assert scheduler.preempted > 0
    assert all(rows * slots <= 4 * 32 for rows, slots in engine.sizes)
    for one in tickets:
        assert one.text.ids == list(range(4, 44)) and one.reason == "length"
    again = [entry for entry in engine.log if entry[0] == "admitted" and entry[2] > 4]
    assert again and 100 not in [name for _, name, _ in again]  # the oldest never waits


def test_a_request_that_fails_by_itself_ends_alone():
    engine, scheduler = make()
    good, bad = ticket(engine, 100), ticket(engine, 101)
    error = UserError("stop: too slow")

    def fail(ids):
        raise error

    bad.text.extend = fail
    scheduler.submit(bad)
    scheduler.submit(good)
    run(scheduler)
    assert bad.error is error and bad.is_done and good.error is None and good.text.ids == [1, 2, 3, 4, 5]


def test_a_failure_of_the_engine_ends_every_request_with_it():
    engine, scheduler = make(max_rows=1)
    tickets = [ticket(engine, 100 + n) for n in range(3)]
    for one in tickets:
        scheduler.submit(one)
    scheduler.step()
    scheduler.fail(error := RuntimeError("device lost"))
    assert all(one.error is error and one.is_done for one in tickets) and not scheduler.is_busy


def test_the_table_follows_the_load_but_a_fixed_one_keeps_its_size():
    for fixed in (None, (4, 64)):
        engine, scheduler = make(fixed=fixed, short=1)
        for n in range(9):
            scheduler.submit(ticket(engine, 100 + n, prompt=1 + n, new=40, stop=99))
        run(scheduler)
        assert engine.sizes[0] == (4, 64 if fixed else 16)
        assert (len(engine.sizes) == 1) == bool(fixed)
        assert fixed or engine.sizes[-1][0] == 1


def test_a_hundred_thousand_waiting_requests_do_not_slow_a_step_down():
    def operations(waiting):
        engine, scheduler = make(max_rows=1)
        params, calls = SamplingParams(max_new_tokens=1), 0

        class Counted(Ticket):
            def __lt__(self, other):
                nonlocal calls
                calls += 1
                return super().__lt__(other)

        for _ in range(waiting):
            scheduler.submit(Counted([1], params, FakeText(engine)))
        scheduler.step()
        calls = 0
        for _ in range(20):
            scheduler.step()
        return calls

    assert operations(100_000) < 4 * operations(1_000)


def test_the_clock_is_monotonic_by_default():
    assert make()[1].clock is time.monotonic
