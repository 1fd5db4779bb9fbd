"""Every scenario in its smallest form: that its figures are there and make sense, never how large they are."""

import asyncio
import gc
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bench import harness, peers
from bench.__main__ import chosen
from bench.bare_redis import BareScript
from bench.environment import ROOT
from bench.harness import Options, Run, rounds_of
from bench.pace import offer
from bench.results import read_results
from bench.sampling import OTHER, STAGES, Sampler, profiled
from sojourn.actors.errors import StoreUnavailable
from sojourn.runtime.stores.redis_lane import pack
from tests.support.redis import Server, serving
from tests.support.wait import wait_until

DEADLINE_S = 60.0
SMALL: dict[str, dict[str, Any]] = {
    "activation": {"sessions": 20},
    "ask": {"operations": 500, "clients": 5},
    "crowd": {"sessions": 40, "duration_s": 0.2, "rate_per_s": 200},
    "crowd-cold": {"sessions": 40, "duration_s": 0.2, "rate_per_s": 200},
    "crowd-passivated": {"sessions": 40, "duration_s": 0.2, "rate_per_s": 200},
    "durable-ask": {"operations": 200, "sessions": 10},
    "durable-open": {"sessions": 10, "duration_s": 0.2},
    "http-batch": {"operations": 400, "clients": 2},
    "http-single": {"operations": 40, "clients": 4},
    "live-sessions": {"operations": 200, "sessions": 40, "clients": 10},
    "memory": {"sessions": 1_000},
    "mirror": {"operations": 200, "sessions": 20},
    "mirrored-ask": {"operations": 100, "sessions": 10},
    "mirrored-open": {"sessions": 10, "duration_s": 0.2, "rate_per_s": 500},
    "mixed": {"operations": 1_000, "sessions": 20, "duration_s": 0.2},
    "mixed-short": {"operations": 1_000, "sessions": 20, "duration_s": 0.2},
    "open-sessions": {"sessions": 40, "duration_s": 0.2, "rate_per_s": 200},
    "recovery": {"sessions": 20},
    "round-robin": {"operations": 2_000, "sessions": 50},
    "soak": {"sessions": 10, "duration_s": 1.5, "rate_per_s": 100},
    "spawn": {"sessions": 100},
    "sse": {"operations": 4, "clients": 10},
    "tell": {"operations": 1_000},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scenarios make their folders in the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(name: str, **changed: Any) -> Run:
    return Run(name, Options(**{"rounds": 1, "warm_up": False} | SMALL[name] | changed))


def test_every_scenario_has_a_smallest_form() -> None:
    assert sorted(SMALL) == harness.names()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_scenario_finds_its_figures(name: str, here: Path) -> None:
    run = small(name)
    said: list[str] = []
    run.carry_out(said.append)
    found = run.result()
    assert run.broken_off is None
    assert found is not None
    assert len(said) == len(found["rounds"]) == 1
    for figure in ("figure", "ceiling_figure", "ratio_to_ceiling", "per_s", "ceiling_per_s"):
        assert 0 < found[figure]["min"] <= found[figure]["median"] <= found[figure]["max"]
    if latency := found["latency_us"]:
        ordered = [latency[point] for point in ("p50", "p90", "p99", "p99.9", "max")]
        assert ordered == sorted(ordered)
        assert ordered[0] > 0
    assert found["what"].endswith(".")
    assert json.loads(json.dumps(found)) == found
    assert list(here.iterdir()) == []


def test_asks_over_http_in_an_open_loop_are_counted_from_when_they_were_due() -> None:
    run = small("http-single", operations=30, rate_per_s=100.0)
    run.carry_out(lambda _: None)
    found = run.result()
    assert found is not None
    assert found["more"]["unsent"] == 0
    assert found["per_s"]["median"] < 150  # what was offered, and not what could be


def test_an_offer_sends_at_its_own_moments_whether_or_not_anyone_answers() -> None:
    async def main() -> None:
        under_way = most = 0
        release = anyio.Event()

        async def send(number: int) -> None:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if number == 99:
                release.set()
            await release.wait()  # nobody is answered before the hundredth was sent

        found = await offer(send, rate_per_s=2_000, duration_s=0.1)
        assert most >= 100
        assert found.answered == len(found.latencies_us) == len(found.late_us)
        # The first waited for the hundredth, and the last for nobody.
        assert found.latencies_us[0] >= 0

    anyio.run(main)


def test_an_offer_ends_with_the_first_error_of_what_it_sends() -> None:
    async def fail(number: int) -> None:
        raise StoreUnavailable("gone")

    async def main() -> None:
        with pytest.raises(StoreUnavailable, match="gone"):
            await offer(fail, rate_per_s=1_000, duration_s=30.0)

    anyio.run(main)


def test_a_profile_charges_the_cpu_to_stages_that_add_up() -> None:
    found = profiled("durable-ask", Options(operations=8_000, sessions=50), "asyncio")
    assert found["samples"] > 0
    assert sum(found["stages"].values()) == pytest.approx(1.0)
    assert set(found["stages"]) <= {stage for _, stage in STAGES} | {OTHER}


def test_a_server_can_be_profiled_from_outside() -> None:
    found = profiled("http-single", Options(operations=400, clients=4), "asyncio")
    assert "uvicorn" in found["stages"] or "facade" in found["stages"]


def test_a_sampler_leaves_the_process_as_it_was() -> None:
    before = signal.getsignal(signal.SIGPROF)
    with Sampler():
        pass
    assert signal.getsignal(signal.SIGPROF) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


@contextmanager
def bench(*arguments: str, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """Ends with the block; what it says on stderr stands in `said`."""
    command = [sys.executable, "-m", "bench", *arguments]
    with (
        (cwd / "said").open("w") as said,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def test_a_scenario_that_does_not_exist_is_told_with_those_that_do(here: Path) -> None:
    with bench("run", "nothing", cwd=here) as process:
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2
    said = (here / "said").read_text()
    assert "there is no scenario 'nothing'; one of: activation, ask," in said
    assert "Traceback" not in said


def test_the_soak_is_run_when_it_is_asked_for() -> None:
    assert "soak" not in chosen((), soak=False)
    assert chosen((), soak=True) == ["soak"]
    assert (rounds_of("soak"), rounds_of("tell")) == (1, 5)  # five would be five hours
    with pytest.raises(ValueError, match="soak takes an hour: say --soak too"):
        chosen(("soak",), soak=False)


def test_ctrl_c_keeps_the_rounds_that_were_measured(here: Path) -> None:
    out = here / "out.json"
    arguments = ["run", "tell", "--rounds", "100000", "--operations", "1000", "--json", str(out)]
    with bench(*arguments, cwd=here) as process:
        wait_until(lambda: "round 2/" in (here / "said").read_text(), DEADLINE_S)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    (found,) = read_results(out)
    assert found["broken_off"] == "interrupted"
    assert len(found["rounds"]) >= 2


def test_a_redis_that_dies_in_the_middle_ends_the_scenario_and_keeps_its_rounds(here: Path) -> None:
    out = here / "out.json"
    small = ["--rounds", "100000", "--operations", "2000", "--sessions", "20"]
    with (
        serving() as server,
        bench("run", "mirror", "--redis", server.unix, *small, "--json", str(out), cwd=here) as process,
    ):
        wait_until(lambda: "round 1/" in (here / "said").read_text(), DEADLINE_S)
        server.kill()
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    (found,) = read_results(out)
    assert len(found["rounds"]) >= 1
    assert "StoreUnavailable" in found["broken_off"]
    said = (here / "said").read_text()
    assert "mirror: broken off: StoreUnavailable" in said
    assert "Traceback" not in said


def test_a_bare_call_to_a_server_that_was_killed_is_told_and_so_is_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def calls(server: Server) -> None:
        async with BareScript(server.unix) as script:
            server.process.send_signal(signal.SIGSTOP)
            unread, behind = script.call(pack("ECHO", b"x")), script.call(pack("PING"))
            server.kill()
            with pytest.raises(StoreUnavailable, match="cut the connection"):
                await unread
            with pytest.raises(StoreUnavailable, match="has closed the connection"):
                await script.call(pack("PING"))
            assert behind.done()

    with serving() as server:
        asyncio.run(asyncio.wait_for(calls(server), DEADLINE_S))
    gc.collect()
    assert not caplog.records  # nor is what nobody awaited written down as an error


def test_a_peer_that_cannot_be_installed_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", "empty-cache")
    said: list[str] = []
    (found,) = peers.measure_peers(["pykka"], 1, said=said.append)
    assert found["skipped"]
    assert said[0].startswith("pykka: skipped: ")


def test_a_peer_that_nobody_knows_is_told_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match="there is no peer 'akka'; one of: pykka, xoscar"):
        peers.measure_peers(["akka"], 1, said=lambda _: None)
