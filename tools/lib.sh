# shellcheck shell=bash
# Shared by the scripts here; to be sourced.

# The major version that is installed where there is no server yet.
PG_MAJOR=${PG_MAJOR:-15}

# The status of a step that cannot run here.  (The scripts that source this use it.)
# shellcheck disable=SC2034
SKIPPED=77

# Where servers and folders that take long to make are kept.  Their users have
# to be able to read it, and root's home is closed.
cache_directory() {
    if [ -n "${ECM_CACHE:-}" ]; then
        echo "$ECM_CACHE"
    elif [ "$(id -u)" = 0 ]; then
        echo /var/cache/electric_cm
    else
        echo "${XDG_CACHE_HOME:-$HOME/.cache}/electric_cm"
    fi
}

note() { printf '# %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Can extensions be built and tested with this pg_config?  Clients' and
# libraries' packages ship one too, and parts of PGXS, so look at all of it.
usable() {
    local pgxs
    pgxs=$("$1" --pgxs 2>/dev/null) && [ -f "$pgxs" ] && [ -x "$("$1" --bindir)/postgres" ] &&
        [ -f "$("$1" --includedir-server)/postgres.h" ] && [ -f "$("$1" --includedir)/libpq-fe.h" ]
}

# Print the pg_config to use: PG_CONFIG if set, else the packaged server of the
# wanted version, else the one in PATH if it has that version.
find_pg_config() {
    local packaged=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config

    if [ -n "${PG_CONFIG:-}" ] && [ "$PG_CONFIG" != pg_config ]; then
        usable "$PG_CONFIG" && command -v "$PG_CONFIG"
    elif usable "$packaged"; then
        echo "$packaged"
    elif usable pg_config; then
        case $(pg_config --version) in
            "PostgreSQL $PG_MAJOR"[!0-9]*) command -v pg_config ;;
            *) return 1 ;;
        esac
    else
        return 1
    fi
}
