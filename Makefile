# `make demo` shows vmlet at work, `make test` is what CI runs.

CARGO ?= cargo

.PHONY: help
help: ## Says what can be made.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: ## Pulls two images from a registry of its own, boots three VMs of them, and tries them.
	@scripts/install-deps.sh
	@$(CARGO) build --release --bin vmlet
	@scripts/demo.sh

.PHONY: demo-down
demo-down: ## Removes everything that the demo made.
	@scripts/demo-down.sh

.PHONY: test
test: ## Runs all tests, boots of real VMs included. Needs root.
	@scripts/install-deps.sh
	$(CARGO) test --workspace

.PHONY: bench
bench: ## Measures the control plane against its targets: a line a figure (benches/README.md).
	@CARGO=$(CARGO) scripts/bench.sh

.PHONY: fmt
fmt: ## Formats the sources.
	$(CARGO) fmt --all

.PHONY: lint
lint: ## Checks format, lints, documentation and scripts.
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --workspace --no-deps
	@if command -v shellcheck >/dev/null; then shellcheck -x scripts/*.sh scripts/fixtures/*.sh examples/gitops/ci.sh examples/images/*.sh .ci/run; \
	else echo "SKIPPED: shellcheck is not installed (scripts/install-deps.sh shellcheck)" >&2; fi
