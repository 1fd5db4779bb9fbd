"""What a journal has acknowledged is there after its process was killed."""

import random
import select
import sqlite3
import subprocess
from pathlib import Path

import pytest

from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from tests.support import stores

pytestmark = pytest.mark.anyio
KILLS = 8
PATIENCE_S = 30


def acknowledged_until_killed(folder: Path, count: int, program: str = "append") -> int:
    """Lets the appending process run until it has acknowledged `count` more groups and kills it at once, while it goes
    on; the last seq that it has said."""
    with subprocess.Popen(
        stores.command(program, folder), cwd=stores.ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        lines: list[bytes] = []
        for _ in range(count):
            assert select.select([process.stdout], [], [], PATIENCE_S)[0], "nothing was acknowledged"
            lines.append(process.stdout.readline())
        process.kill()
        lines += process.stdout.readlines()
    whole = [line for line in lines if line.endswith(b"\n")]
    return int(whole[-1])


async def test_everything_acknowledged_is_there_after_each_kill(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    for _ in range(KILLS):
        acknowledged = acknowledged_until_killed(tmp_path, random_.randint(1, 120))
        journal = await SqliteJournal.open(tmp_path / "journal.db")
        heads = set(journal.heads().values())
        assert len(heads) == 1, "a group commit is whole or not there"
        assert acknowledged <= min(heads) <= acknowledged + 1
        for session_id in journal.heads():
            records = await journal.read(session_id)
            assert [record.first_seq for record in records] == list(range(1, min(heads) + 1))
            assert all(b'"seq":%d,' % record.first_seq in record.payload for record in records)
        await journal.close()


async def test_what_was_released_is_gone_and_nothing_else_after_each_kill(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random_ = random.Random(seed)
    for _ in range(KILLS):
        acknowledged = acknowledged_until_killed(tmp_path, random_.randint(1, 40), "churn")
        journal = await SqliteJournal.open(tmp_path / "journal.db")
        head, released = journal.heads()["s0"], journal.released("s0")
        assert acknowledged <= head <= acknowledged + 1
        assert released in {max(seq // 4 * 4 - 2, 0) for seq in (acknowledged, head)}
        for session_id in (f"s{n}" for n in range(stores.SESSIONS)):
            assert (journal.heads()[session_id], journal.released(session_id)) == (head, released)
            records = await journal.read(session_id)
            assert [record.first_seq for record in records] == list(range(released + 1, head + 1))
            assert all(b'"seq":%d,' % record.first_seq in record.payload for record in records)
        passing = {int(session_id[1:]) for session_id in journal.heads() if session_id.startswith("t")}
        assert set(range(released + 1, head + 1)) <= passing
        assert min(passing) > max(acknowledged // 4 * 4 - 2, 0)
        with sqlite3.connect(tmp_path / "journal.db") as connection:
            held = [row for (row,) in connection.execute("SELECT row FROM journal")]
        connection.close()
        assert len(held) <= head - released + 4
        await journal.close()
