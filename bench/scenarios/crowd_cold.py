"""As `crowd-passivated`, and none is hot: almost every ask brings a session back, and one leaves for it."""

from ..harness import Measured, Options
from . import crowd
from .crowd_passivated import PASSIVATE_AFTER_S

UNIT = "asks"
COMPARED = "p99_us"
WARM_UP = False


async def measure(options: Options) -> Measured:
    return await crowd.crowd(options, options.sessions or crowd.SESSIONS, passivate_after_s=PASSIVATE_AFTER_S)


ceiling = crowd.ceiling
