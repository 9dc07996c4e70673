# aprilcam: `make run` shows it at work, `make test` checks everything. Both set up what they need.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3 python3.11 python3.12 python3.13,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
CONFIG ?=
PICTURES ?=
MINUTES ?= 60
SEED ?= 1
bin := .venv/bin
# Tests that want the machine to themselves: lines at a rate, deadlines, cameras on a wire, processes that are judged by their silence.
# Those of cameras mostly wait, and may run beside each other.
alone := $(addprefix tests/system/test_,$(addsuffix .py,delivery overload soak supervised triggers wire))
cameras := tests/test_aravis.py tests/test_supervisor.py

.PHONY: run test demo-sheet picture node-red-picture grafana-pictures page-pictures docs bench soak dist deb wheelhouse clean

run: .venv/installed
ifeq ($(CONFIG),)
	@demo/debian-packages mosquitto mosquitto-clients
	@exec $(bin)/python -m demo.run $(if $(PICTURES),--pictures '$(PICTURES)')
else
	@exec $(bin)/aprilcam run --config '$(CONFIG)'
endif

demo-sheet: .venv/installed
	@$(bin)/python -m demo.sheet $(if $(PICTURES),--pictures '$(PICTURES)')

picture: .venv/installed
	@$(bin)/python -m demo.picture

node-red-picture: .venv/installed
	@demo/debian-packages mosquitto chromium
	@$(bin)/python -m tests.node_red_picture

page-pictures: .venv/installed
	@demo/debian-packages mosquitto chromium
	@APRILCAM_PAGE_PICTURES=docs $(bin)/python -m pytest -q tests/system/test_page_stories.py

grafana-pictures: .venv/installed
	@demo/debian-packages prometheus
	@$(bin)/python -m demo.dashboards.preview docs

test: .venv/installed
	@demo/debian-packages mosquitto mosquitto-clients jq prometheus gir1.2-aravis-0.8 python3-gi python3-venv iproute2 openssl systemd chromium $(if $(shell command -v npm),,nodejs npm)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(alone) $(cameras))
	$(bin)/python -m pytest -n 2 --dist loadfile $(cameras)
	$(bin)/python -m pytest $(alone)

docs: .venv/installed
	$(bin)/python -m connectors.contract docs/mqtt
	$(bin)/python -m connectors.requests docs/mqtt
	$(bin)/python -m connectors.asyncapi docs/mqtt
	$(bin)/python -m connectors.metrics_document docs/metrics.md
	$(bin)/python -m grpc_tools.protoc -I connectors --python_out=connectors --pyi_out=connectors connectors/sparkplug_b.proto
	$(bin)/python -m demo.node_red_flow config/node-red/flows.json
	$(bin)/python -m demo.dashboards config/grafana/dashboards

bench: .venv/installed
	@demo/debian-packages mosquitto prometheus
	$(bin)/python -m benchmarks.overhead
	$(bin)/python -m benchmarks.demo
	OMP_NUM_THREADS=1 $(bin)/python -m benchmarks.bank
	$(bin)/python -m benchmarks.throughput
	$(bin)/python -m benchmarks.streaming
	$(bin)/python -m benchmarks.overload --minutes 3
	$(bin)/python -m benchmarks.delivery
	$(bin)/python -m benchmarks.rebuild
	$(bin)/python -m benchmarks.dashboards
	$(bin)/python -m benchmarks.scrape
	$(bin)/python -m benchmarks.page
	$(bin)/python -m benchmarks.reference --models tiny ViT-B-16

soak: .venv/installed
	@demo/debian-packages mosquitto gcc libc6-dev
	$(bin)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

# What is installed elsewhere: docs/install.md.
dist: .venv/installed
	systemd/package/wheel build/dist $(bin)/python

deb: dist
	@systemd/package/deb build/dist/aprilcam-*.whl build/dist

wheelhouse: dist
	systemd/package/wheelhouse build/wheelhouse $(bin)/python build/dist/aprilcam-*.whl

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || demo/debian-packages python3-venv
	@echo "setting up .venv (torch and friends: some 6 GB, a few minutes the first time) …"
	@$(PYTHON) -m venv .venv
	@$(bin)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[demo,test]'
	@touch $@

clean:
	rm -rf build .venv *.egg-info
