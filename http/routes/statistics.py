"""What the runtime says of itself."""

from starlette.requests import Request
from starlette.responses import Response

from ...runtime.runtime import Runtime
from ..answers import json_answer
from ..query import Query

SESSIONS = 50
SESSIONS_MAX = 1_000


async def statistics(request: Request, runtime: Runtime) -> Response:
    """The runtime's parts, counts, and the first `limit` of the sessions in memory. Changes nothing."""
    limit = Query(request, "limit").number("limit", SESSIONS, low=0, high=SESSIONS_MAX)
    return json_answer(await runtime.overview(sessions_max=limit))
