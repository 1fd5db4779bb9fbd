"""Whether a session may go on, and from where: asked of the server before the command runs."""

from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..client import ServerProblem, ServerUnreachable
from ..launch import launch_if_needed
from .begin import Resumption
from .connection import Connection, connect
from .delivery import deliver_leftovers
from .limit import KEY
from .options import RecordError, RecordOptions
from .spool import Outbox, living_command, recordings

# A server may have to be started first.
ANSWER_DEADLINE_S = 30.0


def find_resumption(options: RecordOptions) -> Resumption:
    """The session that `--resume` names.

    What its last recorder left in the spool is delivered first: that may be its end.

    Raises:
        RecordError: there is no such session, it has ended, it is being recorded, or no server tells.
    """
    return anyio.run(_find, options)


async def _find(options: RecordOptions) -> Resumption:
    session_id = options.resume
    assert session_id is not None
    data_dir = options.data_dir.resolve()
    left_here = _left_behind(data_dir, session_id)
    try:
        with anyio.fail_after(ANSWER_DEADLINE_S):
            launched = launch_if_needed(data_dir, options.config) if options.server is None else None
            async with connect(options, launched) as connection:
                await connection.reconnect()
                if left_here:
                    await deliver_leftovers(data_dir, connection.client, session_id)
                return await _look(connection, session_id, recorder_is_dead=left_here)
    except TimeoutError as error:
        raise RecordError(
            f"the server did not say within {ANSWER_DEADLINE_S:g} s how far {session_id} is; "
            "look after the server, or record anew without --resume"
        ) from error
    except ServerUnreachable as error:
        raise RecordError(f"{session_id} cannot be resumed without its server: {error}") from error
    except ServerProblem as problem:
        if problem.code == "no_such_session":
            raise RecordError(
                f"there is no session {session_id}; `sojourn ls{options.where()}` shows those there are"
            ) from problem
        remedy = f"; {problem.remedy}" if problem.remedy is not None else ""
        raise RecordError(f"{session_id} cannot be resumed: {problem}{remedy}") from problem


def _left_behind(data_dir: Path, session_id: str) -> bool:
    """Whether a recorder of the session died here. Raises RecordError where one lives, or its command does."""
    found = False
    for folder in recordings(data_dir, session_id):
        outbox = Outbox.adopt(folder)
        if outbox is None and (folder / "outbox.ndjson").exists():
            raise RecordError(
                f"{session_id} is being recorded now; wait for its end, or stop that `sojourn record`"
            )
        if outbox is not None:
            outbox.close()
            found = True
        if (pid := living_command(folder)) is not None:
            raise RecordError(
                f"the command of {session_id} still runs (pid {pid}), though its recorder is gone; "
                f"wait for its end, or end it: kill {pid}"
            )
    return found


async def _look(connection: Connection, session_id: str, *, recorder_is_dead: bool) -> Resumption:
    record = await connection.client.session(session_id)
    if record["ended_at"] is not None:
        raise RecordError(
            f"{session_id} has ended ({record['status']}, {record['outcome'] or 'no outcome'}), and what has ended does not go on; "
            "record a new session, without --resume"
        )
    if record["status"] != "paused" and not record["lost"] and not recorder_is_dead:
        raise RecordError(
            f"something reports to {session_id} (its last sign of life came at {record['last_sign_at']}); "
            "where that is gone, the session counts as lost after 30 s, and can be resumed"
        )
    state: dict[str, Any] = msgspec.json.decode(
        (await connection.client.request("GET", f"/sessions/{session_id}/state")).content
    )
    attempt = 2
    async for _ in connection.client.events(session_id, types=["session.resumed"]):
        attempt += 1
    return Resumption(
        session_id=session_id,
        plan=record["plan"],
        status=record["status"],
        attempt=attempt,
        results=state["results"],
        has_limit=KEY in state.get("timers", {}),
    )
