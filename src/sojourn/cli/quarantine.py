"""`sojourn quarantine`: what crashed a session and is set aside, and what a person decides about it."""

import sys
from typing import Annotated, Any

import cyclopts
import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from ..actors.errors import CallerError
from .look import HERE, Flag, Where
from .screen import Screen, run
from .server import server_of
from .source import resolve
from .text import one_line

SHOWN_CHARACTERS_MAX = 200
MessageNumber = Annotated[int, Parameter(validator=Number(gte=1))]

app = cyclopts.App(
    name="quarantine",
    help="Look at what crashed a session and is set aside, and skip, edit, retry or release it.",
)


@app.command
def ls(session: str | None = None, /, *, json: Flag = False, where: Where = HERE) -> int:
    """List messages and sessions that are set aside.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N; of all sessions unless given.
        json: one JSON document, {"items": [...]}.
    """

    async def body(screen: Screen) -> int:
        session_id = await _id_of(where, session) if session is not None else None
        async with server_of(where) as client:
            items = await client.quarantined(session_id)
        if json:
            screen.json({"items": items})
        elif not items:
            print("sojourn: nothing is set aside", file=sys.stderr)
        else:
            for item in items:
                screen.line(_line(item))
        return 0

    return run(body)


@app.command
def show(session: str, number: MessageNumber, /, *, json: Flag = False, where: Where = HERE) -> int:
    """Show a message that is set aside: its command, and the traceback of its crash.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        number: as `ls` shows it.
        json: one JSON document.
    """

    async def body(screen: Screen) -> int:
        session_id = await _id_of(where, session)
        async with server_of(where) as client:
            found = await client.quarantined_message(session_id, number)
        if json:
            screen.json(found)
            return 0
        screen.line(_line(found))
        command = found["command"]
        if command is not None:
            screen.line(one_line(msgspec.json.encode(command).decode(), 64 * 1024))
        elif found["text"] is not None:
            screen.line(one_line(found["text"], 64 * 1024))
        else:
            screen.line("the command is not known until its sender sends it again")
        for line in (found["traceback"] or "").splitlines():
            screen.line(one_line(line, SHOWN_CHARACTERS_MAX))
        return 0

    return run(body)


@app.command
def skip(session: str, number: MessageNumber, /, *, json: Flag = False, where: Where = HERE) -> int:
    """Drop a message for good. Its sender may send it again, as a new one.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        number: as `ls` shows it.
        json: one JSON document: session_id, number.
    """

    async def body(screen: Screen) -> int:
        session_id = await _id_of(where, session)
        async with server_of(where) as client:
            await client.skip_quarantined(session_id, number)
        if json:
            screen.json({"number": number, "session_id": session_id})
        else:
            print(f"sojourn: message {number} of {session_id} is dropped", file=sys.stderr)
        return 0

    return run(body)


@app.command
def retry(session: str, number: MessageNumber, /, *, json: Flag = False, where: Where = HERE) -> int:
    """Send a message again as it was. Where it takes effect, it is set aside no longer.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        number: as `ls` shows it.
        json: one JSON document: ok, sent, seq, duplicate.
    """

    async def body(screen: Screen) -> int:
        session_id = await _id_of(where, session)
        async with server_of(where) as client:
            outcome = await client.retry_quarantined(session_id, number)
        return _told(screen, json, session_id, number, outcome)

    return run(body)


@app.command
def edit(
    session: str, number: MessageNumber, fields: str, /, *, json: Flag = False, where: Where = HERE
) -> int:
    """Send a message with other fields in place of its own, under its own identity.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        number: as `ls` shows it.
        fields: all fields of the command as one JSON object, without what it is identified by; - reads standard input.
        json: one JSON document: ok, sent, seq, duplicate.
    """

    async def body(screen: Screen) -> int:
        text = sys.stdin.read() if fields == "-" else fields
        try:
            document = msgspec.json.decode(text.encode("utf-8", "surrogateescape"), type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CallerError(
                f"the fields are no JSON object ({error}); give one, or - to read it"
            ) from error
        session_id = await _id_of(where, session)
        async with server_of(where) as client:
            outcome = await client.edit_quarantined(session_id, number, document)
        return _told(screen, json, session_id, number, outcome)

    return run(body)


@app.command
def release(session: str, /, *, json: Flag = False, where: Where = HERE) -> int:
    """Let a session start again that crashed in a loop.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        json: one JSON document: session_id, released.
    """

    async def body(screen: Screen) -> int:
        session_id = await _id_of(where, session)
        async with server_of(where) as client:
            released = (await client.release_session(session_id))["released"]
        if json:
            screen.json({"released": released, "session_id": session_id})
        elif released:
            print(f"sojourn: {session_id} may start again", file=sys.stderr)
        else:
            print(f"sojourn: {session_id} is not set aside; nothing was done", file=sys.stderr)
        return 0

    return run(body)


async def _id_of(where: Where, session: str) -> str:
    async with where.open() as source:
        return await resolve(source, session)


def _line(item: dict[str, Any]) -> str:
    if item["kind"] == "session":
        what = "the session itself"
    elif "source" in item:
        what = f"{item['type'] or 'a command'} {item['source']} {item['n']}"
    else:
        what = f"{item['type'] or 'a command'} {item.get('command_id', '')}".rstrip()
    told = f"{item['session_id']} {item['number']:>4}  {item['at']}  {what}: {item['crash']}"
    return one_line(told, SHOWN_CHARACTERS_MAX)


def _told(screen: Screen, json: bool, session_id: str, number: int, outcome: dict[str, Any]) -> int:
    if json:
        screen.json(outcome)
    elif outcome["sent"]:
        print(
            f"sojourn: message {number} of {session_id} took effect; its event is {outcome['seq']}",
            file=sys.stderr,
        )
    else:
        print(
            f"sojourn: message {number} of {session_id} is handled once its sender sends it again",
            file=sys.stderr,
        )
    return 0
