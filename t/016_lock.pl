# The exclusive lock, held by somebody else: who holds it is on show, it is
# taken over soon after its release, and an abandoned one can be broken.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $stack = new_stack('main',
	conf => "electric_cm.status_check_interval = '1 s'\nmax_locks_per_transaction = 10\n"
	  . "electric_cm.reconnect_initial_delay = '100 ms'\nelectric_cm.reconnect_max_delay = '500 ms'\n");
my $node = $stack->node;
my $db = 'postgres';
my $lock = "hashtext('electric_cm_$db')";
my $from_stat_manager = "FROM electric_cm_stat_manager WHERE datname = '$db'";

sub poll
{
	my ($what, $sql) = @_;
	return 1 if ok(ElectricCM::poll($node, $db, $sql), $what);
	diag($stack->sql("SELECT * $from_stat_manager"));
	diag($stack->sql('SELECT occurred_at, event, message, detail FROM electric_cm_events ORDER BY occurred_at DESC LIMIT 10'));
	return 0;
}

sub count_events
{
	my ($event) = @_;
	return $stack->sql("SELECT count(*) FROM electric_cm_events WHERE event = '$event' AND datname = '$db'");
}

# A session, with its process number, that calls itself as it is told
sub session
{
	my ($name) = @_;
	my $session = $node->background_psql($db, on_error_stop => 0);
	$session->query_safe("SET application_name = '$name'");
	return ($session, $session->query_safe('SELECT pg_backend_pid()'));
}

sub is_alive { return $stack->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $_[0]"); }

# Time for so many status checks: what must not happen can only be waited for
sub after_checks
{
	my ($n) = @_;
	my $since = $stack->sql('SELECT clock_timestamp()');
	ElectricCM::poll($node, $db, "SELECT clock_timestamp() > '$since'::timestamptz + $n * interval '1 s'")
	  or die;
	return;
}

# An Electric service's lock

my ($electric, $electric_pid) = session('Electric (test)');
$electric->query_safe("SELECT pg_advisory_lock($lock)");
$stack->sql('CREATE EXTENSION electric_cm');
poll('waits, and names the process and its application',
	"SELECT status = 'waiting' AND step = 'acquire_lock'
		AND waiting_for LIKE '%PID $electric_pid%' AND waiting_for LIKE '%\"Electric (test)\"%' $from_stat_manager");
my ($rc, $out, $err) = $node->psql($db, q{SELECT electric_cm_await_active('100 ms')});
like($err, qr/DETAIL:.*PID $electric_pid/s, '... also to who waits for the stack');
is($stack->sql('SELECT count(*) FROM pg_replication_slots'), 0, 'touches nothing meanwhile');

my $released = $electric->query_safe("SELECT clock_timestamp() FROM (SELECT pg_advisory_unlock($lock)) u");
ok($stack->active, 'active after the release');
my $delay = $stack->sql("SELECT extract(epoch FROM occurred_at - '$released')
	FROM electric_cm_events WHERE event = 'connection_lock_acquired'");
cmp_ok($delay, '<', 1, "taken over within a second of the release ($delay s)");
is($electric->query_safe("SELECT pg_try_advisory_lock($lock)"), 'f', 'and then ours');
is($stack->sql("SELECT waiting_for IS NULL OR waiting_for = '' $from_stat_manager"), 't', 'waits for nothing any more');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');

# An abandoned lock.  The setting is off: nobody is touched.

$stack->sql('SELECT electric_cm_stop()');
$electric->query_safe("SELECT pg_advisory_lock($lock)");
$stack->sql('SELECT electric_cm_start()');
poll('waits for a lock whose holder does nothing', "SELECT waiting_for LIKE '%PID $electric_pid%' $from_stat_manager");
after_checks(3);
is(is_alive($electric_pid), 1, 'break_abandoned_lock = off: the holder is left alone');
is(count_events('lock_holder_terminated'), 0, '... and so no event');

# On, but the slot is in use: by a stand-in for Electric
my ($user, $user_pid) = session('user of the slot');
my $recv = IPC::Run::start(
	[ 'pg_recvlogical', '-d', $node->connstr($db), '--slot', "electric_cm_$db", '--start', '--no-loop',
		'-o', 'proto_version=1', '-o', 'publication_names=electric_cm_publication', '-f', '/dev/null' ],
	\undef, '>', \my $recv_out, '2>', \my $recv_err);
poll('the slot is in use', "SELECT active FROM pg_replication_slots WHERE slot_name = 'electric_cm_$db'");
$stack->sql('ALTER SYSTEM SET electric_cm.break_abandoned_lock = on');
$node->reload;
poll('the setting is in effect',
	"SELECT setting = 'on' FROM electric_cm_options WHERE name = 'electric_cm.break_abandoned_lock' AND datname = '$db'");
after_checks(3);
is(is_alive($electric_pid), 1, 'on, and the slot is in use: the holder is left alone');

# Not in use any more
my $log_offset = -s $node->logfile;
my $free_since = $stack->sql('SELECT clock_timestamp()');
$recv->kill_kill;
ok($stack->active, 'on, and the slot is idle: the lock is broken, and the stack active');
poll('the holder has been terminated', "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $electric_pid)");
is(is_alive($user_pid), 1, 'nobody else has');
is( $stack->sql("SELECT severity || ': ' || message FROM electric_cm_events WHERE event = 'lock_holder_terminated'"),
	qq{warning: lock holder terminated: PID $electric_pid, application "Electric (test)"},
	'an event says who it was');
like(slurp_file($node->logfile, $log_offset),
	qr/WARNING: .*lock holder terminated: PID $electric_pid, application "Electric \(test\)"/,
	'... and the log');
cmp_ok($stack->sql("SELECT extract(epoch FROM occurred_at - '$free_since') FROM electric_cm_events WHERE event = 'lock_holder_terminated'"),
	'>=', 1, '... not at the first status check');
$electric->{run}->kill_kill;

# A lock held by somebody who consumes the slot now and then

my $consumed = "SELECT pg_logical_slot_get_binary_changes('electric_cm_$db', NULL, NULL,
	'proto_version', '1', 'publication_names', 'electric_cm_publication')";
$stack->sql('SELECT electric_cm_stop()');
$user->query_safe("SELECT pg_advisory_lock($lock)");
$stack->sql('SELECT electric_cm_start()');
my ($until, $now);
for my $i (1 .. 1000)
{
	# so several times between two checks, in one session, as a machine may be slow
	(my $waits, $now) = (split /\n/, $stack->sql("INSERT INTO t VALUES ($i)", "SELECT count(*) FROM ($consumed) c",
			"SELECT coalesce((SELECT waiting_for LIKE '%PID $user_pid%' $from_stat_manager), false)",
			'SELECT extract(epoch FROM clock_timestamp())'))[ 1, 2 ];
	$until //= $now + 3 if $waits eq 't';
	last if defined $until and $now > $until;
}
ok(defined $until, 'waits for another holder');
is(is_alive($user_pid), 1, 'a slot that is consumed from time to time is not idle');
$user->query_safe("SELECT pg_advisory_unlock($lock)");
ok($stack->active, 'active after the release');

# Without a slot, the holder may be about to create one.

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$user->query_safe("SELECT pg_advisory_lock($lock)");
$stack->sql('SELECT electric_cm_start()');
poll('waits without a slot', "SELECT waiting_for LIKE '%PID $user_pid%' $from_stat_manager");
after_checks(3);
is(is_alive($user_pid), 1, 'no slot: the holder is left alone');
$user->query_safe("SELECT pg_advisory_unlock($lock)");
ok($stack->active, 'active after the release');

# A prepared transaction has nobody to terminate.

$stack->sql('SELECT electric_cm_stop()');
$user->query_safe("BEGIN; SELECT pg_advisory_xact_lock($lock); PREPARE TRANSACTION 'p'; SELECT 1");
$stack->sql('SELECT electric_cm_start()');
poll('waits for a prepared transaction', "SELECT waiting_for LIKE '%held by a prepared transaction%' $from_stat_manager");
after_checks(3);
is(count_events('lock_holder_terminated'), 1, 'nobody is terminated for it');
is(is_alive($user_pid), 1, '... not even its former session');
$stack->sql("ROLLBACK PREPARED 'p'");
ok($stack->active, 'active when it is gone');

# Trying the lock is an error: the lock table is full.  A new session could not
# get in then, so all that is asked goes by way of one that is there.

$stack->sql('ALTER SYSTEM RESET electric_cm.break_abandoned_lock');
$node->reload;
$stack->sql('SELECT electric_cm_stop()');
$user->query_safe("SELECT pg_advisory_lock($lock)");
my ($other, $other_pid) = session('other');
my ($third, $third_pid) = session('third');
$stack->sql('SELECT electric_cm_start()');
poll('waits for the lock', "SELECT waiting_for LIKE '%PID $user_pid%' $from_stat_manager");
# one fills the table of locks, the others that of their holders, which from 19
# on has more room
$user->query('SELECT count(pg_advisory_lock_shared(i)) FROM generate_series(1, 1000000) i');
$other->query('SELECT count(pg_advisory_lock_shared(i)) FROM generate_series(1, 1000000) i');
$third->query('SELECT count(pg_advisory_lock_shared(i)) FROM generate_series(1, 1000000) i');
my $seen = 0;
for (1 .. 300)
{
	my $answer = $user->query(
		"SELECT count(*) FROM electric_cm_events WHERE event = 'failed_to_acquire_connection_lock' AND datname = '$db'");
	last if $seen = ($answer =~ /^[1-9]/);
	usleep(100_000);
}
ok($seen, 'the lock cannot even be tried: an event says so');
is($user->query("SELECT status || ' ' || last_error_sqlstate || ' ' || (last_error ~ 'shared memory') $from_stat_manager"),
	'waiting 53200 true', '... and status and last_error');
$_->query('SELECT pg_advisory_unlock_all()') for $third, $other, $user;
ok($stack->active, 'active when there is room again');
is($stack->sql("SELECT electric_cm_await_flushed(NULL, '20 s') IS NOT NULL"), 't', 'and it streams');
$_->quit for $third, $other, $user;

# A prepared transaction can hold the lock, and has no process.
$node->psql($db, 'SELECT electric_cm_stop()');
$stack->sql("BEGIN; SELECT pg_advisory_xact_lock($lock); PREPARE TRANSACTION 'p'");
$stack->sql('SELECT electric_cm_start()');
poll('a prepared transaction that holds the lock is waited for, and named',
	q{SELECT status = 'waiting' AND waiting_for LIKE '%held by a prepared transaction%'
	  FROM electric_cm_stat_manager});
$stack->sql("ROLLBACK PREPARED 'p'");
ok($stack->active, 'active when it is gone');

$node->stop;
done_testing();
