"""Death watch for a host: one wait for one session."""

from ..actors.errors import MonitorsFull, Stopped
from ..actors.kernel.park import Parked
from ..actors.kernel.scheduler import Kernel
from ..actors.kernel.watch import Down, DownReason
from ..actors.ports import Catalog
from .shelves import ACTIVE


async def wait_for_down(kernel: Kernel, catalog: Catalog, session_id: str, parked: Parked) -> Down:
    """See Runtime.monitor. `parked` is a new place to wait at."""
    row = await catalog.get(session_id)
    if row is not None and row.tier != ACTIVE:
        return Down(actor_id=session_id, reason=DownReason.REMOVED, epoch=row.epoch, seq=row.seq)

    def told(down: Down | None) -> None:
        if parked.done():
            return
        if down is None:
            parked.set_exception(Stopped())
        elif down.reason is DownReason.LIMIT:
            parked.set_exception(MonitorsFull())
        else:
            parked.set_result(down)

    watcher = object()
    kernel.monitor(session_id, watcher, told)
    try:
        down: Down = await parked
    finally:
        kernel.watches.remove(session_id, watcher)
    return down
