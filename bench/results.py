"""Result files: JSON, a list of results of one or several scenarios."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .environment import ROOT

RESULTS = ROOT / "bench" / "results"
FORMAT = 1


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Whole or not at all: what stood there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.new")
    made.write_text(json.dumps({"format": FORMAT, "results": list(results)}, indent=2, sort_keys=True) + "\n")
    os.replace(made, path)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError, with what to do: no such file, or none of ours."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"there is no {path}; make one: python -m bench run SCENARIO --json {path}"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); give a file that `run --json` wrote") from error
    if (
        not isinstance(found, dict)
        or found.get("format") != FORMAT
        or not isinstance(found.get("results"), list)
    ):
        raise ValueError(f"{path} is no result file of format {FORMAT}; give one that `run --json` wrote")
    results: list[dict[str, Any]] = found["results"]
    return results


def key_of(result: dict[str, Any]) -> str:
    """What makes two results comparable: the scenario, the loop, and the options that were given."""
    options = result.get("options", {})
    given = [
        f"{name}={value}"
        for name, value in sorted(options.items())
        if value is not None and name not in ("rounds", "ack", "redis")
    ]
    if options.get("ack", "durable") != "durable":
        given.append(f"ack={options['ack']}")
    return " ".join([result["scenario"], *given, *([result["loop"]] if result.get("loop") else [])])
