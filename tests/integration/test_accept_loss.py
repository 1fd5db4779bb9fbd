"""`sojourn accept-loss`: what a person decides about sessions that have lost events."""

import json
from pathlib import Path

import anyio

from sojourn.actors.session.commands import AppendLog, Command, Start
from sojourn.actors.session.wire import read_create
from sojourn.runtime.layout import session_folder
from sojourn.runtime.runtime import Runtime
from sojourn.runtime.settings import Settings

from ..support.command_line import sojourn
from ..support.serve import serve

JOURNAL_BYTES_MAX = 256 * 1024
LINES = 250


def test_a_loss_is_accepted_or_put_back_on_the_command_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first, second = anyio.run(_fill, data)
    kept = _lose(data, first)
    _lose(data, second)
    where = ("--data", data)
    with serve(data, "--mirror", "none", "--port", "0", log=tmp_path / "serve.log"):
        assert "say --yes to go on without them" in sojourn("accept-loss", first, *where, code=2)
        for path, content in kept.items():
            path.write_bytes(content)
        assert "are there again; it goes on with them" in sojourn("accept-loss", first, "--yes", *where)
        assert "has lost nothing" in sojourn("accept-loss", first, "--yes", *where)
        accepted = json.loads(sojourn("accept-loss", second, "--yes", "--json", *where))
        assert accepted["session_id"] == second
        assert 1 == accepted["first_seq"] <= accepted["last_seq"] < accepted["seq"]
        assert "has lost nothing" in sojourn("accept-loss", second, "--yes", *where)
        whole, rest = (
            json.loads(sojourn("show", id_, "--json", *where))["record"] for id_ in (first, second)
        )
    assert (whole["damaged"], whole["losses"], whole["logs"]["lines"]) == (None, [], LINES)
    assert (rest["damaged"], rest["seq"]) == (None, accepted["seq"])
    (loss,) = rest["losses"]
    assert (loss["first_seq"], loss["last_seq"]) == (accepted["first_seq"], accepted["last_seq"])


async def _fill(data: Path) -> tuple[str, str]:
    """Two sessions whose events have mostly left the journal for segments."""
    settings = Settings(data_dir=data, journal_bytes_max=JOURNAL_BYTES_MAX, mirror="none")
    async with Runtime.open(settings) as runtime:
        ids = []
        for _ in range(2):
            record, _ = await runtime.create(read_create({"plan": "p", "title": "t"}))
            ids.append(record["session_id"])
            await runtime.ask(ids[-1], Command("session.start", Start()))
        for n in range(LINES):
            for id_ in ids:
                await runtime.ask(
                    id_, Command("log.append", AppendLog(stream="stdout", text=f"{n} ".ljust(3_000, "x")))
                )
    return ids[0], ids[1]


def _lose(data: Path, session_id: str) -> dict[Path, bytes]:
    """All segments: they are gone, and this is what they held."""
    lost = {path: path.read_bytes() for path in (data / session_folder(session_id)).glob("events-*")}
    for path in lost:
        path.unlink()
    return lost
