"""Programs that use the stores in a process of their own, where it can be killed or the disk taken away.

`python -m tests.support.stores PROGRAM FOLDER` prints JSON, one document a line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from sojourn.actors.errors import StorageFull, StoreUnavailable
from sojourn.actors.ports import CatalogQuery, Record
from sojourn.runtime.stores.catalog_sqlite import SqliteCatalog
from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.lock import FolderLock
from sojourn.runtime.stores.objects_folder import FolderObjects

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = 20


def command(program: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.support.stores", program, str(folder)]


def run(program: str, folder: Path) -> Any:
    """What the program printed last."""
    done = subprocess.run(
        command(program, folder), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_mounted(mount: str, program: str, folder: Path) -> Any:
    """The same after a mount that only this process sees; `$1` is the folder. No chmod stops root, a mount does."""
    script = f'set -e; {mount}; shift; exec "$@"'
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder)]
    probe = subprocess.run([*unshare, "true"], capture_output=True, text=True, timeout=60, check=False)
    if probe.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"this machine gives no private mounts: {probe.stderr}")
        pytest.skip(f"this machine gives no private mounts: {probe.stderr}")
    done = subprocess.run(
        [*unshare, *command(program, folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def traced(options: list[str], program: str, folder: Path) -> tuple[Any, list[str]]:
    """What the program printed last, and its system calls on paths in the folder, each with the paths of its
    descriptors."""
    if (strace := shutil.which("strace")) is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is not installed")
        pytest.skip("strace is not installed")
    log = folder.with_name(f"{folder.name}.strace")
    done = subprocess.run(
        [strace, "-f", "-y", "-qq", "-o", str(log), *options, *command(program, folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]
    return json.loads(done.stdout.splitlines()[-1]), [call for call in calls if str(folder) in call]


def say(document: Any) -> None:
    print(json.dumps(document), flush=True)


def group(seq: int, payload_bytes: int = 200) -> list[Record]:
    """One record of each session, with its seq inside."""
    return [
        Record(f"s{n}", seq, 1, 0, b'{"seq":%d,"fill":"%s"}\n' % (seq, b"x" * payload_bytes))
        for n in range(SESSIONS)
    ]


async def append(folder: Path) -> None:
    """Appends for ever, and says each seq once it is acknowledged."""
    journal = await SqliteJournal.open(folder / "journal.db")
    seq = journal.heads().get("s0", 0)
    while True:
        seq += 1
        await journal.append(group(seq))
        say(seq)


async def leave(folder: Path) -> None:
    """Appends a little and kills itself, so that all of it lies in the log of the database."""
    journal = await SqliteJournal.open(folder / "journal.db")
    await journal.append(group(1))
    await journal.append(group(2))
    catalog = await SqliteCatalog.open(folder / "catalog.db")
    say(await catalog.heads())
    os.kill(os.getpid(), signal.SIGKILL)


async def heads(folder: Path) -> None:
    """Says what a reader finds."""
    journal = await SqliteJournal.open(folder / "journal.db", read_only=True)
    records = await journal.read("s0")
    await journal.refresh()
    catalog = await SqliteCatalog.open(folder / "catalog.db", read_only=True)
    say([dict(journal.heads()), len(records), len(await catalog.page(CatalogQuery()))])
    await catalog.close()
    await journal.close()


async def full(folder: Path) -> None:
    """Appends until there is no room, makes room, goes on."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(200_000))
    journal = await SqliteJournal.open(folder / "journal.db")
    seq = refused = 0
    while refused < 3:
        try:
            await journal.append(group(seq + 1, 1_000))
            seq += 1
        except StorageFull:
            refused += 1
            assert set(journal.heads().values()) == {seq}
            assert len(await journal.read("s1")) == seq
    ballast.unlink()
    await journal.append(group(seq + 1, 1_000))
    await journal.close()
    journal = await SqliteJournal.open(folder / "journal.db")
    say(
        {
            "acknowledged": seq,
            "found": sorted(set(journal.heads().values())),
            "read": len(await journal.read("s1")),
        }
    )
    await journal.close()


async def full_release(folder: Path) -> None:
    """Appends until there is no room, then releases while there is none, makes room and releases."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(200_000))
    journal = await SqliteJournal.open(folder / "journal.db")
    seq = 0
    try:
        while True:
            await journal.append(group(seq + 1, 1_000))
            seq += 1
    except StorageFull:
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4_096))
    heads = dict(journal.heads())
    refused = False
    try:
        await journal.release(dict.fromkeys(heads, seq - 1))
    except StorageFull:
        refused = True
        assert {journal.released(session_id) for session_id in heads} <= {0, seq - 1}
    ballast.unlink()
    await journal.release(dict.fromkeys(heads, seq - 1))
    await journal.close()
    journal = await SqliteJournal.open(folder / "journal.db")
    left = len(await journal.read("s1"))
    say({"acknowledged": seq, "refused": refused, "found": journal.heads()["s1"], "left": left})
    await journal.close()


async def churn(folder: Path) -> None:
    """Appends for ever, with a session of its own each time; releases up to two before every fourth seq, and forgets
    the sessions up to there. Says each seq once all of this is acknowledged."""
    journal = await SqliteJournal.open(folder / "journal.db")
    seq = journal.heads().get("s0", 0)
    while True:
        seq += 1
        await journal.append([*group(seq, 5_000), Record(f"t{seq}", 1, 1, 0, bytes(100))])
        if seq % 4 == 0:
            await journal.release({f"s{n}": seq - 2 for n in range(SESSIONS)})
            await journal.forget([f"t{n}" for n in range(1, seq - 1)])
        say(seq)


async def failing_sync(folder: Path) -> None:
    """Appends ten groups and finds out about each of which it does not know."""
    journal = await SqliteJournal.open(folder / "journal.db")
    failures = 0
    while (seq := journal.heads().get("s0", 0) + 1) <= 10:
        try:
            await journal.append(group(seq))
        except StoreUnavailable:
            failures += 1
            await journal.append([])
    await journal.close()
    journal = await SqliteJournal.open(folder / "journal.db")
    found = [record.first_seq for record in await journal.read("s3")]
    say({"failures": failures, "found": found})
    await journal.close()


async def put_object(folder: Path) -> None:
    await FolderObjects(folder).put("a/b", b"the object")
    say(None)


async def own(folder: Path) -> None:
    """Takes a new folder, makes its journal, and puts a group of records and an object there."""
    lock = FolderLock.acquire(folder)
    journal = await SqliteJournal.open(folder / "journal.db")
    await journal.append(group(1))
    await FolderObjects(folder).put("a/b", b"the object")
    await journal.close()
    lock.release()
    say(None)


async def full_objects(folder: Path) -> None:
    """Puts what there is room for, and what there is none for."""
    objects = FolderObjects(folder)
    await objects.put("small", b"x")
    try:
        await objects.put("a/large", bytes(1_000_000))
        refused = False
    except StorageFull:
        refused = True
    left = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    say({"refused": refused, "left": left})


PROGRAMS: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {
    program.__name__: program
    for program in (
        append,
        churn,
        leave,
        heads,
        full,
        full_release,
        failing_sync,
        put_object,
        own,
        full_objects,
    )
}

if __name__ == "__main__":
    anyio.run(PROGRAMS[sys.argv[1]], Path(sys.argv[2]))
