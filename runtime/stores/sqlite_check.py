"""What the SQLite of this Python can do."""

import sqlite3

from attrs import frozen


@frozen(kw_only=True)
class SqliteFeatures:
    """`json_operators`: the journal's reads need `->>` (SQLite 3.38). `fts5`: full-text search."""

    version: str
    json_operators: bool
    fts5: bool


def sqlite_features() -> SqliteFeatures:
    """Tried out in memory: a build may leave out what its version has."""
    return SqliteFeatures(
        version=sqlite3.sqlite_version,
        json_operators=_runs("SELECT '[1]' ->> 0"),
        fts5=_runs("CREATE VIRTUAL TABLE words USING fts5(word)"),
    )


def _runs(statement: str) -> bool:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(statement)
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True
