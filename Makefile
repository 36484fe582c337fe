# Two commands do everything: `make run` and `make test`. What is missing is installed with apt.

# One that was brought a moment ago is not in everybody's PATH.
CARGO ?= $(or $(shell PATH="$${CARGO_HOME:-$$HOME/.cargo}/bin:$$PATH" command -v cargo),cargo)
CONFIG ?= config.json
PACKAGES := btrfs-progs bubblewrap build-essential ca-certificates curl e2fsprogs git nodejs procps python3 python3-pip \
	python3-setuptools util-linux xfsprogs
PROGRAMS := btrfs bwrap cc curl git mke2fs mkfs.xfs node pip3 ps python3 setpriv
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
# A test that needs a larger machine than this one says so; nothing is skipped.
export RUST_BACKTRACE ?= 1

# gVisor as Debian has it: the version of its stable release, and the one that is recommended.
RUNSC := target/runsc/bookworm target/runsc/bookworm-backports

.PHONY: help run test check walls contract test-vm newcomer deb tarball package fuzz simulate torture bench compare soak mutants audit build tools runsc clean

help:
	@echo "make run     build, start the daemon on $(CONFIG) with the sandboxes of desired/"
	@echo "make test    every check"
	@echo "make check   the quick ones, without root"
	@echo "make walls   every attack on the walls, and nothing else"
	@echo "make contract  everything that the OpenAPI document says may be asked, and some that it says is wrong"
	@echo "make test-vm  what only cgroup v2 and systemd can show, in an emulated machine; MACHINE=systemd TOPIC=service for one"
	@echo "make newcomer  what README.md says, to the letter, on fresh Debians; NEWCOMER=bookworm for one"
	@echo "make deb     a package, in target/package; make tarball for other systems"
	@echo "make fuzz MINUTES=1 TARGET=http   bad input for each way in, or for one"
	@echo "make simulate SEEDS=100000   many more histories on a machine where everything goes wrong"
	@echo "make torture MINUTES=10      the real daemon, while everything about it is killed, stopped and changed"
	@echo "make bench   sodiumd beside its references, with ratios"
	@echo "make compare the table of README.md: a container engine, gVisor and bubblewrap beside sodiumd"
	@echo "make soak MINUTES=10         an hour's work in ten minutes, and whether the daemon is then what it was"
	@echo "make mutants SHARD=0/100     mistakes made on purpose, and whether a test notices"
	@echo "make audit   licences, sources and duplicate crates "

# As root, the host uids of sandboxes are reserved first, so that nobody else on this host is given any.
run: build runsc
	@[ "$$(id -u)" != 0 ] || ./target/release/sodiumd uids reserve --config $(CONFIG)
	exec ./target/release/sodiumd run --config $(CONFIG)

build: tools
	$(CARGO) build --release --locked

# One stage of the checks: its name, what it says, how long it took, and what runs it alone.
stage = @printf '== %s\n' '$(1)'; began=$$(date +%s); $(2); status=$$?; \
	printf '== %s: %s s\n' '$(1)' $$(( $$(date +%s) - began )); \
	[ $$status = 0 ] || printf '%s failed; alone: %s\n' '$(1)' '$(2)'; exit $$status

test: tools $(RUNSC)
	$(call stage,format,$(CARGO) fmt --check)
	$(call stage,clippy,$(CARGO) clippy --locked --all-targets --quiet -- -D warnings)
	$(call stage,doc,RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --quiet)
	$(call stage,audit,$(MAKE) --no-print-directory audit)
	$(call stage,build,$(CARGO) test --locked --quiet --no-run)
	$(call stage,unit,$(CARGO) test --locked --quiet --lib --bins)
	$(call stage,integration,$(CARGO) test --locked --quiet --test "*")
	$(call stage,contract,$(MAKE) --no-print-directory contract)
	$(call stage,machine,$(MAKE) --no-print-directory test-vm)
	$(call stage,newcomer,$(MAKE) --no-print-directory newcomer NEWCOMER=bookworm)
	$(call stage,torture,$(MAKE) --no-print-directory torture MINUTES=3)

# What takes two minutes and needs neither root nor a runtime: while something is being written.
check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --quiet -- -D warnings
	SEEDS=$(or $(SEEDS),40) $(CARGO) test --locked --quiet --lib -- --skip sweep

# What docs/security.md names, each an attack; part of `make test` too.
WALLS := walls walls_ledger door trees policy fair filter bounds pays driver_contract exec gvisor:: \
	daemon::two_daemons daemon::a_host_uid daemon::a_directory_that store::a_copy_that_was_tampered tidy::every_attack
WALLS_LIB := -p sodiumd -- api::auth api::rate desired:: store::tests
walls: tools $(RUNSC)
	$(CARGO) test --locked --quiet --lib $(WALLS_LIB)
	$(CARGO) test --locked --quiet -p sodium-sys -p sodium-runtime
	$(CARGO) test --locked --quiet -p sodium-model -- plan::tests::policy
	$(CARGO) test --locked --quiet --test it -- $(WALLS)
	$(CARGO) test --locked --quiet --test crowd -- prove

# A hundred seconds of requests that are made of /v1/openapi.json. The program for that is brought from PyPI once.
contract: tools
	$(CARGO) build --locked --quiet
	$(SUDO) tests/contract/run target/debug/sodiumd $(SECONDS)

# A Debian that is booted twice, without systemd and with it. The first time, it is made: some 40 s more.
test-vm: tools
	$(CARGO) build --locked --quiet
	@$(MAKE) --no-print-directory deb PROFILE=release
	$(SUDO) tests/vm/run target/debug "$(MACHINE)" "$(TOPIC)"

# What README.md says, done to the letter on a Debian that has never seen this project: as root in /root, and as a user.
NEWCOMER ?= bookworm trixie
newcomer: tools
	@command -v mmdebstrap >/dev/null || $(APT) install -y --no-install-recommends mmdebstrap >/dev/null
	@$(SUDO) env "PATH=$$PATH" python3 -B tests/newcomer/newcomer.py $(NEWCOMER)

# Every pair of deaths too, and as many histories as asked for; and each order of things with a fault more.
simulate: tools
	SEEDS=$(or $(SEEDS),100000) ALL_PAIRS=1 $(CARGO) test --profile simulate --locked --quiet -p sodiumd --lib simulation
	FAULTS=$(or $(FAULTS),3) WISHES=$(or $(WISHES),2) \
		$(CARGO) test --profile simulate --locked --quiet -p sodiumd --lib protocol_model

# Each target for so long, beside its corpus; ends at the first finding. It needs the compiler's unstable flags.
NIGHTLY := $(shell rustup toolchain list 2>/dev/null | grep -q nightly && echo +nightly)
FUZZ := $(if $(NIGHTLY),$(CARGO) $(NIGHTLY),RUSTC_BOOTSTRAP=1 $(CARGO)) fuzz
FUZZ_TARGETS := $(or $(TARGET),$(basename $(notdir $(wildcard tests/fuzz/bin/*.rs))))
fuzz: tools
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --locked --quiet
	@for target in $(FUZZ_TARGETS); do \
		echo "== $$target"; mkdir -p target/fuzz/$$target; \
		$(FUZZ) run --fuzz-dir tests/fuzz $$target target/fuzz/$$target tests/fuzz/corpus/$$target -- \
			-max_total_time=$$(( $(or $(MINUTES),1) * 60 )) -max_len=4096 -timeout=20 -rss_limit_mb=4096 -detect_leaks=0 \
			-dict=tests/fuzz/words.dict -print_final_stats=1 -verbosity=0 || { \
		echo "Found something in $$target. Again, on the file named above:"; \
		echo "  $(FUZZ) run --fuzz-dir tests/fuzz $$target tests/fuzz/artifacts/$$target/FILE"; \
		echo "Mended, it stays so if the file lies in tests/fuzz/corpus/$$target."; exit 1; }; \
	done

# First that its judge finds what is wrong, then whether anything is. SEED=… for one again.
TORTURE := python3 -B tests/torture/torture.py --program target/debug/sodiumd --runsc target/runsc/bookworm-backports
torture: tools $(RUNSC)
	$(CARGO) build --locked --quiet
	$(TORTURE) --mistakes
	$(TORTURE) --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

bench: tools $(RUNSC)
	$(CARGO) bench --locked --quiet --bench bars

# The table of README.md.
compare: build target/runsc/bookworm-backports
	@command -v podman >/dev/null || $(APT) install -y --no-install-recommends podman runc >/dev/null
	@python3 -B tests/bench/compare.py target/release/sodiumd target/runsc/bookworm-backports

# SEED=… for other luck, ISOLATION=process where there is no bubblewrap.
soak: tools
	MINUTES=$(or $(MINUTES),10) SEED=$(SEED) ISOLATION=$(ISOLATION) $(CARGO) bench --locked --quiet --bench soak

# What is shipped is linked statically: one package for Debian 12, Ubuntu 24.04 and newer, and a tarball for the rest.
PROFILE ?= dist
HOST = $(shell $(CARGO) -vV | sed -n 's/^host: //p')
BUILT = target/static/$(HOST)/$(PROFILE)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
package: tools
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --locked --bins --profile $(PROFILE) --target $(HOST) --target-dir target/static
	@rm -rf target/package && mkdir -p target/package
	sed 's|"\./images"|"/etc/sodium/images"|; s|"\./desired"|"/etc/sodium/desired"|; s|"\./|"/var/lib/sodium/|' config.json > target/package/config.json
	$(BUILT)/sodiumd man target/package/man
	for shell in bash zsh fish; do $(BUILT)/sodiumd completions $$shell > target/package/$$shell || exit 1; done

deb: package
	@$(CARGO) deb --version >/dev/null 2>&1 || $(CARGO) install cargo-deb@3.8.0 --locked --quiet --debug
	CARGO_TARGET_DIR=target/static $(CARGO) deb --quiet --no-build --no-strip --profile $(PROFILE) --target $(HOST) --output target/package/
	@ls target/package/*.deb

# Unpacked into /usr/local, it is what the package would be in /usr; docs/operating.md has the rest.
tarball: package
	@rm -rf target/package/tree && mkdir -p target/package/tree/bin target/package/tree/share/sodiumd target/package/tree/share/man/man1
	cp $(BUILT)/sodiumd $(BUILT)/sodium-shim target/package/tree/bin/
	cp -r target/package/config.json sandbox.schema.json images packaging/udev.rules LICENSE target/package/tree/share/sodiumd/
	for file in apparmor sodiumd.service; do \
		sed 's|/usr/bin/|/usr/local/bin/|' packaging/$$file > target/package/tree/share/sodiumd/$$file; done
	cp target/package/man/*.1 target/package/tree/share/man/man1/
	tar -C target/package/tree --owner=0 --group=0 --mode=u=rwX,go=rX -czf target/package/sodiumd-$(VERSION)-$(HOST).tar.gz bin share
	@ls target/package/*.tar.gz

# Some of the mistakes at a time: all of them take a day on two cpus.
mutants: tools
	@$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install cargo-mutants@25.3.1 --locked --quiet --debug
	$(CARGO) mutants --workspace --test-workspace=true --shard $(or $(SHARD),0/100) --timeout 120 --output target -- --lib -- --skip simulation --skip protocol_model

audit:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install cargo-deny@0.20.2 --locked --quiet --debug
	$(CARGO) deny --log-level error check bans licenses sources

# Installs only what is not there, so that a second run needs no network.
tools:
	@for program in $(PROGRAMS); do command -v $$program >/dev/null 2>&1 || missing=1; done; \
	[ -x /usr/bin/python3 ] || missing=1; \
	if [ -n "$$missing" ]; then \
		$(APT) install -y --no-install-recommends $(PACKAGES) >/dev/null 2>&1 || \
		{ $(APT) update && $(APT) install -y --no-install-recommends $(PACKAGES); }; \
	fi
	@CARGO=$(CARGO) packaging/toolchain >/dev/null

# From this system's own mirror, with a list of packages of its own: the system's stays as it is.
$(RUNSC): target/runsc/%: | tools
	@mkdir -p target/runsc/$*.apt/lists/partial target/runsc/$*.apt/archives/partial
	@cd target/runsc/$*.apt && \
	mirror=$$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' | head -n 1) && \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror $* main" > sources.list && \
	options="-o Dir::Etc::sourcelist=$$PWD/sources.list -o Dir::Etc::sourceparts=- \
		-o Dir::State::lists=$$PWD/lists -o Dir::State::status=$$PWD/status \
		-o Dir::Cache=$$PWD -o APT::Sandbox::User=" && : > status && \
	apt-get $$options update -qq && apt-get $$options download -qq runsc && \
	mv runsc_*.deb ../$*.deb && dpkg -x ../$*.deb unpacked && mv unpacked/usr/bin/runsc ../$* && \
	touch ../$* && rm -rf ../$*.apt

# Without it everything but gvisor works, and gvisor says what is missing.
runsc: tools
	@[ -x /usr/bin/runsc ] || { $(MAKE) --no-print-directory target/runsc/bookworm-backports && \
		$(APT) install -y ./target/runsc/bookworm-backports.deb >/dev/null; } || \
		echo "gVisor could not be installed; go on without it"

clean:
	$(CARGO) clean
