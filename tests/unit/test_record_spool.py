"""The outbox: in order, acknowledged, adopted from the dead and never from the living."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from sojourn.record.spool import (
    BATCH_BYTES_MAX,
    BATCH_LINES_MAX,
    Outbox,
    Room,
    locked_spill,
    recordings,
    release,
    reporters_lost,
    spilled,
)

SESSION = "sess_" + "1" * 32


def logs(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "log.append", "stream": "stdout", "text": text} for text in texts]


def texts(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox.create(tmp_path / "spool", SESSION, "")


def killed(outbox: Outbox) -> Path:
    """The folder of a recorder that was killed: the kernel closes its files, and nothing else happens."""
    outbox.close()
    return outbox.folder


def adopted(folder: Path) -> Outbox:
    outbox = Outbox.adopt(folder)
    assert outbox is not None
    return outbox


def test_commands_are_numbered_from_one_without_a_gap(outbox: Outbox) -> None:
    outbox.append(logs("a", "b"))
    outbox.append(logs("c"))
    commands = [json.loads(line) for line in outbox.read().lines]
    assert [command["n"] for command in commands] == [1, 2, 3]
    assert {command["source"] for command in commands} == {outbox.source}
    assert outbox.source.startswith("rec-")


def test_what_is_acknowledged_is_not_read_again(outbox: Outbox) -> None:
    outbox.append(logs("a"))
    batch = outbox.read()
    outbox.append(logs("b"))
    assert texts(outbox.read().lines) == ["a", "b"]
    outbox.acknowledge(batch)
    assert texts(outbox.read().lines) == ["b"]
    outbox.acknowledge(outbox.read())
    assert outbox.is_drained
    assert (outbox.statistics().appended, outbox.statistics().acknowledged) == (2, 2)


def test_a_batch_keeps_the_wires_limit_of_lines(outbox: Outbox) -> None:
    outbox.append(logs(*(str(n) for n in range(BATCH_LINES_MAX + 1))))
    assert len(outbox.read().lines) == BATCH_LINES_MAX


def test_a_batch_keeps_the_wires_limit_of_bytes(outbox: Outbox) -> None:
    outbox.append(logs(*("x" * 60_000 for _ in range(30))))
    batch = outbox.read()
    assert sum(map(len, batch.lines)) <= BATCH_BYTES_MAX
    outbox.acknowledge(batch)
    assert len(batch.lines) + len(outbox.read().lines) == 30


def test_a_dead_recorders_outbox_goes_on_where_the_server_was(outbox: Outbox) -> None:
    outbox.append(logs("a"))
    outbox.acknowledge(outbox.read())
    outbox.append(logs("b"))
    left = adopted(killed(outbox))
    assert texts(left.read().lines) == ["b"]
    assert left.session_id == SESSION


def test_a_line_that_was_half_written_at_the_kill_is_left_out(outbox: Outbox) -> None:
    outbox.append(logs("a"))
    with (killed(outbox) / "outbox.ndjson").open("ab") as file:
        file.write(b'{"type": "log.app')
    left = adopted(outbox.folder)
    assert texts(left.read().lines) == ["a"]
    left.acknowledge(left.read())
    assert left.is_drained


def test_a_live_recorders_outbox_is_not_adopted(outbox: Outbox) -> None:
    assert Outbox.adopt(outbox.folder) is None


def test_an_outbox_is_adopted_once_at_a_time(outbox: Outbox) -> None:
    folder = killed(outbox)
    first = adopted(folder)
    assert Outbox.adopt(folder) is None
    first.close()
    assert adopted(folder)


def test_a_removed_outbox_is_gone_with_its_folder(outbox: Outbox) -> None:
    outbox.remove()
    assert not outbox.folder.exists()
    assert Outbox.adopt(outbox.folder) is None


def test_what_cannot_be_written_waits_in_memory_behind_what_could(outbox: Outbox) -> None:
    outbox.append(logs("a"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        size = (outbox.folder / "outbox.ndjson").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
        outbox.append(logs("in memory"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    outbox.append(logs("behind it"))
    commands = []
    while not outbox.is_drained:
        batch = outbox.read()
        commands += [json.loads(line) for line in batch.lines]
        outbox.acknowledge(batch)
    assert [(one["n"], one["text"]) for one in commands] == [(1, "a"), (2, "in memory"), (3, "behind it")]
    outbox.append(logs("on disk again"))
    assert (outbox.folder / "outbox.ndjson").read_bytes().endswith(outbox.read().lines[0])


def test_without_a_usable_folder_the_outbox_goes_to_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    outbox = Outbox.create(tmp_path / "file" / "spool", SESSION, "")
    outbox.append(logs("a"))
    assert outbox.folder.parent.parent == tmp_path
    outbox.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_space_of_what_was_read_is_given_back_while_the_file_stays_as_long(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"x" * 4 * 1024 * 1024)
    before = path.stat().st_blocks
    with path.open("r+b") as file:
        assert release(file.fileno(), 0, 1000) == 0
        assert release(file.fileno(), 0, 3 * 1024 * 1024) == 3 * 1024 * 1024
    assert path.stat().st_size == 4 * 1024 * 1024
    if path.stat().st_blocks == before:
        pytest.skip("this file system keeps the blocks")
    assert path.stat().st_blocks * 512 <= 1024 * 1024 + 8192


def test_a_spill_file_gives_its_whole_commands(tmp_path: Path) -> None:
    path = tmp_path / "reporter.spill"
    path.write_bytes(b'{"spill": {"session_id": "sess_1"}}\n{"n": 1}\n{"n": 2}\n{"n"')
    with locked_spill(path) as file:
        assert [json.loads(line) for lines in spilled(file) for line in lines] == [{"n": 1}, {"n": 2}]


def test_a_spill_file_that_another_holds_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "reporter.spill"
    path.write_bytes(b"")
    with locked_spill(path), pytest.raises(BlockingIOError), locked_spill(path):
        pass


def wordy(n: int) -> list[dict[str, Any]]:
    return logs(*("x" * 60_000 for _ in range(n)))


def filled(outbox: Outbox, room: Room) -> int:
    """How many appends of about 600 kB there was room for."""
    for count in range(1_000):
        try:
            outbox.append(wordy(10), room)
        except OSError:
            return count
    raise AssertionError("there is no bound")


def test_lines_of_output_find_no_room_first_and_the_end_of_a_session_last(outbox: Outbox) -> None:
    assert filled(outbox, Room.LOG) > 0
    with pytest.raises(OSError, match="as much waits for delivery as may"):
        outbox.append(wordy(10), Room.LOG)
    assert filled(outbox, Room.RESULT) > 0
    with pytest.raises(OSError, match="as much waits for delivery as may"):
        outbox.append(wordy(10))
    outbox.append(logs("the end"), Room.END)
    numbers = []
    while not outbox.is_drained:
        batch = outbox.read()
        numbers += [json.loads(line)["n"] for line in batch.lines]
        outbox.acknowledge(batch)
    assert numbers == list(range(1, len(numbers) + 1))
    outbox.append(logs("there is room again"), Room.LOG)


class FullDisk:
    """No file grows while it lasts."""

    def __enter__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def test_what_waits_in_memory_is_bounded_too(outbox: Outbox) -> None:
    with FullDisk():
        assert 0 < filled(outbox, Room.LOG) < 10
        assert 0 < filled(outbox, Room.RESULT) < 10
        outbox.append(logs("the end"), Room.END)
    assert outbox.settle() == 0
    assert outbox.folder.joinpath("outbox.ndjson").stat().st_size > 7_000_000


def test_what_never_reaches_the_disk_is_counted_at_the_end(outbox: Outbox) -> None:
    with FullDisk():
        outbox.append(logs("a", "b"))
        assert outbox.settle() == 2
    assert outbox.is_drained
    assert outbox.statistics().appended == 0


def test_an_outbox_is_drained_only_once_its_session_is_created(tmp_path: Path) -> None:
    creation = {"command_id": "record-1", "user_id": "ann"}
    folder = killed(Outbox.create(tmp_path / "spool", SESSION, "", creation=creation))
    left = adopted(folder)
    assert left.creation == creation
    assert not left.is_drained
    left.created()
    assert left.is_drained
    assert adopted(killed(left)).creation is None


def test_each_recording_of_a_session_has_a_folder_of_its_own_in_their_order(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    made = [Outbox.create(spool, SESSION, "") for _ in range(11)]
    other = Outbox.create(spool, "sess_" + "0" * 32, "")
    assert {outbox.session_id for outbox in made} == {SESSION}
    folders = [outbox.folder for outbox in made]
    assert list(recordings(tmp_path)) == [other.folder, *folders]
    assert list(recordings(tmp_path, SESSION)) == folders


def test_what_a_reporter_had_no_room_for_is_known_from_its_spill_file(outbox: Outbox) -> None:
    (outbox.folder / "reporter.spill").write_bytes(
        b'{"spill": {"session_id": "sess_1"}}\n{"n": 1}\n{"spill": {"lost": 3, "session_id": "sess_1"}}\n'
    )
    (outbox.folder / "reporter.spill.pytest-1").write_bytes(b'{"spill": {"lost": 4, "session_id": null}}\n')
    assert reporters_lost(outbox.folder) == 7
