"""What is done beside reporting: timers are set and taken back, and what is set aside is looked after by a person."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio

from sojourn.actors.errors import NotOpen, NotQuarantined, NotResendable, StaleEpoch, Stopped, StoreError
from sojourn.actors.session.actor import Done
from sojourn.actors.session.commands import CancelTimer, Command, SetTimer
from sojourn.actors.session.model import Ack, TimerAction, TimerClock

from .disk import Killed
from .plans import Plan

if TYPE_CHECKING:
    from sojourn.runtime.runtime import Runtime

    from .clients import Client

TIMER_KEYS = ("deadline", "beat")


async def set_timer(client: "Client", plan: Plan) -> None:
    """Set, put off or take back one of a session's timers: one that ends the session, or one that fires, maybe again."""
    rng = client.rng
    key = rng.choice(TIMER_KEYS)
    if rng.random() < 0.3:
        await client.with_id(plan, Command("timer.cancel", CancelTimer(key=key)), Ack.DURABLE)
        return
    fails = key == "deadline" and rng.random() < 0.1
    body = SetTimer(
        action=TimerAction.FAIL if fails else None,
        after_s=rng.choice([0.0, 0.5, 5.0, 100.0]),
        clock=rng.choice(list(TimerClock)),
        every_s=rng.choice([None, 2.0, 30.0]) if not fails else None,
        key=key,
    )
    await client.with_id(plan, Command("timer.set", body), Ack.DURABLE)


async def look_after(client: "Client", plan: Plan) -> None:
    """Skip, edit or retry what is set aside of a session. What becomes of it then, its sender does not know."""

    async def decide(runtime: "Runtime") -> Any:
        listed = runtime.quarantine.listed(plan.session_id)
        items = [item for item in listed if item["kind"] == "message"]
        if not items:
            return None
        number, verb = client.rng.choice(items)["number"], client.rng.choice(("edit", "retry", "skip"))
        for sent in plan.poisonous:
            sent.doubtful = True
            client.world.disarm(sent.command.command_id)  # the code is mended
        with suppress(NotQuarantined, NotResendable):  # somebody else was quicker
            done = None
            if verb == "skip":
                await runtime.quarantine.skip(plan.session_id, number)
            elif verb == "edit":
                fields = {"type": "log.append", "stream": "stderr", "text": client.new_text("edited")}
                done = await runtime.quarantine.edit(plan.session_id, number, fields)
            else:
                done = await runtime.quarantine.retry(plan.session_id, number)
            client.world.trace.took_effect(verb)
            return done
        return None

    done = await client.call(decide)
    if isinstance(done, Done):
        truth = client.world.oracle.of(plan.session_id)
        client.world.oracle.must(
            done.seq <= truth.head,
            "I7",
            f"{plan.session_id}: {done.seq} was answered, {truth.head} is durable",
        )


async def release(client: "Client", runtime: "Runtime", session_id: str) -> None:
    """A person sees that a session is set aside, and lets it go on."""
    await anyio.sleep(1.0)
    try:
        if await runtime.quarantine.release(session_id):
            client.world.trace.took_effect("release")
    except (Killed, NotOpen, StaleEpoch, Stopped, StoreError) as error:
        client.world.trace.note(client.name, f"not released: {type(error).__name__}")
