"""Writes OCI images as bytes, without a builder: enough for an image of one file, and to hand images to containerd."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def one_file_image(program: Path, target: str, entrypoint: list[str], machine: str) -> dict[str, bytes]:
    """Blobs by digest of an image that holds one executable, its manifest last. The bytes are reproducible."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        entry = tarfile.TarInfo(target.lstrip("/"))
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as content:
            layer.addfile(entry, content)
    rootfs = buffer.getvalue()
    config = json.dumps(
        {
            "architecture": ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {"Entrypoint": entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [sha256(rootfs)]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(rootfs, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()
    return {sha256(blob): blob for blob in (rootfs, config, manifest)}


def descriptor(blob: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(blob), "size": len(blob)}


def index(name: str, manifest: bytes) -> bytes:
    """The index.json of an archive with one image, under the full name that containerd will know it by."""
    entry = descriptor(manifest, MANIFEST) | {"annotations": {"io.containerd.image.name": name}}
    return json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()


def write_archive(output: IO[bytes], index_json: bytes, blobs: Mapping[str, bytes | Path]) -> None:
    """Write an OCI archive: these blobs (bytes, or files to copy from) and an index."""
    with tarfile.open(fileobj=output, mode="w|", bufsize=1 << 20) as archive:
        small = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index_json}
        for name, content in [*small.items(), *((blob_name(digest), blob) for digest, blob in blobs.items())]:
            entry = tarfile.TarInfo(name)
            if isinstance(content, Path):
                entry.size = content.stat().st_size
                with content.open("rb") as source:
                    archive.addfile(entry, source)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"
