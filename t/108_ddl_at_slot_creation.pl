# Commands that change tables while a slot is created.  The server's creation does not
# see those of its first phase: what begins in the second one, and all later
# transactions, would be decoded as if the command had not run.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.reconnect_initial_delay = 50ms
max_prepared_transactions = 2
});
my $node = $stack->node;
my @tables = map { "t$_" } 1 .. 5;

$stack->sql('CREATE EXTENSION electric_cm', (map { "CREATE TABLE $_ (id int PRIMARY KEY, a int, b int)" } @tables),
	map { "INSERT INTO $_ SELECT i, i, -i FROM generate_series(1, 100) i" } @tables);
ok($stack->active, 'active') or BAIL_OUT('no stack');
my $id = 1000;
my %reader = map { $_ => $stack->reader($stack->live_shape($_)) } @tables;
$stack->settle;

sub logged
{
	my ($regex, $from) = @_;
	return $node->wait_for_log($regex, $from);
}

# The three phases of the creation, one after the other: older transactions end each.
sub create_slot
{
	my ($commands, $straddles) = @_;
	my $from = -s $node->logfile;
	my ($old, $older, $writer) = map { $node->background_psql($stack->db) } 1 .. 3;

	$stack->sql('SELECT electric_cm_stop()');
	$stack->becomes('SELECT count(*) = 0 FROM pg_stat_replication');
	$stack->sql('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots');
	$old->query_safe('BEGIN; SELECT pg_current_xact_id();');
	$stack->sql('SELECT electric_cm_start()');
	logged(qr/logical decoding found initial starting point/, $from);
	$older->query_safe('BEGIN; SELECT pg_current_xact_id();');
	$stack->sql(@{$commands});
	$old->query_safe('COMMIT;');
	logged(qr/logical decoding found initial consistent point/, $from);
	$writer->query_safe("BEGIN; " . join(' ', map { "INSERT INTO $_ (id) VALUES (" . ++$id . ');' } @tables));
	$older->query_safe('COMMIT;');
	logged(qr/logical decoding found consistent point/, $from);
	$straddles->($writer, $from);
	# the server may be another one by now
	$_->{run}->kill_kill for $old, $older, $writer;
	return;
}

create_slot([ 'ALTER TABLE t1 ADD extra text', 'TRUNCATE t2', 'ALTER TABLE t3 ALTER a TYPE bigint',
		'ALTER TABLE t4 RENAME a TO c; ALTER TABLE t4 RENAME b TO a; ALTER TABLE t4 RENAME c TO b', 'ALTER TABLE t5 REPLICA IDENTITY FULL' ],
	sub {
		my ($writer) = @_;

		# a status check says who is waited for
		$stack->becomes(q{SELECT waiting_for ~ 'the end of older transactions; the oldest is PID [0-9]+' FROM electric_cm_stat_manager},
			'a stack that waits for a transaction names it');
		$writer->query_safe(join(' ', map { "INSERT INTO $_ (id) VALUES (" . ++$id . ');' } @tables) . ' COMMIT;') });
ok($stack->active, 'active behind commands in the first phase');
$stack->sql(map { ("INSERT INTO $_ (id) VALUES (1102)", "UPDATE $_ SET id = id + 2000 WHERE id % 10 = 0", "DELETE FROM $_ WHERE id = 1001") } @tables);
$stack->sql(q{INSERT INTO t1 VALUES (5000, 1, 2, 'extra')}, 'INSERT INTO t3 VALUES (5000, 10000000000, 0)', 'INSERT INTO t4 VALUES (5000, 1, 2)');
$stack->settle;
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all are live');
$stack->goes_on($reader{$_}, $_, "$_: a reader goes on") for @tables;
is($stack->events('shape_resynced', q{detail LIKE 'the stream has other columns%'}), 0, 'no shape had to be resynced for the stream');

# a crash while the straddling transaction is waited for, and one that is prepared
create_slot([ 'ALTER TABLE t1 ADD more text', 'TRUNCATE t2', 'ALTER TABLE t3 ALTER a TYPE numeric' ],
	sub {
		my ($writer, $from) = @_;

		$writer->query_safe(q{PREPARE TRANSACTION 'straddles';});
		$stack->seen(q{waiting_for LIKE '%prepared transaction ''straddles''%' FROM electric_cm_stat_manager}, 'a prepared transaction is waited for');
		$node->stop('immediate');
		$node->start;
		$stack->sql(q{COMMIT PREPARED 'straddles'}) });
ok($stack->active, 'active after a crash');
$stack->sql(map { "INSERT INTO $_ (id) VALUES (1103)" } @tables);
$stack->settle;
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all are live');
$stack->goes_on($reader{$_}, $_, "$_: a reader goes on") for @tables;

# whatever interrupts the creation while it waits, another process goes on with it
my $session = q{FROM pg_stat_activity WHERE application_name = 'electric_cm replication'};
my $number = 0;
for my $interruption (
	[ 'the session is ended', "SELECT pg_terminate_backend(pid) $session" ],
	[ 'the manager is ended', q{SELECT pg_terminate_backend(pid) FROM electric_cm_stat_manager} ],
	[ 'the stack is restarted', 'SELECT electric_cm_restart()' ],
	[ 'the stack is stopped and started', 'SELECT electric_cm_stop()', 'SELECT electric_cm_start()' ])
{
	my ($what, @commands) = @{$interruption};
	$number++;
	create_slot([ 'TRUNCATE t2', "ALTER TABLE t3 ALTER a TYPE varchar(100) USING a::text || 'x'", "ALTER TABLE t1 ADD more$number int" ],
		sub {
			my ($writer) = @_;

			$stack->seen(q{waiting_for LIKE '%PID%' FROM electric_cm_stat_manager}, "$what while it waits");
			my $was = $stack->sql("SELECT pid $session");
			$stack->sql(@commands);
			$stack->seen("count(*) = 1 $session AND pid <> $was", 'another session goes on');
			$stack->seen(q{waiting_for LIKE '%PID%' FROM electric_cm_stat_manager}, '... and waits');
			is($stack->sql('SELECT ours FROM electric_cm_slots'), 't', '... and the slot is the stack\'s');
			$writer->query_safe(join(' ', map { "INSERT INTO $_ (id) VALUES (" . ++$id . ');' } @tables) . ' COMMIT;') });
	ok($stack->active, 'active');
	$stack->sql(map { "INSERT INTO $_ (id) VALUES (" . ++$id . ')' } @tables);
	$stack->settle;
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all are live');
	$stack->goes_on($reader{$_}, $_, "$what, $_: a reader goes on") for @tables;
}

# a limit, which is the only thing that ends it
$stack->sql(q{ALTER SYSTEM SET "electric_cm.retained_wal_limit" = '4 MB'}, q{ALTER SYSTEM SET "electric_cm.wal_report_interval" = '1 s'},
	'SELECT pg_reload_conf()');
create_slot([ 'TRUNCATE t2' ],
	sub {
		my ($writer) = @_;

		$stack->seen(q{waiting_for LIKE '%PID%' FROM electric_cm_stat_manager}, 'it waits');
		$stack->write_wal(8);
		$stack->seen('count(*) = 0 FROM pg_replication_slots', 'a limit drops the slot');
		$stack->seen(q{waiting_for LIKE '%would pass a limit of WAL again' FROM electric_cm_stat_manager}, '... and no other one is created');
		$writer->query_safe('COMMIT;') });
ok($stack->active, 'active, once that transaction has ended');
$stack->settle;
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all are live');
$stack->goes_on($reader{$_}, $_, "a limit, $_: a reader goes on") for @tables;
is($stack->sql("SELECT count(*) FROM electric_cm_slots WHERE ours"), '1', 'one slot is left');

is($stack->events('shape_errored') + $stack->events('shape_invalidated'), 0, 'no shape has ended');
unlike(slurp_file($node->logfile), qr/could not map filen|TRAP:|PANIC:|terminated by signal/, 'nothing could not be decoded');
$node->stop;
done_testing();
