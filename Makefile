# The few commands a person needs. Each recipe is short; what is longer is in packaging/ or tests/kit/.

.DEFAULT_GOAL := help
.PHONY: help demo demo-down quick test test-all fuzz bench deb handbook lint lock ci

# Booting machines needs root: only the program that does it gets it, not the build.
ifneq ($(shell id -u),0)
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
AS_ROOT := CARGO_TARGET_$(HOST)_RUNNER="sudo --preserve-env"
endif

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: ## Boot a throw-away Debian machine with a whole headquarters on it
	@tests/kit/tools.sh demo
	@$(MAKE) --no-print-directory deb
	@cargo build --quiet --example lab
	@$(AS_ROOT) cargo run --quiet --example demo -- up $(RELEASE)

demo-down: ## End the demo's machine; nothing of it stays
	@$(AS_ROOT) cargo run --quiet --example demo -- down

quick: ## Form, and the tests that need no machine: a few minutes
	@tests/kit/tools.sh test
	@tests/kit/test.sh quick

test: ## Install what the tests need, and run them; what repeats another release's story, only where it may differ
	@tests/kit/tools.sh test
	@tests/kit/test.sh test

test-all: ## Run every test there is, and note in tests/tiers/full-pass that they passed
	@tests/kit/tools.sh test
	@tests/kit/test.sh all

fuzz: ## Give one reader, as TARGET=journal, input that nobody would write, until it is stopped or FOR so many seconds
	@test -d "tests/corpus/$(TARGET)" -a -n "$(TARGET)" || { echo "TARGET is one of:" $$(ls tests/corpus); exit 2; }
	@FUZZ=$(or $(FOR),always) cargo test --quiet --config profile.dev.opt-level=1 \
		--bin echoes-appliance fuzz_$(TARGET)_ -- --nocapture

bench: ## Time installing beside Ansible and pyinfra, certificates beside certbot, experiments beside rsync and az
	@tests/kit/tools.sh bench
	@$(MAKE) --no-print-directory deb
	@$(AS_ROOT) cargo run --quiet --release --example bench

deb: ## Build target/debian/echoes-appliance_VERSION_ARCH.deb
	@tests/kit/tools.sh build
	@packaging/deb/build.sh "$$(packaging/build.sh)" target/debian

handbook: ## Build the manual and serve it at http://127.0.0.1:8001 while it is written
	@packaging/handbook.sh serve --dev-addr 127.0.0.1:8001

lint: ## Format, clippy with warnings denied, shellcheck, the manual
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	shellcheck packaging/*.sh packaging/deb/build.sh packaging/deb/prerm tests/kit/*.sh tests/gpu/*.sh .ci/run
	@packaging/handbook.sh build --strict --quiet --site-dir "$(CURDIR)/target/handbook"

lock: ## Resolve every dependency anew
	@packaging/lock.sh

ci: test ## What CI runs
