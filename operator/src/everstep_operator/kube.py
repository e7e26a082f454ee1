"""The Kubernetes API as plain JSON: one small client, bounded in time, that writes only while the Lease is held.

The generated models of the client library are not used: they drop fields that they do not know, and an operator copies
whole pod templates. Nothing is retried here; the work queue comes back with a fresh look at the world instead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import client, config

from everstep_operator.api import GROUP, PLURAL, VERSION
from everstep_operator.clock import ServerClock

Json = dict[str, Any]

JOBS = f"/apis/{GROUP}/{VERSION}"
CORE = "/api/v1"
MERGE_PATCH = "application/merge-patch+json"
CONNECTIONS = 128


class ApiError(Exception):
    """The API server refused. `reason` is its own word (NotFound, AlreadyExists, Conflict, Forbidden, Invalid, …)."""

    def __init__(self, status: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.details = details or {}

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def already_exists(self) -> bool:
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def version_unknown(self) -> bool:
        """The server is not as far as the resourceVersion that was asked for, or no longer has it."""
        causes = self.details.get("causes") or []
        return self.status == 410 or any(cause.get("reason") == "ResourceVersionTooLarge" for cause in causes)

    @property
    def unanswered(self) -> bool:
        """No answer came in time."""
        return self.status == 0

    @property
    def transient(self) -> bool:
        """Worth another try without a change of what was asked."""
        return self.status in (0, 408, 429) or self.status >= 500


def _allowed() -> None:
    return None


class NoClusterError(Exception):
    """Nothing says where the API server is and as whom to talk to it."""


async def configuration(kubeconfig: Path | None) -> client.Configuration:
    """How to reach the API server: the given file, else the pod's service account, else the usual kubeconfig."""
    found = client.Configuration()
    try:
        await _load(found, kubeconfig)
    except (config.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError, AttributeError) as error:
        told = f"the kubeconfig {kubeconfig} does not tell" if kubeconfig else "no service account or kubeconfig tells"
        raise NoClusterError(f"{told} how to reach the API server: {error}") from error
    found.connection_pool_maxsize = CONNECTIONS
    found.client_session_kwargs = {"trust_env": False}
    return found


async def _load(found: client.Configuration, kubeconfig: Path | None) -> None:
    if kubeconfig is not None:
        await config.load_kube_config(config_file=str(kubeconfig), client_configuration=found, persist_config=False)  # type: ignore[no-untyped-call]
        return
    try:
        config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=found, persist_config=False)  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class Kube:
    """One connection pool. `guard` is called before each request that writes, and raises to forbid it."""

    api: client.ApiClient
    timeout: float = 30.0
    guard: Callable[[], None] = _allowed
    observe: Callable[[str, str, int], None] | None = None
    """Told of each answer: the verb and the resource, in RBAC's words, and the HTTP status, 0 for none."""
    clock: ServerClock = field(default_factory=ServerClock)
    _auth: tuple[str, ...] = field(default=("BearerToken",))

    @classmethod
    async def connect(
        cls, kubeconfig: Path | None, *, user_agent: str, limit: float = 30.0, guard: Callable[[], None] = _allowed
    ) -> Self:
        api = client.ApiClient(await configuration(kubeconfig))
        api.user_agent = user_agent
        return cls(api, limit, guard)

    def guarded(self, guard: Callable[[], None]) -> Kube:
        """The same connections with another guard."""
        return Kube(self.api, self.timeout, guard, self.observe, self.clock, self._auth)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.api.close()  # type: ignore[no-untyped-call]

    async def get(self, path: str, **query: str) -> Json:
        return await self._json("GET", path, query)

    async def find(self, path: str, **query: str) -> Json | None:
        """Like `get`, but None where there is no such object."""
        try:
            return await self.get(path, **query)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def list_all(self, path: str, **query: str) -> list[Json]:
        """All items, page by page."""
        return (await self.list_at(path, 0, **query))[0]

    async def list_at(self, path: str, version: int, **query: str) -> tuple[list[Json], str]:
        """All items, and the resourceVersion of the list.

        With `version`, any state at least as new, which the API server has at hand; with 0 the newest, for which it may
        have to wait.
        """
        items: list[Json] = []
        query = {"limit": "500", **query}
        if version:
            query = {**query, "resourceVersion": str(version), "resourceVersionMatch": "NotOlderThan"}
        while True:
            page = await self.get(path, **query)
            items += page.get("items", [])
            meta = page.get("metadata", {})
            if not meta.get("continue"):
                return items, meta.get("resourceVersion", "")
            query = {key: value for key, value in query.items() if not key.startswith("resourceVersion")}
            query["continue"] = meta["continue"]

    async def text(self, path: str, **query: str) -> str:
        return (await self._send("GET", path, query)).decode(errors="replace")

    async def create(self, path: str, body: Mapping[str, Any], **query: str) -> Json:
        return await self._json("POST", path, query, body)

    async def request(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, limit: float | None = None
    ) -> Json:
        """Any request, with a limit of its own in seconds."""
        return await self._json(method, path, {}, body, limit=limit)

    async def patch(self, path: str, body: Any, *, kind: str = MERGE_PATCH, **query: str) -> Json:
        return await self._json("PATCH", path, query, body, kind=kind)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None) -> Json | None:
        """What is left of it, or the answer; None where there was nothing to delete."""
        try:
            return await self._json("DELETE", path, {}, body)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any = None,
        *,
        kind: str = "application/json",
        limit: float | None = None,
    ) -> Json:
        content = await self._send(method, path, query, body, kind=kind, limit=limit)
        try:
            answer: Json = json.loads(content)
        except ValueError as error:  # of whatever stands before the API server
            raise ApiError(0, "Unreachable", f"{method} {path}: the answer is no JSON: {error}") from error
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any = None,
        *,
        kind: str = "application/json",
        limit: float | None = None,
    ) -> bytes:
        if method != "GET":
            self.guard()
        headers = {"Accept": "application/json", "Content-Type": kind}
        _, url, headers, body, _ = await self.api.param_serialize(
            method, path, query_params=[], header_params=headers, body=body, auth_settings=list(self._auth)
        )
        if query:
            url = f"{url}?{urlencode(query)}"
        within = limit or self.timeout
        status, asked_at = 0, self.clock.asks()
        try:
            async with asyncio.timeout(within):
                response = await self.api.call_api(method, url, headers, body, _request_timeout=within)
                content: bytes = await response.read()  # type: ignore[no-untyped-call]
            status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, "Unreachable", f"{method} {path}: {error or 'no answer in time'}") from error
        finally:
            if self.observe is not None:
                self.observe(*asked(method, path), status)
        if not 200 <= status <= 299:
            raise _refusal(status, content, f"{method} {path}")
        self.clock.told(response.headers.get("Date"), asked_at)
        return content


def _refusal(status: int, content: bytes, what: str) -> ApiError:
    try:
        answer = json.loads(content)
        return ApiError(status, answer.get("reason") or "", answer.get("message") or what, answer.get("details"))
    except (ValueError, AttributeError):
        return ApiError(status, "", f"{what}: HTTP {status}: {content[:200].decode(errors='replace')}")


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def asked(method: str, path: str) -> tuple[str, str]:
    """Verb and resource (`pods`, `pods/log`) of a request, in RBAC's words."""
    parts = path.strip("/").split("/")
    parts = parts[2 if parts[0] == "api" else 3 :]
    if not parts:
        return "get", "discovery"
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join(parts[::2])
    return _VERBS.get(method) or ("get" if len(parts) > 1 else "list"), resource


def job_path(namespace: str, name: str, subresource: str = "") -> str:
    return f"{JOBS}/namespaces/{namespace}/{PLURAL}/{name}" + (f"/{subresource}" if subresource else "")


def core_path(namespace: str, plural: str, name: str = "", subresource: str = "") -> str:
    return "/".join(part for part in (CORE, "namespaces", namespace, plural, name, subresource) if part)
