"""Files and folders that are there after a power cut."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes names in `folder` durable: a renamed file whose folder was not synced is lost at a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """`folder` and the parents it needs, each durable in its own parent; private to the user."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def write_synced(path: Path, data: bytes) -> None:
    """A new file, or one written anew, whose content is durable. Renamed to its place without that, it may be there after a
    power cut and hold nothing. Its name is durable with `sync_folder`."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
