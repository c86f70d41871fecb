# What a newcomer needs: make demo | build | test | check | bench. Each does its own set-up.
SHELL := /bin/bash
PY := .venv/bin/python
ROUNDS ?= 20
SEED ?=
PART ?=
QUICK ?=

# make demo-disk SOURCE=disk.vhd TARGET=disk.vmdk [CREATE=vmdk-monolithicSparse]: on your own disks; KEEP=1 keeps the files.
SOURCE ?=
TARGET ?=
CREATE ?=
KEEP ?=

.PHONY: scenario site lab build build-asan demo demo-disk test check bench crash fault fuzz live attack docs clean
.DEFAULT_GOAL := build

# The stamp is younger than everything that the build reads.
STAMP := build/stamp
NATIVE := $(wildcard _native/*.pyx _native/*.pxd _native/kernel/*)

build: $(STAMP)

$(STAMP): pyproject.toml setup.py scripts/bootstrap $(NATIVE)
	@scripts/bootstrap
	@mkdir -p build && touch $@

# make demo: a machine comes home, on stand-ins for vCenter and Azure; KEEP=1 keeps the files.
demo: lab
	@$(PY) scripts/demo.py $(if $(KEEP),--keep)

# make site: the same surroundings, until Ctrl-C, to bring the machine home by hand in a second terminal.
site: lab
	@$(PY) scripts/live_site.py $(if $(KEEP),--keep)

demo-disk: build
	@$(PY) scripts/demo_disk.py $(if $(KEEP),--keep) $(if $(CREATE),--create '$(CREATE)') \
		$(if $(SOURCE),'$(SOURCE)') $(if $(TARGET),'$(TARGET)')

# The stand-ins for vCenter and Azure, Go and Node programs, built or fetched once; and PostgreSQL's programs.
lab: build
	@scripts/build-vcenter
	@simlab/azure/install
	@scripts/install-postgresql

# Two processes; the tests of one file stay in order in one of them, since they share what its fixtures start.
test: build lab
	$(PY) -m pytest -q -p no:benchmark --numprocesses 2 --dist loadfile

check: build
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	$(PY) -m mypy.stubtest _native --allowlist _native/stubtest.allow --ignore-unused-allowlist
	$(PY) scripts/generate_docs.py --check

# The kernels once more with ASan and UBSan, beside the others, and their tests on them. PYTHONMALLOC lets ASan see
# the bounds of each buffer, PYTHONSAFEPATH keeps the plain build in this directory out; CPython itself never frees all.
ASAN := build/asan
ON_ASAN = export LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/$(ASAN):$(CURDIR)"; \
	$(PY) -c 'import _native.pack as p; assert "$(ASAN)" in p.__file__, p.__file__' &&
$(ASAN)/stamp: $(STAMP)
	@mkdir -p $(ASAN)/_native && cp _native/*.py $(ASAN)/_native/
	@HOMEWARD_SANITIZE=1 $(PY) setup.py --quiet build_ext --build-lib $(ASAN) --build-temp $(ASAN)/temp >$(ASAN)/log 2>&1 \
		|| { cat $(ASAN)/log; exit 1; }
	@touch $@

build-asan: $(ASAN)/stamp
	@$(ON_ASAN) $(PY) -m pytest -q --capture=sys tests/unit/test_native_*.py tests/property/test_native_*.py

# Measures against qemu-img, rsync, nbdcopy, cmp and three packages, and writes docs/benchmarks.md (4 GiB disks, 15 GiB
# of scratch below TMPDIR); QUICK=1 takes two minutes and only prints. ROUNDS, SEED and BENCH_BYTES are passed on.
bench: build
	@benchmarks/setup
	@QUICK="$(QUICK)" SEED="$(SEED)" ROUNDS="$(if $(filter file,$(origin ROUNDS)),,$(ROUNDS))" BENCH_BYTES="$(BENCH_BYTES)" \
		$(PY) -m pytest -q benchmarks --benchmark-quiet \
		-o python_files='bench_*.py' -o python_functions='bench_*' -o timeout=3600

# Long campaigns: ROUNDS rounds in all, spread over the parts (or those of PART=one,two); the last line says how many held.
# A part's rounds are dealt out to AT_ONCE processes (as many as there are processors); ROUND=n with SEED and PART plays
# the one round n again. Neither changes what a round is.
# make fuzz PART=native takes the kernels alone, built with ASan and UBSan.
crash fault fuzz live attack: build $(if $(filter native,$(PART)),$(ASAN)/stamp)
	@$(if $(filter native,$(PART)),$(ON_ASAN) $(PY) -m tests.campaigns fuzz_native --rounds $(ROUNDS) \
		$(if $(SEED),--seed $(SEED)),\
	$(PY) -m tests.campaigns $@ --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(PART),--part '$(PART)') \
		$(if $(ROUND),--only $(ROUND)) $(if $(AT_ONCE),--at-once $(AT_ONCE)))

# A scenario row of docs/requirements.md, on the stand-ins: make scenario ROW=S-7
ROW ?= S-7
scenario: lab
	@$(PY) -m tests.campaigns.scenario $(ROW)

docs: build
	$(PY) scripts/generate_docs.py

clean:
	rm -rf build .venv _native/*.so *.egg-info
