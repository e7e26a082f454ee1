TRIALS ?= 20

.PHONY: bench bench-recovery
bench: bench-recovery  ## every benchmark; its tables go to docs/

bench-recovery: env cluster-build images-build  ## fault to gang running and to first new step, TRIALS times each
	$(RUN) python -m benchmarks.recovery --trials $(TRIALS)
