"""boto3 clients by access: one for registers and lists, one whose bodies everstep sends itself."""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, cast

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.utils import get_environ_proxies

from everstep.catalog.store.access import S3Access
from everstep.catalog.store.threads import DaemonPool
from everstep.catalog.store.wire import Limits, Wire, tls_context
from everstep.errors import InvalidOperationError, StorageRefusedError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class DataPath:
    """A client for objects: its payloads are not signed, a checksum says what they should be."""

    client: S3Client
    wire: Wire | None
    """None: botocore sends the bodies itself, through the proxy of this environment."""
    checksums: bool
    """False where AWS_REQUEST_CHECKSUM_CALCULATION or its twin in the configuration file says `when_required`."""


class S3Clients:
    def __init__(self, access: S3Access) -> None:
        self._access = access
        self._session = boto3.session.Session(
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            aws_session_token=access.session_token,
            region_name=access.region or os.environ.get("AWS_REGION"),  # boto3 itself reads AWS_DEFAULT_REGION alone
            botocore_session=_core(),
        )
        paths = _descriptions().search_paths
        paths[:] = dict.fromkeys(paths)  # boto3 adds its own once more for each session
        self._lock = threading.Lock()
        self._data: DataPath | None = None
        self._parts: DaemonPool | None = None
        self.control = self._client({})

    @property
    def data(self) -> DataPath:
        with self._lock:  # a session makes one client at a time
            if self._data is None:
                self._data = self._data_path()
            return self._data

    def _data_path(self) -> DataPath:
        asked = self._session._session.get_config_variable("request_checksum_calculation")
        client = self._client({"payload_signing_enabled": False})
        endpoint = client.meta.endpoint_url
        wire = None
        if not get_environ_proxies(endpoint).get(endpoint.partition(":")[0]):
            wire = Wire(self._limits, self._tls(endpoint))
            client.meta.events.register("before-send.s3", cast("Any", wire.send))
        return DataPath(client, wire, str(asked or "when_supported").lower() != "when_required")

    @property
    def parts(self) -> DaemonPool:
        """Threads for parts of objects; whoever waits for them is in none of them."""
        with self._lock:
            if self._parts is None:
                self._parts = DaemonPool(self._access.connections, "everstep-part")
            return self._parts

    @property
    def _limits(self) -> Limits:
        return Limits(self._access.connect_timeout, self._access.read_timeout, self._access.slowest)

    def _tls(self, endpoint: str) -> ssl.SSLContext | None:
        if not endpoint.startswith("https"):
            return None  # the certificates take 50 ms to read
        return tls_context(self._session._session.get_config_variable("ca_bundle"))

    def _client(self, options: dict[str, Any]) -> S3Client:
        access = self._access
        s3: Any = {"addressing_style": "path" if access.endpoint else "auto", **options}
        config = Config(
            connect_timeout=access.connect_timeout,
            read_timeout=access.read_timeout,
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3=s3,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=32,
        )
        region = self._session.region_name or "us-east-1"
        return self._session.client("s3", endpoint_url=access.endpoint, region_name=region, config=config)


def _core() -> botocore.session.Session:
    """What describes S3 to botocore is read once for all accesses, not for each: that takes 12 MB and 100 ms."""
    core = botocore.session.get_session()
    core.register_component("data_loader", _descriptions())
    return core


@cache
def _descriptions() -> Any:
    return botocore.session.get_session().get_component("data_loader")


@lru_cache(maxsize=64)
def _clients(access: S3Access, process: int) -> S3Clients:
    return S3Clients(access)


def clients_for(access: S3Access) -> S3Clients:
    """One for all stores of an access, with its connections. A fork gets its own: sockets are not shared.

    Raises InvalidOperationError for an endpoint that is no URL, StorageRefusedError for other settings of which no
    client can be made.
    """
    try:
        return _clients(access, os.getpid())
    except BotoCoreError as error:
        raise StorageRefusedError(f"S3: with {access.whose}: {error}") from error
    except ValueError as error:  # botocore's way to refuse an endpoint
        raise InvalidOperationError(f"S3: {error}: expected a URL such as http://host:8333 or https://host") from error
