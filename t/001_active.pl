# The stack becomes active by itself, says what it waits for, and comes back
# after the end of any of its parts.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Parts are ended one after the other, faster than backoff is reset
my $stack = new_stack('main',
	conf => "electric_cm.reconnect_initial_delay = '100 ms'\nelectric_cm.reconnect_max_delay = '500 ms'\n");
my $node = $stack->node;
my $db = 'postgres';

sub becomes
{
	my ($what, $query) = @_;
	return ok(ElectricCM::poll($node, $db, $query), $what);
}

# psql's answer to a statement that fails
sub error
{
	my ($sql) = @_;
	my ($rc, $stdout, $stderr) =
	  $node->psql($db, "\\set VERBOSITY verbose\n$sql");
	return $stderr;
}

my $from_stat_manager = "FROM electric_cm_stat_manager WHERE datname = '$db'";
my $replication =
  "FROM electric_cm_stat_connections WHERE datname = '$db' AND role = 'replication'";

# The lock, held by somebody else

my $holder = $node->background_psql($db);
$holder->query_safe("SELECT pg_advisory_lock(hashtext('electric_cm_$db'))");
my $holder_pid = $holder->query_safe('SELECT pg_backend_pid()');

$node->safe_psql($db, 'CREATE EXTENSION electric_cm');
becomes(
	'waits for the lock, and says who holds it',
	"SELECT status = 'waiting' AND step = 'acquire_lock'
		AND waiting_for LIKE '%$holder_pid%' $from_stat_manager");
is($stack->sql('SELECT electric_cm_exclusive_connection_lock_acquired()'),
	'f', 'does not have the lock');
is($stack->sql('SELECT electric_cm_status()'), 'waiting', 'status is "waiting"');
my $error = error("SELECT electric_cm_await_active('100 ms')");
like($error, qr/57014/, 'awaiting it times out');
like($error, qr/DETAIL:.*acquire_lock.*\b$holder_pid\b/s,
	'... and names the step and the process');
is( $stack->sql("SELECT count(*) FROM pg_replication_slots"),
	0, 'nothing is created without the lock');
is( $stack->sql("SELECT count(*) FROM electric_cm_events
		WHERE event = 'waiting_for_connection_lock' AND datname = '$db'"),
	1, 'an event says so, once');

# A transaction that keeps the slot from being created

my $writer = $node->background_psql($db);
$writer->query_safe('CREATE TABLE pending ()');
$writer->query_safe('BEGIN');
$writer->query_safe('CREATE TABLE pending_too ()');
$holder->query_safe("SELECT pg_advisory_unlock(hashtext('electric_cm_$db'))");
becomes('with the lock, it is starting, as far as the slot',
	"SELECT status = 'starting' AND step = 'create_slot' $from_stat_manager");
is($stack->sql('SELECT electric_cm_exclusive_connection_lock_acquired()'),
	't', 'has the lock');
is($stack->sql('SELECT electric_cm_pg_version() = current_setting($$server_version_num$$)::int'),
	't', 'the version is known before it is active');
$writer->query_safe('COMMIT');
is(error("SELECT electric_cm_await_active('3 s')"),
	'', 'active soon after the transaction that was in the way');
for my $event (qw(connection_lock_acquired pg_info_looked_up ready))
{
	becomes("event \"$event\"", "SELECT count(*) > 0 FROM electric_cm_events WHERE event = '$event' AND datname = '$db'");
}

# The lock, once more, with nothing else in the way

$stack->sql('SELECT electric_cm_stop()');
$holder->query_safe("SELECT pg_advisory_lock(hashtext('electric_cm_$db'))");
$stack->sql('SELECT electric_cm_start()');
becomes('waits for the lock again', "SELECT status = 'waiting' AND waiting_for IS NOT NULL $from_stat_manager");
$holder->query_safe("SELECT pg_advisory_unlock(hashtext('electric_cm_$db'))");
is(error("SELECT electric_cm_await_active('1 s')"),
	'', 'active within a second after the release of the lock');
my $others = $holder->query_safe("SELECT pg_try_advisory_lock(hashtext('electric_cm_$db'))");
is($others, 'f', 'nobody else gets the lock then');
$holder->quit;
$writer->quit;

# A part ends under load, and while nothing happens

$stack->sql('CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, filler text)');
$stack->sql("INSERT INTO t SELECT i, 0, repeat('x', 50) FROM generate_series(1, 200) i");
my $handle = $stack->sql("SELECT electric_cm_create_shape('t')");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set id random(1, 200)
\set other random(201, 100000)
BEGIN;
UPDATE t SET n = n + 1 WHERE id = :id;
INSERT INTO t VALUES (:other, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1;
DELETE FROM t WHERE id = :other + 1;
COMMIT;
});

sub under_load
{
	my ($code) = @_;
	my ($in, $out, $err) = ('', '', '');
	my $before = $stack->sql('SELECT sum(n) FROM t');
	my $load = IPC::Run::start(
		[
			'pgbench', '-n', '-c', 4, '-T', 2, '-f', $script, $node->connstr($db)
		],
		\$in, \$out, \$err);
	ElectricCM::poll($node, $db, "SELECT sum(n) > $before + 100 FROM t")
	  or die 'no load';
	$code->();
	$load->finish;
	is($load->result(0), 0, 'the load goes on undisturbed') or diag($err);
	return;
}

sub check_log
{
	my ($what) = @_;
	my $error = error('SELECT electric_cm_await_flushed(NULL, $$30 s$$)');
	is($error, '', "$what: everything gets into the log");
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	ok($ok, "$what: exactly once ($entries entries)");
	return;
}

# Terminates what the first query finds, and waits until there is another one
# and the stack is active.
sub terminate
{
	my ($what, $select_pid) = @_;
	my $old = $stack->sql($select_pid);
	my $since = $stack->sql("SELECT status_since $from_stat_manager");
	die "no $what" if $old eq '';
	$stack->sql("SELECT pg_terminate_backend($old)");
	becomes("$what ended: it comes back",
		"SELECT coalesce(($select_pid) <> $old, false) AND electric_cm_status() = 'active'");
	return $since;
}

my $walsender = "SELECT backend_pid $replication";
my $consumer = "SELECT pid FROM electric_cm_stat_consumers WHERE datname = '$db'";
my $manager = "SELECT pid $from_stat_manager";
my $launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'electric_cm launcher'";

for my $part ([ 'walsender', $walsender ], [ 'consumer', $consumer ])
{
	my ($name, $query) = @$part;
	my $since;

	$since = terminate("quiet $name", $query);
	is( $stack->sql("SELECT status_since > '$since' $from_stat_manager"),
		't', "quiet $name ended: the stack has not been active in between");
	check_log("quiet $name ended");
	under_load(sub { terminate("busy $name", $query); });
	check_log("busy $name ended");
}
is( $stack->sql("SELECT total_retry_time IS NOT NULL AND last_error IS NOT NULL $from_stat_manager"),
	't', 'the last error is on show');

terminate('manager', $manager);
check_log('manager ended');
under_load(sub { terminate('busy manager', $manager); });
check_log('busy manager ended');
becomes('one launcher, one manager, one consumer',
	"SELECT count(*) = 3 FROM pg_stat_activity WHERE backend_type LIKE 'electric_cm%'");

# The launcher's end does not concern a manager that runs
my $manager_pid = $stack->sql($manager);
my $launcher_pid = $stack->sql($launcher);
$stack->sql("SELECT pg_terminate_backend($launcher_pid)");
is($stack->sql('SELECT electric_cm_status()'), 'active', 'launcher ended: still active');
becomes('launcher ended: there is another one', "SELECT coalesce(($launcher) <> $launcher_pid, false)");
is($stack->sql($manager), $manager_pid, '... and the manager is the same');
terminate('manager of an earlier launcher', $manager);
check_log('launcher and manager ended');

# Nobody is there to start another one
$launcher_pid = $stack->sql($launcher);
becomes('the launcher sleeps',
	"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $launcher_pid");
kill 'STOP', $launcher_pid;
$manager_pid = $stack->sql($manager);
$stack->sql("SELECT pg_terminate_backend($manager_pid)");
becomes('manager ended: it is gone', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $manager_pid)");
is($stack->sql('SELECT electric_cm_status()'), 'waiting', '... and its stack is not said to be active');
kill 'CONT', $launcher_pid;
becomes('active again with another one',
	"SELECT electric_cm_status() = 'active' AND ($manager) <> $manager_pid");

$node->stop;
done_testing();
