"""The examples, run as a reader would run them. (`examples/demo.py` needs a package index; `make demo` runs it.)"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMBED = ROOT / "examples" / "embed.py"


def run_example(path: Path, *arguments: str, cwd: Path) -> str:
    """What it prints. Warnings are errors, and no setting of this machine's user comes along."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SOJOURN_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        cwd=cwd,
        env=environment | {"TMPDIR": str(cwd)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embedding_host_records_a_check_and_shows_it_through_the_mounted_api(tmp_path: Path) -> None:
    record = json.loads(run_example(EMBED, "--once", cwd=tmp_path))
    assert record["session_id"].startswith("sess_")
    assert (record["plan"], record["title"]) == ("checks", "the front page")
    assert (record["status"], record["outcome"], record["lost"]) == ("completed", "passed", False)
    assert record["results"]["passed"] == sum(record["results"].values()) == 1
    assert record["seq"] == 4
    assert list(tmp_path.iterdir()) == [], "its temporary data folder is gone"


def test_the_readmes_lines_on_embedding_are_those_of_the_example() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = EMBED.read_text()
    parts = [part.strip() for part in re.split(r"\n\n+", block) if part.strip()]
    assert parts
    for part in parts:
        assert part in example
