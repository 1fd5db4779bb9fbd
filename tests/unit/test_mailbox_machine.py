"""The mailbox and the restart rule, each run by Hypothesis against a model that keeps everything and counts anew."""

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sojourn.actors.errors import MailboxFull
from sojourn.actors.kernel.envelope import Envelope
from sojourn.actors.kernel.mailbox import CONTROL_MESSAGES_MAX, Mailbox, MailboxLimits, MailboxStatistics
from sojourn.actors.kernel.restart import CrashHistory, Intensity, next_start


@define(eq=False)
class Letter:
    """A message of the model: the nth of its sender."""

    sender: str
    n: int
    size: int
    control: bool


class MailboxAgainstLists(RuleBasedStateMachine):
    """The model is two lists of letters. What was taken is handled or put back, as a slot does whose time is over or which
    crashed; every letter is handled once, and those of a sender and lane in the order in which they were sent."""

    @initialize(messages_max=st.integers(1, 6), bytes_max=st.sampled_from([0, 2, 21, 22]))
    def begin(self, messages_max: int, bytes_max: int) -> None:
        self.limits = MailboxLimits(messages_max=messages_max, bytes_max=bytes_max)
        self.mailbox = Mailbox(self.limits)
        self.normal: list[Letter] = []
        self.control: list[Letter] = []
        self.taken: list[Envelope] = []
        self.handled: list[Letter] = []
        self.sent = self.refused = 0

    @rule(
        sender=st.sampled_from(["ann", "ben"]),
        size=st.sampled_from([0, 1, 20]),
        control=st.booleans(),
        times=st.sampled_from([1] * 7 + [CONTROL_MESSAGES_MAX]),
    )
    def put(self, sender: str, size: int, control: bool, times: int) -> None:
        for _ in range(times):
            letter = Letter(sender, self.sent, size, control)
            self.sent += 1
            if self.has_room(letter):
                self.mailbox.put(Envelope(letter, size, None, False, control))
                (self.control if control else self.normal).append(letter)
            else:
                with pytest.raises(MailboxFull):
                    self.mailbox.put(Envelope(letter, size, None, False, control))
                self.refused += 1

    def has_room(self, letter: Letter) -> bool:
        if letter.control:
            return len(self.control) < CONTROL_MESSAGES_MAX
        if not self.normal:
            return True
        waiting = sum(other.size for other in self.normal + self.control)
        fits = letter.size == 0 or waiting + letter.size <= self.limits.bytes_max
        return len(self.normal) < self.limits.messages_max and fits

    @precondition(lambda self: not self.taken)
    @rule(count=st.sampled_from([1, 2, 3, 80]))
    def take(self, count: int) -> None:
        expected = (self.control + self.normal)[:count]
        self.taken = self.mailbox.take(count)
        assert [envelope.message for envelope in self.taken] == expected
        del self.control[: len(expected)]
        del self.normal[: max(0, len(expected) - sum(letter.control for letter in expected))]

    @rule(handled=st.sampled_from([0, 1, 2, 80]))
    def handle_some_and_put_the_rest_back(self, handled: int) -> None:
        rest = self.taken[handled:]
        self.handled += [envelope.message for envelope in self.taken[:handled]]
        self.taken = []
        self.mailbox.put_back(rest)
        letters = [envelope.message for envelope in rest]
        self.control[:0] = [letter for letter in letters if letter.control]
        self.normal[:0] = [letter for letter in letters if not letter.control]

    @invariant()
    def what_waits_is_what_the_model_has(self) -> None:
        if not hasattr(self, "mailbox"):
            return
        waiting = self.control + self.normal
        assert self.mailbox.statistics() == MailboxStatistics(
            normal=len(self.normal),
            control=len(self.control),
            payload_bytes=sum(letter.size for letter in waiting),
        )
        assert self.mailbox.depth == len(waiting)
        assert self.mailbox.normal != []  # an empty lane is None: it holds nothing
        assert self.mailbox.control != []
        if self.mailbox.lone is not None:  # and then nothing else waits
            assert (len(waiting), self.mailbox.normal, self.mailbox.control) == (1, None, None)

    @invariant()
    def nothing_is_lost_doubled_or_overtaken(self) -> None:
        if not hasattr(self, "mailbox"):
            return
        assert self.sent == self.refused + len(self.handled) + len(self.taken) + self.mailbox.depth
        for sender in ("ann", "ben"):
            for control in (False, True):
                numbers = [
                    letter.n
                    for letter in self.handled
                    if (letter.sender, letter.control) == (sender, control)
                ]
                assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        """What is left comes out, and then it is empty."""
        if not hasattr(self, "mailbox"):
            return
        self.handled += [envelope.message for envelope in self.taken]
        self.handled += [envelope.message for envelope in self.mailbox.take(self.sent + 1)]
        assert (self.mailbox.depth, self.mailbox.payload_bytes) == (0, 0)
        assert len({letter.n for letter in self.handled}) == len(self.handled) == self.sent - self.refused


class RestartsAgainstAFullHistory(RuleBasedStateMachine):
    """The model remembers every crash and counts them anew each time."""

    @initialize(
        restarts_max=st.integers(0, 6),
        period_s=st.sampled_from([1.0, 10.0, 60.0]),
        backoff_s=st.sampled_from([0.05, 1.0]),
        backoff_max_s=st.sampled_from([0.1, 3.0, 10.0]),
        jitter=st.sampled_from([0.0, 0.2, 1.0]),
    )
    def begin(
        self, restarts_max: int, period_s: float, backoff_s: float, backoff_max_s: float, jitter: float
    ) -> None:
        self.intensity = Intensity(
            restarts_max=restarts_max,
            period_s=period_s,
            backoff_s=backoff_s,
            backoff_max_s=backoff_max_s,
            jitter=jitter,
        )
        self.history = CrashHistory()
        self.crashes: list[float] = []
        self.now = 1_000.0
        self.set_aside = False

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 9.5, 10.0, 59.75, 60.0, 600.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.set_aside)
    @rule(random=st.floats(0, 1, exclude_max=True))
    def crash(self, random: float) -> None:
        pause_s = next_start(self.history, self.intensity, now=self.now, random=random)
        self.crashes.append(self.now)
        recent = sum(self.now - at < self.intensity.period_s for at in self.crashes)
        if recent > self.intensity.restarts_max:
            assert pause_s is None
            self.set_aside = True
            return
        base_s = self.intensity.backoff_s
        for _ in range(recent - 1):
            base_s *= 2
        base_s = min(base_s, self.intensity.backoff_max_s)
        assert pause_s is not None
        assert pause_s == pytest.approx(
            base_s * (1 - self.intensity.jitter + 2 * self.intensity.jitter * random)
        )
        assert 0 <= pause_s <= self.intensity.backoff_max_s * (1 + self.intensity.jitter)
        self.now += pause_s

    @precondition(lambda self: self.set_aside)
    @rule()
    def is_released(self) -> None:
        self.history, self.crashes, self.set_aside = CrashHistory(), [], False

    @precondition(lambda self: self.set_aside)
    @rule()
    def crashes_although_it_was_set_aside(self) -> None:
        """As a child does whose siblings bring it back: its budget is whole again once the period has passed, and not before."""
        pause_s = next_start(self.history, self.intensity, now=self.now, random=0.5)
        recent = sum(self.now - at < self.intensity.period_s for at in self.crashes)
        assert (pause_s is None) == (recent >= self.intensity.restarts_max)
        self.crashes.append(self.now)

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        """I15."""
        if hasattr(self, "history"):
            assert len(self.history.crashes) <= self.intensity.restarts_max + 1


for machine in (MailboxAgainstLists, RestartsAgainstAFullHistory):
    machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestMailboxAgainstLists = MailboxAgainstLists.TestCase
TestRestartsAgainstAFullHistory = RestartsAgainstAFullHistory.TestCase
