# A where clause means what it means in the query of the session that creates
# the shape, and from then on the same everywhere.
use strict;
use warnings;

use ElectricCM qw(has_xml new_stack server_major);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main');
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql(q{CREATE SCHEMA other}, q{CREATE FUNCTION other.upper(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'},
	q{CREATE TABLE other.c (id int PRIMARY KEY)}, q{CREATE TABLE c (id int PRIMARY KEY, d date, ts timestamp, tsz timestamptz, iv interval, m money, t text, b bytea, a text[],
	f float8, r daterange, "Odd ""column" int, ttz timetz)}, 'ALTER TABLE c REPLICA IDENTITY FULL');
$stack->sql(q{INSERT INTO c SELECT i, (CASE i % 3 WHEN 0 THEN '2020-01-02' WHEN 1 THEN '2020-02-01' ELSE '2002-01-20' END)::date,
	timestamp '2020-01-01 00:00' + make_interval(hours => i), timestamptz '2020-01-01 00:00+00' + make_interval(hours => i),
	CASE i % 3 WHEN 0 THEN make_interval(days => -1, hours => -2) WHEN 1 THEN make_interval(days => -1, hours => 2) END,
	1234.5::numeric::money + i * 1::numeric::money,
	(ARRAY['a' || chr(92) || 'b', 'a' || chr(92) || chr(92) || 'b', 'ab', 'it''s', NULL, 'C:' || chr(92)])[i % 6 + 1],
	CASE i % 3 WHEN 0 THEN decode('5c00', 'hex') WHEN 1 THEN decode('5c303030', 'hex') ELSE convert_to(chr(92) || chr(92) || 'x5c00', 'UTF8') END,
	(ARRAY[ARRAY[NULL], ARRAY['NULL'], ARRAY['x']])[i % 3 + 1 : i % 3 + 1], i / 10.0,
	daterange((date '2020-01-01' + i), (date '2020-01-03' + i)), i, make_time(i % 24, 0, 0)::timetz FROM generate_series(1, 24) i});
$stack->sql(q{UPDATE c SET a = CASE id % 3 WHEN 0 THEN '{NULL}'::text[] WHEN 1 THEN '{"NULL"}' ELSE '{x}' END});

# Settings, a clause, and whether it may mean something else without them
my @cases = (
	[ [ 'DateStyle = ISO, DMY' ], q{d = '01/02/2020'} ],
	[ [ 'DateStyle = ISO, MDY' ], q{d = '01/02/2020'} ],
	[ [ 'DateStyle = ISO, YMD' ], q{d IN ('02/01/20', '20/02/01')} ],
	[ [ 'DateStyle = German' ], q{d = '01.02.2020' OR r = '[02.01.2020,04.01.2020)'} ],
	[ [ 'DateStyle = SQL, DMY' ], q{d = ANY ('{01/02/2020,20/01/2002}'::date[])} ],
	[ [ 'TimeZone = Asia/Tokyo' ], q{tsz = '2020-01-01 12:00'} ],
	[ [ 'TimeZone = America/New_York' ], q{tsz = '2020-01-01 00:00' OR ttz = '05:00'} ],
	[ [ 'timezone_abbreviations = Australia' ], q{tsz = '2020-01-01 12:00 EST'} ],
	[ [ 'IntervalStyle = sql_standard' ], q{iv = '-1 02:00:00'} ],
	[ [ 'IntervalStyle = postgres' ], q{iv = '-1 02:00:00'} ],
	[ [ 'IntervalStyle = iso_8601' ], q{iv = 'P-1DT-2H'} ],
	[ [ 'array_nulls = off' ], q{a = '{NULL}'} ],
	[ [ 'array_nulls = on' ], q{a IS NOT DISTINCT FROM '{NULL}'} ],
	[ [ 'standard_conforming_strings = off', 'escape_string_warning = off' ], q{t = 'a\\\\b'} ],
	[ [ 'standard_conforming_strings = off', 'escape_string_warning = off' ], q{t = E'a\\\\b' OR t LIKE '%:\\\\\\\\'} ],
	[ [ 'standard_conforming_strings = off', 'escape_string_warning = off' ], q{b = '\\\\x5c00'} ],
	[ [ 'standard_conforming_strings = on' ], q{t = 'a\\\\b' OR b = '\\x5c00'} ],
	[ [ 'backslash_quote = on' ], q{t = E'it\\'s'} ],
	[ [ 'transform_null_equals = on' ], q{t = NULL} ],
	[ [ 'transform_null_equals = off' ], q{t = NULL OR id = 3} ],
	[ [ 'bytea_output = escape' ], q{b = '\\x5c00'::bytea} ],
	[ [ 'extra_float_digits = -15' ], q{f = 0.1 OR f = '0.7'::float8} ],
	[ [ 'quote_all_identifiers = on' ], q{"Odd ""column" = 4 OR quote_nullable(t) = 'NULL'} ],
	[ [ 'search_path = other, public, pg_catalog' ], q{d > '2020-01-02'} ],
	[ [ 'lc_monetary = C.UTF-8' ], q{m > '$1,240.50'} ],
	[ [ 'default_transaction_isolation = serializable', 'row_security = off', 'check_function_bodies = off' ], q{id > 20} ]);
# from 19 on, that is always on
@cases = grep { "@{ $_->[0] }" !~ /standard_conforming_strings = off/ } @cases if server_major($node) >= 19;
push @cases, [ [ 'xmloption = document', 'xmlbinary = hex' ], q{xmlelement(name x, t)::text = '<x>ab</x>'} ] if has_xml($node, $db);

sub settings { return map { my ($name, $value) = split / = /; "SET $name = " . join(', ', map { "'$_'" } split /, /, $value) } @_; }
sub quoted { return '$clause$' . $_[0] . '$clause$'; }

my %handles;
for my $case (@cases)
{
	my ($settings, $clause) = @$case;
	my $what = join(', ', @$settings) . ": $clause";
	my $ids = $stack->sql(settings(@$settings), "SELECT coalesce(pg_catalog.string_agg(id::text, ' ' ORDER BY id), '') FROM public.c WHERE $clause");
	my $handle = $stack->sql(settings(@$settings), "SELECT public.electric_cm_create_shape('public.c', " . quoted($clause) . ')');
	my $replayed = $stack->sql(qq{SELECT coalesce(string_agg(value->>'id', ' ' ORDER BY (value->>'id')::int), '') FROM electric_cm_shape_log('$handle')});

	is($replayed, $ids, "$what: the rows of the query");
	isnt($ids, '', '... which are some') unless $clause eq 'a = \'{NULL}\'';
	my $stored = $stack->sql("SELECT where_clause FROM electric_cm_shapes WHERE handle = '$handle'");
	is($stack->sql("SELECT electric_cm_create_shape('c', " . quoted($stored) . ')'), $handle, '... what is stored is the same shape elsewhere');
	is($stack->sql(settings(@$settings), "SELECT public.electric_cm_create_shape('public.c', " . quoted($clause) . ')'), $handle, '... and so is the clause here');
	$handles{$handle} = $ids;
}

# ... and so for what comes by the stream
$stack->sql('CREATE TABLE before AS TABLE c', 'DELETE FROM c', 'INSERT INTO c TABLE before', q{SELECT electric_cm_await_flushed(NULL, '60 s')});
for my $handle (sort keys %handles)
{
	is($stack->sql(qq{SELECT coalesce(string_agg(id, ' ' ORDER BY id::int), '') FROM (SELECT value->>'id' AS id FROM electric_cm_shape_log('$handle') WHERE operation = 'insert' GROUP BY 1 HAVING count(*) = 2) s}),
		$handles{$handle}, 'the same rows by snapshot and by stream: ' . $stack->sql("SELECT where_clause FROM electric_cm_shapes WHERE handle = '$handle'"));
}
cmp_ok(scalar(keys %handles), '>', 20, 'other meanings are other shapes');

# What is evaluated under a setting of the session's can't be stored

for my $case (
	[ 'timezone_abbreviations = Australia', q{(ts AT TIME ZONE 'EST') > '2020-01-01'}, qr/timezone_abbreviations = 'Default'/ ],
	[ 'quote_all_identifiers = on', q{quote_ident(t) = '"ab"'}, qr/quote_all_identifiers = off/ ],
	has_xml($node, $db) ? [ 'xmlbinary = hex', q{xmlelement(name x, b)::text > ''}, qr/xmlbinary/ ] : ())
{
	my ($setting, $clause, $why) = @$case;
	my ($rc, $out, $err) = $node->psql($db, join(";\n", settings($setting), "SELECT electric_cm_create_shape('c', " . quoted($clause) . ')'));
	like($err, qr/invalid where clause of a shape.*$why/s, "$setting: $clause is refused, and the reason given");
}
is($stack->sql("SET timezone = 'UTC'", q{SELECT electric_cm_create_shape('c', $$(ts AT TIME ZONE 'EST') > '2020-01-01'$$) <> ''}), 't', 'as the defaults are, it is not');
$node->stop;
done_testing();
