"""Transfers through bad weather: a real S3 server behind a proxy that strikes at chosen requests."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import Store, open_store
from everstep.catalog.store import KeyNotFound, s3_objects
from everstep.catalog.sums import block_sums
from everstep.errors import StorageUnavailableError
from tests.storage.conftest import access_of
from tests.support.weather import Kind, Request, Weather

MEGABYTE = 1 << 20
PARTS = 4
BODY = memoryview(os.urandom(PARTS * 5 * MEGABYTE - 77))
SUMS = block_sums(BODY)
KEY = "checkpoints/a/x"
Strike = Callable[[Request], Kind | None]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that S3 takes: the same code with less to send."""
    monkeypatch.setattr(s3_objects, "PART", 5 * MEGABYTE)
    monkeypatch.setattr(s3_objects, "WHOLE", 5 * MEGABYTE)
    monkeypatch.setattr(s3_objects, "PIECE", 5 * MEGABYTE)


@contextmanager
def under(server: S3Endpoint, strike: Strike, **limits: Any) -> Iterator[tuple[Store, Store, Weather]]:
    """The same place through the weather, and straight."""
    uri = f"s3://{server.make_bucket('weather')}/{secrets.token_hex(4)}"
    straight = access_of(server)
    with Weather(server.url, strike) as weather:
        access = replace(straight, endpoint=weather.url, read_timeout=4.0, **limits)
        yield open_store(uri, access), open_store(uri, straight), weather


def first_try_of(chosen: Callable[[Request], bool], kind: Kind) -> Strike:
    """Each request that is chosen fails when it is first sent."""
    seen: set[tuple[str, str]] = set()

    def strike(request: Request) -> Kind | None:
        name = (request.method, request.target)
        if not chosen(request) or name in seen:
            return None
        seen.add(name)
        return kind

    return strike


def unfinished(store: Store) -> int:
    return store.abort_uploads("", datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize(
    "kind", ["503", "429", "slow down", "no answer", "reset", "reset in body", "silence", "lost answer"]
)
def test_parts_are_sent_again(s3_server: S3Endpoint, kind: Kind) -> None:
    with under(s3_server, first_try_of(lambda request: request.is_part, kind)) as (store, straight, weather):
        retries = store.put(KEY, BODY, SUMS)
        assert len(weather.struck) == PARTS
        assert retries >= PARTS
        assert straight.get(KEY) == BODY
        assert unfinished(straight) == 0


def test_a_storm_of_503_over_every_kind_of_request(s3_server: S3Endpoint) -> None:
    with under(s3_server, first_try_of(lambda _: True, "503")) as (store, straight, weather):
        retries = store.put(KEY, BODY, SUMS)
        assert retries >= len(weather.struck) == PARTS + 2  # and the two that begin and complete the upload
        store.put("checkpoints/a/small", BODY[:100])
        assert straight.get(KEY) == BODY
        assert straight.get("checkpoints/a/small") == BODY[:100]


def test_an_upload_whose_completion_was_not_answered_is_complete(s3_server: S3Endpoint) -> None:
    strike = first_try_of(lambda request: request.method == "POST" and "uploadId=" in request.target, "lost answer")
    with under(s3_server, strike) as (store, straight, weather):
        assert store.put(KEY, BODY) >= len(weather.struck) == 1
        assert straight.get(KEY) == BODY


@pytest.mark.parametrize("kind", ["503", "429", "reset", "no answer", "truncated", "drip"])
def test_ranges_are_read_again(s3_server: S3Endpoint, kind: Kind) -> None:
    seen: list[Request] = []

    def first_piece_twice(request: Request) -> Kind | None:
        seen.append(request)
        return kind if request.method == "GET" and request.number < 2 else None

    with under(s3_server, first_piece_twice, slowest=5.0 * MEGABYTE) as (store, straight, weather):
        straight.put(KEY, BODY)
        memory = bytearray(len(BODY) - 1000 + 9)
        assert store.read_into(KEY, 1000, memoryview(memory)) == len(BODY) - 1000
        assert len(weather.struck) == 2
        assert store.retries >= 2
        assert memoryview(memory)[:-9] == BODY[1000:]


def test_storage_that_stays_away_is_an_error_that_says_so(s3_server: S3Endpoint) -> None:
    with under(s3_server, lambda _: "503", attempts=3) as (store, straight, weather):
        with pytest.raises(StorageUnavailableError) as caught:
            store.put(KEY, BODY[:100])
        assert len(weather.struck) == 3
        for word in (KEY, weather.url, "503", "3 tries"):
            assert word in str(caught.value)
        with pytest.raises(KeyNotFound):
            straight.get(KEY)


@pytest.mark.parametrize("kind", ["503", "silence"])
def test_a_failed_upload_is_aborted(s3_server: S3Endpoint, kind: Kind) -> None:
    """One part never gets through; the others do."""

    def strike(request: Request) -> Kind | None:
        return kind if "partNumber=2" in request.target else None

    with under(s3_server, strike, attempts=2) as (store, straight, weather):
        with pytest.raises(StorageUnavailableError, match=r"x \(part 2\)"):
            store.put(KEY, BODY, SUMS)
        assert len(weather.struck) == 2
        assert unfinished(straight) == 0
        with pytest.raises(KeyNotFound):
            straight.get(KEY)


def test_an_upload_that_could_not_even_be_aborted_is_swept(s3_server: S3Endpoint) -> None:
    def strike(request: Request) -> Kind | None:
        return "reset" if request.is_part or request.method == "DELETE" else None

    with under(s3_server, strike, attempts=1) as (store, straight, _):
        with pytest.raises(StorageUnavailableError):
            store.put(KEY, BODY, SUMS)
        assert straight.abort_uploads("checkpoints/", datetime.now(UTC) - timedelta(hours=1)) == 0
        assert unfinished(straight) == 1
        assert unfinished(straight) == 0


def test_patience_outlasts_a_storm_and_ends_with_it(s3_server: S3Endpoint) -> None:
    until: list[float] = []

    def strike(_: Request) -> Kind | None:
        until.append(time.monotonic() + 4)
        return "503" if time.monotonic() < until[0] else None

    with under(s3_server, strike, attempts=1, patience=60) as (store, straight, weather):
        assert store.put(KEY, BODY, SUMS) >= len(weather.struck) > 0
        assert straight.get(KEY) == BODY
    with under(s3_server, lambda _: "503", attempts=1, patience=2) as (store, _, weather):
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError, match="tries in"):
            store.put(KEY, BODY[:10])
        assert 2 <= time.monotonic() - began < 20
        assert len(weather.struck) > 1


def test_bytes_that_are_not_those_that_were_summed_are_refused_by_the_server(s3_server: S3Endpoint) -> None:
    wrong = [*SUMS[:-1], SUMS[-1] ^ 1]
    with under(s3_server, lambda _: None, attempts=2) as (store, straight, _):
        with pytest.raises(StorageUnavailableError, match=r"BadDigest|Checksum"):
            store.put(KEY, BODY, wrong)
        with pytest.raises(StorageUnavailableError, match=r"BadDigest|Checksum"):
            store.put("checkpoints/a/small", BODY[:100], [7])
        assert unfinished(straight) == 0
        assert list(straight.list("")) == []
