"""The one thin driver between the sans-IO kernel and anyio: steps it when there is work, starts what it asks for."""

import math
from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from ..errors import JobUnknown
from .actor import ActorContext, Cell, Job
from .park import Gate
from .scheduler import Kernel

Start = tuple[Cell, ActorContext]


class _Starter:
    """A task that starts actors, and the one it is at."""

    __slots__ = ("gate", "start")

    def __init__(self, start: Start) -> None:
        self.gate = Gate()
        self.start: Start | None = start


class Driver:
    """Runs a kernel until cancelled. Starts and jobs run as tasks beside it and end with it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._alarm_at = math.inf
        self._alarm_moved = Gate()
        self._waiting: list[_Starter] = []  # for something to start

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor: calls `started` once it drives."""
        kernel = self._kernel
        clock = kernel.clock
        self._waiting.clear()  # they ended with the run before
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ring)
            started()
            while True:
                next_at = kernel.step(clock())
                if kernel.starts or kernel.jobs:
                    self._launch(tasks)
                if next_at <= clock():
                    await checkpoint()
                    continue
                if next_at < self._alarm_at:
                    self._alarm_at = next_at
                    self._alarm_moved.wake()
                await kernel.ready.wait()

    async def _ring(self) -> None:
        """Wake the kernel at its next deadline. A task of its own, which sleeps through the common case that an earlier
        deadline than the armed one never comes: a timeout around every wait would cost more than an ask."""
        kernel = self._kernel
        while True:
            pause_s = self._alarm_at - kernel.clock()
            if pause_s > 0:
                with anyio.move_on_after(pause_s):
                    await self._alarm_moved.wait()
                continue
            self._alarm_at = math.inf
            kernel.ready.wake()
            await self._alarm_moved.wait()

    def _launch(self, tasks: TaskGroup) -> None:
        kernel = self._kernel
        starts, kernel.starts = kernel.starts, []
        jobs, kernel.jobs = kernel.jobs, []
        for start in starts:
            if self._waiting:
                starter = self._waiting.pop()
                starter.start = start
                starter.gate.wake()
            else:
                tasks.start_soon(self._start, start)
        for job in jobs:
            tasks.start_soon(self._work, job)

    async def _start(self, first: Start) -> None:
        """Starts one actor after the other, and waits in between: a task for each would cost as much as reading a small session
        back. There are never more of these than starts at once."""
        kernel = self._kernel
        starter = _Starter(first)
        del first  # what one that waits refers to stays in memory
        try:
            while True:
                while starter.start is not None:
                    await self._start_one(*starter.start)
                    starter.start = kernel.starts.pop(0) if kernel.starts else None
                self._waiting.append(starter)
                await starter.gate.wait()
        except anyio.get_cancelled_exc_class():
            if starter.start is not None:
                kernel.start_cancelled(starter.start[0])
            raise

    async def _start_one(self, cell: Cell, context: ActorContext) -> None:
        try:
            actor = await cell.spec.start(context)
        except Exception as error:  # noqa: BLE001 - judged there: an answer, or a crash
            self._kernel.start_failed(cell, error)
        else:
            self._kernel.started(cell, actor)

    async def _work(self, job: Job) -> None:
        if job.ended:  # cancelled before it ran
            return
        value: Any = None
        error: Exception | None = None
        try:
            with anyio.CancelScope() as scope:
                job.cancel = scope.cancel
                try:
                    with anyio.fail_after(job.deadline_s):
                        value = await job.run()
                except Exception as raised:  # noqa: BLE001 - the job's result, told to its actor
                    error = raised
        except anyio.get_cancelled_exc_class():
            # The driver was stopped. Begun anew by the next one, what it had done already would be done twice.
            self._kernel.job_ended(job, None, JobUnknown())
            raise
        self._kernel.job_ended(job, value, error)
