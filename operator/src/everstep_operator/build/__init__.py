"""From a TrainingJob's spec to the manifests of its pods and service. Pure: the API server is somebody else's."""

from everstep_operator.build.launch import Launch
from everstep_operator.build.names import pod_name, service_name
from everstep_operator.build.pod import pod_manifest
from everstep_operator.build.service import service_manifest

__all__ = ["Launch", "pod_manifest", "pod_name", "service_manifest", "service_name"]
