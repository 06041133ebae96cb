# Slot and publication are dropped, lost, altered, taken or used by somebody
# else: each has its outcome, its message, and what mends it.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.reconnect_initial_delay = '200 ms'
electric_cm.reconnect_max_delay = '400 ms'
electric_cm.status_check_interval = '1 s'
max_replication_slots = 3
wal_keep_size = 0
min_wal_size = 32MB
max_wal_size = 32MB
});
my $node = $stack->node;
my $db = 'postgres';
my $slot = 'electric_cm_postgres';
my $publication = 'electric_cm_publication';

sub becomes { return $stack->becomes($_[1], $_[0]); }

sub active { return becomes("$_[0]: active", q{SELECT electric_cm_status() = 'active'}); }

sub failed
{
	my ($what, $error, $hint) = @_;
	becomes("$what: failed", q{SELECT electric_cm_status() = 'failed'});
	like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'), $error, "$what: last_error says why");
	my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_await_active()');
	like($err, qr/has failed\nDETAIL: .*\nHINT: .*$hint/s, "$what: the hint says what to do");
	return;
}

my ($handle, $reader);

# What a stream without them would miss: rows that come, go and change
sub changes
{
	my ($n) = $stack->sql('SELECT max(id) FROM t');
	return ("INSERT INTO t SELECT $n + i FROM generate_series(1, 10) i", 'DELETE FROM t WHERE id = (SELECT min(id) FROM t)',
		"UPDATE t SET id = id + 100 WHERE id = $n + 5", "DELETE FROM t WHERE id = $n + 1");
}

# Readers have what they had, and nothing of what comes after a gap
sub stays
{
	my ($what) = @_;
	return is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), $reader->{had}{n}, "$what: the log is readable, up to the gap");
}

sub is_resynced
{
	my ($reason, $what) = @_;
	$stack->resyncs($reader, $reason, 't', $what, command => 1);
	works("$what: the stream goes on");
	$reader = $stack->reader($handle);
	return;
}

sub works
{
	my ($what) = @_;
	$stack->sql(q{INSERT INTO t SELECT (SELECT coalesce(max(id), 0) FROM t) + i FROM generate_series(1, 10) i});
	$stack->settle;
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}

# The slot is another one: what is not in the log is found by a comparison
sub resyncs
{
	my ($what, %opts) = @_;
	$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', $what, %opts);
	return works($what);
}

# A reload forgives recreations, of which there may be three an hour
sub forgive
{
	$stack->sql('SELECT electric_cm_restart()');
	active('restarted');
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');
active('created');
$handle = $stack->live_shape('t');
works('at first');
$reader = $stack->reader($handle);

# The publication

my $is_made_again = "SELECT electric_cm_status() = 'active' AND EXISTS (SELECT FROM pg_publication WHERE pubname = '$publication')";
$stack->sql('BEGIN', "DROP PUBLICATION $publication", changes(), 'COMMIT');
becomes('a dropped publication is made again', $is_made_again);
is_resynced(q{detail ~ 'publication|new one'}, 'a dropped publication');
is($stack->events('replication_slot_dropped', "severity = 'warning'"), 1, '... the slot is another one, which an event says');

$stack->sql('BEGIN', "DROP PUBLICATION $publication", 'ROLLBACK');
works('a drop that was rolled back');
is($stack->events('shape_resynced', "occurred_at > '$reader->{since}'"), 0, '... costs no comparison');

$reader = $stack->reader($handle);
for my $case (
	[ 'without deletes', q{publish = 'insert, update'}, q{publish = 'insert, update, delete, truncate'}, qr/does not publish/ ],
	[ 'by way of a root', 'publish_via_partition_root', 'publish_via_partition_root = false', qr/publish_via_partition_root|root/ ])
{
	my ($what, $set, $mended, $error) = @$case;
	$stack->sql("ALTER PUBLICATION $publication SET ($set)");
	failed("a publication $what", $error, qr/ALTER PUBLICATION $publication SET/);
	$stack->sql(changes());
	stays($what);
	$stack->sql("ALTER PUBLICATION $publication SET ($mended)");
	active('the publication is repaired, without a reload');
	is_resynced(q{detail = 'the publication does not publish everything any more'}, "$what for a while");
}

$stack->sql('BEGIN', "ALTER PUBLICATION $publication SET (publish = 'insert')", changes(), "ALTER PUBLICATION $publication SET (publish = 'insert, update, delete, truncate')", 'COMMIT');
active('restricted and repaired in a transaction');
is_resynced(q{detail = 'the publication does not publish everything any more'}, '... for which the shapes are compared');

$stack->sql('CREATE TABLE filtered (id int PRIMARY KEY, t text)');
$stack->sql("ALTER PUBLICATION $publication ADD TABLE filtered WHERE (id > 10)");
failed('a publication that filters rows', qr/filters rows or columns/, qr/row filters/);
$stack->sql("ALTER PUBLICATION $publication SET TABLE filtered (id)");
failed('a publication that filters columns', qr/filters rows or columns/, qr/column lists/);
$stack->sql(changes());
stays('by which the table has left the publication');
$stack->sql("ALTER PUBLICATION $publication DROP TABLE filtered");
active('without the filter');
is_resynced(q{detail = 'the table has left the publication'}, 'the table is published again');

for my $filter ('WHERE (id > 1000)', '(id)')
{
	$stack->sql("ALTER PUBLICATION $publication SET TABLE t $filter");
	failed("a table with a filter $filter", qr/filters rows or columns/, qr/row filters|column lists/);
	$stack->sql(changes(), 'TRUNCATE t', 'INSERT INTO t SELECT generate_series(1, 5)');
	stays("a filter $filter");
	$stack->sql("ALTER PUBLICATION $publication SET TABLE t");
	active("without the filter $filter");
	is_resynced(q{detail = 'the table has left the publication'}, "with a filter $filter for a while");
}

$stack->sql('BEGIN', "ALTER PUBLICATION $publication DROP TABLE t", changes(), 'COMMIT');
is($stack->sql('SELECT electric_cm_status()'), 'active', 'a table leaves the publication: the stack is active all the same');
is_resynced(q{detail = 'the table has left the publication'}, 'a table that has left the publication');
is($stack->sql("SELECT count(*) FROM pg_publication_tables WHERE tablename = 't'"), 1, '... is published again');
$stack->sql('BEGIN', "ALTER PUBLICATION $publication DROP TABLE t", changes(), "ALTER PUBLICATION $publication ADD TABLE t", 'COMMIT');
is_resynced(q{detail = 'the table has left the publication'}, 'one that somebody puts back at once');

# ... with electric_cm.manual_table_publishing nobody else puts it back
sub manual
{
	my ($value) = @_;
	$stack->sql("ALTER SYSTEM SET electric_cm.manual_table_publishing = $value", 'SELECT pg_reload_conf()');
	return becomes("manual_table_publishing = $value", "SELECT setting = '$value' FROM electric_cm_options WHERE datname = '$db' AND name = 'electric_cm.manual_table_publishing'");
}
manual('on');
$stack->sql("ALTER PUBLICATION $publication DROP TABLE t", changes());
becomes('a table that is published by hand: the shape waits, and says for what',
	"SELECT state = 'resyncing' AND waiting_for LIKE '%table public.t is not in publication%' FROM electric_cm_shapes WHERE handle = '$handle'");
$stack->sql(changes());
stays('while it waits');
is($stack->sql('SELECT electric_cm_status()'), 'active', '... the stack is active all the same');
$stack->sql("ALTER PUBLICATION $publication ADD TABLE t");
is_resynced(q{detail = 'the table has left the publication'}, 'published by hand again');
manual('off');

$stack->sql('BEGIN', "ALTER PUBLICATION $publication RENAME TO another", changes(), 'COMMIT');
becomes('a renamed publication is a dropped one', $is_made_again);
is_resynced(q{detail ~ 'publication|new one'}, 'a renamed publication');
$stack->sql('DROP PUBLICATION another');
forgive();
works('with a publication made again');

# The slot

sub without_stack
{
	my ($code) = @_;
	$node->psql($db, 'SELECT electric_cm_stop()');
	$code->();
	$stack->sql('SELECT electric_cm_start()');
	return;
}

$reader = $stack->reader($handle);
without_stack(sub { $stack->sql("SELECT pg_drop_replication_slot('$slot')", 'INSERT INTO t SELECT max(id) + 1 FROM t'); });
active('somebody has dropped the slot');
resyncs('somebody has dropped the slot');
is($stack->events('replication_slot_created'), 4, '... an event says that there is a new one');
$reader = $stack->reader($handle);

# dropped under a stack that runs: between the walsender's end and the next one
my $holder = $node->background_psql($db, on_error_stop => 0);
$holder->query_safe('SET client_min_messages = error');
$holder->query_safe(q{
	DO $$ BEGIN LOOP
		BEGIN
			PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL;
			PERFORM pg_drop_replication_slot('electric_cm_postgres');
			EXIT;
		EXCEPTION WHEN object_in_use THEN NULL;
		END;
	END LOOP;
	INSERT INTO t SELECT max(id) + 1 FROM t; END $$});
active('somebody has dropped the slot under a stack that runs');
resyncs('somebody has dropped the slot under a stack that runs');
forgive();

without_stack(sub {
	$stack->sql("SELECT pg_drop_replication_slot('$slot')");
	$stack->sql("SELECT pg_create_logical_replication_slot('$slot', 'test_decoding')");
});
failed('a slot with another plugin', qr/belongs to another database or plugin/, qr/electric_cm\.slot_name/);
$stack->sql("SELECT pg_drop_replication_slot('$slot')");
$stack->sql("SELECT pg_create_physical_replication_slot('$slot')");
$node->reload;
failed('a physical slot of that name', qr/belongs to another database or plugin/, qr/electric_cm\.slot_name/);
$stack->sql('CREATE DATABASE elsewhere');
$stack->sql("ALTER DATABASE $db SET electric_cm.slot_name = '$slot'");
without_stack(sub {
	$stack->sql("SELECT pg_drop_replication_slot('$slot')");
	$node->safe_psql('elsewhere', "SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')");
});
failed("another database's slot", qr/belongs to another database or plugin/, qr/electric_cm\.slot_name/);
is($stack->sql("SELECT database FROM pg_replication_slots WHERE slot_name = '$slot'"), 'elsewhere', '... it is left alone');
$node->safe_psql('elsewhere', "SELECT pg_drop_replication_slot('$slot')");
$stack->sql("ALTER DATABASE $db RESET electric_cm.slot_name");
$node->reload;
active("the other's slot is gone, and a reload");
works('after all that');

# ... in use by somebody else
$node->psql($db, 'SELECT electric_cm_stop()');
my ($in, $out, $err) = ('', '', '');
my $user = IPC::Run::start(
	[
		'pg_recvlogical', '-d', $node->connstr($db), '-S', $slot, '--start', '-f', '-',
		'-o', 'proto_version=1', '-o', "publication_names=$publication", '-n'
	],
	\$in, \$out, \$err);
becomes('somebody else uses the slot', "SELECT active FROM pg_replication_slots WHERE slot_name = '$slot'");
my $user_pid = $stack->sql("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '$slot'");
$stack->sql('SELECT electric_cm_start()');
becomes('the stack waits for it, and says for which process',
	"SELECT status = 'starting' AND waiting_for LIKE '%$slot%PID $user_pid%' FROM electric_cm_stat_manager");
is($stack->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $user_pid"), 1, '... which goes on');
$user->kill_kill;
active('the slot is free again');
works('nobody consumed what is ours');

# ... lost, since it retained more than the server allows

$reader = $stack->reader($handle);
my $sender = $stack->sql("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '$slot'");
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
$node->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1 MB'");
$node->reload;
kill 'STOP', $consumer;
$stack->sql(q{INSERT INTO t SELECT i FROM generate_series(1000000, 1020000) i});
for (1 .. 6)
{
	$stack->sql('SELECT pg_switch_wal()');
	$stack->sql(q{INSERT INTO t SELECT (SELECT max(id) FROM t) + 1});
}
$stack->sql('CHECKPOINT');
kill 'CONT', $consumer;
becomes('a slot that was lost is made again',
	"SELECT electric_cm_status() = 'active' AND wal_status = 'reserved' FROM pg_replication_slots WHERE slot_name = '$slot'");
is($stack->events('replication_slot_dropped', "detail = 'All shapes of this database are compared with their tables.'") >= 1 ? 1 : 0, 1, '... an event says so');
# under that limit, no table is read in pieces
$node->append_conf('postgresql.conf', "max_slot_wal_keep_size = -1");
$node->reload;
resyncs('a slot that was lost', often => 1);	# the new one perhaps, too
$reader = $stack->reader($handle);

# ... while the stack was stopped
$node->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1 MB'");
$node->reload;
without_stack(sub {
	$stack->sql('INSERT INTO t SELECT (SELECT max(id) FROM t) + 1; SELECT pg_switch_wal()') for 1 .. 6;
	$stack->sql('CHECKPOINT');
	is($stack->sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '$slot'"), 'lost', 'a slot was lost while the stack was stopped');
});
becomes('... it is made again',
	"SELECT electric_cm_status() = 'active' AND wal_status = 'reserved' FROM pg_replication_slots WHERE slot_name = '$slot'");
$node->append_conf('postgresql.conf', "max_slot_wal_keep_size = -1");
$node->reload;
resyncs('a slot that was lost while the stack was stopped');

# There is an end to it: more than three recreations in an hour
$stack->sql('SELECT electric_cm_restart()');
active('restarted');
for my $n (1 .. 3)
{
	my $before = $stack->events('replication_slot_created');
	$stack->sql("DROP PUBLICATION $publication");
	becomes("recreation $n of three", "SELECT electric_cm_status() = 'active' AND count(*) > $before
		FROM electric_cm_events WHERE event = 'replication_slot_created'");
}
$reader = $stack->reader($handle);
$stack->sql('BEGIN', "DROP PUBLICATION $publication", changes(), 'COMMIT');
failed('a fourth recreation within an hour', qr/more than 3 times within an hour.*(?:has been dropped|does not exist)/, qr/Remove the cause/);
$stack->sql('SELECT electric_cm_start()');
active('until somebody starts it again');
$stack->goes_on($reader, 't', 'until then');

# No slot is free

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql("SELECT pg_create_physical_replication_slot('full' || i) FROM generate_series(1, 3) i");
$stack->sql('SELECT electric_cm_start()');
becomes('no replication slot is free: it is tried again, with a hint',
	q{SELECT status = 'starting' AND step = 'create_slot' AND retry_count > 1 AND last_error_sqlstate = '53400' FROM electric_cm_stat_manager});
is($stack->events('connection_error', q{detail LIKE '%max\_replication\_slots%'}) > 0 ? 1 : 0, 1, 'the hint names max_replication_slots');
$stack->sql(q{SELECT pg_drop_replication_slot('full2')});
active('one is free');

$holder->quit;
$node->stop;
done_testing();
