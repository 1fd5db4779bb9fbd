"""The runtime over the tiers: what is sealed, handed over and archived by itself, and reads the same."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import InvalidCommand, NoSuchSession, NotSealed, SessionSealed
from sojourn.actors.ports import CatalogQuery
from sojourn.actors.session.actor import Done
from sojourn.actors.session.wire import read_command, read_create
from sojourn.runtime.layout import manifest_name, session_folder
from sojourn.runtime.opening import Stores, SystemClock
from sojourn.runtime.reader import Reader
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from ..support import owner, s3
from ..support.tiers import Plan, fallible, memory_stores
from ..support.wait import await_until

pytestmark = pytest.mark.anyio
DAY_S = 86_400.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", seal_after_s=0.0, mirror="none")


async def ended(runtime: Runtime, **fields: Any) -> str:
    session_id = await owner.create(runtime, plan="nightly", title="a title", **fields)
    await owner.record_cases(runtime, session_id, [("t::a", "passed", 0.1), ("t::b", "failed", 0.1)])
    await owner.ask(runtime, session_id, type="session.complete", outcome="failed", exit_code=1)
    return session_id


async def in_tier(runtime: Runtime, session_id: str, tier: str) -> None:
    async def there() -> bool:
        return bool((await runtime.record(session_id))["tier"] == tier)

    await await_until(there)


async def everything(runtime: Any, session_id: str) -> Any:
    record = await runtime.record(session_id)
    lasting = {
        name: value
        for name, value in record.items()
        if name not in ("storage", "tier", "last_sign_at", "duration_s")
    }
    state = await runtime.state(session_id)
    return lasting, state, [line async for line in runtime.events(session_id)]


async def test_an_ended_session_is_sealed_and_handed_over_and_reads_the_same(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await ended(runtime)
        await in_tier(runtime, session_id, "recent")
        await await_until(lambda: runtime.statistics().kernel.actors == 1)  # the session has left memory
        record = await runtime.record(session_id)
        assert (record["status"], record["storage"]["active"]) == ("completed", False)
        assert record["sealed_at"] is not None
        assert (settings.data_dir / record["storage"]["snapshot_path"]).exists()
        lasting, state, events = await everything(runtime, session_id)
        assert [line.type for line in events][-2:] == ["session.completed", "session.sealed"]
        shown, seq, body = await runtime.snapshot(session_id)
        assert (shown["tier"], seq, body) == ("recent", *state)
        (row,) = await runtime.page(CatalogQuery(tier=frozenset({"recent"})))
        assert row == await runtime.record(session_id)
        assert runtime.statistics().tiering.handed_over == 1
        await await_until(lambda: runtime.statistics().journal.sessions == 0)
    async with Runtime.open(settings) as runtime:
        assert await everything(runtime, session_id) == (lasting, state, events)
    async with Reader.open(settings.data_dir) as reader:
        assert await everything(reader, session_id) == (lasting, state, events)


async def test_a_reporter_that_seals_is_not_waited_for(settings: Settings) -> None:
    async with Runtime.open(evolve(settings, seal_after_s=DAY_S)) as runtime:
        patient = await ended(runtime)
        session_id = await ended(runtime)
        batch = [{"type": "log.append", "stream": "s", "text": "late"}, {"type": "session.seal"}]
        await runtime.ask_batch(session_id, [read_command(command) for command in batch])
        await in_tier(runtime, session_id, "recent")
        assert (await runtime.record(patient))["sealed_at"] is None
        await owner.ask(runtime, patient, type="session.seal")
        await in_tier(runtime, patient, "recent")


@pytest.mark.parametrize("tier", ["recent", "archive"])
async def test_a_sealed_session_takes_nothing_in_any_tier_and_answers_what_it_took(
    settings: Settings, tier: str
) -> None:
    async with Runtime.open(evolve(settings, recent_days=30 if tier == "recent" else 0)) as runtime:
        session_id = await owner.create(runtime)
        log = {"type": "log.append", "stream": "s", "text": "x", "command_id": "c1"}
        done = await runtime.ask(session_id, read_command(log))
        await owner.ask(runtime, session_id, type="session.cancel")
        await in_tier(runtime, session_id, tier)
        with pytest.raises(SessionSealed):
            await runtime.ask(session_id, read_command({**log, "command_id": "c2"}))
        assert await runtime.ask(session_id, read_command(log)) == Done(done.seq, True)
        assert (await runtime.record(session_id))["tier"] == tier
        await runtime.page(CatalogQuery())
        assert (await runtime.record(session_id))["tier"] == tier


async def test_the_creation_of_a_session_that_was_handed_over_finds_it_where_it_is(
    settings: Settings,
) -> None:
    create = {"title": "once", "command_id": "c1"}
    async with Runtime.open(settings) as runtime:
        record, duplicate = await runtime.create(read_create(create))
        assert not duplicate
        await owner.ask(runtime, record["session_id"], type="session.cancel")
        await in_tier(runtime, record["session_id"], "recent")
        again, duplicate = await runtime.create(read_create(create))
        assert duplicate
        assert again == await runtime.record(record["session_id"])


async def test_an_old_session_is_archived_and_reads_the_same(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        session_id = await ended(runtime)
        await in_tier(runtime, session_id, "recent")
        expected = await everything(runtime, session_id)
    async with Runtime.open(evolve(settings, recent_days=0)) as runtime:
        await in_tier(runtime, session_id, "archive")
        await await_until(lambda: runtime.statistics().tiering.archived == 1)
        assert await everything(runtime, session_id) == expected
        path = (await runtime.record(session_id))["storage"]["archive_path"]
        assert (settings.data_dir / path).exists()
        assert not (settings.data_dir / session_folder(session_id)).exists()
        lines = []
        async with runtime.stream(session_id, after=2) as stream:
            async for line in stream:
                lines.append(line)
                if line.seq == expected[1][0]:
                    break
        assert lines == expected[2][2:]
    async with Reader.open(settings.data_dir) as reader:
        assert await everything(reader, session_id) == expected


async def test_what_was_pending_when_the_process_ended_is_found_by_the_next_one(settings: Settings) -> None:
    async with Runtime.open(evolve(settings, seal_after_s=DAY_S)) as runtime:
        session_ids = [await ended(runtime) for _ in range(6)]
        running = await owner.create(runtime)
    async with Runtime.open(settings) as runtime:
        for session_id in session_ids:
            await in_tier(runtime, session_id, "recent")
        assert (await runtime.record(running))["tier"] == "active"


async def test_an_archive_that_is_away_keeps_nothing_from_being_handed_over_and_is_tried_again() -> None:
    plan = Plan()
    stores = memory_stores()
    away = fallible(stores, plan)
    mixed = Stores(
        journal=stores.journal, catalog=stores.catalog, objects=stores.objects, archive=away.archive
    )
    plan.killed = True
    settings = Settings(data_dir=Path("unused"), seal_after_s=0.0, recent_days=0, mirror="none")
    async with Runtime.over(settings, mixed, SystemClock()) as runtime:
        first = await ended(runtime)
        await await_until(lambda: runtime.statistics().tiering.failing)
        second = await ended(runtime)
        for session_id in (first, second):
            await in_tier(runtime, session_id, "recent")
        plan.killed = False
        for session_id in (first, second):
            await in_tier(runtime, session_id, "archive")
        await await_until(lambda: not runtime.statistics().tiering.failing)


async def test_facts_of_a_sealed_session_change_and_those_of_another_do_not(settings: Settings) -> None:
    async with Runtime.open(settings) as runtime:
        running = await owner.create(runtime)
        with pytest.raises(NotSealed, match="is running and not sealed"):
            await runtime.set_facts(running, title="x")
        with pytest.raises(NoSuchSession):
            await runtime.set_facts("sess_" + "0" * 32, title="x")
        session_id = await ended(runtime)
        await in_tier(runtime, session_id, "recent")
        changed = await runtime.set_facts(session_id, title="named", tags=["slow"])
        assert (changed["title"], changed["tags"]) == ("named", ["slow"])
        assert await runtime.record(session_id) == changed
        changed = await runtime.set_facts(session_id, title=None)
        assert (changed["title"], changed["tags"]) == ("a title", ["slow"])
        with pytest.raises(InvalidCommand, match="/tags/0"):
            await runtime.set_facts(session_id, tags=[""])
        assert await runtime.record(session_id) == changed
    async with Runtime.open(settings) as runtime:
        assert await runtime.record(session_id) == changed


async def test_a_bucket_is_an_archive_from_which_the_catalog_is_built_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.set_credentials(monkeypatch)
    with s3.serving() as server:
        bucket = s3.make_bucket()
        place = f"s3://{bucket}/prefix"
        settings = evolve(settings, archive=f"{place}?endpoint={server}", recent_days=0)
        async with Runtime.open(settings) as runtime:
            session_id = await ended(runtime)
            await in_tier(runtime, session_id, "archive")
            expected = await everything(runtime, session_id)
            path = (await runtime.record(session_id))["storage"]["archive_path"]
            assert path == f"{place}/{manifest_name(session_id)}"
            await await_until(lambda: not (settings.data_dir / session_folder(session_id)).exists())
        for file in settings.data_dir.glob("catalog.db*"):
            file.unlink()
        async with Runtime.open(settings) as runtime:
            assert (await runtime.record(session_id))["storage"]["archive_path"] == path
            assert await everything(runtime, session_id) == expected
