"""Waiting for a condition, with a deadline: no test sleeps for a time in which it hopes that something happens."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

LOOK_EVERY_S = 0.005


def wait_until(condition: Callable[[], Any], deadline_s: float = 60.0) -> None:
    """Look until the condition holds. Raises AssertionError at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {condition}"
        time.sleep(LOOK_EVERY_S)


async def await_until(condition: Callable[[], Any | Awaitable[Any]], deadline_s: float = 60.0) -> None:
    """The same for a condition that may itself have to be awaited."""
    deadline = time.monotonic() + deadline_s
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < deadline, f"not within {deadline_s:g} s: {condition}"
        await anyio.sleep(LOOK_EVERY_S)
