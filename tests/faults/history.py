"""What stands in a versioned bucket about one job: every version of its register, every key that it ever had."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import boto3
from botocore.config import Config

Json = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """One document of the register, and when the store took it."""

    document: Json
    at: datetime


@dataclass
class Key:
    """One object's life below the root: the contents that it had by ETag, when it came, when it was deleted."""

    etags: list[str] = field(default_factory=list)
    created: datetime | None = None
    deleted: datetime | None = None
    latest: str | None = None
    """The version that stands now; None where it is deleted."""


@dataclass
class History:
    versions: list[Version]
    """By generation."""
    keys: dict[str, Key]
    """By key below the root, the register left out."""
    bodies: dict[str, bytes]
    """manifest.json of every save that has or had one, by key; and every present file of live entries."""


def read_history(bucket: str, prefix: str, endpoint: str | None = None) -> History:
    """Credentials and endpoint come from the AWS_… variables."""
    client = boto3.client(
        "s3",
        endpoint_url=endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        config=Config(s3={"addressing_style": "path"}),
    )
    root = prefix.rstrip("/") + "/"
    versions: list[Version] = []
    keys: dict[str, Key] = {}
    bodies: dict[str, bytes] = {}

    def get(key: str, version: str) -> bytes:
        return bytes(client.get_object(Bucket=bucket, Key=root + key, VersionId=version)["Body"].read())

    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=root):
        for item in page.get("Versions", []):
            key = item["Key"].removeprefix(root)
            if key == "catalog.json":
                versions.append(Version(json.loads(get(key, item["VersionId"])), item["LastModified"]))
                continue
            life = keys.setdefault(key, Key())
            life.etags.append(item["ETag"])
            life.created = min(filter(None, (life.created, item["LastModified"])))
            if item["IsLatest"]:
                life.latest = item["VersionId"]
            if key.endswith("/manifest.json"):
                bodies[key] = get(key, item["VersionId"])
        for marker in page.get("DeleteMarkers", []):
            life = keys.setdefault(marker["Key"].removeprefix(root), Key())
            life.deleted = min(filter(None, (life.deleted, marker["LastModified"])))
    versions.sort(key=lambda version: version.document["generation"])
    for entry in versions[-1].document["checkpoints"] if versions else []:
        for file in json.loads(bodies.get(f"{entry['location']}/manifest.json", b"{}")).get("files", []):
            key = f"{entry['location']}/{file['name']}"
            if (latest := keys.get(key, Key()).latest) is not None:
                bodies[key] = get(key, latest)
    return History(versions, keys, bodies)
