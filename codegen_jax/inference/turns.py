"""Turns of a conversation: rows whose prompts begin with the last turn's text keep its KV cache."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from codegen_jax.errors import require
from codegen_jax.inference import programs
from codegen_jax.inference.decoder import Cache
from codegen_jax.inference.engine import Engine
from codegen_jax.inference.programs import rounded_up
from codegen_jax.inference.scheduler import Ticket


class Turn(NamedTuple):
    """State that `Generator.complete_turn` returns for the next turn.

    Attributes:
        ids: ids of prompt and completion, per row.
        caches: the KV caches of these rows, for the model and the draft model if there is one.
    """

    ids: list[list[int]]
    caches: tuple[Cache, ...]


def reopen(engine: Engine, prompts: Sequence[Sequence[int]], before: Turn | None, slots: int) -> int | None:
    """Open the engine's table with the last turn's caches, extended by the new tokens of each row.

    Returns:
        The number of slots; None if half or less of the prompts is cached, so the table is not opened.
    """
    if before is None:
        return None
    require(
        len(prompts) == len(before.ids),
        f"prompts: expected {len(before.ids)}, as in the previous turn, got {len(prompts)}",
    )
    known_B = np.zeros(len(before.caches[0][0][0]), np.int32)
    for row, (prompt, ids) in enumerate(zip(prompts, before.ids)):
        # the cache lacks the last token, and a draft model's cache may also lack the one before it
        pairs = zip(prompt, ids[:-2])
        known_B[row] = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(ids) - 2))
    if 2 * known_B.sum() <= sum(map(len, prompts)):
        return None
    T = rounded_up(max(len(prompt) - known for prompt, known in zip(prompts, known_B.tolist())), 16)
    tokens_BT = np.zeros((len(known_B), T), np.int32)
    for row, (prompt, known) in enumerate(zip(prompts, known_B.tolist())):
        tokens_BT[row, : len(prompt) - known] = prompt[known:]
    # padding is written, too; without slots for it, the write would be shifted back onto known tokens
    slots = max(slots, before.caches[0][0][1].shape[2], engine.slots_for(int(known_B.max()) + T))
    with jax.set_mesh(engine.mesh):
        caches = [
            programs.extend(weights, cache, tokens_BT, known_B, config=config, slots=slots)
            for (config, weights), cache in zip(engine.networks, before.caches, strict=True)
        ]
    engine.open(caches, slots)
    return slots


def close(engine: Engine, tickets: Sequence[Ticket]) -> Turn:
    """The state for the next turn."""
    ids = [ticket.ids + ticket.text.ids for ticket in tickets]
    return Turn(ids, engine.close(max(ticket.length for ticket in tickets)))
