# Shapes with where clauses and columns: rows move in, within and out, and the
# log always replays to exactly what the query returns.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_node wait_active becomes replay_equals);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = new_node('main', conf => "log_min_messages = warning\n");

sub run_sql { return $node->safe_psql($db, join(";\n", @_)); }
sub settle { return run_sql("SELECT electric_cm_await_flushed(timeout => '60 s')"); }

run_sql(
	'CREATE EXTENSION electric_cm',

	q{CREATE TABLE t (id int PRIMARY KEY, a int8, b text, v varchar(10), c char(5), n numeric,
		f float8, flag bool, d date, ts timestamptz, u uuid, j jsonb, arr int[], big text)},
	'ALTER TABLE t REPLICA IDENTITY FULL',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL');
wait_active($node, $db) or BAIL_OUT('no stack');

# id runs through all kinds of values; update and delete move rows about
my $fill = q{INSERT INTO t SELECT i, nullif(i % 7, 0), nullif('b' || i % 5, 'b3'), 'v' || i % 3, 'c' || i % 2,
	CASE i % 4 WHEN 0 THEN 1.0 WHEN 1 THEN 1.00 WHEN 2 THEN 'NaN' END,
	CASE i % 4 WHEN 0 THEN '-0' WHEN 1 THEN 0 WHEN 2 THEN 'NaN'::float8 END, CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END,
	date '2020-01-01' + i % 10, timestamptz '2020-01-01 00:00+00' + i % 10 * interval '1 hour',
	CASE WHEN i % 2 = 0 THEN '00000000-0000-0000-0000-000000000001'::uuid END,
	jsonb_build_object('k', i % 3), ARRAY[i % 3, NULL], repeat(i::text, 3000)
	FROM generate_series(%d, %d) AS i};

my %clauses = (
	'equality' => 'a = 5',
	'equality, int4 constant' => 'a = 5::int4',
	'equality, the other way round' => '3 = a',
	'no such value' => 'a = 1000000',
	'list' => 'a IN (1, 3, 3, 6)',
	'list with null' => 'a IN (1, NULL)',
	'no list' => 'a NOT IN (1, 2)',
	'equality and more' => q{a = 5 AND flag},
	'two equalities' => q{a = 5 AND b = 'b1'},
	'list and a range' => q{a IN (1, 2) AND n > 0.5},
	'equality or another' => q{a = 1 OR b = 'b2'},
	'equality with null' => 'a = NULL',
	'text' => q{b = 'b2'},
	'varchar' => q{v = 'v1'},
	'bpchar' => q{c = 'c1'},
	'numeric' => 'n = 1',
	'numeric NaN' => q{n = 'NaN'},
	'float zero' => 'f = 0',
	'float NaN' => q{f = 'NaN'},
	'bool' => 'flag',
	'not bool' => 'NOT flag',
	'bool is not true' => 'flag IS NOT TRUE',
	'bool = true' => 'flag = true',
	'null' => 'a IS NULL',
	'distinct' => 'a IS DISTINCT FROM 5',
	'like' => q{b LIKE 'b%'},
	'ilike' => q{b ILIKE '%B1%'},
	'regular expression' => q{b ~ '^b[12]$'},
	'date' => q{d = '2020-01-05'},
	'between' => q{ts BETWEEN '2020-01-01 02:00+00' AND '2020-01-01 05:00+00'},
	'uuid' => q{u = '00000000-0000-0000-0000-000000000001'},
	'jsonb' => q{j ->> 'k' = '1'},
	'array' => '2 = ANY (arr)',
	'array, equal' => 'arr = ARRAY[1, NULL]',
	'function' => 'abs(a) + length(b) > 6',
	'case' => 'CASE WHEN a > 3 THEN flag ELSE a = 1 END',
	'everything' => 'true',
	'nothing' => 'false',
	'by key' => 'id BETWEEN 20 AND 60',
	'by key, equal' => 'id = 33',
	'big' => q{length(big) > 3000});
my %handles;

run_sql(sprintf($fill, 1, 100));
for my $name (sort keys %clauses)
{
	$handles{$name} = $node->safe_psql($db,
		q{SELECT electric_cm_create_shape('t', $c$} . $clauses{$name} . '$c$)');
}
my %columns = (
	'columns' => [ undef, [qw(id b)] ],
	'columns and a clause on others' => [ 'a > 3', [qw(id n)] ],
	'columns and an equality on another' => [ 'a = 5', [qw(id big)] ]);
for my $name (sort keys %columns)
{
	my ($clause, $list) = @{ $columns{$name} };
	$handles{$name} = $node->safe_psql($db, sprintf(
			q{SELECT electric_cm_create_shape('t', %s, '{%s}')},
			defined $clause ? '$c$' . $clause . '$c$' : 'NULL', join(',', @$list)));
}
becomes($node, $db, q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all shapes are live');

sub compare_all
{
	my ($when) = @_;

	settle();
	for my $name (sort keys %handles)
	{
		my ($clause, $list) = $columns{$name} ? @{ $columns{$name} } : ($clauses{$name}, undef);
		my ($ok, $entries) = replay_equals($node, $db, $handles{$name}, 't', ['id'],
			(defined $clause ? (where => $clause) : ()), ($list ? (columns => $list) : ()));

		ok($ok, "$when: $name ($entries entries)");
	}
}

compare_all('snapshot');
run_sql(
	sprintf($fill, 101, 200),
	'UPDATE t SET a = a + 1 WHERE id % 3 = 0',
	'UPDATE t SET a = NULL WHERE id % 11 = 0',
	q{UPDATE t SET b = 'b1', flag = NOT flag WHERE id % 4 = 0},
	'UPDATE t SET id = id + 1000 WHERE id % 10 = 5',
	'UPDATE t SET id = 33, a = 5 WHERE id = 34 AND NOT EXISTS (SELECT FROM t WHERE id = 33)',
	'DELETE FROM t WHERE id % 9 = 0',
	q{UPDATE t SET n = n + 1, f = f * 2, d = d + 1, ts = ts + interval '1 hour', u = NULL WHERE id % 5 = 0},
	q{UPDATE t SET v = upper(v), c = upper(c), j = j || '{"k": 1}', arr = arr || 2 WHERE id % 6 = 0},
	'UPDATE t SET a = a');
compare_all('stream');

# a large transaction, spilled, with savepoints and a rollback in it
run_sql(
	'BEGIN', sprintf($fill, 10000, 14000), 'SAVEPOINT s', 'UPDATE t SET a = 5', 'ROLLBACK TO s',
	'UPDATE t SET a = 3 WHERE id % 2 = 0', 'DELETE FROM t WHERE id % 3 = 0', 'COMMIT');
compare_all('large transaction');

# consumers and the whole server come back to the same shapes
run_sql(q{SELECT pg_terminate_backend(pid) FROM electric_cm_stat_consumers});
run_sql('UPDATE t SET a = (a + 3) % 7');
$node->restart;
wait_active($node, $db);
run_sql('UPDATE t SET flag = a > 3, id = -id');
compare_all('restart');

# an error in one shape's clause is that shape's, and nobody else's
run_sql('CREATE TABLE e (id int PRIMARY KEY, a int)', 'ALTER TABLE e REPLICA IDENTITY FULL', 'INSERT INTO e VALUES (1, 1)');
my $bad = run_sql(q{SELECT electric_cm_create_shape('e', '10 / a > 1')});
my $equal = run_sql(q{SELECT electric_cm_create_shape('e', 'a = 0 AND 10 / (a + 1) > 1')});
my $good = run_sql(q{SELECT electric_cm_create_shape('e')});
becomes($node, $db, q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'the new ones are live');
run_sql('INSERT INTO e VALUES (2, 0), (3, 5)');
becomes($node, $db, qq{SELECT state = 'errored' AND last_error = 'division by zero' FROM electric_cm_shapes WHERE handle = '$bad'},
	'a division by zero makes the shape errored');
my ($rc, $out, $err) = $node->psql($db, "SELECT * FROM electric_cm_shape_log('$bad')");
like($err, qr/shape "$bad" has failed.*DETAIL:  division by zero/s, 'its readers learn why');
run_sql('INSERT INTO e VALUES (4, 0)');
settle();
for my $shape ([ $good, undef ], [ $equal, 'a = 0 AND 10 / (a + 1) > 1' ])
{
	my ($ok, $entries) = replay_equals($node, $db, $shape->[0], 'e', ['id'],
		defined $shape->[1] ? (where => $shape->[1]) : ());
	ok($ok, "the others go on ($entries entries)");
}

# an error in the snapshot
my $bad2 = run_sql(q{SELECT electric_cm_create_shape('e', '11 / a > 1')});
becomes($node, $db, qq{SELECT state = 'errored' AND last_error = 'division by zero' FROM electric_cm_shapes WHERE handle = '$bad2'},
	'a division by zero in the snapshot makes the shape errored, too');

# partitions, with their columns in another order; a shape of the root and of a leaf
run_sql(
	'CREATE TABLE p (id int, k int, t text, PRIMARY KEY (id, k)) PARTITION BY LIST (k)',
	'CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)',
	'CREATE TABLE p2 (t text, gone int, k int NOT NULL, id int NOT NULL)',
	'ALTER TABLE p2 DROP COLUMN gone',
	'ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2, 3)',
	'ALTER TABLE p1 REPLICA IDENTITY FULL',
	'ALTER TABLE p2 REPLICA IDENTITY FULL',
	q{INSERT INTO p SELECT i, 1 + i % 3, 't' || i % 4 FROM generate_series(1, 60) i});
my %parts = (p => q{t = 't1'}, p1 => q{t = 't2'}, p2 => q{t IN ('t1', 't3') AND id > 5});
my %part_handles = map { $_ => run_sql(qq{SELECT electric_cm_create_shape('$_', \$c\$$parts{$_}\$c\$)}) } sort keys %parts;
my $k_handle = run_sql(q{SELECT electric_cm_create_shape('p', 'k = 2', '{k,id}')});
becomes($node, $db, q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state = 'creating'}, 'shapes of partitions are live');
run_sql(
	q{UPDATE p SET t = 't1' WHERE id % 5 = 0}, 'UPDATE p SET k = 1 + k % 3 WHERE id % 2 = 0',
	q{UPDATE p SET t = 't3', id = id + 100 WHERE id % 7 = 0}, 'DELETE FROM p WHERE id % 11 = 0',
	q{INSERT INTO p VALUES (500, 1, 't1'), (501, 2, 't1'), (502, 3, 't3')});
settle();
for my $table (sort keys %parts)
{
	my ($ok, $entries) = replay_equals($node, $db, $part_handles{$table}, $table, [qw(id k)], where => $parts{$table});
	ok($ok, "partitions: $table ($entries entries)");
}
my ($ok, $entries) = replay_equals($node, $db, $k_handle, 'p', [qw(id k)], where => 'k = 2', columns => [qw(id k)]);
ok($ok, "partitions: by the partition key ($entries entries)");

# many that look for a value; some go, others come
run_sql('CREATE TABLE m (id int PRIMARY KEY, c int)', 'ALTER TABLE m REPLICA IDENTITY FULL');
run_sql(q{CREATE TABLE m_handles AS SELECT c, electric_cm_create_shape('m', 'c = ' || c) AS handle FROM generate_series(1, 300) c});
becomes($node, $db, q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state = 'creating'}, '300 shapes are live');
run_sql(
	'INSERT INTO m SELECT i, i % 400 FROM generate_series(1, 2000) i',
	q{SELECT electric_cm_drop_shape(handle) FROM m_handles WHERE c % 3 = 0},
	'UPDATE m SET c = c + 1 WHERE id % 2 = 0', 'DELETE FROM m WHERE id % 5 = 0');
settle();
is(run_sql(q{
	SELECT count(*) FROM m_handles h WHERE c % 3 <> 0 AND
		(SELECT coalesce(sum(CASE operation WHEN 'insert' THEN 1 WHEN 'delete' THEN -1 ELSE 0 END), 0) FROM electric_cm_shape_log(h.handle))
		<> (SELECT count(*) FROM m WHERE m.c = h.c)}), '0', 'each has its rows, no more and no less');
run_sql('TRUNCATE m');
becomes($node, $db, q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE relation = 'm'::regclass}, 'TRUNCATE invalidates them all');
run_sql('INSERT INTO m VALUES (1, 1)');
settle();
is(run_sql(q{SELECT electric_cm_status()}), 'active', 'and the stack goes on');

$node->stop;
done_testing();
