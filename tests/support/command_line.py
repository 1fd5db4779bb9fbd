"""The command line as a process."""

import subprocess
import sys
from pathlib import Path


def sojourn(*arguments: str | Path, code: int = 0) -> str:
    """What a command wrote to stdout, or to stderr where nothing came there."""
    done = subprocess.run(
        [sys.executable, "-m", "sojourn", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout or done.stderr
