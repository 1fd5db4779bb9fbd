"""As `crowd`, with sessions leaving memory after 2 s of silence: of 50,000 live ones a twentieth is hot, and of those each
leaves now and then, so a sixth of the asks brings one back. Against 1,000 sessions that stay."""

from ..harness import Measured, Options
from . import crowd

UNIT = "asks"
COMPARED = "p99_us"
WARM_UP = False
PASSIVATE_AFTER_S = 2.0
HOT = 0.05


async def measure(options: Options) -> Measured:
    sessions = options.sessions or crowd.SESSIONS
    return await crowd.crowd(options, sessions, hot=HOT, passivate_after_s=PASSIVATE_AFTER_S)


ceiling = crowd.ceiling
