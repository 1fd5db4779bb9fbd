"""A kernel without an event loop: steps by hand, on a clock that moves only when told."""

from collections.abc import Callable, Generator
from typing import Any

from attrs import define, field

from sojourn.actors.errors import StoreError
from sojourn.actors.kernel.actor import Actor, ActorContext, ActorSpec
from sojourn.actors.kernel.scheduler import Kernel


class Waiter:
    """A parked asker that nobody awaits: its answer is looked at."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False

    def set_result(self, result: Any, /) -> None:
        assert not self.ended
        self.result, self.ended = result, True

    def set_exception(self, exception: BaseException, /) -> None:
        assert not self.ended
        self.error, self.ended = exception, True

    def done(self) -> bool:
        return self.ended

    def __await__(self) -> Generator[Any, None, Any]:
        raise AssertionError("nobody awaits here")


@define(eq=False)
class Hand:
    """Drives a kernel by hand: `run` steps and starts what is asked for, until nothing is ready."""

    start: Callable[[ActorContext], Actor]
    spec: dict[str, Any] = field(factory=dict)
    kernel_options: dict[str, Any] = field(factory=dict)
    now: float = 1_000.0
    kernel: Kernel = field(init=False)

    def __attrs_post_init__(self) -> None:
        async def start(context: ActorContext) -> Actor:
            return self.start(context)

        self.kernel = Kernel(
            clock=lambda: self.now,
            dynamic=ActorSpec(start=start, **self.spec),
            random_=lambda: 0.5,
            **self.kernel_options,
        )

    def ask(self, actor_id: str, message: Any, **options: Any) -> Waiter:
        waiter = Waiter()
        self.kernel.ask(actor_id, message, waiter, **options)
        return waiter

    def run(self) -> float:
        """Until nothing is ready at this moment; returns when the kernel wants to be called again."""
        while True:
            next_at = self.kernel.step(self.now)
            starts, self.kernel.starts = self.kernel.starts, []
            for cell, context in starts:
                try:
                    actor = self.start(context)
                except Exception as error:  # noqa: BLE001 - as the driver does
                    self.kernel.start_failed(cell, error)
                else:
                    self.kernel.started(cell, actor)
            if not starts and next_at > self.now:
                return next_at

    def pass_time(self, seconds: float) -> None:
        """Let time go by, stepping at every moment the kernel asks for."""
        until = self.now + seconds
        while (next_at := self.run()) <= until:
            self.now = next_at
        self.now = until
        self.run()

    def commit(self) -> list[Any]:
        """Commit what lies in the outbox, run on, and return the records."""
        cells = self.kernel.take_outbox()
        records = [cell.record for cell in cells]
        self.kernel.committed(cells)
        self.run()
        return records

    def refuse(self, error: StoreError) -> None:
        self.kernel.refused(self.kernel.take_outbox(), error)
        self.run()

    def conserved(self) -> bool:
        """The invariant of KernelStatistics."""
        s = self.kernel.statistics()
        ended = s.replied + s.rejected + s.expired + s.dead_lettered + s.quarantined
        return s.accepted == ended + s.queued + s.awaiting_commit
