"""What SESSIONS (10,000) sessions take in the server: active, with the events since their snapshot, and passivated.

The bound is what their documents and events hold, and 6 KiB a session; passivated, their documents and 1 KiB. The server is
set as docs/redis.md says.
"""

import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings
from sojourn.runtime.telemetry import configure_logging
from sojourn.runtime.tuning import tune_process

from ..support.fleet import Fleet, Reporter, fleet_of
from ..support.redis import Server, serving
from ..support.wait import await_until

SETTINGS = {"hash-max-listpack-value": 512}
EVENTS = 50
REPORTING = 500
PASSIVATE_AFTER_S = 60.0
ACTIVE_BYTES_MAX, PASSIVE_BYTES_MAX = 6 * 1024, 1024
PATIENCE_S = 600.0


def prove(rng: random.Random) -> dict[str, Any]:
    """SESSIONS with 50 events each; SERVER is valkey (default) or redis."""
    sessions, name = int(os.environ.get("SESSIONS") or 10_000), os.environ.get("SERVER") or "valkey"
    configure_logging(level="error")
    tune_process()
    with (
        tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder,
        serving(name, settings=SETTINGS) as server,
    ):
        found = asyncio.run(_prove(Path(folder), server, sessions, rng))
    found["figures"]["server"] = name
    return found


async def _prove(folder: Path, server: Server, sessions: int, rng: random.Random) -> dict[str, Any]:
    settings = Settings(data_dir=folder / "data", mirror=server.unix, passivate_after_s=PASSIVATE_AFTER_S)
    async with Runtime.open(settings) as runtime, fleet_of(runtime, server) as fleet:
        empty = _used_bytes(server)
        waiting = await fleet.add(sessions, rng)

        async def reports() -> None:
            while waiting:
                await _report(waiting.pop())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(REPORTING):
                tasks.create_task(reports())
        await fleet.reached()
        active = await _measured(server, fleet, empty)
        print(f"  active: {active}", file=sys.stderr)

        async def passivated() -> bool:
            return all([not await fleet.witness.events(session_id) for session_id in fleet.shadows])

        await await_until(lambda: runtime.statistics().kernel.actors <= 1, PATIENCE_S)
        await await_until(passivated, PATIENCE_S)
        passive = await _measured(server, fleet, empty)
        differences = await fleet.level(passivated=True)
        lost = await fleet.lost()
    figures = {
        "sessions": sessions,
        "events_a_session": EVENTS + 2,
        "active": active,
        "passivated": passive,
        "not_level": len(differences),
        "lost": len(lost),
    }
    holds = (
        active["beside_bytes"] <= ACTIVE_BYTES_MAX
        and passive["beside_bytes"] <= PASSIVE_BYTES_MAX
        and not differences
        and not lost
    )
    return {"holds": holds, "figures": figures}


async def _report(reporter: Reporter) -> None:
    for _ in range(EVENTS):
        await reporter.tell()


async def _measured(server: Server, fleet: Fleet, empty: int) -> dict[str, int]:
    """Bytes a session: in the server, of documents, of events, and what is beside these."""
    documents = events = 0
    for session_id in fleet.shadows:
        documents += sum(
            len(name) + len(document)
            for name, document in (await fleet.witness.documents(session_id)).items()
        )
        events += sum(len(event) for _, event in await fleet.witness.events(session_id))
    count = len(fleet.shadows)
    used = await asyncio.to_thread(_used_bytes, server) - empty
    return {
        "used_bytes": used // count,
        "documents_bytes": documents // count,
        "events_bytes": events // count,
        "beside_bytes": (used - documents - events) // count,
    }


def _used_bytes(server: Server) -> int:
    """What the server uses, without the buffers of its connections: those do not grow with the sessions."""
    return int(server.info("used_memory")) - int(server.info("mem_clients_normal"))
