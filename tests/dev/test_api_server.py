"""The API server without nodes behaves as operator tests need it to."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.plugins.cluster import RunningCluster

OWNER = """
apiVersion: v1
kind: ConfigMap
metadata: {name: owner}
"""


def pod(owner_uid: str) -> str:
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner_uid}
    metadata = {"name": "owned", "ownerReferences": [owner]}
    spec = {"containers": [{"name": "main", "image": "example/none"}]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_a_pod_is_admitted_and_goes_with_its_owner(api_server: RunningCluster, api_namespace: str) -> None:
    here = f"--namespace={api_namespace}"
    api_server.kubectl("create", here, "-f", "-", stdin=OWNER)
    uid = api_server.kubectl("get", here, "configmap/owner", "-o", "jsonpath={.metadata.uid}")
    api_server.kubectl("create", here, "-f", "-", stdin=pod(uid))
    api_server.kubectl("delete", here, "configmap/owner")
    api_server.kubectl("wait", here, "--for=delete", "pod/owned", "--timeout=30s")


def test_pod_security_is_enforced_where_a_namespace_asks_for_it(api_server: RunningCluster, api_namespace: str) -> None:
    api_server.kubectl("label", "namespace", api_namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        api_server.kubectl("run", f"--namespace={api_namespace}", "root", "--image=example/none")


def test_the_audit_log_tells_who_wrote_what(api_server: RunningCluster, api_namespace: str) -> None:
    start = api_server.audit.position()
    api_server.kubectl("create", f"--namespace={api_namespace}", "configmap", "watched", "--from-literal=a=b")
    api_server.kubectl("get", f"--namespace={api_namespace}", "configmap/watched")
    mine = [each for each in api_server.audit.writes(start, agent="kubectl") if each.namespace == api_namespace]
    assert [(each.verb, each.resource, each.name, each.code) for each in mine] == [
        ("create", "configmaps", "watched", 201)
    ]
    assert mine[0].user == "kubernetes-admin"
    reads = [each for each in api_server.audit.since(start) if each.name == "watched" and not each.writes]
    assert [each.verb for each in reads] == ["get"]


def test_a_service_account_may_do_only_what_its_role_says(
    api_server: RunningCluster, api_namespace: str, tmp_path: Path
) -> None:
    here = f"--namespace={api_namespace}"
    api_server.kubectl("create", here, "role", "reader", "--verb=get,list", "--resource=configmaps")
    subject = f"--serviceaccount={api_namespace}:default"
    api_server.kubectl("create", here, "rolebinding", "reader", "--role=reader", subject)
    config = api_server.service_account_kubeconfig(tmp_path / "kubeconfig", api_namespace, "default")

    def as_account(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [api_server.kubectl_path, f"--kubeconfig={config}", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    assert as_account("get", "configmaps").returncode == 0
    refused = as_account("get", "secrets")
    assert refused.returncode != 0
    assert f"system:serviceaccount:{api_namespace}:default" in refused.stderr
    assert config.stat().st_mode & 0o077 == 0
