# The embedded cluster by hand. CLUSTER_INSTANCE chooses another instance than "dev".
CLUSTER_INSTANCE ?= dev

.PHONY: cluster-up cluster-down cluster-status images
cluster-up: env  ## start the embedded Kubernetes cluster and its S3 server
	@$(RUN) python -m dev up --instance $(CLUSTER_INSTANCE)

cluster-down: env  ## stop it; only caches stay
	@$(RUN) python -m dev down --instance $(CLUSTER_INSTANCE)

cluster-status: env  ## show what runs of it
	@$(RUN) python -m dev status

images: env  ## build the project's images and load them into the cluster
	@$(RUN) python -m dev images --instance $(CLUSTER_INSTANCE)
