# Values of every type that can be read back from its text are, from a shape's
# log, by snapshot and by stream: jsonb_populate_record() gives the row.
use strict;
use warnings;

use ElectricCM qw(has_xml new_stack server_major);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "log_statement = none\nclient_min_messages = warning\n");

sub run_sql
{
	my $sql = join ";\n", @_;
	utf8::encode($sql);
	return $stack->sql($sql);
}

my $odd = q{q"u''o\te/{}[],():%s $1} . "\ttab\n line ";
my %values = (
	bool => [qw(true false)],
	int2 => [qw(-32768 0 32767)],
	int4 => [qw(-2147483648 0 2147483647)],
	int8 => [qw(-9223372036854775808 0 9223372036854775807)],
	float4 => [qw(0 -0 NaN Infinity -Infinity 1.1 1e-45 3.4028235e38)],
	float8 => [qw(0 -0 NaN Infinity -Infinity 0.1 5e-324 1.7976931348623157e308 0.30000000000000004)],
	numeric => [ qw(0 0.00 -1.50 NaN Infinity -Infinity), '9' x 200 . '.' . '1' x 100, '0.' . '0' x 50 . '1' ],
	'numeric(12,4)' => [qw(0 -99999999.9999 NaN 1.5)],
	money => [qw(-92233720368547758.08 0 1234.5)],
	oid => [qw(0 4294967295)],
	text => [ '', ' ', 'NULL', $odd, "\x{e4}\x{20AC}\x{1F600}", 'x' x 3000 ],
	varchar => [ '', $odd ],
	'varchar(10)' => [ '', ' x ', '0123456789' ],
	bpchar => [ '', 'a  ', $odd ],
	'char(5)' => [ '', 'a', 'abcde' ],
	'"char"' => [ '', 'a', '"' ],
	name => [ '', 'A "name"', 'x' x 63 ],
	bytea => [ '', '\\x', '\\x00', '\\x00ff5c270a' ],
	date => [qw(2024-02-29 infinity -infinity 5874897-12-31), '4713-11-24 BC'],
	time => [qw(00:00:00 23:59:59.999999 24:00:00)],
	timetz => [qw(00:00:00+15:59:59 23:59:59.999999-15:59 12:00:00Z)],
	timestamp => [ qw(infinity -infinity), '2024-02-29 12:34:56.789', '4713-11-24 00:00:00 BC', '294276-12-31 23:59:59.999999' ],
	timestamptz => [ qw(infinity -infinity), '2024-10-27 02:30:00+02', '4713-11-24 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00' ],
	interval => [ '0', '-1 year 2 mons -3 days -04:05:06.7', '178956970 years 7 mons', '-178956970 years -8 mons', '2147483647 days', '-2562047788:00:54.775807' ],
	uuid => [qw(a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11)],
	json => [ 'null', '"null"', '{"b": 1, "b" :[1,2,  null]}', '"s\\u00e4\\"\\n"', '1.0', '""' ],
	jsonb => [ 'null', '"null"', '{"b": 1, "a": [1, 2, null, "x\\"y"]}', '1.00', '{}', '""' ],
	jsonpath => [ '$.a[*] ? (@ > 1)', 'strict $' ],
	xml => [ '', '<a b="1">&lt;</a>', 'text', '<?xml version="1.0"?><a/>' ],
	inet => [qw(192.168.0.1/24 10.0.0.1 ::1 2001:db8::1/64)],
	cidr => [qw(10.0.0.0/8 ::/0)],
	macaddr => [qw(08:00:2b:01:02:03)],
	macaddr8 => [qw(08:00:2b:01:02:03:04:05)],
	bit => [qw(0 1)],
	'bit(3)' => [qw(101 000)],
	varbit => [ '', '110011' ],
	point => [ '(1.5,-2)', '(NaN,Infinity)', '(1e-300,0.1)' ],
	line => [ '{1,2,3}', '{0,-1,0.1}' ],
	lseg => ['[(0,0),(1,1)]'],
	box => ['(2,2),(1,1)'],
	path => [ '((0,0),(1,1))', '[(0,0),(1,1)]' ],
	polygon => ['((0,0),(1,1),(1,0))'],
	circle => ['<(1,1),2>'],
	tsvector => [ '', "a:1A cat:2,3 'it''s':4 'q\\\\u\"':5" ],
	tsquery => [ '', "fat & (rat:A* | !cat) <-> 'it''s'" ],
	pg_lsn => [qw(0/0 FFFFFFFF/FFFFFFFF)],
	xid => [qw(0 4294967295)],
	xid8 => [qw(0 18446744073709551615)],
	cid => [qw(0 4294967295)],
	tid => [ '(0,0)', '(4294967295,65535)' ],
	pg_snapshot => ['10:20:10,14,15'],
	txid_snapshot => ['10:20:10,14,15'],
	int2vector => [ '', '1 2 3' ],
	oidvector => [ '', '1 2 4294967295' ],
	refcursor => [ '', $odd ],
	aclitem => ['postgres=arwdDxt/postgres'],
	regproc => [ '-', 'now', '"odd Schema"."odd Function"' ],
	regprocedure => [ '-', 'abs(integer)', '"odd Schema"."odd Function"(text)' ],
	regoper => [ '0', 'pg_catalog.||/' ],
	regoperator => [ '0', '+(integer,integer)' ],
	regclass => [ '-', 'pg_class', '"odd Schema"."Mixed Case"', '4294967295' ],
	regtype => [ '-', 'integer', '"char"', 'timestamp with time zone[]', '"odd Schema".mood' ],
	regrole => [ '-', 'postgres' ],
	regnamespace => [ '-', '"odd Schema"' ],
	regconfig => [ '-', 'english' ],
	regdictionary => [ '-', 'simple' ],
	regcollation => [ '-', '"C"' ],
	int4range => [ 'empty', '[1,10)', '(,)' ],
	int8range => [ 'empty', '[-9223372036854775808,5)' ],
	numrange => [ 'empty', '(1.50,NaN]' ],
	tsrange => [ 'empty', '["2024-01-01 00:00:00",infinity)' ],
	tstzrange => [ 'empty', '["2024-01-01 00:00:00+00",)' ],
	daterange => [ 'empty', '[2024-01-01,2024-02-01)' ],
	int4multirange => [ '{}', '{[1,3),[5,6)}' ],
	int8multirange => ['{(,)}'],
	nummultirange => ['{[1.5,2.5),[3,4]}'],
	tsmultirange => ['{["2024-01-01 00:00:00","2024-01-02 00:00:00")}'],
	tstzmultirange => ['{["2024-01-01 00:00:00+00",)}'],
	datemultirange => ['{[2024-01-01,2024-01-02)}'],
	'odd_enum' => [ '', 'it\'s "so so"', 'sad' ],
	'odd_composite' => [ '(,,)', '(NaN,"1.50","q""u,o\\\\te ()")', '(1,,"")' ],
	'odd_domain' => [ 1, 999 ],
	'odd_array_domain' => [ '{}', '{a,NULL,"NULL",""}' ],
	'odd_composite_domain' => [ '(1,2.00,a)' ],
	'odd_range' => [ 'empty', '[a,"q""u,")' ],
	'odd_multirange' => [ '{}', '{[a,b)}' ],
	hstore => [ '', '"a"=>"1", "q\\"u,"=>NULL, ""=>""' ],
	citext => [ '', 'Ab', $odd ]);
my %name = (odd_enum => '"odd Schema".mood', odd_composite => '"odd Schema"."Pair"', odd_domain => '"odd Schema".small', odd_array_domain => '"odd Schema".labels',
	odd_composite_domain => '"odd Schema".pairs', odd_range => '"odd Schema".texts', odd_multirange => '"odd Schema".texts_multi');
delete $values{xml} unless has_xml($stack->node, $stack->db);
%values = (%values, oid8 => [qw(0 18446744073709551615)], regdatabase => [ '-', 'postgres' ]) if server_major($stack->node) >= 19;
my @types = sort keys %values;

# These can't be: there is no reading them, or nothing ever stores them.
my @unreadable = qw(pg_node_tree pg_ndistinct pg_dependencies pg_mcv_list pg_brin_bloom_summary pg_brin_minmax_multi_summary gtsvector);

run_sql(
	'CREATE EXTENSION electric_cm', 'CREATE EXTENSION hstore', 'CREATE EXTENSION citext', 'CREATE SCHEMA "odd Schema"',
	q{CREATE TYPE "odd Schema".mood AS ENUM ('sad', 'it''s "so so"', '')},
	q{CREATE TYPE "odd Schema"."Pair" AS (x float8, "Y y" numeric(10,2), label text)},
	q{CREATE DOMAIN "odd Schema".small AS int CHECK (VALUE BETWEEN 1 AND 999)},
	q{CREATE DOMAIN "odd Schema".labels AS text[]},
	q{CREATE DOMAIN "odd Schema".pairs AS "odd Schema"."Pair"},
	q{CREATE TYPE "odd Schema".texts AS RANGE (subtype = text, collation = "C", multirange_type_name = "odd Schema".texts_multi)},
	q{CREATE FUNCTION "odd Schema"."odd Function"(text) RETURNS int LANGUAGE sql AS 'SELECT 1'},
	q{CREATE TABLE "odd Schema"."Mixed Case" (id int)});
$stack->install_compare;

my $known = join ', ', map { "'$_'" } @unreadable, 'xml', grep { !/\(/ } map { s/"//gr } @types;
is(run_sql("SELECT string_agg(typname, ' ') FROM pg_type WHERE typtype IN ('b', 'r', 'm') AND typcategory <> 'A' AND oid < 16384
	AND typnamespace = 'pg_catalog'::regnamespace AND typname NOT IN ($known)"), '', 'all types are here');

sub literal { return "'" . ($_[0] =~ s/'/''/gr) . "'"; }
sub type { return $name{ $_[0] } // $_[0]; }

# One column for each type, and one for its array, which has all its values;
# named in all ways.
my (@columns, @json);
for my $n (0 .. $#types)
{
	my $type = $types[$n];
	my $label = $type =~ s/"//gr;
	push @columns, [ qq{"Column, %s ""$label"""}, type($type), $values{$type} ];
	push @columns, [ "array$n", type($type) . '[]', undef, $type ];
	push @json, qq{Column, %s "$type"} if $type =~ /^json/ && $type ne 'jsonpath';
}

sub array_value
{
	my ($type, $row) = @_;
	return 'NULL' if $row % 7 == 6;
	return "'{}'" if $row % 7 == 5;
	return 'ARRAY[' . join(', ', map({ literal($_) . '::' . type($type) } @{ $values{$type} }), 'NULL') . ']::' . type($type) . '[]';
}

sub insert
{
	my ($table, $id, $row) = @_;
	my $list = join ', ', '"Id"', 'part', map { $_->[0] } @columns;
	my $row_values = join ', ', map {
		my $value = $_->[2] ? $_->[2][ $row % (@{ $_->[2] } + 1) ] : undef;
		!$_->[2] ? array_value($_->[3], $row) : defined $value ? literal($value) . "::$_->[1]" : 'NULL' } @columns;
	return "INSERT INTO $table ($list) VALUES ($id, " . (1 + $id % 2) . ", $row_values)";
}

# a plain table, and a partitioned one; one of the leaves has the columns in
# reverse order
my @definitions = map { "$_->[0] $_->[1]" } @columns;
my $plain = '"odd Schema"."All Types"';
my $root = '"odd Schema"."Root"';
my @leaves = ('public."Leaf 1"', '"odd Schema"."Leaf 2"');
run_sql(
	"CREATE TABLE $plain (\"Id\" bigint GENERATED BY DEFAULT AS IDENTITY (START 1000) PRIMARY KEY, part int, " . join(', ', @definitions) . ', big text)',
	"CREATE TABLE $root (\"Id\" int, part int, " . join(', ', @definitions) . ', PRIMARY KEY ("Id", part)) PARTITION BY LIST (part)',
	"CREATE TABLE $leaves[0] PARTITION OF $root FOR VALUES IN (1)",
	"CREATE TABLE $leaves[1] (" . join(', ', reverse @definitions) . ', gone text, part int NOT NULL, "Id" int NOT NULL)',
	"ALTER TABLE $leaves[1] DROP COLUMN gone",
	"ALTER TABLE $root ATTACH PARTITION $leaves[1] FOR VALUES IN (2)");
$stack->active or BAIL_OUT('no stack');

my @tables = ($plain, $root, @leaves);
my %handles;
my $rows = 12;
run_sql(map { my $row = $_; map { insert($_, $row, $row) } $plain, $root } 0 .. $rows - 1);
$handles{$_} = run_sql('SELECT electric_cm_create_shape(' . literal($_) . ')') for @tables;
$stack->becomes(q{SELECT count(*) = 4 FROM electric_cm_shapes WHERE state = 'live'}, 'shapes are live');

# Does each value, as a client takes it, equal the row's? A json or jsonb column
# would become a JSON string.
sub read_back
{
	my ($when) = @_;

	$stack->settle;
	for my $table (@tables)
	{
		my $nulls = literal('{' . join(', ', map { '"' . s/"/\\"/gr . '": null' } @json) . '}');
		is( run_sql("SELECT wrong FROM ecm_test.compare('$handles{$table}', " . literal($table) . ', NULL, NULL)'), '', "$when: text of $table");
		is( run_sql("SELECT count(*) FROM electric_cm_shape_log('$handles{$table}') l JOIN $table t ON t.\"Id\" = (l.value->>'Id')::int
				WHERE l.operation = 'insert' AND
					(jsonb_populate_record(NULL::$table, l.value || $nulls))::text <> (jsonb_populate_record(t, $nulls))::text"),
			'0', "$when: jsonb_populate_record() gives the rows of $table");
		is( run_sql("SELECT count(*) FROM electric_cm_shape_log('$handles{$table}') l JOIN $table t ON t.\"Id\" = (l.value->>'Id')::int WHERE "
				. join(' OR ', map { my $c = '"' . s/"/""/gr . '"'; '(l.value->>' . literal($_) . ")::jsonb IS DISTINCT FROM t.${c}::jsonb" } @json)),
			'0', "$when: JSON of $table");
	}
	return;
}

read_back('snapshot');
run_sql(map { my $row = $_; map { insert($_, 100 + $row, $row) } $plain, $root } 0 .. $rows - 1);
read_back('stream');
for my $table (@tables)
{
	is( run_sql("SELECT count(*) FROM electric_cm_shape_log('$handles{$table}') a JOIN electric_cm_shape_log('$handles{$table}') b
			ON (a.value->>'Id')::int + 100 = (b.value->>'Id')::int WHERE a.value - 'Id' <> b.value - 'Id'"),
		'0', "$table: the same value has the same text in both");
}

# a megabyte, with everything in it, in both ways
run_sql("UPDATE $plain SET big = repeat(" . literal($odd) . ' || chr(256 + ("Id" % 3)::int), 40000) WHERE "Id" IN (0, 1, 2, 101)');
run_sql("INSERT INTO $plain (big) SELECT repeat(" . literal($odd) . ", 40000)");
$stack->settle;
is(run_sql("SELECT wrong FROM ecm_test.compare('$handles{$plain}', " . literal($plain) . ', NULL, NULL)'), '', 'a megabyte in the stream');
run_sql("SELECT electric_cm_drop_shape('$handles{$plain}')");
$handles{$plain} = run_sql('SELECT electric_cm_create_shape(' . literal($plain) . ')');
$stack->becomes(q{SELECT count(*) = 4 FROM electric_cm_shapes WHERE state = 'live'}, 'another shape');
is(run_sql("SELECT wrong FROM ecm_test.compare('$handles{$plain}', " . literal($plain) . ', NULL, NULL)'), '', '... and in the snapshot');
is(run_sql("SELECT max(length(value->>'big')) > 1000000 FROM electric_cm_shape_log('$handles{$plain}')"), 't', '... which it is');

$stack->node->stop;
done_testing();
