# Somebody else consumes or drops the slot while the stack is stopped: logs would
# have a hole, so they are compared with their tables, and an event says so.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';
my $slot = 'electric_cm_postgres';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)');
ok($stack->active, 'active');

my $handle;

sub shape
{
	$handle = $stack->sql("SELECT electric_cm_create_shape('t')");
	$stack->sql(q{INSERT INTO t (t) VALUES ('x')});
	$stack->sql('SELECT electric_cm_await_flushed()');
	return $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
}

my $another = q{detail LIKE 'the replication slot begins beyond the end of the logs%'};
my $new = q{detail = 'the replication slot is a new one'};

# What happens to the log if this happens while the stack is stopped?  reason: why it is
# compared with the table; undef: it is not.
sub while_stopped
{
	my ($what, $reason, $code) = @_;

	cmp_ok(shape(), '>', 0, "$what: a shape");
	my $reader = $stack->reader($handle);
	$node->psql($db, 'SELECT electric_cm_stop()');
	$code->();
	$stack->sql('SELECT electric_cm_start()');
	ok($stack->active, "$what: active");
	if (defined $reason)
	{
		$stack->resyncs($reader, $reason, 't', $what);
	}
	else
	{
		$stack->settle;
		is($stack->events('shapes_resyncing', "occurred_at > '$reader->{since}'"), 0, "$what: no event");
		$stack->goes_on($reader, 't', $what);
	}
	cmp_ok(shape(), '>', 0, "$what: the shape goes on");
	return $stack->goes_on($reader, 't', "$what, and what comes later");
}

while_stopped('nothing happens', undef, sub { });
while_stopped('rows are written', undef, sub {
	$stack->sql(q{INSERT INTO t (t) SELECT 'y' FROM generate_series(1, 1000)});
});
while_stopped('the server is restarted', undef, sub {
	$stack->sql(q{INSERT INTO t (t) VALUES ('y')});
	$node->restart;
});
while_stopped('the server crashes', undef, sub {
	$stack->sql(q{INSERT INTO t (t) VALUES ('y')});
	$node->stop('immediate');
	$node->start;
});
while_stopped('somebody looks at the slot', undef, sub {
	$stack->sql(q{INSERT INTO t (t) VALUES ('y')});
	my $n = $stack->sql(qq{SELECT count(*) FROM pg_logical_slot_peek_binary_changes('$slot', NULL, NULL,
		'proto_version', '1', 'publication_names', 'electric_cm_publication')});
	cmp_ok($n, '>=', 3, 'somebody has seen the changes');
});
while_stopped('somebody consumes the slot', $another, sub {
	$stack->sql(q{INSERT INTO t (t) VALUES ('lost')});
	my $n = $stack->sql(qq{SELECT count(*) FROM pg_logical_slot_get_binary_changes('$slot', NULL, NULL,
		'proto_version', '1', 'publication_names', 'electric_cm_publication')});
	cmp_ok($n, '>=', 3, 'somebody has got the changes');
});
while_stopped('somebody consumes the slot, and the stack that waits for it is stopped again', $another, sub {
	my $client = IPC::Run::start([ 'pg_recvlogical', '-d', $node->connstr($db), '-S', $slot, '--start', '-f', '/dev/null', '-s', '1',
			'-o', 'proto_version=1', '-o', 'publication_names=electric_cm_publication' ]);
	$stack->becomes("SELECT active FROM pg_replication_slots WHERE slot_name = '$slot'", 'somebody uses the slot');
	$stack->sql('SELECT electric_cm_start()');
	$stack->becomes(q{SELECT waiting_for LIKE '%which PID % uses' FROM electric_cm_stat_manager}, 'the stack waits for it');
	$stack->sql(q{INSERT INTO t (t) VALUES ('lost')});
	my $end = $stack->sql('SELECT pg_current_wal_lsn()');
	$stack->becomes("SELECT confirmed_flush_lsn >= '$end' FROM pg_replication_slots", 'somebody has got the changes');
	$stack->sql('SELECT electric_cm_stop()');
	$client->kill_kill;
	$stack->becomes("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'", 'and has gone');
});
while_stopped('somebody advances the slot', $another, sub {
	$stack->sql(q{INSERT INTO t (t) VALUES ('lost')});
	$stack->sql(qq{SELECT pg_replication_slot_advance('$slot', pg_current_wal_lsn())});
});
while_stopped('somebody drops the slot', $new, sub {
	$stack->sql(qq{SELECT pg_drop_replication_slot('$slot')});
});
while_stopped('somebody makes another slot of that name', $another, sub {
	$stack->sql(qq{SELECT pg_drop_replication_slot('$slot')});
	$stack->sql(q{INSERT INTO t (t) VALUES ('lost')});
	$stack->sql(qq{SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')});
});
while_stopped('the slot is dropped after all', $new, sub {
	$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
	is($stack->sql('SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots)'), 0, '... with the publication');
	$stack->sql(q{UPDATE t SET t = 'while it is not published' WHERE id % 2 = 0}, 'DELETE FROM t WHERE id % 3 = 0');
});
while_stopped('the slot is dropped after all, and somebody makes another one', $another, sub {
	$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
	$stack->sql(q{INSERT INTO t (t) VALUES ('lost')});
	$stack->sql(qq{SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')});
});

# The end of the manager by itself is no clean stop, but nobody else can have
# had the slot unnoticed
cmp_ok(shape(), '>', 0, 'a shape');
my $pid = $stack->sql('SELECT pid FROM electric_cm_stat_manager');
$stack->sql("SELECT pg_terminate_backend($pid)");
ok(ElectricCM::poll($node, $db,
		"SELECT electric_cm_status() = 'active' AND pid <> $pid FROM electric_cm_stat_manager"),
	'back after pg_terminate_backend()');
cmp_ok($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), '>', 0, 'the shape goes on');

# The publication goes while it runs: shapes must not go on with a hole
shape();
my $reader = $stack->reader($handle);
$stack->sql('DROP PUBLICATION electric_cm_publication');
$stack->sql(q{INSERT INTO t (t) VALUES ('unpublished')});
$stack->resyncs($reader, 'true', 't', 'publication dropped');
ok($stack->active, 'active again');

# A slot that belongs to somebody else is left alone
$node->psql($db, 'SELECT electric_cm_stop(drop_slot => true)');
$stack->sql(qq{SELECT pg_create_physical_replication_slot('$slot')});
$stack->sql('SELECT electric_cm_start()');
ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', 'failed'), 'another kind of slot: failed');
like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'),
	qr/$slot.*belongs to another/, 'the error says why');
my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_await_active()');
like($err, qr/has failed.*DETAIL:.*$slot.*HINT:.*electric_cm\.slot_name/s, 'waiting is an error, with the fix');
is($stack->sql('SELECT count(*) FROM pg_replication_slots'), 1, 'it is left alone');
$stack->sql("SELECT pg_drop_replication_slot('$slot')");
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active after electric_cm_start() when it is gone');

$node->stop;
done_testing();
