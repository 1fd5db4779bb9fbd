"""Logs: events with fields, on stderr."""

import logging
import sys
from typing import Any

import structlog


def configure_logging(*, terminal: bool | None = None, level: int = logging.INFO) -> None:
    """Set logging up for a process of ours; a host that embeds us configures structlog itself.

    Args:
        terminal: lines for people (true) or one JSON object a line (false); None asks stderr what it is.
        level: the lowest that is written. Of other libraries, warnings and worse are, in the same form.
    """
    if terminal is None:
        terminal = sys.stderr.isatty()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[structlog.types.Processor]
    if terminal:
        rendering = [structlog.dev.ConsoleRenderer()]
    else:
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


def _event_as_text(_logger: Any, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Other libraries log whatever has a `str`."""
    event["event"] = str(event["event"])
    return event
