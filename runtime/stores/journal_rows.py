"""Which rows of the journal are still needed, and how large they are. It holds no payload and touches no file.

A row is needed while it holds a record that was not released, and the newest one always: by it an owner that opens its
journal again sees that the journal has not lost its end. A row of which nothing can be read is needed by nobody we know;
it goes once no older row is needed.

A row takes 16 bytes, in three arrays. One thread writes; `reach`, `size_of` and `size_bytes` may be asked by others meanwhile:
arrays only grow in place, and are replaced together by shorter ones once most of their rows need nothing any more.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate, compress, islice

from attrs import define, field

_STRETCH = 1_024  # rows added up at once


@define(eq=False)
class _Columns:
    """By row, in order: its number; how many of its records are needed; its size, or 0 once it may go."""

    numbers: "array[int]" = field(factory=lambda: array("Q"))
    pins: "array[int]" = field(factory=lambda: array("I"))
    sizes: "array[int]" = field(factory=lambda: array("I"))

    def position(self, number: int) -> int:
        at = number - self.numbers[0]  # where no row between is missing, as nearly always
        if at < len(self.numbers) and self.numbers[at] == number:
            return at
        return bisect_left(self.numbers, number)


class JournalRows:
    """The rows that stand in the file.

    Attributes:
        newest: the number of the last row; 0: there is none.
        size_bytes: what all of them hold, those that may go included.
        freed_bytes: what those held that have gone.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.size_bytes = self.freed_bytes = 0
        self._columns = _Columns()
        self._emptied = 0  # rows in the columns that may go
        self._lost: list[tuple[int, int]] = []  # number and size of the rows of which nothing can be read
        self._disposable: deque[tuple[int, int]] = (
            deque()
        )  # number and size of the rows that may go, in order,
        self._freed: list[tuple[int, int]] = []  # and of those that may go since then

    def add(self, number: int, size_bytes: int, pins: int) -> None:
        """A newest row, of which `pins` records are needed."""
        self._supersede(number)
        columns = self._columns
        columns.numbers.append(number)
        columns.pins.append(pins)
        columns.sizes.append(size_bytes)  # the last one: by their count others know how many are whole
        self.size_bytes += size_bytes

    def add_lost(self, number: int, size_bytes: int) -> None:
        """A newest row of which nothing can be read."""
        self._supersede(number)
        self._lost.append((number, size_bytes))
        self.size_bytes += size_bytes

    def _supersede(self, number: int) -> None:
        self.newest = number
        columns = self._columns
        if columns.pins and not columns.pins[-1]:
            self._empty(len(columns.pins) - 1)

    def unpin(self, numbers: Iterable[int]) -> None:
        """One record in each of these rows is needed no more; a row may be named several times."""
        columns = self._columns
        pins, position = columns.pins, columns.position
        for number in numbers:
            at = position(number)
            pins[at] -= 1
            if not pins[at] and number != self.newest:
                self._empty(at)
                columns = self._columns
                pins, position = columns.pins, columns.position

    def _empty(self, at: int) -> None:
        columns = self._columns
        if not columns.sizes[at]:
            return
        self._freed.append((columns.numbers[at], columns.sizes[at]))
        columns.sizes[at] = 0
        self._emptied += 1
        if 2 * self._emptied > len(columns.sizes):
            kept = (
                array(column.typecode, compress(column, columns.sizes))
                for column in (columns.numbers, columns.pins, columns.sizes)
            )
            self._columns = _Columns(*kept)
            self._emptied = 0

    def dispose_of_lost(self) -> None:
        """Rows of which nothing can be read may go from here on, where no older row is needed."""
        if self._lost:
            columns = self._columns
            needed = next(compress(columns.numbers, columns.sizes), self.newest)
            self._freed += [row for row in self._lost if row[0] < needed]
            self._lost = [row for row in self._lost if row[0] >= needed]

    def disposable(self, bytes_max: int, rows_max: int) -> list[tuple[int, int]]:
        """Number and size of the first rows that may go: as many as hold no more than this, and one at least. By number, as they
        lie in the file: those that came free together lie all over it, and where they went in that order each page was written
        several times, 16 MB of log for 4 MB of rows."""
        if self._freed:
            self._disposable = deque(sorted([*self._disposable, *self._freed]))
            self._freed = []
        sizes = accumulate(size for _, size in self._disposable)
        count = next((at for at, held in enumerate(sizes) if held > bytes_max), len(self._disposable))
        return list(islice(self._disposable, min(max(count, 1), rows_max)))

    def removed(self, rows: list[tuple[int, int]]) -> None:
        """The first rows that `disposable` gave stand in the file no more."""
        for _ in rows:
            _, size = self._disposable.popleft()
            self.size_bytes -= size
            self.freed_bytes += size

    def keep(self) -> None:
        """The first row that `disposable` gave cannot be removed: it stays, and is not named again."""
        self._disposable.popleft()

    def size_of(self, number: int) -> int:
        """What a row holds; 0 for one that may go, or has gone."""
        columns = self._columns
        at = columns.position(number) if columns.sizes else 0
        return columns.sizes[at] if at < len(columns.sizes) and columns.numbers[at] == number else 0

    def reach(self, size_bytes: int) -> int:
        """The last of the oldest needed rows that together hold `size_bytes`, or of all but the newest where they hold
        less; 0: there is none."""
        newest, columns = self.newest, self._columns
        stop = bisect_left(columns.numbers, newest, 0, len(columns.sizes))
        if size_bytes <= 0 or not stop:
            return 0
        held = 0
        for start in range(0, stop, _STRETCH):
            stretch = columns.sizes[start : min(start + _STRETCH, stop)]
            size = sum(stretch)
            if held + size >= size_bytes:
                sums = list(accumulate(stretch, initial=held))
                return columns.numbers[start + bisect_left(sums, size_bytes) - 1]
            held += size
        return columns.numbers[stop - 1]
