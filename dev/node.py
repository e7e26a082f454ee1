"""The one node of a full instance: kubelet, kube-proxy, CoreDNS, and the CNI configuration that they rely on."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from typing import Any

from dev import api
from dev.build import Binaries
from dev.control_plane import client_config
from dev.instance import Instance, InstanceError
from dev.namespace import Namespace
from dev.network import BRIDGE
from dev.processes import Processes

DOMAIN = "cluster.local"


def start(instance: Instance, binaries: Binaries, namespace: Namespace) -> None:
    """Start the node's daemons; containerd and the API server must run. Returns when the node takes pods."""
    processes = Processes(instance.processes)
    write_configuration(instance)
    environment = {"PATH": binaries.search_path()}
    state, network = instance.state, instance.network
    daemons = {
        "kubelet": [
            f"--config={state / 'kubelet.json'}",
            f"--kubeconfig={client_config(instance, 'kubelet')}",
            f"--hostname-override={instance.name}",
            f"--node-ip={network.node_address}",
            f"--root-dir={state / 'kubelet'}",
            f"--cert-dir={state / 'pki'}",
        ],
        "kube-proxy": [f"--config={state / 'kube-proxy.json'}"],
        "coredns": ["-conf", str(state / "Corefile")],
    }
    for name, arguments in daemons.items():
        processes.start(name, [binaries.path(name), *arguments], environment=environment, prefix=namespace.prefix)
    apply(instance, binaries, dns_objects(instance))
    processes.wait("kubelet", lambda: api.node_ready(instance), seconds=90)
    processes.wait("coredns", lambda: dns_ready(instance), seconds=30)


def write_configuration(instance: Instance) -> None:
    state = instance.state
    (state / "cni").mkdir(exist_ok=True)
    (state / "cni" / "10-everstep.conflist").write_text(json.dumps(cni(instance)))
    (state / "resolv.conf").write_text("")  # pods ask CoreDNS and nobody else
    (state / "kubelet.json").write_text(json.dumps(kubelet(instance)))
    (state / "kube-proxy.json").write_text(json.dumps(kube_proxy(instance)))
    (state / "Corefile").write_text(corefile(instance))


def cni(instance: Instance) -> dict[str, Any]:
    """No masquerading: the host has a route back to the pods, and there is nothing beyond it."""
    pods = {"subnet": instance.network.pod_subnet, "gateway": instance.network.node_address}
    return {
        "cniVersion": "1.0.0",
        "name": "everstep",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-leases",
                    "ranges": [[pods]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables", "snat": False},
        ],
    }


def kubelet(instance: Instance) -> dict[str, Any]:
    pki = instance.state / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{instance.containerd_socket}",
        "clusterDNS": [instance.network.dns_address],
        "clusterDomain": DOMAIN,
        "resolvConf": str(instance.state / "resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": Namespace(instance).cgroup.kubelet_root,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "podLogsDir": str(instance.state / "pods"),
        "volumePluginDir": str(instance.state / "volume-plugins"),
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "evictionPressureTransitionPeriod": "10s",  # a disk that was full while images were loaded is soon not
        "imageGCHighThresholdPercent": 100,  # never: a full disk must not remove images that no registry can give back
        "maxPods": 240,
        "registerWithTaints": [],
        "shutdownGracePeriod": "0s",
    }


def kube_proxy(instance: Instance) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(client_config(instance, "kube-proxy"))},
        "mode": "nftables",
        "hostnameOverride": instance.name,
        "clusterCIDR": instance.network.pod_subnet,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def corefile(instance: Instance) -> str:
    """Answers are kept for seconds only: a name that was asked too early must not stay missing.

    Names outside the cluster do not exist: without that answer a resolver would take the failure for a passing one.
    """
    return f""".:53 {{
  bind {instance.network.node_address}
  errors
  ready {instance.network.node_address}:8181
  kubernetes {DOMAIN} in-addr.arpa {{
    kubeconfig {client_config(instance, "coredns")}
    pods insecure
    ttl 5
  }}
  cache 5 {{
    denial 9984 1 0
  }}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""


def dns_objects(instance: Instance) -> list[dict[str, Any]]:
    """CoreDNS is a daemon beside the kubelet: a Service without selector leads to it, and a role lets it watch."""
    name = {"name": "everstep:coredns"}
    kube_dns = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    rbac = "rbac.authorization.k8s.io"
    watched = [("", ["services", "pods", "namespaces", "nodes"]), ("discovery.k8s.io", ["endpointslices"])]
    rules = [{"apiGroups": [group], "resources": kinds, "verbs": ["get", "list", "watch"]} for group, kinds in watched]
    return [
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": name, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": name,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", **name},
            "subjects": [{"apiGroup": rbac, "kind": "User", **name}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": kube_dns,
            "spec": {"clusterIP": instance.network.dns_address, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**kube_dns, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [instance.network.node_address]}],
            "ports": ports,
        },
    ]


def apply(instance: Instance, binaries: Binaries, objects: list[dict[str, Any]]) -> None:
    """Server-side apply."""
    command = [binaries.path("kubectl"), f"--kubeconfig={instance.kubeconfig}", "apply", "--server-side", "-f", "-"]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    done = subprocess.run(command, input=document, capture_output=True, text=True)
    if done.returncode != 0:
        raise InstanceError(f"kubectl apply: {done.stderr.strip()}")


def dns_ready(instance: Instance) -> bool:
    """True when CoreDNS has seen the cluster's Services."""
    try:
        with urllib.request.urlopen(f"http://{instance.network.node_address}:8181/ready", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
