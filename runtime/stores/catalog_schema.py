"""The catalog's tables by version, and the statements that write and read them."""

import itertools
from typing import Any

from ...actors.ports import TIERS, CatalogQuery
from .catalog_rows import microseconds

# Script n brings a catalog of version n to version n + 1. Add at the end, and never change one that was released.
MIGRATIONS = (
    """
    CREATE TABLE session(
        session_id TEXT PRIMARY KEY,
        seq INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        tier TEXT NOT NULL,
        status TEXT NOT NULL,
        outcome TEXT,
        plan TEXT NOT NULL,
        title TEXT NOT NULL,
        user_id TEXT NOT NULL,
        created_at INTEGER NOT NULL, -- microseconds since 1970, UTC
        updated_at INTEGER NOT NULL,
        record BLOB NOT NULL
    );
    CREATE INDEX session_by_age ON session(created_at DESC, session_id DESC);
    CREATE INDEX session_by_plan ON session(plan, created_at DESC, session_id DESC);
    CREATE INDEX session_by_status ON session(status, created_at DESC, session_id DESC);
    CREATE INDEX session_by_epoch ON session(epoch);
    """,
    """
    CREATE INDEX session_by_tier ON session(tier, created_at DESC, session_id DESC);
    CREATE INDEX session_by_tier_and_status ON session(tier, status, created_at DESC, session_id DESC);
    CREATE INDEX session_by_tier_and_change ON session(tier, updated_at, session_id);
    """,
    # Rows of an older version get their checksum in the same transaction when the catalog is migrated. `head` counts the commits, and
    # those of them that were synced.
    """
    ALTER TABLE session ADD COLUMN checksum INTEGER;
    CREATE TABLE head(
        one INTEGER PRIMARY KEY CHECK (one = 1),
        commits INTEGER NOT NULL,
        synced INTEGER NOT NULL,
        checksum INTEGER
    );
    """,
    # Only sessions with a timer that will be due stand in the index, however many there are without.
    """
    ALTER TABLE session ADD COLUMN next_due_at INTEGER; -- microseconds since 1970, UTC
    CREATE INDEX session_by_due ON session(next_due_at, session_id) WHERE next_due_at IS NOT NULL;
    """,
    # Who asks by the last change asks about thousands of sessions that rest, and, once in minutes, about those that do not:
    # these are looked through one by one then.
    # An active session changes all the time, each time elsewhere in the index: three quarters of the pages that were written.
    """
    DROP INDEX session_by_tier_and_change;
    CREATE INDEX session_by_tier_and_change ON session(tier, updated_at, session_id) WHERE tier <> 'active';
    """,
)
VERSION = len(MIGRATIONS)
# A reader cannot migrate. What the rows of an older version lack reads as NULL (`read_of`).
READABLE_VERSION_MIN = 1

COLUMNS = (
    "session_id, seq, epoch, tier, status, outcome, plan, title, user_id, created_at, updated_at, next_due_at, record, "
    "checksum"
)
HEAD_VERSION = 3  # from which on there are checksums, and `head`
DUE_VERSION = 4


def read_of(version: int) -> str:
    """What is read of each row of a catalog of this version."""
    columns = COLUMNS
    for name, since in (("checksum", HEAD_VERSION), ("next_due_at", DUE_VERSION)):
        if version < since:
            columns = columns.replace(name, f"NULL AS {name}")
    return f"{columns}, rowid AS place"


READ = read_of(VERSION)


def tier_number(table: str) -> str:
    whens = " ".join(f"WHEN '{tier}' THEN {number}" for number, tier in enumerate(TIERS))
    return f"CASE {table}.tier {whens} END"


def columns_of(table: str) -> str:
    return ", ".join([f"{table}.{column}" for column in COLUMNS.split(", ")])


PUT = f"""
INSERT INTO session({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(session_id) DO UPDATE SET seq = excluded.seq, epoch = excluded.epoch, tier = excluded.tier,
    status = excluded.status, outcome = excluded.outcome, plan = excluded.plan, title = excluded.title,
    user_id = excluded.user_id, created_at = excluded.created_at, updated_at = excluded.updated_at,
    next_due_at = excluded.next_due_at, record = excluded.record, checksum = excluded.checksum
WHERE (excluded.epoch, excluded.seq) >= (session.epoch, session.seq)
    AND {tier_number("excluded")} >= {tier_number("session")}
    AND ({columns_of("excluded")}) IS NOT ({columns_of("session")})
"""
# The same where nothing has changed that lists are ordered by, which is nearly always. SQLite writes every index anew whose
# columns a statement names, changed or not: all eight of them made four fifths of what a row cost, and of the log. This one
# names none that holds an active session.
PUT_PROGRESS = """
UPDATE session SET seq = ?2, outcome = ?6, title = ?8, user_id = ?9, updated_at = ?11, record = ?13, checksum = ?14
WHERE session_id = ?1 AND (epoch, tier, status, plan, created_at) = (?3, ?4, ?5, ?7, ?10) AND next_due_at IS ?12 AND seq <= ?2
"""
SWITCH = f"""
UPDATE session SET ({COLUMNS}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
WHERE session_id = ? AND tier = ? AND seq = ?
"""
IN_TIER = """
SELECT session_id FROM session WHERE tier = ? AND updated_at < ? ORDER BY updated_at, session_id LIMIT ?
"""
# SQLite takes a partial index only where the statement says its condition (https://sqlite.org/partialindex.html).
IN_TIER_AT_REST = IN_TIER.replace("WHERE", "WHERE tier <> 'active' AND")
DUE = """
SELECT next_due_at, session_id FROM session
WHERE next_due_at IS NOT NULL AND next_due_at < ? AND (next_due_at, session_id) > (?, ?)
ORDER BY next_due_at, session_id LIMIT ?
"""
WRITE_HEAD = "INSERT OR REPLACE INTO head(one, commits, synced, checksum) VALUES (1, ?, ?, ?)"
READ_HEAD = "SELECT commits, synced, checksum FROM head"


def page_sql(query: CatalogQuery, read: str = READ) -> tuple[str, tuple[Any, ...]]:
    """The statement and its values. By status and tier it takes a page of each by the index and merges them: what is rare
    is then found without walking all rows. Only these fragments ever become SQL; what the query holds is bound."""
    conditions, values = [], []
    if query.before is not None:
        conditions.append("(created_at, session_id) < (?, ?)")
        values += [microseconds(query.before[0]), query.before[1]]
    if query.plan is not None:
        conditions.append("plan = ?")
        values.append(query.plan)
    choices = []
    for column, chosen in (("tier", query.tier), ("status", query.status)):
        if chosen is not None:
            conditions.append(f"{column} = ?")
            choices.append(sorted(chosen))
    order = "ORDER BY created_at DESC, session_id DESC LIMIT ?"
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    page = f"SELECT {read} FROM session {where} {order}"
    if not choices:
        return page, (*values, query.limit)
    bound = [(*values, *choice, query.limit) for choice in itertools.product(*choices)]
    if not bound:
        return f"SELECT {read} FROM session WHERE 0", ()
    pages = " UNION ALL ".join([f"SELECT * FROM ({page})"] * len(bound))
    return f"{pages} {order}", (*itertools.chain.from_iterable(bound), query.limit)
