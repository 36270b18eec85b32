# Everything starts here. Each target first makes the machine ready (scripts/setup: quick when there is nothing to do).

CARGO ?= cargo

.PHONY: demo test bench campaign lint setup

# A guest panics in the middle of curl's download; curl gets every byte.
demo: setup
	$(CARGO) build --quiet --workspace --bins
	$(CARGO) run --quiet --package testbed -- demo

# The binaries first: the scenarios run the daemons as real processes, and `cargo test` alone does not build all of them.
test: setup
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-fail-fast

# Figures of this machine, as a table; also out/bench.json and out/bench.svg. Optimised, because they are figures.
bench: setup
	$(CARGO) build --quiet --release --workspace --bins
	$(CARGO) build --quiet --release --package monitor --package reinstate --examples
	$(CARGO) run --quiet --release --package testbed -- bench

# A million hostile inputs, two million machines of which a share of everything is damaged, a hundred thousand
# corruptions of recorded machines, then the whole matrix, a thousand crashes, 240 drowned machines, and ninety crashes
# of an auction's tiers: three hours or four. Stop it at any time; the matrices go on where they were.
campaign: setup
	scripts/setup --all
	$(CARGO) build --quiet --release --workspace --bins
	$(CARGO) run --quiet --release --package hostile -- --runs 1000000
	$(CARGO) run --quiet --release --package hostile -- --scattered --runs 100000
	BACKDOORS_CORRUPTIONS=100000 $(CARGO) test --quiet --release --package introspect a_corrupted_field
	BACKDOORS_CORRUPTIONS=100000 $(CARGO) test --quiet --release --package introspect --test campaign every_walk
	BACKDOORS_CORRUPTIONS=100000 $(CARGO) test --quiet --release --package testbed --test pipeline garbage
	$(CARGO) run --quiet --release --package testbed -- campaign
	$(CARGO) run --quiet --release --package testbed -- repair-campaign
	$(CARGO) run --quiet --release --package testbed -- rubis-campaign

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	$(CARGO) test --package testbed --test tidy
	scripts/deny

setup:
	@scripts/setup
