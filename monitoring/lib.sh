# shellcheck shell=bash
# The exporter with queries.yml, and Prometheus with rules.yml, beside a
# throwaway server.  To be sourced, after bench/lib.sh.
#
# Programs that are not installed are fetched as Debian's packages, and used
# from the temporary directory: nothing is installed, no service is started.

programs=(prometheus promtool prometheus-postgres-exporter)
exporter_url=
prometheus_url=

get_programs() {
    local packages=(prometheus prometheus-postgres-exporter) package
    command -v "${programs[@]}" >/dev/null && return 0
    mkdir "$ECM_TMP/packages"
    (cd "$ECM_TMP/packages" && apt-get -q download "${packages[@]}") >"$ECM_TMP/packages/log" 2>&1 || {
        cat "$ECM_TMP/packages/log" >&2
        die "could not fetch ${packages[*]}; install them (apt-get update may be needed first)"
    }
    for package in "$ECM_TMP"/packages/*.deb; do dpkg-deb -x "$package" "$ECM_TMP/packages/root"; done
    PATH=$ECM_TMP/packages/root/usr/bin:$PATH
}

free_port() {
    perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1")->sockport'
}

# usage: get URL
get() {
    perl -MHTTP::Tiny -e '
        my $r = HTTP::Tiny->new(timeout => 5)->get($ARGV[0]);
        die "$ARGV[0]: $r->{status} $r->{reason}\n" unless $r->{success};
        print $r->{content}' "$1"
}

exporter_answers() { get "$exporter_url/metrics" >"$ECM_TMP/metrics" 2>/dev/null; }

start_exporter() {
    local port
    port=$(free_port)
    exporter_url=http://127.0.0.1:$port
    DATA_SOURCE_NAME="host=$PGHOST user=watcher dbname=postgres sslmode=disable" \
        in_background prometheus-postgres-exporter --web.listen-address="127.0.0.1:$port" \
        --disable-default-metrics --disable-settings-metrics --extend.query-path=monitoring/queries.yml \
        >"$ECM_TMP/exporter.log" 2>&1
    wait_until 20 "the exporter" exporter_answers
}

# What takes minutes and gigabytes in rules.yml takes seconds and megabytes here.
sensitive_rules() {
    sed -e 's/^\( *for:\).*/\1 0s/' \
        -e 's/\(electric_cm_replication_retained_wal_bytes >\) 2147483648$/\1 33554432/' \
        -e 's/\(electric_cm_reader_lag_seconds >\) 3600$/\1 2/' monitoring/rules.yml
}

first_scrape() { [ -n "$(prometheus_query electric_cm_manager_active)" ]; }
prometheus_ready() { get "$prometheus_url/-/ready" >/dev/null 2>&1; }

start_prometheus() {
    local port
    port=$(free_port)
    prometheus_url=http://127.0.0.1:$port
    mkdir "$ECM_TMP/prometheus"
    sensitive_rules >"$ECM_TMP/prometheus/rules.yml"
    promtool check rules "$ECM_TMP/prometheus/rules.yml" >/dev/null
    cat >"$ECM_TMP/prometheus/prometheus.yml" <<YAML
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files: [rules.yml]
scrape_configs:
  - job_name: postgres
    static_configs:
      - targets: ["${exporter_url#http://}"]
YAML
    in_background prometheus --config.file="$ECM_TMP/prometheus/prometheus.yml" \
        --storage.tsdb.path="$ECM_TMP/prometheus/data" --web.listen-address="127.0.0.1:$port" \
        >"$ECM_TMP/prometheus.log" 2>&1
    wait_until 30 "Prometheus" prometheus_ready
    wait_until 20 "the first scrape" first_scrape
}

# usage: prometheus_query EXPRESSION; a line for each series: its labels and its value
prometheus_query() {
    get "$prometheus_url/api/v1/query?query=$(perl -e '$_ = shift; s/(\W)/sprintf "%%%02X", ord $1/ge; print' "$1")" |
        perl -MJSON::PP -0777 -ne '
            for my $s (@{ decode_json($_)->{data}{result} }) {
                my $m = $s->{metric};
                print join(" ", map({ "$_=$m->{$_}" } sort keys %$m), $s->{value}[1]), "\n";
            }'
}

firing() { prometheus_query 'count by (alertname) (ALERTS{alertstate="firing"})' | sed 's/^alertname=//; s/ .*//' | sort; }

# usage: alerts_since TIME; each alert that has fired, with its first and last second
alerts_since() {
    local began
    began=$(query "SELECT extract(epoch FROM '$1'::timestamptz)::int8")
    get "$prometheus_url/api/v1/query_range?query=ALERTS%7Balertstate%3D%22firing%22%7D&start=$began&end=$(date +%s)&step=1" |
        perl -MJSON::PP -MPOSIX=strftime -0777 -ne '
            my @alerts;
            for my $s (@{ decode_json($_)->{data}{result} }) {
                my ($from, $to) = map { strftime("%H:%M:%S", gmtime $_->[0]) } @{ $s->{values} }[0, -1];
                push @alerts, "$from - $to  $s->{metric}{severity}: $s->{metric}{alertname}";
            }
            print "$_\n" for sort @alerts;'
}
