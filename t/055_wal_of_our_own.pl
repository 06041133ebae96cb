# A stack that is well does not lose its slot to the WAL of small transactions,
# nor to what it writes itself.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active becomes replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.retained_wal_warning = -1
electric_cm.retained_wal_limit = 64MB
electric_cm.min_wal_free_space = -1
max_wal_size = 4GB
checkpoint_timeout = 1h
autovacuum = off
});
my $db = 'postgres';

sub value { return $node->safe_psql($db, $_[0]); }
sub seen { my ($query, $what) = @_; return becomes($node, $db, "SELECT $query", $what); }
sub events { my ($event) = @_; return value("SELECT count(*) FROM electric_cm_events WHERE event = '$event'"); }

value('CREATE EXTENSION electric_cm');
value('CREATE TABLE t (id int PRIMARY KEY, t text)');
value('CREATE TABLE large (id int PRIMARY KEY, t text)');
ok(wait_active($node, $db), 'active');

#
# Small transactions, faster than the server logs what is running
#
my $handle = value(q{SELECT electric_cm_create_shape('t')});
value("SELECT count(*) FROM electric_cm_shape_log('$handle')");
my $began = value('SELECT pg_current_wal_lsn()');
my $most = 0;
for (1 .. 10)
{
	for (1 .. 4)
	{
		value(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1024 * 1024))) FROM generate_series(1, 4)});
		value('INSERT INTO t SELECT count(*) FROM t');
		value('SELECT electric_cm_await_flushed()');
	}
	seen("clock_timestamp() > '" . value('SELECT clock_timestamp()') . "'::timestamptz + interval '0.7 s'");
	my $size = value('SELECT retained_wal_bytes FROM electric_cm_stat_replication') || 0;
	$most = $size if $size > $most;
}
cmp_ok(value("SELECT pg_current_wal_lsn() - '$began'"), '>', 150 * 1024 * 1024, 'much more than the limit has been written');
note("the slot held up to $most bytes");
is(events('retained_wal_limit'), 0, '... the slot was let follow');
is(value('SELECT handle FROM electric_cm_shapes'), $handle, '... and the shape is still there');
my ($ok) = replay_equals($node, $db, $handle, 't', ['id']);
ok($ok, '... and right');

#
# The logs of all shapes have to be deleted, since the slot held too much
#
value(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '4GB'});
value('SELECT pg_reload_conf()');
value(q{INSERT INTO large SELECT i, repeat(md5(i::text), 60) FROM generate_series(1, 100000) i});
value('SELECT electric_cm_await_flushed()');
$handle = value(q{SELECT electric_cm_create_shape('large')});
value("SELECT count(*) FROM electric_cm_shape_log('$handle')");
cmp_ok(value(q{SELECT pg_total_relation_size('_electric_cm.shape_log')}), '>', 150 * 1024 * 1024, 'a log larger than the limit');
value('SELECT electric_cm_stop()');
value(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '64MB'});
value('SELECT pg_reload_conf()');
ElectricCM::write_wal($node, $db, 80);
seen(q{count(*) = 0 FROM pg_replication_slots}, 'stopped: the slot is dropped');
value('CHECKPOINT');
$began = value('SELECT pg_current_wal_lsn()');
value('SELECT electric_cm_start()');
ok(wait_active($node, $db), 'active with a new one');
seen('count(*) = 0 FROM _electric_cm.shape_log', 'the logs are deleted');
cmp_ok(value("SELECT pg_current_wal_lsn() - '$began'"), '>', 150 * 1024 * 1024, '... which has written as much WAL');
is(value('SELECT electric_cm_status()'), 'active', '... and is still active');
is(events('retained_wal_limit'), 1, '... the new slot has not reached the limit');
is(events('replication_slot_created'), 2, '... and was not made anew');
cmp_ok(value('SELECT max(retained_wal_bytes) FROM electric_cm_retained_wal_history WHERE sampled_at > ' .
	q{(SELECT max(occurred_at) FROM electric_cm_events WHERE event = 'replication_slot_created')}), '<', 48 * 1024 * 1024,
	'... nor come near');

#
# Nothing can be done about the space: it comes to an end all the same
#
value(q{INSERT INTO t SELECT -i FROM generate_series(1, 20000) i});
$handle = value(q{SELECT electric_cm_create_shape('t')});
value("SELECT count(*) FROM electric_cm_shape_log('$handle')");
value(q{ALTER SYSTEM SET electric_cm.min_wal_free_space = '1000TB'});
value('SELECT pg_reload_conf()');
value("SELECT electric_cm_drop_shape('$handle')");
seen('count(*) = 0 FROM _electric_cm.shape_log', 'too little space: the logs are deleted nevertheless');

$node->stop;
done_testing();
