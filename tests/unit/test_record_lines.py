"""From bytes to log lines."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.record.lines import ENCODED_BYTES_MAX, TEXT_BYTES_MAX, Line, LineSplitter


def split(*chunks: bytes) -> list[Line]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.end()


def texts(*chunks: bytes) -> list[str]:
    return [line.text for line in split(*chunks)]


def test_a_line_that_comes_in_pieces_is_one_line() -> None:
    assert texts(b"on", b"e\ntw", b"o\n") == ["one", "two"]


def test_an_empty_line_is_a_line() -> None:
    assert texts(b"\n\na\n") == ["", "", "a"]


def test_what_stands_after_the_last_line_end_comes_at_the_end() -> None:
    assert texts(b"one\nrest") == ["one", "rest"]


@pytest.mark.parametrize("chunks", [(b"one\r\ntwo\r\n",), (b"one\r", b"\ntwo\r", b"\n")])
def test_a_carriage_return_before_the_line_end_belongs_to_the_line_end(chunks: tuple[bytes, ...]) -> None:
    assert texts(*chunks) == ["one", "two"]


@pytest.mark.parametrize("chunks", [(b"10%\r50%\r100%\n",), (b"10%\r", b"50%", b"\r100%", b"\n")])
def test_of_a_progress_bar_only_what_was_left_standing_is_kept(chunks: tuple[bytes, ...]) -> None:
    assert texts(*chunks) == ["100%"]


def test_a_progress_bar_that_never_ends_a_line_costs_no_memory_and_no_truncation() -> None:
    frames = [b"\r" + b"#" * 100 for _ in range(2_000)]
    assert split(*frames) == [Line("#" * 100, 0, False)]


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    assert split(b"a" * TEXT_BYTES_MAX + b"\r\n") == [Line("a" * TEXT_BYTES_MAX, 0, False)]


def test_a_longer_line_says_how_many_bytes_were_cut() -> None:
    chunks = [b"a" * 10_000] * 10 + [b"\n"]
    assert split(*chunks) == [Line("a" * TEXT_BYTES_MAX, 100_000 - TEXT_BYTES_MAX, False)]


def test_a_character_at_the_cut_is_cut_whole_and_is_not_called_invalid() -> None:
    (line,) = split(b"a" + "é".encode() * TEXT_BYTES_MAX + b"\n")
    assert not line.invalid_utf8
    assert len(line.text.encode()) + line.truncated_bytes == 1 + 2 * TEXT_BYTES_MAX
    assert len(line.text.encode()) == TEXT_BYTES_MAX - 1


def test_bytes_that_are_no_utf8_are_replaced_and_flagged() -> None:
    assert split(b"a\xffb\n") == [Line("a�b", 0, True)]


def test_a_binary_line_fits_into_a_command_however_it_is_escaped() -> None:
    (line,) = split(b"\x01" * TEXT_BYTES_MAX + b"\n")
    assert len(msgspec.json.encode(line.text)) <= ENCODED_BYTES_MAX
    assert len(line.text) + line.truncated_bytes == TEXT_BYTES_MAX


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(1, 40)))
def test_how_the_bytes_were_cut_into_pieces_does_not_matter(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"\n".join(parts)
    chunks, rest = [], whole
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert split(*chunks, rest) == split(whole)


@given(st.binary(max_size=200))
def test_a_line_is_stored_within_its_limits_whatever_its_bytes(data: bytes) -> None:
    for line in split(data * 2_000):
        assert len(line.text.encode()) <= TEXT_BYTES_MAX
        assert len(msgspec.json.encode(line.text)) <= ENCODED_BYTES_MAX
