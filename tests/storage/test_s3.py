"""What only a server on the way to S3 can get wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from everstep.catalog import JobCatalog, S3Access, Store, open_store
from everstep.errors import StorageUnavailableError


class Proxy(BaseHTTPRequestHandler):
    """Knows of no such place, as a proxy does while its configuration is loaded anew."""

    def do_GET(self) -> None:
        body = b"<html>404 page not found</html>"
        self.send_response(404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def store() -> Iterator[Store]:
    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield open_store("s3://bucket/ns/job", S3Access(url, "us-east-1", "key", "secret", attempts=1))
        server.shutdown()
        thread.join()


def test_a_404_that_is_not_the_stores_own_is_no_absent_register(store: Store) -> None:
    with pytest.raises(StorageUnavailableError, match="is this an S3 endpoint"):
        store.read_register("catalog.json")
    with pytest.raises(StorageUnavailableError):
        JobCatalog(store).has_checkpoints()
    with pytest.raises(StorageUnavailableError):
        store.get("checkpoints/x")


class Hiccuping(BaseHTTPRequestHandler):
    """Answers each second request with 503, and lists three objects on two pages."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if type(self).requests % 2:
            return self.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        if "continuation-token=second" in self.path:
            return self.answer(200, self.page("c"))
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>second</NextContinuationToken>"
        return self.answer(200, self.page("a", "b", more=more))

    @staticmethod
    def page(*keys: str, more: str = "<IsTruncated>false</IsTruncated>") -> bytes:
        contents = "".join(
            f"<Contents><Key>ns/job/x/{key}</Key><Size>1</Size>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key in keys
        )
        return f"<ListBucketResult>{more}{contents}</ListBucketResult>".encode()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_a_hiccup_costs_neither_a_page_nor_the_scripts_random_numbers() -> None:
    with HTTPServer(("127.0.0.1", 0), Hiccuping) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        access = S3Access(f"http://127.0.0.1:{server.server_port}", "us-east-1", "key", "secret", attempts=2)
        before = random.getstate()
        found = open_store("s3://bucket/ns/job", access).list("x/")
        assert [info.key for info in found] == ["x/a", "x/b", "x/c"]
        assert random.getstate() == before
        server.shutdown()
    assert Hiccuping.requests == 4
