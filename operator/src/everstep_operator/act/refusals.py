"""What the API server says about a pod or a service, as a problem with a word of its own for the usual causes."""

from __future__ import annotations

from everstep_operator.kube import ApiError
from everstep_operator.reconcile.observation import Problem, ProblemKind

_WORDS = (
    ("exceeded quota", "QuotaExceeded"),
    ("violates PodSecurity", "PodSecurityViolation"),
    ("admission webhook", "AdmissionDenied"),
    ("ValidatingAdmissionPolicy", "AdmissionDenied"),
    ("is being terminated", "NamespaceTerminating"),
)


def pod_problem(error: ApiError) -> Problem:
    """A problem of the template or of the namespace's rules, or of the cluster where another try may help."""
    if error.transient or error.conflict:
        return cluster_problem(error)
    reason = next((reason for words, reason in _WORDS if words in str(error)), None)
    if reason is None:
        reason = {422: "PodInvalid", 400: "PodInvalid", 403: "PodForbidden"}.get(error.status, "PodRefused")
    return Problem(ProblemKind.POD_REFUSED, reason, str(error))


def cluster_problem(error: ApiError) -> Problem:
    reason = "ApiServerUnavailable" if error.transient else (error.reason or "ApiServerRefused")
    return Problem(ProblemKind.CLUSTER, reason, str(error))
