"""The manifest: canonical, checked, and refused where what it lists is not one whole session."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve

from sojourn.actors.errors import Damaged, InvalidCommand
from sojourn.actors.session.commands import Command, Seal
from sojourn.actors.session.model import Loss, Status
from sojourn.actors.session.record import public_record
from sojourn.runtime.facts import KEEP, Facts, changed, decode_facts, encode_facts, with_facts
from sojourn.runtime.layout import session_folder, snapshot_name
from sojourn.runtime.manifest import (
    Manifest,
    chain_of,
    decode_manifest,
    encode_manifest,
    entry_of,
    sha256_of,
)
from sojourn.runtime.segments import segment_name

from .test_session_core import NOW, do, session

ID = "sess_1"
FOLDER = session_folder(ID)


def manifest(*spans: tuple[int, int], seq: int = 9, losses: tuple[Loss, ...] = ()) -> Manifest:
    state = session(Status.COMPLETED)
    do(state, Command("session.seal", Seal()))
    segments = [entry_of(segment_name(FOLDER, *span), b"segment %d-%d" % span) for span in spans]
    snapshot = entry_of(snapshot_name(ID, seq), b"snapshot")
    return Manifest(
        chain=chain_of(segments),
        epoch=3,
        losses=losses,
        objects=(*segments, snapshot),
        record=public_record(state, epoch=3, snapshot_path=snapshot.name),
        sealed_at=NOW,
        seq=seq,
        session_id=ID,
        tier="recent",
    )


WHOLE = manifest((1, 4), (5, 9))


def canonical(data: bytes) -> bytes:
    return json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_a_manifest_is_canonical_json_and_reads_back_equal() -> None:
    data = encode_manifest(WHOLE)
    assert data == canonical(data)
    read = decode_manifest(data, ID)
    assert encode_manifest(read) == data
    assert evolve(read, record={}) == evolve(WHOLE, record={})
    assert read.record["created_at"] == WHOLE.record["created_at"]
    assert read.snapshot.name == snapshot_name(ID, 9)
    assert [(s.first_seq, s.last_seq) for s in read.segments] == [(1, 4), (5, 9)]


def test_its_checksum_is_that_of_the_rest() -> None:
    document = json.loads(encode_manifest(WHOLE))
    rest = canonical(json.dumps({**document, "checksum": ""}).encode())
    assert document["checksum"] == sha256_of(rest)


def test_every_flipped_bit_and_every_cut_of_a_manifest_is_seen() -> None:
    data = encode_manifest(WHOLE)
    for place in range(len(data)):
        for bit in (1, 128):
            with pytest.raises(Damaged):
                decode_manifest(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :], ID)
        with pytest.raises(Damaged):
            decode_manifest(data[:place], ID)


def test_a_manifest_of_a_newer_format_or_of_another_session_is_refused() -> None:
    data = encode_manifest(WHOLE)
    with pytest.raises(Damaged, match=r"newer.*upgrade"):
        decode_manifest(data.replace(b'"format":1', b'"format":2'), ID)
    with pytest.raises(Damaged, match="is that of sess_1"):
        decode_manifest(data, "sess_2")


def test_the_chain_tells_every_segment_and_their_order() -> None:
    """I19."""
    one, two = WHOLE.segments
    assert chain_of([one, two]) == sha256_of((sha256_of(one.sha256.encode()) + two.sha256).encode())
    chains = {
        chain_of(s) for s in ([], [one], [two], [one, two], [two, one], [one, evolve(two, sha256="0" * 64)])
    }
    assert len(chains) == 6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (evolve(WHOLE, chain="0" * 64), "hash chain"),
        (evolve(WHOLE, objects=WHOLE.objects[1:]), "hash chain"),
        (evolve(WHOLE, objects=WHOLE.objects[:-1]), r"snapshots at \[\]"),
        (evolve(WHOLE, seq=8), r"snapshots at \[9\], and needs one at its seq 8"),
        (manifest((1, 4), (6, 9)), "no segment with events 5 to 5"),
        (manifest((1, 4), (5, 8)), "no segment with events 9 to 9"),
        (manifest((2, 9)), "no segment with events 1 to 1"),
        (manifest(), "no segment with events 1 to 9"),
        (
            manifest((1, 4), (6, 9), losses=(Loss(accepted_at=NOW, first_seq=6, last_seq=7),)),
            "no segment with events 5 to 5",
        ),
    ],
)
def test_what_is_not_one_whole_session_is_refused(wrong: Manifest, said: str) -> None:
    with pytest.raises(Damaged, match=said):
        decode_manifest(encode_manifest(wrong), ID)


def test_an_object_outside_the_sessions_folder_is_refused() -> None:
    for name in ("../../etc/passwd", f"{FOLDER}x/a", "sessions/00/sess_2/snapshot-000000000009.json"):
        wrong = evolve(WHOLE, objects=(*WHOLE.segments, evolve(WHOLE.snapshot, name=name)))
        with pytest.raises(Damaged, match="no object of that session"):
            decode_manifest(encode_manifest(wrong), ID)


def test_a_gap_that_was_accepted_as_lost_is_none() -> None:
    losses = (
        Loss(accepted_at=NOW, first_seq=3, last_seq=4),
        Loss(accepted_at=NOW, first_seq=5, last_seq=5),
    )
    whole = manifest((1, 2), (6, 9), losses=losses)
    assert decode_manifest(encode_manifest(whole), ID).losses == losses


def test_an_object_is_entered_by_what_its_name_says() -> None:
    entry = entry_of(f"{FOLDER}/snapshot-000000000009.json.zst", b"abc")
    assert (entry.kind, entry.first_seq, entry.last_seq, entry.bytes) == ("snapshot", 9, 9, 3)
    with pytest.raises(ValueError, match="neither"):
        entry_of(f"{FOLDER}/facts.json", b"")


# -- facts ----------------------------------------------------------------------------------------------------------


def test_facts_read_back_equal_and_every_flipped_bit_of_them_is_seen() -> None:
    facts = Facts(tags=("slow", "flaky"), title="a \N{SNOWMAN}", version=7)
    for one in (facts, Facts(), evolve(facts, tags=())):
        assert decode_facts(encode_facts(one)) == one
    data = encode_facts(facts)
    assert data == canonical(data)
    for place in range(len(data)):
        with pytest.raises(Damaged):
            decode_facts(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(Damaged):
            decode_facts(data[:place])


def test_a_change_keeps_what_it_does_not_name_and_counts() -> None:
    first = changed(None, "one", ["a"])
    assert first == Facts(title="one", tags=("a",), version=1)
    assert changed(first, KEEP, []) == Facts(title="one", tags=(), version=2)
    assert changed(first, None, KEEP) == Facts(title=None, tags=("a",), version=2)


def test_a_record_shows_its_facts_and_what_was_recorded_where_there_are_none() -> None:
    record: dict[str, Any] = {"title": "recorded", "tags": [], "seq": 1}
    assert with_facts(record, None) == record
    assert with_facts(record, Facts(title="new", version=1)) == {**record, "title": "new"}
    assert with_facts(record, Facts(tags=("a",), version=1)) == {**record, "tags": ["a"]}


def test_every_fact_over_its_limit_is_named() -> None:
    with pytest.raises(InvalidCommand) as refusal:
        changed(None, "x" * 513, ["", "a" * 129, "b", "b", *map(str, range(50))])
    assert [error.pointer for error in refusal.value.errors] == [
        "/title", "/tags", "/tags/0", "/tags/1", "/tags/3",
    ]  # fmt: skip
    changed(None, "x" * 512, [f"{n}".ljust(128, "x") for n in range(50)])


def test_a_time_of_the_manifest_is_the_same_moment() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert decode_manifest(encode_manifest(evolve(WHOLE, sealed_at=at)), ID).sealed_at == at
