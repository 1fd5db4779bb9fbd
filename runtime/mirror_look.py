"""What the server of a mirror says of itself, for whoever looks after it. It is asked and nothing is written."""

from attrs import frozen

from .stores.mirror_keys import SHARDS, check_namespace, owner_key
from .stores.redis_lane import DEADLINE_S, Servers, pack
from .stores.redis_server import read_url


@frozen(kw_only=True)
class MirrorHolder:
    """Who holds a namespace, or held it last: `owner` is `HOST:DATA_FOLDER`; `holds`: its claim has not run out."""

    owner: str
    epoch: int
    holds: bool


@frozen(kw_only=True)
class MirrorNode:
    """One server's memory, in bytes; `memory_max` is 0 where it has no limit."""

    shown: str
    policy: str
    memory_used: int
    memory_max: int


@frozen(kw_only=True)
class MirrorLook:
    """`server` is its name, version and address without a password; `nodes` are all those of a cluster that hold sessions."""

    server: str
    is_local: bool
    nodes: tuple[MirrorNode, ...]
    holder: MirrorHolder | None


async def look_at(url: str, namespace: str, *, deadline_s: float = DEADLINE_S) -> MirrorLook:
    """Connects as `RedisMirror.open` does, and asks.

    Raises:
        UnusableMirror, StoreUnavailable: as of `RedisMirror.open`.
    """
    check_namespace(namespace)
    servers = await Servers.open(read_url(url), deadline_s=deadline_s)
    try:
        nodes: dict[str, MirrorNode] = {}
        for shard in range(SHARDS):
            shown = servers.home(shard).shown
            if shown not in nodes:
                nodes[shown] = _node(shown, await servers.call(shard, pack("INFO", "memory")))
        claim = await servers.call(0, pack("HMGET", owner_key(namespace), "owner", "epoch", "until"))
        now_s = int((await servers.call(0, pack("TIME")))[0])
    finally:
        await servers.close()
    return MirrorLook(
        server=f"{servers.info} at {servers.address.shown}",
        is_local=servers.address.is_local,
        nodes=tuple(nodes.values()),
        holder=_holder(claim, now_s),
    )


def _holder(claim: list[bytes | None], now_s: int) -> MirrorHolder | None:
    owner, epoch, until_s = claim
    if owner is None:
        return None
    return MirrorHolder(
        owner=owner.decode(errors="replace"), epoch=int(epoch or 0), holds=int(until_s or 0) > now_s
    )


def _node(shown: str, info: bytes) -> MirrorNode:
    said = dict(line.partition(":")[::2] for line in info.decode(errors="replace").splitlines())
    return MirrorNode(
        shown=shown,
        policy=said.get("maxmemory_policy", ""),
        memory_used=int(said.get("used_memory", 0)),
        memory_max=int(said.get("maxmemory", 0)),
    )
