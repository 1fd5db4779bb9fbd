"""What happened in a seed: a digest that tells two runs apart, and how often each fault met each phase."""

import hashlib
from collections import Counter
from typing import Any

import anyio
from attrs import define, field


@define(eq=False)
class Trace:
    """`show`: print each line as it comes."""

    show: bool = False
    covered: Counter[tuple[str, str]] = field(factory=Counter)
    _digest: Any = field(factory=lambda: hashlib.blake2b(digest_size=16))

    def note(self, what: str, *details: Any) -> None:
        """Something happened, now."""
        line = f"{anyio.current_time():.6f} {what} {details}"
        self._digest.update(line.encode())
        if self.show:
            print(line)

    def took_effect(self, verb: str) -> None:
        """A person has done something about what is set aside."""
        self.note(verb)
        self.covered[verb, "person"] += 1

    @property
    def digest(self) -> str:
        return str(self._digest.hexdigest())
