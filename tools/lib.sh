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

# Print the address of Debian's archive that this machine uses itself, or with
# "Debian-Security" that of its security updates.
debian_mirror() {
    # shellcheck disable=SC2016   # apt's variables
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
        sed -n "s/^$1 //p" | head -n 1
}

# Print lines for a sources.list with these suites.
debian_sources() {
    local archive security suite keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # before the first update, apt does not know whose its sources are
    [ -n "$(debian_mirror Debian)${ECM_MIRROR:-}" ] || apt-get -qq update >/dev/null || true
    archive=${ECM_MIRROR:-$(debian_mirror Debian)}
    archive=${archive%/}
    [ -n "$archive" ] || die "none of this machine's apt sources is Debian's; set ECM_MIRROR=http://..."
    security=$(debian_mirror Debian-Security)
    for suite in "$@"; do
        echo "deb [signed-by=$keyring] $archive $suite main"
        case $suite in sid | experimental) continue ;; esac
        echo "deb [signed-by=$keyring] $archive $suite-updates main"
        echo "deb [signed-by=$keyring] ${security:-$archive-security} $suite-security main"
    done
}

# What this machine has to say about fetching: proxies, checks.
fetch_settings() { apt-config dump | grep -E '^Acquire::(https?|Retries|Check-[^ ]*)(::[^ ]*)? ' || true; }
