"""Messages that nobody will handle."""

from sojourn.actors.kernel.dead_letters import KEPT_MAX, TEXT_CHARACTERS_MAX, DeadLetters


def test_the_last_thousand_are_kept_shortened_and_all_are_counted() -> None:
    """I14."""
    letters = DeadLetters()
    for n in range(KEPT_MAX + 20):
        letters.add(f"a{n}", "expired" if n % 2 else "stopped", "x" * 10_000)
    kept = letters.recent()
    assert [letter.actor_id for letter in kept] == [f"a{n}" for n in range(20, KEPT_MAX + 20)]
    assert {len(letter.message) for letter in kept} == {TEXT_CHARACTERS_MAX}
    assert letters.counts == {"stopped": KEPT_MAX // 2 + 10, "expired": KEPT_MAX // 2 + 10}
    assert letters.total == KEPT_MAX + 20


def test_one_that_is_counted_elsewhere_is_kept_and_not_counted_again() -> None:
    letters = DeadLetters()
    letters.keep("a", "quarantined", "x")
    assert (letters.total, letters.recent()[0].reason) == (0, "quarantined")
