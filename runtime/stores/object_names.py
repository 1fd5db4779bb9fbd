"""Which names objects may have, in every store alike."""

import re

TEMPORARY = ".tmp-"  # what a file of a write under way is called
_PART = re.compile(r"[A-Za-z0-9._-]{1,255}", re.ASCII)
_PARTS_MAX = 8


def check_name(name: str) -> str:
    """`name`, where it is one: 1 to 8 parts, none of which leads elsewhere or is taken for a write under way.

    Raises:
        ValueError: it is none.
    """
    parts = name.split("/")
    if len(parts) > _PARTS_MAX or not all(map(_is_part, parts)):
        raise ValueError(
            f"{name!r} is no object name: 1 to {_PARTS_MAX} parts of [A-Za-z0-9._-], not . or .."
        )
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` as names begin with it: empty, or a name and a slash."""
    return f"{check_name(prefix)}/" if prefix else ""


def _is_part(part: str) -> bool:
    return _PART.fullmatch(part) is not None and part not in (".", "..") and not part.startswith(TEMPORARY)
