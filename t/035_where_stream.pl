# Shapes with where clauses and columns: rows move in, within and out, and the
# log always replays to exactly what the query returns.
use strict;
use warnings;

use ElectricCM qw(new_stack has_xml);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => q{
log_min_messages = warning
electric_cm.reconnect_initial_delay = '100 ms'
electric_cm.reconnect_max_delay = '100 ms'
});
my $node = $stack->node;

$stack->sql(
	'CREATE EXTENSION electric_cm',

	q{CREATE TABLE t (id int PRIMARY KEY, a int8, b text, v varchar(10), c char(5), n numeric,
		f float8, flag bool, d date, ts timestamptz, u uuid, j jsonb, arr int[], big text)},
	'ALTER TABLE t REPLICA IDENTITY FULL',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL');
$stack->install_compare;
$stack->active or BAIL_OUT('no stack');

# id runs through all kinds of values; update and delete move rows about
my $fill = q{INSERT INTO t SELECT i, nullif(i % 7, 0), nullif('b' || i % 5, 'b3'), 'v' || i % 3, 'c' || i % 2,
	CASE i % 4 WHEN 0 THEN 1.0 WHEN 1 THEN 1.00 WHEN 2 THEN 'NaN' END,
	CASE i % 4 WHEN 0 THEN '-0' WHEN 1 THEN 0 WHEN 2 THEN 'NaN'::float8 END, CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END,
	date '2020-01-01' + i % 10, timestamptz '2020-01-01 00:00+00' + i % 10 * interval '1 hour',
	CASE WHEN i % 2 = 0 THEN '00000000-0000-0000-0000-000000000001'::uuid END,
	jsonb_build_object('k', i % 3), ARRAY[i % 3, NULL], repeat(i::text, CASE i %% 10 WHEN 3 THEN 3000 ELSE 1 END)
	FROM generate_series(%d, %d) AS i};

my %clauses = (
	'equality' => 'a = 5',
	'equality, int4 constant' => 'a = 5::int4',
	'equality, the other way round' => '3 = a',
	'no such value' => 'a = 1000000',
	'list' => 'a IN (1, 3, 3, 6)',
	'list with null' => 'a IN (1, NULL)',
	'no list' => 'a NOT IN (1, 2)',
	'negated list' => q{NOT (a IN (1, 2) OR b = ANY ('{b1,b2}'))},
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
my %columns = (
	'columns' => [ undef, [qw(id b)] ],
	'columns and a clause on others' => [ 'a > 3', [qw(id n)] ],
	'columns and an equality on another' => [ 'a = 5', [qw(id big)] ]);

# Each shape that is compared: name => [handle, table, clause, columns]
sub literal { return defined $_[0] ? '$c$' . $_[0] . '$c$' : 'NULL'; }
sub array { return defined $_[0] ? "'{" . join(',', @{ $_[0] }) . "}'" : 'NULL'; }

sub create_shapes
{
	my ($table, %definitions) = @_;
	my @names = sort keys %definitions;
	my @handles = split /\n/, $stack->sql(map {
		'SELECT electric_cm_create_shape(' . join(', ', literal($table), literal($definitions{$_}[0]), array($definitions{$_}[1])) . ')' } @names);
	my %shapes;
	$shapes{ $names[$_] } = [ $handles[$_], $table, @{ $definitions{ $names[$_] } } ] for 0 .. $#names;
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state = 'creating'});
	return %shapes;
}

sub compare
{
	my ($when, %shapes) = @_;

	$stack->settle;
	for (sort split /\n/, $stack->sql('SELECT name, entries, replace(wrong, chr(10), chr(9)) FROM (VALUES ' . join(', ', map {
				'(' . join(', ', literal($_), map({ literal($_) } @{ $shapes{$_} }[ 0 .. 2 ]), array($shapes{$_}[3]) . '::text[]') . ')' } sort keys %shapes)
			. ') AS shape (name, handle, relation, clause, columns), ecm_test.compare(handle, relation, clause, columns)'))
	{
		my ($name, $entries, $wrong) = split /\|/, $_, 3;
		ok($wrong eq '', "$when: $name ($entries entries)") or diag(join "\n", split /\t/, $wrong);
	}
	return;
}

$stack->sql(sprintf($fill, 1, 100));
my %shapes = create_shapes('t', %columns, map { $_ => [ $clauses{$_} ] } keys %clauses);
is($stack->sql(q{SELECT count(*) FROM electric_cm_shapes WHERE state <> 'live'}), '0', 'all shapes are live');

compare('snapshot', %shapes);
$stack->sql(
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
compare('stream', %shapes);

# a large transaction, spilled, with savepoints and a rollback in it
$stack->sql(
	'BEGIN', sprintf($fill, 10000, 12000), 'SAVEPOINT s', 'UPDATE t SET a = 5', 'ROLLBACK TO s',
	'UPDATE t SET a = 3 WHERE id % 2 = 0', 'DELETE FROM t WHERE id % 3 = 0', 'COMMIT');
compare('large transaction', %shapes);

# consumers and the whole server come back to the same shapes
$stack->sql(q{SELECT pg_terminate_backend(pid) FROM electric_cm_stat_consumers});
$stack->sql('UPDATE t SET a = (a + 3) % 7');
$node->restart;
$stack->active;
$stack->sql('UPDATE t SET flag = a > 3, id = -id');
compare('restart', %shapes);

# an error in one shape's clause is that shape's, and nobody else's
$stack->sql('CREATE TABLE e (id int PRIMARY KEY, a int)', 'ALTER TABLE e REPLICA IDENTITY FULL', 'INSERT INTO e VALUES (1, 1)');
my %e = create_shapes('e', bad => ['10 / a > 1'], equal => ['a = 0 AND 10 / (a + 1) > 1'], good => [undef]);
my $bad = delete($e{bad})->[0];
$stack->sql('INSERT INTO e VALUES (2, 0), (3, 5)');
$stack->becomes(qq{SELECT state = 'errored' AND last_error = 'division by zero' FROM electric_cm_shapes WHERE handle = '$bad'},
	'a division by zero makes the shape errored');
my ($rc, $out, $err) = $node->psql($db, "SELECT * FROM electric_cm_shape_log('$bad')");
like($err, qr/shape "$bad" is errored.*DETAIL:  division by zero/s, 'its readers learn why');
$stack->sql('INSERT INTO e VALUES (4, 0)');
compare('the others go on', %e);

# however many there are, and in however many transactions: nobody waits
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
my %many = create_shapes('e', map { $_ => ["10 / (a - $_) > a"] } 20 .. 60);
$stack->sql('INSERT INTO e SELECT 100 + i, i FROM generate_series(20, 40) i');
$stack->sql("UPDATE e SET a = $_ WHERE id = 120") for 41 .. 60;
$stack->sql('UPDATE e SET a = 1 WHERE id = 120');
compare('the others go on', %e);
is($stack->sql(q{SELECT count(*) FROM electric_cm_shapes WHERE relation = 'e'::regclass AND state = 'errored'}), '42', 'more such errors');
is($stack->sql('SELECT pid FROM electric_cm_stat_consumers'), $consumer, 'they do not cost a consumer');

# nor in a transaction that is written before it is complete
sub errored
{
	return $stack->sql("SELECT count(*), count(*) FILTER (WHERE events = 1) FROM (SELECT count(e.event) AS events FROM electric_cm_shapes s
		LEFT JOIN electric_cm_events e ON e.event = 'shape_errored' AND e.message LIKE 'shape ' || handle || ' is errored%'
		WHERE relation = '$_[0]'::regclass AND state = 'errored' GROUP BY handle) s");
}
$stack->sql('CREATE TABLE b (id int PRIMARY KEY, v int, fill text)', 'ALTER TABLE b REPLICA IDENTITY FULL');
my %b = create_shapes('b', (map { ("quotient $_" => ["10 / v > $_"], "later $_" => ["10 / (v - 100) > $_"]) } 1 .. 8),
	equal => ['v = 0'], equals => ['v IN (0, 3, 100) AND 10 / (v + 1) < 4'], range => ['v BETWEEN 0 AND 3 AND id > 100'], all => [undef]);
$stack->sql(
	'BEGIN', q{INSERT INTO b SELECT i, CASE WHEN i % 10000 = 9000 THEN 0 ELSE 1 + i % 12 END, repeat('x', 200) FROM generate_series(1, 30000) i},
	'SAVEPOINT s', 'UPDATE b SET v = 0', 'ROLLBACK TO s', 'UPDATE b SET v = 100 WHERE id = 29000', 'UPDATE b SET v = v + 1 WHERE id % 2 = 0', 'COMMIT');
$stack->sql('INSERT INTO b VALUES (0, 0), (-1, 100)');
delete @b{ map { ("quotient $_", "later $_") } 1 .. 8 };
compare('large transaction with errors', %b);
cmp_ok($stack->sql("SELECT log_bytes FROM electric_cm_shapes WHERE handle = '$b{all}[0]'"), '>', 8 * 1024 * 1024, 'it was large enough');
is(errored('b'), '16|16', 'each shape that has raised an error is errored, once');
is($stack->sql('SELECT pid FROM electric_cm_stat_consumers'), $consumer, 'they do not cost a consumer either');

# an error in the snapshot
my $bad2 = $stack->sql(q{SELECT electric_cm_create_shape('e', '11 / a > 1')});
$stack->becomes(qq{SELECT state = 'errored' AND last_error = 'division by zero' FROM electric_cm_shapes WHERE handle = '$bad2'},
	'a division by zero in the snapshot makes the shape errored, too');

# one that no retry would mend, though nothing is wrong with the values
$stack->sql('CREATE TABLE n (id int PRIMARY KEY, arr int[], node pg_node_tree)', 'ALTER TABLE n REPLICA IDENTITY FULL',
	q{INSERT INTO n VALUES (1, '{{1,2},{3,4}}')});
my $bad3 = $stack->sql(q{SELECT electric_cm_create_shape('n', '1 = ANY (array_remove(arr, 2))')});
$stack->becomes(qq{SELECT state = 'errored' AND last_error LIKE 'removing elements%' FROM electric_cm_shapes WHERE handle = '$bad3'},
	'a feature that is not supported makes the shape errored');

# a type that can't read what it writes
my %n = create_shapes('n', 'is null' => ['node IS NULL'], 'is not null' => ['node IS NOT NULL'], 'other column' => ['id = 1'], all => [undef]);
$stack->sql('INSERT INTO n (id, node) SELECT 2, ev_action FROM pg_rewrite LIMIT 1');
$stack->becomes(q{SELECT count(*) = 2 AND bool_and(last_error = 'cannot accept a value of type pg_node_tree')
	FROM electric_cm_shapes WHERE where_clause LIKE '%node%' AND state = 'errored'}, 'all shapes that look at it are errored');
delete @n{ 'is null', 'is not null' };
compare('those that do not look at it go on', %n);

# however many look at it; and not those that the row has nothing to do with
SKIP:
{
	skip 'no XML in this server', 29 unless has_xml($node, $db);
	$stack->sql('CREATE TABLE r (id int PRIMARY KEY, x xml)', 'ALTER TABLE r REPLICA IDENTITY FULL');
	my %r = create_shapes('r', (map { ("id = $_" => ["id = $_ AND x IS NOT NULL"], "id > $_" => ["id > $_ AND x IS NOT NULL"]) } 1 .. 12),
		all => [undef], 'other column' => ['id > 1']);
	$stack->sql(q{INSERT INTO r SELECT 100 + i, xmlelement(name a, E'\\x01') FROM generate_series(1, 3) i},
		q{INSERT INTO r VALUES (5, '<a/>'), (6, xmlelement(name a, E'\\x01'))}, 'UPDATE r SET id = id + 6 WHERE id < 7', 'INSERT INTO e VALUES (5, 5)');
	delete @r{ 'id = 6', 'id = 12', map { "id > $_" } 1 .. 12 };
	compare('those that it is not for go on', %r, %e);
	is(errored('r'), '14|14', 'those that have to look at it are errored, each once');

	my %all = create_shapes('r', map { $_ => ["x IS NOT NULL AND id > -$_"] } 1 .. 8);
	$stack->sql('BEGIN', q{INSERT INTO r SELECT i, xmlelement(name a, repeat('x', 1000)) FROM generate_series(1001, 10000) i},
		q{UPDATE r SET x = xmlelement(name a, E'\\x01') WHERE id = 2000}, 'UPDATE r SET id = id + 10000 WHERE id > 1500', 'COMMIT');
	compare('large transaction with such a value', %r);
	is(errored('r'), '22|22', 'it makes shapes errored, too, each once');
	is($stack->sql('SELECT pid FROM electric_cm_stat_consumers'), $consumer, 'that does not cost a consumer');
}

# XML is content, whatever the database says
SKIP:
{
	skip 'no XML in this server', 3 unless has_xml($node, $db);
	$stack->sql("ALTER DATABASE $db SET xmloption = document");
	$stack->sql('SELECT electric_cm_restart()');
	$stack->active;
	$stack->sql('CREATE TABLE x (id int PRIMARY KEY, x xml)', 'ALTER TABLE x REPLICA IDENTITY FULL', q{INSERT INTO x VALUES (1, '<a/>')});
	my %x = create_shapes('x', document => ['x IS DOCUMENT'], constant => [q{x IS NULL OR XMLPARSE(CONTENT 'no document') IS DOCUMENT}], all => [undef]);
	$stack->sql('SET xmloption = content', q{INSERT INTO x VALUES (2, 'content'), (3, NULL), (4, '<b/>')}, q{UPDATE x SET x = 'other' WHERE id = 1});
	compare('XML', %x);
	$stack->sql("ALTER DATABASE $db RESET xmloption");
}

# NULL in an array is null, whatever the database says
$stack->sql("ALTER DATABASE $db SET array_nulls = off", "ALTER DATABASE $db SET transform_null_equals = on");
$stack->sql('SELECT electric_cm_restart()');
$stack->active;
$stack->sql('CREATE TABLE an (id int PRIMARY KEY, t text, a text[])', 'ALTER TABLE an REPLICA IDENTITY FULL',
	'SET array_nulls = on', q{INSERT INTO an VALUES (1, 'a', '{x,NULL}'), (2, 'NULL', '{x,"NULL"}')});
{
	local $ENV{PGOPTIONS} = '-c array_nulls=on -c transform_null_equals=off';
	my %an = create_shapes('an', any => [q{t = ANY ('{a,NULL}')}], array => [q{a = ARRAY['x', NULL]}],
		other => [q{a <> ARRAY['x', NULL]}], null => [q{t = NULL}], all => [undef]);
	$stack->sql('SET array_nulls = on', q{INSERT INTO an VALUES (3, 'a', '{x,NULL}'), (4, 'NULL', '{x,"NULL"}'), (5, NULL, NULL)},
		'UPDATE an SET id = id + 10 WHERE id < 3');
	compare('nulls in arrays', %an);
}
$stack->sql("ALTER DATABASE $db RESET array_nulls", "ALTER DATABASE $db RESET transform_null_equals");

# partitions, with their columns in another order; a shape of the root and of a leaf
$stack->sql(
	'CREATE TABLE p (id int, k int, t text, PRIMARY KEY (id, k)) PARTITION BY LIST (k)',
	'CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)',
	'CREATE TABLE p2 (t text, gone int, k int NOT NULL, id int NOT NULL)',
	'ALTER TABLE p2 DROP COLUMN gone',
	'ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2, 3)',
	'ALTER TABLE p1 REPLICA IDENTITY FULL',
	'ALTER TABLE p2 REPLICA IDENTITY FULL',
	q{INSERT INTO p SELECT i, 1 + i % 3, 't' || i % 4 FROM generate_series(1, 60) i});
my %parts = (
	create_shapes('p', root => [q{t = 't1'}], 'by the partition key' => [ 'k = 2', [qw(k id)] ]),
	create_shapes('p1', 'first leaf' => [q{t = 't2'}]), create_shapes('p2', 'second leaf' => [q{t IN ('t1', 't3') AND id > 5}]));
$stack->sql(
	q{UPDATE p SET t = 't1' WHERE id % 5 = 0}, 'UPDATE p SET k = 1 + k % 3 WHERE id % 2 = 0',
	q{UPDATE p SET t = 't3', id = id + 100 WHERE id % 7 = 0}, 'DELETE FROM p WHERE id % 11 = 0',
	q{INSERT INTO p VALUES (500, 1, 't1'), (501, 2, 't1'), (502, 3, 't3')});
compare('partitions', %parts);

# many that look for a value; some go, others come
$stack->sql('CREATE TABLE m (id int PRIMARY KEY, c int)', 'ALTER TABLE m REPLICA IDENTITY FULL');
$stack->sql(q{CREATE TABLE m_handles AS SELECT c, electric_cm_create_shape('m', 'c = ' || c) AS handle FROM generate_series(1, 300) c});
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state = 'creating'}, '300 shapes are live');
$stack->sql(
	'INSERT INTO m SELECT i, i % 400 FROM generate_series(1, 2000) i',
	q{SELECT electric_cm_drop_shape(handle) FROM m_handles WHERE c % 3 = 0},
	'UPDATE m SET c = c + 1 WHERE id % 2 = 0', 'DELETE FROM m WHERE id % 5 = 0');
$stack->settle;
is($stack->sql(q{
	SELECT count(*) FROM m_handles h WHERE c % 3 <> 0 AND
		(SELECT coalesce(sum(CASE operation WHEN 'insert' THEN 1 WHEN 'delete' THEN -1 ELSE 0 END), 0) FROM electric_cm_shape_log(h.handle))
		<> (SELECT count(*) FROM m WHERE m.c = h.c)}), '0', 'each has its rows, no more and no less');
$stack->sql('TRUNCATE m');
$stack->settle;
$stack->becomes(q{SELECT count(*) > 0 AND bool_and(state = 'live') FROM electric_cm_shapes WHERE relation = 'm'::regclass}, 'TRUNCATE has them all resynced');
is($stack->sql(q{SELECT count(*) FROM m_handles h WHERE c % 3 <> 0 AND
	(SELECT coalesce(sum(CASE operation WHEN 'insert' THEN 1 WHEN 'delete' THEN -1 ELSE 0 END), 0) FROM electric_cm_shape_log(h.handle)) <> 0}), 0, '... after which they have no rows');
$stack->sql('INSERT INTO m VALUES (1, 1)');
$stack->settle;
is($stack->sql(q{SELECT electric_cm_status()}), 'active', 'and the stack goes on');

$node->stop;
done_testing();
