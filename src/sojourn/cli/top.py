"""`sojourn top`: a running server's parts, sessions and stalls, again and again. It changes nothing."""

from typing import Annotated, Any

import anyio
import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..actors.errors import CallerError
from ..client import ServerUnreachable
from .look import HERE, Flag, Where
from .screen import INTERRUPTED, Screen, rich_table, run
from .source_server import ServerSource
from .top_view import Block, Lines, view

# Rates need two looks: so long lies between the two of `--once`.
ONCE_S = 0.5


class NotServed(CallerError):
    """Nobody serves this data folder."""

    code = "not_served"

    def __init__(self, place: str) -> None:
        super().__init__(
            f"no server runs on {place}; start one with `sojourn serve`, or name one with --server"
        )


def top(
    *,
    once: Flag = False,
    json: Flag = False,
    interval: Annotated[float, Parameter(alias="-n", validator=Number(gte=0.1))] = 2.0,
    limit: Annotated[int, Parameter(validator=Number(gte=0, lte=1_000))] = 20,
    where: Where = HERE,
) -> int:
    """Watch a running server: its parts and their restarts, its sessions with what waits in them, stalls, the journal.

    On a terminal it fills the screen until Ctrl-C; in a pipe it writes plain text, look after look.

    Args:
        once: one look, and the end.
        json: what the server says, as JSON: one document, or without --once one a line.
        interval: seconds between two looks.
        limit: at most so many sessions: those in trouble first, then those with the most that waits.
    """

    async def body(screen: Screen) -> int:
        async with where.open() as source:
            if not isinstance(source, ServerSource):
                raise NotServed(source.place)
            if once:
                await _once(screen, source, limit, json)
            elif screen.is_terminal and not json:
                await _live(source, limit, interval)
            else:
                await _stream(screen, source, limit, json, interval)
        return 0

    code = run(body)
    return 0 if code == INTERRUPTED and not once else code  # there is no other way out


async def _once(screen: Screen, source: ServerSource, limit: int, json: bool) -> None:
    before = await source.statistics(limit)
    if json:
        screen.json(before)
        return
    await anyio.sleep(ONCE_S)
    _write(screen, view(source.place, await source.statistics(limit), before, short=screen.is_terminal))


async def _stream(screen: Screen, source: ServerSource, limit: int, json: bool, interval_s: float) -> None:
    before: dict[str, Any] | None = None
    while not screen.is_gone:
        now = await source.statistics(limit)
        if json:
            screen.raw(msgspec.json.encode(now))
        else:
            if before is not None:
                screen.line()
            _write(screen, view(source.place, now, before, short=False))
        screen.flush()
        before = now
        await anyio.sleep(interval_s)


async def _live(source: ServerSource, limit: int, interval_s: float) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    before: dict[str, Any] | None = None
    shown: RenderableType = Text("")
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                now = await source.statistics(limit)
            except ServerUnreachable as error:
                live.update(Group(Text(f"no answer, tried again: {error}", style="red"), shown), refresh=True)
            else:
                shown = Group(*map(_renderable, view(source.place, now, before, short=True)))
                live.update(shown, refresh=True)
                before = now
            await anyio.sleep(interval_s)


def _renderable(block: Block) -> RenderableType:
    if isinstance(block, Lines):
        return Group(*block.lines, "")
    return Group(rich_table(block.heads, block.rows, right=block.right, cut=block.cut), "")


def _write(screen: Screen, blocks: Any) -> None:
    for index, block in enumerate(blocks):
        if index:
            screen.line()
        if isinstance(block, Lines):
            for line in block.lines:
                screen.line(line)
        else:
            screen.table(block.heads, block.rows, right=block.right, cut=block.cut)
