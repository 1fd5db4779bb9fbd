"""What the reporters of proofs send."""

import random
from typing import Any


def some_command(rng: random.Random, text_characters_max: int) -> dict[str, Any]:
    """As JSON; without the numbers by which it is known again."""
    return dict(
        rng.choice(
            (
                {"type": "log.append", "stream": "stdout", "text": "x" * rng.randrange(text_characters_max)},
                {"type": "progress.report", "done": rng.randrange(1000)},
                {
                    "type": "result.record",
                    "case_id": f"c{rng.randrange(50)}",
                    "outcome": "passed",
                    "duration_s": 0.1,
                },
            )
        )
    )
