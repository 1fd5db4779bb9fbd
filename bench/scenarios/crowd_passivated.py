"""As `crowd`, with sessions leaving memory after 2 s of silence: most asks bring one back. Against 1,000 sessions that stay."""

from ..harness import Measured, Options
from . import crowd

UNIT = "asks"
COMPARED = "p99_us"
WARM_UP = False
PASSIVATE_AFTER_S = 2.0


async def measure(options: Options) -> Measured:
    return await crowd.crowd(options, options.sessions or crowd.SESSIONS, passivate_after_s=PASSIVATE_AFTER_S)


ceiling = crowd.ceiling
