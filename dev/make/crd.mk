OPERATOR_API := $(RUN) python -m everstep_operator.api
HELM ?= $(firstword $(wildcard $(HOME)/.cache/everstep/prebuild/bin/helm) helm)

.PHONY: crd chart-lint
crd:  ## generate the CRD and its page from the models
	$(OPERATOR_API) crd >crds/.new && mv crds/.new crds/trainingjobs.everstep.dev.yaml
	$(OPERATOR_API) docs >docs/.new && mv docs/.new docs/api.md

chart-lint:  ## check the chart: lint, schema, rendering
	$(HELM) lint --strict charts/everstep
