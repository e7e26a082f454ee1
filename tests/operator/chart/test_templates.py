"""What the chart makes of its values beyond what is always there: each part on its own, on and off."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import yaml

from tests.support.helm import EXISTING, IDENTITY, INLINE, Manifest, one, pod_spec, render

PROMETHEUS = tuple(f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in ("PodMonitor", "PrometheusRule"))


def kinds(documents: list[Manifest]) -> list[str]:
    return sorted(document["kind"] for document in documents)


def policy(**values: Any) -> Manifest:
    documents = render({"networkPolicy": {"enabled": True, **values}, "storageProfiles": [INLINE, EXISTING, IDENTITY]})
    spec: Manifest = one(documents, "NetworkPolicy", "es-everstep")["spec"]
    return spec


def test_by_default_there_is_no_more_than_an_operator_needs() -> None:
    assert kinds(render()) == sorted(
        [
            *("ConfigMap", "CustomResourceDefinition", "Deployment", "Pod", "Service", "ServiceAccount"),
            *("ClusterRole", "ClusterRole", "ClusterRole", "ClusterRole", "ClusterRoleBinding", "ClusterRoleBinding"),
            *("Role", "Role", "RoleBinding", "RoleBinding"),
        ]
    )


def test_all_objects_are_labelled_as_the_releases() -> None:
    values = {"networkPolicy": {"enabled": True}, "monitoring": {"dashboard": {"enabled": True}}, "replicas": 2}
    for document in render(values, *PROMETHEUS):
        if document["kind"] != "CustomResourceDefinition":
            assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "es", document["metadata"]


def test_network_policy_lets_the_operator_reach_the_api_server_dns_and_the_profiles_storage() -> None:
    spec = policy()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, api_server, storage = spec["egress"]
    assert {(port["protocol"], port["port"]) for port in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert [port["port"] for port in api_server["ports"]] == [443, 6443]
    assert [port["port"] for port in storage["ports"]] == [8333, 443], "the endpoint's, and AWS's"
    assert spec["ingress"] == [{"ports": [{"protocol": "TCP", "port": "http"}]}]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://s3.test", 80),
        ("https://s3.test/", 443),
        ("https://s3.test:9000/", 9000),
        ("http://10.0.0.1:8333", 8333),
    ],
)
def test_storage_ports_are_those_of_the_endpoints(endpoint: str, port: int) -> None:
    values = {"networkPolicy": {"enabled": True}, "storageProfiles": [{**INLINE, "endpoint": endpoint}]}
    egress = one(render(values), "NetworkPolicy", "es-everstep")["spec"]["egress"]
    assert egress[-1] == {"ports": [{"protocol": "TCP", "port": port}]}


def test_network_policy_is_narrowed_by_peers_and_lets_helm_test_in() -> None:
    cidr = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    extra = {"ports": [{"protocol": "TCP", "port": 80}], "to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}]}
    spec = policy(
        apiServer={"to": cidr, "ports": [6443]},
        dns={"to": cidr},
        storage={"to": cidr, "ports": [9000]},
        metrics={"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]},
        extraEgress=[extra],
    )
    assert [rule["to"] for rule in spec["egress"][:3]] == [cidr] * 3
    assert [port["port"] for rule in spec["egress"][1:3] for port in rule["ports"]] == [6443, 9000]
    assert spec["egress"][3] == extra
    test, monitoring = spec["ingress"][0]["from"]
    labels = one(render(), "Pod", "es-everstep-test")["metadata"]["labels"]
    assert test["podSelector"]["matchLabels"].items() <= labels.items()
    assert monitoring["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


@pytest.mark.parametrize(
    ("enabled", "options", "there"),
    [("auto", (), False), ("auto", PROMETHEUS, True), (False, PROMETHEUS, False), (True, (), True)],
)
def test_objects_of_the_prometheus_operator_are_made_where_it_is(
    enabled: object, options: tuple[str, ...], there: bool
) -> None:
    values = {"monitoring": {"podMonitor": {"enabled": enabled}, "alerts": {"enabled": enabled}}}
    found = kinds(render(values, *options))
    assert ("PodMonitor" in found) is there
    assert ("PrometheusRule" in found) is there


def test_the_pod_monitor_selects_the_operators_pods_and_keeps_the_jobs_namespace() -> None:
    values = {"monitoring": {"podMonitor": {"labels": {"release": "prometheus"}, "interval": "10s"}}}
    documents = render(values, *PROMETHEUS)
    monitor = one(documents, "PodMonitor", "es-everstep")
    labels = one(documents, "Deployment", "es-everstep")["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (port,) = pod_spec(documents)["containers"][0]["ports"]
    assert endpoint == {"port": port["name"], "path": "/metrics", "interval": "10s", "honorLabels": True}


def test_alerts_and_dashboard_arrive_as_they_are_written() -> None:
    documents = render({"monitoring": {"dashboard": {"enabled": True}}}, *PROMETHEUS)
    (group,) = one(documents, "PrometheusRule", "es-everstep")["spec"]["groups"]
    assert {"alert", "expr", "labels", "annotations"} <= group["rules"][0].keys()
    assert "{{ $labels.job }}" in group["rules"][0]["annotations"]["summary"]
    dashboard = one(documents, "ConfigMap", "es-everstep-dashboard")
    assert json.loads(dashboard["data"]["everstep.json"])["title"] == "everstep"
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(("replicas", "enabled", "there"), [(1, True, False), (2, True, True), (2, False, False)])
def test_a_budget_only_where_there_is_a_second_replica(replicas: int, enabled: bool, there: bool) -> None:
    documents = render({"replicas": replicas, "podDisruptionBudget": {"enabled": enabled}})
    assert ("PodDisruptionBudget" in kinds(documents)) is there
    if there:
        assert one(documents, "PodDisruptionBudget", "es-everstep")["spec"]["maxUnavailable"] == 1


def test_where_the_operator_runs() -> None:
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    values = {
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [spread],
        "priorityClassName": "system-cluster-critical",
        "resources": {"requests": {"cpu": "1"}},
        "imagePullSecrets": [{"name": "pull"}],
    }
    spec = pod_spec(render(values))
    for name in values.keys() - {"resources"}:
        assert spec[name] == values[name]
    assert spec["containers"][0]["resources"]["requests"]["cpu"] == "1"


def test_a_digest_comes_before_the_tag() -> None:
    digest = f"sha256:{'a' * 64}"
    documents = render({"image": {"repository": "registry.test/operator", "tag": "1", "digest": digest}})
    assert pod_spec(documents)["containers"][0]["image"] == f"registry.test/operator@{digest}"


def test_a_private_authority_is_mounted_and_ids_can_be_the_clusters() -> None:
    values: dict[str, Any] = {
        "extraEnv": [{"name": "AWS_CA_BUNDLE", "value": "/ca/ca.crt"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "s3-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    }
    spec = pod_spec(render(values))
    assert values["extraVolumes"][0] in spec["volumes"]
    assert values["extraVolumeMounts"][0] in spec["containers"][0]["volumeMounts"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_workload_identity_is_the_service_accounts() -> None:
    annotations = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/everstep"}
    values = {"serviceAccount": {"annotations": annotations}, "storageProfiles": [IDENTITY]}
    documents = render(values)
    assert one(documents, "ServiceAccount", "es-everstep")["metadata"]["annotations"] == annotations
    (config,) = (volume for volume in pod_spec(documents)["volumes"] if volume["name"] == "config")
    assert [list(source) for source in config["projected"]["sources"]] == [["configMap"]], "no Secret"
    assert "Secret" not in kinds(documents)


def test_rbac_and_service_account_can_be_somebody_elses() -> None:
    values = {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "theirs"}}
    documents = render(values)
    assert not {"ClusterRole", "Role", "RoleBinding", "ClusterRoleBinding", "ServiceAccount"} & set(kinds(documents))
    assert pod_spec(documents)["serviceAccountName"] == "theirs"


@contextmanager
def answering(metrics: str) -> Iterator[str]:
    """A server that answers everything with this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics.encode())

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def helm_test(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command of the chart's test pod here."""
    container = one(render(), "Pod", "es-everstep-test")["spec"]["containers"][0]
    interpreter, flag, script = container["command"]
    assert (interpreter, flag) == ("python3", "-c")
    ast.parse(script)
    given = {each["name"]: each["value"] for each in container["env"]}
    variables = {**os.environ, **given, **environment}
    return subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=60)


def test_helm_test_asks_for_a_leader() -> None:
    with answering("x 1\neverstep_leader 1.0\ny 2\n") as url:
        done = helm_test(OPERATOR=url)
        assert (done.returncode, done.stdout) == (0, f"{url} is ready and holds the Lease\n")
        nobody = helm_test(OPERATOR=url, REPLICAS="0")
        assert nobody.returncode == 1
        assert "replicas is 0" in nobody.stderr


def test_the_test_pod_asks_the_operators_service() -> None:
    documents = render()
    pod = one(documents, "Pod", "es-everstep-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    service = one(documents, "Service", "es-everstep-metrics")
    environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert environment["OPERATOR"] == f"http://es-everstep-metrics.ops.svc:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["selector"]["app.kubernetes.io/component"] == "operator"
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "test"
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_notes_say_what_to_type_and_what_stays() -> None:
    from tests.support.helm import CHART, helm

    text = helm("install", "es", str(CHART), "--dry-run=client", "--namespace", "ops", values={})
    notes = text.partition("NOTES:")[2]
    assert "storageProfiles" in notes
    for words in ("kubectl describe trainingjob", "helm test es", "helm uninstall es", "kubectl delete crd"):
        assert words in notes
    with_profile = helm("install", "es", str(CHART), "--dry-run=client", values={"storageProfiles": [INLINE]})
    assert "s3://bucket-a at http://s3.test:8333, below {namespace}" in with_profile.partition("NOTES:")[2]


def test_documents_are_plain_yaml() -> None:
    """Every document has a kind and a name, whatever is switched on."""
    values = {"networkPolicy": {"enabled": True}, "replicas": 3, "monitoring": {"dashboard": {"enabled": True}}}
    for document in render(values, *PROMETHEUS):
        assert yaml.safe_load(yaml.safe_dump(document)) == document
        assert document["metadata"]["name"]
