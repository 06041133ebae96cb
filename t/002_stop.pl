# Stopping, starting and restarting the stack; what becomes of its slot.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';

sub warnings_of
{
	my ($sql) = @_;
	my ($rc, $stdout, $stderr) = $node->psql($db, $sql);
	is($rc, 0, $sql) or diag($stderr);
	return $stderr;
}

# slot and publication, as "1 1"
sub left_behind
{
	return $stack->sql(q{SELECT (SELECT count(*) FROM pg_replication_slots) || ' ' ||
		(SELECT count(*) FROM pg_publication)});
}

sub manager_pid
{
	return $stack->sql("SELECT pid FROM electric_cm_stat_manager WHERE datname = '$db'");
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
is(left_behind(), '1 1', 'slot and publication are there');

# electric_cm_stop() and electric_cm_start()

my $stderr = warnings_of('SELECT electric_cm_stop()');
like($stderr, qr/WARNING:.*electric_cm_postgres/, 'a warning names the slot that stays');
like($stderr, qr/HINT:.*drop_slot => true/, '... and says how to drop it');
is(left_behind(), '1 1', 'they stay');
is($stack->sql('SELECT electric_cm_status()'), 'stopped', 'stopped when it returns');
is( $stack->sql(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type IN ('electric_cm manager', 'electric_cm consumer', 'walsender')}),
	0, 'manager, consumer and walsender are gone when it returns');
is($stack->sql("SELECT pg_try_advisory_lock(hashtext('electric_cm_$db'))"), 't', 'the lock is free');

$node->restart;
is( ElectricCM::poll($node, 		$db, q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE status = 'stopped' AND waiting_for LIKE '%electric_cm_stop%')}),
	1, 'still stopped after a restart of the server, and it says why');
is(left_behind(), '1 1', 'the slot is still there');
is($stack->sql('SELECT electric_cm_report_retained_wal_size() >= 0'), 't', '... and is watched');

is(warnings_of('SELECT electric_cm_stop(drop_slot => true)'), '', 'no warning if nothing stays');
is(left_behind(), '0 0', 'slot and publication are gone');
$stack->sql('SELECT electric_cm_start()');
ok(manager_pid() ne '', 'a manager runs when electric_cm_start() returns');
ok($stack->active, 'active again');
is(left_behind(), '1 1', 'slot and publication are there again');
$node->restart;
ok($stack->active, 'electric_cm_start() is persistent, too');

# electric_cm_restart()

my $pid = manager_pid();
$stack->sql('SELECT electric_cm_restart()');
isnt(manager_pid(), $pid, 'another manager runs when electric_cm_restart() returns');
ok(manager_pid() ne '', '... and it does run');
ok($stack->active, 'active');

# Shapes survive a stop, and get what was written meanwhile

$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
warnings_of('SELECT electric_cm_stop()');
$stack->sql('INSERT INTO t SELECT generate_series(1, 100)');
my $retained = $stack->sql('SELECT electric_cm_report_retained_wal_size()');
cmp_ok($retained, '>', 0, 'retained WAL is reported while stopped');
$stack->sql('INSERT INTO t SELECT generate_series(101, 20000)');
cmp_ok($stack->sql('SELECT electric_cm_report_retained_wal_size()'),
	'>', $retained, '... and grows');
is( $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	0, 'the log can be read while stopped');
$stack->sql('SELECT electric_cm_start()');
$stack->sql('SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "what was written meanwhile is in the log ($entries entries)");
cmp_ok($entries, '==', 20000, 'all of it');

# electric_cm_drop_replication_slot_on_stop()

my $reader = $stack->reader($handle);
$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
is(warnings_of('SELECT electric_cm_stop()'), '', 'no warning: the slot was to be dropped');
is(left_behind(), '0 0', 'electric_cm_stop() has dropped slot and publication');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 20000, 'the log can be read');
$stack->sql('DELETE FROM t WHERE id % 2 = 0');

$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active');
$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'after a stop that has dropped the slot');
$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
$node->restart;
ok($node->log_contains('shutting down'), 'restarted');
ok($stack->active, 'active after a fast restart');
$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'after a shutdown that has dropped the slot');
is(left_behind(), '1 1', 'slot and publication were made again');

$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
$node->stop('fast');
# look at what is on disk: nothing could be made again in a stopped server
is_deeply([ glob($node->data_dir . '/pg_replslot/*') ], [], 'a fast shutdown has dropped the slot');
$node->start;
ok($stack->active, 'active again');

$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
my $slot_since = $stack->sql('SELECT restart_lsn FROM pg_replication_slots');
$stack->sql('CREATE TABLE keeps_its_shape (id int PRIMARY KEY)');
$handle = $stack->sql(q{SELECT electric_cm_create_shape('keeps_its_shape')});
$stack->sql(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
$pid = manager_pid();
$stack->sql("SELECT pg_terminate_backend($pid)");
ok( ElectricCM::poll($node, 		$db, "SELECT electric_cm_status() = 'active' AND pid <> $pid
			FROM electric_cm_stat_manager"),
	'back after pg_terminate_backend()');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	0, 'pg_terminate_backend() does not drop the slot: the shape is still there');
$node->stop('fast');
isnt(scalar(my @slots = glob($node->data_dir . '/pg_replslot/*')), 0,
	'the flag has ended with the manager');
$node->start;
ok($stack->active, 'active again');

$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop(false)');
warnings_of('SELECT electric_cm_stop()');
is(left_behind(), '1 1', 'the flag can be taken back');

# Disabling counts as a stop

$stack->sql('SELECT electric_cm_start()');
$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
$stack->sql("ALTER DATABASE $db SET electric_cm.enabled = off");
$node->reload;
ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', 'stopped'), 'disabled');
is(left_behind(), '0 0', 'disabling has dropped slot and publication');
$stack->sql("ALTER DATABASE $db RESET electric_cm.enabled");
$node->reload;
ok($stack->active, 'enabled again');

# A publication that is the user's own is never dropped

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql($stack->publication_sql('electric_cm_publication'));
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active with a publication that was there before');
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
is(left_behind(), '0 1', 'it is not dropped');

$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active');

$node->stop;
done_testing();
