"""`python -m tests.support.cut FOLDER` makes a file system in FOLDER and a data folder on it, cuts the power, and prints what
is left, as its last line; nothing where such a file system cannot be made, which it says on its standard error."""

import json
import sys
from pathlib import Path
from typing import Any

import anyio

from sojourn.runtime.stores.journal_sqlite import SqliteJournal
from sojourn.runtime.stores.lock import FolderLock
from sojourn.runtime.stores.objects_folder import FolderObjects

from .power import CannotCutPower, cut_power, small_disk
from .stores import own


async def left_of(data: Path) -> dict[str, Any]:
    lock = FolderLock.acquire(data)
    journal = await SqliteJournal.open(data / "journal.db")
    left = {
        "flaws": list(journal.flaws),
        "heads": sorted(set(journal.heads().values())),
        "object": (await FolderObjects(data).get("a/b")).decode(),
    }
    await journal.close()
    lock.release()
    return left


def main(folder: Path) -> None:
    try:
        with small_disk(folder, 64 * 1024 * 1024) as disk:
            anyio.run(own, disk.place / "data")
            cut_power(disk.place)
            disk.unmount()
            disk.mount()
            print(json.dumps({"forgot": disk.forgot()} | anyio.run(left_of, disk.place / "data")))
    except CannotCutPower as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
