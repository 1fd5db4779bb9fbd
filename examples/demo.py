"""Record networkx's own tests under two of its versions, and compare the two sessions. Run by `make demo`.

Everything here is the command line that a user has: two times `sojourn record`, then `sojourn compare`. Needs a package index
for networkx and pytest; they are installed into a throw-away environment by uv.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

PLAN = "networkx"
VERSIONS = ("3.6.1", "2.7.1")
PYTEST = "9.2.0"
PACKAGES = ("networkx.algorithms.shortest_paths", "networkx.algorithms.flow", "networkx.classes")

BIN = Path(sys.executable).parent
DATA = Path(__file__).resolve().parent.parent / ".sojourn"
# `record` ends with the code of its command, and a test that fails is no failure of the recording; these are.
FAILED_TO_RECORD = (125, 130)
# pytest's own: interrupted, internal error, wrong usage, no tests (https://docs.pytest.org, "Exit codes").
FAILED_TO_TEST = (2, 3, 4, 5)


def main() -> int:
    """Exit code 0 when both sessions were recorded and compared, whatever the comparison says."""
    ids = []
    for version in VERSIONS:
        session_id = record(version)
        if session_id is None:
            return 1
        ids.append(session_id)
    print("\n== what changed", flush=True)
    code = sojourn("compare", *ids, "--limit", "5", "--data", str(DATA))
    if code not in (0, 1):  # 1: the second is worse, which is what there is to see
        print("demo: the comparison failed; what it said stands above", file=sys.stderr)
        return 1
    where = f"--data {shlex.quote(str(DATA))}"
    command = shlex.quote(str(BIN / "sojourn"))
    print(
        f"""
recorded    {ids[0]}  networkx {VERSIONS[0]}
            {ids[1]}  networkx {VERSIONS[1]}
they lie in {DATA}

look again  {command} compare last~1 last {where}
all cases   {command} compare last~1 last --json {where}
list        {command} ls {where}
one of them {command} show last {where}
watch one   {command} record {where} -- COMMAND
            {command} tail last --follow {where}    (in another terminal, while it runs)"""
    )
    return 0


def record(version: str) -> str | None:
    """The id of a new session: the tests of networkx `version`; None where they could not be run or recorded."""
    title = f"networkx {version}"
    print(f"\n== the tests of {title} (their output is recorded, and not shown here)", flush=True)
    # An empty folder: no configuration of another project, and none of its plugins, comes along.
    with tempfile.TemporaryDirectory(prefix="sojourn-demo-") as folder:
        document = Path(folder) / "session.json"
        empty = Path(folder) / "empty"
        empty.mkdir()
        options = (
            f"--quiet --no-project --isolated --with networkx=={version} --with pytest=={PYTEST}".split()
        )
        tests = [str(BIN / "uv"), "run", *options, "python", "-m", "pytest", "-q", "--pyargs", *PACKAGES]
        code = sojourn(
            "record", "--plan", PLAN, "--title", title, "--data", str(DATA), "--json", str(document), "--", *tests,
            cwd=empty, quiet=True,
        )  # fmt: skip
        if code in FAILED_TO_RECORD or not document.exists():
            print(f"demo: {title} could not be recorded (exit code {code}); see above", file=sys.stderr)
            return None
        recorded = json.loads(document.read_text("utf-8"))
    session_id = str(recorded["session_id"])
    if code in FAILED_TO_TEST or code < 0 or code > 128:
        print(
            f"demo: the tests of {title} could not be run (exit code {code}); they said:",
            file=sys.stderr,
            flush=True,
        )
        sojourn("tail", session_id, "--lines", "30", "--data", str(DATA))
        return None
    missing = {name: recorded[name] for name in ("undelivered", "refused", "lost") if recorded[name]}
    if missing:
        print(f"demo: {title} is not recorded in full ({missing}); see above", file=sys.stderr)
        return None
    print(f"all of its {recorded['delivered']:,} results, lines and measurements are kept; nothing was lost")
    return session_id


def sojourn(*arguments: str, cwd: Path | None = None, quiet: bool = False) -> int:
    """The exit code of `sojourn ARGUMENTS`. `quiet` drops its stdout: what it says itself goes to stderr."""
    # uv takes this Python, and neither looks for another nor downloads one.
    environment = {**os.environ, "UV_PYTHON": getattr(sys, "_base_executable", sys.executable)}
    environment.pop("VIRTUAL_ENV", None)
    stdout = subprocess.DEVNULL if quiet else None
    command = [str(BIN / "sojourn"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, stdout=stdout, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
