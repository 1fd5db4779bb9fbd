"""Reads of a session that wait at the same time are one turn, whose answer all of them get: a thousand viewers who come at
once, or come back after a restart, are no more to their session than one, and find room in its mailbox."""

from collections.abc import Callable
from typing import Any

from attrs import define, field

from ..actors.kernel.park import Parked, parking
from ..actors.session.actor import Read
from ..actors.session.model import SessionState

READERS_MAX = 10_000  # of one turn: then another one begins

Key = tuple[str, str]


@define(eq=False)
class _Answer:
    """Where the kernel puts the answer (see Parked), and all who wait for it."""

    asked: "SharedReads"
    key: Key
    readers: list[Parked] = field(factory=list)
    waiting: int = 0  # of the readers

    def set_result(self, result: Any, /) -> None:
        self.asked.leave(self)
        for reader in self.readers:
            if not reader.done():
                reader.set_result(result)

    def set_exception(self, exception: BaseException, /) -> None:
        self.asked.leave(self)
        for reader in self.readers:
            if not reader.done():
                reader.set_exception(exception)

    def done(self) -> bool:
        """Whether nobody waits."""
        return all(reader.done() for reader in self.readers)


class SharedReads:
    """Asks by `ask(session id, read, where the answer goes)`, which may refuse at once."""

    def __init__(self, ask: Callable[[str, Read, Any], object]) -> None:
        self._ask = ask
        self._waiting: dict[Key, _Answer] = {}

    async def look(self, session_id: str, read: Read, kind: str) -> Any:
        """What the read finds, or an equal one (of the same `kind`) that was asked before and has not had its turn: it sees
        everything that was durable when this was asked. Others are given the same values, so they must not be changed. The
        deadline is that of the first. Raises as the ask does."""
        key = session_id, kind
        answer = self._waiting.get(key)
        reader = parking()()
        if answer is not None and len(answer.readers) < READERS_MAX:
            answer.readers.append(reader)
            return await self._answered(answer, reader)
        answer = _Answer(self, key, [reader])

        def look(state: SessionState) -> Any:
            self.leave(answer)  # whoever asks from now on has to see what happens from now on
            return read.look(state)

        self._ask(session_id, Read(look), answer)
        self._waiting[key] = answer
        return await self._answered(answer, reader)

    async def _answered(self, answer: _Answer, reader: Any) -> Any:
        answer.waiting += 1
        try:
            return await reader
        finally:
            answer.waiting -= 1
            if not answer.waiting:
                # Where all have left, the kernel answers nobody, so that who came later would wait for ever.
                self.leave(answer)

    def leave(self, answer: _Answer) -> None:
        """Nobody joins these readers any more."""
        if self._waiting.get(answer.key) is answer:
            del self._waiting[answer.key]
