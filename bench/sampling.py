"""Where CPU goes: looked at a thousand times a second of CPU (setitimer(2)), each thread's CPU since the last look
(pthread_getcpuclockid(3)) is charged to the function that it is in. What waits is charged nothing, C code its caller in Python.

A signal and not a thread that looks: a thread gets to look when another gives the interpreter up, which is before it waits.

`python -m bench.sampling FILE serve ...` runs `sojourn` so and writes what it found to FILE at its end.
"""

import json
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

from .environment import ROOT, environment
from .harness import Options, execute, load
from .live import work_folder

EVERY_S = 0.001
FUNCTIONS_SHOWN = 15

# The innermost frame that is of one of these decides; of one frame, the first that fits.
STAGES: tuple[tuple[str, str], ...] = (
    ("/starlette/", "Starlette"),
    ("/uvicorn/", "uvicorn"),
    ("/asyncio/", "event loop"),
    ("/uvloop/", "event loop"),
    ("/anyio/", "event loop"),
    ("/actors/kernel/", "kernel: mailboxes, scheduler, wheel"),
    ("/actors/session/wire", "reading of commands from outside"),
    ("/actors/session/", "session: decide, apply, encode"),
    ("/actors/commit", "group commit"),
    ("/actors/mirror", "mirror"),
    ("/runtime/stores/mirror", "mirror"),
    ("/runtime/stores/redis", "mirror"),
    ("/runtime/stores/", "journal, catalog and other stores"),
    ("/runtime/bridge", "journal, catalog and other stores"),
    ("/runtime/", "runtime: publication, projections"),
    ("/sojourn/http/", "facade"),
    ("/bench/", "load generator, and what it calls"),
)
OTHER = "everything else"

Key = TypeVar("Key")


def stage_of(path: str) -> str | None:
    """Which stage a source file belongs to; None where it may belong to any, as the standard library's do."""
    # Where the checkout lies says nothing.
    path = path.removeprefix(str(ROOT))
    return next((stage for part, stage in STAGES if part in path), None)


def stage_of_frame(frame: FrameType | None) -> str | None:
    """The stage that a thread is in; None while it imports: that is a start's, and not the scenario's."""
    found = None
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith("<frozen importlib"):
            return None
        found = found or stage_of(path)
        frame = frame.f_back
    return found or OTHER


class Sampler:
    """Samples every thread of this process while it is entered; by the main thread, which must be the one that enters."""

    def __enter__(self) -> Self:
        self.by_function: dict[tuple[str, str], float] = {}
        self.by_stage: dict[str, float] = {}
        self.samples = 0
        self._clocks: dict[int, tuple[int, float]] = {}
        self._before = signal.signal(signal.SIGPROF, self._look)
        signal.siginterrupt(signal.SIGPROF, False)  # no call of anybody's fails by it
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)

    def _look(self, _: int, frame: FrameType | None) -> None:
        ours = threading.get_ident()
        for ident, there in sys._current_frames().items():
            # Our own innermost frame is this one.
            looked_at = frame if ident == ours else there
            if looked_at is not None:
                self._charge(ident, looked_at)

    def _charge(self, ident: int, frame: FrameType) -> None:
        try:
            clock = self._clocks[ident][0] if ident in self._clocks else time.pthread_getcpuclockid(ident)
            now = time.clock_gettime(clock)
        except OSError:  # it has just ended
            self._clocks.pop(ident, None)
            return
        spent_s = now - self._clocks[ident][1] if ident in self._clocks else 0.0
        self._clocks[ident] = clock, now
        stage = stage_of_frame(frame) if spent_s > 0 else None
        if stage is not None:
            function = frame.f_code.co_filename, frame.f_code.co_qualname
            self.samples += 1
            self.by_stage[stage] = self.by_stage.get(stage, 0.0) + spent_s
            self.by_function[function] = self.by_function.get(function, 0.0) + spent_s

    def found(self) -> dict[str, Any]:
        """JSON values: shares by stage and by function, the largest first."""
        total = sum(self.by_stage.values()) or 1e-9
        functions = _largest(self.by_function)[:FUNCTIONS_SHOWN]
        return {
            "cpu_s": total,
            "samples": self.samples,
            "stages": {stage: spent_s / total for stage, spent_s in _largest(self.by_stage)},
            "functions": {
                f"{name} ({'/'.join(Path(path).parts[-3:])})": spent_s / total
                for (path, name), spent_s in functions
            },
        }


def _largest(spent: dict[Key, float]) -> list[tuple[Key, float]]:
    return sorted(spent.items(), key=lambda item: -item[1])


def profiled(name: str, options: Options, loop: str) -> dict[str, Any]:
    """One round of the scenario, sampled; of a scenario over HTTP, its server. Raises what its round raises."""
    scenario = load(name)
    measure = getattr(scenario, "both", None) or scenario.measure
    with ExitStack() as stack:
        if hasattr(scenario, "prepare"):
            folder = stack.enter_context(scenario.prepare(options, loop))
            options = Options(**{**_given(options), "folder": folder})
        if name.startswith(("http-", "sse")):
            from . import processes

            out = stack.enter_context(work_folder()) / "profile.json"
            stack.enter_context(processes.sampled(out))
            execute(measure, options, loop)
            found = json.loads(out.read_text())
        else:
            with Sampler() as sampler:
                execute(measure, options, loop)
            found = sampler.found()
    return {
        "scenario": name,
        "profile": True,
        "options": options.described(),
        "loop": loop,
        "environment": environment(),
        **found,
    }


def _given(options: Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("sessions", "clients", "operations")}


def main(out: Path, arguments: list[str]) -> int:
    """`sojourn` with these arguments, sampled from here to its end."""
    from sojourn.cli import main as sojourn

    sys.argv = ["sojourn", *arguments]
    code = 0
    with Sampler() as sampler:
        try:
            sojourn()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
    out.write_text(json.dumps(sampler.found()))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
