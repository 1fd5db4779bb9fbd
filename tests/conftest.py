"""What all tests share: tests of one event loop run on asyncio unless their module or class says otherwise."""

import os

import pytest

# For the commands that tests start. Tests of the mirror start a server of their own.
os.environ.setdefault("SOJOURN_MIRROR", "none")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
