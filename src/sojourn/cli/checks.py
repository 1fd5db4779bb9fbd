"""What `sojourn doctor` looks at. It takes no lock and changes nothing, in the data folder or elsewhere."""

import os
import platform
import re
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import anyio

from ..actors.errors import InvalidSettings, SojournError
from ..runtime.settings_load import Loaded, ProgramSettings, load_settings
from ..runtime.stores.sqlite_check import sqlite_features
from ..runtime.verify import verify_folder
from .checks_folder import folder_findings, free_space, leftover_findings, spool_findings, store_findings
from .checks_mirror import mirror_findings
from .findings import Finding, nearest_folder, ok, problem, warning

ARCHIVE_ANSWER_S = 15.0
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?\s*(?:>=\s*([\d.]+))?")


async def examine(
    config: Path | None, data: Path | None, *, progress: Callable[[int], None] | None = None
) -> AsyncIterator[Finding]:
    """Everything, one after the other. What cannot be looked at is a finding, and the rest is looked at all the same.

    Args:
        progress: told how many things were read; where it is given, everything that is stored is read and checked.
    """
    for finding in _versions():
        yield finding
    try:
        loaded = load_settings(config=config, flags={"data_dir": data})
        yield ok("settings", f"read from {loaded.file}" if loaded.file is not None else "no settings file")
    except InvalidSettings as error:
        for text in error.problems:
            yield problem("settings", text, "mend the settings; nothing starts with them as they are")
        if data is None:
            return
        loaded = Loaded(settings=ProgramSettings(data_dir=data), sources={}, file=None)
    folder = loaded.settings.data_dir
    if folder.is_dir():
        for finding in folder_findings(folder):
            yield finding
        async for finding in store_findings(folder, loaded.settings):
            yield finding
        for finding in (*leftover_findings(folder), *spool_findings(folder)):
            yield finding
        if progress is not None:
            async for finding in _verified(folder, loaded.settings.archive, progress):
                yield finding
    elif folder.exists():
        yield problem("data folder", f"{folder} is no folder", "name another with --data")
    else:
        yield ok("data folder", f"{folder} is not there yet; the first recording makes it")
        yield free_space(folder)
    yield await _archive(loaded.settings)
    async for finding in mirror_findings(loaded.settings):
        yield finding


async def _verified(
    folder: Path, archive: str | None, progress: Callable[[int], None]
) -> AsyncIterator[Finding]:
    whole = flawed = 0
    try:
        async for flaw in verify_folder(folder, archive):
            progress(whole + flawed)
            if flaw is None:
                whole += 1
                continue
            flawed += 1
            of = f" of {flaw.session_id}" if flaw.session_id and flaw.session_id not in flaw.name else ""
            yield problem("content", f"{flaw.name}{of}: {flaw.detail}", flaw.remedy)
    except SojournError as error:
        yield problem("content", f"it cannot be read whole: {error}", "mend that, and run it again")
        return
    if not flawed:
        yield ok("content", f"{whole:,} sessions in the journal, objects and files carry their checksums")


def _versions() -> Iterator[Finding]:
    yield ok(
        "version", f"Sojourn {version('sojourn')}, Python {platform.python_version()}, {platform.platform()}"
    )
    features = sqlite_features()
    if not features.json_operators:
        remedy = "use a Python with SQLite 3.38 or later"
        yield problem("sqlite", f"SQLite {features.version} cannot read the journal (no ->>)", remedy)
    elif not features.fts5:
        remedy = "search needs it: use a Python whose SQLite has FTS5"
        yield warning("sqlite", f"SQLite {features.version} has no FTS5", remedy)
    else:
        yield ok("sqlite", f"SQLite {features.version} with FTS5")
    found, wrong = [], []
    for name, least, optional in _requirements():
        try:
            have = version(name)
        except PackageNotFoundError:
            if not optional:
                wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {have}")
        if _numbers(have) < _numbers(least):
            wrong.append(f"{name} is {have} and has to be {least} or later")
    if wrong:
        yield problem(
            "libraries", ", ".join(wrong), "install Sojourn again: pip install --force-reinstall sojourn"
        )
    else:
        yield ok("libraries", ", ".join(found))


def _requirements() -> Iterator[tuple[str, str, bool]]:
    """(name, least version, whether it may be missing) of what Sojourn needs, without its extras."""
    for line in requires("sojourn") or ():
        need, _, marker = line.partition(";")
        match = _REQUIREMENT.match(need)
        if match is not None and "extra" not in marker:
            yield match[1], match[2] or "0", bool(marker)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


async def _archive(settings: ProgramSettings) -> Finding:
    from ..runtime.stores.archive import read_setting

    try:
        place = read_setting(settings.archive, settings.data_dir)
    except SojournError as error:
        return problem("archive", str(error), "mend the setting archive")
    if isinstance(place, Path):
        there = nearest_folder(place)
        if place.exists() and not place.is_dir():
            return problem("archive", f"{place} is no folder", "name another in the setting archive")
        if not os.access(there, os.W_OK | os.X_OK):
            remedy = "make it writable, or name another folder in the setting archive"
            return problem("archive", f"{there} cannot be written", remedy)
        if settings.archive is not None and there not in (place, place.parent):
            remedy = "make it, or mount what holds it"
            return problem("archive", f"the folder above {place} is not there", remedy)
        return ok(
            "archive", str(place) if place.exists() else f"{place}, which the first archived session makes"
        )
    return await _bucket(place)


async def _bucket(place: Any) -> Finding:
    from ..runtime.settings_load import mask_url
    from ..runtime.stores.objects_s3 import S3Objects

    name = f"s3://{place.bucket}/{place.prefix}" + (
        f" at {mask_url(place.endpoint)}" if place.endpoint else ""
    )
    remedy = (
        "check the setting archive, the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) and that the server runs"
    )
    try:
        with anyio.fail_after(ARCHIVE_ANSWER_S):
            objects = await S3Objects.open(
                place.bucket, prefix=place.prefix, endpoint=place.endpoint, region=place.region
            )
            try:
                async for _ in objects.list(""):
                    break
            finally:
                await objects.close()
    except TimeoutError:
        return problem("archive", f"{name} did not answer within {ARCHIVE_ANSWER_S:g} s", remedy)
    except SojournError as error:
        return problem("archive", str(error), remedy)
    return ok("archive", f"{name} can be listed")
