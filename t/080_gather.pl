# What a consumer writes: the same offsets however often a transaction is
# decoded; nothing for updates that a shape's columns are not touched by; and
# memory by the row, not by the number of shapes.
use strict;
use warnings;

use ElectricCM qw(new_stack measures_memory memory_mb);
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => qq{
electric_cm.shape_workers = 2
electric_cm.reconnect_initial_delay = 100ms
});
my $node = $stack->node;

sub live
{
	return $stack->becomes("SELECT bool_and(state = 'live') FROM electric_cm_shapes");
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;

# ---- a stream that is lost amid a large transaction

$stack->sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE other (id int PRIMARY KEY, v text);
});
my @shapes = map { $stack->sql("SELECT electric_cm_create_shape('$_')") } qw(t other);
live();
my $first;
for my $round (1 .. 2)
{
	my $start = $round * 1000000;
	$stack->sql("BEGIN; INSERT INTO t SELECT $start + i, repeat('x', 20) FROM generate_series(1, 150000) i;
		   INSERT INTO other SELECT $start + i FROM generate_series(1, 1000) i; COMMIT");
	my $lost = $stack->sql(q{
		SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active_pid IS NOT NULL});
	$stack->settle;
	is($stack->sql("SELECT string_agg(DISTINCT split_part(o, '_', 2), ' ') FROM (
			SELECT min(log_offset::text COLLATE \"C\") FILTER (WHERE log_offset::text LIKE '%\\_0') AS o
			FROM electric_cm_shape_log('$shapes[0]') WHERE (value->>'id')::int > $start) l"),
		'0', "transaction $round, which may have come in twice, begins with op 0");
	is($stack->sql("SELECT max(split_part(log_offset::text, '_', 2)::int) FROM electric_cm_shape_log('$shapes[0]') WHERE (value->>'id')::int > $start"),
		'149999', 'and ends as if it had come in once');
}
for (0 .. 1)
{
	my ($ok, $entries) = $stack->replay_equals($shapes[$_], (qw(t other))[$_], ['id']);
	ok($ok, "replay equals table ($entries entries)");
}

# ---- updates of columns that a shape leaves out

$stack->sql(q{
	SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes;
	CREATE TABLE wide (id int PRIMARY KEY, name text, doc text, hits int);
	ALTER TABLE wide REPLICA IDENTITY FULL, ALTER doc SET STORAGE EXTERNAL;
	INSERT INTO wide VALUES (1, 'a', repeat('d', 10000), 0), (2, 'b', 'short', 0);
});
my $narrow = $stack->sql("SELECT electric_cm_create_shape('wide', NULL, '{id,name,doc}')");
my $filtered = $stack->sql("SELECT electric_cm_create_shape('wide', 'hits < 3', '{id,name}')");
my $whole = $stack->sql("SELECT electric_cm_create_shape('wide')");
live();
$stack->sql('UPDATE wide SET hits = hits + 1');
$stack->sql("UPDATE wide SET name = 'A', hits = hits + 1 WHERE id = 1");
$stack->sql("UPDATE wide SET name = NULL WHERE id = 2");
$stack->sql('UPDATE wide SET hits = 9 WHERE id = 2');
$stack->settle;
sub log_of
{
	return $stack->sql("SELECT string_agg(operation || (coalesce(value, old_value)->>'id'), ' ') FROM electric_cm_shape_log('$_[0]') WHERE log_offset::text NOT LIKE '0\\_%'");
}
is(log_of($narrow), 'update1 update2', 'an update that touches no column of a shape is not logged');
is(log_of($filtered), 'update1 update2 delete2', 'unless it moves the row out');
is(log_of($whole), 'update1 update2 update1 update2 update2', 'a shape of all columns has all');
for ([ $narrow, undef, [qw(id name doc)] ], [ $filtered, 'hits < 3', [qw(id name)] ], [ $whole ])
{
	my ($handle, $where, $columns) = @$_;
	my ($ok) = $stack->replay_equals($handle, 'wide', ['id'],
		($where ? (where => $where) : ()), ($columns ? (columns => $columns) : ()));
	ok($ok, 'replay equals table');
}

# ---- memory

sub peak_mb { return max(map { memory_mb($_, 'VmHWM') } split /\n/, $stack->sql('SELECT pid FROM electric_cm_stat_consumers')); }

SKIP:
{
	$stack->sql(q{
		SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes;
		CREATE TABLE doc (id int PRIMARY KEY, body text, tags text);
		ALTER TABLE doc REPLICA IDENTITY FULL;
		SELECT count(electric_cm_create_shape('doc', 'body ILIKE ''%needle' || i || '%''')) FROM generate_series(1, 300) i;
		SELECT count(electric_cm_create_shape('doc', 'length(body) > ' || i)) FROM generate_series(1, 100) i;
		SELECT count(electric_cm_create_shape('doc', 'tags = ''t'' AND upper(body) <> ''' || i || '''')) FROM generate_series(1, 100) i;
	});
	live();
	$stack->sql("SELECT electric_cm_restart()");
	$stack->active;
	$stack->sql("INSERT INTO doc VALUES (0, 'x', 't')");
	$stack->settle;
	my $before = peak_mb();
	$stack->sql("INSERT INTO doc VALUES (1, repeat('some text ', 104858), 't')");
	$stack->settle;
	is($stack->sql("SELECT sum(log_entries) FROM electric_cm_shapes"), 100 + 200, 'a row of 1 MB has been logged for 200 of 500 shapes');
	my $after = peak_mb();

	skip 'memory is measured on Linux, and without a sanitizer', 1 unless measures_memory();
	cmp_ok($after - $before, '<', 60, "and took a consumer no more than some of it ($before MB, then $after MB)");
}
$node->stop;
done_testing();
