"""`python -m tests.prove [NAME...]`: runs proofs and writes `prove/NAME.json`. Exit code 1 where one does not hold, and 2 where
all hold that can be run here, and one cannot.

KILLS, SEED, PAIRS, SESSIONS and MINUTES in the environment set how much, and each proof names what else; without SEED one is
drawn, and printed.
"""

import importlib
import json
import os
import pkgutil
import random
import sys
import time
from pathlib import Path

from bench.harness import environment

from . import __path__ as here
from ._prerequisite import Missing

OUT = Path("prove")


def main(names: list[str]) -> int:
    known = sorted(module.name for module in pkgutil.iter_modules(here) if not module.name.startswith("_"))
    unknown = set(names) - set(known)
    if unknown:
        print(
            f"prove: no such proof: {', '.join(sorted(unknown))}; one of: {', '.join(known)}", file=sys.stderr
        )
        return 2
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    # Killed again and again, each would leave its private Valkey behind; the mirror's own proofs name their servers.
    os.environ.setdefault("SOJOURN_MIRROR", "none")
    # Nor is a server that compiles its modules at each start the one that a user has.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    OUT.mkdir(exist_ok=True)
    failed, missing = [], []
    for name in names or known:
        print(f"prove {name}: SEED={seed}", file=sys.stderr)
        began = time.monotonic()
        try:
            found = importlib.import_module(f".{name}", __package__).prove(random.Random(seed))
        except Missing as error:
            print(f"prove {name}: cannot be run here: {error}", file=sys.stderr)
            missing.append(name)
            continue
        found |= {"seed": seed, "took_s": round(time.monotonic() - began, 1), "environment": environment()}
        (OUT / f"{name}.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        print(
            f"prove {name}: {'holds' if found['holds'] else 'DOES NOT HOLD'}: {json.dumps(found['figures'])}"
        )
        if not found["holds"]:
            failed.append(name)
    return 1 if failed else 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
