"""What must hold at the end: the runtime at rest, everything moving again, and all that clients were told still there."""

from datetime import timedelta
from typing import TYPE_CHECKING

import anyio

from sojourn.actors.errors import CallerError, IntensityExceeded, StoreError
from sojourn.actors.kernel.scheduler import SLOT_MESSAGES_MAX
from sojourn.actors.ports import TIERS, CatalogQuery
from sojourn.actors.session.actor import Done
from sojourn.actors.session.commands import AppendLog, CancelTimer, Command
from sojourn.actors.session.timers import next_due_at
from sojourn.runtime.runtime import Runtime

from .disk import Mount
from .oracle import objects_of

if TYPE_CHECKING:
    from .world import World

IN_A_MOMENT_S = 120.0
LATE_S = 60.0  # a timer, after a start or a failure
ABANDONS_S_MAX = 1_000.0
RECENT = TIERS[1]


def conserved(world: "World", runtime: Runtime, mount: Mount) -> None:
    """I18: every message that was accepted is somewhere. And only what was planted crashes (a store's error never does)."""
    kernel = runtime._kernel.statistics()
    ended = kernel.replied + kernel.rejected + kernel.expired + kernel.dead_lettered + kernel.quarantined
    somewhere = ended + kernel.queued + kernel.awaiting_commit
    world.oracle.must(
        kernel.accepted == somewhere, "I18", f"{kernel.accepted} accepted, {somewhere} found: {kernel}"
    )
    world.oracle.must(
        kernel.crashes == mount.fired, "I15", f"{kernel.crashes} crashes, {mount.fired} of them planted"
    )
    for child in runtime._tree.statistics():
        fenced = mount.woken.is_set() and (child.last_error or "").startswith("StaleEpoch")
        sound = child.restarts == 0 and (child.last_error is None or fenced)
        world.oracle.must(sound, "I15", f"{child.child_id}: {child.last_error}")


def bounded(world: "World", runtime: Runtime) -> None:
    """I14: a mailbox holds what it may. What a crash or a slow slot puts back was accepted before."""
    put_back = SLOT_MESSAGES_MAX if {"crash", "slow", "pause"} & world.profile.rates.keys() else 0
    bound = world.profile.settings.mailbox_messages_max + put_back
    for cell in runtime._kernel.cells.values():
        waiting = cell.statistics().normal
        if cell.actor_id.startswith("sess_"):
            world.oracle.must(
                waiting <= bound, "I14", f"{cell.actor_id}: {waiting} messages wait, {bound} may"
            )


def at_rest(world: "World", runtime: Runtime, mount: Mount) -> None:
    """I23: a runtime that was left holds nothing."""
    conserved(world, runtime, mount)
    waiting = runtime._kernel.statistics().deadlines
    world.oracle.must(waiting == 0, "I23", f"{waiting} deadlines are left at rest")


def nothing_held(world: "World") -> None:
    """I23: nor does anyone who used it, once all have left."""
    assert world.last is not None
    watched, writing = world.last.statistics().live.subscribers, len(world.last._shelves._writing)
    world.oracle.must(watched == 0, "I23", f"{watched} streams are left at rest")
    world.oracle.must(writing == 0, "I23", f"{writing} sessions' objects are still being written")


async def everything_moves(world: "World", within_s: float) -> None:
    """I24: without faults the runtime takes commands and answers reads again, but for sessions that are set aside."""
    with anyio.move_on_after(within_s) as patience:
        while True:
            runtime = await world.running()
            if runtime._writer.refusing is None and set(runtime.readiness().values()) == {"ok"}:
                break
            await anyio.sleep(0.5)
    world.oracle.must(not patience.cancelled_caught, "I24", "the runtime is not ready again after the faults")
    await everything_is_counted(world)
    await timers_end(world)
    if any(plan.bombs for plan in world.plans):
        return  # some may be set aside, and are listed as they were
    late: list[str] = []
    with anyio.move_on_after(IN_A_MOMENT_S):
        while late := [
            id_ for id_, truth in world.oracle.truths.items() if truth.head > listed_seq(world, id_)
        ]:
            await anyio.sleep(1.0)
    world.oracle.must(not late, "I11", f"the catalog stays behind with {late}")


async def timers_end(world: "World") -> None:
    """I24: what is due fires. Then somebody takes all timers back, so that sessions come to rest."""
    late = []
    with anyio.move_on_after(IN_A_MOMENT_S):
        while late := [
            plan.session_id for plan in world.plans if not plan.bombs and _overdue(world, plan.session_id)
        ]:
            await anyio.sleep(1.0)
    world.oracle.must(not late, "I24", f"timers of {late} were due and do not fire")
    with anyio.move_on_after(IN_A_MOMENT_S) as patience:
        for truth in list(world.oracle.truths.values()):
            while keys := list(truth.state_at(truth.head, world.oracle.limits).timers):
                await _taken_back(world, truth.session_id, keys[0])
    world.oracle.must(not patience.cancelled_caught, "I24", "timers cannot be taken back")


def _overdue(world: "World", session_id: str) -> bool:
    truth = world.oracle.of(session_id)
    state = truth.state_at(truth.head, world.oracle.limits)
    due_at = next_due_at(state)
    return due_at is not None and due_at < world.clock.now() - timedelta(seconds=LATE_S)


async def _taken_back(world: "World", session_id: str, key: str) -> None:
    runtime = await world.running()
    sent_at = anyio.current_time()
    try:
        await runtime.ask(session_id, Command("timer.cancel", CancelTimer(key=key)))
        world.oracle.of(session_id).alive_at = sent_at
    except IntensityExceeded:
        await runtime.quarantine.release(session_id)
    except (CallerError, StoreError):  # it has fired
        await anyio.sleep(1.0)


async def everything_is_counted(world: "World") -> None:
    """I18: what the journal took from this process was published, and nothing else was."""
    taken = published = 0
    with anyio.move_on_after(IN_A_MOMENT_S):
        while True:
            runtime = await world.running()
            assert world.mount is not None
            taken, published = world.mount.events, runtime._writer.statistics().events
            if taken == published:
                return
            await anyio.sleep(1.0)
    world.oracle.must(False, "I18", f"the journal took {taken} events, {published} were published")


def listed_seq(world: "World", session_id: str) -> int:
    """The seq of its row; 0: it has none."""
    row = world.disk.catalog._rows.get(session_id)
    return row.seq if row is not None else 0


async def everything_rests(world: "World", runtime: Runtime, within_s: float) -> None:
    """I24: what was begun comes to its end: ended sessions move on, the catalog is level, every session answers."""
    for plan in world.plans:
        if plan.exists:
            await answers(world, runtime, plan.session_id)
    waiting = "nothing was looked at"
    with anyio.move_on_after(within_s) as patience:
        while waiting := await _waits(world, runtime):
            await anyio.sleep(1.0)
    world.oracle.must(
        not patience.cancelled_caught, "I24", f"still {waiting} after {within_s:g} s without a fault"
    )


async def _waits(world: "World", runtime: Runtime) -> str:
    """What is not at rest yet; empty: nothing."""
    if runtime.statistics().catalog_behind:
        return "the catalog is behind"
    mirror = runtime.mirror_statistics()
    if mirror is not None and mirror.state != "level":
        return f"the mirror is {mirror.state}"
    if runtime.statistics().tiering.running:
        return "something is moved"
    archives = world.profile.settings.recent_days < 1
    for plan in world.plans:
        row = world.disk.catalog._rows.get(plan.session_id)
        truth = world.oracle.of(plan.session_id)
        if not truth.head:
            continue
        if row is None or row.seq != truth.head:
            return f"{plan.session_id} is not listed as it is"
        state = truth.state_at(truth.head, world.oracle.limits)
        assert state.status is not None
        silent = world.profile.settings.abandon_after_s < ABANDONS_S_MAX
        if silent and not state.status.ended:
            return f"{plan.session_id} is silent, and not abandoned"
        if state.status.ended and row.tier != ("archive" if archives else RECENT):
            return f"{plan.session_id} has ended and is {row.tier}"
    return ""


async def answers(world: "World", runtime: Runtime, session_id: str) -> None:
    """One session is read and takes a line, if it is not sealed."""
    line = Command("log.append", AppendLog(stream="stdout", text=f"last {session_id}"))
    for _ in range(20):
        sent_at = anyio.current_time()
        try:
            seq, state = await runtime.state(session_id)
            world.oracle.shown_state(session_id, seq, state)
            await runtime.ask(session_id, line)
            world.oracle.of(session_id).alive_at = sent_at
            break
        except StoreError as error:
            world.may_fail(error)
            await anyio.sleep(5)
        except IntensityExceeded as error:
            for set_aside in world.set_aside(error):
                await runtime.quarantine.release(set_aside)
        except CallerError as error:
            ok = error.code == "sealed"
            world.oracle.must(ok, "I24", f"{session_id} does not take a line: {error}")
            break
    else:
        world.oracle.must(False, "I24", f"{session_id} does not answer")


async def what_was_told_is_there(world: "World", runtime: Runtime) -> None:
    """I1, I2, I5, I11, I17: read back through the runtime, started anew, and compared with the truth."""
    oracle = world.oracle
    listed = await runtime.page(CatalogQuery(limit=1_000))
    ids = [record["session_id"] for record in listed]
    durable = sorted(session_id for session_id, truth in oracle.truths.items() if truth.head)
    oracle.must(sorted(ids) == durable, "I11", f"listed are {ids}, there are {durable}")
    for session_id in durable:
        await _reads_back(world, runtime, session_id)
        _lies_where_it_should(world, session_id)
    for client in world.clients:
        for sent in client.sent:
            truth = oracle.of(sent.session_id)
            body = sent.command.body
            if sent.cause is not None:
                there = sent.cause in truth.causes
            else:
                there = not isinstance(body, AppendLog) or body.text in truth.texts
            if sent.durable:
                oracle.must(there, "I1", f"{sent.session_id}: {sent.cause} was acknowledged and is not there")
            elif sent.early is not None and not there:
                world.lost_early(sent)
            elif not sent.doubtful and not isinstance(sent.told, Done) and sent.command.source is None:
                oracle.must(
                    not there or sent.told == "unknown",
                    "I17",
                    f"{sent.session_id}: {sent.command.type} was refused ({sent.told}), and is there",
                )
    if runtime.mirror_statistics() is not None:
        with anyio.move_on_after(IN_A_MOMENT_S):
            while any(
                truth.tier != TIERS[0] and id_ in world.disk.mirror._sessions
                for id_, truth in oracle.truths.items()
            ):
                await anyio.sleep(1.0)
        oracle.mirror_is_level(world.disk.mirror)
    await _sent_again(world, runtime)


async def _reads_back(world: "World", runtime: Runtime, session_id: str) -> None:
    oracle = world.oracle
    truth = oracle.of(session_id)
    found = []
    async for line in runtime.events(session_id):
        found.append(line.line)
        oracle.shown(session_id, line)
    oracle.must(found == truth.lines, "I1", f"{session_id}: {len(found)} events are read of {truth.head}")
    seq, state = await runtime.state(session_id)
    oracle.must(seq == truth.head, "I5", f"{session_id} is read at {seq} of {truth.head}")
    oracle.shown_state(session_id, seq, state)
    record = await runtime.record(session_id)
    plan = next(plan for plan in world.plans if plan.session_id == session_id)
    if plan.title is not None and not plan.title_doubtful:
        oracle.must(
            record["title"] == plan.title,
            "I1",
            f"{session_id}: its title was set to {plan.title}, and is {record['title']}",
        )
    with anyio.move_on_after(IN_A_MOMENT_S):
        at = max(0, truth.head - 3)
        async with runtime.stream(session_id, after=at) as lines:
            async for line in lines:
                oracle.must(line.seq == at + 1, "I6", f"{session_id}: {line.seq} was streamed after {at}")
                at = line.seq
                if at == truth.head:
                    break
    oracle.must(at == truth.head, "I24", f"{session_id}: a stream stands at {at} of {truth.head}")


def _lies_where_it_should(world: "World", session_id: str) -> None:
    """I11: the journal has what is active, the recent objects what is recent, the archive what is archived; nothing else."""
    disk, oracle = world.disk, world.oracle
    row = disk.catalog._rows[session_id]
    in_journal = session_id in disk.journal.heads()
    oracle.must(
        in_journal == (row.tier == TIERS[0]),
        "I11",
        f"{session_id} is {row.tier}, in the journal: {in_journal}",
    )
    recent = objects_of(disk.recent, session_id)
    if row.tier == TIERS[1]:
        oracle.must(
            oracle.complete(disk.recent, session_id), "I11", f"{session_id} is recent and not complete"
        )
    if row.tier == TIERS[2]:
        oracle.must(
            oracle.complete(disk.archive, session_id), "I11", f"{session_id} is archived and not complete"
        )
        oracle.must(not recent, "I11", f"{session_id} is archived, and {sorted(recent)} are left")


async def _sent_again(world: "World", runtime: Runtime) -> None:
    """I17: the last commands of each client, once more: nothing happens, and they say when they did."""
    oracle = world.oracle
    for client in world.clients:
        confirmed = [sent for sent in client.sent if sent.durable and sent.cause is not None]
        for sent in confirmed[-5:]:
            head = oracle.of(sent.session_id).head
            if sent.command.type == "session.create":
                continue
            try:
                done = await runtime.ask(sent.session_id, sent.command)
            except CallerError as error:
                oracle.must(False, "I17", f"{sent.session_id}: {sent.cause} sent again: {error}")
                continue
            oracle.must(
                done.duplicate and oracle.of(sent.session_id).head == head,
                "I17",
                f"{sent.session_id}: {sent.cause} took effect a second time, at {done.seq}",
            )
