"""What all tests share: tests of one event loop run on asyncio unless their module or class says otherwise."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
