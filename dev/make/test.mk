# Tiers, quickest first. Each prints how long it took; `make test` runs all of them with what they need.
PYTEST := $(RUN) pytest -q --durations=5
TIER = @start=$$(date +%s); echo "== $@"; $(1); code=$$?; echo "== $@: $$(( $$(date +%s) - start )) s"; [ $$code -eq 0 ]

BEGAN := $(shell date +%s)

LANES := lane-pods lane-faults lane-operator lane-library
TIERS := test-unit test-model test-storage test-trainer test-operator test-dev test-e2e test-faults

.PHONY: test lint $(LANES) $(TIERS)
test: cluster-build images-build  ## run every tier, in lanes side by side; a tier's output comes when it ends
	@$(MAKE) --no-print-directory --jobs=4 $(LANES)
	@echo "== test: $$(( $$(date +%s) - $(BEGAN) )) s in all"

# A tier spends much of its time waiting for processes that start: four lanes, about as long as each other, keep two
# cores busy. The first two share a cluster.
lane-pods: IN_ORDER := test-e2e test-dev
lane-faults: IN_ORDER := test-faults test-storage
lane-operator: IN_ORDER := test-operator
lane-library: IN_ORDER := lint test-unit test-model test-trainer
$(LANES): env
	@log=$$(mktemp); trap 'rm -f $$log' EXIT; for tier in $(IN_ORDER); do \
		echo "== $$tier begins"; MAKEFLAGS= make --no-print-directory $$tier >$$log 2>&1; code=$$?; \
		cat $$log; [ $$code -eq 0 ] || exit $$code; done

# A clone has no cache of its own, and mypy tells by content what it knows.
export MYPY_CACHE_DIR ?= $(or $(EVERSTEP_CACHE),$(HOME)/.cache/everstep)/mypy

lint: env  ## formatting, lint, types, import contracts
	$(call TIER,$(RUN) ruff format --check . && $(RUN) ruff check . && $(RUN) mypy && $(RUN) lint-imports)

test-unit: env  ## under a minute, no cluster, no servers
	$(call TIER,$(PYTEST) -n 2 --dist worksteal -m "not slow" tests/unit)

test-model: env  ## the storage contract against its model: 20,000 steps and more, and mutations that it must catch
	$(call TIER,$(PYTEST) -s tests/model)

test-storage: env  ## both stores on real storage
	$(call TIER,$(PYTEST) tests/storage)

test-trainer: env  ## real torchrun with several processes, and what takes long without it
	$(call TIER,$(PYTEST) -m slow tests/unit && $(PYTEST) tests/trainer tests/guards tests/survival)

test-operator: env  ## the operator against a real API server
	$(call TIER,$(PYTEST) tests/operator)

test-dev: env  ## the embedded cluster itself
	$(call TIER,$(PYTEST) tests/dev)

test-e2e: env  ## pods on a real node, killed for real
	$(call TIER,$(PYTEST) tests/e2e)

test-faults: env  ## a few seeded trials and zombies, with real torch; EVERSTEP_FAULT_SEED=7 repeats one; `make trials`: all
	$(call TIER,$(PYTEST) tests/faults)

# An hour and more: not for every change.
.PHONY: trials
trials: env cluster-build images-build  ## all seeded trials: ten kill trials, 100 mixed ones without torch and 20 with; EVERSTEP_MIXED_SEED=7 repeats one
	$(call TIER,EVERSTEP_ALL_TRIALS=1 $(PYTEST) -s tests/faults/test_mixed_trials.py tests/faults/test_kill_trials.py)

.PHONY: guards survival
guards: env  ## 500 saves under load twice, 200 saves measured, 1,000 flipped bits twice; docs/guarantees.md
	$(call TIER,EVERSTEP_GUARDS=full $(PYTEST) tests/guards && $(RUN) python -m benchmarks.guards)

survival: env  ## every fault at every phase: everstep, DCP alone, fairseq2; docs/guarantees.md
	$(call TIER,$(RUN) --with 's3torchconnector[dcp]' python -m benchmarks.survival --engine everstep --engine dcp \
		--engine dcp-async --engine fairseq2 --report)
