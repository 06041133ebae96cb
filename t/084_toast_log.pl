# Values that the stream leaves out, since they are TOASTed and have not changed:
# when a key is updated, they are found in the log before.  What that costs grows
# with the log, not with its square, for readers and for folding alike.
use strict;
use warnings;

use ElectricCM qw(new_stack measures_memory);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.shape_log_retention = -1\nshared_buffers = '64MB'\n");
my $node = $stack->node;

# Pages read by a statement that returns one value.
sub pages_read
{
	my ($sql) = @_;
	return $stack->sql(q{CREATE OR REPLACE FUNCTION pages(sql text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE plan json;
BEGIN
	EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ' || sql INTO plan;
	RETURN (plan->0->'Plan'->>'Shared Hit Blocks')::bigint + (plan->0->'Plan'->>'Shared Read Blocks')::bigint;
END $$}, "SELECT pages(\$sql\$$sql\$sql\$)");
}

$stack->sql('CREATE EXTENSION electric_cm', q{CREATE FUNCTION fold(folded text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	number int8 := (SELECT id FROM _electric_cm.shape WHERE handle = folded);
	more bool;
	report text;
BEGIN
	CALL _electric_cm.fold_shape(number, 1000, more, report);
	RETURN report;
END $$});
$stack->active or BAIL_OUT('no stack');

#
# Right
#
# Two TOASTed columns, one that changes now and then; keys of two columns, one
# of them text; keys that change again and again, change places, come back,
# are deleted and used by others; rows large and small.
$stack->sql('CREATE TABLE t (id int, part text, n int, a text, b text, PRIMARY KEY (id, part))',
	'ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL',
	q{INSERT INTO t SELECT i, 'p', 0, repeat('a' || i, 1000), CASE WHEN i % 3 = 0 THEN NULL ELSE repeat('b' || i, 900) END FROM generate_series(1, 40) i});
my $handle = $stack->live_shape('t');
my $narrow = $stack->live_shape('t', columns => [qw(id part b)]);
for my $i (1 .. 12)
{
	$stack->sql('BEGIN', "UPDATE t SET id = id + 1000 WHERE id % 4 = $i % 4", 'UPDATE t SET n = n + 1 WHERE id % 2 = 0', 'COMMIT',
		"UPDATE t SET part = part || '$i' WHERE id % 5 = $i % 5",
		"UPDATE t SET a = repeat('new a$i', 700) WHERE id % 7 = $i % 7",
		"UPDATE t SET b = repeat('new b$i', 700), id = -id WHERE id % 11 = $i % 11",
		"DELETE FROM t WHERE id % 1000 = $i",
		"INSERT INTO t VALUES ($i, 'p', NULL, repeat('again$i', 800), repeat('x', 3000))",
		'BEGIN', 'UPDATE t SET id = 5000 WHERE id = (SELECT min(id) FROM t)', 'UPDATE t SET id = 6000 WHERE id = (SELECT max(id) FROM t WHERE id < 5000)',
		'UPDATE t SET id = 5001 WHERE id = 6000', 'UPDATE t SET id = 6001 WHERE id = 5000', 'UPDATE t SET id = 10000 + n % 10, part = part || id WHERE id > 5000', 'COMMIT');
}
$stack->settle;
my $complete = $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle') WHERE operation = 'insert'");
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle') WHERE operation = 'insert' AND value ?& '{id,part,n,a,b}'"), $complete,
	"all $complete inserts have all columns");
for ([ $handle, {} ], [ $narrow, { columns => [ 'id', 'part', 'b' ] } ])
{
	my ($shape, $options) = @$_;
	my ($ok, $n) = $stack->replay_equals($shape, 't', [ 'id', 'part' ], %$options);
	ok($ok, "replay equals the table ($n entries)");
	$stack->sql('DROP TABLE IF EXISTS whole', "CREATE TABLE whole AS SELECT * FROM electric_cm_shape_log('$shape') WITH ORDINALITY");
	is($stack->sql("SELECT count(*) FROM whole w JOIN electric_cm_shape_log('$shape', (SELECT log_offset FROM whole WHERE ordinality = w.ordinality - 1), 1) l
			ON (l.log_offset, l.key, l.value) IS NOT DISTINCT FROM (w.log_offset, w.key, w.value) WHERE w.ordinality > 1"),
		$stack->sql('SELECT count(*) - 1 FROM whole'), 'read one by one, entries are the same');
	is($stack->sql("SELECT count(*) FROM generate_series(1, $n, 37) s, electric_cm_shape_log('$shape', coalesce((SELECT log_offset FROM whole WHERE ordinality = s - 1), '-1'), 37) l
			JOIN whole w ON (l.log_offset, l.key, l.value) IS NOT DISTINCT FROM (w.log_offset, w.key, w.value)"),
		$n, '... and in pages');
	like($stack->fold($shape, 1000), qr/folded/, 'folded');
	$stack->sql("SELECT fold('$shape')");
	($ok) = $stack->replay_equals($shape, 't', [ 'id', 'part' ], %$options);
	ok($ok, '... replay equals the table');
}

#
# ... and cheap
#
$stack->sql('CREATE TABLE many (id int PRIMARY KEY, v text)', 'ALTER TABLE many ALTER v SET STORAGE EXTERNAL');
my (%read, %folded);
for my $n (200, 800)
{
	# all of it comes by the stream, so that it can be folded
	$stack->sql('TRUNCATE many');
	my $shape = $stack->live_shape('many');
	$stack->sql("INSERT INTO many SELECT i, repeat(md5(i::text), 120) FROM generate_series(1, $n) i", 'UPDATE many SET id = id + 1000000');
	$stack->settle;
	is($stack->sql("SELECT count(*), count(DISTINCT md5(value->>'v')) FROM electric_cm_shape_log('$shape') WHERE operation = 'insert'"),
		2 * $n . "|$n", "$n rows whose keys have changed");
	$read{$n} = pages_read("SELECT count(*) FROM electric_cm_shape_log('$shape')");
	$stack->sql("UPDATE many SET v = 'short'");
	$stack->settle;
	$folded{$n} = pages_read("SELECT fold('$shape')");
	is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$shape') WHERE operation = 'insert' AND xid IS NULL AND length(value->>'v') = 3840"), $n, '... can be folded');
	$stack->sql("SELECT electric_cm_drop_shape('$shape')");
}
cmp_ok($read{800}, '<', 6 * $read{200}, "reading four times as much costs about four times as much: $read{200} and $read{800} pages");
cmp_ok($folded{800}, '<', 6 * $folded{200}, "... so does folding: $folded{200} and $folded{800} pages");

# A few such rows after a long log: one walk for all of them.
$stack->sql('TRUNCATE many', q{INSERT INTO many SELECT i, CASE WHEN i <= 20 THEN repeat(md5(i::text), 120) ELSE 'small' END FROM generate_series(1, 2000) i});
my $long = $stack->live_shape('many');
$stack->sql(map { 'UPDATE many SET v = v || 1 WHERE id > 20' } 1 .. 10);
$stack->settle;
my $after = $stack->sql("SELECT last_offset FROM electric_cm_shapes WHERE handle = '$long'");
$stack->sql('UPDATE many SET id = id + 1000000 WHERE id <= 1');
$stack->settle;
my $one = pages_read("SELECT count(*) FROM electric_cm_shape_log('$long', '$after')");
my $middle = $stack->sql("SELECT last_offset FROM electric_cm_shapes WHERE handle = '$long'");
$stack->sql('UPDATE many SET id = id + 1000000 WHERE id BETWEEN 2 AND 20');
$stack->settle;
my $nineteen = pages_read("SELECT count(*) FROM electric_cm_shape_log('$long', '$middle')");
cmp_ok($nineteen, '<', 2 * $one, "what 19 rows lack costs as much as what one does: $nineteen and $one pages");

# The entries of a small chunk may be large; each is done with before the next.
$stack->sql('CREATE TABLE large (id int PRIMARY KEY, v text)', 'ALTER TABLE large ALTER v SET STORAGE EXTERNAL');
my $large = $stack->live_shape('large');
$stack->sql(q{INSERT INTO large SELECT i, repeat(md5(i::text), 60000) FROM generate_series(1, 60) i}, 'UPDATE large SET id = id + 1000');
$stack->settle;
my $peak = q{SELECT substring(pg_read_file('/proc/' || pg_backend_pid() || '/status') FROM 'VmHWM:\s*(\d+)')::int / 1024};
SKIP:
{
	skip 'memory is measured on Linux, and without a sanitizer', 3 unless measures_memory();
	my (undef, $reading) = split /\n/, $stack->sql("SELECT count(length(value->>'v')) FROM electric_cm_shape_log('$large')", $peak);
	cmp_ok($reading, '<', 150, "who reads 120 rows of 2 MB needs memory for a few of them: $reading MB");
	$stack->sql(q{DELETE FROM large});
	$stack->sql(q{INSERT INTO large VALUES (1, 'small')});
	$stack->settle;
	my $id = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$large'");
	my ($report, $folding) = split /\n/, $stack->sql("CALL _electric_cm.fold_shape($id, 1000, NULL, NULL)", $peak);
	like($report, qr/oldest (18|24)\d entries/, 'all of it is folded');
	cmp_ok($folding, '<', 250, "... with little memory: $folding MB");
}

$node->stop;
done_testing();
