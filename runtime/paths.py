"""Where things lie on this machine."""

import hashlib
import os
from pathlib import Path

# sun_path holds 108 bytes with its closing NUL (unix(7)).
SOCKET_PATH_BYTES_MAX = 107


def default_data_dir() -> Path:
    """The data folder when none is named: `SOJOURN_DATA`, else `$XDG_DATA_HOME/sojourn`, else
    `~/.local/share/sojourn`, else (no home) `./.sojourn`."""
    if named := os.environ.get("SOJOURN_DATA"):
        return Path(named)
    if xdg := os.environ.get("XDG_DATA_HOME"):
        return Path(xdg) / "sojourn"
    home = os.environ.get("HOME")
    if home and os.access(home, os.W_OK):
        return Path(home) / ".local" / "share" / "sojourn"
    return Path(".sojourn")


def api_socket_path(data_dir: Path) -> Path:
    """The unix socket on which the owner of `data_dir` listens: `api.sock` inside it, or, where that path would be
    longer than 107 bytes, a socket in the user's runtime folder named after the data folder."""
    inside = data_dir.resolve() / "api.sock"
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX:
        return inside
    return runtime_dir() / f"{hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]}.sock"


def runtime_place() -> Path:
    """Where `runtime_dir` is, made or not."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "sojourn" if base else Path(f"/tmp/sojourn-{os.getuid()}")


def runtime_dir() -> Path:
    """A private folder with a short name, made on first use (mode 0700)."""
    folder = runtime_place()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set XDG_RUNTIME_DIR to a folder of yours")
    return folder
