"""Recorded text cannot act on a terminal, and numbers read well."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.cli.text import duration, local_time, one_line, size, terminal_safe

COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("plain, with umlauts: äöü €", "plain, with umlauts: äöü €"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[1;38:5:196mred", "\x1b[1;38:5:196mred\x1b[0m"),
        ("\x1b[2J\x1b[Hwiped", "wiped"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;cm0gLXJm never closed", ""),
        ("\x1bPq#0;2;0\x1b\\six", "six"),
        ("\x9b31mC1 colour", "C1 colour"),
        ("\x1b[?1049h\x1b[6n", ""),
        ("\x1bcreset", "reset"),
        ("50%\r100%\r\n", "50%␍100%\n"),
        ("bell\a, null\0, delete\x7f", "bell␇, null␀, delete␡"),
        ("a\u202egnp.exe", "a\ufffdgnp.exe"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("ends in an escape \x1b", "ends in an escape "),
        ("\x1b[38", ""),
    ],
)
def test_only_colours_reach_a_terminal(recorded: str, shown: str) -> None:
    assert terminal_safe(recorded) == shown


@given(st.text(alphabet=st.sampled_from("\x1b[]0;:m?HJP\\\a\x9b\x9c\x9d\r\n\tab\u202e")))
def test_whatever_was_recorded_nothing_but_colours_is_left_to_act(recorded: str) -> None:
    rest = COLOUR.sub("", terminal_safe(recorded))
    assert not any(
        ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 for letter in rest if letter not in "\n\t"
    )
    assert "\x1b" not in terminal_safe(recorded, colours=False)


def test_a_table_cell_is_one_short_line_without_colours() -> None:
    assert one_line("a\nb\tc\x1b[31md") == "a b cd"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (245.0, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (11_520.0, "3 h 12 min"),
        (187_200.0, "2 d 04 h"),
    ],
)
def test_durations_are_told_in_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (83_886_080, "80.0 MiB"),
        (1_048_575, "1.0 MiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_are_told_in_powers_of_1024(count: int, shown: str) -> None:
    assert size(count) == shown


def test_an_absent_time_is_a_dash() -> None:
    assert local_time(None) == "-"
