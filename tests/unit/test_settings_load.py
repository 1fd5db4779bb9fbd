"""Settings of our programs: which source goes before which, and what is said of a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.actors.errors import InvalidSettings
from sojourn.runtime.settings_load import DEFAULT, Loaded, entries, load_settings, mask_url, shown, unit


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, home and environment."""
    for name in list(os.environ):
        if name.startswith(("SOJOURN_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def value(loaded: Loaded, name: str) -> tuple[object, str]:
    return next((entry.value, entry.source) for entry in entries(loaded) if entry.name == name)


def problems(config: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(config=config)
    return caught.value.problems


def test_where_nothing_is_said_all_is_default(here: Path) -> None:
    loaded = load_settings()
    assert loaded.file is None
    assert {entry.source for entry in entries(loaded)} == {DEFAULT}
    assert (loaded.settings.host, loaded.settings.port, loaded.settings.log_level) == (
        "127.0.0.1",
        8765,
        "info",
    )


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "sojourn.toml").write_text(
        "port = 1\nrecent_days = 2\nseal_after_s = 3.5\n[limits]\nresults_max = 4\n"
    )
    monkeypatch.setenv("SOJOURN_PORT", "5")
    monkeypatch.setenv("SOJOURN_RECENT_DAYS", "6.5")
    monkeypatch.setenv("SOJOURN_LIMITS_SOURCES_MAX", "7")
    loaded = load_settings(flags={"port": 8, "host": None})
    assert value(loaded, "port") == (8, "--port")
    assert value(loaded, "recent_days") == (6.5, "SOJOURN_RECENT_DAYS")
    assert value(loaded, "seal_after_s") == (3.5, "sojourn.toml")
    assert value(loaded, "limits.results_max") == (4, "sojourn.toml")
    assert value(loaded, "limits.sources_max") == (7, "SOJOURN_LIMITS_SOURCES_MAX")
    assert value(loaded, "host") == ("127.0.0.1", DEFAULT)
    assert loaded.settings.limits.results_max == 4


def test_the_data_folder_is_named_by_its_own_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOJOURN_DATA", "elsewhere")
    assert value(load_settings(), "data_dir") == ("elsewhere", "SOJOURN_DATA")
    assert value(load_settings(flags={"data_dir": Path("d")}), "data_dir") == ("d", "--data")


def test_the_file_is_the_named_one_else_here_else_the_users(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = here.parent / "home" / ".config" / "sojourn" / "sojourn.toml"
    users.parent.mkdir(parents=True)
    users.write_text("port = 1")
    assert load_settings().settings.port == 1
    xdg = here.parent / "xdg" / "sojourn" / "sojourn.toml"
    xdg.parent.mkdir(parents=True)
    xdg.write_text("port = 2")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here.parent / "xdg"))
    assert load_settings().settings.port == 2
    (here / "sojourn.toml").write_text("port = 3")
    assert load_settings().settings.port == 3
    (here / "four").write_text("port = 4")
    monkeypatch.setenv("SOJOURN_CONFIG", "four")
    assert load_settings().settings.port == 4
    (here / "five").write_text("port = 5")
    assert load_settings(config=Path("five")).settings.port == 5
    assert load_settings(config=Path("five")).file == Path("five")


def test_a_relative_path_in_the_file_is_relative_to_the_file(here: Path) -> None:
    file = here / "sub" / "s.toml"
    file.parent.mkdir()
    file.write_text('data_dir = "data"\narchive = "../archive"\n')
    settings = load_settings(config=Path("sub/s.toml")).settings
    assert settings.data_dir == here / "sub" / "data"
    assert settings.archive is not None
    assert Path(settings.archive).resolve() == here / "archive"
    file.write_text('data_dir = "~/data"\narchive = "s3://bucket/x"\n')
    settings = load_settings(config=file).settings
    assert settings.data_dir == here.parent / "home" / "data"
    assert settings.archive == "s3://bucket/x"


def test_every_mistake_of_every_source_is_named_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "sojourn.toml").write_text(
        'journal_byte_max = 1\nrecent_days = -1\nport = "8765"\nhost = 1\nlog_level = "loud"\n'
        "[limits]\nresult_max = 1\nsources_max = -1\n[server]\nport = 1\n"
    )
    monkeypatch.setenv("SOJOURN_SEAL_AFTER", "1")
    monkeypatch.setenv("SOJOURN_RECOVERIES_MAX", "many")
    assert problems() == (
        "SOJOURN_SEAL_AFTER: there is no such setting (did you mean SOJOURN_SEAL_AFTER_S?); unset it",
        (
            "sojourn.toml: there is no setting 'journal_byte_max' (did you mean journal_bytes_max?); "
            "`sojourn settings` lists them"
        ),
        (
            "sojourn.toml: there is no setting 'limits.result_max' (did you mean limits.results_max?); "
            "`sojourn settings` lists them"
        ),
        "sojourn.toml: recent_days is -1.0; give a number 0 or more",
        "SOJOURN_RECOVERIES_MAX: recoveries_max is 'many'; give a whole number",
        "sojourn.toml: limits.sources_max is -1; give a number 0 or more",
        "sojourn.toml: host is 1; give text in quotation marks",
        "sojourn.toml: port is '8765'; give a whole number",
        "sojourn.toml: server is {'port': 1}; give text in quotation marks",
        "sojourn.toml: log_level is 'loud'; give one of debug, info, warning, error",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"port = \n", "is no valid TOML: Invalid value (at line 1, column 8); mend that line"),
        (
            b"port = 1\nport = 2\n",
            "is no valid TOML: Cannot overwrite a value (at line 2, column 9); mend that line",
        ),
        (b"# \xff\n", "is not UTF-8 (invalid start byte at byte 2); save it as UTF-8"),
        (b"limits = 1\n", "limits is 1; write it as a section, [limits], with its settings below"),
        (b"port = true\n", "port is True; give a whole number"),
        (b"port = 65536\n", "port is 65536; give a number from 0 to 65535"),
        (b"recent_days = inf\n", "recent_days is inf; give a finite number"),
        (b"data_dir = 1\n", "data_dir is 1; give the path of a folder"),
        (b'data_dir = ""\n', "data_dir is ''; give the path of a folder"),
        (b'host = " "\n', "host is ' '; give an address or a host name"),
        (b"token = 1234\n", "token cannot be read; give text in quotation marks"),
        (b"limit = {x = 1}\n", "there is no setting 'limit' (did you mean limits?)"),
    ],
)
def test_a_damaged_file_is_named_with_the_mistake(here: Path, content: bytes, said: str) -> None:
    (here / "s.toml").write_bytes(content)
    (problem,) = problems(Path("s.toml"))
    assert problem.startswith("s.toml")
    assert said in problem


def test_a_file_that_cannot_be_read_is_named(here: Path) -> None:
    assert problems(Path("gone")) == ("there is no settings file gone; check --config and SOJOURN_CONFIG",)
    assert problems(here) == (
        f"the settings file {here} cannot be read (Is a directory); name another with --config",
    )


def test_an_empty_variable_says_nothing_but_for_the_token(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "SOJOURN_PORT",
        "SOJOURN_DATA",
        "SOJOURN_TOKEN",
        "SOJOURN_CONFIG",
        "SOJOURN_LIMITS_RESULTS_MAX",
    ):
        monkeypatch.setenv(name, "")
    (here / "sojourn.toml").write_text('token = "from the file"')
    loaded = load_settings()
    assert loaded.settings.port == 8765
    assert loaded.settings.token == ""


def test_what_a_recording_and_kubernetes_put_there_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said in {
        "SOJOURN_REPORT_SOCKET": "/x",
        "SOJOURN_REPORT_SPILL": "/y",
        "SOJOURN_PORT": "tcp://10.0.0.1:8765",
        "SOJOURN_PORT_8765_TCP_ADDR": "10.0.0.1",
        "SOJOURN_SERVICE_HOST": "10.0.0.1",
        "SOJOURN_SERVICE_PORT_HTTP": "8765",
    }.items():
        monkeypatch.setenv(name, said)
    assert load_settings().sources == {}


def test_a_file_that_another_user_laid_into_a_shared_folder_is_not_taken(here: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    file = here / "sojourn.toml"
    file.write_text('server = "http://example.org"')
    os.chown(file, 12_345, 12_345)
    assert load_settings().settings.server == "http://example.org"  # as in a checkout of another's
    here.chmod(0o1777)
    (problem,) = problems()
    assert "belongs to another user" in problem
    assert f"--config {file}" in problem
    assert load_settings(config=file).settings.server == "http://example.org"


def test_secrets_are_masked_and_units_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOJOURN_TOKEN", "s3cret")
    monkeypatch.setenv("SOJOURN_SERVER", "https://ann:s3cret@example.org/x")
    loaded = load_settings()
    assert "s3cret" not in str([*entries(loaded)])
    assert "token" not in repr(loaded.settings)
    assert value(loaded, "token") == ("***", "SOJOURN_TOKEN")
    assert value(loaded, "server") == ("https://ann:***@example.org/x", "SOJOURN_SERVER")
    assert shown("token", None) is None
    assert (
        mask_url("s3://b/p?endpoint=http://k:pa@ss@h:1&region=r")
        == "s3://b/p?endpoint=http://k:***@h:1&region=r"
    )
    assert mask_url("http://h/@x") == "http://h/@x"
    named = {name: unit(name) for name in ("recent_days", "seal_after_s", "limits.state_bytes_max", "port")}
    assert list(named.values()) == ["days", "s", "bytes", ""]


def test_where_there_is_nothing_to_read_the_library_that_reads_is_not_imported(here: Path) -> None:
    program = "import sys; from sojourn.runtime.settings_load import load_settings; load_settings(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "typed_settings" not in done.stdout.split()
