"""The runtime's tree: whoever finds that another process owns the folder ends all of it."""

from collections.abc import Callable

import anyio
import pytest

from sojourn.actors.errors import StaleEpoch
from sojourn.runtime.tree import runtime_tree

pytestmark = pytest.mark.anyio

CHILDREN = (
    "commit",
    "kernel",
    "catalog",
    "snapshots",
    "compaction",
    "passivation",
    "abandoning",
    "timers",
    "quarantine",
    "live",
    "mirror",
)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def rests(started: Callable[[], None]) -> None:
    started()
    await anyio.sleep_forever()


@pytest.mark.parametrize("name", ["commit", "compaction", "quarantine", "mirror"])
async def test_who_writes_with_an_epoch_and_is_fenced_ends_the_whole_tree(name: str) -> None:
    starts = 0

    async def is_fenced(started: Callable[[], None]) -> None:
        nonlocal starts
        starts += 1
        started()
        await anyio.lowlevel.checkpoint()
        raise StaleEpoch("epoch 1 is fenced")

    tree = runtime_tree(**{child: is_fenced if child == name else rests for child in CHILDREN})
    with pytest.raises(StaleEpoch):
        await tree.run(lambda: None)
    assert starts == 1
