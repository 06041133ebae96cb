# A stack that is well does not lose its slot to the WAL of small transactions,
# nor to what it writes itself.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.retained_wal_warning = -1
electric_cm.retained_wal_limit = 64MB
electric_cm.min_wal_free_space = -1
max_wal_size = 4GB
checkpoint_timeout = 1h
autovacuum = off
});
my $node = $stack->node;

# by the index: a scan of the table marks pages as all visible, from 19 on, which is WAL of this test's own
my $no_logs = '(SELECT shape FROM _electric_cm.shape_log ORDER BY shape LIMIT 1) IS NULL';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
$stack->sql('CREATE TABLE large (id int PRIMARY KEY, t text)');
ok($stack->active, 'active');

#
# Small transactions, faster than the server logs what is running
#
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
my $began = $stack->sql('SELECT pg_current_wal_lsn()');
my $most = 0;
for (1 .. 10)
{
	for (1 .. 4)
	{
		$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1024 * 1024))) FROM generate_series(1, 4)});
		$stack->sql('INSERT INTO t SELECT count(*) FROM t');
		$stack->sql('SELECT electric_cm_await_flushed()');
	}
	$stack->seen("clock_timestamp() > '" . $stack->sql('SELECT clock_timestamp()') . "'::timestamptz + interval '0.7 s'");
	my $size = $stack->sql('SELECT retained_wal_bytes FROM electric_cm_stat_replication') || 0;
	$most = $size if $size > $most;
}
cmp_ok($stack->sql("SELECT pg_current_wal_lsn() - '$began'"), '>', 150 * 1024 * 1024, 'much more than the limit has been written');
note("the slot held up to $most bytes");
is($stack->events('retained_wal_limit'), 0, '... the slot was let follow');
is($stack->sql('SELECT handle FROM electric_cm_shapes'), $handle, '... and the shape is still there');
my ($ok) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, '... and right');

#
# A log that is larger than the limit is compared, since the slot held too much; then
# the logs of all shapes have to be deleted
#
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '4GB'});
$stack->sql('SELECT pg_reload_conf()');
$stack->sql(q{INSERT INTO large SELECT i, repeat(md5(i::text), 60) FROM generate_series(1, 100000) i});
$stack->sql('SELECT electric_cm_await_flushed()');
$handle = $stack->sql(q{SELECT electric_cm_create_shape('large')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
cmp_ok($stack->sql(q{SELECT pg_total_relation_size('_electric_cm.shape_log')}), '>', 150 * 1024 * 1024, 'a log larger than the limit');
$stack->sql('SELECT electric_cm_stop()');
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '64MB'});
$stack->sql('SELECT pg_reload_conf()');
$stack->write_wal(80);
$stack->seen(q{count(*) = 0 FROM pg_replication_slots}, 'stopped: the slot is dropped');
# who reads a page first may write it to the WAL: hint bits, with checksums (18); prune hints (19)
$stack->sql('VACUUM large', 'VACUUM _electric_cm.shape_log');
$stack->sql('CHECKPOINT');
$began = $stack->sql('SELECT pg_current_wal_lsn()');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active with a new one');
$stack->is_live($handle, 'a large log is compared');
cmp_ok($stack->sql("SELECT pg_current_wal_lsn() - '$began'"), '<', 20 * 1024 * 1024, '... which writes little WAL');
$stack->sql('SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes');
$stack->seen($no_logs, 'the logs are deleted');
cmp_ok($stack->sql("SELECT pg_current_wal_lsn() - '$began'"), '>', 150 * 1024 * 1024, '... which has written as much WAL');
is($stack->sql('SELECT electric_cm_status()'), 'active', '... and is still active');
is($stack->events('retained_wal_limit'), 1, '... the new slot has not reached the limit');
is($stack->events('replication_slot_created'), 2, '... and was not made anew');
cmp_ok($stack->sql('SELECT max(retained_wal_bytes) FROM electric_cm_retained_wal_history WHERE sampled_at > ' .
	q{(SELECT max(occurred_at) FROM electric_cm_events WHERE event = 'replication_slot_created')}), '<', 48 * 1024 * 1024,
	'... nor come near');

#
# Nothing can be done about the space: it comes to an end all the same
#
$stack->sql(q{INSERT INTO t SELECT -i FROM generate_series(1, 20000) i});
$handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
$stack->sql(q{ALTER SYSTEM SET electric_cm.min_wal_free_space = '1000TB'});
$stack->sql('SELECT pg_reload_conf()');
$stack->sql("SELECT electric_cm_drop_shape('$handle')");
$stack->seen($no_logs, 'too little space: the logs are deleted nevertheless');

$node->stop;
done_testing();
