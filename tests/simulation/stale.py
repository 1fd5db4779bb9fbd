"""A process that rests while another one takes its folder over, and then goes on as if nothing had been.

On a local disk that cannot be: the folder's lock (runtime/stores/lock.py) is the kernel's, and a process that rests holds
it. So this is a network file system that knows no locks. What is left then is the epoch: journal and mirror refuse the
older owner, which has written nothing and stops whole. Objects have no fence.
"""

import copy
from typing import TYPE_CHECKING

import anyio

from sojourn.actors.errors import SojournError, StaleEpoch
from sojourn.actors.session.codec import command_digest
from sojourn.actors.session.commands import AppendLog, Command, Create
from sojourn.actors.session.model import Ack
from sojourn.runtime.runtime import Runtime

from .disk import Killed, Mount
from .profile import log_uniform

if TYPE_CHECKING:
    from .world import World

RESTS_S = (0.05, 60.0)
STOPS_S_MAX = 600.0


async def outlived(world: "World", mount: Mount, runtime: Runtime) -> None:
    """It wakes once another one owns the folder, is asked for this and that, and has to end."""
    world.stale.append(mount)
    world.taken += 1
    mount.behind = copy.deepcopy(world.disk.journal)
    try:
        starts = world.starts
        while world.starts == starts and mount.death is None:
            await anyio.sleep(0.1)
        await anyio.sleep(log_uniform(world.disk.rng, *RESTS_S))
        mount.woken.set()
        with anyio.move_on_after(STOPS_S_MAX):
            while not mount.ended.is_set():
                await _asked(world, runtime)
                await anyio.sleep(0.5)
        world.oracle.must(mount.ended.is_set(), "I3", "a process that is fenced goes on")
    finally:
        world.stale.remove(mount)


async def _asked(world: "World", runtime: Runtime) -> None:
    """A session that is not there, and a line for one that is: neither may be answered as durable."""
    rng = world.disk.rng
    ack = rng.choice([Ack.DURABLE, Ack.MIRRORED if world.profile.mirror else Ack.DURABLE])
    create = Command("session.create", Create(plan="nightly", title="stale"), f"stale-{world.taken}")
    create.digest = command_digest(create)
    line = Command("log.append", AppendLog(stream="stdout", text="stale"))
    plan = rng.choice(world.plans)
    with anyio.move_on_after(60):
        try:
            if rng.random() < 0.5 and plan.exists:
                answer: object = await runtime.ask(plan.session_id, line, ack=ack)
            else:
                answer = await runtime.create(create, ack=ack)
        except (Killed, SojournError) as error:
            world.trace.note("stale", type(error).__name__)
        else:
            world.oracle.must(False, "I3", f"a process that is fenced has answered {answer}")


def is_fenced(error: BaseException) -> bool:
    """Whether that is all that ended a runtime."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_fenced(one) for one in error.exceptions)
    return isinstance(error, StaleEpoch)
