"""The chart as Helm renders, packages and installs it on a real API server."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from everstep_operator.config.profiles import load_profiles
from tests.operator.chart.test_values import FULL
from tests.plugins.cluster import RunningCluster
from tests.support.helm import CHART, PROFILES, helm, one, pod_spec, render

ROOT = Path(__file__).parents[3]


def test_lint() -> None:
    helm("lint", "--strict", str(CHART), values=PROFILES)


def test_the_crd_is_rendered_and_packaged_as_generated(tmp_path: Path) -> None:
    generated = (ROOT / "crds/trainingjobs.everstep.dev.yaml").read_text(encoding="utf-8")
    rendered = one(render(), "CustomResourceDefinition", "trainingjobs.everstep.dev")
    assert rendered == yaml.safe_load(generated)
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    helm("package", str(CHART), "--destination", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("everstep-*.tgz"))) as package:
        member = package.extractfile("everstep/files/trainingjobs.everstep.dev.yaml")
        assert member is not None
        assert member.read().decode() == generated


def test_the_operator_reads_the_profiles_that_are_rendered(tmp_path: Path) -> None:
    documents = render(PROFILES)
    text = one(documents, "ConfigMap", "es-everstep-profiles")["data"]["profiles.yaml"]
    assert "secret: value" not in text
    path = tmp_path / "profiles.yaml"
    path.write_text(text, encoding="utf-8")
    profiles = load_profiles(path)
    access = profiles.access("team-a", "s3://bucket-a/team-a/x", "http://s3.test:8333")
    assert access.credentials is not None
    assert access.credentials.directory == tmp_path / "profiles/inline"
    assert profiles.access("c", "s3://bucket-c").credentials is None
    secret = one(documents, "Secret", "es-everstep-profile-inline")
    assert secret["stringData"]["AWS_SECRET_ACCESS_KEY"] == "a secret: value"
    assert [d["metadata"]["name"] for d in documents if d["kind"] == "Secret"] == ["es-everstep-profile-inline"]


def test_credentials_are_mounted_where_the_profiles_say() -> None:
    spec = pod_spec(render(PROFILES))
    (config,) = (volume for volume in spec["volumes"] if volume["name"] == "config")
    files = {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in config["projected"]["sources"]
        if "secret" in source
        for item in source["secret"]["items"]
    }
    assert files == {
        "profiles/inline/accessKey": ("es-everstep-profile-inline", "AWS_ACCESS_KEY_ID"),
        "profiles/inline/secretKey": ("es-everstep-profile-inline", "AWS_SECRET_ACCESS_KEY"),
        "profiles/existing/accessKey": ("theirs", "AWS_ACCESS_KEY_ID"),
        "profiles/existing/secretKey": ("theirs", "AWS_SECRET_ACCESS_KEY"),
        "profiles/existing/sessionToken": ("theirs", "TOKEN"),
    }


def test_settings_become_variables() -> None:
    values = {"settings": {"pollMaxSeconds": 7.5}, "watchNamespaces": ["a", "b"]}
    container = pod_spec(render(values))["containers"][0]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["EVERSTEP_OPERATOR_POLL_MAX_SECONDS"] == "7.5"
    assert env["EVERSTEP_OPERATOR_WATCH_NAMESPACES"] == "a,b"


def test_a_pod_is_the_leases_holder_by_its_name_and_uid() -> None:
    spec = pod_spec(render(PROFILES))
    env = {variable["name"]: variable for variable in spec["containers"][0]["env"]}
    assert env["EVERSTEP_OPERATOR_IDENTITY"]["value"] == "$(POD_NAME)_$(POD_UID)"
    assert list(env).index("POD_UID") < list(env).index("EVERSTEP_OPERATOR_IDENTITY"), "else it is not expanded"
    paths = [env[name]["valueFrom"]["fieldRef"]["fieldPath"] for name in ("POD_NAME", "POD_UID")]
    assert paths == ["metadata.name", "metadata.uid"]


def test_watched_namespaces_are_all_that_it_may_touch() -> None:
    documents = render({"watchNamespaces": ["a", "b"]})
    bound = {
        (d["kind"], d["metadata"]["name"], d["metadata"].get("namespace"))
        for d in documents
        if d["kind"].endswith("Binding")
    }
    assert bound == {
        ("ClusterRoleBinding", "es-everstep-cluster", None),
        ("RoleBinding", "es-everstep", "a"),
        ("RoleBinding", "es-everstep", "b"),
        ("RoleBinding", "es-everstep-nodes", "kube-node-lease"),
        ("RoleBinding", "es-everstep-lease", None),
    }


@pytest.fixture(scope="module")
def release(api_server: RunningCluster) -> Iterator[str]:
    """The chart, installed under a name of its own into a restricted namespace; the CRD is applied beside it."""
    with api_server.namespace() as name:
        api_server.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        options = ["--kubeconfig", str(api_server.kubeconfig), "--namespace", name]
        values = {**PROFILES, "crd": {"install": False}}
        helm("install", name, str(CHART), *options, values=values)
        try:
            yield name
        finally:
            helm("uninstall", name, *options)


def test_the_api_server_takes_the_pod_under_restricted_pod_security(api_server: RunningCluster, release: str) -> None:
    deployment = json.loads(
        api_server.kubectl("get", f"--namespace={release}", f"deployment/{release}-everstep", "-o", "json")
    )
    template = deployment["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": release, "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    api_server.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_the_api_server_knows_every_field_of_every_object(api_server: RunningCluster, release: str) -> None:
    """With all values set to something. Kinds of the Prometheus operator are nobody's here."""
    options = ("--namespace", release, "--api-versions=monitoring.coreos.com/v1/PodMonitor")
    text = helm("template", "full", str(CHART), *options, values={**FULL, "watchNamespaces": []})
    documents = [each for each in yaml.safe_load_all(text) if each and "coreos" not in each["apiVersion"]]
    kinds = {each["kind"] for each in documents}
    assert {"NetworkPolicy", "PodDisruptionBudget", "Deployment", "ConfigMap", "Secret", "Pod", "Role"} <= kinds
    for document in documents:
        if not document["kind"].startswith("Cluster"):
            document["metadata"].setdefault("namespace", release)
    arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    assert api_server.kubectl(*arguments, stdin=yaml.safe_dump_all(documents)).count("serverside-applied") == len(
        documents
    )


@pytest.mark.parametrize(
    ("verb", "resource", "allowed"),
    [
        ("watch", "trainingjobs.everstep.dev", True),
        ("patch", "trainingjobs.everstep.dev/status", True),
        ("create", "pods", True),
        ("delete", "pods", True),
        ("get", "pods/log", True),
        ("create", "services", True),
        ("delete", "services", False),
        ("create", "events", True),
        ("get", "nodes", True),
        ("get", "secrets", False),
        ("list", "secrets", False),
        ("create", "secrets", False),
        ("get", "configmaps", False),
        ("create", "pods/exec", False),
        ("create", "trainingjobs.everstep.dev", False),
        ("delete", "nodes", False),
        ("create", "leases.coordination.k8s.io", False),
    ],
)
def test_rights_in_any_namespace(
    api_server: RunningCluster, release: str, verb: str, resource: str, allowed: bool
) -> None:
    assert _can(api_server, release, verb, resource, "default") is allowed


def test_rights_in_its_own_namespace(api_server: RunningCluster, release: str) -> None:
    assert _can(api_server, release, "create", "leases.coordination.k8s.io", release)
    assert _can(api_server, release, "update", f"leases.coordination.k8s.io/{release}-everstep", release)
    assert not _can(api_server, release, "update", "leases.coordination.k8s.io/another", release)
    assert not _can(api_server, release, "get", "secrets", release)
    assert _can(api_server, release, "get", "leases.coordination.k8s.io/node0", "kube-node-lease")
    assert not _can(api_server, release, "update", "leases.coordination.k8s.io/node0", "kube-node-lease")
    assert _can(api_server, release, "get", "namespaces/kube-system", "")
    assert not _can(api_server, release, "get", "namespaces/default", "")


def _can(api_server: RunningCluster, release: str, verb: str, resource: str, namespace: str) -> bool:
    """Whether the operator's service account may do it, as the API server's authorizer says."""
    kind, _, name = resource.partition("/")
    subresource = name if resource in ("pods/log", "pods/exec", "trainingjobs.everstep.dev/status") else ""
    resource_name, _, group = kind.partition(".")
    attributes = {"verb": verb, "resource": resource_name, "group": group, "namespace": namespace}
    attributes |= {"subresource": subresource} if subresource else {"name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{release}:{release}-everstep", "resourceAttributes": attributes},
    }
    reviews = client.AuthorizationV1Api(config.new_client_from_config(str(api_server.kubeconfig)))
    return bool(reviews.create_subject_access_review(review).status.allowed)
