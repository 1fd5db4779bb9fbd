"""Which of the journal's oldest rows to free so that few sessions have to be released for it.

A session that has rested since its creation holds some hundred bytes here, and costs what one costs that holds megabytes: two
files, and their places in folders. 10,000 of them in the oldest rows held commits up for 14 s, for 5 MB. So rows that hold little for
each session of which nothing else stands in the way are left out, and newer ones taken instead: by benefit and cost, as a
log-structured file system cleans (Rosenblum and Ousterhout, The Design and Implementation of a Log-Structured File System, 1992).
"""

from array import array
from collections import defaultdict

from .journal_index import OFFSET_BITS, JournalIndex, last_before

STEP_SESSIONS = 250  # a quarter of a millisecond
WORDS_FEW = 10  # of a session with up to four records
BYTES_A_SESSION = 4 * 1024


class Choice:
    """Looked for in steps, over what was there when it was made; then `needed` says it."""

    def __init__(self, index: JournalIndex, size_bytes: int, spare_bytes: int) -> None:
        self._index = index
        self._size_bytes = size_bytes
        self._spare_bytes = spare_bytes
        self._beyond = (index.rows.reach(size_bytes + spare_bytes) + 1) << OFFSET_BITS
        self._left = index.words()
        self._words: dict[str, array[int]] = {}
        self._many: list[str] = []  # those with many records there
        self._few: defaultdict[int, list[str]] = defaultdict(list)  # by row, the others

    @property
    def is_over(self) -> bool:
        """Whether all sessions were looked at."""
        return not self._left

    def step(self) -> None:
        """Look at the next ones."""
        some = self._left[-STEP_SESSIONS:]
        del self._left[-STEP_SESSIONS:]
        for session_id, words in some:
            if words[3] >= self._beyond:
                continue
            self._words[session_id] = words
            if len(words) > WORDS_FEW:
                self._many.append(session_id)
                continue
            for place in words[3::2]:
                if place < self._beyond:
                    self._few[place >> OFFSET_BITS].append(session_id)

    def needed(self) -> dict[str, int]:
        """What must be released for the rows that were not left out to go: by session its last seq in the rows up to theirs."""
        rows, left_bytes = self._index.rows, self._spare_bytes
        spared: set[int] = set()
        for row, session_ids in sorted(self._few.items()):
            size = rows.size_of(row)
            if 0 < size <= min(left_bytes, len(session_ids) * BYTES_A_SESSION):
                spared.add(row)
                left_bytes -= size
        last_row = rows.reach(self._size_bytes + self._spare_bytes - left_bytes)
        beyond = (last_row + 1) << OFFSET_BITS
        chosen = dict.fromkeys(self._many)
        for row, few in self._few.items():
            if row <= last_row and row not in spared and rows.size_of(row):
                chosen.update(dict.fromkeys(few))
        found: dict[str, int] = {}
        for session_id in chosen:
            words = self._words[session_id]
            if words[3] < beyond:
                seq = last_before(words, beyond)
                if seq > self._index.released(session_id):
                    found[session_id] = seq
        return found
