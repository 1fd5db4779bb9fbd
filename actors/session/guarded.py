"""The actor of a session of which something is set aside: what is, is not handled again until a person says so."""

from collections.abc import Mapping
from typing import Any

from ..errors import CallerError, IdempotencyMismatch, Quarantined
from ..ports import Record, RecordKind
from .actor import AcceptLoss, Batch, GiveUp, Read, SessionActor, Surroundings, Tick
from .commands import Command
from .core import took_effect
from .model import SessionState
from .poison import UNWRITABLE, Account, Ledger, Poison, digest_of, encode_mark, identity_of, with_command


class GuardedActor(SessionActor):
    """A session actor that looks at each command first. An ordinary one pays nothing for this: a session gets this one
    when it is started while something stands in the ledger, and each crash starts it anew.

    Args:
        retrying: by (session id, number) the digest of the body that a person sends now; others change it.
    """

    __slots__ = ("_ledger", "_marks", "_retrying")

    def __init__(
        self,
        state: SessionState,
        around: Surroundings,
        ledger: Ledger,
        retrying: Mapping[tuple[str, int], str],
    ) -> None:
        super().__init__(state, around)
        self._ledger = ledger
        self._retrying = retrying
        self._marks: list[Record] = []  # what was learned in this slot

    def receive(self, message: Command | Batch | Read | AcceptLoss | GiveUp | Tick) -> Any:
        """As SessionActor.receive; raises Quarantined for what is set aside."""
        account = self._ledger.accounts.get(self.state.session_id)
        if account is None or type(message) is not Command:
            return super().receive(message)
        identity = identity_of(message)
        number = account.numbered(identity)
        if number is not None:
            self._check(account.poison[number], number, message)
        try:
            answer = super().receive(message)
        except CallerError:
            self._survived(account, identity)
            raise
        self._survived(account, identity)
        return answer

    def _check(self, poison: Poison, number: int, command: Command) -> None:
        session_id = self.state.session_id
        if took_effect(self.state, command):
            return  # it was answered as done before it was set aside, and is so again
        digest = digest_of(command)
        same = poison.digest is None or poison.digest == digest
        sent = self._retrying.get((session_id, number))
        if sent is not None:
            if digest == sent:
                return
        elif not same:
            if command.source is not None:
                return  # its reporter has put another command in its place
            if command.command_id is not None:
                raise IdempotencyMismatch
        elif poison.identity.startswith("digest") and not poison.killed:
            return  # nobody can tell it from one that only looks like it, and it costs two crashes
        if poison.digest is None:
            self._learn(poison, number, command)
        raise Quarantined(told(session_id, number, poison.crash))

    def _learn(self, poison: Poison, number: int, command: Command) -> None:
        try:
            payload = encode_mark(with_command(poison, command))
        except UNWRITABLE:
            return  # it has no form in which it could be kept
        if self._ledger.has_room(self.state.session_id, number, len(payload)):
            epoch = self._around.epoch
            self._marks.append(
                Record(self.state.session_id, number, 0, epoch, payload, RecordKind.QUARANTINE)
            )

    def _survived(self, account: Account, identity: str) -> None:
        number = account.attempted(identity)
        if number is not None:
            self._ledger.forgive(self.state.session_id, number)

    def close_slot(self) -> Record | None:
        """The events of the slot's turns, or, where there are none, a mark of what was learned in them."""
        record = super().close_slot()
        marks, self._marks = self._marks, []
        # What is dropped here is learned again: its sender gets no other answer.
        return marks[0] if record is None and marks else record


def told(session_id: str, number: int, crash: str) -> str:
    """What the sender of a command that is set aside is told."""
    return (
        f"the command crashed {session_id} twice ({crash}) and is set aside as number {number}; the session goes on. "
        f"`sojourn quarantine show {session_id} {number}` says more; skip, edit or retry it"
    )
