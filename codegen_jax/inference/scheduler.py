"""Which request runs when: the queue, admission, memory, deadlines and cancellation. It knows neither JAX nor texts.

`Scheduler.step` is one look at the table: it takes what the last chunk of rounds gave, fills free rows, starts the next
chunk, and only then makes texts of the last chunk's tokens, while the devices are at work.
"""

import heapq
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from codegen_jax.errors import UserError
from codegen_jax.inference.request import FinishReason, SamplingParams

LONG = 32  # rounds of a chunk if nothing waits for it to end; programs.CHUNK is the maximum
SETTLED = 16  # rounds for which a table has been too large before it shrinks, since resizing copies it


class Text(Protocol):
    """The text of a completion; see text.py."""

    ids: list[int]
    text: str

    def extend(self, ids: Sequence[int]) -> bool: ...

    def new(self, ended: bool = False) -> str: ...


@dataclass(eq=False)
class Ticket:
    """A request on its way through the scheduler.

    Attributes:
        ids: token ids of the prompt.
        params: how the request is completed.
        text: receives the new ids, and says whether a stop ended them.
        may_stop: whether it ever says so.
        sample: see `Request`.
        priority: see `Request`.
        deadline: time on the scheduler's clock at which the request ends.
        watched: whether someone reads the text as it grows, so that chunks are short.
        listener: called after each change of the text; `is_done` tells whether it was the last.
        new: ids that the engine generated.
        logprobs: their log-probabilities, if requested.
        top_logprobs: the most likely ids at each position with their log-probabilities, if requested.
        proposed: number of draft tokens so far.
        accepted: number of accepted draft tokens so far.
        reason: why the request ended; None before.
        error: the error that ended this request alone.
        is_done: whether text, reason and error are final.
        order: number of the request in the order of arrival.
    """

    ids: list[int]
    params: SamplingParams
    text: Text
    may_stop: bool = False
    sample: int = 0
    priority: int = 0
    deadline: float | None = None
    watched: bool = False
    listener: Callable[["Ticket"], None] | None = None
    new: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    proposed: int = 0
    accepted: int = 0
    reason: FinishReason | None = None
    error: BaseException | None = None
    is_done: bool = False
    order: int = 0

    def __lt__(self, other: "Ticket") -> bool:
        """Whether it starts before another ticket."""
        return (-self.priority, self.order) < (-other.priority, other.order)

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.new)

    @property
    def limit(self) -> int:
        return len(self.ids) + self.params.max_new_tokens


class Scheduler:
    """Runs tickets on an engine.

    Args:
        engine: the table of rows; see engine.py.
        admission: makes the engine's `Admission` of a row, ids, the prompt's length, params and the sample number.
        max_rows: maximum number of rows.
        max_bytes: maximum size of the table; None: any.
        fixed: the number of rows and slots of a table that keeps its size; None: it grows and shrinks with the load.
        keeps_rows: whether rows that have ended keep their KV caches.
        short: rounds of a chunk while a request waits, is watched, or may be ended by its text.
        clock: the time in seconds.
    """

    def __init__(
        self,
        engine: Any,
        admission: Callable[..., Any],
        *,
        max_rows: int,
        max_bytes: float | None = None,
        fixed: tuple[int, int] | None = None,
        keeps_rows: bool = False,
        short: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.engine, self.admission, self.max_rows, self.max_bytes = engine, admission, max_rows, max_bytes
        self.fixed, self.keeps_rows, self.short, self.clock = fixed, keeps_rows, short, clock
        self.rows: dict[int, Ticket] = {}
        self.preempted = 0
        self._arrived: deque[Ticket] = deque()
        self._waiting: list[Ticket] = []  # a heap; tickets that ended while they waited stay in it
        self._deadlines: list[tuple[float, Ticket]] = []  # a heap, too
        self._cancelled: deque[Ticket] = deque()
        self._released: set[int] = set()  # rows that the engine still takes for those of a request
        self._running: dict[int, Ticket] | None = None  # the rows of the chunk that is being computed
        self._oversized_rounds = 0
        self._orders = count()

    @property
    def is_busy(self) -> bool:
        return bool(self._arrived or self._waiting or self.rows)

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket, which must fit into the table alone (`fits`). Any thread may call it."""
        ticket.order = next(self._orders)
        self._arrived.append(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """End a ticket at the next step, wherever it is. Any thread may call it."""
        self._cancelled.append(ticket)

    def fits(self, length: int) -> bool:
        """Whether a request may grow to this length if it is alone."""
        return self._fits(self.engine.padded_rows(1), self.engine.slots_for(length))

    def step(self) -> None:
        """Look at the table once; see above."""
        while self._arrived:
            ticket = self._arrived.popleft()
            heapq.heappush(self._waiting, ticket)
            if ticket.deadline is not None:
                heapq.heappush(self._deadlines, (ticket.deadline, ticket))
        found = self._collect()
        ended = self._end_early()
        self._admit()
        self._dispatch()
        for tokens in found:
            self._add_text(*tokens)
        for ticket in {id(ticket): ticket for ticket in (*(ticket for ticket, *_ in found), *ended)}.values():
            ticket.is_done = ticket.reason is not None
            if ticket.listener:
                ticket.listener(ticket)
        if not self.is_busy:
            self._running = None
            if self.fixed is None:
                self.engine.clear()

    def fail(self, error: BaseException) -> None:
        """End all tickets with an error, after an exception left the engine in an unknown state."""
        live = [*self._arrived, *self._waiting, *self.rows.values()]
        for container in (self._arrived, self._waiting, self._deadlines, self._cancelled, self.rows, self._released):
            container.clear()
        self._running = None
        self.engine.clear()
        for ticket in live:
            ticket.error, ticket.reason, ticket.is_done = error, "cancelled", True
            if ticket.listener:
                ticket.listener(ticket)

    def _collect(self) -> list[tuple[Ticket, int, int, Any]]:
        """What the last chunk gave: tickets, their rows in it and numbers of new ids. Rows that ended are free."""
        if self._running is None:
            return []
        running, chunk = self._running, self.engine.fetch()
        self._running, found = None, []
        for row, ticket in running.items():
            if ticket.reason is None:
                new = chunk.tokens_BC[row, : chunk.count_B[row]].tolist()
                ticket.new += new
                found.append((ticket, row, len(new), chunk))
                if chunk.done_B[row]:
                    is_end = ticket.new[-1] in self.engine.end_ids and not ticket.params.ignore_eos
                    self._end(ticket, "eos" if is_end else "length")
        return found

    def _end_early(self) -> list[Ticket]:
        """End the tickets that were cancelled or have reached their deadlines."""
        ended = []
        while self._cancelled:
            ended.append((self._cancelled.popleft(), "cancelled"))
        while self._deadlines and self._deadlines[0][0] <= self.clock():
            ended.append((heapq.heappop(self._deadlines)[1], "deadline"))
        ended = [(ticket, reason) for ticket, reason in ended if ticket.reason is None]
        for ticket, reason in ended:
            self._end(ticket, reason)
        return [ticket for ticket, _ in ended]

    def _end(self, ticket: Ticket, reason: FinishReason) -> None:
        """End a ticket, and free its row if it has one."""
        ticket.reason = reason
        for row in [row for row, other in self.rows.items() if other is ticket]:
            self._free(row)

    def _free(self, row: int) -> Ticket:
        if not self.keeps_rows:
            self._released.add(row)
        return self.rows.pop(row)

    def _admit(self) -> None:
        """Give rows to waiting tickets, by priority and order of arrival, and resize the table if needed."""
        admitted: list[Ticket] = []
        while self._waiting and (self._waiting[0].reason or len(self.rows) + len(admitted) < self.max_rows):
            ticket = heapq.heappop(self._waiting)
            if ticket.reason is None:
                admitted.append(ticket)
        while not self._fits(*(size := self._size([*self.rows.values(), *admitted]))):
            if admitted:
                heapq.heappush(self._waiting, admitted.pop())
            else:  # the rows have outgrown the memory: the last one waits again, and continues with its tokens later
                heapq.heappush(self._waiting, self._free(max(self.rows, key=self.rows.__getitem__)))
                self.preempted += 1
        if not self.rows and not admitted:
            return
        self._resize(*size, admitted)
        free = [row for row in range(self.engine.rows) if row not in self.rows]
        places = dict(zip(free, admitted))
        self.rows |= places
        admissions = [self.admission(row, t.ids + t.new, len(t.ids), t.params, t.sample) for row, t in places.items()]
        self.engine.update(sorted(self._released - places.keys()), admissions)
        self._released.clear()

    def _size(self, tickets: Sequence[Ticket]) -> tuple[int, int]:
        """The number of rows and slots that these tickets need for the next chunk."""
        if self.fixed:
            return self.fixed
        ahead = self._rounds(tickets) * (self.engine.num_draft_tokens + 1)
        longest = max((min(ticket.length + ahead, ticket.limit) for ticket in tickets), default=1)
        return self.engine.padded_rows(max(1, len(tickets))), self.engine.slots_for(longest)

    def _fits(self, rows: int, slots: int) -> bool:
        return self.max_bytes is None or self.engine.kv_bytes(rows, slots) <= self.max_bytes

    def _resize(self, rows: int, slots: int, admitted: Sequence[Ticket]) -> None:
        """Grow the table at once, to twice its slots if it may; shrink it when it has been too large for a while."""
        engine = self.engine
        least = max(rows, engine.rows), max(slots, engine.slots)
        if self._fits(*least):
            if 2 * rows > engine.rows and 2 * slots > engine.slots:
                self._oversized_rounds = 0
            if least == (engine.rows, engine.slots) and self._oversized_rounds < SETTLED:
                return
            if slots > engine.slots:
                largest = engine.slots_for(max(ticket.limit for ticket in (*self.rows.values(), *admitted)))
                roomy = max(slots, min(2 * engine.slots, largest))
                slots = roomy if self._fits(least[0], roomy) else slots
            if least != (engine.rows, engine.slots):
                rows, slots = least[0], max(slots, engine.slots)
        self._oversized_rounds = 0
        kept = sorted(self.rows)
        engine.resize([*kept, *[None] * (rows - len(kept))], slots)
        self.rows = {kept.index(row): ticket for row, ticket in self.rows.items()}
        self._released.clear()

    def _rounds(self, tickets: Sequence[Ticket]) -> int:
        """The number of rounds of the next chunk with these tickets."""
        is_short = bool(self._waiting) or any(ticket.watched or ticket.may_stop for ticket in tickets)
        return self.short if is_short else LONG

    def _dispatch(self) -> None:
        if self.rows:
            rounds = self._rounds(list(self.rows.values()))
            self._oversized_rounds += rounds
            self._running = dict(self.rows)
            self.engine.dispatch(rounds)

    def _add_text(self, ticket: Ticket, row: int, new: int, chunk: Any) -> None:
        """Add a chunk's tokens to a ticket's text, and end it at a stop, or if its text cannot be made."""
        if ticket.params.logprobs is not None:
            top = ticket.params.logprobs
            ticket.logprobs += chunk.logprobs_BC[row, :new].tolist()
            ids, values = (x_BCN[row, :new, :top].tolist() for x_BCN in (chunk.top_ids_BCN, chunk.top_logprobs_BCN))
            ticket.top_logprobs += [dict(zip(*pair)) for pair in zip(ids, values)]
        ticket.proposed += int(chunk.proposed_B[row])
        ticket.accepted += int(chunk.accepted_B[row])
        ids = ticket.new[len(ticket.new) - new :]
        try:
            if ticket.text.extend(ids[:-1] if ticket.reason == "eos" else ids):
                self._end(ticket, "stop")
        except UserError as error:
            ticket.error = error
            self._end(ticket, "cancelled")
