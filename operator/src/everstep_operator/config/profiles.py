"""Which storage a namespace's jobs may use: without a profile that allows it, the operator touches no storage.

A TrainingJob names an endpoint, a bucket and a prefix. The operator must not send its credentials to any host that a
tenant writes there, nor read or delete another tenant's data, so an administrator binds them to namespaces in a file:

    profiles:
      - name: team-a
        namespaces: [team-a, "team-a-*"]          # names, or patterns with *
        endpoint: https://s3.example.org          # absent: AWS
        region: eu-central-1
        buckets:
          - name: training
            prefixes: ["teams/{namespace}"]       # absent: the whole bucket
        credentials: {directory: profiles/team-a} # absent: the operator's own (workload) identity
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from everstep_operator.api.checkpoint import Endpoint, Region
from everstep_operator.api.common import DnsLabel

ACCESS_KEY_FILE = "accessKey"
SECRET_KEY_FILE = "secretKey"  # noqa: S105  (a file's name)
SESSION_TOKEN_FILE = "sessionToken"  # noqa: S105

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAMESPACE = "{namespace}"


class ProfilesError(ValueError):
    """The profiles file, or a profile's credentials, cannot be read; the text says where and why."""


class Refusal(StrEnum):
    """Why a location is refused; serves as a condition's reason."""

    NO_PROFILES = "NoStorageProfiles"
    NAMESPACE = "NamespaceHasNoStorageProfile"
    ENDPOINT = "StorageEndpointNotAllowed"
    LOCATION = "StorageLocationNotAllowed"
    MALFORMED = "StorageUriMalformed"


class StorageRefusedError(Exception):
    """No profile lets this namespace use this location; the text says what would be allowed."""

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class KeyPair:
    """Static S3 credentials. The secret never shows in a repr."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"KeyPair(access_key={self.access_key!r}, secret_key=…)"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Credentials(_Model):
    """Static credentials as files, so that a rotated Secret is picked up without a restart."""

    directory: Path
    """Holds the files accessKey, secretKey and, if there is one, sessionToken."""

    def read(self) -> KeyPair:
        """Reads the files anew. Raises ProfilesError."""
        token = self.directory / SESSION_TOKEN_FILE
        return KeyPair(
            self._file(ACCESS_KEY_FILE),
            self._file(SECRET_KEY_FILE),
            self._file(SESSION_TOKEN_FILE) if token.exists() else None,
        )

    def _file(self, name: str) -> str:
        path = self.directory / name
        try:
            text = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError as error:
            raise ProfilesError(
                f"the operator has no file {path}: the Secret of this storage profile is missing, or lacks the key"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ProfilesError(f"credentials file {path} cannot be read: {error}") from error
        if not text:
            raise ProfilesError(f"credentials file {path} is empty: set this key in its Secret")
        return text


Prefix = Annotated[str, StringConstraints(max_length=1024)]


class Bucket(_Model):
    """A bucket, or parts of one."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    """The bucket's name."""
    prefixes: Annotated[tuple[Prefix, ...], Field(min_length=1)] = ("",)
    """Prefixes, by whole path segments, that jobs may use; `{namespace}` stands for the job's namespace. Absent: the
    whole bucket."""

    @field_validator("prefixes")
    @classmethod
    def _trim(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        trimmed = tuple(prefix.strip("/") for prefix in value)
        for prefix in trimmed:
            if prefix and not _plain(prefix):
                raise ValueError(f"{prefix!r} has empty, `.` or `..` segments")
        return trimmed

    def allows(self, namespace: str, bucket: str, prefix: str) -> bool:
        """Whether the prefix is one of ours, or lies under one."""
        mine = (allowed.replace(_NAMESPACE, namespace) for allowed in self.prefixes)
        return bucket == self.name and any(not p or prefix == p or prefix.startswith(f"{p}/") for p in mine)

    def uris(self, namespace: str) -> Iterator[str]:
        """What it allows, as URIs."""
        for prefix in self.prefixes:
            yield f"s3://{self.name}/{prefix.replace(_NAMESPACE, namespace)}".rstrip("/")


NamespacePattern = Annotated[str, StringConstraints(max_length=63, pattern=r"^[a-z0-9*]([-a-z0-9*]*[a-z0-9*])?$")]


class Profile(_Model):
    """One endpoint with the buckets and prefixes that some namespaces may use there."""

    name: DnsLabel
    """Name of the profile, for messages."""
    namespaces: Annotated[tuple[NamespacePattern, ...], Field(min_length=1)]
    """Namespaces whose jobs may use it: names, or patterns with `*`."""
    endpoint: Endpoint | None = None
    """URL of the S3 server; absent: AWS."""
    region: Region | None = None
    """Region; it takes precedence over the job's."""
    buckets: Annotated[tuple[Bucket, ...], Field(min_length=1)]
    """What may be used there."""
    credentials: Credentials | None = None
    """Absent: the operator's own identity (workload identity, instance role)."""

    def binds(self, namespace: str) -> bool:
        """Whether it is for that namespace."""
        return any(fnmatchcase(namespace, pattern) for pattern in self.namespaces)


@dataclass(frozen=True)
class Location:
    """A bucket and a prefix without slashes at its ends."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Splits `s3://bucket/prefix`. Raises StorageRefusedError for anything else."""
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if scheme != "s3" or not bucket or (prefix and not _plain(prefix)):
            raise StorageRefusedError(
                Refusal.MALFORMED,
                f"{uri!r} is no location of the form s3://bucket/prefix without empty, `.` or `..` segments",
            )
        return cls(bucket, prefix)


@dataclass(frozen=True)
class StorageAccess:
    """How the operator reaches a location that a profile allows."""

    profile: str
    endpoint: str | None
    region: str | None
    location: Location
    credentials: Credentials | None


class Profiles(_Model):
    """All bindings. An empty list refuses everything."""

    profiles: tuple[Profile, ...] = ()
    """Profiles; the first that matches is used."""

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [profile.name for profile in self.profiles]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"profile names must be unique: {', '.join(twice)}")
        return self

    def access(self, namespace: str, uri: str, endpoint: str | None = None, region: str | None = None) -> StorageAccess:
        """The access that `namespace` has to `uri` at `endpoint`. Raises StorageRefusedError.

        The refusal names only what is bound to this namespace, never other tenants' storage.
        """
        location = Location.parse(uri)
        bound = self._bound(namespace)
        wanted = _normal(endpoint)
        there = [profile for profile in bound if _normal(profile.endpoint) == wanted]
        if not there:
            raise StorageRefusedError(
                Refusal.ENDPOINT,
                f"endpoint {endpoint or 'of AWS'} is not allowed for namespace {namespace}; allowed: "
                + _listed(profile.endpoint or "AWS (no endpoint)" for profile in bound),
            )
        for profile in there:
            if any(bucket.allows(namespace, location.bucket, location.prefix) for bucket in profile.buckets):
                return StorageAccess(
                    profile.name, profile.endpoint, profile.region or region, location, profile.credentials
                )
        raise StorageRefusedError(
            Refusal.LOCATION,
            f"{uri} is not allowed for namespace {namespace}; allowed: "
            + _listed(found for profile in there for bucket in profile.buckets for found in bucket.uris(namespace)),
        )

    def _bound(self, namespace: str) -> list[Profile]:
        if not self.profiles:
            raise StorageRefusedError(
                Refusal.NO_PROFILES,
                "the operator has no storage profiles, so no job may use any storage; "
                "an administrator adds one under storageProfiles in the chart's values",
            )
        bound = [profile for profile in self.profiles if profile.binds(namespace)]
        if not bound:
            raise StorageRefusedError(
                Refusal.NAMESPACE,
                f"no storage profile is bound to namespace {namespace}; "
                "an administrator adds the namespace to one under storageProfiles in the chart's values",
            )
        return bound


class ProfilesFile:
    """The profiles file, read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._profiles = Profiles()

    def current(self) -> Profiles:
        """The profiles now; a file that does not exist means none. Raises ProfilesError."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._version, self._profiles = None, Profiles()
            return self._profiles
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if version != self._version:
            self._profiles = load_profiles(self._path)
            self._version = version
        return self._profiles


def load_profiles(path: Path) -> Profiles:
    """Reads a profiles file; relative credential directories are beside it. Raises ProfilesError."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        profiles = Profiles.model_validate(data or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfilesError(f"storage profiles {path} cannot be read: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise ProfilesError(f"storage profiles {path} are not valid: {'; '.join(problems)}") from error
    return Profiles(profiles=tuple(_anchored(profile, path.parent) for profile in profiles.profiles))


def _anchored(profile: Profile, base: Path) -> Profile:
    if profile.credentials is None:
        return profile
    anchored = Credentials(directory=base / profile.credentials.directory)
    return profile.model_copy(update={"credentials": anchored})


def _plain(prefix: str) -> bool:
    return all(segment not in ("", ".", "..") for segment in prefix.split("/"))


_ENDPOINT: TypeAdapter[str] = TypeAdapter(Endpoint)


def _normal(endpoint: str | None) -> tuple[str, str, int] | None:
    """Scheme, host and port, so that spellings of one server compare equal."""
    if endpoint is None:
        return None
    try:
        parts = urlsplit(_ENDPOINT.validate_python(endpoint))
        port = parts.port
    except ValueError as error:
        raise StorageRefusedError(
            Refusal.ENDPOINT, f"endpoint {endpoint!r} is no URL of the form https://host:port"
        ) from error
    return parts.scheme, (parts.hostname or "").rstrip("."), port or _DEFAULT_PORTS[parts.scheme]


def _listed(items: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(items))
