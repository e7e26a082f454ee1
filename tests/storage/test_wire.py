"""The way that bodies take: TLS as botocore is told to verify it, a proxy of the environment, connections kept."""

from __future__ import annotations

import os
import secrets
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from dev.pki import Authority
from dev.s3 import S3Endpoint
from everstep.catalog import S3Access, Store, open_store
from everstep.catalog.store import SwapUnanswered
from everstep.catalog.sums import block_sums
from everstep.errors import StorageUnavailableError
from tests.storage.conftest import access_of
from tests.support.listener import Listener

BODY = os.urandom(3 << 20)


class Counting(Listener):
    """How many connections brought how many requests, and which of them were addressed to a proxy."""

    def __init__(self, upstream: str, **options: Any) -> None:
        super().__init__(upstream, **options)
        self.peers: list[object] = []
        self.proxied: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.peers.append(request.transport.get_extra_info("peername") if request.transport else None)
        if request.headers.get("Proxy-Connection") or "://" in request.raw_path:
            self.proxied.append(request.raw_path)
        return await super().handle(request)


@pytest.fixture
def place(s3_server: S3Endpoint) -> Callable[[str], tuple[str, S3Access]]:
    uri = f"s3://{s3_server.make_bucket('wire')}/{secrets.token_hex(4)}"
    return lambda endpoint: (uri, replace(access_of(s3_server), endpoint=endpoint, attempts=1))


def exchange(store: Store) -> None:
    store.put("checkpoints/a/x", BODY, block_sums(BODY))
    memory = bytearray(len(BODY) - 5)
    assert store.read_into("checkpoints/a/x", 5, memoryview(memory)) == len(memory)
    assert memory == BODY[5:]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("pki"))
    authority.create()
    return authority


def served_by(authority: Authority, name: str) -> ssl.SSLContext:
    pair = authority.issue(name.replace(":", "-"), "s3", alternatives=[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_tls_is_verified_by_the_bundle_that_aws_clients_go_by(
    s3_server: S3Endpoint,
    place: Callable[[str], tuple[str, S3Access]],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    for each in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(each, raising=False)
    with Counting(s3_server.url, server_tls=served_by(authority, "IP:127.0.0.1")) as way:
        with pytest.raises(StorageUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            exchange(open_store(*place(way.url)))
        monkeypatch.setenv(variable, str(authority.pair.certificate))
        uri, access = place(way.url)
        exchange(open_store(uri, replace(access, whose="another client: the first has read its bundle")))
        assert len(set(way.peers)) == 1
        assert len(way.peers) == 2


def test_a_certificate_of_another_host_is_refused(
    s3_server: S3Endpoint,
    place: Callable[[str], tuple[str, S3Access]],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.pair.certificate))
    with (
        Counting(s3_server.url, server_tls=served_by(authority, "DNS:elsewhere.example")) as way,
        pytest.raises(StorageUnavailableError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        exchange(open_store(*place(way.url)))


def test_a_proxy_of_the_environment_is_used(
    s3_server: S3Endpoint, place: Callable[[str], tuple[str, S3Access]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Counting("") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        exchange(open_store(*place(s3_server.url)))
        assert len(proxy.proxied) == 2


def test_connections_are_used_again(s3_server: S3Endpoint, place: Callable[[str], tuple[str, S3Access]]) -> None:
    with Counting(s3_server.url) as way:
        store = open_store(*place(way.url))
        for number in range(10):
            store.put(f"checkpoints/a/{number}", BODY[:number])
        assert len(way.peers) == 10
        assert len(set(way.peers)) == 1


def test_connections_can_be_there_before_they_are_needed(
    s3_server: S3Endpoint, place: Callable[[str], tuple[str, S3Access]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no more connections")

    uri, access = place(s3_server.url)
    store: Any = open_store(uri, replace(access, whose="a client that has no connection yet"))
    store.connect(2)
    monkeypatch.setattr("everstep.catalog.store.wire.socket.create_connection", refuse)
    exchange(store)


def test_a_connection_that_the_server_closed_is_not_used_again(
    s3_server: S3Endpoint, place: Callable[[str], tuple[str, S3Access]]
) -> None:
    store = None
    with Counting(s3_server.url) as way:
        port = way.port
        store = open_store(*place(way.url))
        store.put("checkpoints/a/1", b"x")
    with Counting(s3_server.url, port=port) as way:
        store.put("checkpoints/a/2", b"x")  # a single try
        assert len(way.peers) == 1


class Page(Listener):
    """A page for people, in answer to everything."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="<html>Welcome</html>", content_type="text/html")


def test_a_server_that_is_no_s3_is_asked_whether_it_is(place: Callable[[str], tuple[str, S3Access]]) -> None:
    with Page("http://unused") as page:
        uri, access = place(page.url)
        store = open_store(uri, access)
        with pytest.raises(StorageUnavailableError, match=f"at {page.url}: .*is this an S3 endpoint"):
            store.read_register("catalog.json")
        with pytest.raises(SwapUnanswered, match=f"at {page.url}: .*is this an S3 endpoint"):
            store.swap_register("catalog.json", b"{}", None)
