"""JobSet's controller as its release builds it, beside the embedded cluster's own daemons.

Its program, CRD and webhooks come from its Go module, which `tools/jobset/go.mod` pins. It runs in the instance's
network, and the API server calls its webhooks there, with a certificate of the instance's own authority.
"""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dev import build, golang
from dev.build import Toolset
from dev.instance import Instance
from dev.namespace import Namespace
from dev.pki import Authority
from dev.processes import Processes
from tests.plugins.cluster import RunningCluster

Json = dict[str, Any]
MODULE = "sigs.k8s.io/jobset"
PROGRAM = "jobset"
PLACE = Path(__file__).parent / "tools" / "jobset"
TOOLSET = Toolset("jobset", (PROGRAM,), minutes=4, place=PLACE)
WEBHOOK_PORT, HEALTH_PORT = 9443, 8081
# --for=condition is an error where there are no conditions yet.
ESTABLISHED = 'jsonpath={.status.conditions[?(@.type=="Established")].status}=True'
OF_JOBSETS = {"matchExpressions": [{"key": "jobset.sigs.k8s.io/jobset-name", "operator": "Exists"}]}


@contextmanager
def running(cluster: RunningCluster) -> Iterator[str]:
    """The controller at work in a full instance, until the block ends; its version."""
    instance = cluster.instance
    binaries = build.ensure([TOOLSET])
    version, source = module()
    cluster.apply((source / "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml").read_text())
    cluster.kubectl("wait", f"--for={ESTABLISHED}", "crd/jobsets.jobset.x-k8s.io", "--timeout=30s")
    certificates = certificate(instance)
    configuration = instance.state / "jobset.json"
    configuration.write_text(json.dumps(settings(instance, certificates)))
    processes = Processes(instance.processes)
    arguments = [
        f"--config={configuration}",
        f"--kubeconfig={cluster.kubeconfig}",
        f"--health-probe-bind-address=:{HEALTH_PORT}",
        "--metrics-bind-address=0",
    ]
    processes.start(PROGRAM, [binaries.path(PROGRAM), *arguments], prefix=Namespace(instance).prefix)
    try:
        processes.wait(PROGRAM, lambda: ready(instance), seconds=60)
        hooks = webhooks(source, instance)
        cluster.apply(yaml.safe_dump_all(hooks))
        try:
            yield version
        finally:
            for each in hooks:
                cluster.kubectl("delete", each["kind"], each["metadata"]["name"])
    finally:
        processes.stop([PROGRAM])


def module() -> tuple[str, Path]:
    """Version and source of the pinned module, which the build has fetched."""
    command = [golang.go(), "list", "-mod=readonly", "-m", "-json", MODULE]
    found = json.loads(subprocess.run(command, cwd=PLACE, capture_output=True, text=True, check=True).stdout)
    return found["Version"], Path(found["Dir"])


def certificate(instance: Instance) -> Path:
    """The directory of the webhooks' certificate and key."""
    pair = Authority(instance.state / "pki").issue(PROGRAM, PROGRAM, alternatives=[f"IP:{instance.address}"])
    directory = instance.state / "jobset"
    directory.mkdir(exist_ok=True)
    (directory / "tls.crt").write_bytes(pair.certificate.read_bytes())
    (directory / "tls.key").write_bytes(pair.key.read_bytes())
    return directory


def settings(instance: Instance, certificates: Path) -> Json:
    return {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "internalCertManagement": {"enable": False},
        "leaderElection": {"leaderElect": False},
        "webhook": {"host": instance.address, "port": WEBHOOK_PORT, "certDir": str(certificates)},
    }


def webhooks(source: Path, instance: Instance) -> list[Json]:
    """Its own configurations, led to the process instead of a Service; those of pods see its own pods only."""
    authority = base64.b64encode(Authority(instance.state / "pki").pair.certificate.read_bytes()).decode()
    documents: list[Json] = list(
        yaml.safe_load_all((source / "config/components/webhook/manifests.yaml").read_text()),
    )
    for document in documents:
        document["metadata"]["name"] = f"jobset-{document['metadata']['name']}"
        for hook in document["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            url = f"https://{instance.address}:{WEBHOOK_PORT}{path}"
            hook["clientConfig"] = {"url": url, "caBundle": authority}
            if path.endswith("-v1-pod"):
                hook["objectSelector"] = OF_JOBSETS
    return documents


def ready(instance: Instance) -> bool:
    try:
        with urllib.request.urlopen(f"http://{instance.address}:{HEALTH_PORT}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
