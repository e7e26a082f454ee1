"""Compare-and-swap on a job's register, right also when the answer to a swap never comes.

After a refusal or silence the register is read again. Its own swap id there: applied. The token unchanged: the same
body goes out again, which is safe because at most one copy can ever fit the token. Anything else: the change is
decided anew on what stands there now, and the transition recognises its own effect.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from everstep.catalog.documents import MAX_DOCUMENT_BYTES, Catalog, decode, encode
from everstep.catalog.keys import CATALOG
from everstep.catalog.store import UNCHANGED, Store, SwapRefused, SwapUnanswered, Unchanged
from everstep.errors import CatalogUnreadableError, CheckpointError, StorageUnavailableError

Decide = Callable[[Catalog | None], Catalog]
"""The next document for the present one; the same object where nothing is to be written. Raises to give up."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    catalog: Catalog
    token: str


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between tries of one swap, with jitter so that racing writers part."""

    first: float = 0.02
    factor: float = 2.0
    most: float = 2.0
    tries: int = 12
    seconds: float = 180.0
    """A store that hangs answers each try late: this ends a swap well before the ranks that wait for it give up."""

    def pause(self, turn: int) -> float:
        return min(self.most, self.first * self.factor**turn) * (0.5 + secrets.randbelow(1000) / 1000)


class Register:
    """The one object that decides. Stateless: every call reads what it needs."""

    def __init__(
        self,
        store: Store,
        key: str = CATALOG,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self.key = key
        self._backoff = backoff or Backoff()
        self._sleep = sleep

    def read(self) -> Snapshot | None:
        found = self.store.read_register(self.key)
        if found is None or isinstance(found, Unchanged):
            return None
        return Snapshot(self._decode(found.body), found.token)

    def poll(self, known: str) -> Snapshot | Unchanged | None:
        """Like `read`, but UNCHANGED (one conditional request, no body) where the token is still `known`."""
        found = self.store.read_register(self.key, known)
        if found is UNCHANGED or found is None:
            return found
        return Snapshot(self._decode(found.body), found.token)

    def swap(self, decide: Decide, reserve: int = 0, known: Snapshot | None = None) -> Catalog:
        """Replace the document by `decide`'s answer to it; returns the document in force. `reserve`: see `encode`;
        `known`: what a caller has read before, which saves a round trip.

        Raises what `decide` raises, and StorageUnavailableError where it stays unknown whether the swap was applied.
        """
        snapshot = known or self.read()
        deadline = time.monotonic() + self._backoff.seconds
        for turn in range(self._backoff.tries):
            current = snapshot.catalog if snapshot else None
            try:
                proposal = decide(current)
                if proposal is current:
                    return proposal
                generation = (current.generation if current else 0) + 1
                stamped = proposal.model_copy(update={"generation": generation, "swap": secrets.token_hex(16)})
                body = encode(stamped, reserve)
            except CheckpointError:
                if snapshot is None or snapshot is not known:
                    raise
                snapshot = self.read()  # it may have become possible since
                continue
            applied, snapshot = self._write(body, stamped.swap, snapshot.token if snapshot else None, deadline)
            if applied:
                return stamped
            self._sleep(self._backoff.pause(turn))
        raise StorageUnavailableError(
            f"{self.store.uri}/{self.key}: lost {self._backoff.tries} swaps in a row to other writers"
        )

    def _write(self, body: bytes, swap: str, token: str | None, deadline: float) -> tuple[bool, Snapshot | None]:
        for turn in range(self._backoff.tries):
            try:
                self.store.swap_register(self.key, body, token)
                return True, None
            except (SwapRefused, SwapUnanswered):
                now = self._read_again(deadline)
            if now is not None and now.catalog.swap == swap:
                return True, now
            if (now.token if now else None) != token:
                return False, now
            if time.monotonic() > deadline:
                break
            self._sleep(self._backoff.pause(turn))
        raise StorageUnavailableError(f"{self.store.uri}/{self.key}: no answer to a swap after {turn + 1} tries")

    def _read_again(self, deadline: float) -> Snapshot | None:
        for turn in range(self._backoff.tries - 1):
            try:
                return self.read()
            except StorageUnavailableError:
                if time.monotonic() > deadline:
                    raise
                self._sleep(self._backoff.pause(turn))
        return self.read()

    def _decode(self, body: bytes) -> Catalog:
        if len(body) > MAX_DOCUMENT_BYTES:
            raise CatalogUnreadableError(f"{self.store.uri}/{self.key} has more than {MAX_DOCUMENT_BYTES} bytes")
        return decode(body, f"{self.store.uri}/{self.key}")
