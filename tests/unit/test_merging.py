"""Merging segments at the hand-over: whatever compaction left, every event is there once, in few files."""

from itertools import pairwise

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.runtime.layout import manifest_name
from sojourn.runtime.manifest import decode_manifest
from sojourn.runtime.segments import decode_segment

from ..support.tiers import SESSION, Mover, clone, compact, contents, memory_stores, record_session

LAST_SEQ = 35  # of `record_session`, sealed


@settings(max_examples=60, deadline=None)
@given(
    ends=st.lists(st.integers(1, 34), max_size=6, unique=True).map(sorted),
    again=st.lists(st.integers(1, 34), max_size=4, unique=True).map(sorted),
    released=st.booleans(),
    bytes_full=st.sampled_from([1, 700, 2_000, 6_000, 1 << 20]),
    damaged=st.integers(0, 9),
)
def test_whatever_was_compacted_the_merged_segments_hold_every_event_once(
    ends: list[int], again: list[int], released: bool, bytes_full: int, damaged: int
) -> None:
    async def check() -> None:
        stores = memory_stores()
        await record_session(stores)
        await compact(stores, *again)  # overlaps what follows, as after a merge that broke off
        await compact(stores, *ends)
        names = [name async for name in stores.objects.list("")]
        if released and ends:
            await compact(stores, snapshot_at=max(1, ends[-1] - 1))
        elif damaged < len(names):
            await stores.objects.put(names[damaged], b"damaged")  # the journal has it still
        mover = Mover(stores, segment_bytes_full=bytes_full)
        await mover.seal(SESSION)
        events = await mover.events()
        await mover.tiering.hand_off(SESSION)
        manifest = decode_manifest(await stores.objects.get(manifest_name(SESSION)), SESSION)
        spans = [(segment.first_seq, segment.last_seq) for segment in manifest.segments]
        assert (spans[0][0], spans[-1][1]) == (1, LAST_SEQ)
        assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
        lines = b""
        for segment in manifest.segments:
            records = decode_segment(
                await stores.objects.get(segment.name),
                session_id=SESSION,
                first_seq=segment.first_seq,
                last_seq=segment.last_seq,
            )
            lines += b"".join(record.payload for record in records)
        assert lines == events + b"\n"
        assert await mover.events() == events
        left = {name async for name in stores.objects.list("")}
        assert left == {entry.name for entry in manifest.objects} | {manifest_name(SESSION)}
        if bytes_full == 1 << 20:
            assert len(spans) == 1
        before = await contents(clone(stores))
        await Mover(stores, segment_bytes_full=bytes_full).settle()
        assert await contents(stores) == before

    anyio.run(check)
