# make demo         build, fetch the demo model, answer one question on three processes, keep serving
# make demo EXIT=1  the same, then stop
# make test         everything CI runs: lints, unit tests, end-to-end tests against real processes and a real etcd
# make storm        the long versions of the end-to-end tests
# make bench-engine         the engine next to llama.cpp and ik_llama.cpp, in turn (fetches them)
# make bench-contention     the same beside busy loops
# make bench-instructions   instructions of the hot kernels against the committed counts (needs valgrind);
#                           make bench-instructions-update writes the counts anew
# make invariance   CASES random ways of computing, each bit-equal to the plain way
# make storm-transfer    the full counts of damaged, stale and aborted KV transfers, on every transport
# make bench-transfer    KV between two processes on every transport, next to raw TCP and memcpy, as JSON
# make bench-split  throughput of split deployments against one process, as JSON
# make arm          kernels for 64-bit Arm: compiled, and their operations run in an emulator
# make fuzz         each fuzz target for FUZZ_SECONDS (needs cargo-fuzz and a nightly toolchain)

SHELL := /bin/sh
MAKE_DIR := .make
BATON := target/release/baton
VENV := $(MAKE_DIR)/venv
ETCD := $(MAKE_DIR)/etcd/etcd
BUF := $(MAKE_DIR)/node/node_modules/.bin/buf
PEERS := $(MAKE_DIR)/peers
BENCH_DIR := docs/benchmarks
INSTRUCTIONS := kernels/benches/instructions.json
FUZZ_SECONDS ?= 60
# e.g. BENCH="--threads 1 --pairs 15"
BENCH ?=
CASES ?= 10000
EXIT ?=

export BATON_BIN = $(CURDIR)/$(BATON)
export BATON_ETCD = $(CURDIR)/$(ETCD)
export BATON_DEMO_MODEL = $(shell cat $(MAKE_DIR)/model-path 2>/dev/null)

.PHONY: storm-transfer bench-transfer
.PHONY: bench-engine bench-contention bench-instructions bench-instructions-update bench-set-up
.PHONY: demo test unit e2e storm invariance bench-split arm lint fmt clippy proto-lint deny doc fuzz build tools model clean

demo: build
	@$(BATON) demo $(if $(EXIT),--exit)

build:
	cargo build --release --locked -p baton

test: lint unit e2e bench-instructions

unit: tools model
	@$(MAKE) --no-print-directory run-unit

.PHONY: run-unit run-e2e run-storm run-invariance
run-unit:
	@if cargo nextest --version >/dev/null 2>&1; \
	then cargo nextest run --release --locked --workspace --no-fail-fast; \
	else cargo test --release --locked --workspace --no-fail-fast; fi

e2e: build tools model
	@$(MAKE) --no-print-directory run-e2e

run-e2e:
	$(VENV)/bin/python -m pytest -q --maxfail=5 tests/e2e

storm: build tools model
	@BATON_STORM=1 $(MAKE) --no-print-directory run-e2e

invariance: model
	@$(MAKE) --no-print-directory run-invariance

run-invariance:
	BATON_INVARIANCE_CASES=$(CASES) cargo test --release --locked -p engine --test invariance -- --nocapture

storm-transfer:
	BATON_TRANSFER_TRIALS=full cargo test --release --locked -p transfer --test transfer -- --test-threads=1

bench-transfer: build
	@for transport in shm tcp grpc; do $(BATON) bench transfer --transport $$transport --json; done

bench-split: build tools model
	@$(VENV)/bin/python tools/bench_split.py

arm:
	sh tools/arm.sh $(CURDIR)/$(MAKE_DIR)/arm

lint: fmt clippy proto-lint

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --release --locked --workspace --all-targets -- -D warnings

proto-lint:
	@if command -v npm >/dev/null 2>&1; \
	then $(MAKE) --no-print-directory $(BUF) && cd proto && ../$(BUF) lint; \
	else echo "SKIPPED: buf lint of the protocol (it comes through npm, which is not here)"; fi

deny:
	cargo deny check bans licenses sources

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --locked

bench-set-up: build model
	sh tools/bench/peers.sh $(PEERS)
	cargo run --quiet --release --locked -p engine --example requantize "$$(cat $(MAKE_DIR)/model-path)" $(PEERS)/q4_0.gguf

bench-engine: bench-set-up
	@python3 tools/bench/compare.py --model "$$(cat $(MAKE_DIR)/model-path)" --q4-0 $(PEERS)/q4_0.gguf \
	    --peers $(PEERS) --out $(BENCH_DIR)/engine.json --markdown $(BENCH_DIR)/engine.md $(BENCH)

bench-contention: bench-set-up
	@python3 tools/bench/contention.py --model "$$(cat $(MAKE_DIR)/model-path)" \
	    --peers $(PEERS) --out $(BENCH_DIR)/contention.json --markdown $(BENCH_DIR)/engine.md $(BENCH)

bench-instructions:
	@python3 tools/bench/instructions.py $(INSTRUCTIONS)

bench-instructions-update:
	@python3 tools/bench/instructions.py $(INSTRUCTIONS) --update

fuzz:
	./fuzz/run all $(FUZZ_SECONDS)

tools: $(VENV)/.done $(ETCD)

model: build
	@mkdir -p $(MAKE_DIR)
	@$(BATON) pull smollm2 --print-path >$(MAKE_DIR)/model-path

$(VENV)/.done: tests/e2e/requirements.txt tests/e2e/protos.sh $(wildcard proto/baton/v1/*.proto)
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement tests/e2e/requirements.txt
	sh tests/e2e/protos.sh $(VENV)/bin/python $(MAKE_DIR)/pb
	touch $@

$(ETCD):
	sh tools/etcd.sh $(MAKE_DIR)/etcd

$(BUF): tools/package.json
	mkdir -p $(MAKE_DIR)/node && cp tools/package.json $(MAKE_DIR)/node/
	cd $(MAKE_DIR)/node && npm install --loglevel error --no-audit --no-fund --no-package-lock
	touch $@

clean:
	rm -rf $(MAKE_DIR) target
