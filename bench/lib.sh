# shellcheck shell=bash
# Shared by the programs here, which run by way of tools/sandbox: throwaway
# servers that listen on a Unix socket of their own and nowhere else, waiting
# with a deadline, replaying a shape log.  To be sourced, in the top directory.
. tools/lib.sh
shopt -s inherit_errexit
[ -n "${ECM_TMP:-}" ] || die "run this by way of make, or of tools/sandbox"

# What psql & co. talk to is chosen by use_server.
export PGUSER=postgres PGDATABASE=postgres PGAPPNAME=${0##*/}

say() { printf '%s\n' "$*"; }
title() { printf '\n%s\n' "$*"; }

# One statement or script; unaligned rows without header, errors end us.
sql() { psql -XqAt -v ON_ERROR_STOP=1 "$@"; }
query() { sql -c "$1"; }

data_dir() { echo "$ECM_TMP/$1/data"; }
server_log() { echo "$ECM_TMP/$1/server.log"; }
use_server() { export PGHOST=$ECM_TMP/$1; }

# usage: new_server NAME [LINE...]
# Further lines for postgresql.conf; the last one of a setting counts.
new_server() {
    local name=$1
    shift
    mkdir -p "$ECM_TMP/$name"
    initdb --no-sync --auth=trust --username="$PGUSER" --pgdata="$(data_dir "$name")" >"$ECM_TMP/$name/initdb.log"
    {
        cat "$TEMP_CONFIG"
        echo "listen_addresses = ''"
        echo "unix_socket_directories = '$ECM_TMP/$name'"
        echo "wal_level = logical"
        echo "shared_preload_libraries = 'electric_cm'"
        printf '%s\n' "$@"
    } >>"$(data_dir "$name")/postgresql.conf"
}

# usage: server NAME start|stop|restart [OPTION...]
server() {
    local name=$1
    shift
    pg_ctl -s -w -t 60 -D "$(data_dir "$name")" -l "$(server_log "$name")" "$@" || {
        tail -n 20 "$(server_log "$name")" >&2
        die "pg_ctl $* failed"
    }
}

# usage: build_other DIRECTORY
# Builds another version of the extension, whose sources are there, in a git worktree
# say.  Servers have that one whose TEMP_CONFIG is $ECM_TMP/other.conf.
build_other() {
    local other=$ECM_TMP/other
    grep -q "$ECM_TMP/dest" "$TEMP_CONFIG" || die "two versions need a server with extension_destdir or extension_control_path"
    mkdir -p "$other/src"
    tar -C "$1" --exclude=./.git --exclude='*.o' --exclude='*.so' -cf - . | tar -C "$other/src" -xf -
    {
        make -s -C "$other/src" -j"$JOBS" PG_CONFIG="$PG_CONFIG"
        make -s -C "$other/src" PG_CONFIG="$PG_CONFIG" DESTDIR="$other/dest" install
    } >"$other/build.log" 2>&1
    sed "s|$ECM_TMP/dest|$other/dest|g" "$TEMP_CONFIG" >"$ECM_TMP/other.conf"
}

# usage: start_version this|before [LINE...]
# Starts a server of that name with this version, or the one of the directory BEFORE, and
# uses it.
start_version() {
    local version=$1 config=$TEMP_CONFIG
    shift
    if [ "$version" = before ]; then
        [ -f "$ECM_TMP/other.conf" ] || build_other "$BEFORE"
        config=$ECM_TMP/other.conf
    fi
    TEMP_CONFIG=$config new_server "$version" "$@"
    server "$version" start
    use_server "$version"
}

# usage: wait_until SECONDS WHAT COMMAND...
wait_until() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || die "gave up waiting for $what"
        sleep 0.1
    done
}

# The command's failure is its problem; it is ended with us.
background=()
in_background() { "$@" & background+=($!); }
end_background() {
    local pid
    for pid in "${background[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${background[@]}"; do wait "$pid" 2>/dev/null || true; done
    background=()
}

# A consumer that was stopped by a signal can't be ended by one before it goes on.
consumer_pid=
let_consumer_go() { [ -z "$consumer_pid" ] || kill -CONT "$consumer_pid" 2>/dev/null || true; }
trap 'let_consumer_go; end_background' EXIT

# SIGSTOP can hit a process that holds one of the server's internal locks, for
# writing WAL say, and then everybody waits.  A consumer that hangs by itself
# doesn't, so stop it where it waits for the stream; tell by a session that
# must answer.
waits_when_stopped() {
    kill -STOP "$consumer_pid"
    [ "$(timeout 1 psql -XAtc "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $consumer_pid")" = Extension ] &&
        return 0
    let_consumer_go
    return 1
}
stop_consumer_where_it_waits() {
    consumer_pid=$(query "SELECT pid FROM electric_cm_stat_consumers WHERE datname = current_database()")
    wait_until 20 "a moment to stop the consumer" waits_when_stopped
}

await_active() { query "SELECT electric_cm_await_active('60 s')" >/dev/null; }

# usage: create_live_shape TABLE [WHERE_CLAUSE]; prints the handle
create_live_shape() {
    local handle
    handle=$(sql -v table="$1" -v where="${2:-}" <<<"SELECT electric_cm_create_shape(:'table', nullif(:'where', ''))")
    query "SET statement_timeout = '60 s'; SELECT FROM electric_cm_shape_log('$handle', max_entries => 1)" >/dev/null || {
        # what somebody would need to know who was not there
        query "SELECT state, waiting_for FROM electric_cm_shapes WHERE handle = '$handle'" >&2
        query "SELECT pid, backend_type, application_name, wait_event, pg_blocking_pids(pid), left(query, 80) FROM pg_stat_activity" >&2
        query "SELECT * FROM electric_cm_events" >&2
        die "shape $handle of $1 did not become live"
    }
    echo "$handle"
}

# usage: replay HANDLE TABLE; prints ENTRIES|ROWS|MISSING|EXTRA|ODD
#
# Replays a shape's log in SQL as of now, by the functions of t/lib/replay.sql,
# made for this session only.  MISSING rows are in the table only, EXTRA ones in
# the replay only, and ODD entries are out of place.
replay() {
    {
        sed -e '/^CREATE SCHEMA/d' -e 's/\<ecm_test\>/pg_temp/g' t/lib/replay.sql
        cat <<'SQL'
SET client_min_messages = warning;
SET work_mem = '256MB';
\o /dev/null
SELECT electric_cm_await_flushed(timeout => '120 s');
\o

CREATE TEMP TABLE replayed AS
    SELECT (jsonb_populate_record(NULL::public.:"table", value)).* FROM pg_temp.replayed(:'handle') AS merged (value);

SELECT entries,
    (SELECT count(*) FROM replayed),
    (SELECT count(*) FROM (TABLE :"table" EXCEPT ALL TABLE replayed) AS missing),
    (SELECT count(*) FROM (TABLE replayed EXCEPT ALL TABLE :"table") AS extra),
    odd
FROM pg_temp.check_log(:'handle');
SQL
    } | sql -v handle="$1" -v table="$2"
}

# usage: say_replay HANDLE TABLE; the last line of a program, and its exit code
say_replay() {
    local result entries rows missing extra odd
    result=$(replay "$1" "$2") || die "the log of $2 could not be replayed"
    IFS='|' read -r entries rows missing extra odd <<<"$result"
    if [ "$missing$extra$odd" = 000 ]; then
        say "replay equals table: yes ($entries entries)"
    else
        say "replay equals table: NO ($entries entries; $missing rows only in $2," \
            "$extra only in the replay of $rows, $odd entries out of place)"
        return 1
    fi
}

# usage: median NUMBER...
median() {
    printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 }
        END { printf "%.10g\n", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

describe_machine() {
    local cpu
    cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)
    printf '%s cores (%s), %s GB of memory, Linux %s, %s on %s, %s\n' \
        "$(nproc)" "${cpu:-unknown}" "$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)" \
        "$(uname -r)" "$(query "SHOW fsync" | sed 's/^/fsync /')" \
        "$(df --output=fstype "$ECM_TMP" | tail -n 1)" "$(postgres --version | sed 's/^postgres (\(.*\)) /\1 /')"
}
