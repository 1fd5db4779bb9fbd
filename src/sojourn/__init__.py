"""Sojourn keeps long test sessions alive: durable, watchable, comparable.

    from sojourn import Runtime, Settings, create_app, read_command, read_create

These are the public names. Each is imported when it is first asked for: importing `sojourn` alone costs next to nothing, and
a program that wants an error class does not pay for the web framework. Every other error stands in `sojourn.actors.errors`.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers take it for true; `typing` alone would be most of the import time
if TYPE_CHECKING:
    from .actors.errors import (
        CallerError,
        DeadlineExceeded,
        FolderInUse,
        InvalidCommand,
        MailboxFull,
        NoSuchSession,
        OwnershipLost,
        Rejected,
        SojournError,
        StorageFull,
        StoreError,
        UnusableFolder,
    )
    from .actors.ports import CatalogQuery
    from .actors.session.actor import Done
    from .actors.session.model import Ack, Limits
    from .actors.session.wire import read_command, read_create
    from .http.app import create_app, standalone
    from .runtime.runtime import Runtime
    from .runtime.settings import Settings

__all__ = [
    "Ack",
    "CallerError",
    "CatalogQuery",
    "DeadlineExceeded",
    "Done",
    "FolderInUse",
    "InvalidCommand",
    "Limits",
    "MailboxFull",
    "NoSuchSession",
    "OwnershipLost",
    "Rejected",
    "Runtime",
    "Settings",
    "SojournError",
    "StorageFull",
    "StoreError",
    "UnusableFolder",
    "create_app",
    "read_command",
    "read_create",
    "standalone",
]

_HOME = {
    "Ack": ".actors.session.model",
    "CatalogQuery": ".actors.ports",
    "Done": ".actors.session.actor",
    "Limits": ".actors.session.model",
    "Runtime": ".runtime.runtime",
    "Settings": ".runtime.settings",
    "create_app": ".http.app",
    "read_command": ".actors.session.wire",
    "read_create": ".actors.session.wire",
    "standalone": ".http.app",
}

if not TYPE_CHECKING:  # or a type checker would take every name for one of ours

    def __getattr__(name):
        """The public name, imported at its first use. Raises AttributeError for any other."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOME.get(name, ".actors.errors"), __name__), name)
        globals()[name] = found
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
