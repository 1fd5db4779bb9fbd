"""A disk that is full, at every write; and one whose writes and syncs fail: nothing acknowledged is lost or doubled, seq has
no gap, reads go on while it is full, and everything moves again by itself once there is room.

Each job is one run of `tests.support.disk` in a private mount of its own: *fills* fill the disk while sessions report and
leave 0, 4, 8, ... KiB; *starts* open a folder on such a disk, after ordered ends and after kills; *reports* have strace make
the nth call of a thread fail, whichever file it is about. Every job ends with a second process, without faults, that sends
again what was not answered, waits until all sessions are archived, and reads everything.
"""

import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from ..support.disk import POINTS
from ..support.stores import ROOT

PAGE = 4096
DISK_BYTES = 64 * 1024 * 1024
DRIVERS = 3
SMALL_ROOM_BYTES = (
    2 * 1024 * 1024
)  # what compaction writes of a journal at its bound, and snapshots beside it
# How often one thread makes each call in a run; what lies beyond is not reached.
SYSCALLS = {
    "fdatasync": 150,
    "fsync": 60,
    "pwrite64": 600,
    "write": 40,
    "rename": 20,
    "openat": 100,
    "unlink": 25,
    "ftruncate": 6,
    "link": 2,
    "mkdir": 8,
}
ROOMLESS = ("pwrite64", "write", "ftruncate", "mkdir", "openat", "fsync", "fdatasync", "rename", "link")


def jobs(rng: random.Random, scale: float) -> list[dict[str, Any]]:
    """What is run; `scale` 1 takes some 12 minutes on two cores."""
    found: list[dict[str, Any]] = []
    # Every page up to 128 KiB; above, where a run has more writes than can be told apart, every fourth.
    leave = [PAGE * page for page in range(32)] + [PAGE * page for page in range(32, 192, 4)]
    rng.shuffle(leave)
    leave = leave[: max(4, round(len(leave) * scale))]
    found += [{"kind": "fills", "leave": leave[at : at + 8]} for at in range(0, len(leave), 8)]
    found.append({"kind": "fills", "leave": [0, PAGE, 0, 8 * PAGE], "room": SMALL_ROOM_BYTES})
    leave = [PAGE * page for page in range(48)]
    rng.shuffle(leave)
    leave = leave[: max(4, round(len(leave) * scale))]
    # The first has room, so that there are sessions, and a reserve.
    found += [
        {"kind": "starts", "leave": [DISK_BYTES, *leave[at : at + 12]]} for at in range(0, len(leave), 12)
    ]
    for syscall, calls in SYSCALLS.items():
        for error in ("EIO", "ENOSPC") if syscall in ROOMLESS else ("EIO",):
            for _ in range(max(1, round(8 * scale))):
                first = max(1, round(calls ** rng.random()))
                last = first + rng.choice((0, 0, 2, 10))
                inject = f"{syscall}:error={error}:when={first}" + (f"..{last}" if last > first else "")
                found.append({"kind": "reports", "inject": inject, "rounds": 2, "for_s": 2.5})
    rng.shuffle(found)
    return [job | {"seed": rng.randrange(1 << 30)} for job in found]


def prove(rng: random.Random) -> dict[str, Any]:
    """RUNS times as much (1)."""
    todo: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    wanted = jobs(rng, float(os.environ.get("RUNS") or 1))
    for job in wanted:
        todo.put(job)
    results: list[dict[str, Any]] = []
    failures: list[BaseException] = []
    threads = [
        threading.Thread(target=_drive, args=(todo, results, failures, len(wanted))) for _ in range(DRIVERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return judged(results)


def _drive(
    todo: "queue.SimpleQueue[dict[str, Any]]",
    results: list[dict[str, Any]],
    failures: list[BaseException],
    count: int,
) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="sojourn-prove-") as folder:
            driver = spawn(Path(folder))
            assert driver.stdin is not None
            assert driver.stdout is not None
            while not todo.empty():
                try:
                    job = todo.get_nowait()
                except queue.Empty:
                    break
                driver.stdin.write(json.dumps(job) + "\n")
                driver.stdin.flush()
                line = driver.stdout.readline()
                if not line:
                    raise AssertionError(f"the watcher ended at {job}; its output is above")
                results.append(json.loads(line))
                _tell(results[-1])
                if len(results) % 20 == 0:
                    print(f"  {len(results)}/{count}", file=sys.stderr)
            driver.stdin.close()
            driver.wait()
    except BaseException as error:  # noqa: BLE001 - it is raised again where the proof was begun
        failures.append(error)


def spawn(folder: Path, disk_bytes: int = DISK_BYTES) -> "subprocess.Popen[str]":
    """A watcher on a disk of its own."""
    script = f'mount -t tmpfs -o size={disk_bytes} tmpfs "$1" && exec "$2" -m tests.support.disk "$1"'
    return subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(folder), sys.executable],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def faults_of(result: dict[str, Any]) -> dict[str, int]:
    """What did not hold in one run, and how often."""
    said, job = result["said"], result["job"]
    found = dict.fromkeys(("lost", "missing", "doubled", "misplaced", "seq_gaps", "unreadable"), 0)
    for verified in said.get("verified", ()):
        for name in found:
            found[name] += verified["found"].get(name, 0)
    filled = said.get("filled", ())
    return found | {
        "wrong_answers": len(said.get("wrong", ())) - sum(count > 0 for count in found.values()),
        "not_verified": len(said.get("verified", ())) != 1,
        "hung": result["code"] is None or result["verified_code"] is None,
        "ended_without_a_clear_error": len(said.get("crashed", ())) + len(said.get("fell", ())),
        "stuck": len(said.get("stuck", ())),
        "reads_failed": len(said.get("read_failed", ())),
        "refused_after_room_returned": sum(one["false"] for one in filled),
        "never_moved_again": sum(one["moves_s"] is None for one in filled),
        "small_room_not_enough": sum("room" in job and one["small_room_s"] is None for one in filled),
        "tasks_restarted": sum(one.get("restarts", 0) for one in said.get("did", ()))
        + sum(restarts + crashes for restarts, crashes in said.get("restarts", ())),
        "starts_refused": len(said.get("not_opened", ())) if job["kind"] == "starts" else 0,
    }


def _tell(result: dict[str, Any]) -> None:
    bad = {name: count for name, count in faults_of(result).items() if count}
    if bad:
        said = {
            kind: lines
            for kind, lines in result["said"].items()
            if kind
            in ("wrong", "crashed", "fell", "stuck", "read_failed", "traceback", "not_opened", "verified")
        }
        print(f"  {result['job']}: {bad} {json.dumps(said)[:3000]}", file=sys.stderr)


def judged(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether it holds, and the figures."""
    bad: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    injected: Counter[str] = Counter()
    filled: list[dict[str, Any]] = []
    archived: list[float] = []
    resolved: list[float] = []
    unknown = not_opened = refused = 0
    for result in results:
        bad.update({name: int(count) for name, count in faults_of(result).items()})
        injected.update(result["injected"])
        said = result["said"]
        filled += said.get("filled", ())
        not_opened += len(said.get("not_opened", ()))
        for one in said.get("did", ()):
            phases.update(one["faults"])
            if one.get("archived_s") is not None:
                archived.append(one["archived_s"])
        for one in said.get("verified", ()):
            unknown += one["found"].get("unknown_done", 0) + one["found"].get("unknown_creations", 0)
            refused += one["found"].get("refused_without_a_fault", 0)
            resolved.append(one["resolved_s"])
    moves = [one["moves_s"] for one in filled if one["moves_s"] is not None]
    small = [one["small_room_s"] for one in filled if one["small_room_s"] is not None]
    growth = [
        one["rss_growth"]
        for result in results
        for one in result["said"].get("did", ())
        if "rss_growth" in one
    ]
    kinds = Counter(result["job"]["kind"] for result in results)
    figures = {
        "runs": dict(kinds),
        "fills": len(filled),
        "fills_that_were_met": sum(one["faults"] > 0 or one["refused"] > 0 for one in filled),
        "starts_on_a_full_disk": sum(
            len(r["job"]["leave"]) - 1 for r in results if r["job"]["kind"] == "starts"
        ),
        "faults_by_phase": dict(sorted(phases.items())),
        "phases_not_met": sorted(set(POINTS) - set(phases)),
        "calls_made_to_fail": dict(sorted(injected.items())),
        "runs_with_a_failed_call": sum(bool(result["injected"]) for result in results),
        "opened_again_after_a_clear_error": not_opened,
        "sessions": sum(result["sessions"] for result in results),
        "acknowledged": sum(result["acknowledged"] for result in results),
        "unknown_and_done": unknown,
        "refused_while_verifying": refused,
        "moves_again_s": _spread(moves),
        "small_room_s": _spread(small),
        "archived_after_s": _spread(archived),
        "unknown_resolved_s": _spread(resolved),
        "slowest_read_while_full_s": _spread([one["reads_s"] for one in filled]),
        "memory_growth_mib": _spread([bytes_ / 2**20 for bytes_ in growth]),
        **bad,
    }
    return {"holds": bool(results) and not any(bad.values()), "figures": figures}


def _spread(values: list[float]) -> dict[str, float] | None:
    return {"median": round(median(values), 2), "worst": round(max(values), 2)} if values else None
