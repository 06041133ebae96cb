# A shape is created while others write to its table: no holes, no doubles, and
# it says whom it waits for.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL, t text)');
$stack->sql('CREATE TABLE seq (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)');
$stack->sql("INSERT INTO t SELECT i, 0, 'row ' || i FROM generate_series(1, 2000) i");
ok($stack->active, 'active');

my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set id random(1, 2000)
\set other random(2001, 4000)
BEGIN;
UPDATE t SET n = n + 1 WHERE id = :id;
INSERT INTO t VALUES (:other, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1;
DELETE FROM t WHERE id = :other + 1;
SAVEPOINT s;
UPDATE t SET n = n + 1 WHERE id = :id + 1;
RELEASE s;
INSERT INTO seq (v) VALUES (:id);
COMMIT;
});

my ($in, $out, $err) = ('', '', '');
my $load = IPC::Run::start(
	[
		'pgbench', '-n', '-c', 4, '-T', 12, '-f', $script, $node->connstr($db)
	],
	\$in, \$out, \$err);
ElectricCM::poll($node, $db, 'SELECT count(*) > 100 FROM seq') or die 'no load';

# Transactions that are open when the table is published: half of each is
# before that and half after
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN');
$writer->query_safe("INSERT INTO t VALUES (-1, 0, 'before')");
my $writer_pid = $writer->query_safe('SELECT pg_backend_pid()');
my $undone = $node->background_psql($db);
$undone->query_safe('BEGIN');
$undone->query_safe("INSERT INTO t VALUES (-2, 0, 'never')");
my $undone_pid = $undone->query_safe('SELECT pg_backend_pid()');
my $reader = $node->background_psql($db);
$reader->query_safe('BEGIN');
$reader->query_safe('SELECT count(*) FROM t');
my $reader_pid = $reader->query_safe('SELECT pg_backend_pid()');
$stack->sql(q{BEGIN; INSERT INTO t VALUES (-3, 0, 'prepared'); PREPARE TRANSACTION 'in the way'});

my $handle = $stack->sql("SELECT electric_cm_create_shape('t')");
my $seq = $stack->sql("SELECT electric_cm_create_shape('seq')");

my $shape = "FROM electric_cm_shapes WHERE handle = '$handle'";
ok( ElectricCM::poll($node, 		$db, "SELECT coalesce(waiting_for ~ '\\y$writer_pid\\y' AND waiting_for ~ '\\y$undone_pid\\y'
				AND waiting_for ~ 'prepared', false) $shape"),
	'waits for those who were writing, and names them');
unlike($stack->sql("SELECT waiting_for $shape"), qr/\b$reader_pid\b/, 'does not wait for a reader');
is($stack->sql("SELECT state $shape"), 'creating', 'is not live meanwhile');

# Those who come later are not waited for, and don't wait
$writer->query_safe("UPDATE t SET t = 'and after' WHERE id = -1");
is($stack->sql("INSERT INTO t VALUES (-4, 0, 'meanwhile') RETURNING id"), '-4',
	'nobody has to wait for the shape');
my $later = $node->background_psql($db);
$later->query_safe('BEGIN');
$later->query_safe("INSERT INTO t VALUES (-5, 0, 'later')");

$undone->query_safe('ROLLBACK');
$writer->query_safe('COMMIT');
ok( ElectricCM::poll($node, 		$db, "SELECT coalesce(waiting_for ~ 'prepared' AND NOT waiting_for ~ '\\y$writer_pid\\y', false) $shape"),
	'then for the prepared transaction only');
is($stack->sql("SELECT state $shape"), 'creating', 'is not live meanwhile');
$stack->sql(q{COMMIT PREPARED 'in the way'});
ok(ElectricCM::poll($node, $db, "SELECT state $shape", 'live'), 'live when all have ended');
is($stack->sql("SELECT waiting_for IS NULL $shape"), 't', 'and waits for nothing');
$later->query_safe("INSERT INTO t VALUES (-6, 0, 'later')");
$later->query_safe('COMMIT');
ok( ElectricCM::poll($node, $db, "SELECT state FROM electric_cm_shapes WHERE handle = '$seq'", 'live'),
	'the other shape is live, too');

# Again and again, while the load goes on
for my $i (1 .. 5)
{
	$stack->sql("SELECT electric_cm_drop_shape('$seq')");
	$seq = $stack->sql("SELECT electric_cm_create_shape('seq')");
	my $first = $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$seq')");
	$stack->sql('SELECT electric_cm_await_flushed()');
	my ($ok, $entries) = replay_at($seq);
	ok($ok, "shape of a table under load, $i: complete ($first entries at first)");
}

# The table is ahead of the log while the load runs; the log must be free of
# holes as far as it goes.
sub replay_at
{
	my ($h) = @_;
	my $odd = $stack->sql(qq{
		WITH log AS MATERIALIZED (SELECT (value->>'id')::bigint AS id FROM electric_cm_shape_log('$h')),
			doubles AS (SELECT FROM log GROUP BY id HAVING count(*) > 1)
		SELECT (SELECT count(*) FROM doubles) || ' ' || count(*) FROM log});
	return ($odd =~ /^0 [1-9]/, $odd);
}

$load->finish;
is($load->result(0), 0, 'the load was not disturbed') or diag($err);
$_->quit for ($writer, $undone, $reader, $later);
$stack->settle;
for ([ t => $handle ], [ seq => $seq ])
{
	my ($table, $h) = @$_;
	my ($ok, $entries) = $stack->replay_equals($h, $table, ['id']);
	ok($ok, "$table: replay equals table ($entries entries)");
}
is( $stack->sql("SELECT string_agg(value->>'id', ' ' ORDER BY value->>'id') FROM electric_cm_shape_log('$handle')
		WHERE (value->>'id')::int < 0 AND operation = 'insert'"),
	'-1 -3 -4 -5 -6', 'the rows of those transactions came once each');

# The stack is restarted while a shape is being created
$stack->sql('CREATE TABLE u (id int PRIMARY KEY)');
my $blocker = $node->background_psql($db);
$blocker->query_safe('BEGIN');
$blocker->query_safe('INSERT INTO u VALUES (1)');
$handle = $stack->sql("SELECT electric_cm_create_shape('u')");
ok( ElectricCM::poll($node, $db, "SELECT waiting_for IS NOT NULL FROM electric_cm_shapes WHERE handle = '$handle'"),
	'being created');
$stack->sql('SELECT electric_cm_restart()');
$stack->sql('INSERT INTO u VALUES (2)');
$blocker->query_safe('INSERT INTO u VALUES (3)');
$blocker->query_safe('COMMIT');
$blocker->quit;
$stack->sql('INSERT INTO u VALUES (4)');
ok( ElectricCM::poll($node, $db, "SELECT state FROM electric_cm_shapes WHERE handle = '$handle'", 'live'),
	'live after a restart of the stack');
$stack->sql('SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($handle, 'u', ['id']);
ok($ok && $entries == 4, "replay equals table ($entries entries)");

# It goes on after a restart of the stack even if what a dropped shape has left
# can't be freed, here because somebody has a lock on it
my $gone = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$handle'");
my $locker = $node->background_psql($db);
$locker->query_safe('BEGIN');
$locker->query_safe("SELECT FROM _electric_cm.shape_log WHERE shape = $gone FOR UPDATE");
$stack->sql("SELECT electric_cm_drop_shape('$handle')");
ok( ElectricCM::poll($node, $db,
		q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%purge_shape%' AND wait_event_type = 'Lock'}),
	'the log of a dropped shape is to be deleted');
$blocker = $node->background_psql($db);
$blocker->query_safe('BEGIN');
$blocker->query_safe('INSERT INTO u VALUES (5)');
$handle = $stack->sql("SELECT electric_cm_create_shape('u')");
ok( ElectricCM::poll($node, $db, "SELECT waiting_for LIKE '%writing%' FROM electric_cm_shapes WHERE handle = '$handle'"),
	'being created');
$stack->sql('SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots');
$blocker->query_safe('COMMIT');
$blocker->quit;
ok( ElectricCM::poll($node, $db, "SELECT state FROM electric_cm_shapes WHERE handle = '$handle'", 'live'),
	'live after a reconnection, while that log is still there');
is($stack->sql("SELECT count(*) > 0 FROM _electric_cm.shape_log WHERE shape = $gone"), 't', 'it is');
$locker->query_safe('COMMIT');
$locker->quit;
ok(ElectricCM::poll($node, $db, "SELECT count(*) = 0 FROM _electric_cm.shape_log WHERE shape = $gone"), 'then it goes');
unlike(slurp_file($node->logfile), qr/tuple concurrently/, 'two that delete it are not in each other\'s way');

$node->stop;
done_testing();
