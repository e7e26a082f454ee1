"""Proof, before the first pod, that a store enforces conditional writes. One that ignores them would let two
writers both believe that they had committed; such a store is refused by name of the rule it breaks.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from everstep.catalog.store.base import Store, SwapRefused, SwapUnanswered, Versioned
from everstep.errors import StorageUnavailableError, StorageUnsafeError

RACERS = 6
_ABSENT = "7007007"
"""A token that no version has: a number for POSIX, an unquoted ETag for S3."""


def probe(store: Store) -> None:
    """Raises StorageUnsafeError where a rule is broken, StorageRefusedError or StorageUnavailableError as the store
    does.
    """
    key = f"probe-{secrets.token_hex(8)}.json"
    try:
        _check(store, key)
    except SwapUnanswered as silence:
        raise StorageUnavailableError(f"{store.uri}: no answer to a conditional write: {silence}") from silence
    finally:
        with contextlib.suppress(Exception):
            store.delete([key])


def _check(store: Store, key: str) -> None:
    if _accepts(lambda: store.swap_register(key, _body("absent"), _ABSENT)):
        _refuse(store, "replaced an object that does not exist (If-Match on an absent key)")
    winners = _race(store, key, None)
    if winners != 1:
        _refuse(store, f"let {winners} of {RACERS} racing writers create one object (If-None-Match: *)")
    if _accepts(lambda: store.swap_register(key, _body("existing"), None)):
        _refuse(store, "created an object that exists (If-None-Match: *)")
    first = _read(store, key)
    winners = _race(store, key, first.token)
    if winners != 1:
        _refuse(store, f"let {winners} of {RACERS} racing writers replace one version (If-Match)")
    if _accepts(lambda: store.swap_register(key, _body("stale"), first.token)):
        _refuse(store, "replaced a version that is gone (If-Match with an old ETag)")
    if _read(store, key).token == first.token:
        _refuse(store, "gives one ETag to two different versions")


def _body(kind: str) -> bytes:
    return f'{{"probe": "{kind}", "id": "{secrets.token_hex(8)}"}}'.encode()


def _accepts(swap: Callable[[], str]) -> bool:
    try:
        swap()
    except SwapRefused:
        return False
    return True


def _race(store: Store, key: str, token: str | None) -> int:
    with ThreadPoolExecutor(RACERS) as pool:
        return sum(pool.map(lambda _: _accepts(lambda: store.swap_register(key, _body("race"), token)), range(RACERS)))


def _read(store: Store, key: str) -> Versioned:
    found = store.read_register(key)
    if not isinstance(found, Versioned):
        _refuse(store, "does not return an object that was just written")
    return found


def _refuse(store: Store, rule: str) -> NoReturn:
    raise StorageUnsafeError(
        f"{store.uri}: the store {rule}: a committed step could be lost here, so everstep does not use it"
    )
