"""`sojourn rebuild-catalog`: the catalog of a folder that nobody owns, built anew."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..runtime.settings_load import load_settings
from ..runtime.telemetry import configure_logging
from .screen import Screen, run


def rebuild_catalog(
    *,
    data: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
    config: Path | None = None,
) -> int:
    """Build the catalog (what lists are read from) anew, from the manifests of recent and archived sessions and the journal.

    Stop the folder's server first. A catalog that is missing or damaged is built anew by the next start too; this is for one
    that says something else than the sessions do. The one that stood there is moved to quarantine/ in the data folder.

    Args:
        data: the data folder.
        json: one JSON document: data_dir, sessions.
        config: the settings file.
    """

    async def body(screen: Screen) -> int:
        # Imported here: it needs the drivers, and a mistake in a setting should be said at once.
        from ..runtime.rebuild import rebuild_catalog as rebuild

        settings = load_settings(config=config, flags={"data_dir": data}).settings
        configure_logging(level=settings.log_level)  # to standard error: what cannot be read is said there
        count = await rebuild(settings)
        if json:
            screen.json({"data_dir": str(settings.data_dir), "sessions": count})
        else:
            print(f"sojourn: the catalog of {settings.data_dir} lists {count:,} sessions", file=sys.stderr)
        return 0

    return run(body)
