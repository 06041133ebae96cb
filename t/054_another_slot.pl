# A slot that is not the one that the logs were continued with is never taken for it,
# at whatever moment anybody dies, and whoever has made or moved it.  And a slot that
# is, is never taken for another one.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
restart_after_crash = on
autovacuum = off
checkpoint_timeout = 1h
electric_cm.shape_workers = 2
electric_cm.reconnect_initial_delay = '100 ms'
electric_cm.status_check_interval = '1 s'
max_wal_size = 1GB
});
my $node = $stack->node;
my $db = $stack->db;
my $slot = "electric_cm_$db";
my $position = "(SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '$slot')";
my $other_slot = q{detail LIKE 'the replication slot begins beyond the end of the logs%'};
my $handle;

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)',
	'CREATE TABLE unrelated (t text)');
$stack->active or BAIL_OUT('no stack');

sub write_rows { return $stack->sql(qq{INSERT INTO t (t) SELECT '$_[0]' FROM generate_series(1, 10)}); }

sub make_shape
{
	$handle = $stack->live_shape('t');
	write_rows('x');
	$stack->settle;
	return;
}

sub manager { return $stack->sql('SELECT pid FROM electric_cm_stat_manager'); }

# ends the manager, and with it all sessions
sub kill_manager
{
	my $pid = manager();
	kill 'KILL', $pid;
	ElectricCM::poll($node, $db, "SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE pid <> $pid)") or die 'no other manager';
	return;
}

# Are logs and tables compared, with that reason; or does the shape just go on?
sub resyncs
{
	my ($what, $reader, $reason) = @_;
	ok($stack->active, "$what: active");
	return $stack->resyncs($reader, $reason, 't', $what);
}

sub goes_on
{
	my ($what) = @_;
	ok($stack->active, "$what: active");
	write_rows('y');
	$stack->settle;
	return $stack->replays($handle, 't', "$what: ... and has everything");
}

#
# The slot is dropped under a stack that runs, and made anew; rows are written in
# between.  The stack dies before it has ordered that logs and tables be compared.
#

# Another table is locked at another moment
my %held_by = (
	'when the slot is not recorded yet' => '_electric_cm.stack',
	'when the comparison is to be ordered' => '_electric_cm.shape_state');
my %dies = (
	'its manager is killed' => \&kill_manager,
	'it is stopped' => sub { $node->psql($db, 'SELECT electric_cm_stop()'); },
	'the server crashes' => sub { $node->stop('immediate'); $node->start; });

for my $moment (sort keys %held_by)
{
	for my $how (sort keys %dies)
	{
		my $what = "$moment, $how";

		# which writes to that table itself
		next if $how eq 'it is stopped' && $held_by{$moment} eq '_electric_cm.stack';

		make_shape();
		my $reader = $stack->reader($handle);
		my $holder = $node->background_psql($db, on_error_stop => 0);
		my $lock = "BEGIN; LOCK TABLE $held_by{$moment} IN SHARE MODE;";
		my $unrecorded = $held_by{$moment} eq '_electric_cm.stack';
		my $old = $node->background_psql($db, on_error_stop => 0);

		# that a slot is about to be created is written there, too
		$unrecorded ? $old->query_safe('BEGIN; SELECT pg_current_xact_id();') : $holder->query_safe($lock);
		$stack->sql(qq{SET client_min_messages = error; DO \$\$ BEGIN LOOP
			BEGIN
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL;
				PERFORM pg_drop_replication_slot('$slot');
				EXIT;
			EXCEPTION WHEN object_in_use THEN NULL;
			END;
			END LOOP;
			INSERT INTO t (t) SELECT 'in between' FROM generate_series(1, 10); END \$\$});
		if ($unrecorded)
		{
			$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND wait_event_type = 'Lock'});
			$holder->query_safe($lock);
			$old->query_safe('COMMIT');
		}
		$old->quit;
		$stack->seen("EXISTS (SELECT FROM pg_locks WHERE relation = '$held_by{$moment}'::regclass AND NOT granted)",
			"$what: the stack waits");
		$stack->seen("$position IS NOT NULL", "$what: there is a new slot");
		$dies{$how}->();
		eval { $holder->quit; };
		$stack->sql('SELECT electric_cm_start()') if $how eq 'it is stopped';

		# that one was about to be created is recorded, so it is ours
		resyncs($what, $reader, $unrecorded ? "detail = 'the replication slot is a new one'" : $other_slot);
	}
}

#
# Somebody uses the slot after a crash, before the stack comes back
#

sub without_stack
{
	my ($code) = @_;
	$node->stop('immediate');
	$node->append_conf('postgresql.conf', q{shared_preload_libraries = ''});
	$node->start;
	$code->();
	$node->stop;	# which also writes the slot
	$node->append_conf('postgresql.conf', q{shared_preload_libraries = 'electric_cm'});
	$node->start;
	return;
}

my $copy = qq{SELECT pg_copy_logical_replication_slot('$slot', 'copy'), pg_drop_replication_slot('$slot')};
my $copy_back = qq{SELECT pg_copy_logical_replication_slot('copy', '$slot'), pg_drop_replication_slot('copy')};
my %foreign = (
	'consumed' => [
		qq{SELECT count(*) FROM pg_logical_slot_get_binary_changes('$slot', NULL, NULL, 'proto_version', '1',
			'publication_names', 'electric_cm_publication')} ],
	'advanced' => [qq{SELECT pg_replication_slot_advance('$slot', pg_current_wal_lsn())}],
	'dropped and made by hand' =>
	  [ "SELECT pg_drop_replication_slot('$slot')", "SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')" ],
	'replaced by a copy that has been advanced' =>
	  [ $copy, q{SELECT pg_replication_slot_advance('copy', pg_current_wal_lsn())}, $copy_back ]);

for my $what (sort keys %foreign)
{
	my $reader = $stack->reader($handle);
	without_stack(sub { write_rows('lost'); $stack->sql(@{ $foreign{$what} }); });
	resyncs("the slot is $what after a crash", $reader, $other_slot);
}

my $since = $stack->sql('SELECT clock_timestamp()');
without_stack(sub { write_rows('to come'); });
goes_on('nobody uses the slot after a crash');
without_stack(sub { write_rows('to come'); $stack->sql($copy, $copy_back); });
goes_on('the slot is replaced by a copy of it');

#
# Nothing has to be compared
#

$stack->sql('SELECT electric_cm_restart()');
goes_on('a restart');
$node->psql($db, 'SELECT electric_cm_stop()');
write_rows('while stopped');
$stack->sql('SELECT electric_cm_start()');
goes_on('a clean stop');
$node->restart;
goes_on('a clean shutdown');
$node->stop('immediate');
$node->start;
goes_on('a crash while nothing happens');

# A table without a shape is written to as well: what is acknowledged for that is
# in no consumer's rows
my $connstr = $node->connstr($db);
$stack->sql('CREATE PROCEDURE load() LANGUAGE plpgsql AS $$ BEGIN LOOP
	INSERT INTO t (t) SELECT repeat(\'l\', 100) FROM generate_series(1, 10); COMMIT;
	INSERT INTO unrelated SELECT repeat(\'u\', 1000) FROM generate_series(1, 100); COMMIT;
	PERFORM pg_sleep(0.001); END LOOP; END $$');
for my $i (1 .. 6)
{
	my ($in, $out, $err) = ('', '', '');
	my $writer = IPC::Run::start([ 'psql', '-X', '-d', $connstr, '-c', 'CALL load()' ], \$in, \$out, \$err);
	my $rows = $stack->sql('SELECT count(*) FROM t');
	my $before = $stack->sql("SELECT $position");
	$stack->becomes("SELECT count(*) > $rows + 200 AND $position > '$before' FROM t");
	if ($i % 2)
	{
		kill_manager();
	}
	else
	{
		$stack->sql('CHECKPOINT') if $i == 4;
		$node->stop('immediate');
		$node->start;
	}
	eval { $writer->finish; };
	goes_on($i % 2 ? 'the manager is killed under load' : 'a crash under load');
}
is($stack->events('shapes_resyncing', "occurred_at > '$since'"), 0, 'no event of shapes that are compared');

#
# An idle stack beside a busy database: markers are written, but few
#
$stack->sql('CREATE DATABASE busy');
$stack->settle;
my $marker = q{(SELECT max(lsn) FROM _electric_cm.progress WHERE worker = -1)};
my $marked = $stack->sql("SELECT $marker");
for (1 .. 25)
{
	$node->safe_psql('busy', q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1024 * 1024))), pg_current_xact_id() FROM generate_series(1, 4)});
	$stack->settle;
}
$stack->seen("pg_current_wal_lsn() - $position < 16 * 1024 * 1024 + 1024 * 1024", 'the slot keeps up with a busy database beside');
$stack->seen("$marker > '$marked' AND $marker >= $position", '... and what it was told is recorded');
$node->stop('immediate');
$node->start;
goes_on('a crash after that');

# An idle server writes none
$stack->sql('CHECKPOINT');
$stack->settle;
$stack->seen("pg_current_wal_lsn() - $position < 64 * 1024", 'less than 64 kB are not acknowledged in the end');
$marked = $stack->sql("SELECT $marker");
$stack->seen(q{electric_cm_await_flushed() >= pg_current_wal_lsn()}, '... though they are in the logs');
is($stack->sql("SELECT $marker"), $marked, '... which is worth no marker');

#
# A marker that can't be written holds the slot back, and that can be seen
#
my $holder = $node->background_psql($db, on_error_stop => 0);
$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE _electric_cm.progress IN SHARE MODE');
my $before = $stack->sql('SELECT pg_current_wal_insert_lsn()');
$node->safe_psql('busy', q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1024 * 1024))), pg_current_xact_id() FROM generate_series(1, 20)});
$stack->seen(q{(SELECT waiting_for LIKE 'a pool session to record that the shape logs are at %' FROM electric_cm_stat_manager)},
	'no marker can be written: waiting_for says so');
is($stack->sql("SELECT $position <= '$before'"), 't', '... nothing of that is acknowledged');
is($stack->sql('SELECT electric_cm_status()'), 'active', '... the stack is active all the same');
$holder->query_safe('ROLLBACK');
$holder->quit;
$stack->seen("$position > '$before'", 'it can: the slot moves on');
$stack->seen(q{(SELECT waiting_for IS NULL FROM electric_cm_stat_manager)}, '... and waiting_for is empty again');
goes_on('after that');

$node->stop;
done_testing();
