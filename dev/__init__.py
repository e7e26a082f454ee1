"""The embedded cluster: real Kubernetes and a real S3 server for tests and demo, without a container registry."""
