# The queue of a consumer that stands still fills up: the manager waits for it,
# and neither spins nor stops answering.
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
	return ok(ElectricCM::poll($node, $db, $sql), $what);
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)');
ok($stack->active, 'active');
my $handle = $stack->sql("SELECT electric_cm_create_shape('t')");
$stack->sql("SELECT * FROM electric_cm_shape_log('$handle')");

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
	$stack->settle($lsn);
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	ok($ok, "replay equals table ($entries entries)");
}

$node->stop;
done_testing();
