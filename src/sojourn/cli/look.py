"""`ls`, `show`, `tail`, `compare`: look at sessions, in a data folder or on a server, `show` and `tail` also in a mirror. They
change nothing.

An ID is a session's id, its beginning or its end, `last` for the newest session, or `last~N` for the Nth before it.
"""

import sys
from collections import deque
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import frozen
from cyclopts import Parameter
from cyclopts.validators import Number

from ..actors.errors import CallerError
from ..actors.session.commands import ENDING_EVENTS
from ..runtime.history import compare as comparison
from ..runtime.settings_load import load_settings
from .render import event_lines, print_comparison, print_session, print_sessions, shown_status
from .screen import Screen, run
from .source import Source, open_source, resolve

Status = Literal["created", "running", "paused", "completed", "failed", "cancelled", "abandoned", "lost"]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
LOST = "sojourn: the session is lost: more comes only if its reporter or owner comes back"
Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@frozen(kw_only=True)
class Where:
    """Where to look.

    Attributes:
        data: the data folder; unless given, SOJOURN_DATA, else the user's own. A server that owns it is asked through it.
        server: a server's address, for example http://127.0.0.1:8765, instead of a folder; unless either is given,
            SOJOURN_SERVER.
        token: the server's token; unless given, SOJOURN_TOKEN.
        config: the settings file; unless given, SOJOURN_CONFIG, else sojourn.toml here, else the user's.
    """

    data: Path | None = None
    server: str | None = None
    token: str | None = None
    config: Path | None = None

    def open(self) -> AbstractAsyncContextManager[Source]:
        """See open_source. Raises InvalidSettings."""
        flags = {"data_dir": self.data, "server": self.server, "token": self.token}
        settings = load_settings(config=self.config, flags=flags).settings
        # A folder named here goes before a server that is named elsewhere.
        if settings.server is not None and (self.data is None or self.server is not None):
            return open_source(self.data, settings.server, settings.token)
        return open_source(
            settings.data_dir,
            None,
            settings.token,
            log_level=settings.log_level,
            archive=settings.archive,
        )


HERE = Where()


@Parameter(name="*")
@frozen(kw_only=True)
class InMirror:
    """A mirror to look at instead of a data folder or a server.

    Attributes:
        redis: the URL of a mirror's server: redis://HOST:6379/0, rediss:// or unix://. A live session is read there, from any
            machine; ID is its whole id.
        namespace: that of the data folder's setting mirror_namespace; with --redis only. Default: sojourn.
    """

    redis: str | None = None
    namespace: str | None = None

    def place_beside(self, where: Where) -> tuple[str, str] | None:
        """URL and namespace, where a mirror was named. Raises CallerError where the rest of the command line names another
        place, or nothing but a namespace was given."""
        if self.redis is None:
            if self.namespace is not None:
                raise CallerError(
                    f"--namespace {self.namespace} is that of a mirror, and no mirror was named; name its server with "
                    "--redis URL, or leave --namespace out"
                )
            return None
        if where.data is not None or where.server is not None:
            raise CallerError("--redis excludes --data and --server; give one of them")
        return self.redis, "sojourn" if self.namespace is None else self.namespace


NO_MIRROR = InMirror()


def ls(
    *,
    plan: str | None = None,
    status: Annotated[list[Status] | None, Parameter(negative=())] = None,
    limit: Count = 20,
    json: Flag = False,
    where: Where = HERE,
) -> int:
    """List sessions, newest first.

    Args:
        plan: only sessions of this plan.
        status: only sessions of this status; may be given several times.
        limit: at most so many.
        json: one JSON document, {"items": [record, ...]}.
    """

    async def body(screen: Screen) -> int:
        wanted = frozenset(status or ())
        # `lost` is computed from what a session that has not ended says, so it is selected among those.
        stored = frozenset(
            wanted - {"lost"} | ({"created", "running", "paused"} if "lost" in wanted else set())
        )
        records: list[dict[str, Any]] = []
        async with where.open() as source:
            async for record in source.sessions(plan=plan, statuses=stored):
                if not wanted or shown_status(record) in wanted:
                    records.append(record)
                if len(records) == limit:
                    break
        if json:
            screen.json({"items": records})
        elif records:
            print_sessions(screen, records)
        else:
            print("no sessions there", file=sys.stderr)
        return 0

    return run(body)


def show(
    session: str,
    /,
    *,
    limit: Count = 20,
    json: Flag = False,
    where: Where = HERE,
    mirror: InMirror = NO_MIRROR,
) -> int:
    """Show one session: its record, counts, failed cases, resources, and where it lies.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        limit: at most so many failed cases.
        json: one JSON document, {"record": ..., "state": ...}, with every case.
    """

    async def body(screen: Screen) -> int:
        if (in_mirror := mirror.place_beside(where)) is not None:
            from .look_mirror import read_session

            record, state, place = await read_session(*in_mirror, session)
        else:
            async with where.open() as source:
                session_id = await resolve(source, session)
                record, state = await source.record(session_id), await source.state(session_id)
                place = source.place
        if json:
            screen.json({"record": record, "state": state})
        else:
            print_session(screen, record, state, place, limit)
        return 0

    return run(body)


def tail(
    session: str,
    /,
    *,
    lines: Annotated[int, Parameter(alias="-n", validator=Number(gte=0))] = 50,
    follow: Annotated[bool, Parameter(alias="-f", negative=())] = False,
    forever: Flag = False,
    json: Flag = False,
    where: Where = HERE,
    mirror: InMirror = NO_MIRROR,
) -> int:
    """Print the last log lines and results of a session.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        lines: how many of what there is to begin with; 0 for all of it.
        follow: go on with what comes, until the session ends.
        forever: do not stop at its end: late log lines may come.
        json: events of every type, as stored, one a line.
    """

    async def body(screen: Screen) -> int:
        if (in_mirror := mirror.place_beside(where)) is not None:
            from .look_mirror import tail_session

            return await tail_session(
                screen, *in_mirror, session, lines=lines, follow=follow, forever=forever, json=json
            )
        async with where.open() as source:
            session_id = await resolve(source, session)
            record = await source.record(session_id)
            await _print_last(screen, source, session_id, lines, record["seq"], json)
            if not follow or (record["ended_at"] is not None and not forever):
                return 0
            if record["lost"]:
                print(LOST, file=sys.stderr)
            async for event in source.follow(session_id, after=record["seq"]):
                for line in event_lines(screen, event.type, event.line, json):
                    screen.line(line)
                screen.flush()
                if screen.is_gone or (event.type in ENDING_EVENTS and not forever):
                    return 0
        return 0

    return run(body)


def compare(
    baseline: str,
    candidate: str,
    /,
    *,
    limit: Count = 20,
    json: Flag = False,
    where: Where = HERE,
) -> int:
    """Compare two sessions that have ended. Exit code 0, or 1 where the candidate is worse.

    Args:
        baseline: an ID: the session's id, its beginning or end, last, or last~N.
        candidate: the other one, likewise.
        limit: at most so many cases of each class.
        json: one JSON document with every case.
    """

    async def body(screen: Screen) -> int:
        async with where.open() as source:
            sides = []
            for name in (baseline, candidate):
                session_id = await resolve(source, name)
                record, state = await source.record(session_id), await source.state(session_id)
                sides.append(comparison.Side(record=record, results=state["results"]))
        document = comparison.compare(*sides)
        if json:
            screen.json(document)
        else:
            print_comparison(screen, document, limit)
        return 1 if document["verdict"] == "worse" else 0

    return run(body)


async def _print_last(
    screen: Screen, source: Source, session_id: str, count: int, seq: int, json: bool
) -> None:
    """The last `count` lines (0: all) of the events up to `seq`."""
    # Most events show as one line, so a little more than `count` from the end is enough; else four times as far back.
    back = count * 2 if count else seq
    while True:
        after = max(0, seq - back)
        kept: deque[str] = deque(maxlen=count or None)
        async for event in source.events(session_id, after=after):
            if event.seq > seq or screen.is_gone:
                break
            if count:
                kept.extend(event_lines(screen, event.type, event.line, json))
            else:
                for line in event_lines(screen, event.type, event.line, json):
                    screen.line(line)
        if not count or len(kept) == count or after == 0:
            break
        back *= 4
    for line in kept:
        screen.line(line)
    screen.flush()
