# Everything runs through uv, so that a fresh clone needs only python3 and this file. `make help` lists the targets.
SHELL := /bin/bash
UV ?= $(shell command -v uv 2>/dev/null || echo $(HOME)/.cache/everstep/uv/bin/uv)
RUN := $(UV) run --no-sync
export UV_COMPILE_BYTECODE := 1
# Hundreds of processes import what stands here: one of them compiles it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

include dev/make/*.mk
