"""Builds programs from pinned Go modules, the cluster's from those in `dev/tools`, once for each content.

A finished build stands in `bin/{toolset}-{digest}/` of the cache and appears there by one rename, so it is either
complete or absent. The digest covers all that decides the result: module files, sums, sources, flags and Go itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dev import golang
from dev.paths import TOOLS, cache

KUBERNETES = "1.36.3"


class BuildError(RuntimeError):
    """A build failed; the message ends with what Go said."""


@dataclass(frozen=True)
class Toolset:
    """One Go module whose programs are built together."""

    name: str
    programs: tuple[str, ...]
    minutes: int  # cold, on two cores: what a waiting person is told
    linker: str = "-s -w"
    renames: tuple[tuple[str, str], ...] = ()
    own_program: str | None = None  # set where the module's own main package is what is built
    place: Path | None = None  # of a module that is not the cluster's

    @property
    def directory(self) -> Path:
        return self.place or TOOLS / self.name

    def arguments(self, output: Path) -> list[str]:
        """Go's arguments. Keep them as they are: each change costs everyone the build again."""
        common = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-v", "-ldflags", self.linker]
        if self.own_program:
            return ["build", *common, "-o", str(output / self.own_program), "."]
        return ["install", *common, "tool"]


def _version_flags(version: str) -> str:
    """Without these kubectl and Helm cannot parse the version that the API server reports."""
    major, minor, _ = version.split(".")
    server = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    client = {key: server[key] for key in ("gitVersion", "gitMajor", "gitMinor")}
    stamped = [f"-X k8s.io/component-base/version.{key}={value}" for key, value in server.items()]
    stamped += [f"-X k8s.io/client-go/pkg/version.{key}={value}" for key, value in client.items()]
    return " ".join(["-s -w", *stamped])


TOOLSETS = (
    Toolset(
        "kubernetes",
        ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"),
        minutes=7,
        linker=_version_flags(KUBERNETES),
    ),
    Toolset(
        "node",
        (
            *("bridge", "host-local", "loopback", "portmap"),
            *("containerd", "containerd-shim-runc-v2", "ctr", "etcd", "helm"),
        ),
        minutes=4,
        renames=(("server", "etcd"),),
    ),
    Toolset("dns", ("coredns",), minutes=1, own_program="coredns"),
)


@dataclass(frozen=True)
class Binaries:
    """The directories of the finished builds."""

    directories: dict[str, Path]

    def path(self, program: str) -> str:
        """Absolute path of one program."""
        for directory in self.directories.values():
            if (directory / program).exists():
                return str(directory / program)
        raise BuildError(f"no built program is named {program!r}")

    def search_path(self) -> str:
        """A value for PATH: the built programs first, then the system's, sbin included."""
        system = os.environ.get("PATH", "/usr/bin:/bin")
        return ":".join([*map(str, self.directories.values()), system, "/usr/local/sbin:/usr/sbin:/sbin"])


def digest(toolset: Toolset, go_version: str) -> str:
    """Hash of everything that decides what this build makes."""
    hashed = hashlib.sha256()
    for path in sorted([*toolset.directory.glob("go.*"), *toolset.directory.glob("*.go")]):
        hashed.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        hashed.update(path.read_bytes())
    words = [go_version, os.uname().machine, *toolset.arguments(Path()), repr(toolset.renames)]
    hashed.update("\0".join(words).encode())
    return hashed.hexdigest()[:16]


def ensure(toolsets: Sequence[Toolset] | None = None, *, console: Console | None = None) -> Binaries:
    """Their programs, by default the cluster's, built where the cache does not have them yet.

    One builder at a time; others wait for it.
    """
    console = console or Console(stderr=True)
    found = targets(toolsets)
    missing = [each for each in found if not found[each].is_dir()]
    if missing:
        directory().mkdir(parents=True, exist_ok=True)
        with locked(console):
            for each in missing:
                if not found[each].is_dir():
                    _build(each, found[each], golang.go(), console)
    return Binaries({each.name: path for each, path in found.items()})


def targets(toolsets: Sequence[Toolset] | None = None) -> dict[Toolset, Path]:
    """Where each set's build stands, or will."""
    go_version = golang.version(golang.go()) or "unknown"
    chosen = TOOLSETS if toolsets is None else toolsets
    return {each: directory() / f"{each.name}-{digest(each, go_version)}" for each in chosen}


def directory() -> Path:
    """Where the finished builds stand."""
    return cache() / "bin"


@contextmanager
def locked(console: Console) -> Iterator[None]:
    """One builder at a time."""
    with (directory() / ".lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another process is building the cluster's programs: waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _build(toolset: Toolset, target: Path, go: str, console: Console) -> None:
    staging = target.with_name(f".{target.name}.staging")  # the lock is held: no one else uses it
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOBIN": str(staging),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    console.print(
        f"building {toolset.name} ({', '.join(toolset.programs)}): "
        f"up to {toolset.minutes} min on two cores the first time"
    )
    started = time.monotonic()
    process = subprocess.Popen(
        [go, *toolset.arguments(staging)],
        cwd=toolset.directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = _follow(process, toolset.name, console)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        words = "\n".join(line for line in lines if not line.startswith("go: downloading"))[-4000:]
        raise BuildError(f"go {toolset.arguments(staging)[0]} in {toolset.directory} failed:\n{words}")
    for old, new in toolset.renames:
        (staging / old).rename(staging / new)
    absent = [program for program in toolset.programs if not (staging / program).exists()]
    if absent:
        raise BuildError(f"{toolset.directory}/go.mod does not build {', '.join(absent)}")
    staging.rename(target)
    console.print(f"built {toolset.name} in {time.monotonic() - started:.0f} s")


def _follow(process: subprocess.Popen[str], name: str, console: Console) -> list[str]:
    """Show what Go is at until it ends; a line every 30 s where there is no terminal."""
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=_collect, args=(process.stderr, lines), daemon=True)
    reader.start()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        started = said = time.monotonic()
        while process.poll() is None:
            fetched = sum(line.startswith("go: downloading") for line in lines)
            doing = f"{name}: {fetched} modules fetched, {len(lines) - fetched} packages compiled"
            progress.update(task, description=doing)
            if not console.is_terminal and time.monotonic() - said >= 30:
                said = time.monotonic()
                console.print(f"{doing}, {said - started:.0f} s")
            time.sleep(0.25)
    reader.join()
    return lines


def _collect(source: Iterable[str], lines: list[str]) -> None:
    lines.extend(line.rstrip() for line in source)  # list.extend appends as the generator yields
