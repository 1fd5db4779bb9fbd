"""`python -m tests.simulation [--seeds N] [--first S] [--show | --json] [--until-found]`: runs seeds; exit code 1 where an
invariant does not hold."""

import argparse
import json
import os
import sys
import time
from collections import Counter

from .profile import DIRECTED
from .world import Outcome, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--show", action="store_true", help="print all that happens")
    parser.add_argument("--json", action="store_true", help="print what became of each seed, one a line")
    parser.add_argument("--until-found", action="store_true", help="end with the first that fails")
    parser.add_argument(
        "--without-lock",
        action="store_true",
        help="processes are overtaken, too, as on a file system without locks: objects are then lost (docs/decisions/0110)",
    )
    options = parser.parse_args()
    began, cpu_began = time.monotonic(), time.process_time()
    outcomes = []
    for seed in range(options.first, options.first + options.seeds):
        outcome = run_seed(seed, show=options.show, without_lock=options.without_lock)
        outcomes.append(outcome)
        if options.json:
            print(json.dumps(document(outcome)), flush=True)
        elif outcome.violation is not None:
            more = " --without-lock" if options.without_lock else ""
            print(f"seed {seed}: {outcome.violation}\n  {replay(seed)}{more}", flush=True)
        if options.until_found and outcome.violation is not None:
            break
    failed = sum(outcome.violation is not None for outcome in outcomes)
    if not options.json:
        report(outcomes, failed, time.monotonic() - began, time.process_time() - cpu_began)
    return 1 if failed else 0


def report(outcomes: list[Outcome], failed: int, took_s: float, cpu_s: float) -> None:
    covered = Counter[tuple[str, str]]()
    for outcome in outcomes:
        covered += outcome.covered
    phases = sorted({phase for _, phase in covered})
    print("fault".ljust(10), *(phase.rjust(10) for phase in phases))
    for fault in sorted({fault for fault, _ in covered}):
        print(fault.ljust(10), *(str(covered[fault, phase]).rjust(10) for phase in phases))
    missing = [f"{fault} during {phase}" for fault, phase in DIRECTED if not covered[fault, phase]]
    if len(outcomes) >= 500:
        print(f"not met: {', '.join(missing) or 'nothing'}")
    print(
        f"{len(outcomes)} seeds in {took_s:.1f} s ({cpu_s / len(outcomes):.3f} s of a processor a seed), {failed} failed; "
        f"{sum(outcome.commands for outcome in outcomes)} commands, {sum(outcome.events for outcome in outcomes)} events, "
        f"{sum(outcome.virtual_s for outcome in outcomes) / 3600:.1f} hours of virtual time"
    )


def document(outcome: Outcome) -> dict[str, object]:
    """An outcome as JSON."""
    return {
        "seed": outcome.seed,
        "violation": str(outcome.violation) if outcome.violation is not None else None,
        "digest": outcome.digest,
        "covered": {f"{fault}/{phase}": count for (fault, phase), count in outcome.covered.items()},
        "replay": replay(outcome.seed),
    }


def replay(seed: int) -> str:
    """The command that shows it once more."""
    hash_seed = os.environ.get("PYTHONHASHSEED", "0")
    return f"PYTHONHASHSEED={hash_seed} .venv/bin/python -m tests.simulation --first {seed} --seeds 1 --show"


if __name__ == "__main__":
    sys.exit(main())
