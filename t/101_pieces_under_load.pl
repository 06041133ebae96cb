# Tables are read in pieces of a few rows while others write to them: each shape's
# log replays to its table, whatever its key is, and whatever moves from one piece
# into another.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.debug_piece_rows = 3
deadlock_timeout = '20 ms'
});
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
$stack->install_compare;
$stack->sql(q{
CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy', 'glad', 'mad');
CREATE DOMAIN name_of_row AS text CHECK (value <> '');
DO $$
BEGIN
	CREATE COLLATION numerically (provider = icu, locale = 'en-u-kn-true');
EXCEPTION WHEN feature_not_supported THEN
	CREATE COLLATION numerically FROM "C";	-- a server without ICU
END $$;
CREATE TABLE number (id int PRIMARY KEY, n int DEFAULT 0, big text);
CREATE TABLE word (id text COLLATE numerically PRIMARY KEY, n int DEFAULT 0, big text);
CREATE TABLE many (a numeric, b "char", c name_of_row COLLATE "C", n int DEFAULT 0, big text, PRIMARY KEY (c, a, b));
CREATE TABLE enumerated (id mood[] NOT NULL, at timestamptz NOT NULL, n int DEFAULT 0, big text, UNIQUE (at, id));
ALTER TABLE enumerated REPLICA IDENTITY USING INDEX enumerated_at_id_key;
CREATE TABLE wholly (id uuid PRIMARY KEY, n int DEFAULT 0, big text);
ALTER TABLE wholly REPLICA IDENTITY FULL;
CREATE TABLE parted (id int PRIMARY KEY, n int DEFAULT 0, big text) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (100);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (MAXVALUE);

-- which key the row with a number has
CREATE TABLE kind (relation text, columns text, key text);
INSERT INTO kind VALUES
	('number', 'id', '%1$s'),
	('word', 'id', '''row '' || %1$s'),
	('many', 'c, a, b', '''row '' || %1$s / 50, round(%1$s %% 50 / 7.0, 3), CASE %1$s %% 2 WHEN 0 THEN ''x'' ELSE ''y'' END::"char"'),
	('enumerated', 'id, at', '(enum_range(NULL::mood))[%1$s %% 3 + 1 : %1$s %% 5 + 1], ''2026-01-01 UTC''::timestamptz + %1$s * interval ''1 hour'''),
	('wholly', 'id', 'md5(''row '' || %1$s)::uuid'),
	('parted', 'id', '%1$s');

-- TOASTed, though it is short
CREATE FUNCTION big() RETURNS text LANGUAGE sql AS
	$$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 80) $$;
DO $$
DECLARE
	k kind;
BEGIN
	FOR k IN SELECT * FROM kind LOOP
		EXECUTE format('ALTER TABLE %s ALTER big SET STORAGE EXTERNAL', k.relation);
		EXECUTE format('INSERT INTO %s (%s, big) SELECT %s, big() FROM generate_series(1, 200, 2) i', k.relation, k.columns, format(k.key, 'i'));
	END LOOP;
END $$;

-- A change, or some, in a subtransaction that may fail.  Most of them move a row.
CREATE FUNCTION change() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k kind;
	source text;
	target text;
	x int := 1 + floor(random() * 200);
	y int := 1 + floor(random() * 200);
BEGIN
	SELECT * INTO k FROM kind ORDER BY random() LIMIT 1;
	source := format('(%s) = (%s)', k.columns, format(k.key, x));
	target := format('(%s) = (%s)', k.columns, format(k.key, y));
	EXECUTE format('UPDATE %s SET n = n + 1 WHERE %s', k.relation, source);
	CASE floor(random() * 10)::int
	WHEN 1 THEN
		EXECUTE format('INSERT INTO %s (%s, big) VALUES (%s, big())', k.relation, k.columns, format(k.key, y));
	WHEN 2 THEN
		EXECUTE format('DELETE FROM %s WHERE %s', k.relation, source);
	WHEN 3 THEN
		EXECUTE format('UPDATE %s SET big = big() WHERE %s', k.relation, source);
	WHEN 4 THEN
		EXECUTE format('DELETE FROM %s WHERE %s', k.relation, target);
		EXECUTE format('INSERT INTO %s (%s, big) VALUES (%s, big())', k.relation, k.columns, format(k.key, y));
		EXECUTE format('DELETE FROM %s WHERE %s', k.relation, target);
		EXECUTE format('INSERT INTO %s (%s, big) VALUES (%s, big())', k.relation, k.columns, format(k.key, y));
	ELSE
		EXECUTE format('UPDATE %s SET (%s) = ROW(%s), n = n + 1 WHERE %s', k.relation, k.columns, format(k.key, y), source);
	END CASE;
EXCEPTION WHEN unique_violation OR deadlock_detected OR serialization_failure THEN
	NULL;
END $$;
});
ok($stack->active, 'active') or BAIL_OUT('no stack');

my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set pause random(0, 20)
BEGIN;
SELECT change();
\sleep :pause ms
SELECT change(), change();
COMMIT;
});
my ($out, $err) = ('', '');
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', 5, '-T', 600, '-f', $script, $node->connstr($stack->db) ],
	'<', \undef, '>', \$out, '2>', \$err);

sub inserted { my ($table) = @_; return $stack->sql("SELECT n_tup_ins FROM pg_stat_all_tables WHERE relname = '$table'"); }

for my $round (1 .. 3)
{
	$stack->sql("SELECT electric_cm_create_shape(relation) FROM kind");
	$stack->sql("SELECT electric_cm_create_shape('wholly', 'n % 3 = ' || i) FROM generate_series(0, 2) i");
	$stack->sql("SELECT electric_cm_create_shape('wholly', 'n = ' || i) FROM generate_series(0, 9) i");
	if ($round == 2)
	{
		# the next consumer judges from the beginning, and goes on
		$stack->becomes("SELECT count(*) > 5 FROM _electric_cm.reading_piece", 'some pieces are read');
		$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ 'electric_cm consumer'});
	}
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, "all shapes are live, $round")
	  or diag($stack->sql("SELECT handle, relation, state, last_error, waiting_for FROM electric_cm_shapes WHERE state <> 'live'"));
	last if $round == 3 && $stack->becomes("SELECT n_tup_ins > 20 FROM pg_stat_all_tables WHERE relname = 'reading_again'");
	$stack->sql('SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes');
}
$load->signal('TERM');
$load->finish;
$stack->becomes(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'});
cmp_ok(inserted('reading_piece'), '>', 500, 'many pieces were read');
note(inserted('reading_again') . ' keys were read again');

$stack->settle;
for (split /\n/, $stack->sql(q{
	SELECT handle, relation, coalesce(where_clause, ''), entries, c.rows, coalesce(wrong, '') FROM electric_cm_shapes s,
		LATERAL ecm_test.compare(handle, relation::text, where_clause, NULL) c ORDER BY 2, 3}))
{
	my ($handle, $table, $clause, $entries, $nrows, $wrong) = split /\|/, $_, 6;
	is($wrong, '', "replays: $table $clause, $entries entries, $nrows rows");
}
is($stack->sql('SELECT count(*) FROM _electric_cm.reading_again'), 0, 'nothing is left to be read again');
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|terminated by signal/, 'nothing has crashed');
$node->stop;
done_testing();
