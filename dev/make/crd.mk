OPERATOR_API := $(RUN) python -m everstep_operator.api

.PHONY: crd chart-lint
crd:  ## generate the CRD and its pages from the models
	$(OPERATOR_API) crd >crds/.new && mv crds/.new crds/trainingjobs.everstep.dev.yaml
	$(OPERATOR_API) docs >docs/.new && mv docs/.new docs/api.md
	$(RUN) python -m tests.support.fields >docs/.new && mv docs/.new docs/fields.md
	$(RUN) python -m dev.chart_schema

chart-lint:  ## lint, render and package the chart with the pinned helm
	$(RUN) pytest -q tests/unit/chart tests/operator/chart
