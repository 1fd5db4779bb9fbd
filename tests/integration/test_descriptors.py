"""A server that has no descriptors left."""

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from ..support.serve import serve
from ..support.wait import wait_until


def test_without_a_free_descriptor_those_it_talks_to_are_served_and_then_new_ones_again(
    tmp_path: Path,
) -> None:
    """I1, I24. Connections beyond its limit wait; who is connected goes on, and nothing acknowledged is lost."""
    with serve(tmp_path / "data", "--port", "0", log=tmp_path / "log") as server, server.client() as client:
        session_id = client.post("/sessions", json={"plan": "p"}).json()["session_id"]
        commands = f"/sessions/{session_id}/commands"
        assert client.post(commands, json={"type": "session.start"}).status_code == 200
        held = Path(f"/proc/{server.process.pid}/fd")
        limit = len(os.listdir(held)) + 4
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        address = urlsplit(server.url)
        assert address.hostname is not None
        assert address.port is not None
        with ExitStack() as idle:
            for _ in range(20):
                idle.enter_context(socket.create_connection((address.hostname, address.port)))
            wait_until(lambda: len(os.listdir(held)) >= limit)
            for n in range(1, 31):
                line = {"type": "log.append", "stream": "stdout", "text": "x", "source": "s", "n": n}
                assert client.post(commands, json=line).json()["seq"] == n + 2
        with server.client() as another:
            found = another.get(f"/sessions/{session_id}/events?limit=100").json()["items"]
        assert [event["seq"] for event in found] == [*range(1, 33)]
        assert server.stop() == 0
