"""The part of a server that a recorder talks to, in memory: it numbers, answers duplicates and refuses gaps as the wire says."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from sojourn.actors.session.ids import session_id_for
from sojourn.client import ServerProblem, ServerUnreachable


class FakeServer:
    """Takes batches for any session. `refuse` may give an error for a command; `troubles` are raised before anything."""

    address = "unix:fake"

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.heartbeats = 0
        self.created: list[dict[str, Any]] = []
        self.sealed: list[str] = []
        self.troubles: list[ServerProblem | ServerUnreachable] = []
        self.lose_answers = 0
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda command: None
        self._last: dict[str, int] = {}

    async def send(self, session_id: str, body: bytes) -> list[dict[str, Any]]:
        if self.troubles:
            raise self.troubles.pop(0)
        lines = body.splitlines()
        assert len(lines) <= 1_000
        assert len(body) <= 1024 * 1024
        self.batches.append(len(lines))
        outcomes = [self._judge(line) for line in lines]
        if self.lose_answers:
            self.lose_answers -= 1
            raise ServerUnreachable("the connection broke", "send it again")
        return outcomes

    async def create_session(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.troubles:
            raise self.troubles.pop(0)
        self.created.append(dict(body))
        return {"session_id": session_id_for(body["command_id"], body["user_id"])}

    async def command(self, session_id: str, command: Mapping[str, Any]) -> dict[str, Any]:
        if self.troubles:
            raise self.troubles.pop(0)
        assert command["type"] == "session.seal"
        self.sealed.append(session_id)
        return {"ok": True}

    async def heartbeat(self, session_id: str) -> None:
        if self.troubles:
            raise self.troubles.pop(0)
        self.heartbeats += 1

    def _judge(self, line: bytes) -> dict[str, Any]:
        command = json.loads(line)
        source, n = command["source"], command["n"]
        expected = self._last.get(source, 0) + 1
        if n < expected:
            return {"ok": True, "duplicate": True}
        if n > expected:
            return {"ok": False, "error": {"code": "out_of_order", "detail": f"expected {expected}"}}
        code = self.refuse(command)
        if code is not None:
            return {"ok": False, "error": {"code": code, "detail": "refused by the test"}}
        self._last[source] = n
        self.taken.append(command)
        return {"ok": True, "seq": len(self.taken), "duplicate": False}
