"""A bounded mailbox of two lanes. The control lane overtakes, and has room of its own that the normal lane can't take.

Plain deques: a stream per actor costs 7 KiB and a task switch a message. A lane is made at its first message, so an
actor that nobody wrote to holds none.
"""

from collections import deque

from attrs import define, frozen

from ..errors import MailboxFull
from .envelope import Envelope

CONTROL_MESSAGES_MAX = 64


@frozen(kw_only=True)
class MailboxLimits:
    """What one mailbox holds in its normal lane."""

    messages_max: int = 1_000
    bytes_max: int = 1024 * 1024


@frozen(kw_only=True)
class MailboxStatistics:
    """What waits in a mailbox now."""

    normal: int
    control: int
    payload_bytes: int


@define(eq=False)
class Mailbox:
    """First in, first out within a lane. `payload_bytes` counts what waits in both."""

    limits: MailboxLimits
    normal: deque[Envelope] | None = None
    control: deque[Envelope] | None = None
    payload_bytes: int = 0

    @property
    def depth(self) -> int:
        """How many messages wait in both lanes."""
        return len(self.normal or ()) + len(self.control or ())

    def put(self, envelope: Envelope) -> None:
        """Raises MailboxFull, having taken nothing. A message into an empty lane is always taken, however long: its
        sender has its own limit on that, and would else never be heard."""
        size_bytes = envelope.size_bytes
        if envelope.control:
            lane = self.control
            if lane is None:
                lane = self.control = deque()
            elif len(lane) >= CONTROL_MESSAGES_MAX:
                raise MailboxFull("the control lane of the session's mailbox")
        else:
            lane = self.normal
            if lane is None:
                lane = self.normal = deque()
            elif lane:
                limits = self.limits
                if len(lane) >= limits.messages_max:
                    raise MailboxFull(f"the session's mailbox ({limits.messages_max:,} messages)")
                if size_bytes and self.payload_bytes + size_bytes > limits.bytes_max:
                    raise MailboxFull(f"the session's mailbox ({limits.bytes_max:,} bytes)")
        lane.append(envelope)
        if size_bytes:
            self.payload_bytes += size_bytes

    def take(self, count_max: int) -> list[Envelope]:
        """The next envelopes, those of the control lane first."""
        control, normal = self.control, self.normal
        if control:
            taken = [control.popleft() for _ in range(min(len(control), count_max))]
            count_max -= len(taken)
            if normal and count_max:
                taken += [normal.popleft() for _ in range(min(len(normal), count_max))]
        elif normal:
            count = len(normal)
            # A call of min() is a tenth of a tell.
            if count == 1:
                envelope = normal.popleft()
                self.payload_bytes -= envelope.size_bytes
                return [envelope]
            taken = [normal.popleft() for _ in range(count if count < count_max else count_max)]  # noqa: FURB136
        else:
            return []
        if self.payload_bytes:
            self.payload_bytes -= bytes_of(taken)
        return taken

    def put_back(self, envelopes: list[Envelope]) -> None:
        """Return what was taken, to the front and in its order. Beyond the limits if need be: it was accepted once."""
        for envelope in reversed(envelopes):
            lane = self.control if envelope.control else self.normal
            assert lane is not None
            lane.appendleft(envelope)
        self.payload_bytes += bytes_of(envelopes)

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(
            normal=len(self.normal or ()), control=len(self.control or ()), payload_bytes=self.payload_bytes
        )


def bytes_of(envelopes: list[Envelope]) -> int:
    """What they count against the bounds."""
    return sum([envelope.size_bytes for envelope in envelopes])
