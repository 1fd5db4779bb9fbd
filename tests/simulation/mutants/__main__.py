"""`python -m tests.simulation.mutants [NAME...]`: plants each fault in a copy of the tree and runs seeds there until one fails.

A fault that survives `--seeds` is a hole in the simulator: exit code 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from attrs import frozen

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TREE = ("actors", "runtime", "http", "src", "tests", "pyproject.toml")
SEEDS_MAX = 2_000


@frozen(kw_only=True)
class Found:
    """`seeds` is how many were run; `violation` of the last one, None: the fault survived."""

    name: str
    seeds: int
    violation: str | None
    took_s: float

    def __str__(self) -> str:
        how = self.violation or "SURVIVED"
        return f"{self.name:32} {self.seeds:5} seeds {self.took_s:6.1f} s  {how[:150]}"


def names() -> list[str]:
    """All planted faults."""
    return sorted(path.stem for path in HERE.glob("*.patch"))


def copy_with(name: str, folder: Path) -> None:
    """The tree in `folder`, with the fault in it. Raises CalledProcessError where the patch does not apply."""
    for part in TREE:
        source = ROOT / part
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
            shutil.copytree(source, folder / part, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, folder / part)
    patch = HERE / f"{name}.patch"
    # Without a repository above it, git takes the folder as it is.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(["git", "apply", str(patch)], cwd=folder, env=environment, check=True)


def hunt(name: str, seeds: int) -> Found:
    """Runs seeds over a copy with the fault until one fails."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"mutant-{name}-") as temporary:
        folder = Path(temporary)
        copy_with(name, folder)
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join([str(folder / "src"), str(folder)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "tests.simulation", "--seeds", str(seeds), "--until-found", "--json"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            run, violation = 0, None
            for line in process.stdout:
                run += 1
                violation = json.loads(line)["violation"]
            assert process.stderr is not None
            complaint = process.stderr.read().strip()
        if process.returncode not in (0, 1):  # a seed broke the simulator itself: noticed, too
            run, violation = run + 1, f"ended with {process.returncode}: {complaint.splitlines()[-1]}"
    return Found(name=name, seeds=run, violation=violation, took_s=time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which faults (all)")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help=f"how many at most ({SEEDS_MAX:,})")
    parser.add_argument(
        "--at-once", type=int, default=os.cpu_count() or 1, help="how many at once (one a core)"
    )
    options = parser.parse_args()
    unknown = set(options.names) - set(names())
    if unknown:
        print(f"no such fault: {', '.join(sorted(unknown))}; one of: {', '.join(names())}", file=sys.stderr)
        return 2
    survived = []
    with ThreadPoolExecutor(options.at_once) as pool:
        hunts = [pool.submit(hunt, name, options.seeds) for name in options.names or names()]
        for found in (hunted.result() for hunted in as_completed(hunts)):
            print(found, flush=True)
            if found.violation is None:
                survived.append(found.name)
    print(f"{len(options.names or names()) - len(survived)} found, {len(survived)} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
