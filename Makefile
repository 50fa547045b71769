# make setup   install what is missing: system packages (Debian), .venv, Python packages; quick when all is there
# make demo    the main job on a VPC in a box: two nodes, real daemons, containerd, pods that ping each other
# make test    every test (needs root)
# make test-quick  the tests of pure code: no root, no network, under 20 s on a quiet machine
# make demo-kubernetes  a whole Kubernetes on the VPC in a box, whose pods have their addresses from ipamd (needs Go)
# make test-kubernetes  Kubernetes' own network tests and our scenarios on such clusters (needs Go; skipped without)
# make bench   the benchmarks
# make check   lint and types
# make shim    the CNI plugin as one static executable, build/ipamd-cni (gcc and libpython3.11-dev)
# make image   the container image of deploy/image/ (podman); make image-check tries it on the VPC in a box
# make proto   regenerate the stubs after a change in proto/
.PHONY: setup demo test test-quick demo-kubernetes test-kubernetes bench check shim image image-check proto

VENV := .venv
PYTHON := $(VENV)/bin/python
# Words for pytest, e.g. make test ARGS="tests/unit -k pool"; without any all tests run, several files at a time. They
# wait more than they compute, hence one worker more than there are cores, and each file stays with one worker.
ARGS ?= -n $(shell expr $$(nproc) + 1) --dist loadfile --no-loadscope-reorder

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.lock pyproject.toml .ci/setup
	.ci/setup $(VENV)
	touch $@

demo: setup
	$(PYTHON) -m ipamd demo

test: setup
	$(PYTHON) -m pytest $(ARGS)

# Decisions, codecs, layout and pages: what needs neither a kernel nor a socket.
QUICK := $(wildcard $(foreach part,api_cni cloud_budget cloud_errors conditions decisions events_page \
    host_* layout metrics pages pool* reference refusals_page settings shim_* vpc,tests/unit/test_$(part).py))
test-quick: setup
	$(PYTHON) -m pytest -q $(QUICK)

# ARGS=--keep leaves all up, and prints commands to play with.
demo-kubernetes: ARGS =
demo-kubernetes: setup
	$(PYTHON) -m tests.kubernetes.demo $(ARGS)

# One file after the other: a cluster takes both cores. ARGS="-m slow" runs the complete set, in each mode of kube-proxy
# and with daemons killed every 5 s.
test-kubernetes: ARGS = -m "not slow" --durations=12
test-kubernetes: setup
	$(PYTHON) -m pytest tests/kubernetes $(ARGS)

bench: setup
	$(PYTHON) tests/bench/bench_plugin.py
	$(PYTHON) tests/bench/bench_pods.py
	$(PYTHON) tests/bench/bench_chain.py
	$(PYTHON) tests/bench/bench_start.py
	$(PYTHON) tests/bench/bench_replace.py
	$(PYTHON) tests/bench/bench_allocate.py
	$(PYTHON) tests/bench/bench_datapath.py
	$(PYTHON) tests/bench/bench_core.py
	$(PYTHON) tests/bench/bench_burst.py
	$(PYTHON) tests/bench/bench_churn.py

check: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

shim: setup
	$(PYTHON) -m cni_shim.static.build

IMAGE ?= localhost/ipamd:0.1.0

image:
	podman build -f deploy/image/Containerfile -t $(IMAGE) .

image-check: setup
	$(PYTHON) deploy/image/check.py $(IMAGE)

# The stubs live in the rooms that use them: -I maps the .proto files there.
proto: setup
	$(PYTHON) -m grpc_tools.protoc -I ipamd/api/v1=proto/ipamd/v1 --python_out=. --pyi_out=. --grpc_python_out=. \
	    ipamd/api/v1/ipam.proto ipamd/api/v1/introspection.proto ipamd/api/v1/administration.proto
	$(PYTHON) -m grpc_tools.protoc -I ipamd/sim/runtimes/cri=proto/cri --python_out=. --pyi_out=. \
	    ipamd/sim/runtimes/cri/cri.proto
	$(PYTHON) -m grpc_tools.protoc -I ipamd/policy/aws=proto/policy --python_out=. --pyi_out=. --grpc_python_out=. \
	    ipamd/policy/aws/policy_agent.proto
