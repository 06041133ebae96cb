# Thousands of shapes of one table: created while others write to it, one of
# them impossible; restarted; and gone with their table, all at once.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $shapes = 3000;
my $stack = new_stack('main');
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'becomes active');
$stack->sql(qq{
	CREATE TABLE m (id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, c int, v varchar, note text);
	ALTER TABLE m REPLICA IDENTITY FULL;
	INSERT INTO m (c, v, note) SELECT i, 'v' || i % 50, repeat('note', 1 + i % 7) FROM generate_series(1, 6000) i;
	CREATE TABLE handles (c int PRIMARY KEY, clause text, columns text[], handle text);

	-- inserts, moves from shape to shape, deletes; 1500 is left alone
	CREATE PROCEDURE churn(rounds int, pause float) LANGUAGE plpgsql AS \$\$
	BEGIN
		FOR i IN 1 .. rounds LOOP
			INSERT INTO m (c, v, note) SELECT 1 + (i * 97 + j) % 1400, 'v' || j % 50, 'new' FROM generate_series(1, 20) j;
			UPDATE m SET c = c + 1, note = note || '!' WHERE id % 500 = i % 500 AND c NOT BETWEEN 1490 AND 1510;
			DELETE FROM m WHERE id % 700 = i % 700 AND c <> 1500;
			COMMIT;
			PERFORM pg_sleep(pause);
		END LOOP;
	END \$\$;

	CREATE PROCEDURE create_one_by_one(first int, last int) LANGUAGE plpgsql AS \$\$
	BEGIN
		FOR i IN first .. last LOOP
			INSERT INTO handles SELECT i, 'c = ' || i, NULL, electric_cm_create_shape('m', 'c = ' || i);
			COMMIT;
		END LOOP;
	END \$\$});

my $writer = $node->background_psql($db);
$writer->query_until(qr/started/, "\\echo started\nCALL churn(100000, 0.005);\n");

$stack->sql(qq{INSERT INTO handles SELECT i, clause, NULL, electric_cm_create_shape('m', clause)
	FROM generate_series(1, 2000) i,
		LATERAL (SELECT CASE WHEN i = 1500 THEN '10 / (c - 1500) > 1'
			WHEN i % 100 = 0 THEN 'c > 0 AND c % 300 = ' || i % 300 ELSE 'c = ' || i END) AS x (clause)
	ON CONFLICT DO NOTHING});
$stack->sql('SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots');
$stack->sql('CALL create_one_by_one(2001, 2900)');
$stack->sql(qq{INSERT INTO handles SELECT 2900 + i, 'v = ''v' || i || '''', '{id,v}', electric_cm_create_shape('m', 'v = ''v' || i || '''', '{id,v}')
	FROM generate_series(1, 100) i});
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state = 'creating'}, 'none is being created any more');
is($stack->sql(q{SELECT string_agg(h.c || ' ' || last_error, ', ') FROM electric_cm_shapes s JOIN handles h USING (handle) WHERE state = 'errored'}),
	'1500 division by zero', 'the impossible one is errored, alone');
is($stack->sql(q{SELECT count(*) FROM electric_cm_shapes WHERE state = 'live'}),
	$stack->sql(q{SELECT count(DISTINCT handle) - 1 FROM handles}), 'all others are live');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shape_errored'}), '1', 'there is one event about it');
$stack->sql('DELETE FROM handles WHERE c = 1500');

sub stop_writing
{
	$stack->sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CALL churn(100000%'});
	$stack->becomes(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CALL churn(100000%' AND state = 'active'});
	return;
}

sub compare
{
	my ($when) = @_;

	$stack->settle;
	# sums over all logs together: a row is in as many shapes as want it
	is($stack->sql(q{SELECT coalesce(sum(CASE operation WHEN 'insert' THEN 1 WHEN 'delete' THEN -1 ELSE 0 END), 0)
			FROM handles h, electric_cm_shape_log(h.handle) WHERE clause LIKE 'c = %' OR clause LIKE 'v = %'}),
		$stack->sql(q{SELECT (SELECT count(*) FROM m JOIN handles h ON h.clause = 'c = ' || m.c)
			+ (SELECT count(*) FROM m JOIN handles h ON h.clause = 'v = ''' || m.v || '''')}),
		"$when: the logs have as many rows as the table has for them");
	for my $c (1, 77, 999, 1000, 1499, 2001, 2450, 2907)
	{
		my ($clause, $columns) = split /\|/, $stack->sql("SELECT clause, array_to_string(columns, ',') FROM handles WHERE c = $c");
		my ($ok, $entries) = $stack->replay_equals($stack->sql("SELECT handle FROM handles WHERE c = $c"), 'm', ['id'],
			where => $clause, ($columns ? (columns => [ split /,/, $columns ]) : ()));
		ok($ok, "$when: $clause ($entries entries)");
	}
	return;
}

stop_writing();
compare('created under load');

$stack->sql('CALL churn(50, 0)');
$node->restart;
ok($stack->active, 'active again after a restart');
$stack->sql('CALL churn(50, 0)');
compare('restarted');

# Those that look for a constant are read together: for each type, operator and
# direction the same rows must come out as of a query.
$stack->sql(q{
	CREATE TABLE typed (id int PRIMARY KEY, i8 int8, i2 int2, t text, v varchar(9), c char(5), n numeric, f float8, f4 float4,
		d date, ts timestamptz, u uuid, b bool, nm name, ch "char", o oid, j jsonb, bt bytea, tc text COLLATE "C", iv interval,
		vb varbit, ip inet, "odd Name" int);
	ALTER TABLE typed REPLICA IDENTITY FULL;
	INSERT INTO typed SELECT i, k, k, 't' || k, 'v' || k, 'c' || k, k::numeric / 2,
			CASE k WHEN 0 THEN '-0'::float8 WHEN 1 THEN 'NaN'::float8 ELSE k END, k, '2020-01-01'::date + k,
			'2020-01-01 00:00Z'::timestamptz + k * interval '1 h', ('00000000-0000-0000-0000-00000000000' || k)::uuid,
			i % 2 = 0, ('n' || k)::name, (65 + k)::"char", k, jsonb_build_object('a', k), ('\x0' || k)::bytea, 'k' || k,
			k * interval '24 h', ('10' || i % 2)::varbit, ('10.0.0.' || k)::inet, k
		FROM generate_series(1, 50) i, LATERAL (SELECT i % 5) AS x (k);
	INSERT INTO typed (id) VALUES (99);
	CREATE TABLE typed_handles (clause text, handle text);
	INSERT INTO typed_handles SELECT clause, electric_cm_create_shape('typed', clause) FROM unnest(ARRAY[
		'i8 = 1', 'i8 = 2', 'i8 = 3000000000', 'i8 = 3::int2', 'i8 = 4::int2', '1::int2 = i8', 'i2 = 1', 'i2 = 2', 'i2 = 70000',
		't = ''t1''', 't = ''t2''', 'v = ''v1''', 'v = ''v2''', 'c = ''c1''', 'c = ''c2   ''', 'c = ''c1''::text', 'c = ''c2''::text',
		'n = 1', 'n = 0.50', 'f = 0', 'f = ''NaN''', 'f = 2', 'f4 = 1', 'f4 = 2', 'f4 = 1::float4', 'f4 = 2::float4',
		'd = ''2020-01-02''', 'd = ''2020-01-03''', 'd = ''2020-01-02''::timestamp', 'd = ''2020-01-03''::timestamp',
		'ts = ''2020-01-01 01:00Z''', 'ts = ''2020-01-01 02:00Z''', 'b = true', 'b = false',
		'u = ''00000000-0000-0000-0000-000000000001''', 'u = ''00000000-0000-0000-0000-000000000002''',
		'nm = ''n1''', 'nm = ''n2''', 'nm = ''n1''::text', 'nm = ''n2''::text', 'ch = ''B''', 'ch = ''C''', 'o = 1', 'o = 2',
		'j = ''{"a": 1}''', 'j = ''{"a": 2}''', 'bt = ''\x01''', 'bt = ''\x02''', 'tc = ''k1''', 'tc = ''k2''',
		'tc = ''k1'' COLLATE "POSIX"', 'tc = ''k2'' COLLATE "POSIX"', 'iv = ''1 day''', 'iv = ''48 h''', 'vb = B''100''', 'vb = B''101''',
		'ip = ''10.0.0.1''', 'ip = ''10.0.0.2/32''', '"odd Name" = 1', '"odd Name" = 2', 'i8 = 1 AND t = ''t1''', 't = ''t2'' AND i8 = 2'])
		AS x (clause);

	CREATE FUNCTION ids_of(clause text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE ids text; BEGIN
		EXECUTE 'SELECT string_agg(id::text, '','' ORDER BY id) FROM typed WHERE ' || clause INTO ids;
		RETURN ids;
	END $$});
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live' AND relation = 'typed'::regclass},
	'shapes of all kinds of columns are live');
is($stack->sql(q{
	SELECT string_agg(clause, ', ') FROM typed_handles h, LATERAL (SELECT
		string_agg(value->>'id', ',' ORDER BY (value->>'id')::int) AS ids FROM electric_cm_shape_log(h.handle)) AS l
	WHERE l.ids IS DISTINCT FROM ids_of(clause)}), '', 'each has the rows that its clause gives');
$stack->sql('DROP TABLE typed');

# somebody is about to drop a shape; those beside it are created all the same
my $dropper = $node->background_psql($db);
my $undecided = $stack->sql(q{SELECT electric_cm_create_shape('m', 'id = -1')});
$dropper->query_safe('BEGIN');
$dropper->query_safe("SELECT FROM _electric_cm.shape WHERE handle = '$undecided' FOR UPDATE");
$stack->sql(q{SELECT electric_cm_create_shape('m', 'id = ' || -i) FROM generate_series(2, 50) i});
$stack->becomes(qq{SELECT count(*) = 0 FROM electric_cm_shapes WHERE where_clause LIKE '(id = %' AND state <> 'live' AND handle <> '$undecided'},
	'a shape that somebody is about to drop does not hold up the others');
$dropper->query_safe('COMMIT');
$stack->becomes(qq{SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$undecided'}, 'it follows when that is decided');
$dropper->quit;

my $gone = $stack->sql('SELECT count(*) FROM electric_cm_shapes');
my $one = $stack->sql('SELECT handle FROM handles WHERE c = 77');
$stack->sql('DROP TABLE m');
my ($rc, $out, $err) = $node->psql($db, "\\set VERBOSITY verbose\nSELECT * FROM electric_cm_shape_log('$one')");
like($err, qr/42704/, 'with the table its shapes are gone at once');
is($stack->sql('SELECT count(*) FROM electric_cm_shapes'), '0', 'all of them');
$stack->becomes('SELECT NOT EXISTS (SELECT FROM _electric_cm.shape_log) AND NOT EXISTS (SELECT FROM _electric_cm.shape_state)',
	'and nothing is left of them in the end');
like($stack->sql(q{SELECT string_agg(message, '; ') FROM electric_cm_events WHERE event = 'shape_invalidated'}),
	qr/^\d+ shapes [^;]+; $gone shapes are gone, \S+ and others: the table was dropped$/, 'for each table one event tells of them');
is($stack->sql('SELECT shapes FROM electric_cm_stat_consumers'), '0', 'the consumer follows none');
is($stack->sql('SELECT electric_cm_status()'), 'active', 'and the stack goes on');

$node->stop;
done_testing();
