"""Builds the project's images from their Dockerfiles and loads them into an instance, each only when it has changed.

No registry is needed: the base image, which the Dockerfiles know by its public name, is made here from Debian's
packages. An image is known by a hash of all its inputs. Layers that containerd has are not copied again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from dev import base_image, oci, prerequisites
from dev import build as binaries
from dev.buildah import Buildah
from dev.cluster import file_locked
from dev.containerd import Containerd
from dev.instance import Instance, InstanceError
from dev.paths import REPOSITORY, cache


@dataclass(frozen=True)
class Image:
    """One Dockerfile, whose context is the repository. Paths are relative to it."""

    name: str
    dockerfile: str
    inputs: tuple[str, ...]  # what it copies from its context: files and directories
    arguments: tuple[tuple[str, str], ...] = ()
    parent: str = base_image.NAME  # the local image that it starts from

    @property
    def short_name(self) -> str:
        return self.name.rsplit("/", 1)[1].partition(":")[0]


PACKAGE = ("pyproject.toml", "README.md", "LICENSE", ".dockerignore", "operator/src", "trainer_image/src")
OPERATOR = Image("docker.io/everstep/operator:dev", "operator/Dockerfile", PACKAGE)
TRAINER = Image(
    "docker.io/everstep/trainer:dev",
    "trainer_image/Dockerfile",
    (*PACKAGE, "uv.lock", "trainer_image/requirements.py"),
)
# A trainer without torch, for the operator's tests.
TESTS = Image("docker.io/everstep/tests:dev", "tests/trainers/Dockerfile", (*PACKAGE, "tests/trainers/lite.py"))
IMAGES = (OPERATOR, TRAINER, TESTS)
SCARCE = 25_000_000_000  # bytes free on the disk, below which layers of earlier builds are given up


@dataclass(frozen=True)
class Built:
    """A finished build: the hash of what it was made from, and the image's id in the builder's storage."""

    inputs: str
    image_id: str
    manifest: str = ""  # digest, known once it was exported


def load(
    instance: Instance, images: Sequence[Image] = (OPERATOR, TRAINER), *, console: Console | None = None
) -> list[str]:
    """Build what has changed and hand it to a full instance; returns the names of the images that it did not have."""
    console = console or Console(stderr=True)
    build(images, console=console)
    return import_built(images, Containerd(instance, binaries.ensure(console=console)), console)


def build(images: Sequence[Image], *, root: Path = REPOSITORY, console: Console | None = None) -> dict[str, Built]:
    """Build what has changed, parents first; `images` must be in that order. Returns the builds by image name."""
    console = console or Console(stderr=True)
    prerequisites.require_root("building images")
    prerequisites.ensure(prerequisites.IMAGES, console=console)
    buildah = Buildah(cache() / "images")
    with file_locked(buildah.directory / ".lock"):
        if shutil.disk_usage(buildah.directory).free < SCARCE:
            buildah.prune()
        built = {base_image.NAME: Built("", base_image.ensure(buildah, console))}
        for image in images:
            built[image.name] = _build_one(image, built, buildah, root, console)
    del built[base_image.NAME]
    return built


def _build_one(image: Image, built: dict[str, Built], buildah: Buildah, root: Path, console: Console) -> Built:
    if image.parent not in built:
        raise InstanceError(f"image {image.short_name} starts from {image.parent}, which is not among those to build")
    if not (root / image.dockerfile).exists():
        raise InstanceError(f"image {image.short_name}: there is no {image.dockerfile}")
    inputs = digest(image, root, built[image.parent].image_id)
    known = recorded(image)
    if known and known.inputs == inputs and buildah.image_id(image.name) == known.image_id:
        return known
    console.print(f"building {image.name}")
    started = time.monotonic()
    buildah.build(image.name, root / image.dockerfile, root, dict(image.arguments))
    image_id = buildah.image_id(image.name)
    if image_id is None:
        raise InstanceError(f"the builder made no image {image.name}")
    manifest = known.manifest if known and known.image_id == image_id else ""
    console.print(f"built {image.name} in {time.monotonic() - started:.0f} s")
    return record(image, Built(inputs, image_id, manifest))


def import_built(images: Sequence[Image], containerd: Containerd, console: Console) -> list[str]:
    """Hand built images to containerd; returns the names of those that it did not have."""
    buildah = Buildah(cache() / "images")
    loaded: list[str] = []
    with file_locked(buildah.directory / ".lock"):
        present = containerd.images()
        for image in images:
            known = recorded(image)
            if known is None:
                raise InstanceError(f"image {image.name} was not built")
            if known.manifest and present.get(image.name) == known.manifest:
                continue
            started = time.monotonic()
            copied = _transfer(image, known, buildah, containerd)
            took = time.monotonic() - started
            console.print(f"loaded {image.name}: {copied / 1e6:.0f} MB in {took:.0f} s", highlight=False)
            loaded.append(image.name)
    return loaded


def _transfer(image: Image, known: Built, buildah: Buildah, containerd: Containerd) -> int:
    """Export an image and import it, without the blobs that containerd has. Returns the bytes that were copied."""
    with tempfile.TemporaryDirectory(dir=buildah.directory) as place:
        layout = Path(place)
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for blob in containerd.blobs.iterdir() if containerd.blobs.exists() else ():
            os.link(blob, blobs / blob.name)  # the builder does not write again what it finds
        buildah.export(image.name, layout)
        digest_ = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        manifest = (layout / oci.blob_name(digest_)).read_bytes()
        parts = json.loads(manifest)
        needed = [digest_, parts["config"]["digest"], *(layer["digest"] for layer in parts["layers"])]
        missing = {each: layout / oci.blob_name(each) for each in needed if not containerd.has_blob(each)}
        missing[digest_] = layout / oci.blob_name(digest_)
        with containerd.importing() as pipe:
            oci.write_archive(pipe, oci.index(image.name, manifest), missing)
        record(image, Built(known.inputs, known.image_id, digest_))
        return sum(path.stat().st_size for path in missing.values())


def digest(image: Image, root: Path, parent_id: str) -> str:
    """Hash of everything that decides what an image holds, except what its Dockerfile fetches."""
    hashed = hashlib.sha256(f"{parent_id}\0{asdict(image)}\0".encode())
    for name in (image.dockerfile, *image.inputs):
        path = root / name
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" not in file.parts and file.exists():
                mode = file.stat().st_mode & 0o111
                hashed.update(f"{file.relative_to(root)}\0{mode}\0{file.stat().st_size}\0".encode())
                hashed.update(file.read_bytes())
    return hashed.hexdigest()


def recorded(image: Image) -> Built | None:
    """The last build of an image, as it was noted in the cache."""
    try:
        return Built(**json.loads(_note(image).read_text()))
    except FileNotFoundError:
        return None


def record(image: Image, built: Built) -> Built:
    _note(image).write_text(json.dumps(asdict(built)))
    return built


def _note(image: Image) -> Path:
    return cache() / "images" / f"{image.name.replace('/', '_').replace(':', '_')}.json"
