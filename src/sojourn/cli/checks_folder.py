"""What `sojourn doctor` looks at in a data folder. It takes no lock and changes nothing."""

import os
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from ..actors.errors import Damaged, SojournError
from ..actors.ports import CatalogQuery
from ..launch import is_listening
from ..record.spool import recordings, spool_dir
from ..runtime.paths import api_socket_path
from ..runtime.reader import Reader
from ..runtime.settings import Settings
from ..runtime.stores.catalog_sqlite import SqliteCatalog
from ..runtime.stores.journal_sqlite import SqliteJournal
from ..runtime.stores.lock import check_format, owner_pid
from ..runtime.stores.object_names import TEMPORARY
from .findings import Finding, named, nearest_folder, ok, problem, warning
from .text import duration, size

GIB = 1024**3
FREE_BYTES_LOW = GIB
FREE_BYTES_NONE = 64 * 1024 * 1024
READ_BYTES = 1024 * 1024
_KINDS = (
    (re.compile(r"journal\.db"), "journal"),
    (re.compile(r"catalog\.db"), "catalog"),
    (re.compile(r"archive/"), "archive"),
    (re.compile(r"spool/"), "spool"),
    (re.compile(r"sessions/.*/snapshot-"), "snapshots"),
    (re.compile(r"sessions/.*/events-"), "segments"),
)


def folder_findings(folder: Path) -> Iterator[Finding]:
    pid = owner_pid(folder)
    owner = f"owned by pid {pid}" if pid is not None else "no owner"
    if not os.access(folder, os.R_OK | os.X_OK):
        yield problem(
            "data folder",
            f"{folder} cannot be read",
            "give yourself the right to, or name another with --data",
        )
    elif not os.access(folder, os.W_OK):
        yield warning(
            "data folder",
            f"{folder} cannot be written ({owner})",
            "to look at it is all that can be done; make it writable to record into it",
        )
    else:
        yield ok("data folder", f"{folder} ({owner})")
    try:
        check_format(folder)
        path = folder / "format"
        yield ok(
            "format", path.read_text("ascii").strip() if path.exists() else "none yet: no owner was there"
        )
    except SojournError as error:
        yield problem("format", str(error), "name another data folder with --data")
    except OSError as error:
        yield problem("format", f"{folder / 'format'} cannot be read ({error.strerror})", "make it readable")
    yield free_space(folder)
    yield _sizes(folder)


def free_space(folder: Path) -> Finding:
    there = nearest_folder(folder)
    try:
        free_bytes, files = shutil.disk_usage(there).free, os.statvfs(there)
    except OSError as error:
        return warning(
            "free space", f"{there} cannot be asked ({error.strerror})", "check that it is mounted"
        )
    if free_bytes < FREE_BYTES_NONE or (files.f_files and not files.f_favail):
        return problem(
            "free space",
            f"{size(free_bytes)} and {files.f_favail:,} files free at {there}",
            "make room: recording is refused while there is none",
        )
    if free_bytes < FREE_BYTES_LOW:
        return warning("free space", f"{size(free_bytes)} free at {there}", "make room soon")
    return ok("free space", f"{size(free_bytes)} free at {there}")


def _sizes(folder: Path) -> Finding:
    sizes: Counter[str] = Counter()
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        kind = next((kind for pattern, kind in _KINDS if pattern.match(name)), "other")
        try:
            sizes[kind] += path.stat().st_size
        except FileNotFoundError:  # an owner is at work
            continue
    told = ", ".join(f"{kind} {size(count)}" for kind, count in sizes.most_common())
    return ok("size", f"{size(sizes.total())}{f': {told}' if told else ''}")


async def store_findings(folder: Path, settings: Settings) -> AsyncIterator[Finding]:
    path = folder / "journal.db"
    if not path.exists():
        remedy = "put it back from a copy; what has no segments or snapshots is lost"
        if (folder / "sessions").exists() or (folder / "catalog.db").exists():
            yield problem("journal", f"{path} is not there, and sessions are", remedy)
        else:
            yield ok("journal", "there is none yet: no session was recorded")
        return
    try:
        journal = await SqliteJournal.open(path, read_only=True)
    except SojournError as error:
        yield problem(
            "journal", str(error), "stop the owner, and put the journal back from a copy of the data folder"
        )
        return
    try:
        found = journal.statistics()
        damaged = [id_ for id_ in journal.heads() if not await _can_be_read(journal, id_)]
        detail = f"{found.sessions:,} sessions, {found.records:,} records, {size(found.payload_bytes)}"
        if journal.flaws or damaged:
            yield problem(
                "journal",
                "".join([f"{flaw}; " for flaw in journal.flaws])
                + f"{detail}; {found.damaged:,} records are damaged; sessions that cannot be read: {named(damaged)}",
                "the other sessions are whole; put the folder back from a copy, or keep these to where they can be read",
            )
        elif found.payload_bytes > 2 * settings.journal_bytes_max:
            yield warning(
                "journal",
                f"{detail}, which is more than journal_bytes_max ({size(settings.journal_bytes_max)})",
                "run `sojourn serve` on the folder: the owner moves its oldest events into segments",
            )
        else:
            yield ok("journal", detail)
        heads = dict(journal.heads())
    finally:
        await journal.close()
    yield await _catalog(folder, heads)
    async for finding in _sessions(folder, settings):
        yield finding


async def _can_be_read(journal: SqliteJournal, session_id: str) -> bool:
    after, head = journal.released(session_id), journal.heads()[session_id]
    try:
        while after < head:
            records = await journal.read(session_id, after, bytes_max=READ_BYTES)
            if not records:
                break
            after = records[-1].last_seq
    except Damaged:
        return False
    return True


async def _catalog(folder: Path, heads: dict[str, int]) -> Finding:
    path = folder / "catalog.db"
    rebuilt = "nothing is lost: the next owner builds it anew from the journal"
    if not path.exists():
        return warning("catalog", f"{path} is not there", rebuilt)
    try:
        catalog = await SqliteCatalog.open(path, read_only=True)
    except Damaged as error:
        return warning("catalog", str(error), rebuilt)
    except SojournError as error:
        return problem("catalog", str(error), "name another data folder with --data")
    try:
        rows = await catalog.heads()
        if broken := await catalog.damaged_rows():
            return warning("catalog", f"the rows of {named(broken)} do not carry their checksum", rebuilt)
    except SojournError as error:
        return warning("catalog", str(error), rebuilt)
    finally:
        await catalog.close()
    behind = [id_ for id_, seq in heads.items() if rows.get(id_, 0) < seq]
    if behind and owner_pid(folder) is None:
        return ok(
            "catalog",
            f"{len(rows):,} sessions, {len(behind):,} behind the journal: caught up at the next start",
        )
    return ok("catalog", f"{len(rows):,} sessions" + (f", {len(behind):,} being caught up" if behind else ""))


async def _sessions(folder: Path, settings: Settings) -> AsyncIterator[Finding]:
    counts: Counter[str] = Counter()
    damaged, unreplayable, lost, pending = [], [], [], []
    try:
        async with Reader.open(folder) as reader:
            async for record in reader.walk(CatalogQuery(limit=500)):
                counts[record["tier"]] += 1
                if record.get("damaged") is not None:
                    damaged.append(record["session_id"])
                if (record.get("quarantined") or {}).get("reason") == "replay":
                    unreplayable.append(record["session_id"])
                if record["lost"]:
                    lost.append(record["session_id"])
                elif record["ended_at"] is not None and record["tier"] == "active":
                    pending.append(record["session_id"])
            quarantined = reader.quarantined()
    except SojournError as error:
        yield problem(
            "sessions", f"they cannot be listed: {error}", "see what is said of journal and catalog"
        )
        return
    told = ", ".join(f"{count:,} {tier}" for tier, count in sorted(counts.items()))
    yield ok("sessions", told or "none")
    if damaged:
        yield problem(
            "damaged sessions",
            f"{len(damaged):,} have lost events and are read-only: {named(damaged)}",
            "put the damaged files back from a copy, or go on without them: `sojourn accept-loss ID`",
        )
    if unreplayable:
        yield problem(
            "not replayed",
            f"{len(unreplayable):,} have an event that cannot be applied, and are read-only before it: {named(unreplayable)}",
            "upgrade Sojourn if a newer version wrote it, else report it; it is tried again at the next start",
        )
    for finding in quarantine_findings(quarantined):
        yield finding
    if lost:
        yield warning(
            "lost sessions",
            f"{len(lost):,} have not ended and show no sign of life: {named(lost)}",
            f"`sojourn serve` ends them as abandoned after {duration(settings.abandon_after_s)} without one; "
            "`sojourn record --resume ID` goes on with one",
        )
    if pending:
        yield ok("hand-off", f"{len(pending):,} have ended and wait to be handed over by the owner")


def quarantine_findings(items: list[dict[str, Any]]) -> Iterator[Finding]:
    """Of what is set aside, as it is listed."""
    sessions = [item["session_id"] for item in items if item["kind"] == "session"]
    messages = [f"{item['session_id']} {item['number']}" for item in items if item["kind"] == "message"]
    if sessions:
        yield problem(
            "crash loops",
            f"{len(sessions):,} sessions crashed in a loop and are set aside: {named(sessions)}",
            "`sojourn quarantine ls ID` says why; `sojourn quarantine release ID` lets one start again",
        )
    if messages:
        yield warning(
            "quarantine",
            f"{len(messages):,} messages crashed their session and are set aside: {named(messages)}",
            "`sojourn quarantine show ID NUMBER`; then skip, edit or retry it",
        )


def leftover_findings(folder: Path) -> Iterator[Finding]:
    pid = owner_pid(folder)
    found = [path for path in _files(folder) if path.name.startswith(TEMPORARY)]
    if found and pid is None:
        yield warning(
            "leftovers",
            f"{len(found):,} files of writes that broke off: {named([str(path) for path in found])}",
            "the next owner removes them",
        )
    try:
        path = api_socket_path(folder)
    except OSError as error:
        yield problem("socket", str(error), "set XDG_RUNTIME_DIR to a folder of yours")
        return
    if path.exists() and not is_listening(path):
        yield warning("socket", f"nobody listens on {path}", "the next server replaces it")


def spool_findings(folder: Path) -> Iterator[Finding]:
    waiting, waiting_bytes, live = [], 0, 0
    try:
        locked = _locked_files()
        for recording in recordings(folder):
            outbox = recording / "outbox.ndjson"
            if not outbox.exists():
                continue
            if outbox.stat().st_ino in locked:
                live += 1
                continue
            waiting.append(recording.name)
            waiting_bytes += max(0, outbox.stat().st_size - _acknowledged(recording))
        refused = sorted(path.name for path in spool_dir(folder).glob("refused-*.ndjson"))
    except OSError as error:
        yield problem("spool", f"{error.filename} cannot be read ({error.strerror})", "make it readable")
        return
    if waiting:
        yield warning(
            "spool",
            f"{len(waiting):,} recordings wait to be delivered ({size(waiting_bytes)}): {named(waiting)}",
            "the next `sojourn record` or `sojourn serve` on the folder delivers them",
        )
    else:
        yield ok("spool", f"nothing waits; {live:,} recorders at work" if live else "nothing waits")
    if refused:
        yield warning(
            "refused",
            f"commands that the server refused: {named(refused)}",
            f"each line of these files in {spool_dir(folder)} says why; delete them when you have seen to it",
        )


def _acknowledged(recording: Path) -> int:
    try:
        text = (recording / "acknowledged").read_text("ascii", "replace").strip("\0 \n")
    except FileNotFoundError:
        return 0
    return int(text) if text.isdigit() else 0


def _locked_files() -> set[int]:
    """The inodes of files that a process holds a lock on (proc(5), /proc/locks): asking by flock would take it."""
    try:
        lines = Path("/proc/locks").read_text("ascii", "replace").splitlines()
    except OSError:
        return set()
    return {int(match[1]) for line in lines if (match := re.search(r"FLOCK .*:(\d+) \S+ \S+$", line))}


def _files(folder: Path) -> Iterator[Path]:
    for above, _, names in os.walk(folder):
        for name in names:
            yield Path(above) / name
