"""An S3 server that answers well and ignores preconditions, as several in the wild do: a real one behind a proxy.

Each request is passed on without If-Match and If-None-Match, signed anew, because these may be among what was signed.
"""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from dev.s3 import S3Endpoint

_DROPPED = {"if-match", "if-none-match", "authorization", "host", "connection", "expect", "transfer-encoding"}


class LooseS3:
    """`with LooseS3(upstream, address) as url:`"""

    def __init__(self, upstream: S3Endpoint, address: str) -> None:
        keys = Credentials(upstream.access_key, upstream.secret_key)
        signer = S3SigV4Auth(keys, "s3", upstream.region)
        there = urlsplit(upstream.url)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kept = {name: value for name, value in self.headers.items() if name.lower() not in _DROPPED}
                kept["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
                request = AWSRequest(self.command, f"{upstream.url}{self.path}", headers=kept, data=body)
                signer.add_auth(request)
                link = http.client.HTTPConnection(there.hostname or "", there.port, timeout=30)
                try:
                    link.request(self.command, self.path, body, dict(request.headers))
                    found = link.getresponse()
                    content = found.read()
                finally:
                    link.close()
                self.send_response(found.status)
                for name, value in found.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                        self.send_header(name, value)
                length = found.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_port}"

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, name="loose S3", daemon=True).start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
