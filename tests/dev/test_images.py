"""Images are built and loaded only when they have changed, and run."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dev import build, cluster, images
from dev.buildah import Buildah
from dev.containerd import Containerd
from dev.images import Image
from dev.instance import Instance, Level
from dev.paths import cache

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building images needs root")

PROBE = Image("docker.io/everstep/probe:dev", "Dockerfile", ("words.txt",), (("EXTRA", "argument"),))
DOCKERFILE = """ARG BASE_IMAGE=docker.io/library/python:3.13-slim-trixie
FROM ${BASE_IMAGE}
ARG EXTRA
RUN python --version && pip --version && echo "$EXTRA" >/extra
COPY words.txt /
USER 65532
ENTRYPOINT ["cat", "/extra", "/words.txt"]
"""


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "words.txt").write_text("first\n")
    yield tmp_path
    Buildah(cache() / "images").run("rmi", "--force", PROBE.name, check=False)
    images._note(PROBE).unlink(missing_ok=True)


@pytest.fixture
def instance() -> Iterator[Instance]:
    yield cluster.up("imaging", Level.full, s3=False)
    cluster.down("imaging")


def kubectl(instance: Instance, *arguments: str) -> str:
    command = [build.ensure().path("kubectl"), f"--kubeconfig={instance.kubeconfig}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(instance: Instance, name: str) -> str:
    kubectl(instance, "run", name, f"--image={PROBE.name}", "--image-pull-policy=Never", "--restart=Never")
    kubectl(instance, "wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    return kubectl(instance, "logs", name)


def load(instance: Instance) -> list[str]:
    return images.import_built([PROBE], Containerd(instance, build.ensure()), Console(quiet=True))


def test_only_what_changed_is_built_and_loaded_and_it_runs(context: Path, instance: Instance) -> None:
    first = images.build([PROBE], root=context)[PROBE.name]
    load(instance)
    assert run(instance, "first") == "argument\nfirst\n"
    assert images.build([PROBE], root=context)[PROBE.name].image_id == first.image_id
    assert load(instance) == []

    (context / "words.txt").write_text("second\n")
    second = images.build([PROBE], root=context)[PROBE.name]
    assert second.image_id != first.image_id
    blobs = Containerd(instance, build.ensure()).blobs
    had = set(blobs.iterdir())
    assert load(instance) == [PROBE.name]
    assert sum(blob.stat().st_size for blob in set(blobs.iterdir()) - had) < 100_000
    assert run(instance, "second") == "argument\nsecond\n"

    cluster.down(instance.name)
    again = cluster.up(instance.name, Level.full, s3=False)
    assert load(again) == []
    assert run(again, "third") == "argument\nsecond\n"


def test_a_build_argument_is_an_input(context: Path) -> None:
    other = dataclasses.replace(PROBE, arguments=(("EXTRA", "other"),))
    assert images.digest(PROBE, context, "parent") != images.digest(other, context, "parent")
    assert images.digest(PROBE, context, "parent") != images.digest(PROBE, context, "newer parent")
    assert images.digest(PROBE, context, "parent") == images.digest(PROBE, context, "parent")


def test_a_failing_step_shows_what_it_said(context: Path) -> None:
    (context / "Dockerfile").write_text(DOCKERFILE.replace("python --version", "echo broken step >&2 && false"))
    with pytest.raises(RuntimeError, match="broken step"):
        images.build([PROBE], root=context)
