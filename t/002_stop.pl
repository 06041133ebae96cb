# Stopping, starting and restarting the stack; what becomes of its slot.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $db = 'postgres';

sub value { return $node->safe_psql($db, $_[0]); }

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
	return value(q{SELECT (SELECT count(*) FROM pg_replication_slots) || ' ' ||
		(SELECT count(*) FROM pg_publication)});
}

sub manager_pid
{
	return value("SELECT pid FROM electric_cm_stat_manager WHERE datname = '$db'");
}

value('CREATE EXTENSION electric_cm');
ok(wait_active($node, $db), 'active');
is(left_behind(), '1 1', 'slot and publication are there');

# electric_cm_stop() and electric_cm_start()

my $stderr = warnings_of('SELECT electric_cm_stop()');
like($stderr, qr/WARNING:.*electric_cm_postgres/, 'a warning names the slot that stays');
like($stderr, qr/HINT:.*drop_slot => true/, '... and says how to drop it');
is(left_behind(), '1 1', 'they stay');
is(value('SELECT electric_cm_status()'), 'stopped', 'stopped when it returns');
is( value(q{SELECT count(*) FROM pg_stat_activity
		WHERE backend_type IN ('electric_cm manager', 'electric_cm consumer', 'walsender')}),
	0, 'manager, consumer and walsender are gone when it returns');
is(value("SELECT pg_try_advisory_lock(hashtext('electric_cm_$db'))"), 't', 'the lock is free');

$node->restart;
is( $node->poll_query_until(
		$db, q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE status = 'stopped' AND waiting_for LIKE '%electric_cm_stop%')}),
	1, 'still stopped after a restart of the server, and it says why');
is(left_behind(), '1 1', 'the slot is still there');
is(value('SELECT electric_cm_report_retained_wal_size() >= 0'), 't', '... and is watched');

is(warnings_of('SELECT electric_cm_stop(drop_slot => true)'), '', 'no warning if nothing stays');
is(left_behind(), '0 0', 'slot and publication are gone');
value('SELECT electric_cm_start()');
ok(manager_pid() ne '', 'a manager runs when electric_cm_start() returns');
ok(wait_active($node, $db), 'active again');
is(left_behind(), '1 1', 'slot and publication are there again');
$node->restart;
ok(wait_active($node, $db), 'electric_cm_start() is persistent, too');

# electric_cm_restart()

my $pid = manager_pid();
value('SELECT electric_cm_restart()');
isnt(manager_pid(), $pid, 'another manager runs when electric_cm_restart() returns');
ok(manager_pid() ne '', '... and it does run');
ok(wait_active($node, $db), 'active');

# Shapes survive a stop, and get what was written meanwhile

value('CREATE TABLE t (id int PRIMARY KEY)');
my $handle = value(q{SELECT electric_cm_create_shape('t')});
value(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
warnings_of('SELECT electric_cm_stop()');
value('INSERT INTO t SELECT generate_series(1, 100)');
my $retained = value('SELECT electric_cm_report_retained_wal_size()');
cmp_ok($retained, '>', 0, 'retained WAL is reported while stopped');
value('INSERT INTO t SELECT generate_series(101, 20000)');
cmp_ok(value('SELECT electric_cm_report_retained_wal_size()'),
	'>', $retained, '... and grows');
is( value("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	0, 'the log can be read while stopped');
value('SELECT electric_cm_start()');
value('SELECT electric_cm_await_flushed()');
my ($ok, $entries) = replay_equals($node, $db, $handle, 't', ['id']);
ok($ok, "what was written meanwhile is in the log ($entries entries)");
cmp_ok($entries, '==', 20000, 'all of it');

# electric_cm_drop_replication_slot_on_stop()

value('SELECT electric_cm_drop_replication_slot_on_stop()');
is(warnings_of('SELECT electric_cm_stop()'), '', 'no warning: the slot was to be dropped');
is(left_behind(), '0 0', 'electric_cm_stop() has dropped slot and publication');

value('SELECT electric_cm_start()');
value('SELECT electric_cm_drop_replication_slot_on_stop()');
$node->restart;
ok($node->log_contains('shutting down'), 'restarted');
ok(wait_active($node, $db), 'active after a fast restart');
my ($rc, $stdout, $err) = $node->psql($db, "SELECT * FROM electric_cm_shape_log('$handle')");
like($err, qr/does not exist/, 'the shape went with its slot');
is(left_behind(), '1 1', 'slot and publication were made again');

value('SELECT electric_cm_drop_replication_slot_on_stop()');
$node->stop('fast');
# look at what is on disk: nothing could be made again in a stopped server
is_deeply([ glob($node->data_dir . '/pg_replslot/*') ], [], 'a fast shutdown has dropped the slot');
$node->start;
ok(wait_active($node, $db), 'active again');

value('SELECT electric_cm_drop_replication_slot_on_stop()');
my $slot_since = value('SELECT restart_lsn FROM pg_replication_slots');
value('CREATE TABLE keeps_its_shape (id int PRIMARY KEY)');
$handle = value(q{SELECT electric_cm_create_shape('keeps_its_shape')});
value(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
$pid = manager_pid();
value("SELECT pg_terminate_backend($pid)");
ok( $node->poll_query_until(
		$db, "SELECT electric_cm_status() = 'active' AND pid <> $pid
			FROM electric_cm_stat_manager"),
	'back after pg_terminate_backend()');
is(value("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	0, 'pg_terminate_backend() does not drop the slot: the shape is still there');
$node->stop('fast');
isnt(scalar(my @slots = glob($node->data_dir . '/pg_replslot/*')), 0,
	'the flag has ended with the manager');
$node->start;
ok(wait_active($node, $db), 'active again');

value('SELECT electric_cm_drop_replication_slot_on_stop()');
value('SELECT electric_cm_drop_replication_slot_on_stop(false)');
warnings_of('SELECT electric_cm_stop()');
is(left_behind(), '1 1', 'the flag can be taken back');

# Disabling counts as a stop

value('SELECT electric_cm_start()');
value('SELECT electric_cm_drop_replication_slot_on_stop()');
value("ALTER DATABASE $db SET electric_cm.enabled = off");
$node->reload;
ok($node->poll_query_until($db, 'SELECT electric_cm_status()', 'stopped'), 'disabled');
is(left_behind(), '0 0', 'disabling has dropped slot and publication');
value("ALTER DATABASE $db RESET electric_cm.enabled");
$node->reload;
ok(wait_active($node, $db), 'enabled again');

# A publication that is the user's own is never dropped

value('SELECT electric_cm_stop(drop_slot => true)');
value('CREATE PUBLICATION electric_cm_publication');
value('SELECT electric_cm_start()');
ok(wait_active($node, $db), 'active with a publication that was there before');
value('SELECT electric_cm_stop(drop_slot => true)');
is(left_behind(), '0 1', 'it is not dropped');

value('SELECT electric_cm_start()');
ok(wait_active($node, $db), 'active');

$node->stop;
done_testing();
