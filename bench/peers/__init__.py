"""Other actor libraries at the same jobs. Each runs in an environment of its own that uv makes for it and throws away, from a
script that knows nothing of ours; one that cannot be installed here is skipped, and that is said.

Jobs: `ask-1`, one client that waits for each answer; `ask-64`, sixty-four of them; `tell`; `spawn`, actors made and answering.
A job that a library has no word for is left out.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from ..environment import environment
from ..figures import summary
from ..harness import Options, execute, load

HERE = Path(__file__).parent
PEER_S = 300.0


@frozen(kw_only=True)
class Peer:
    """A library, by what pip calls it."""

    name: str
    requirement: str


PEERS = (
    Peer(name="pykka", requirement="pykka"),
    Peer(name="xoscar", requirement="xoscar"),
    Peer(name="thespian", requirement="thespian"),
    Peer(name="ray", requirement="ray"),
)
# How each job is done here: the scenario and its options.
OURS: dict[str, tuple[str, Options]] = {
    "ask-1": ("ask", Options(clients=1, operations=50_000)),
    "ask-64": ("ask", Options(clients=64, operations=100_000)),
    "tell": ("tell", Options(operations=200_000)),
    "spawn": ("spawn", Options(sessions=5_000)),
}


def measure_peers(
    names: Sequence[str], rounds: int, *, said: Callable[[str], None], loop: str = "asyncio"
) -> list[dict[str, Any]]:
    """Each peer's jobs and ours in turn, `rounds` times. JSON values.

    Raises:
        ValueError: there is no such peer.
    """
    known = {peer.name: peer for peer in PEERS}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"there is no peer {unknown[0]!r}; one of: {', '.join(known)}")
    return [_measured(known[name], rounds, said, loop) for name in names or known]


def _measured(peer: Peer, rounds: int, said: Callable[[str], None], loop: str) -> dict[str, Any]:
    theirs: dict[str, list[float]] = {}
    ours: dict[str, list[float]] = {}
    version = ""
    for number in range(rounds):
        try:
            found = _run(peer)
        except OSError as why:
            said(f"{peer.name}: skipped: {why}")
            return {"scenario": "peers", "peer": peer.name, "skipped": str(why)}
        version = found["version"]
        for job, per_s in found["per_s"].items():
            name, options = OURS[job]
            theirs.setdefault(job, []).append(per_s)
            ours.setdefault(job, []).append(execute(load(name).measure, options, loop).per_s)
        said(f"{peer.name} round {number + 1}/{rounds}")
    return {
        "scenario": "peers",
        "peer": f"{peer.name} {version}",
        "jobs": {
            job: {
                "theirs": summary(theirs[job]),
                "ours": summary(ours[job]),
                "ratio": summary([us / them for us, them in zip(ours[job], theirs[job], strict=True)]),
            }
            for job in theirs
        },
        "loop": loop,
        "environment": environment(),
    }


def _run(peer: Peer) -> dict[str, Any]:
    """Raises OSError, with the last line said, where it cannot be installed or does not run."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise OSError("there is no uv to make its environment with; pip install uv")
    command = [uv, "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable]
    command += ["--with", peer.requirement, str(HERE / f"{peer.name}_peer.py")]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PEER_S)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"not done within {time.monotonic() - began:.0f} s") from error
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise OSError(words[-1] if words else f"it ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
