"""A whole runtime over stores that misbehave by a seed, on virtual time.

One seed draws first the faults, then the workload, then the schedule, so it replays alike: `profile.py` draws the
faults, `disk.py` is what survives a death, `clients.py` sends and remembers what it was told, `oracle.py` and `checks.py`
hold that against what must be true, `world.py` starts, kills and ends. `python -m tests.simulation --help`.
"""
