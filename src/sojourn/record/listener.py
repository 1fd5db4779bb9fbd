"""The recorder's side of the socket on which pytest processes report (docs/protocol.md, last section)."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import msgspec

# A reporter's lines are far below it; a line over the wire's limit for a command would be refused there.
LINE_BYTES_MAX = 256 * 1024
# To take what has gathered, and not wake for each test: on two cores the tests would pay for it. Nothing waits for an
# answer but a pytest at its end, and what has not been answered stays with it.
LINGER_S = 0.01


class ReportListener:
    """Takes commands from any number of pytest processes, and acknowledges what its spool has taken.

    Args:
        session_id: what reporters are told.
        accept: puts lines into the spool, given decoded as well; raises OSError where it cannot. Then the reporter is not
            answered, and keeps its lines.
        warn: told when a reporter is dropped.
    """

    def __init__(
        self,
        session_id: str,
        accept: Callable[[list[bytes], list[dict[str, Any]]], None],
        warn: Callable[[str], None],
    ) -> None:
        self._session_id = session_id
        self._warn = warn
        self._accept = accept
        # By source: the last number that is in the spool.
        self._taken: dict[str, int] = {}
        self.connections = 0

    @property
    def reporters_seen(self) -> int:
        """How many pytest processes have said something."""
        return len(self._taken)

    async def serve(self, listener: anyio.abc.SocketListener) -> None:
        """Until cancelled; the listener is closed then."""
        async with listener:
            await listener.serve(self._serve_one)

    async def _serve_one(self, stream: anyio.abc.SocketStream) -> None:
        rest = b""
        self.connections += 1
        async with stream:
            try:
                while True:
                    rest += await stream.receive(256 * 1024)
                    *lines, rest = rest.split(b"\n")
                    if len(rest) > LINE_BYTES_MAX:
                        self._warn(
                            f"a pytest reporter sent a line of over {LINE_BYTES_MAX:,} bytes and was cut off"
                        )
                        return
                    answer = self._handle(lines)
                    if answer:
                        await stream.send(answer)
                    await anyio.sleep(LINGER_S)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            except (msgspec.DecodeError, KeyError, TypeError, ValueError, OSError) as error:
                # Not one of ours, or the spool is full: what was not acknowledged stays with its reporter.
                self._warn(f"a pytest reporter was cut off: {type(error).__name__}: {error}")
            finally:
                self.connections -= 1

    def _handle(self, lines: list[bytes]) -> bytes:
        welcomes: list[dict[str, Any]] = []
        taken: dict[str, int] = {}
        new_lines: list[bytes] = []
        new_commands: list[dict[str, Any]] = []
        for line in lines:
            said = msgspec.json.decode(line, type=dict[str, Any])
            if "hello" in said:
                self._taken.setdefault(said["hello"]["source"], 0)
                welcomes.append({"welcome": {"session_id": self._session_id}})
                continue
            source, n = said["source"], said["n"]
            last = taken.setdefault(source, self._taken[source])
            if n > last + 1:
                raise ValueError(f"{source} sent {n} after {last}")
            if n == last + 1:  # else it was sent again after a reconnect, and is in the spool already
                new_lines.append(line + b"\n")
                new_commands.append(said)
                taken[source] = n
        if new_lines:
            self._accept(new_lines, new_commands)
        self._taken.update(taken)
        answers = [*welcomes, *({"source": source, "n": n} for source, n in taken.items())]
        return b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)
