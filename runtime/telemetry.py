"""Logs: events with fields, on stderr.

An event is a dotted name (`session.snapshotted`); its fields are `session`, `seq` and `epoch` where they are known. What
went wrong is logged once, where it is handled, with its `error` or traceback and a `remedy`: what a person can do, or that
nothing needs to be done.
"""

import logging
import os
import sys
from typing import Any

import structlog

_process: dict[str, Any] = {}


def configure_logging(*, terminal: bool | None = None, level: str | int = logging.INFO) -> None:
    """Set logging up for a process of ours; a host that embeds us configures structlog itself.

    Args:
        terminal: short lines for people, coloured unless NO_COLOR is set (true), or one JSON object a line (false);
            None asks stderr what it is.
        level: the lowest that is written, as a number or one of `debug`, `info`, `warning`, `error`. Of other libraries,
            warnings and worse are, in the same form.
    """
    if isinstance(level, str):
        level = logging.getLevelNamesMapping()[level.upper()]
    if terminal is None:
        terminal = sys.stderr.isatty()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _of_process,
        structlog.stdlib.add_log_level,
    ]
    rendering: list[structlog.types.Processor]
    if terminal:
        shared.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        rendering = [
            _harmless,
            structlog.dev.ConsoleRenderer(
                colors=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
                # Rich's own would show every frame's variables, a token among them.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    else:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        rendering = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=True, ensure_ascii=False),
        ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _event_as_text,
                *rendering,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


def bind_process(**fields: Any) -> None:
    """Fields of every line that this process logs from now on, such as the epoch under which it owns its folder. A field
    that an event has of its own stays."""
    _process.update(fields)


def _of_process(_logger: Any, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    for name, value in _process.items():
        event.setdefault(name, value)
    return event


def _event_as_text(_logger: Any, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Other libraries log whatever has a `str`."""
    event["event"] = str(event["event"])
    return event


def _harmless(_logger: Any, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """A path or an error's text may come from anywhere: no escape of theirs reaches the terminal (CWE-150)."""
    for name, value in event.items():
        if name not in ("exc_info", "exception"):
            text = str(value)
            if not text.isprintable():
                event[name] = text.encode("unicode_escape").decode()
    return event
