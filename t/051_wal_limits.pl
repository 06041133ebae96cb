# What happens when the slot retains more WAL than it may: it is dropped, and another
# one made, in whatever state the stack is, but not for ever.  The shapes live.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.retained_wal_warning = 16MB
electric_cm.retained_wal_limit = 48MB
electric_cm.min_wal_free_space = -1
max_wal_size = 4GB
autovacuum = off
});
my $node = $stack->node;
my $db = 'postgres';
my $slot = 'electric_cm_postgres';
my $exists = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$slot')";

sub seen
{
	my ($query, $what) = @_;
	return $stack->becomes($query =~ /^SELECT/ ? $query : "SELECT $query", $what);
}
sub count_of { my ($event) = @_; return "(SELECT count(*) FROM electric_cm_events WHERE event = '$event')"; }

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
ok($stack->active, 'active');
my $handle = $stack->live_shape('t');
my $reader = $stack->reader($handle);
my $new_slot = q{detail = 'the replication slot is a new one'};

#
# While it streams: three times in an hour, then it has failed
#
for my $time (1 .. 4)
{
	$stack->sql("INSERT INTO t SELECT $time * 1000 + i, 'x' FROM generate_series(1, 100) i");
	$stack->sql('SELECT electric_cm_await_flushed()');
	$stack->goes_on($reader, 't', "slot $time");

	my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
	kill 'STOP', $consumer or die 'no consumer';
	$stack->sql("INSERT INTO t VALUES ($time * 1000 + 500, 'for the consumer')");
	$stack->write_wal(60);
	seen(count_of('retained_wal_limit') . " = $time", '... reaching the limit is an event');
	like($stack->sql(q{SELECT message FROM electric_cm_events WHERE event = 'retained_wal_limit' ORDER BY occurred_at DESC LIMIT 1}),
		qr/^replication slot "$slot" retains \d+ MB of WAL, more than electric_cm.retained_wal_limit$/, '... that says what');
	if ($time < 4)
	{
		kill 'CONT', $consumer;
		seen(count_of('replication_slot_dropped') . " = $time AND " . count_of('replication_slot_created') . ' = 1 + ' . $time
			. q{ AND electric_cm_status() = 'active'}, '... a new slot is made');
		$stack->resyncs($reader, $new_slot, 't', "slot $time reaches the limit");
		seen('SELECT retained_wal_bytes < 48 * 1024 * 1024 FROM electric_cm_stat_replication', '... which holds little');
	}
	else
	{
		seen(q{electric_cm_status() = 'failed'}, 'the fourth time within an hour, the stack has failed');
		kill 'CONT', $consumer;
	}
}
like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'), qr/made anew more than 3 times within an hour.*retains/, '... and says why');
seen("NOT $exists", '... and the slot is dropped all the same');
is($stack->sql('SELECT ' . count_of('retained_wal_limit')), 4, 'each time one event');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'connection_error' AND message LIKE '%retains%'}), 0, '... not two');
is($stack->exists_shape($handle), 1, '... and the shape lives');
$stack->sql('DELETE FROM t WHERE id % 2 = 0', 'SELECT electric_cm_start()');
ok($stack->active, 'it can be started again');
$stack->resyncs($reader, $new_slot, 't', 'started again');

#
# While it waits for the lock: the slot is ours, and nobody uses it
#
my $holder = $node->background_psql($db);
$holder->query_until(qr/waiting/, "\\echo waiting\nSELECT pg_advisory_lock(hashtext('$slot'));\n");
$stack->sql('SELECT electric_cm_restart()');
seen(q{electric_cm_status() = 'waiting'}, 'waiting for the lock');
$stack->write_wal(60);
seen("NOT $exists", '... the slot is dropped');
$stack->sql('DELETE FROM t WHERE id % 3 = 0');
$holder->quit;
ok($stack->active, 'active again');
$stack->resyncs($reader, $new_slot, 't', 'waiting for the lock');

#
# While it has failed for another reason
#
$stack->sql('CREATE TABLE watched (id int PRIMARY KEY)');
$stack->sql(q{ALTER PUBLICATION electric_cm_publication SET (publish = 'insert')});
seen(q{electric_cm_status() = 'failed'}, 'failed');
seen("SELECT count(*) = 1 FROM electric_cm_stat_replication WHERE pinned_by = 'nobody is connected to the slot'", '... nobody is connected');
$stack->write_wal(20);
seen('SELECT retained_wal_bytes > 16 * 1024 * 1024 FROM electric_cm_stat_replication', '... what the slot holds is seen');
$stack->write_wal(40);
seen("NOT $exists", '... the slot is dropped');
is($stack->sql('SELECT electric_cm_status()'), 'failed', '... and that is all');
$stack->sql(q{ALTER PUBLICATION electric_cm_publication SET (publish = 'insert, update, delete, truncate')});
$stack->sql('SELECT pg_reload_conf()');
ok($stack->active, 'active again');
$reader = $stack->reader($stack->live_shape('t'));	# the publication has ended the other one

#
# While it is disabled, across a restart of the server: with the database's own limit
#
$stack->sql('ALTER DATABASE postgres SET electric_cm.enabled = off');
$stack->sql('ALTER DATABASE postgres SET electric_cm.retained_wal_limit = 96');
$stack->sql('SELECT pg_reload_conf()');
seen(q{electric_cm_status() = 'stopped'}, 'disabled');
$stack->write_wal(70);
$node->restart;
seen('SELECT retained_wal_bytes > 70 * 1024 * 1024 FROM electric_cm_stat_replication', '... what the slot holds is seen, also after a restart');
is($stack->sql("SELECT $exists"), 't', '... a limit of the database counts');
seen(q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_warning' AND occurred_at > pg_postmaster_start_time()}, '... the warning comes again');
$stack->write_wal(40);
seen("NOT $exists", '... and is enforced');
$stack->sql('DELETE FROM t WHERE id % 5 = 0');
$stack->sql('ALTER DATABASE postgres RESET electric_cm.enabled');
$stack->sql('ALTER DATABASE postgres RESET electric_cm.retained_wal_limit');
$stack->sql('SELECT pg_reload_conf()');
ok($stack->active, 'active again');
$stack->resyncs($reader, $new_slot, 't', 'enabled again');

#
# Not listed any more, and the server has been restarted
#
$stack->sql(q{ALTER SYSTEM SET electric_cm.databases = 'none'});
$stack->sql('SELECT pg_reload_conf()');
seen(q{electric_cm_status() = 'stopped'}, 'not listed');
$node->restart;
seen('SELECT count(*) = 1 FROM electric_cm_stat_replication WHERE retained_wal_bytes IS NOT NULL',
	'... the slot is watched, also after a restart');
seen(q{SELECT waiting_for = 'not listed in electric_cm.databases' FROM electric_cm_stat_manager}, '... for a reason that is shown');
is($stack->sql('SELECT electric_cm_status()'), 'stopped', '... and nothing else happens');
$stack->write_wal(60);
seen("NOT $exists", '... and dropped');
$stack->sql('DELETE FROM t WHERE id % 7 = 0');
$stack->sql('ALTER SYSTEM RESET electric_cm.databases');
$stack->sql('SELECT pg_reload_conf()');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active again');
$stack->resyncs($reader, $new_slot, 't', 'listed again');

#
# A slot that somebody else has made, or uses, is not ours to drop
#
$stack->sql('SELECT electric_cm_stop()');
$stack->sql(q{SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')});
$stack->sql(q{ALTER DATABASE postgres SET electric_cm.slot_name = 'theirs'});
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active with a slot that was there');
$stack->sql('SELECT electric_cm_stop()');
$stack->write_wal(60);
seen(q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_limit' AND detail LIKE '%was not made by electric_cm%'},
	'stopped: that it holds too much is said');
$stack->write_wal(10);
seen('SELECT retained_wal_bytes > 69 * 1024 * 1024 FROM electric_cm_stat_replication');
is($stack->sql(q{SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'theirs'}), 1, '... but it stays');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'retained_wal_limit' AND detail LIKE '%was not made by electric_cm%'}),
	1, '... and that is said once');

$node->stop;
done_testing();
