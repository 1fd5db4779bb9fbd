"""What the scenarios are to reach, and how a result is held against it. A target states itself; nothing fails by one."""

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

Found = Callable[[dict[str, Any]], float]


def ratio(result: dict[str, Any]) -> float:
    found: float = result["ratio_to_ceiling"]["median"]
    return found


def figure(result: dict[str, Any]) -> float:
    found: float = result["figure"]["median"]
    return found


def p99_ms(result: dict[str, Any]) -> float:
    found: float = result["latency_us"]["p99"]
    return found / 1000


def above_ceiling(result: dict[str, Any]) -> float:
    found: float = result["figure"]["median"] - result["ceiling_figure"]["median"]
    return found


@frozen(kw_only=True)
class Target:
    """One line of the table.

    Attributes:
        what: in words, with the bound.
        scenario: whose result; `sessions` and `rate_per_s`: what it must have been measured with, None: not given.
        found: the number that is held against `bound`, `at_least` it or at most.
        command: what measures it as it is meant, on a quiet machine.
    """

    what: str
    scenario: str
    found: Found
    bound: float
    at_least: bool
    command: str
    unit: str = ""
    sessions: int | None = None
    rate_per_s: float | None = None

    def of(self, results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The last result that it is about; None where there is none."""
        fitting = [
            result
            for result in results
            if result["scenario"] == self.scenario
            and result["options"]["sessions"] == self.sessions
            and result["options"]["rate_per_s"] == self.rate_per_s
        ]
        return fitting[-1] if fitting else None

    def is_met(self, result: dict[str, Any]) -> bool:
        found = self.found(result)
        return found >= self.bound if self.at_least else found <= self.bound


def _target(what: str, scenario: str, found: Found, bound: float, **more: Any) -> Target:
    command = more.pop("command", f"run {scenario} --rounds 15")
    return Target(what=what, scenario=scenario, found=found, bound=bound, command=command, **more)


TARGETS: tuple[Target, ...] = (
    _target("tells to one actor, of a deque", "tell", ratio, 0.40, at_least=True),
    _target("tells round robin over 10,000 actors, of a deque", "round-robin", ratio, 0.40, at_least=True),
    _target("asks in memory, 100 clients, of deque and futures", "ask", ratio, 0.45, at_least=True),
    _target("durable asks, 256 sessions, of the skeleton", "durable-ask", ratio, 0.60, at_least=True),
    _target(
        "durable asks, 2,048 sessions, of the skeleton",
        "durable-ask",
        ratio,
        0.60,
        at_least=True,
        sessions=2_048,
        command="run durable-ask --sessions 2048 --rounds 15",
    ),
    _target(
        "durable asks offered at half the maximum: p99, of a commit's",
        "durable-open",
        ratio,
        3.0,
        at_least=False,
        command="run durable-open --duration 30 --rounds 5",
    ),
    _target("mirrored asks, of skeleton and bare script call", "mirrored-ask", ratio, 0.60, at_least=True),
    _target(
        "mirrored asks offered at 10,000/s: p99, of skeleton's and bare script call's",
        "mirrored-open",
        ratio,
        3.0,
        at_least=False,
        command="run mirrored-open --duration 30 --rounds 5",
    ),
    _target(
        "CPU an event at 10,000 live sessions, of that at 100", "live-sessions", ratio, 1.5, at_least=False
    ),
    _target(
        "whole test runs among 1,000 live sessions: events a second, for a minute",
        "mixed",
        figure,
        20_000,
        at_least=True,
        command="run mixed --duration 60 --rounds 3",
    ),
    _target(
        "the same offered at half of that: p99",
        "mixed",
        p99_ms,
        10.0,
        at_least=False,
        unit="ms",
        command="run mixed --duration 60 --rounds 3",
    ),
    _target(
        "the same offered at 10,000 a second: p99",
        "mixed",
        p99_ms,
        10.0,
        at_least=False,
        unit="ms",
        rate_per_s=10_000,
        command="run mixed --duration 60 --rate 10000 --rounds 3",
    ),
    _target(
        "whole test runs among 10,000 live sessions: events a second",
        "mixed",
        figure,
        20_000,
        at_least=True,
        sessions=10_000,
        command="run mixed --sessions 10000 --duration 30 --rounds 3",
    ),
    _target(
        "50,000 live sessions in memory: p99, of that at 1,000",
        "crowd",
        ratio,
        2.0,
        at_least=False,
        command="run crowd --duration 30 --rounds 3",
    ),
    _target(
        "50,000 live sessions, 5 % hot, the others out of memory: p99, of that at 1,000 in memory",
        "crowd-passivated",
        ratio,
        2.0,
        at_least=False,
        command="run crowd-passivated --duration 30 --rounds 3",
    ),
    _target(
        "durable asks with 10,000 sessions open: p99, of that with 100",
        "open-sessions",
        ratio,
        1.5,
        at_least=False,
        command="run open-sessions --rounds 5",
    ),
    _target(
        "memory of a resting session in memory, beyond its state",
        "memory",
        above_ceiling,
        2048,
        at_least=False,
        unit="bytes",
        command="run memory --rounds 3",
    ),
    _target("sessions brought back from snapshots a second", "activation", figure, 5_000, at_least=True),
    _target(
        "SIGKILL to the first answer, 10,000 sessions", "recovery", figure, 2.0, at_least=False, unit="s"
    ),
    _target("commands over HTTP, durable, of bare ASGI", "http-single", ratio, 0.25, at_least=True),
    _target("NDJSON batches over HTTP, of the same in process", "http-batch", ratio, 0.60, at_least=True),
    _target(
        "live streams to 1,000 clients, of a bare fan-out",
        "sse",
        ratio,
        0.60,
        at_least=True,
        command="run sse --operations 1000 --rounds 5",
    ),
)
