"""`python -m dev`: the embedded cluster by hand."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dev import build, caches, cluster, images, prerequisites
from dev.golang import GoMissingError
from dev.instance import Instance, InstanceError, Level, load
from dev.paths import cache, instances
from dev.processes import ProcessError, Processes

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()

Name = Annotated[str, typer.Option("--instance", "-i", help="Which instance: several can stand side by side.")]
State = Annotated[
    Path | None,
    typer.Option("--state", envvar="EVERSTEP_STATE", help="Its state directory, if not below the cache directory."),
]


@app.command()
def up(
    instance: Name = "dev",
    level: Annotated[Level, typer.Option(help="api: no nodes, no root needed; full: runs pods.")] = Level.full,
    s3: Annotated[bool, typer.Option(help="Start an S3 server beside it.")] = True,
    state: State = None,
) -> None:
    """Start an instance and wait until it is ready."""
    started = time.monotonic()
    running = cluster.up(instance, level, s3=s3, state=state)
    console.print(f"{instance} is ready at {running.server} after {time.monotonic() - started:.1f} s", highlight=False)
    console.print(f'  eval "$({shlex.join(invocation("env", instance, state))})"', highlight=False, soft_wrap=True)


@app.command()
def down(instance: Name = "dev", state: State = None) -> None:
    """Stop an instance and remove everything that it made, except caches."""
    started = time.monotonic()
    if cluster.down(instance, state=state):
        console.print(f"{instance} is gone after {time.monotonic() - started:.1f} s", highlight=False)
    else:
        console.print(f"there is no instance {instance!r}")


@app.command()
def status(state: State = None) -> None:
    """List the instances and their daemons."""
    names = sorted(path.parent.name for path in instances().glob("*/instance.json"))
    found = [each for name in names if (each := load(name))]
    if state and (given := load("dev", state)):
        found.append(given)
    for each in found:
        show(each)
    if not found:
        console.print("no instance is up")


def show(instance: Instance) -> None:
    """One line a fact, whatever the width of the terminal: paths can be copied, and lines can be searched."""
    processes = Processes(instance.processes)
    alive = {name: processes.alive(name) for name in processes.names()}
    facts = {
        "address": instance.server,
        "runs": " ".join(name for name, runs in alive.items() if runs),
        "ended": " ".join(name for name, runs in alive.items() if not runs),
        "state": str(instance.state),
    }
    state = "ready" if cluster.healthy(instance) else "not ready"
    console.print(f"{instance.name}: level {instance.level}, {state}", highlight=False)
    for name, value in facts.items():
        if value:
            line = f"  {name:8} {value}"
            folded = textwrap.fill(line, console.width, subsequent_indent=" " * 11, break_long_words=False)
            console.print(folded, highlight=False, soft_wrap=True)


@app.command()
def env(instance: Name = "dev", state: State = None) -> None:
    """Print shell exports: KUBECONFIG, the S3 server's address and credentials, a PATH with the built programs."""
    running = required(instance, state)
    variables = {"KUBECONFIG": str(running.kubeconfig), "EVERSTEP_AUDIT_LOG": str(running.audit_log)}
    if running.s3:
        variables |= cluster.s3_server(running).endpoint.environment()
    variables["PATH"] = build.ensure().search_path()
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def kubectl(context: typer.Context, instance: Name = "dev", state: State = None) -> None:
    """Run kubectl as the instance's administrator: `python -m dev kubectl -i NAME -- get pods -A`."""
    running = required(instance, state)
    program = build.ensure().path("kubectl")
    sys.stdout.flush()
    os.execv(program, [program, f"--kubeconfig={running.kubeconfig}", *context.args])


@app.command("bucket")
def make_bucket(
    name: str,
    versioned: Annotated[bool, typer.Option(help="Keep every version of an object.")] = False,
    instance: Name = "dev",
    state: State = None,
) -> None:
    """Create a bucket on the instance's S3 server, if it is not there."""
    cluster.s3_server(required(instance, state)).endpoint.make_bucket(name, versioned=versioned)


@app.command("images")
def build_images(
    which: Annotated[list[str] | None, typer.Argument(help="operator, trainer, tests; default: the first two.")] = None,
    load_them: Annotated[bool, typer.Option("--load/--no-load", help="Load them into the instance.")] = True,
    instance: Name = "dev",
    state: State = None,
) -> None:
    """Build the project's images, and load what is new into an instance that runs."""
    known = {each.short_name: each for each in images.IMAGES}
    if unknown := sorted(set(which or ()) - set(known)):
        raise InstanceError(f"there is no image {', '.join(unknown)}: the images are {', '.join(known)}")
    chosen = [each for name, each in known.items() if name in (which or ("operator", "trainer"))]
    if load_them:
        images.load(required(instance, state), chosen, console=console)
    else:
        images.build(chosen, console=console)


@app.command("build")
def build_programs() -> None:
    """Build the cluster's programs into the cache, where they are not there yet."""
    for directory in build.ensure(console=console).directories.values():
        console.print(str(directory), highlight=False, soft_wrap=True)


@app.command()
def prune() -> None:
    """Free the disk of caches that nothing uses now: old builds, old layers, images of instances that are down."""
    before = shutil.disk_usage(cache()).free
    caches.prune()
    console.print(f"freed {(shutil.disk_usage(cache()).free - before) / 1e9:.1f} GB", highlight=False)


def required(name: str, state: Path | None) -> Instance:
    found = load(name, state)
    if found is None:
        raise InstanceError(f"there is no instance {name!r}: start it with {shlex.join(invocation('up', name, state))}")
    return found


def invocation(command: str, name: str, state: Path | None) -> list[str]:
    """The words that run a command on this instance."""
    where = ["--state", str(state)] if state else []
    return [sys.executable, "-m", "dev", command, "--instance", name, *where]


def main() -> None:
    """Run the command line; known failures end with their message and code 1, without a traceback."""
    try:
        app()
    except (build.BuildError, GoMissingError, InstanceError, ProcessError, prerequisites.MissingError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
