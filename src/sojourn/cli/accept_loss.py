"""`sojourn accept-loss`: a person decides that a session goes on without the events it has lost."""

import sys

from .look import HERE, Flag, Where
from .screen import Screen, run
from .server import server_of
from .source import resolve


def accept_loss(session: str, /, *, yes: Flag = False, json: Flag = False, where: Where = HERE) -> int:
    """Let a session that is set aside go on without the events it has lost. Its history says so from then on.

    Asks first on a terminal. Where there is a copy of the data folder, put the damaged files back from it instead.

    Args:
        session: an ID: the session's id, its beginning or end, last, or last~N.
        yes: don't ask.
        json: one JSON document: session_id, first_seq, last_seq, seq of the event that says so (null: nothing had to be
            accepted, as they are there again, or somebody was quicker).
    """

    async def body(screen: Screen) -> int:
        # A server first: what is lost is known once the session was read back.
        async with server_of(where) as client, where.open() as source:
            session_id = await resolve(source, session)
            damaged = (await source.record(session_id))["damaged"]
            if damaged is None:
                print(f"sojourn: {session_id} has lost nothing; nothing was done", file=sys.stderr)
                return 0
            lost = f"events {damaged['first_seq']} to {damaged['last_seq']} of {session_id}"
            if not yes:
                if not sys.stdin.isatty():
                    print(f"sojourn: {lost} are lost; say --yes to go on without them", file=sys.stderr)
                    return 2
                print(
                    f"{lost} are lost. Go on without them for ever? [y/N] ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                    print("sojourn: nothing was done", file=sys.stderr)
                    return 1
            outcome = await client.accept_loss(session_id)
            losses = (await source.record(session_id))["losses"]
        seq = None if outcome["duplicate"] else outcome["seq"]
        if json:
            screen.json({"session_id": session_id, **damaged, "seq": seq})
        elif seq is None and any(loss["first_seq"] == damaged["first_seq"] for loss in losses):
            print(f"sojourn: {session_id} goes on without them already; nothing was done", file=sys.stderr)
        elif seq is None:
            print(f"sojourn: {lost} are there again; it goes on with them", file=sys.stderr)
        else:
            print(f"sojourn: {session_id} goes on without them; event {seq} says so", file=sys.stderr)
        return 0

    return run(body)
