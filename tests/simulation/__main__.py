"""`python -m tests.simulation [--seeds N] [--first S] [--show]`: runs seeds; exit code 1 where an invariant does not hold."""

import argparse
import os
import sys
import time
from collections import Counter

from .world import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--show", action="store_true", help="print all that happens")
    options = parser.parse_args()
    began, failed, covered = time.monotonic(), 0, Counter[tuple[str, str]]()
    commands = events = 0
    virtual_s = 0.0
    for seed in range(options.first, options.first + options.seeds):
        outcome = run_seed(seed, show=options.show)
        covered += outcome.covered
        commands += outcome.commands
        events += outcome.events
        virtual_s += outcome.virtual_s
        if outcome.violation is not None:
            failed += 1
            print(f"seed {seed}: {outcome.violation}\n  {replay(seed)}")
    took_s = time.monotonic() - began
    phases = sorted({phase for _, phase in covered})
    print("fault".ljust(10), *(phase.rjust(10) for phase in phases))
    for fault in sorted({fault for fault, _ in covered}):
        print(fault.ljust(10), *(str(covered[fault, phase]).rjust(10) for phase in phases))
    print(
        f"{options.seeds} seeds in {took_s:.1f} s ({took_s / options.seeds:.3f} s a seed), {failed} failed; "
        f"{commands} commands, {events} events, {virtual_s / 3600:.1f} hours of virtual time"
    )
    return 1 if failed else 0


def replay(seed: int) -> str:
    """The command that shows it once more."""
    hash_seed = os.environ.get("PYTHONHASHSEED", "0")
    return f"PYTHONHASHSEED={hash_seed} .venv/bin/python -m tests.simulation --first {seed} --seeds 1 --show"


if __name__ == "__main__":
    sys.exit(main())
