"""`sojourn settings`: what every setting is, and where that comes from."""

from pathlib import Path
from typing import Annotated

from attrs import asdict
from cyclopts import Parameter
from rich.text import Text

from ..runtime.settings_load import DEFAULT, Entry, entries, load_settings
from .screen import Screen, run
from .text import one_line


def settings(*, json: Annotated[bool, Parameter(negative=())] = False, config: Path | None = None) -> int:
    """Show every setting, its unit and where its value comes from. Tokens and passwords are masked.

    Args:
        json: one JSON document, {"file": ..., "settings": [{"name", "source", "unit", "value"}, ...]}.
        config: the settings file; unless given, SOJOURN_CONFIG, else sojourn.toml here, else the user's.
    """

    async def body(screen: Screen) -> int:
        loaded = load_settings(config=config)
        found = list(entries(loaded))
        if json:
            file = str(loaded.file) if loaded.file is not None else None
            screen.json({"file": file, "settings": [asdict(entry) for entry in found]})
            return 0
        screen.table(
            ["SETTING", "VALUE", "UNIT", "FROM"], [_row(entry) for entry in found], right=frozenset()
        )
        return 0

    return run(body)


def _row(entry: Entry) -> list[str | Text]:
    value = (
        "-" if entry.value is None else one_line(f"{entry.value:,}" if entry.unit == "bytes" else entry.value)
    )
    style = "dim" if entry.source == DEFAULT else ""
    return [entry.name, Text(value, style), entry.unit or "-", Text(one_line(entry.source), style)]
