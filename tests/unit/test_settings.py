"""`Settings` as an embedding host meets it: what it takes, and what it says of what it does not take."""

import math
from pathlib import Path
from typing import Any

import pytest

from sojourn.actors.errors import CallerError, InvalidSettings
from sojourn.runtime.settings import Settings


def test_the_defaults_are_within_their_ranges() -> None:
    settings = Settings(data_dir="data")
    assert settings.data_dir == Path("data")
    assert settings.archive is None
    assert (settings.recent_days, settings.seal_after_s, settings.abandon_after_s) == (30.0, 30.0, 86_400.0)
    assert (settings.journal_bytes_max, settings.moves_at_once_max) == (128 * 1024 * 1024, 4)


MIRROR = "none, redis://HOST:6379/0, rediss://USER:PASSWORD@HOST, or unix:///SOCKET"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("passivate_after_s", "300", "a number"),
        ("passivate_after_s", 0, "a number 0.01 or more"),
        ("recent_days", -1, "a number 0 or more"),
        ("ask_deadline_s", math.nan, "a number 0 or more"),
        ("recoveries_max", 1.5, "a whole number"),
        ("recoveries_max", True, "a whole number"),
        ("moves_at_once_max", 0, "a number 1 or more"),
        ("archive", "ftp://somewhere/else", "a folder, or s3://BUCKET/PREFIX"),
        ("archive", "s3://", "a folder, or s3://BUCKET/PREFIX"),
        ("archive", "", "a folder, or s3://BUCKET/PREFIX"),
        ("mirror", "", MIRROR),
        ("mirror", 6379, MIRROR),
        ("mirror", "localhost:6379", MIRROR),
        ("mirror", "http://localhost", MIRROR),
        ("mirror", "redis:///0", MIRROR),
        ("mirror", "unix://relative/path", MIRROR),
        ("mirror_namespace", "", "1 to 64 of letters, digits, _ . -"),
        ("mirror_namespace", "a:b", "1 to 64 of letters, digits, _ . -"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_can(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings(data_dir="data", **{name: value})
    assert isinstance(caught.value, CallerError)
    assert caught.value.problems == (f"{name} is {value!r}; give {expected}",)
    assert str(caught.value) == caught.value.problems[0]


@pytest.mark.parametrize(
    "archive", [None, "/mnt/archive", "archive", "s3://bucket", "s3://bucket/prefix?region=x"]
)
def test_an_archive_is_a_folder_or_a_bucket(archive: str | None) -> None:
    assert Settings(data_dir="data", archive=archive).archive == archive


@pytest.mark.parametrize(
    "mirror",
    [
        None,
        "none",
        "redis://h",
        "redis://h:6379/0",
        "rediss://u:p%40@h?ssl_ca_certs=/ca",
        "unix:///s?db=1",
        "unix://u:p@/s",
    ],
)
def test_a_mirror_is_a_url_or_none(mirror: str | None) -> None:
    assert Settings(data_dir="data", mirror=mirror).mirror == mirror


def test_a_mirror_that_cannot_be_is_told_without_its_password() -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings(data_dir="data", mirror="http://user:secret@host")
    assert "secret" not in str(caught.value)


def test_times_may_be_whole_numbers_and_endless() -> None:
    settings = Settings(data_dir="data", passivate_after_s=math.inf, abandon_after_s=5)
    assert (settings.passivate_after_s, settings.abandon_after_s) == (math.inf, 5)
