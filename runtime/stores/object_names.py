"""Which names objects may have, in every store alike."""

import re

TEMPORARY = ".tmp-"  # what a file of a write under way is called
_PARTS_MAX = 8
_PART = rf"(?!\.\.?(?:/|\Z)|{re.escape(TEMPORARY)})[A-Za-z0-9._-]{{1,255}}"
_NAME = re.compile(rf"{_PART}(?:/{_PART}){{0,{_PARTS_MAX - 1}}}")


def check_name(name: str) -> str:
    """`name`, where it is one: 1 to 8 parts, none of which leads elsewhere or is taken for a write under way.

    Raises:
        ValueError: it is none.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name!r} is no object name: 1 to {_PARTS_MAX} parts of [A-Za-z0-9._-], not . or .."
        )
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` as names begin with it: empty, or a name and a slash."""
    return f"{check_name(prefix)}/" if prefix else ""
