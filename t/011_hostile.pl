# What a role with no rights but to log in may try, and what a consumer that
# stands still or has company must not do to the rest.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';

sub poll
{
	my ($what, $sql) = @_;
	return ok($node->poll_query_until($db, $sql), $what);
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE ROLE mallory LOGIN');
$stack->sql('CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)');
ok($stack->active, 'active');
my $handle = $stack->sql("SELECT electric_cm_create_shape('t')");
$stack->sql("SELECT * FROM electric_cm_shape_log('$handle')");

# Orders of the stack's own travel as logical messages; anybody may emit those.
my $id = $stack->sql("SELECT id FROM _electric_cm.shape");
my @forged = ("drop $id $handle x", "mismatch $id", "truncate $id", "capture $id 1",
	"live $id 1 garbage", "create x");
for my $order (@forged)
{
	$node->safe_psql($db,
		"SELECT pg_logical_emit_message(true, 'electric_cm', '$order')",
		extra_params => [ '-U', 'mallory' ]);
}
my ($rc, $out, $err) = $node->psql($db, 'SELECT message_key FROM _electric_cm.stack',
	extra_params => [ '-U', 'mallory' ]);
like($err, qr/permission denied/, 'the key to the orders is a secret');
$stack->sql(q{INSERT INTO t (t) VALUES ('after the forgery')});
$stack->sql("SELECT electric_cm_await_flushed(timeout => '30 s')");
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "forged orders are ignored: replay equals table ($entries entries)");
is($stack->sql('SELECT sum(restarts) FROM electric_cm_stat_consumers'), 0, 'no consumer died of them');

# A prepared transaction can hold the lock, and has no process.
$node->psql($db, 'SELECT electric_cm_stop()');
$node->safe_psql($db,
	"BEGIN; SELECT pg_advisory_xact_lock(hashtext('electric_cm_postgres')); PREPARE TRANSACTION 'p'",
	extra_params => [ '-U', 'mallory' ]);
$stack->sql('SELECT electric_cm_start()');
poll('a prepared transaction that holds the lock is waited for, and named',
	q{SELECT status = 'waiting' AND waiting_for LIKE '%held by a prepared transaction%'
	  FROM electric_cm_stat_manager});
$stack->sql("ROLLBACK PREPARED 'p'");
ok($stack->active, 'active when it is gone');

# The queue of a consumer that stands still fills up: the manager waits for
# it, and neither spins nor stops answering.
sub cpu_ticks
{
	my ($pid) = @_;
	my @stat = split / /, slurp_file("/proc/$pid/stat") =~ s/^.*\) //sr;
	return $stat[11] + $stat[12];
}

SKIP:
{
	skip 'needs /proc', 3 unless -r '/proc/self/stat';
	my $manager = $stack->sql('SELECT pid FROM electric_cm_stat_manager');
	my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');

	# only where it sleeps: it must not be stopped with a lock held
	poll('the consumer is idle',
		"SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $consumer");
	kill 'STOP', $consumer;
	$stack->sql(q{INSERT INTO t (t) SELECT repeat('x', 1000) FROM generate_series(1, 20000)});
	my $lsn = $stack->sql('SELECT pg_current_wal_lsn()');
	poll('the stream stands still',
		"SELECT wait_event IN ('WalSenderWriteData', 'WalSenderMain') FROM pg_stat_activity
		 WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'electric_cm_postgres')");
	my $before = cpu_ticks($manager);
	is($stack->sql('SELECT electric_cm_status() FROM pg_sleep(2)'), 'active', 'status is answered meanwhile');
	my $used = cpu_ticks($manager) - $before;
	cmp_ok($used, '<', 50, "the manager does not spin ($used ticks in 2 s)");
	kill 'CONT', $consumer;
	$stack->sql("SELECT electric_cm_await_flushed('$lsn', '60 s')");
	($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	ok($ok, "replay equals table ($entries entries)");
}

# Several consumers: each shape is one's alone.
$stack->sql("ALTER SYSTEM SET electric_cm.shape_workers = 3");
$stack->sql('SELECT pg_reload_conf()');
poll('three consumers', 'SELECT count(*) = 3 FROM electric_cm_stat_consumers WHERE pid IS NOT NULL');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE u (id int PRIMARY KEY)');
my $second = $stack->sql("SELECT electric_cm_create_shape('u')");
$stack->sql("SELECT * FROM electric_cm_shape_log('$second')");
$stack->sql('INSERT INTO u SELECT generate_series(1, 1000)');
$stack->sql("SELECT electric_cm_await_flushed(timeout => '30 s')");
($ok, $entries) = $stack->replay_equals($second, 'u', ['id']);
ok($ok, "one consumer logs it: replay equals table ($entries entries)");
is($entries, 1000, 'nothing twice');
is($stack->sql('SELECT sum(shapes) FROM electric_cm_stat_consumers'), 2, 'each shape has one consumer');

$node->stop;
done_testing();
