.PHONY: setup env
setup: env  ## install the Python environment that every target uses

env: .venv/.synced

.venv/.synced: pyproject.toml uv.lock
	@command -v $(UV) >/dev/null || { echo "installing uv"; python3 -m venv $(HOME)/.cache/everstep/uv && $(HOME)/.cache/everstep/uv/bin/pip install --quiet uv; }
	$(UV) sync --locked --all-extras
	@touch $@
