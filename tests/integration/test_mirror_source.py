"""Sessions as they are sent whole: what is read for them, and when."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, field

from sojourn.actors.ports import MirrorUpdate, Record
from sojourn.actors.session.commands import AppendLog, Command
from sojourn.actors.session.model import SessionState
from sojourn.actors.session.wire import read_create
from sojourn.runtime.event_log import EventLog
from sojourn.runtime.mirror_source import MirroredSessions
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

pytestmark = pytest.mark.anyio

EVENTS = 31  # of a session, its creation among them


@define
class Watched:
    """A journal whose reads of several sessions are kept: whose they were."""

    inner: Any
    read: list[set[str]] = field(factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def read_several(self, after: Mapping[str, int], *more: Any) -> Mapping[str, Sequence[Record]]:
        self.read.append(set(after))
        found: Mapping[str, Sequence[Record]] = await self.inner.read_several(after, *more)
        return found


async def new_session(runtime: Runtime) -> str:
    record, _ = await runtime.create(read_create({"plan": "p", "title": "t"}))
    for n in range(1, EVENTS):
        body = AppendLog(stream="stdout", text=f"line {n}")
        await runtime.ask(record["session_id"], Command("log.append", body, None, "", "reporter", n))
    return str(record["session_id"])


def sessions_of(
    runtime: Runtime, journal: Watched, copy: Callable[[str], Any] | None = None
) -> MirroredSessions:
    return MirroredSessions(
        journal=journal,  # type: ignore[arg-type]
        catalog=runtime._catalog,
        event_log=EventLog(journal, runtime._shelves),  # type: ignore[arg-type]
        snapshotter=runtime._snapshotter,
        epoch=1,
        copy=copy or runtime._copy,
        in_memory=runtime._kernel.cells.__contains__,
        import_=None,  # type: ignore[arg-type]
        strays=False,
    )


async def test_who_comes_next_is_read_with_the_first(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path / "data", mirror="none")) as runtime:
        ids = [await new_session(runtime) for _ in range(4)]
        passive = await new_session(runtime)
        assert runtime._kernel.passivate(passive)
        journal, first_is_done = Watched(runtime._journal), anyio.Event()

        async def copy(session_id: str) -> SessionState:
            if session_id != ids[0]:
                await first_is_done.wait()
            return await runtime._copy(session_id)

        sessions = sessions_of(runtime, journal, copy)
        updates: dict[str, MirrorUpdate | None] = {}

        async def whole(number: int) -> None:
            following = [*ids[number + 1 :], passive]
            updates[ids[number]] = await sessions.whole(ids[number], lambda: following)
            first_is_done.set()

        async with anyio.create_task_group() as tasks:
            for number in range(len(ids)):
                tasks.start_soon(whole, number)
        assert journal.read == [set(ids)]
        for session_id in ids:
            update, lines = updates[session_id], [line.line async for line in runtime.events(session_id)]
            assert update is not None
            assert list(update.events) == [line.rstrip(b"\n") for line in lines]
            assert update.last_seq == len(lines) == EVENTS


async def test_what_was_read_ahead_and_not_asked_for_is_not_kept(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path / "data", mirror="none")) as runtime:
        ids = [await new_session(runtime) for _ in range(2)]
        journal = Watched(runtime._journal)
        sessions = sessions_of(runtime, journal)
        await sessions.whole(ids[0], lambda: ids[1:])
        await sessions.whole(ids[1], list)
        assert journal.read == [set(ids), {ids[1]}]


async def test_what_was_said_since_it_was_read_is_read_too(tmp_path: Path) -> None:
    async with Runtime.open(Settings(data_dir=tmp_path / "data", mirror="none")) as runtime:
        ids = [await new_session(runtime) for _ in range(2)]
        journal, read = Watched(runtime._journal), anyio.Event()

        async def copy(session_id: str) -> SessionState:
            if session_id == ids[1]:
                await read.wait()
                body = AppendLog(stream="stdout", text="more")
                await runtime.ask(session_id, Command("log.append", body, None, "", "reporter", EVENTS))
            return await runtime._copy(session_id)

        sessions = sessions_of(runtime, journal, copy)

        async def first() -> None:
            await sessions.whole(ids[0], lambda: ids[1:])
            read.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            update = await sessions.whole(ids[1], list)
        assert update is not None
        assert (update.last_seq, len(update.events)) == (EVENTS + 1, EVENTS + 1)
        assert b"more" in update.events[-1]
        assert journal.read == [set(ids), {ids[1]}]
