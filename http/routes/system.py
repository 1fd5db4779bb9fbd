"""What probes and operators ask of the process."""

import platform
from functools import cache
from importlib.metadata import version as installed_version

from starlette.requests import Request
from starlette.responses import Response

from ...runtime.runtime import Runtime
from ..answers import json_answer


async def healthz(_request: Request, _runtime: Runtime) -> Response:
    """200 while the process lives."""
    return json_answer({"status": "ok"})


async def readyz(_request: Request, runtime: Runtime) -> Response:
    """200 when every store is well, else 503; either way each store by name."""
    stores = runtime.readiness()
    if all(state == "ok" for state in stores.values()):
        return json_answer({"status": "ok", "stores": stores})
    response = json_answer({"status": "unavailable", "stores": stores}, 503)
    response.headers["retry-after"] = "1"
    return response


async def version(_request: Request, _runtime: Runtime) -> Response:
    """The versions of API, Sojourn and Python."""
    return json_answer(_versions())


@cache
def _versions() -> dict[str, str]:
    return {"api": "v1", "python": platform.python_version(), "sojourn": installed_version("sojourn")}
