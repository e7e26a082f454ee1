"""etcd, API server, controller manager and scheduler of one instance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dev import api, kubeconfig
from dev.build import Binaries
from dev.instance import Instance, Level
from dev.pki import Authority
from dev.processes import Processes

ISSUER = "https://kubernetes.default.svc"
# Tests count writes from this log: who did what to which object, without bodies. Watches would be written twice.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

# Without nodes: namespaces can be deleted, ServiceAccounts appear, owned objects go with their owners, quotas count.
API_LEVEL_CONTROLLERS = (
    "namespace-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "garbage-collector-controller",
    "resourcequota-controller",
)
PORTS = {"kube-controller-manager": 10257, "kube-scheduler": 10259}


def start(instance: Instance, binaries: Binaries, prefix: Sequence[str] = ()) -> None:
    """Start what the instance's level needs and return when the API server is ready."""
    processes = Processes(instance.processes)
    authority = Authority(instance.state / "pki")
    etcd = [
        f"--data-dir={instance.state / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{instance.etcd_port}",
        f"--advertise-client-urls=http://127.0.0.1:{instance.etcd_port}",
        f"--listen-peer-urls=http://127.0.0.1:{instance.etcd_peer_port}",
        "--unsafe-no-fsync",  # the data is gone with the instance
        "--log-level=warn",
    ]
    processes.start("etcd", [binaries.path("etcd"), *etcd], prefix=prefix)
    issue_certificates(instance, authority)
    arguments = api_server_arguments(instance, authority)
    processes.start("kube-apiserver", [binaries.path("kube-apiserver"), *arguments], prefix=prefix)
    processes.wait("kube-apiserver", lambda: api.ready(instance), seconds=90)
    start_controllers(instance, binaries, authority, prefix)


def issue_certificates(instance: Instance, authority: Authority) -> None:
    """Make the CA, the API server's certificate and the kubeconfigs of its clients."""
    authority.create()
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = ["127.0.0.1", instance.address]
    clients = {
        "admin": ("kubernetes-admin", "system:masters"),
        "kube-controller-manager": ("system:kube-controller-manager", ""),
    }
    if instance.level is Level.full:
        network = instance.network
        names.append("kubernetes.default.svc.cluster.local")
        addresses.append(network.service_address)
        node = f"system:node:{instance.name}"
        node_names = [f"DNS:{instance.name}", f"IP:{network.node_address}"]
        authority.issue("kubelet-client", "kube-apiserver-kubelet-client", group="system:masters")
        pair = authority.issue("kubelet", node, group="system:nodes", alternatives=node_names)
        write_kubeconfig(instance, authority, "kubelet", kubeconfig.certificate_user(pair))
        clients |= {
            "kube-scheduler": ("system:kube-scheduler", ""),
            "kube-proxy": ("system:kube-proxy", ""),
            "coredns": ("everstep:coredns", ""),
        }
    alternatives = [*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in dict.fromkeys(addresses))]
    authority.issue("apiserver", "kube-apiserver", alternatives=alternatives)
    for name, (common_name, group) in clients.items():
        pair = authority.issue(name, common_name, group=group)
        write_kubeconfig(instance, authority, name, kubeconfig.certificate_user(pair))


def write_kubeconfig(instance: Instance, authority: Authority, name: str, user: dict[str, str]) -> None:
    path = instance.kubeconfig if name == "admin" else client_config(instance, name)
    kubeconfig.write(path, server=instance.server, authority=authority.pair.certificate, user=user)


def client_config(instance: Instance, name: str) -> Path:
    """The kubeconfig of one of the cluster's own components."""
    return instance.state / "pki" / f"{name}.kubeconfig"


def api_server_arguments(instance: Instance, authority: Authority) -> list[str]:
    policy = instance.state / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    server = authority.path("apiserver")
    arguments = [
        f"--etcd-servers=http://127.0.0.1:{instance.etcd_port}",
        f"--bind-address={instance.address}",
        f"--advertise-address={instance.address}",
        f"--secure-port={instance.api_port}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={authority.pair.certificate}",
        f"--service-account-key-file={authority.directory / 'sa.pub'}",
        f"--service-account-signing-key-file={authority.directory / 'sa.key'}",
        f"--service-account-issuer={ISSUER}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={instance.audit_log}",
        "--audit-log-maxsize=4096",  # megabytes before it is rotated: tests read one file
        "--profiling=false",
    ]
    if instance.level is Level.api:
        # Nobody routes to them: wide enough for a Service a job where there are many jobs.
        return [*arguments, "--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none"]
    kubelet = authority.path("kubelet-client")
    return [
        *arguments,
        f"--service-cluster-ip-range={instance.network.service_range}",
        f"--kubelet-client-certificate={kubelet.certificate}",
        f"--kubelet-client-key={kubelet.key}",
        "--kubelet-preferred-address-types=InternalIP",  # the host does not resolve the node's name
    ]


def start_controllers(instance: Instance, binaries: Binaries, authority: Authority, prefix: Sequence[str] = ()) -> None:
    """Start the controller manager and, where there are nodes, the scheduler. Nobody has to wait for them."""
    ca = authority.pair
    programs = {
        "kube-controller-manager": [
            f"--service-account-private-key-file={authority.directory / 'sa.key'}",
            f"--root-ca-file={ca.certificate}",
            f"--cluster-signing-cert-file={ca.certificate}",
            f"--cluster-signing-key-file={ca.key}",
            "--use-service-account-credentials",
            f"--flex-volume-plugin-dir={instance.state / 'volume-plugins'}",  # it makes its default, below /usr
            f"--controllers={'*' if instance.level is Level.full else ','.join(API_LEVEL_CONTROLLERS)}",
        ]
    }
    if instance.level is Level.full:
        programs["kube-scheduler"] = []
    for name, arguments in programs.items():
        config = client_config(instance, name)
        ports = ["--bind-address=127.0.0.1", f"--secure-port={0 if instance.level is Level.api else PORTS[name]}"]
        common = [f"--kubeconfig={config}", "--leader-elect=false", "--profiling=false"]
        command = [binaries.path(name), *common, *ports, *arguments]
        Processes(instance.processes).start(name, command, prefix=prefix)
