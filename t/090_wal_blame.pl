# What holds WAL back, and whether dropping a slot helps: slots that are being
# made, WAL that others need as well, bursts, and who is named in a warning.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = '1 s'
electric_cm.status_check_interval = '1 s'
electric_cm.reconnect_initial_delay = '50 ms'
electric_cm.retained_wal_limit = '48 MB'
electric_cm.retained_wal_warning = '16 MB'
electric_cm.min_wal_free_space = -1
max_wal_size = '64 MB'
min_wal_size = '32 MB'
autovacuum = off
});
my $node = $stack->node;
my $db = 'postgres';
my $slot = 'electric_cm_postgres';
my $exists = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$slot')";

sub events { my ($condition) = @_; return "(SELECT count(*) FROM electric_cm_events WHERE $condition)"; }
sub write_some { $stack->write_wal($_[0]); return $stack->sql('CHECKPOINT'); }

# Little is retained, by a look from now on: one of before a burst says so, too,
# and then the next one warns of the burst.
sub quiet
{
	my ($what) = @_;
	my $now = $stack->sql('SELECT clock_timestamp()');
	return $stack->seen("retained_wal_bytes < 8 * 1024 * 1024 AND sampled_at > '$now' FROM electric_cm_stat_replication", $what);
}

sub open_transaction
{
	my $session = $node->background_psql($db, on_error_stop => 1);
	$session->query_safe('BEGIN');
	my $pid = $session->query_safe('SELECT pg_backend_pid() FROM pg_current_xact_id()');
	return ($session, $pid);
}

sub end_transaction { my ($session) = @_; $session->query_safe('COMMIT'); $session->quit; return; }

#
# The slot that is being made
#
my ($session, $pid) = open_transaction();
$stack->sql('CREATE EXTENSION electric_cm');
$stack->seen("$exists AND (SELECT confirmed_flush_lsn IS NULL FROM pg_replication_slots)", 'a slot is being made, and waits for a transaction');
write_some(30) for 1 .. 2;
$stack->seen(events("event = 'retained_wal_limit'") . ' = 1', 'it holds too much meanwhile: the limit applies');
is( $stack->sql(q{SELECT message ~ 'which is being created, retains \d+ MB' AND detail ~ 'open transaction of PID \d+.*The creation is given up'
		FROM electric_cm_events WHERE event = 'retained_wal_limit'}),
	't', '... an event says what was done, and for whose sake');
is($stack->sql('SELECT ' . events(q{detail LIKE '%not made by electric_cm%'})), 0, '... and not that it is somebody else\'s');
$stack->seen("NOT $exists", '... it is gone');
$stack->seen("step = 'create_slot' AND waiting_for LIKE '%PID $pid%' FROM electric_cm_stat_manager", '... and not made again as long as it would wait again');
write_some(60);
is($stack->sql("SELECT $exists"), 'f', '... however much is written');
is($stack->sql('SELECT ' . events("event = 'retained_wal_limit'")), 1, '... which is said once');
end_transaction($session);
ok($stack->active, 'as soon as the transaction has ended, the stack is active');
is($stack->sql(q{SELECT status FROM electric_cm_stat_manager}), 'active', '... nor is that counted as a slot that was made anew');

#
# A burst
#
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, v text)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
write_some(100) for 1 .. 3;
$stack->sql('SELECT electric_cm_await_flushed()');
is($stack->sql("SELECT state FROM electric_cm_shapes WHERE handle = '$handle'"), 'live', 'bursts of twice the limit cost a stack that keeps up nothing');

#
# Who is named in the moment of the warning
#
# (by a warning from now on: the burst above may have named the walsender, too)
my $since = $stack->sql('SELECT clock_timestamp()');

sub warned
{
	my ($like, $what) = @_;
	return $stack->seen(events("event = 'retained_wal_warning' AND detail LIKE '$like' AND occurred_at > '$since'") . ' > 0', $what);
}
$stack->sql('ALTER SYSTEM SET electric_cm.retained_wal_limit = -1', 'SELECT pg_reload_conf()');
quiet('quiet');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql('INSERT INTO t VALUES (1)');
write_some(24);
warned("%consumer 1 (PID $consumer)%", 'a consumer that hangs is named at once');
kill 'CONT', $consumer;
$stack->sql('SELECT electric_cm_await_flushed()');
quiet('it goes on, and all is well');

my $walsender = $stack->sql(q{SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication'});
kill 'STOP', $walsender or die 'no walsender';
write_some(24);
warned("%its walsender (PID $walsender)%", 'so is a walsender');
kill 'CONT', $walsender;
$stack->sql('SELECT electric_cm_await_flushed()');
quiet('it goes on as well');

($session, $pid) = open_transaction();
$session->query_safe("INSERT INTO t VALUES (2)");
$stack->sql('ALTER SYSTEM SET track_activities = off', 'SELECT pg_reload_conf()');
write_some(24);
warned("%an open transaction of PID $pid%", 'an open transaction is named before it is old');
end_transaction($session);
$stack->sql('ALTER SYSTEM RESET track_activities', 'SELECT pg_reload_conf()');
$stack->sql('SELECT electric_cm_await_flushed()', 'CHECKPOINT');
quiet('over');

#
# WAL that others hold as well
#
$stack->sql(q{SELECT pg_create_physical_replication_slot('standby', true)}, 'SELECT electric_cm_stop()');
$stack->sql('ALTER SYSTEM SET electric_cm.retained_wal_limit = 32', 'SELECT pg_reload_conf()');
write_some(60);
$stack->seen(events(q{event = 'retained_wal_limit' AND severity = 'warning' AND detail LIKE '%would free nothing. Replication slot "standby" needs%'}) . ' = 1',
	'another slot holds the same WAL: a warning names it');
is($stack->sql("SELECT $exists"), 't', '... and ours stays');
$stack->sql(q{SELECT pg_drop_replication_slot('standby')});
$stack->seen("NOT $exists", 'it is dropped as soon as that helps');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active with a new one');

$stack->sql('SELECT electric_cm_stop()', q{ALTER SYSTEM SET wal_keep_size = '256 MB'}, 'SELECT pg_reload_conf()');
write_some(60);
$stack->seen(events(q{event = 'retained_wal_limit' AND severity = 'warning' AND detail LIKE '%Wal_keep_size (256 MB) needs%'}) . ' = 1', 'wal_keep_size keeps the same WAL: a warning');
is($stack->sql("SELECT $exists"), 't', '... and ours stays');
$stack->sql('ALTER SYSTEM RESET wal_keep_size', 'ALTER SYSTEM SET electric_cm.retained_wal_limit = -1', 'SELECT pg_reload_conf()');

# more than the disk has; what there is is less than half of that, so there is no time
$stack->sql('SELECT electric_cm_start()', q{SELECT pg_create_physical_replication_slot('standby', true)});
ok($stack->active, 'active again');
write_some(20);
$stack->sql('SELECT electric_cm_await_flushed()', 'CHECKPOINT');
quiet('our slot moves on, another does not');
$stack->sql('SELECT electric_cm_stop()');
write_some(50);
$stack->sql(q{ALTER SYSTEM SET electric_cm.min_wal_free_space = 2000000000}, 'SELECT pg_reload_conf()');
write_some(40);
$stack->seen(events(q{event = 'wal_free_space_limit' AND severity = 'warning' AND detail LIKE '%dropping it would free%Replication slot "standby" needs%'}) . ' = 1',
	'too little is free, and another slot holds most of what ours does: a warning names it');
is($stack->sql("SELECT $exists"), 't', '... and ours stays');
$stack->sql(q{SELECT pg_drop_replication_slot('standby')});
$stack->seen("NOT $exists", 'it is dropped as soon as that helps');
$stack->sql('ALTER SYSTEM SET electric_cm.min_wal_free_space = -1', 'SELECT pg_reload_conf()', 'SELECT electric_cm_start()');
ok($stack->active, 'active');

$node->stop;
done_testing();
