
# A log's values as rows of their table's type: by entry, and all of them; and what columns a
# shape has.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack fails_with has_xml);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm', q{ALTER DATABASE postgres SET datestyle = 'SQL, DMY'}, q{ALTER DATABASE postgres SET intervalstyle = 'sql_standard'},
	q{ALTER DATABASE postgres SET timezone = 'Asia/Kathmandu'}, q{ALTER DATABASE postgres SET xmloption = 'document'}, q{ALTER DATABASE postgres SET bytea_output = 'escape'});
ok($stack->active, 'active');
my $xml = has_xml($node, $db) ? ', x xml' : '';
$stack->sql('CREATE TYPE mood AS ENUM ($$sad$$, $$ok, so$$)', 'CREATE TYPE pair AS (a int, b text)', 'CREATE DOMAIN small AS int CHECK (value < 100)',
	"CREATE TABLE t (id int, gone int, name text COLLATE \"C\", price numeric(10,2) NOT NULL, code char(5), v varchar(8), j json, jb jsonb, js jsonb[],
		a int[], m mood, ms mood[], p pair, s small, b bytea, at timestamptz, d date, i interval, f float8, ok bool, r int4range, u uuid, money money, big text$xml,
		\"Mixed \"\"Case\" int, k text, PRIMARY KEY (k, id))",
	'ALTER TABLE t DROP gone', 'ALTER TABLE t ALTER big SET STORAGE EXTERNAL');
my $values = q{i, 'name ' || i, i / 3.0, 'c' || i, 'v', json_build_object('i', i, 'd', 1.10, 'd', 2), jsonb_build_array(i, 'x', NULL), ARRAY['"s"'::jsonb, 'null'],
	ARRAY[i, NULL, 3], (ARRAY['sad', 'ok, so'])[1 + i % 2]::mood, '{sad,"ok, so"}', ROW(i, 'a "b", c')::pair, i % 100, decode(md5(i::text), 'hex'), '2026-02-01 12:00'::timestamptz + i * '1 day 1 s'::interval,
	date '2026-02-03' + i, i * '-1 day'::interval + '2 mon 3:04:05', i / 7.0, i % 2 = 0, int4range(i, i + 5), md5(i::text)::uuid, i::numeric::money, string_agg(md5(g::text || i), '')};
$values .= q{, ('a<b>' || i || '</b>')::xml} if $xml;
my $insert = "INSERT INTO t SELECT $values, i, 'k' || i FROM generate_series(%d, %d) i, generate_series(1, 90) g GROUP BY i";
$stack->sql('SET xmloption = content', sprintf($insert, 1, 50), q{INSERT INTO t (id, price, k) VALUES (0, 0, '')},
	q{INSERT INTO t (id, price, k, j, jb) VALUES (1000, 1, 'json', 'null', '"a string"')});
my $h = $stack->live_shape('t');

sub same
{
	my ($what) = @_;
	$stack->settle;
	my $rows = 'SELECT r::text FROM %s r';
	return is($stack->sql('SET xmloption = content', "SELECT * FROM (" . sprintf($rows, 't') . ' EXCEPT ALL ' . sprintf($rows, "electric_cm_replay(NULL::t, '$h')") . ") x LIMIT 3",
			"SELECT * FROM (" . sprintf($rows, "electric_cm_replay(NULL::t, '$h')") . ' EXCEPT ALL ' . sprintf($rows, 't') . ') x LIMIT 3'), '', $what);
}
same('a log leads to the rows of the table');
$stack->sql('SET xmloption = content', sprintf($insert, 51, 80), 'UPDATE t SET name = NULL, jb = NULL, j = $$[1, "\u00e9"]$$ WHERE id % 3 = 0', 'UPDATE t SET id = id + 500 WHERE id % 4 = 1',
	'DELETE FROM t WHERE id % 5 = 0', 'UPDATE t SET price = price + 1, js = NULL WHERE id % 2 = 0', 'UPDATE t SET big = $$short$$ WHERE id = 6');
same('... after changes, too, also of rows with values that are not in them');
is($stack->sql("SELECT count(*) FROM t JOIN (SELECT (electric_cm_row(NULL::t, value)).* FROM electric_cm_shape_log('$h') WHERE operation = 'insert') e USING (id, k) WHERE e.j::text IS NOT DISTINCT FROM t.j::text AND e.u = t.u"),
	$stack->sql("SELECT count(*) FROM t JOIN (SELECT value FROM electric_cm_shape_log('$h') WHERE operation = 'insert') e ON value ->> 'k' = k AND value ->> 'id' = id::text AND value ->> 'j' IS NOT DISTINCT FROM j::text WHERE u IS NOT NULL"), 'each entry is a row');

is($stack->sql('CREATE TABLE p (a int DEFAULT 5, b text, c jsonb, "d d" small)', q{SELECT electric_cm_row(ROW(1, 'x', '{}', 3)::p, '{"b": "y", "c": "[1, \"2\"]", "none": "z"}')}, q{SELECT electric_cm_row(ROW(1, 'x', '{}', 3)::p, '{"a": null, "d d": "7"}')},
		q{SELECT electric_cm_row(ROW(1, 'x', '{}', 3)::p, NULL)}, q{SELECT electric_cm_row(NULL::p, NULL) IS NULL}, q{SELECT electric_cm_row(NULL::p, '{"a": 12, "c": {"x": true}}')}),
	qq{(1,y,"[1, ""2""]",3)\n(,x,{},7)\n(1,x,{},3)\nt\n(12,,"{""x"": true}",)}, 'what a value lacks is taken from the base');
fails_with($node, $db, qr/$_->[1]/, "$_->[0] is an error", "SELECT electric_cm_$_->[0]")
  for (
	[ q{row(1, '{}')}, '42804.*row type' ],
	[ q{row(NULL::p, '[]')}, '22023.*object' ],
	[ q{row(NULL::p, '{"a": "x"}')}, '22P02' ],
	[ q{row(NULL::p, '{"d d": "100"}')}, '23514' ],
	[ q{replay(NULL::p, 'none')}, '42704' ],
	[ q{replay(NULL::p, NULL)}, '22004' ],
	[ "replay(1, '$h')", '42804' ],
	[ q{shape_columns('none')}, '42704' ],
	[ q{shape_columns(NULL)}, '22004' ]);

# ------------------------------------------------------------- columns --

is($stack->sql("SELECT name, type, key_position, not_null FROM electric_cm_shape_columns('$h') WHERE name IN ('id', 'name', 'price', 'k') ORDER BY ordinal"),
	"id|integer|2|t\nname|text||f\nprice|numeric||t\nk|text|1|t", 'columns of a shape');
is($stack->sql("SELECT format_type(type, typmod), ordinal FROM electric_cm_shape_columns('$h') WHERE name IN ('price', 'code', 'v') ORDER BY ordinal"), "numeric(10,2)|3\ncharacter(5)|4\ncharacter varying(8)|5", '... with their types');
my $listed = $stack->live_shape('t', columns => [qw(price id k)]);
is($stack->sql("SELECT string_agg(name, ' ' ORDER BY ordinal) FROM electric_cm_shape_columns('$listed')"), 'id price k', '... only those that it has');
$stack->sql('ALTER TABLE t ADD added text', 'ALTER TABLE t DROP a');
$stack->becomes("SELECT string_agg(name, ' ') ~ 'added' AND NOT string_agg(name, ' ') ~ '(^| )a ' FROM electric_cm_shape_columns('$h')", 'columns come and go');
$stack->is_live($h);
same('... with the rows');

# -------------------------------------------------------------- rights --

$stack->sql('CREATE ROLE joe LOGIN', 'CREATE ROLE stranger LOGIN', 'CREATE TABLE theirs (id int PRIMARY KEY, j jsonb)', q{INSERT INTO theirs VALUES (1, '{"a": 1}')}, 'ALTER TABLE theirs OWNER TO joe',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO joe');
my $theirs = $stack->sql(q{SET ROLE joe; SELECT electric_cm_create_shape('theirs')});
$stack->is_live($theirs);
is($stack->sql("SET ROLE joe; SELECT * FROM electric_cm_replay(NULL::theirs, '$theirs'); SELECT count(*) FROM electric_cm_shape_columns('$theirs')"), qq{1|{"a": 1}\n2}, 'who owns a shape has its rows');
fails_with($node, $db, qr/42501/, "nobody else: $_", "SET ROLE stranger; SELECT electric_cm_$_") for "replay(NULL::pg_class, '$theirs')", "shape_columns('$theirs')";

# A type's input function is run as the caller.
$stack->sql(q{CREATE FUNCTION whoever(int) RETURNS bool LANGUAGE sql AS $$ SELECT current_user = 'joe' $$}, 'CREATE DOMAIN checked AS int CHECK (whoever(value))', 'CREATE TABLE of_joe (id checked, j jsonb)', 'GRANT ALL ON of_joe TO joe');
is($stack->sql("SET ROLE joe; SELECT id FROM electric_cm_replay(NULL::of_joe, '$theirs')"), '1', 'input functions run as the caller');

# ... and while it runs, there is no query of ours that it could get hold of.
$stack->sql(q{CREATE FUNCTION alone(int) RETURNS bool LANGUAGE sql AS $$ SELECT count(*) = 0 FROM pg_cursors $$}, 'CREATE DOMAIN unseen AS int CHECK (alone(value))', 'CREATE TABLE seen_of_joe (id unseen, i inet)', 'GRANT ALL ON seen_of_joe TO joe');
is($stack->sql("SET ROLE joe; SELECT id FROM electric_cm_replay(NULL::seen_of_joe, '$theirs')"), '1', 'no cursor is open meanwhile');
is($stack->sql("SELECT count(*), count(DISTINCT h) FROM (VALUES ('$h'), ('$listed')) x (h), LATERAL electric_cm_replay(NULL::t, h)"), 2 * $stack->sql('SELECT count(*) FROM t') . '|2', 'of several logs');

unlike(slurp_file($node->logfile), qr/(?:still referenced|leak|TRAP|PANIC|signal \d+ *:)/, 'no leaks, no crash');
$node->stop;
done_testing();
