"""The group-commit writer: takes every record that lies in the kernel's outbox, commits them as one, lets them leave.

While a commit is under way the next group gathers, so groups grow with the load and no linger is needed. Nothing is
streamed, mirrored or answered before its record is durable.
"""

from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog
from anyio.lowlevel import checkpoint
from attrs import frozen

from .errors import Damaged, OwnershipLost, StoreError, StoreUnavailable
from .kernel.actor import Cell
from .kernel.scheduler import Kernel
from .ports import Journal, Record, RecordKind

log = structlog.get_logger("sojourn.commit")

GROUP_RECORDS_MAX = 4_096
PROBE_S = 1.0
ROOM_WAIT_S = 2.0


@frozen(kw_only=True)
class CommitStatistics:
    """What the writer did since the start. `refusing` is why changes are refused now, or None."""

    commits: int
    records: int
    events: int
    payload_bytes: int
    refused: int
    refusing: str | None


class CommitWriter:
    """One task between the kernel and the journal.

    While `refusing` is set the journal takes no records: what comes is refused with it, and changes should be before they
    are sent. It is tried again every second.

    Args:
        publish: called with the records of a commit, in order, once they are durable and before anyone is answered.
        marked: called with the marks among them instead.
        probe: appends an empty mark, to see whether a journal that refused takes records again.
        room: returns while the journal is within its bound, waits so many seconds for it to be so again, or raises
            StorageFull.
    """

    def __init__(
        self,
        journal: Journal,
        kernel: Kernel,
        publish: Callable[[Sequence[Record]], None],
        marked: Callable[[Sequence[Record]], None],
        probe: Callable[[], Record],
        room: Callable[[float], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._kernel = kernel
        self._publish = publish
        self._marked = marked
        self._probe = probe
        self._room = room
        self.refusing: StoreError | None = None
        self._probe_at = 0.0
        self._commits = self._records = self._events = self._payload_bytes = self._refused = 0

    async def run(self, started: Callable[[], None]) -> None:
        """A child of a supervisor; runs until cancelled. A group in the journal's hands is finished first."""
        kernel = self._kernel
        started()
        while True:
            if self.refusing is None:
                await kernel.commits.wait()
            else:
                with anyio.move_on_after(self._probe_at - anyio.current_time()):
                    await kernel.commits.wait()
                if anyio.current_time() >= self._probe_at:
                    await self._try_again()
            while kernel.outbox:
                await self._commit(kernel.take_outbox())
                # Twice round the loop: those just answered ask again, and the kernel steps. Else clients part into halves
                # that commit in turn, with twice the commits and two threads that want the interpreter: an eighth more
                # CPU an ask at 256 clients, and the same at 32.
                await checkpoint()
                await checkpoint()

    async def _commit(self, cells: list[Cell]) -> None:
        for start in range(0, len(cells), GROUP_RECORDS_MAX):
            group = cells[start : start + GROUP_RECORDS_MAX]
            records: list[Record] = [cell.record for cell in group]
            if self.refusing is not None:
                # Not tried: their sessions would be parked, and not be read, for as long as trying takes.
                self._refuse(group, self.refusing)
                continue
            try:
                # What is in the journal's hands is finished, whoever is cancelled meanwhile.
                with anyio.CancelScope(shield=True):
                    await self._room(ROOM_WAIT_S)
                    await self._journal.append(records)
            except StoreUnavailable as error:
                try:
                    # Where there is a record of events it tells by its seq.
                    telling = next((one for one in records if one.count), records[0])
                    there = await self._is_there(telling, error)
                except anyio.get_cancelled_exc_class():
                    # Told as what it is, an unknown outcome; the actors read what there is when they start again.
                    self._kernel.refused(cells[start:], error)
                    raise
                if not there:
                    self._refuse(group, error)
                    continue
            except StoreError as error:  # full, or not to be opened again: nothing was written
                self._refuse(group, error)
                continue
            except OwnershipLost:
                raise  # the tree stops, and then whoever waits is told so
            except Exception:
                # A mistake of ours, and nothing was written. Its sessions must not stay parked while it is reported.
                self._kernel.refused(
                    cells[start:], StoreUnavailable("the journal refused the record; see the log")
                )
                raise
            self._accept()
            self._commits += 1
            self._records += len(records)
            counts = [record.count for record in records]
            self._events += sum(counts)
            self._payload_bytes += sum([len(record.payload) for record in records])
            if 0 in counts:
                self._marked([record for record in records if not record.count])
                records = [record for record in records if record.count]
            self._publish(records)
            self._kernel.committed(group)

    async def _is_there(self, record: Record, error: StoreError) -> bool:
        """Whether a commit of unknown outcome took place: it is all or nothing, so its first record tells. Asked until
        the journal answers: until then nobody is told anything, and asks end with their deadline, outcome unknown."""
        log.error("journal.unknown_outcome", error=str(error), remedy="check the disk under the data folder")
        self.refusing = error
        while True:
            try:
                if not record.count:
                    marks = await self._journal.marks()
                    if record.kind is not RecordKind.RELEASE:
                        return record in marks
                    place = (record.session_id, record.first_seq)
                    return place not in [(mark.session_id, mark.first_seq) for mark in marks]
                found = await self._journal.read(record.session_id, record.first_seq - 1)
            except Damaged:
                return False  # not as it was written, so it is not there
            except StoreError:
                await anyio.sleep(PROBE_S)
                continue
            return any(there.first_seq == record.first_seq and there.epoch == record.epoch for there in found)

    def _refuse(self, group: list[Cell], error: StoreError) -> None:
        if self.refusing is None:
            log.error(
                "journal.refuses",
                error=str(error),
                remedy="make room on the disk; changes are refused, reads go on",
            )
            self._probe_at = anyio.current_time() + PROBE_S
        self.refusing = error
        self._refused += len(group)
        self._kernel.refused(group, error)

    async def _try_again(self) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await self._room(0.0)
                await self._journal.append([self._probe()])
        except StoreError as error:
            self.refusing = error
            self._probe_at = anyio.current_time() + PROBE_S
        else:
            self._accept()

    def _accept(self) -> None:
        if self.refusing is not None:
            log.info("journal.accepts_again")
            self.refusing = None

    def statistics(self) -> CommitStatistics:
        """A frozen value."""
        return CommitStatistics(
            commits=self._commits,
            records=self._records,
            events=self._events,
            payload_bytes=self._payload_bytes,
            refused=self._refused,
            refusing=str(self.refusing) if self.refusing is not None else None,
        )
