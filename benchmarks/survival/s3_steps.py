"""Checkpoints as folders `step-N` in a bucket, by s3torchconnector, and which of them is the latest."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

import boto3
from s3torchconnector import S3ClientConfig
from s3torchconnector._s3client import S3Client
from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

REGION = "us-east-1"
_METADATA = re.compile(r"/step-(\d+)/\.metadata$")


class S3Steps:
    def __init__(self, root: str, endpoint: str | None = None) -> None:
        """`endpoint`: that of the environment by default."""
        self._root = root
        self._endpoint = endpoint or os.environ["AWS_ENDPOINT_URL_S3"]
        self._bucket, self._prefix = urlsplit(root).netloc, urlsplit(root).path.strip("/")

    def writer(self, step: int) -> Any:
        return self._directed(S3StorageWriter(REGION, f"{self._root}/step-{step}/", _config()))

    def reader(self, step: int) -> Any:
        return self._directed(S3StorageReader(REGION, f"{self._root}/step-{step}/", _config()))

    def whole(self) -> list[int]:
        """Steps that have their metadata, ascending."""
        found = (_METADATA.search(f"/{key}") for key in self.keys())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int:
        return max(self.whole(), default=0)

    def keys(self, below: str = "") -> list[str]:
        pages = (
            self._client()
            .get_paginator("list_objects_v2")
            .paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/{below}")
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def purge(self, keep: int) -> None:
        """Remove all but the newest."""
        for step in self.whole()[:-keep]:
            objects: Any = [{"Key": key} for key in self.keys(f"step-{step}/")]
            self._client().delete_objects(Bucket=self._bucket, Delete={"Objects": objects})

    def _client(self) -> Any:
        # not boto3's own session: that keeps the credentials of the first server
        return boto3.Session().client("s3", endpoint_url=self._endpoint, region_name=REGION)

    def _directed(self, storage: Any) -> Any:
        """Neither takes an endpoint, or paths instead of names of hosts."""
        storage.fs._client = S3Client(REGION, endpoint=self._endpoint, s3client_config=_config())
        return storage


def _config() -> Any:
    return S3ClientConfig(force_path_style=True)
