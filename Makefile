# electric_cm: a logical replication connection manager inside PostgreSQL
#
#   make, make install, make clean    the usual PGXS build; PG_CONFIG=... chooses the server
#   make check                        every test, against throwaway servers
#   make check-versions               the same with each version of PostgreSQL that Debian has
#   make check-upgrade OLD=17 NEW=18  pg_upgrade from one version to another one
#   make check-patroni                the same shapes under Patroni: restarts, switchovers, kill -9
#   make demo, make soak, make soak-failover, make fuzz, make bench, make bench-throughput
#                                     see it work; see it work for long; with
#                                     whatever tables; see how fast
#   make indent, make indent-check    format the C files; say whether they are
#   make typedefs                     the list of types that this needs, anew
#   make lint                         shellcheck and perlcritic over the scripts
#   make sanitize, make valgrind      the tests with a server that finds more mistakes
#   make coverage                     how much of the code they run
#   make docs-check                   code and documentation agree; the documentation's SQL does what it says
#   make check-examples               the programs in examples/, killed again and again
#   make monitoring-check             exporter, Prometheus and alerts, against a throwaway server
#   make deb, make deb-check          Debian packages; whether they do what they should, in a fresh Debian
#   make dist                         the archive for PGXN
#   make setup                        install what these need (Debian packages)

MODULE_big = electric_cm
EXTENSION = electric_cm
PGFILEDESC = "electric_cm - logical replication connection manager"

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c src/*/*.c)))
DATA = $(sort $(wildcard sql/electric_cm--*.sql))
REGRESS = $(patsubst sql/%.sql,%,$(filter-out $(DATA),$(sort $(wildcard sql/*.sql))))
EXTRA_CLEAN = $(UNIT) plugin/pgoutput$(DLSUFFIX)

PG_CONFIG ?= pg_config
export PG_CONFIG

# Files that know nothing of a server; the unit tests are linked with them.
PURE = src/base/state.c src/base/errors.c src/base/backoff.c src/base/event_name.c \
	src/base/continuity.c src/base/stream_message.c src/shape/offset_epoch.c src/shape/shape_chunk.c src/shape/shape_judge.c \
	src/slot/retained_wal_guard.c src/launcher/stack_decision.c
UNIT = t/unit/unit

SANDBOXED = setup check check-examples check-versions check-upgrade check-patroni docs-check lint indent indent-check sanitize valgrind \
	coverage demo soak soak-failover fuzz bench monitoring-check deb deb-check dist

ifneq ($(filter $(SANDBOXED) demo-% bench-%,$(MAKECMDGOALS)),)

# These install what is missing and make their own throwaway server, so they
# must work where there is no pg_config, hence no PGXS, yet.

.PHONY: $(SANDBOXED)
setup:
	@tools/setup
check:
	@tools/sandbox tools/check
lint sanitize valgrind coverage check-patroni check-versions check-upgrade deb dist:
	@tools/$@
deb-check:
	@tools/package-check $(SUITE)
indent:
	@tools/indent
indent-check:
	@tools/indent --check
demo:
	@tools/sandbox demo/demo
demo-%:
	@tools/sandbox demo/$*
soak soak-failover fuzz:
	@tools/sandbox stress/$@
bench:
	@bench/all
docs-check:
	@tools/sandbox tools/docs-check
monitoring-check:
	@tools/sandbox monitoring/check
check-examples:
	@tools/setup examples
	@tools/sandbox examples/check
bench-electric:
	@tools/setup examples
	@tools/sandbox bench/electric
bench-%:
	@tools/sandbox bench/$*

else

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
SERVER_HEADERS := $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)
ifeq ($(and $(wildcard $(PGXS)),$(wildcard $(SERVER_HEADERS)/postgres.h)),)
$(error $(PG_CONFIG) does not lead to the PostgreSQL server's development files; \
	try "make setup", or make PG_CONFIG=/path/to/pg_config)
endif

# -isystem: our flags are stricter than the server's own headers
PG_CPPFLAGS = -Isrc -isystem $(SERVER_HEADERS) -isystem $(libpq_srcdir)
# Of a compiler that is newer than this: make WERROR=
WERROR ?= -Werror
PG_CFLAGS = -Wall -Wextra $(WERROR)
SHLIB_LINK = $(libpq)

# bitcode for inlining SQL operators is of no use here and would need clang
override with_llvm = no

include $(PGXS)

# PGXS tracks headers only if the server was configured to; there are few
$(OBJS) $(UNIT): $(wildcard src/*.h src/*/*.h) Makefile

# What our walsender loads in place of pgoutput: see there
PLUGIN = plugin/pgoutput$(DLSUFFIX)

all: $(PLUGIN)
$(PLUGIN): plugin/pgoutput.c Makefile
	$(CC) $(CFLAGS) $(CFLAGS_SL) $(CPPFLAGS) $< $(LDFLAGS) $(LDFLAGS_SL) -shared -o $@

.PHONY: install-plugin uninstall-plugin
install: install-plugin
install-plugin: $(PLUGIN)
	$(MKDIR_P) '$(DESTDIR)$(pkglibdir)/electric_cm'
	$(INSTALL_SHLIB) $(PLUGIN) '$(DESTDIR)$(pkglibdir)/electric_cm/'
uninstall: uninstall-plugin
uninstall-plugin:
	rm -f '$(DESTDIR)$(pkglibdir)/electric_cm/pgoutput$(DLSUFFIX)'
	rmdir '$(DESTDIR)$(pkglibdir)/electric_cm' || true

.PHONY: unit-tests typedefs show-regress
unit-tests: $(UNIT)
	prove $(PROVE_FLAGS) --exec '' ./$(UNIT)

$(UNIT): $(sort $(wildcard t/unit/*.c)) $(PURE) $(wildcard t/unit/*.h)
	$(CC) $(CFLAGS) -DECM_UNIT_TEST $(CPPFLAGS) -o $@ $(filter %.c,$^) $(LDFLAGS)

typedefs: all $(UNIT)
	@tools/indent --typedefs $(OBJS) $(PLUGIN) $(UNIT)

show-regress:
	@echo $(REGRESS)

endif
