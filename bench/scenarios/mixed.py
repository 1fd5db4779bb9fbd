"""Whole test runs among 1,000 live sessions (--sessions), 5 % of which are hot: each hot one is created, reports 480 log lines,
results, samples and progress, is completed, and another takes its place. Reports are durable (--ack) and all of it is
mirrored beside, which each completion waits for. Events a second over --duration, against the skeleton and bare script call that
write as much; the latencies are of the same work offered for as long at half that rate (or --rate), from the intended moment. From
30 s on ended runs are handed over beside it."""

from collections.abc import Awaitable, Callable
from typing import Any

from sojourn.actors.session.model import Ack
from sojourn.runtime.runtime import Runtime

from ..bare_redis import NAMESPACE, BareScript, server, spent
from ..harness import Measured, Options, Stopwatch
from ..live import completed, for_so_long, new_session, new_sessions, open_runtime, told
from ..pace import LagMeter, offer
from ..skeleton import skeleton

UNIT = "events"
WARM_UP = False
SESSIONS = 1_000
HOT_SHARE = 0.05
HOT_MIN, HOT_MAX = 16, 1_000
EVENTS = 480
# Beside its reports, a session's life is: created, started, completed.
LIFE_EVENTS = 3
OPERATIONS = 50_000  # of the ceiling
DURATION_S = 3.0


def hot(options: Options) -> int:
    """How many sessions report at once."""
    sessions = options.sessions or SESSIONS
    return options.clients or min(sessions, max(HOT_MIN, min(HOT_MAX, round(sessions * HOT_SHARE))))


async def one_run(runtime: Runtime, ack: Ack, reports: int) -> int:
    """A session from its creation to its end, which the mirror has, too. Returns how many events that are."""
    session_id = await new_session(runtime)
    for n in range(1, reports + 1):
        await runtime.ask(session_id, told(n), ack=ack)
    await runtime.ask(session_id, completed(reports + 1), ack=Ack.MIRRORED)
    return reports + LIFE_EVENTS


async def measure(options: Options) -> Measured:
    return await test_runs(options, reports=EVENTS)


async def test_runs(options: Options, *, reports: int) -> Measured:
    """Of so many reports each."""
    duration_s = options.duration_s or DURATION_S
    async with (
        server(options) as url,
        open_runtime(mirror=url, mirror_namespace=NAMESPACE, passivate_after_s=3_600.0) as runtime,
    ):
        await new_sessions(runtime, options.sessions or SESSIONS)
        places = hot(options)
        before = spent(url)
        with Stopwatch() as watch:
            events = await for_so_long(
                lambda place: one_run(runtime, options.ack, reports), places, duration_s
            )
        server_s = spent(url).cpu_s - before.cpu_s
        rate_per_s = options.rate_per_s or events / watch.elapsed_s / 2
        hands = Hands(runtime, options.ack, await new_sessions(runtime, places), reports)
        async with LagMeter() as lag:
            offered = await offer(hands.act, rate_per_s=rate_per_s, duration_s=duration_s)
    more: dict[str, Any] = {
        "hot": places,
        "offered_per_s": rate_per_s,
        "reached_per_s": offered.reached_per_s,
        "runs_completed": hands.completed,
    }
    if (said := offered.told()) is not None:
        more["told"] = said
    return Measured(
        operations=events,
        elapsed_s=watch.elapsed_s,
        cpu_s=watch.cpu_s,
        latencies_us=offered.latencies_us,
        lag_us=lag.lag_us,
        processes_cpu_s={"redis": server_s},
        more=more,
    )


class Hands:
    """The same work in single steps, each of which can be due at any moment, whether or not those before are answered.

    A place whose session is complete goes on with one that was created meanwhile: each completion is followed by the
    creation of a session, which waits among the spares. The first session of each place reports so much less that their ends
    do not fall together, as those of runs that have nothing to do with each other do not."""

    def __init__(self, runtime: Runtime, ack: Ack, ids: list[str], reports: int) -> None:
        self._runtime = runtime
        self._ack = ack
        self._reports = reports
        self._places = [
            (session_id, 0, 1 + reports * number // len(ids)) for number, session_id in enumerate(ids)
        ]
        self._spares: list[str] = []
        self._next: list[Callable[[], Awaitable[None]]] = []
        self.completed = 0

    async def act(self, number: int) -> None:
        """The step of the `number`-th moment."""
        if self._next:
            await self._next.pop()()
            return
        place = number % len(self._places)
        session_id, done, events = self._places[place]
        if done < events:
            self._places[place] = session_id, done + 1, events
            await self._runtime.ask(session_id, told(done + 1), ack=self._ack)
            return
        # Its place is taken before the answer: what is due meanwhile belongs to the next one.
        if self._spares:
            self._places[place] = self._spares.pop(), 0, self._reports
            self._next.append(self._create)
            self.completed += 1
            await self._runtime.ask(session_id, completed(events + 1), ack=Ack.MIRRORED)
        else:
            await self._create()

    async def _create(self) -> None:
        self._spares.append(await new_session(self._runtime))


async def ceiling(options: Options) -> Measured:
    each = max(1, (options.operations or OPERATIONS) // hot(options))
    async with server(options) as url, BareScript(url) as script:
        return await skeleton([map(told, range(1, each + 1)) for _ in range(hot(options))], script.mirror)
