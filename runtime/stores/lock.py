"""Who owns a data folder, and whether it is of a format this Sojourn knows."""

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path

from attrs import define, field

from ...actors.errors import FolderInUse, StorageFull, StoreError, UnusableFolder
from .folders import make_folders, sync_folder, write_synced

FORMAT = 1
_FLOCK = struct.Struct("@hhqqi")  # struct flock of fcntl(2): type, whence, start, length (0: all of it), pid
_ROOM = (errno.ENOSPC, errno.EDQUOT)
_REMEDY = "name another folder with --data, or set SOJOURN_DATA"


@define(eq=False)
class FolderLock:
    """The lock of one owner on one data folder. It ends with `release`, or with the process, however that ends.

    It is an open file description lock (fcntl(2)) on `lock` in the folder, which also holds the owner's pid. What says
    that a folder is in use is the lock and not the file, so a file left by a killed owner stops nobody; and unlike one
    by flock(2), it can be asked for without being taken.
    """

    folder: Path
    _descriptor: int | None = field(alias="descriptor")

    @classmethod
    def acquire(cls, folder: Path) -> "FolderLock":
        """Makes the folder where there is none, checks its format, and takes it. Does not wait for another owner.

        Raises:
            FolderInUse: another owner holds it; `pid` is that process.
            UnusableFolder: it cannot be made or written, or is of a newer format. Nothing in it was changed.
            StorageFull: it is new, and there is no room to make it in.
        """
        try:
            make_folders(folder)
            check_format(folder)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            _take(folder, descriptor)
        except BlockingIOError as error:
            pid = _pid(descriptor)
            os.close(descriptor)
            raise FolderInUse(str(folder), pid) from error
        except OSError as error:
            os.close(descriptor)
            raise _unusable(folder, error) from error
        return cls(folder, descriptor)

    def release(self) -> None:
        """Another owner may come now. Again: nothing happens."""
        if self._descriptor is not None:
            # The pid goes while the lock is held, so that no reader meets the pid of one who has left.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def owner_pid(folder: Path) -> int | None:
    """The pid of the process that owns the folder now; None where nobody does, or it cannot be told. Takes nothing."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
        return None if kind == fcntl.F_UNLCK else _pid(descriptor)
    finally:
        os.close(descriptor)


def check_format(folder: Path) -> None:
    """Raises UnusableFolder where the folder is of a newer format, or its `format` file is none of ours."""
    path = folder / "format"
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return
    if not text.isdigit() or int(text) == 0:
        raise UnusableFolder(
            f"{path} holds no format number, so {folder} is no data folder of Sojourn; {_REMEDY}. Where you know that it is "
            f"one, the file is damaged: write {FORMAT} into it"
        )
    if int(text) > FORMAT:
        raise UnusableFolder(
            f"data folder {folder} is of format {text}, this Sojourn knows formats up to {FORMAT}; "
            f"open it with the newer Sojourn that wrote it, or {_REMEDY}"
        )


def _take(folder: Path, descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:  # on a full disk the lock is as good without the pid
        if error.errno not in _ROOM:
            raise
    path = folder / "format"
    if not path.exists():
        temporary = folder / ".tmp-format"
        write_synced(temporary, f"{FORMAT}\n".encode())
        os.replace(temporary, path)
    sync_folder(folder)


def _pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None


def _unusable(folder: Path, error: OSError) -> StoreError:
    if error.errno in _ROOM:
        return StorageFull(
            f"no room in data folder {folder} ({error.strerror}); free some space, or {_REMEDY}"
        )
    return UnusableFolder(f"data folder {folder} cannot be used ({error.strerror or error}); {_REMEDY}")
