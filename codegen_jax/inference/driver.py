"""How callers share a scheduler: threads take turns to step it, and a thread of its own steps it for asyncio tasks."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence

from codegen_jax.inference.scheduler import Scheduler, Ticket

log = logging.getLogger(__name__)


class Driver:
    """Steps a scheduler while callers wait for their tickets. Every step is for all tickets, whoever makes it."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self._stepping = threading.Lock()  # held during a step
        self._starting = threading.Lock()  # held for an instant
        self._has_thread = False

    def run(self, tickets: Sequence[Ticket], report: Callable[[], None] = lambda: None) -> None:
        """Run tickets to their ends, calling `report` after each step; cancel them if that is interrupted.

        Raises:
            BaseException: the error of a ticket, after all have ended.
        """
        try:
            for ticket in tickets:
                self.scheduler.submit(ticket)
            for ticket in tickets:
                while not ticket.is_done:
                    self._step()
                    report()
            with self._stepping:
                pass  # the step of another thread that ended the last ticket is over
            report()
        finally:
            self._cancel(tickets)
        if error := next((ticket.error for ticket in tickets if ticket.error), None):
            raise error

    def stream(self, ticket: Ticket) -> Generator[None, None, None]:
        """Run a ticket, yielding after each step. Closing the iterator early cancels the ticket.

        Raises:
            BaseException: the ticket's error.
        """
        self.scheduler.submit(ticket)
        try:
            while not ticket.is_done:
                self._step()
                yield
        finally:
            self._cancel([ticket])
        if ticket.error:
            raise ticket.error

    async def updates(self, ticket: Ticket) -> AsyncGenerator[None, None]:
        """Run a ticket, for asyncio, yielding after each change of its text. Leaving early cancels the ticket.

        Raises:
            BaseException: the ticket's error.
        """
        loop, changes = asyncio.get_running_loop(), asyncio.Queue()
        ticket.listener = lambda _: loop.call_soon_threadsafe(changes.put_nowait, None) and None
        self.scheduler.submit(ticket)
        self._start_thread()
        try:
            while not ticket.is_done:
                await changes.get()
                if ticket.error:
                    raise ticket.error
                yield
        finally:
            if not ticket.is_done:
                self.scheduler.cancel(ticket)

    def _start_thread(self) -> None:
        """Have a thread step the scheduler for as long as it is busy."""

        def step_while_busy() -> None:
            while True:
                with self._stepping, self._starting:
                    if not self.scheduler.is_busy:
                        self._has_thread = False
                        return
                try:
                    self._step()
                except BaseException:  # the tickets have it: see `Scheduler.fail`
                    log.debug("the engine failed", exc_info=True)

        with self._starting:
            if not self._has_thread:
                self._has_thread = True
                threading.Thread(target=step_while_busy, name="codegen-jax engine", daemon=True).start()

    def _step(self) -> None:
        with self._stepping:
            if self.scheduler.is_busy:
                try:
                    self.scheduler.step()
                except BaseException as error:
                    self.scheduler.fail(error)
                    raise

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        """Cancel the tickets that are not done, and free their rows."""
        if live := [ticket for ticket in tickets if not ticket.is_done]:
            for ticket in live:
                ticket.listener = None
                self.scheduler.cancel(ticket)
            self._step()
