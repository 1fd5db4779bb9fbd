"""What is sent, and what its sender was told of it."""

import random
import sys
from collections.abc import Callable
from typing import Any

from attrs import define, field

from sojourn.actors.session.codec import command_digest
from sojourn.actors.session.commands import Command, Create
from sojourn.actors.session.ids import session_id_for

from .oracle import Cause

UNKNOWN = "unknown"  # what became of it; sending it again is safe where it has an id
NOTHING = "nothing"  # was done; it may be sent again


@define(eq=False)
class Sent:
    """A command as its sender knows it. `told` is the last answer: a Done, an error, `UNKNOWN` or `NOTHING`.

    `early`: it was answered Done before it was durable, when so many things had gone wrong that may undo it.
    """

    session_id: str
    command: Command
    told: Any = UNKNOWN
    durable: bool = False
    early: int | None = None
    doubtful: bool = False  # one of its sendings had an outcome that is unknown

    @property
    def cause(self) -> Cause | None:
        command = self.command
        if command.source is not None:
            return ("source", command.source, command.n)
        return ("id", command.command_id, 0) if command.command_id is not None else None


@define(eq=False)
class Plan:
    """A session that is to be. `facts`: the title that was set last and confirmed."""

    create: Command
    session_id: str
    exists: bool = False
    ended: bool = False
    sealed: bool = False
    title: str | None = None
    title_doubtful: bool = False
    bombs: list[float] = field(factory=list)
    poisonous: list[Sent] = field(factory=list)  # commands on which the code fails, or did


class Fuse(int):
    """How many command ids are remembered, as a limit; it is compared with where an event with an id is applied. There the
    code fails for ids that are armed, as often as they are."""

    blow: Callable[[str], None]
    armed: dict[str, int]

    def __lt__(self, other: int) -> bool:
        command_id = sys._getframe(1).f_locals["cause"].command_id
        left = self.armed.get(command_id, 0)
        if left:
            self.armed[command_id] = left - 1
            self.blow(command_id)
            raise RuntimeError("a bug of ours, planted")
        return int(self) < other


def fuse(limit: int, blow: Callable[[str], None]) -> Fuse:
    made = Fuse(limit)
    made.armed, made.blow = {}, blow
    return made


def plans_of(rng: random.Random, count: int) -> list[Plan]:
    """Sessions with ids that follow from their commands."""
    plans = []
    for number in range(count):
        command = Command("session.create", Create(plan=rng.choice(["nightly", "smoke"]), title=f"t{number}"))
        command.command_id = f"create-{number}"
        command.digest = command_digest(command)
        plans.append(Plan(command, session_id_for(command.command_id, "")))
    return plans
