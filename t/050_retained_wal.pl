# How much WAL the slot retains, what pins it, and when a warning says so.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.status_check_interval = 1s
electric_cm.consumer_stall_timeout = 2s
electric_cm.retained_wal_warning = 32MB
electric_cm.min_wal_free_space = -1
electric_cm.retained_wal_history_size = 20
max_wal_size = 4GB
autovacuum = off
});
my $node = $stack->node;
my $db = 'postgres';
my $view = 'electric_cm_stat_replication';

sub seen { my ($query, $what) = @_; return $stack->becomes($query, $what); }

sub warnings_in_log { return scalar(() = slurp_file($node->logfile) =~ /WARNING:.*retains/g); }

# What was running is logged, so that the slot can move on
sub log_running_transactions { $stack->sql('CHECKPOINT'); return; }

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
ok($stack->active, 'active');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

#
# A sample is what pg_replication_slots says
#
my $began = $stack->sql('SELECT clock_timestamp()');
my $size = $stack->sql('SELECT electric_cm_report_retained_wal_size()');
is( $stack->sql(qq{SELECT sampled_at > '$began' AND retained_wal_bytes = $size AND current_lsn - restart_lsn = $size
		AND flush_lag_bytes = greatest(0, current_lsn - confirmed_flush_lsn) FROM $view}), 't',
	'a sample that is asked for is taken, returned and shown');
is( $stack->sql(qq{SELECT v.active_pid = s.active_pid AND v.wal_status = s.wal_status
		AND v.restart_lsn <= s.restart_lsn AND v.confirmed_flush_lsn <= s.confirmed_flush_lsn
		AND v.safe_wal_size IS NULL AND v.active AND v.publication_name = 'electric_cm_publication'
		AND v.catalog_xmin_age BETWEEN 0 AND age(s.catalog_xmin)
	FROM $view v JOIN pg_replication_slots s USING (slot_name)}), 't',
	'it agrees with pg_replication_slots');
seen(qq{SELECT wal_free_bytes > 0 AND data_free_bytes > 0 AND shape_log_bytes > 8192 AND wal_bytes_per_second >= 0
		AND pinned_by IS NULL FROM $view}, 'free space, the shape logs and the rate are shown');
seen(qq{SELECT v.total_txns = s.total_txns AND v.total_bytes = s.total_bytes AND v.total_txns > 0
		AND v.spill_txns = s.spill_txns AND v.stream_txns = s.stream_txns
	FROM $view v JOIN pg_stat_replication_slots s USING (slot_name)}, 'what has been decoded is shown');
$stack->sql("SET logical_decoding_work_mem = '64kB'");
$stack->sql(q{ALTER SYSTEM SET logical_decoding_work_mem = '64kB'});
$stack->sql('SELECT pg_reload_conf()');
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i});
$stack->sql('SELECT electric_cm_await_flushed()');
seen("SELECT spill_txns > 0 AND spill_bytes > 64 * 1024 FROM $view", 'a spilled transaction is counted');

#
# An open transaction, in whatever database, is to blame
#
$stack->sql('CREATE DATABASE other');
my $session = $node->background_psql('other', on_error_stop => 0);
$session->query_safe(q{SET application_name = 'forgotten'});
$session->query_safe('BEGIN');
$session->query_safe('CREATE TABLE open_for_long (i int)');
my $pid = $session->query_safe('SELECT pg_backend_pid()');
my $since = $session->query_safe(q{SELECT extract(epoch FROM now())});
$stack->write_wal(20);
log_running_transactions();
seen("SELECT pinned_by LIKE 'an open transaction of PID $pid (forgotten), for 0:%'
		AND extract(epoch FROM pinned_since) = $since FROM $view",
	'an open transaction is named, with its age');
$stack->write_wal(20);
log_running_transactions();
seen("SELECT retained_wal_bytes > 32 * 1024 * 1024 AND flush_lag_bytes < 1024 * 1024 FROM $view",
	'it retains WAL, though everything is flushed');
seen(q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_warning'
		AND severity = 'warning' AND message ~ 'retains \d\d MB of WAL' AND detail ~ 'is 32 MB. It is pinned by: an open transaction'},
	'a warning says so');
$stack->write_wal(70);
seen(q{SELECT count(*) = 2 FROM electric_cm_events WHERE event = 'retained_wal_warning'}, '... again at twice as much');
$node->wait_for_log(qr/WARNING:.*retains.*WARNING:.*retains/s, 0);
is(warnings_in_log(), 2, 'both are in the log');
$session->query_safe('COMMIT');
$session->quit;
for (1 .. 3) { log_running_transactions(); $stack->sql('SELECT electric_cm_await_flushed()'); }
seen(q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_warning_over' AND severity = 'log'},
	'when it is over, an event says that');
is($stack->events('retained_wal_warning'), 2, 'and nothing else was said');
seen("SELECT pinned_by IS NULL AND pinned_since IS NULL FROM $view", 'nothing holds the slot back any more');

# a prepared one, too
$stack->sql(q{BEGIN; INSERT INTO t VALUES (-1); PREPARE TRANSACTION 'forgotten'});
my $xid = $stack->sql('SELECT transaction FROM pg_prepared_xacts');
log_running_transactions();
seen("SELECT pinned_by = 'a prepared transaction, with ID $xid in pg_prepared_xacts' AND pinned_since <= sampled_at FROM $view",
	'a prepared transaction is named');
$since = $stack->sql("SELECT pinned_since FROM $view");
seen("SELECT sampled_at > '$since'::timestamptz + interval '1 s' AND pinned_since = '$since' FROM $view",
	'... since it was first seen');
$stack->sql(q{ROLLBACK PREPARED 'forgotten'});
seen("SELECT pinned_by IS NULL FROM $view", '... and no longer than it is there');

#
# A consumer that hangs
#
$pid = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $pid or die 'no consumer';
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(100001, 150000) i});
seen("SELECT pinned_by LIKE 'consumer 1 (PID $pid)%' FROM $view", 'a consumer that hangs is named');
$stack->write_wal(10);
$stack->sql('SELECT electric_cm_report_retained_wal_size()');
seen("SELECT flush_lag_bytes > 10 * 1024 * 1024 AND flush_lag > '1 s' AND flush_lag < '5 min' FROM $view",
	'how far it lags is shown in bytes and in time');
seen("SELECT wal_bytes_per_second > 0 AND time_to_limit IS NULL
		OR time_to_limit > '0' FROM $view", 'with no limit but the disk, there is time');
kill 'CONT', $pid;
$stack->sql('SELECT electric_cm_await_flushed()');
$stack->sql("SELECT pg_switch_wal()");
$stack->sql('SELECT electric_cm_await_flushed()');
seen("SELECT flush_lag = '0' AND flush_lag_bytes < 64 * 1024 FROM $view", 'it has caught up');
is($stack->sql("SELECT count(*) FROM $view WHERE retained_wal_bytes < 0 OR flush_lag_bytes < 0"), 0, 'nothing is negative');

#
# History and plot
#
seen('SELECT count(*) = 20 FROM electric_cm_retained_wal_history', 'the history is as long as its setting');
is( $stack->sql(q{SELECT bool_and(sampled_at > before) AND max(sampled_at - before) < '10 s'
	FROM (SELECT sampled_at, lag(sampled_at) OVER () AS before FROM electric_cm_retained_wal_history) h}),
	't', '... in order');
is($stack->sql(q{SELECT count(DISTINCT datname) FROM electric_cm_retained_wal_history WHERE wal_status = 'reserved'}), 1,
	'... with the status');
$stack->sql('SELECT electric_cm_report_retained_wal_size() FROM generate_series(1, 50)');
is( $stack->sql(q{SELECT max(sampled_at) - min(sampled_at) > '12 s' FROM electric_cm_retained_wal_history}),
	't', 'samples that are asked for do not use it up');
my @plot = split /\n/, $stack->sql('SELECT electric_cm_retained_wal_plot(40, 8)');
note($_) for @plot;
is(scalar(grep { /^ *(?:\d+ [kMG]B)? [|+][# -]{40}(?: |$)/ } @plot), 8, 'the plot has its rows and columns');
is(scalar(grep { /-{5}.* electric_cm.retained_wal_warning \(32 MB\)$/ } @plot)
	  + scalar(grep { /^farther up: electric_cm.retained_wal_warning/ } @plot), 1, '... and the limit drawn in');
like($plot[0], qr/^WAL retained by replication slot electric_cm_postgres, /, '... and a title');
like($plot[9], qr/^ +0 \+-{40}$/, '... a time axis');
like($plot[10], qr/^ +\d\d:\d\d:\d\d +\d\d:\d\d:\d\d$/, '... with the time');

#
# All slots
#
$stack->sql(q{SELECT pg_create_physical_replication_slot('never_used')});
$stack->sql(q{SELECT pg_create_physical_replication_slot('idle', true)});
$stack->write_wal(5);
for (1 .. 3) { log_running_transactions(); $stack->sql('SELECT electric_cm_await_flushed()'); }
seen(q{SELECT array_agg((slot_name, slot_type, ours, active, verdict)::text ORDER BY slot_name)
	= '{"(electric_cm_postgres,logical,t,t,ok)","(never_used,physical,f,f,ok)"}'
	FROM electric_cm_slots WHERE slot_name ~ 'cm|never'}, 'slots that are well are ok');
like($stack->sql(q{SELECT verdict FROM electric_cm_slots WHERE slot_name = 'idle'}), qr/^idle and holding [5-9]\d* [kM]B$/,
	'one that is idle is not');
$since = $stack->sql(q{SELECT inactive_since FROM electric_cm_slots WHERE slot_name = 'idle'});
isnt($since, '', 'it is known since when');
seen("SELECT clock_timestamp() > '$since'::timestamptz + interval '2 s'");
is($stack->sql(q{SELECT inactive_since FROM electric_cm_slots WHERE slot_name = 'idle'}), $since, '... and stays so');
is( $stack->sql(q{SELECT bool_and(v.restart_lsn IS NOT DISTINCT FROM s.restart_lsn AND v.active = s.active AND v.plugin IS NOT DISTINCT FROM s.plugin
		AND v.datname IS NOT DISTINCT FROM s.database AND v.catalog_xmin_age IS NOT DISTINCT FROM age(s.catalog_xmin)
		AND v.wal_status IS NOT DISTINCT FROM s.wal_status AND v.temporary = s.temporary)
	FROM electric_cm_slots v JOIN pg_replication_slots s USING (slot_name)}), 't', 'the view agrees with pg_replication_slots');
$stack->sql(q{SELECT pg_drop_replication_slot('idle')});

#
# Nobody connected: the stack is stopped, and the launcher goes on
#
$stack->sql('SELECT electric_cm_stop()');
seen("SELECT NOT active AND pinned_by = 'nobody is connected to the slot' AND pinned_since <= sampled_at FROM $view",
	'stopped: that nobody is connected is said');
$began = $stack->sql('SELECT clock_timestamp()');
is($stack->sql('SELECT electric_cm_report_retained_wal_size()'), $stack->sql("SELECT retained_wal_bytes FROM $view"),
	'a sample that is asked for is shown');
is($stack->sql("SELECT sampled_at > '$began' FROM $view"), 't', '... and of now');
$stack->write_wal(70);
seen("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'retained_wal_warning' AND detail LIKE '%nobody is connected%'",
	'a warning comes as usual');
seen("SELECT max(retained_wal_bytes) > 64 * 1024 * 1024 FROM electric_cm_retained_wal_history", 'the history goes on');

#
# Somebody else reads from the slot
#
my $reader = IPC::Run::start(
	[ 'pg_recvlogical', '--dbname', $node->connstr($db) . ' application_name=reader', '--slot', 'electric_cm_postgres', '--start', '--no-loop',
		'--option', 'proto_version=1', '--option', 'publication_names=electric_cm_publication', '--file', '/dev/null' ],
	'>', \my $reader_output, '2>', \my $reader_errors);
seen(q{SELECT active FROM pg_replication_slots WHERE slot_name = 'electric_cm_postgres'});
$pid = $stack->sql(q{SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'electric_cm_postgres'});
seen("SELECT pinned_by = 'PID $pid (reader), which uses the slot' FROM $view", 'stopped: who uses the slot is said');
$since = $stack->sql("SELECT pinned_since FROM $view");
$stack->sql('SELECT electric_cm_start()');
seen(q{SELECT status = 'starting' AND last_error LIKE '%is active for PID%' FROM electric_cm_stat_manager});
seen("SELECT pinned_by = 'PID $pid (reader), which uses the slot' AND pinned_since = '$since'
		AND sampled_at > '$since'::timestamptz + interval '1 s' FROM $view", 'starting: likewise, since it was first seen');
$stack->sql('SELECT electric_cm_stop()');
$stack->sql("SELECT pg_terminate_backend($pid)");
$reader->finish;
seen("SELECT pinned_by = 'nobody is connected to the slot' FROM $view", '... and no longer than it does');
$stack->write_wal(70);				# for it may have moved the slot on

# settings of the server are heeded at once
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '64MB'});
$stack->sql('SELECT pg_reload_conf()');
seen(q{SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = 'electric_cm_postgres'},
	'stopped: a slot that holds more than the limit is dropped');
seen(q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_limit' AND severity = 'error'}, '... and an event says so');
seen("SELECT retained_wal_bytes IS NULL AND active IS NULL AND current_lsn IS NOT NULL FROM $view", '... and nothing is shown of it any more');
is($stack->sql('SELECT electric_cm_report_retained_wal_size() IS NULL'), 't', '... or returned');
is($stack->sql('SELECT electric_cm_status()'), 'stopped', 'it is still stopped');

#
# A slot that is being made waits for whoever was there before it
#
my $follower = $stack->reader($handle);
$stack->sql('DELETE FROM t WHERE id % 10 = 1');
$session = $node->background_psql('other', on_error_stop => 0);
$session->query_safe(q{SET application_name = 'forgotten'});
$session->query_safe('BEGIN');
$session->query_safe('CREATE TABLE open_again (i int)');
$pid = $session->query_safe('SELECT pg_backend_pid()');
$stack->sql('SELECT electric_cm_start()');
seen(q{SELECT status = 'starting' AND step = 'create_slot' FROM electric_cm_stat_manager});
seen("SELECT pinned_by LIKE 'an open transaction of PID $pid (forgotten), for 0:%' AND pinned_since < sampled_at FROM $view",
	'making a slot: the transaction that it waits for is named');
$stack->write_wal(70);
seen(q{SELECT count(*) = 2 FROM electric_cm_events WHERE event = 'retained_wal_limit'}, '... it retains WAL meanwhile');
like($stack->sql(q{SELECT detail FROM electric_cm_events WHERE event = 'retained_wal_limit' ORDER BY occurred_at DESC LIMIT 1}),
	qr/^It is pinned by: an open transaction of PID $pid \(forgotten\)/, '... and the reason is in the event');
$session->query_safe('ROLLBACK');
$session->quit;
ok($stack->active, 'active again');
$stack->resyncs($follower, q{detail = 'the replication slot is a new one'}, 't', 'with a new slot');

$node->stop;
done_testing();
