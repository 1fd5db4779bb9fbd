"""What travels: a message, and what its sender wants to hear of it."""

from typing import Any

from attrs import define

from .park import Parked


@define(eq=False)
class Envelope:
    """One message on its way through a mailbox and a slot.

    Attributes:
        message: for the actor; the kernel never looks inside.
        size_bytes: its length on the wire, counted against mailbox and node budgets.
        reply: where its asker is parked, or None for a tell and once nobody waits any more.
        early: its answer may leave before its slot is committed.
        control: it travels in the control lane.
        answer, error: what its turn came to; both leave with its slot.
        bucket: its place in the deadline wheel, while there is one.
        attempts: how often it crashed its actor when run alone.
    """

    message: Any
    size_bytes: int = 0
    reply: Parked | None = None
    early: bool = False
    control: bool = False
    answer: Any = None
    error: Exception | None = None
    bucket: "dict[Any, None] | None" = None
    attempts: int = 0

    def expire(self, error: Exception) -> None:
        """Tell the asker that its deadline has passed. Still in its mailbox, the message will be dropped there."""
        reply, self.reply, self.bucket = self.reply, None, None
        self.error = error
        if reply is not None and not reply.done():
            reply.set_exception(error)
