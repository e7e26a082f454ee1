CLUSTER ?= embedded

.PHONY: demo
demo: env  ## watch a training job lose a rank and a pod and come back (CLUSTER=current: on your own cluster)
	@$(RUN) python -m dev.demo $(CLUSTER)
