"""Writes snapshots on a timer, of sessions whose journal tail has grown long enough to be worth a file."""

import random
from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog

from ..actors.errors import SojournError
from ..actors.ports import Journal
from ..actors.session.codec import encode_snapshot
from ..actors.session.model import SessionState
from .bridge import compute
from .layout import snapshot_name, snapshot_path, snapshot_seq
from .recovery import snapshot_names
from .resting import Rest
from .shelves import Shelves

log = structlog.get_logger("sojourn.snapshots")

SNAPSHOTS_KEPT = 2
# Most have too little for a snapshot, and are only looked at: a quarter of a millisecond.
LOOKED_A_SLICE = 50


class Snapshotter:
    """Looks at the sessions that changed every `interval_s`, with jitter.

    Args:
        copy: a copy of a session's state, durable as it is.
        journal_bytes_min: the least journal tail a snapshot is written for; a quarter of the state, where that is more.
        written: told of each session and the seq of its snapshot.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        shelves: Shelves,
        epoch: int,
        copy: Callable[[str], Awaitable[SessionState]],
        interval_s: float,
        journal_bytes_min: int,
        written: Callable[[str, int], None] = lambda session_id, seq: None,
    ) -> None:
        self._told = written
        self._journal = journal
        self._shelves = shelves
        self._epoch = epoch
        self._copy = copy
        self._interval_s = interval_s
        self._journal_bytes_min = journal_bytes_min
        self._changed: dict[str, None] = {}  # a set with an order, which needs no sorting
        self._seqs: dict[str, int] = {}  # of those in memory that have one: most never get so large
        self.written = 0

    def mark(self, session_ids: Sequence[str]) -> None:
        """These have changed; called for every commit."""
        self._changed.update(dict.fromkeys(session_ids))

    def recovered(self, session_id: str, snapshot_seq: int) -> None:
        """A session was read back, beginning with a snapshot of this seq (0: none)."""
        if snapshot_seq:
            self._seqs[session_id] = snapshot_seq
        else:
            self._seqs.pop(session_id, None)

    def path(self, session_id: str) -> str | None:
        """The newest snapshot of a session in memory; None where it has none."""
        return snapshot_path(session_id, self._seqs.get(session_id, 0))

    def seq(self, session_id: str) -> int:
        """The seq of the newest snapshot of a session in memory; 0 where it has none."""
        return self._seqs.get(session_id, 0)

    def forget(self, session_id: str) -> None:
        """The session has left memory."""
        self._seqs.pop(session_id, None)

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled."""
        started()
        while True:
            await anyio.sleep(self._interval_s * random.uniform(0.8, 1.2))
            await self.write_due()

    async def write_due(self) -> None:
        """Write a snapshot of every session that is due for one."""
        changed, self._changed = self._changed, {}
        looked, rest = 0, Rest()
        for session_id in changed:
            tail_bytes = self._journal.pending_bytes(session_id, self._seqs.get(session_id, 0))
            if tail_bytes < self._journal_bytes_min:
                looked += 1
                if looked % LOOKED_A_SLICE == 0:
                    await rest()
                continue
            try:
                await self._write(await self._copy(session_id), tail_bytes)
            except SojournError as error:
                self._failed(session_id, error)
            rest = Rest()  # a write is waiting, mostly, and no reason to rest

    async def offer(self, state: SessionState) -> None:
        """Write this copy of a session in memory as its snapshot, where it is due for one and nobody else writes its objects
        now. Where that fails it is said, and tried again with the next ones."""
        session_id = state.session_id
        tail_bytes = self._journal.pending_bytes(session_id, self.seq(session_id))
        if tail_bytes >= self._journal_bytes_min and not self._shelves.is_taken(session_id):
            try:
                await self._write(state, tail_bytes)
            except SojournError as error:
                self._failed(session_id, error)

    def _failed(self, session_id: str, error: SojournError) -> None:
        self._changed[session_id] = None
        log.error(
            "snapshot.failed",
            session=session_id,
            error=str(error),
            remedy="it is tried again; nothing is lost",
        )

    async def _write(self, state: SessionState, tail_bytes: int) -> None:
        if tail_bytes < state.size_bytes // 4:
            return  # its next event marks it again; looking again and again would keep an idle session in memory
        session_id = state.session_id
        async with self._shelves.alone(session_id):
            # Else it was handed over meanwhile, and its manifest lists its bytes; or a later copy was quicker.
            if session_id in self._journal.heads() and state.seq > self.seq(session_id):
                await self._put(state, await snapshot_names(self._shelves.recent, session_id))

    async def level(self, session_id: str, seq: int) -> tuple[int, int]:
        """The seqs of the newest and of the older snapshot (0: there is none). One is written where the older does not
        reach `seq` and there is something new. For those who write the session's objects alone."""
        names = await snapshot_names(self._shelves.recent, session_id)
        newest, older = ([snapshot_seq(name) or 0 for name in names] + [0, 0])[:2]
        if older < seq:
            state = await self._copy(session_id)
            if state.seq > newest:
                await self._put(state, names)
                newest, older = state.seq, newest
        return newest, older

    async def _put(self, state: SessionState, names: Sequence[str]) -> None:
        """`names`: the session's snapshots that are there, newest first."""
        session_id = state.session_id
        data = await compute(state.size_bytes, encode_snapshot, state, self._epoch)
        name = snapshot_name(session_id, state.seq)
        await self._shelves.recent.put_all([(name, data)])
        self._seqs[session_id] = state.seq
        self.written += 1
        self._told(session_id, state.seq)
        log.debug("session.snapshotted", session=session_id, seq=state.seq, bytes=len(data))
        for superseded in [other for other in names if other != name][SNAPSHOTS_KEPT - 1 :]:
            await self._shelves.recent.delete(superseded)
