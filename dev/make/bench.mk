TRIALS ?= 20

.PHONY: bench bench-recovery bench-peers bench-burst
bench: bench-recovery bench-peers bench-burst  ## recovery, here and on peers, and a burst of jobs: tables go to docs/

bench-recovery: env cluster-build images-build  ## fault to gang running and to first new step, TRIALS times each
	$(RUN) python -m benchmarks.recovery --trials $(TRIALS)

bench-peers: env cluster-build images-build  ## the same faults under JobSet and plain Jobs; builds JobSet the first time
	$(RUN) python -m benchmarks.recovery.peers --trials $(TRIALS)

bench-burst: env cluster-build  ## 500 jobs at once, on an API server without nodes
	$(RUN) python -m benchmarks.burst
