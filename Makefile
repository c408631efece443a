# Two commands do everything on a fresh machine with Rust: `make demo` and `make test`.
# CARGO_TARGET_DIR is honoured by all of them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
CARGO := cargo
export CARGO_NET_RETRY ?= 5

.PHONY: help demo run test check fmt bench soak charts setup clean

help: ## Show what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: setup ## Watch an outage: 20,000 tasks survive kill -9 of Redis and of the sidecar
	@echo "==> Building the release binary (a few minutes the first time)"
	$(CARGO) build --release --locked
	@$(TARGET_DIR)/release/redrive demo

run: setup ## Run the sidecar against the Redis on its default port
	$(CARGO) run --release --locked -- serve

test: setup check ## What CI runs: the checks, then all tests
	$(CARGO) test --locked --all-targets
	$(CARGO) test --locked --doc

check: setup ## Format, lints, documentation, licences and bans of dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	scripts/deny

fmt: ## Format the code
	$(CARGO) fmt

bench: setup ## Measure, side by side, and write docs/benchmarks.md
	scripts/bench

soak: setup ## The long tests: a million crashes of the journal
	REDRIVE_CRASH_CASES=1000000 $(CARGO) test --profile quick --locked --lib log::

charts: ## Validate the committed rendering of the chart; render it anew where helm is
	scripts/charts

setup:
	@scripts/setup

clean: ## Remove what was built
	$(CARGO) clean
