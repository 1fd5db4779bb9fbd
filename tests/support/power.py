"""A file system whose power can be cut: ext4 on a loop file, and the ioctl by which it forgets what was not synced.

The mount belongs to a mount namespace of this process and its children, so it and its loop device are gone with the last of
them, however they end.
"""

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define

from .wait import wait_until

# _IOR('X', 125, __u32): from here on nothing reaches the device, and what its log holds in memory is dropped.
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_CLONE_NEWNS = 0x00020000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

_FORGOTTEN = "forgotten"


class CannotCutPower(Exception):
    """This machine does not let us make such a file system. The message says what is missing."""


@define
class Disk:
    """A file system in `image`, mounted at `place`, or not."""

    image: Path
    place: Path

    def mount(self) -> None:
        """As after a power cut: the file system's own log is replayed. Raises CannotCutPower."""
        done = subprocess.run(
            ["mount", "-t", "ext4", "-o", "loop", str(self.image), str(self.place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CannotCutPower(
                f"an ext4 file system cannot be mounted from a file ({done.stderr.strip()}); it takes a kernel with ext4 and "
                "loop devices, and a container that is allowed to use them"
            )

    def unmount(self) -> None:
        """Waits until nobody holds a file there any more. Where nothing is mounted, nothing happens."""
        if self.place.is_mount():
            wait_until(self._unmounted)

    def _unmounted(self) -> bool:
        done = subprocess.run(["umount", self.place], stderr=subprocess.DEVNULL, check=False)
        return done.returncode == 0

    def forgot(self) -> bool:
        """Whether what `cut_power` wrote is gone, as it has to be. Asked after the next mount."""
        return not any(path.read_bytes() for path in self.place.glob(f"{_FORGOTTEN}-*"))


def cut_power(place: Path) -> None:
    """Cut the power of the file system at `place`, which a file that is written and renamed there last, and not synced, does
    not survive. Whoever still has files open there is answered with EIO."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    # A name of its own: one that replaces another file is written at once by ext4, so that less is lost.
    name = f"{_FORGOTTEN}-{secrets.token_hex(8)}"
    try:
        (place / f".{name}").write_bytes(b"not synced" * 400)
        (place / f".{name}").rename(place / name)
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """A new file system in `folder`, mounted; unmounted on exit.

    Raises:
        CannotCutPower: this is not root, or a tool or a right is missing.
    """
    if os.geteuid() != 0:
        raise CannotCutPower("mounting a file system takes root; run it as root")
    if missing := [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]:
        raise CannotCutPower(
            f"{' and '.join(missing)} not found; install e2fsprogs and mount, and have /sbin on the PATH"
        )
    _see_own_mounts()
    disk = Disk(folder / "disk.img", folder / "disk")
    disk.place.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", disk.image], check=True)
    try:
        disk.mount()
        yield disk
    finally:
        disk.unmount()


def end_with_parent() -> None:
    """This process is killed when the thread that started it ends: else it would hold the mount. Also after an exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _see_own_mounts() -> None:
    if _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        reason = os.strerror(ctypes.get_errno())
        raise CannotCutPower(f"this machine gives no private mounts ({reason}); it takes CAP_SYS_ADMIN")
