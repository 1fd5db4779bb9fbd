"""What probes and operators ask of the process."""

import platform
from functools import cache
from importlib.metadata import version as installed_version

from attrs import asdict
from starlette.requests import Request
from starlette.responses import Response

from ...runtime.runtime import Runtime
from ..answers import json_answer

_MIRROR = frozenset({"mirror", "mirror_server"})  # the children that keep it


async def healthz(_request: Request, _runtime: Runtime) -> Response:
    """200 while the process lives."""
    return json_answer({"status": "ok"})


async def readyz(_request: Request, runtime: Runtime) -> Response:
    """200 when every store is well, else 503; either way each store by name, and how far the mirror is behind: sessions go
    on without it, so it makes no difference here."""
    stores = runtime.readiness()
    mirror = runtime.mirror_statistics()
    body = {"mirror": asdict(mirror) if mirror is not None else None, "stores": stores}
    if all(state == "ok" for name, state in stores.items() if name not in _MIRROR):
        return json_answer(body | {"status": "ok"})
    response = json_answer(body | {"status": "unavailable"}, 503)
    response.headers["retry-after"] = "1"
    return response


async def version(_request: Request, _runtime: Runtime) -> Response:
    """The versions of API, Sojourn and Python."""
    return json_answer(_versions())


@cache
def _versions() -> dict[str, str]:
    return {"api": "v1", "python": platform.python_version(), "sojourn": installed_version("sojourn")}
