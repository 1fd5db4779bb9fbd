"""A bounded mailbox of two lanes. The control lane overtakes, and has room of its own that the normal lane can't take.

A message that waits alone is held as it is; a lane becomes a plain list with its second one, and is handed over whole: a
slot nearly always takes all that waits. So an actor that nobody writes to holds no lane, and one message costs no queue
(a deque holds 600 bytes, a stream 7 KiB and a task switch a message).
"""

from attrs import define, field, frozen

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
    """First in, first out within a lane.

    Attributes:
        lone: the only message that waits, where it came into an empty mailbox, and not by the control lane.
        normal, control: else the lanes; None where they are empty.
        payload_bytes: of all that waits.
    """

    limits: MailboxLimits
    lone: Envelope | None = field(default=None, init=False)
    normal: list[Envelope] | None = field(default=None, init=False)
    control: list[Envelope] | None = field(default=None, init=False)
    payload_bytes: int = field(default=0, init=False)

    @property
    def depth(self) -> int:
        """How many messages wait in both lanes."""
        return (self.lone is not None) + len(self.normal or ()) + len(self.control or ())

    def put(self, envelope: Envelope) -> None:
        """Raises MailboxFull, having taken nothing. A message into an empty lane is always taken, however long: its
        sender has its own limit on that, and would else never be heard."""
        size_bytes = envelope.size_bytes
        if self.lone is not None:
            self.normal, self.lone = [self.lone], None
        lane = self.normal
        if envelope.control:
            if self.control is not None and len(self.control) >= CONTROL_MESSAGES_MAX:
                raise MailboxFull("the control lane of the session's mailbox")
            self.put_promised(envelope)
            return
        if lane is None:
            if self.control is None:
                self.lone = envelope
            else:
                self.normal = [envelope]
        else:
            limits = self.limits
            if len(lane) >= limits.messages_max:
                raise MailboxFull(f"the session's mailbox ({limits.messages_max:,} messages)")
            if size_bytes and self.payload_bytes + size_bytes > limits.bytes_max:
                raise MailboxFull(f"the session's mailbox ({limits.bytes_max:,} bytes)")
            lane.append(envelope)
        self.payload_bytes += size_bytes

    def put_promised(self, envelope: Envelope) -> None:
        """Take it into the control lane whatever waits there: what was promised had its bound when it was promised."""
        if self.lone is not None:
            self.normal, self.lone = [self.lone], None
        if self.control is None:
            self.control = [envelope]
        else:
            self.control.append(envelope)
        self.payload_bytes += envelope.size_bytes

    def take(self, count_max: int) -> list[Envelope]:
        """The next envelopes, those of the control lane first."""
        control, normal = self.control, self._normal()
        self.lone = self.normal = None
        if control is None and len(normal) <= count_max:
            self.payload_bytes = 0
            return normal
        taken = []
        if control is not None:
            taken = control[:count_max]
            del control[:count_max]
            self.control = control or None
        room = count_max - len(taken)
        taken += normal[:room]
        del normal[:room]
        self.normal = normal or None
        self.payload_bytes -= bytes_of(taken)
        return taken

    def put_back(self, envelopes: list[Envelope]) -> None:
        """Return what was taken, to the front and in its order. Beyond the limits if need be: it was accepted once."""
        control = [envelope for envelope in envelopes if envelope.control]
        normal = [envelope for envelope in envelopes if not envelope.control]
        self.control = (control + (self.control or [])) or None
        self.normal = (normal + self._normal()) or None
        self.lone = None
        self.payload_bytes += bytes_of(envelopes)

    def statistics(self) -> MailboxStatistics:
        return MailboxStatistics(
            normal=len(self._normal()), control=len(self.control or ()), payload_bytes=self.payload_bytes
        )

    def _normal(self) -> list[Envelope]:
        return [self.lone] if self.lone is not None else self.normal or []


def bytes_of(envelopes: list[Envelope]) -> int:
    """What they count against the bounds."""
    return sum([envelope.size_bytes for envelope in envelopes])
