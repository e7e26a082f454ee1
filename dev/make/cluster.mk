# The embedded cluster by hand. CLUSTER_INSTANCE chooses another instance than "dev".
CLUSTER_INSTANCE ?= dev

.PHONY: cluster-up cluster-down cluster-status cluster-build images images-build
cluster-up: env  ## start the embedded Kubernetes cluster and its S3 server
	@$(RUN) python -m dev up --instance $(CLUSTER_INSTANCE)

cluster-down: env  ## stop it; only caches stay
	@$(RUN) python -m dev down --instance $(CLUSTER_INSTANCE)

cluster-status: env  ## show what runs of it
	@$(RUN) python -m dev status

cluster-build: env  ## build Kubernetes and its node's parts into the cache, where they are not there yet
	@$(RUN) python -m dev build

images: env  ## build the project's images and load them into the cluster
	@$(RUN) python -m dev images --instance $(CLUSTER_INSTANCE)

images-build: env  ## build the project's images, the tests' one included, without a cluster
	@$(RUN) python -m dev images --no-load operator trainer tests

# What takes minutes when the caches are empty is not done under a test's time limit.
test-operator test-dev test-e2e test-faults: cluster-build
test-e2e test-faults: images-build
