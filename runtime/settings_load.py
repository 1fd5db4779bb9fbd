"""Settings for our own programs: defaults, `sojourn.toml`, `SOJOURN_*` variables and flags, each over the one before.

    settings file    --config FILE, else SOJOURN_CONFIG, else ./sojourn.toml, else $XDG_CONFIG_HOME/sojourn/sojourn.toml
    variables        SOJOURN_ and the setting's name in capitals (limits.results_max: SOJOURN_LIMITS_RESULTS_MAX); the
                     data folder is SOJOURN_DATA
    flags            what the command line gave

The file's keys are the names of the settings, without a section; those of `limits` stand in `[limits]`. A relative path
in it is relative to the file. A host that embeds a runtime makes its own `Settings` and needs none of this.
"""

import difflib
import math
import os
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from attrs import Attribute, field, fields, fields_dict, frozen, has

from ..actors.errors import InvalidSettings
from ..actors.session.model import Limits
from .settings import Settings, at_least, invalid

FILE_NAME = "sojourn.toml"
PREFIX = "SOJOURN_"
DEFAULT = "default"
MASK = "***"
LogLevel = Literal["debug", "info", "warning", "error"]

# Ours, and no settings: where the file is, and what `record` tells its pytest.
_OTHER_VARIABLES = frozenset({"SOJOURN_CONFIG", "SOJOURN_REPORT_SOCKET", "SOJOURN_REPORT_SPILL"})
# Kubernetes gives these to every container beside a service named sojourn (its docs, "Accessing the Service").
_SERVICE_LINK = re.compile(r"SOJOURN_(?:SERVICE_(?:HOST|PORT)\w*|PORT_\d+_(?:TCP|UDP|SCTP)\w*)\Z")
_PASSWORD = re.compile(r"(://[^/?#\s:@]*:)[^/?#\s]*@")
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")


def _level(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if value not in get_args(LogLevel):
        raise invalid(attribute.name, value, f"one of {', '.join(get_args(LogLevel))}")


def _name_or_address(_: Any, attribute: "Attribute[Any]", value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise invalid(attribute.name, value, "an address or a host name")


@frozen(kw_only=True)
class ProgramSettings(Settings):
    """Settings of the command line: those of a runtime, and these.

    Attributes:
        host: where `serve` listens.
        port: its TCP port; 0 takes any free one.
        token: what `serve` asks of every request, and what the other commands send; None is no token.
        server: the address of the server that the other commands talk to; None is the data folder's.
        log_level: the lowest level of log lines that is written.
    """

    host: str = field(default="127.0.0.1", validator=_name_or_address)
    port: int = field(default=8765, validator=at_least(0, 65_535))
    token: str | None = field(default=None, repr=False)
    server: str | None = None
    log_level: LogLevel = field(default="info", validator=_level)


@frozen(kw_only=True)
class Loaded:
    """Settings, and where they come from.

    Attributes:
        sources: setting to its source (`./sojourn.toml`, `SOJOURN_PORT`, `--port`), for each that is not a default.
        file: the settings file that was read, or None.
    """

    settings: ProgramSettings
    sources: Mapping[str, str]
    file: Path | None

    def source(self, name: str) -> str:
        """Where the setting's value comes from; `default` where nobody gave one."""
        return self.sources.get(name, DEFAULT)


@frozen(kw_only=True)
class Entry:
    """One setting for people: `value` is plain and without secrets, `unit` is `s`, `days`, `bytes` or empty."""

    name: str
    value: Any
    unit: str
    source: str


@frozen
class _Kind:
    """The type of one setting, and whether it may be None."""

    name: str
    type: Any
    optional: bool


def load_settings(*, config: Path | None = None, flags: Mapping[str, Any] | None = None) -> Loaded:
    """The settings of this process.

    Args:
        config: the settings file; None looks for one.
        flags: settings that the command line gave; None among them is: not given.

    Raises:
        InvalidSettings: the file cannot be read, or holds an unknown key or a value that cannot be; or a variable does.
            Every mistake is named at once, with its source.
    """
    kinds = {kind.name: kind for kind in _kinds(ProgramSettings)}
    path, problems = _settings_file(config), list(_unknown_variables(kinds))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    variables = [name for name in kinds if os.environ.get(_variable(name))]
    if path is None and not variables and not problems:
        found = {name: (value, flag_of(name)) for name, value in given.items()}
    else:
        found = _merged(path, given, problems)
    values: dict[str, Any] = {}
    for name, (value, source) in found.items():
        try:
            value = _read(kinds[name], value, source if source.startswith((PREFIX, "--")) else path)
            _check(name, value)
        except InvalidSettings as error:
            problems += [f"{source}: {_masked_text(name, problem)}" for problem in error.problems]
        else:
            values[name] = value
    if problems:
        raise InvalidSettings(problems)
    sources = {name: source for name, (_, source) in found.items()}
    return Loaded(settings=_make(ProgramSettings, values), sources=sources, file=path)


def entries(loaded: Loaded) -> Iterator[Entry]:
    """Every setting, in the order in which they are declared."""
    for kind in _kinds(ProgramSettings):
        value: Any = loaded.settings
        for part in kind.name.split("."):
            value = getattr(value, part)
        yield Entry(
            name=kind.name,
            value=shown(kind.name, value),
            unit=unit(kind.name),
            source=loaded.source(kind.name),
        )


def unit(name: str) -> str:
    """The unit of a setting, which its name says."""
    parts = name.rpartition(".")[2].split("_")
    return next((word for word in ("bytes", "days", "s") if word in parts), "")


def shown(name: str, value: Any) -> Any:
    """A value for people and JSON: a path as text, a token and the password in an address masked."""
    if name == "token":
        return MASK if value is not None else None
    if isinstance(value, Path):
        return str(value)
    return mask_url(value) if isinstance(value, str) else value


def mask_url(text: str) -> str:
    """`text` without the passwords of the addresses in it."""
    return _PASSWORD.sub(rf"\1{MASK}@", text)


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return "--data" if name == "data_dir" else f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"{PREFIX}DATA" if name == "data_dir" else PREFIX + name.upper().replace(".", "_")


def _kinds(kind: type, prefix: str = "") -> Iterator[_Kind]:
    for attribute in fields(kind):
        if has(attribute.type):
            yield from _kinds(attribute.type, f"{prefix}{attribute.name}.")
            continue
        choices = (
            get_args(attribute.type) if isinstance(attribute.type, types.UnionType) else (attribute.type,)
        )
        (one,) = (choice for choice in choices if choice is not types.NoneType)
        yield _Kind(prefix + attribute.name, one, len(choices) > 1)


def _settings_file(config: Path | None) -> Path | None:
    """The file to read, or None where there is none and none was named."""
    if config is None and (named := os.environ.get("SOJOURN_CONFIG")):
        config = Path(named)
    if config is not None:
        return config
    here = Path(FILE_NAME)
    if here.exists():
        _must_be_trusted(here)
        return here
    xdg, home = os.environ.get("XDG_CONFIG_HOME"), os.environ.get("HOME")
    base = Path(xdg) if xdg else Path(home) / ".config" if home else None
    ours = base / "sojourn" / FILE_NAME if base is not None else None
    return ours if ours is not None and ours.exists() else None


def _must_be_trusted(path: Path) -> None:
    """In a folder that everyone may write to, such as /tmp, another user may have laid it for us to find: it could send
    our token to a server of theirs (CWE-427)."""
    folder, owner = path.absolute().parent.stat(), path.stat().st_uid
    if folder.st_mode & 0o002 and owner not in (os.geteuid(), folder.st_uid):
        raise InvalidSettings(
            [
                f"{path.absolute()} belongs to another user, in a folder that everyone may write to; if you trust it, name "
                + f"it with --config {path.absolute()}, else go to another folder"
            ]
        )


def _unknown_variables(kinds: Mapping[str, _Kind]) -> list[str]:
    known = {_variable(name) for name in kinds} | _OTHER_VARIABLES
    return [
        f"{name}: there is no such setting{_nearest(name, known)}; unset it"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known and not _SERVICE_LINK.match(name)
    ]


def _merged(path: Path | None, flags: Mapping[str, Any], problems: list[str]) -> dict[str, tuple[Any, str]]:
    """What was given, raw, by setting, each with its source; unknown keys go into `problems`."""
    # Only where there is something to read: it brings a command-line framework along, a tenth of a second.
    from typed_settings import loaders
    from typed_settings.cls_utils import deep_options
    from typed_settings.dict_utils import merge_settings
    from typed_settings.types import LoadedSettings, LoaderMeta, OptionInfo, OptionList

    class Variables(loaders.EnvLoader):
        def get_envvar(self, option: OptionInfo) -> str:
            return _variable(option.path)

    options: OptionList = deep_options(ProgramSettings)
    names = [option.path for option in options]
    layers = []
    if path is not None:
        mistakes: list[str] = []
        document = _known(_document(path, options), names, mistakes)
        problems += [f"{path}: {mistake}" for mistake in mistakes]
        layers.append(LoadedSettings(document, LoaderMeta(str(path))))
    variables = Variables(PREFIX)(ProgramSettings, options)
    layers.append(LoadedSettings(_said(variables.settings), LoaderMeta(PREFIX)))
    layers.append(LoadedSettings(dict(flags), LoaderMeta("--")))
    named = {PREFIX: _variable, "--": flag_of}
    return {
        name: (value, named[meta.name](name) if meta.name in named else meta.name)
        for name, (value, meta) in merge_settings(options, layers).items()
    }


def _document(path: Path, options: Any) -> dict[str, Any]:
    from typed_settings.exceptions import ConfigFileLoadError, ConfigFileNotFoundError
    from typed_settings.loaders import TomlFormat

    try:
        return TomlFormat(None)(path, ProgramSettings, options)
    except ConfigFileNotFoundError as error:
        raise InvalidSettings(
            [f"there is no settings file {path}; check --config and SOJOURN_CONFIG"]
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidSettings(
            [f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"]
        ) from error
    except ConfigFileLoadError as error:
        if isinstance(error.__cause__, OSError):
            raise _unreadable(path, error.__cause__) from error
        raise InvalidSettings([f"{path} is no valid TOML: {error}; mend that line"]) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InvalidSettings:
    return InvalidSettings(
        [f"the settings file {path} cannot be read ({error.strerror}); name another with --config"]
    )


def _known(
    document: Mapping[str, Any], names: list[str], problems: list[str], prefix: str = ""
) -> dict[str, Any]:
    """The part of a settings file that settings are called like; what is not goes into `problems`."""
    known: dict[str, Any] = {}
    for key, value in document.items():
        name = prefix + key
        is_section = any(other.startswith(f"{name}.") for other in names)
        if name in names:
            known[key] = value
        elif is_section and isinstance(value, dict):
            known[key] = _known(value, names, problems, f"{name}.")
        elif is_section:
            problems.append(
                f"{name} is {value!r:.200}; write it as a section, [{name}], with its settings below"
            )
        else:
            problems.append(
                f"there is no setting {name!r:.200}{_nearest(name, [*names, 'limits'])}; `sojourn settings` lists them"
            )
    return known


def _nearest(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, sorted(known), 1, 0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that say something. An empty one does not, but for the token: a server must not start open because
    a secret was empty."""
    said: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            said[name] = _said(value)
        elif (value or name == "token") and not (name == "port" and _SERVICE_URL.match(value)):
            said[name] = value
    return said


def _read(kind: _Kind, value: Any, source: Path | str | None) -> Any:
    """A raw value as its type. Text from a variable is read; a file's value must be of its type as it stands.

    Args:
        source: the file, or the name of a variable or flag.
    """
    if isinstance(source, str) and source.startswith(PREFIX) and kind.type in (int, float):
        try:
            return kind.type(value)
        except ValueError:
            wanted = "a whole number" if kind.type is int else "a number"
            raise invalid(kind.name, value, wanted) from None
    if kind.type is Path or kind.name == "archive":
        if not isinstance(value, str | Path) or not str(value):
            raise invalid(kind.name, value, "the path of a folder")
        if isinstance(source, Path) and "://" not in str(value):
            value = str(source.absolute().parent / Path(value).expanduser())
        return value
    if kind.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (kind.type is str or get_origin(kind.type) is Literal) and not isinstance(value, str):
        raise invalid(kind.name, value, "text in quotation marks")
    return value


def _check(name: str, value: Any) -> None:
    """What the setting's own field says of the value. Raises InvalidSettings."""
    section, _, leaf = name.rpartition(".")
    if section:
        attribute = getattr(fields(Limits), leaf)
        at_least(0)(None, attribute.evolve(name=name), value)
        return
    attribute = fields_dict(ProgramSettings)[leaf]
    if attribute.validator is not None:
        attribute.validator(None, attribute, value)
    if isinstance(value, float) and math.isinf(value):
        raise invalid(name, value, "a finite number")


def _make(kind: type, values: Mapping[str, Any]) -> Any:
    """An instance of a settings class from values by dotted name."""
    arguments: dict[str, Any] = {}
    for attribute in fields(kind):
        if has(attribute.type):
            prefix = f"{attribute.name}."
            inner = {
                name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)
            }
            arguments[attribute.name] = _make(attribute.type, inner)
        elif attribute.name in values:
            arguments[attribute.name] = values[attribute.name]
    return kind(**arguments)


def _masked_text(name: str, problem: str) -> str:
    if name == "token":
        return "token cannot be read; give text in quotation marks"
    return problem
