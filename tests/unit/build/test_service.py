"""The rendezvous service leads to pod 0 of one attempt, ready or not."""

from everstep_operator.build import Launch, pod_manifest, service_manifest, service_name
from tests.support.observations import job


def test_it_selects_pod_0_of_the_attempt_and_no_other() -> None:
    chosen = service_manifest(job(), 3)["spec"]["selector"].items()
    labels = {
        (attempt, index): pod_manifest(job(), Launch(attempt, 2, 1, 1), index)["metadata"]["labels"].items()
        for attempt in (2, 3)
        for index in (0, 1)
    }
    assert [key for key, found in labels.items() if chosen <= found] == [(3, 0)]


def test_it_needs_no_ready_pod_and_has_one_name_for_all_attempts() -> None:
    service = service_manifest(job(), 1)
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == service_name("job") == service_manifest(job(), 2)["metadata"]["name"]
    assert len(service_name("j" * 40)) <= 63
    assert service["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
