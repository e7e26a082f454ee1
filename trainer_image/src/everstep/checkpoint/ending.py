"""How a run ends: which exit code says what, and why it really ended where the first sign is misleading."""

from __future__ import annotations

import threading

from everstep import exits
from everstep.checkpoint.session import Session
from everstep.errors import ArchitectureMismatchError, FencedError, InvalidOperationError, SavesFailedError

LAST_QUESTION_SECONDS = 3.0
"""How long a failing rank waits to hear whether it was fenced."""


def exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else exits.FAILED
    if isinstance(error, FencedError):
        return exits.FENCED
    if isinstance(error, SavesFailedError):
        return exits.UNSAVED
    if isinstance(error, ArchitectureMismatchError | InvalidOperationError):
        return exits.MISFIT
    return exits.FAILED


def hidden_fence(session: Session, error: Exception) -> FencedError | None:
    """A group that was taken over while it stood still first sees its peers gone: then that is not the reason."""
    answers: list[FencedError] = []

    def ask() -> None:
        fenced = session.fenced()
        if fenced is not None:
            answers.append(fenced)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LAST_QUESTION_SECONDS)
    if not answers:
        return None
    answers[0].__cause__ = error
    return answers[0]
