
# Fuzz: random tables, where clauses, column lists and DML, from a seed.
#
# The module only makes SQL text, which t/048_fuzz.pl runs. The server must take all
# of it, with two exceptions: a where clause of which clause() says that it may raise
# an error, and a where clause with a column that the replica identity lacks, which
# electric_cm_create_shape() refuses.
package Fuzz;

use strict;
use warnings;

# A generator of its own, not rand(): a seed gives the same text on every machine,
# whatever else calls rand().
# generated => 1: shapes have stored generated columns.
sub new
{
	my ($class, $seed, %opts) = @_;
	my $self = bless { state => ($seed % 1000003) * 4241 % 4294967296, serial => 0, used => {}, %opts }, $class;
	$self->rnd(2) for 1 .. 4;
	return $self;
}

# A number from 0 to n - 1
sub rnd
{
	my ($self, $n) = @_;
	$self->{state} = ($self->{state} * 1664525 + 1013904223) % 4294967296;
	return int($self->{state} / 4294967296 * $n);
}

sub chance { my ($self, $percent) = @_; return $self->rnd(100) < $percent; }
sub pick { my ($self, @from) = @_; return $from[ $self->rnd(scalar @from) ]; }

# Up to n of these, each at most once, in random order
sub some
{
	my ($self, $n, @from) = @_;
	my @some;
	push @some, splice(@from, $self->rnd(scalar @from), 1) while @from && $n-- > 0;
	return @some;
}

sub literal { my ($text) = @_; $text =~ s/'/''/g; return $text =~ /\\/ ? " E'" . ($text =~ s/\\/\\\\/gr) . "'" : "'$text'"; }
sub ident { my ($name) = @_; $name =~ s/"/""/g; return qq{"$name"}; }

# -------------------------------------------------------------------- types --

# What to create once, for the types that are not built in.
our $types_sql = q{
CREATE SCHEMA "fuzz Types";
CREATE EXTENSION hstore SCHEMA "fuzz Types";
CREATE EXTENSION citext SCHEMA "fuzz Types";
CREATE TYPE "fuzz Types".mood AS ENUM ('sad', 'it''s "so so"', '');
CREATE TYPE "fuzz Types".pair AS (x float8, "The Label" text);
CREATE DOMAIN "fuzz Types".small AS int CHECK (VALUE < 1000);
CREATE TYPE "fuzz Types".textrange AS RANGE (subtype = text, collation = "C");
CREATE FUNCTION "fuzz Types".big(n int) RETURNS text LANGUAGE sql IMMUTABLE AS
	$$SELECT repeat(md5(n::text), 60 + n * 20)$$;
};

# SQL type => values in their text form; some of each are equal to others
# without looking like them. No collation is needed to compare them.
my $odd_text = qq{q"u''o\\te/\t\n{}[],%s\$1};
my %values = (
	int2 => [qw(-1 0 1 2 5 32767)],
	int4 => [qw(-1 0 1 2 3 5 7 42 1000)],
	int8 => [qw(-1 0 1 2 5 9007199254740993)],
	numeric => [qw(0 0.0 1 1.0 1.50 -2.5 100 NaN Infinity 12345678901234567890.123)],
	'numeric(10,2)' => [qw(0 1 1.5 -2.55 99999999.99 NaN)],
	float4 => [qw(0 -0 1 1.5 0.1 NaN -Infinity 1e30)],
	float8 => [qw(0 -0 1 2.5 0.1 NaN Infinity 1e100 0.30000000000000004)],
	bool => [qw(true false)],
	text => [ '', 'a', 'A', 'b', 'ab', 'aB ', "\x{e4}\x{20AC}\x{1F600}", $odd_text, 'x_y%z', 'true', 'NULL', '  ' ],
	'varchar(20)' => [ '', 'a', 'B', 'ab ', "o'b\\r", 'x"y' ],
	'char(5)' => [ '', 'a', 'a  ', 'ab', 'abcde', "'\\" ],
	name => [ 'a', 'A name', 'pg_class', '' ],
	'"char"' => [ 'a', 'b', '' ],
	bytea => [ '\\x', '\\x00', '\\x00ff5c27', '\\x61' ],
	date => [qw(2020-02-29 2021-01-01 1999-12-31 infinity -infinity), '4700-01-01 BC'],
	time => [qw(00:00:00 12:34:56.789 23:59:59.999999 24:00:00)],
	timetz => [qw(12:00:00+00 14:00:00+02 12:00:00-05:30)],
	timestamp => [ '2020-02-29 12:34:56.789', '2021-01-01', 'infinity', '0044-03-15 12:00:00 BC' ],
	timestamptz => [ '2020-02-29 12:34:56.789+02', '2020-02-29 10:34:56.789+00', '2021-01-01 00:00:00+14', '-infinity', '0044-03-15 12:00:00+00 BC' ],
	interval => [ '1 day', '24:00:00', '-1 year 2 mons -3 days 04:05:06.7', '0', '30 days', '1 mon' ],
	uuid => [qw(00000000-0000-0000-0000-000000000001 A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11 a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11)],
	json => [ '{"b": 1, "b" : 2}', 'null', '"s"', '[1,  2]' ],
	jsonb => [ '{"k": 1, "a": {"b": [1, null, "x"]}}', '{"k": "v"}', 'null', '"s"', '[1, 2]', '{}', '1.0', '1', '{"k": 1.0}' ],
	jsonpath => [ '$.a[*] ? (@ > 1)', '$' ],
	xml => [ '<a>1</a>', 'text', '<a/><b x="1"/>' ],
	inet => [qw(192.168.0.1/24 192.168.0.1 ::1 10.0.0.0/8)],
	cidr => [qw(10.0.0.0/8 192.168.0.0/24 2001:db8::/32)],
	macaddr => [qw(08:00:2b:01:02:03 08-00-2b-01-02-03)],
	'bit(3)' => [qw(101 000 111)],
	varbit => [ '', '1', '10', '110011' ],
	money => [ '0', '1.50', '-1234.56' ],
	oid => [qw(0 1 4294967295)],
	pg_lsn => [qw(0/0 16/B374D848 FFFFFFFF/FFFFFFFF)],
	xid8 => [qw(0 3 12345678901)],
	tsvector => [ '', 'a:1A cat:2,3', "'it''s':2" ],
	tsquery => [ '', 'fat & (rat | !cat)' ],
	point => [ '(1.5,-2)', '(0,0)', '(NaN,1)' ],
	box => [ '(2,2),(1,1)', '(1,1),(0,0)' ],
	polygon => [ '((0,0),(1,1),(1,0))' ],
	circle => [ '<(1,1),2>' ],
	int4range => [ 'empty', '[1,10)', '[1,9]', '(,)', '[5,)' ],
	numrange => [ 'empty', '[1.5,2.5)', '(,3]' ],
	tstzrange => [ 'empty', '["2020-01-01 00:00:00+00",)', '["2020-01-01 00:00:00+00","2021-01-01 02:00:00+02")' ],
	int4multirange => [ '{}', '{[1,3),[5,6)}', '{(,)}' ],
	'int4[]' => [ '{}', '{1,2,3}', '{1,NULL}', '{{1,2},{3,4}}', '[2:3]={1,2}', '{5}' ],
	'text[]' => [ '{}', '{a,b}', '{NULL,"NULL",""}', '{"q\\"u\'o\\\\te","with, comma"}' ],
	'float8[]' => [ '{}', '{NaN,-0}', '{0,1.5}' ],
	'jsonb[]' => [ '{}', '{"{\\"k\\": 1}",NULL}' ],
	regclass => [ 'pg_catalog.pg_class', '0' ],
	'information_schema.cardinal_number' => [qw(0 1 5)],
	'"fuzz Types".mood' => [ 'sad', 'it\'s "so so"', '' ],
	'"fuzz Types".mood[]' => [ '{sad,""}', '{"it\'s \\"so so\\""}' ],
	'"fuzz Types".pair' => [ '(1,a)', '(,)', '(NaN,"q""u,o\\\\te")' ],
	'"fuzz Types".pair[]' => [ '{"(1,a)",NULL}', '{}' ],
	'"fuzz Types".small' => [qw(0 7 999)],
	'"fuzz Types".textrange' => [ 'empty', '[a,b)', '["q""u,",)' ],
	'"fuzz Types".hstore' => [ '', 'a=>1', '"q\\"u,"=>NULL, b=>""' ],
	'"fuzz Types".citext' => [ 'a', 'A', "\x{DF}" ]);

# Types whose values have an order; what a where clause can do with the others
# is in @predicates.
my %ordered = map { $_ => 1 } 'numeric(10,2)', qw(int2 int4 int8 numeric float4 float8 bool text varchar(20) char(5) name "char"
  bytea date time timetz timestamp timestamptz interval uuid jsonb inet cidr macaddr bit(3) varbit money oid pg_lsn xid8
  tsvector int4range numrange tstzrange int4multirange int4[] text[] float8[] jsonb[]);

# The base type, under which an expression of it can be used.
my %base = ('numeric(10,2)' => 'numeric', 'varchar(20)' => 'text', 'char(5)' => 'bpchar', 'bit(3)' => 'bit');
my %values_of_base = (bpchar => $values{'char(5)'}, bit => $values{'bit(3)'});

my %is_short = map { $_ => 1 } qw(int2 int4 int8 float4 float8 bool name "char" date time timetz timestamp timestamptz interval
  uuid macaddr money oid pg_lsn xid8 point box circle regclass);

my @key_types = ('numeric(10,2)', qw(int4 int8 text varchar(20) uuid date timestamptz bytea name));

# Row i's value of a key column.
sub key_expr
{
	my ($type, $i) = @_;
	return {
		int4 => $i, int8 => "($i)::int8 * 1000000007", text => "'k\"''/' || $i", 'varchar(20)' => "$i || ' '",
		uuid => "md5(($i)::text)::uuid", date => "date '2020-01-01' + ($i)", 'numeric(10,2)' => "($i) / 4.0",
		timestamptz => "timestamptz '2020-01-01 00:00+00' + ($i) * interval '1 hour'",
		bytea => "decode(md5(($i)::text), 'hex')", name => "('N' || $i)::name"
	}->{$type};
}

# ------------------------------------------------------------------- tables --

my @odd_names = ('Mixed Case', 'quo"te', 'select', "\x{fc}n\x{ef}\x{10D}\x{F8}d\x{E9}", 'a.b', '%s', "it's", 'back\\slash', '$1', 'user', 'value',
	'a name of sixty-three bytes, which is all there is any room for', ' ', 'oid', 'n');

sub name
{
	my ($self, $prefix) = @_;
	my $name = $self->chance(40) ? $self->pick(@odd_names) : $prefix . ++$self->{serial};
	return $self->{used}{$name}++ ? substr($name, 0, 45) . ++$self->{serial} : $name;
}

# A column as {name, ident, type, key => it identifies rows, generated, identity}
sub column
{
	my ($self, $type, %more) = @_;
	my $name = $self->name('c');
	return { name => $name, ident => ident($name), type => $type, %more };
}

sub column_sql
{
	my ($column) = @_;
	my $sql = "$column->{ident} $column->{type}";
	$sql .= " GENERATED ALWAYS AS ($column->{generated}) STORED" if $column->{generated};
	$sql .= " GENERATED BY DEFAULT AS IDENTITY (START 1000000)" if $column->{identity};
	$sql .= ' NOT NULL' if $column->{key} || $column->{unique};
	return $sql;
}

# usage: $fuzz->table
#
# {ident, sql, columns, leaves => [ident], parts => [[ident, bound]], new_bound => of one more,
# identity => default, full or index, shapes_of => [what a shape can be made of]}. Its rows are numbered by the
# key, in that order: see key_expr().
sub table
{
	my ($self) = @_;
	my $schema = $self->chance(30) ? 'fuzz Schema' : 'public';
	my $name = $self->name('t');
	my $table = { ident => ident($schema) . '.' . ident($name), name => $name, schema => $schema, sql => '' };
	my $partitioned = $self->chance(30);
	my $identity = $table->{identity} = $self->pick(qw(default default full full full index));
	my @types = sort keys %values;
	my (@columns, @keys);

	push @keys, $self->column($self->pick(@key_types), key => 1) for 1 .. $self->pick(1, 1, 1, 2, 3);
	$keys[0]{identity} = 1 if $keys[0]{type} =~ /^int[248]$/ && $self->chance(30) && !$partitioned;
	push @columns, @keys;
	push @columns, $self->column($self->pick($self->chance(60) ? qw(int4 int8 text numeric float8 bool timestamptz jsonb date) : @types))
	  for 1 .. 2 + $self->rnd(9);
	push @columns, $self->column('text', big => 1) if $self->chance(50);
	push @columns, $self->column('int4', unique => 1) if $identity eq 'index';
	@columns = $self->some(scalar @columns, @columns) if $self->chance(60);
	my $region = $partitioned ? $self->column('int4', key => 1, region => 1) : undef;
	splice @columns, $self->rnd(@columns + 1), 0, $region if $region;
	my ($number) = grep { $_->{type} =~ /^int[248]$/ && !$_->{identity} } @columns;
	splice @columns, $self->rnd(@columns + 1), 0, $self->column('int8', generated => "$number->{ident}::int8 * 2")
	  if $number && $self->chance(25);

	$table->{columns} = \@columns;
	$table->{keys} = \@keys;
	$table->{region} = $region;
	$table->{plain} = [ grep { !$_->{generated} } @columns ];
	$table->{streamed} = $self->{generated} ? \@columns : $table->{plain};
	my ($unique) = grep { $_->{unique} } @columns;
	my $key_list = join ', ', map { $_->{ident} } @keys, $region // ();
	my $gone = 0;
	my $list = sub {
		my @list = @_;
		my @sql = map { column_sql($_) } @list;
		splice @sql, $self->rnd(@sql + 1), 0, 'gone' . ++$gone . ' ' . $self->pick(qw(int text)) for 1 .. $self->pick(0, 0, 1, 2);
		return join ', ', @sql;
	};
	my $drop = sub {
		my ($of) = @_;
		my $sql = join '', map { "ALTER TABLE $of DROP COLUMN gone$_;\n" } 1 .. $gone;
		$gone = 0;
		return $sql;
	};
	my $set_identity = sub {
		my ($of, $how) = @_;
		return "ALTER TABLE $of REPLICA IDENTITY FULL;\n" if $how eq 'full';
		return '' if $how eq 'default';
		my $index = ident($self->name('i'));
		my $extra = $region ? ", $region->{ident}" : '';
		return "CREATE UNIQUE INDEX $index ON $of ($unique->{ident}$extra);\n"
		  . "ALTER TABLE $of REPLICA IDENTITY USING INDEX $index;\n";
	};

	my $columns_sql = $list->(@columns);
	my $strategy = $region ? $self->pick(qw(LIST RANGE HASH)) : '';
	my @bounds = !$region ? () :
	    $strategy eq 'LIST' ? map { "IN ($_)" } 0, 1, 2
	  : $strategy eq 'RANGE' ? map { "FROM ($_) TO (" . ($_ + 1) . ')' } 0, 1, 2
	  : map { "WITH (MODULUS 3, REMAINDER $_)" } 0, 1, 2;
	$table->{sql} .= qq{CREATE SCHEMA IF NOT EXISTS "fuzz Schema";\n}
	  . "CREATE TABLE $table->{ident} ($columns_sql, PRIMARY KEY ($key_list))"
	  . ($region ? " PARTITION BY $strategy ($region->{ident})" : '') . ";\n" . $drop->($table->{ident});
	if ($region)
	{
		$table->{new_bound} = $strategy eq 'LIST' ? 'IN (7)' : $strategy eq 'RANGE' ? 'FROM (7) TO (8)' : undef;

		# the index of a root is that of its leaves
		my $of_root = $identity eq 'index';
		$identity = $table->{identity} = 'full' if $of_root && $self->chance(50);
		for my $n (0 .. 2)
		{
			my $leaf = ident($schema) . '.' . ident($self->name('p'));
			push @{ $table->{leaves} }, $leaf;
			if ($n == 0)
			{
				$table->{sql} .= "CREATE TABLE $leaf PARTITION OF $table->{ident} FOR VALUES $bounds[$n];\n";
				push @{ $table->{parts} }, [ $leaf, $bounds[$n] ];
				next;
			}
			if ($n == 1 && $self->chance(30))
			{
				my $root = $leaf;
				$leaf = ident($schema) . '.' . ident($self->name('p'));
				$table->{sql} .= "CREATE TABLE $root PARTITION OF $table->{ident} FOR VALUES $bounds[$n] PARTITION BY HASH ($keys[0]{ident});\n"
				  . "CREATE TABLE $leaf PARTITION OF $root FOR VALUES WITH (MODULUS 1, REMAINDER 0);\n";
				push @{ $table->{inner} }, $root;
				push @{ $table->{parts} }, [ $root, $bounds[$n] ];
				$table->{leaves}[-1] = $leaf;
				next;
			}
			my $leaf_columns = $list->($self->some(scalar @columns, @columns));
			$table->{sql} .= "CREATE TABLE $leaf ($leaf_columns);\n" . $drop->($leaf)
			  . "ALTER TABLE $table->{ident} ATTACH PARTITION $leaf FOR VALUES $bounds[$n];\n";
			push @{ $table->{parts} }, [ $leaf, $bounds[$n] ];
		}
		$identity = $table->{identity} = 'default' if $identity eq 'index';
		$table->{sql} .= $set_identity->($_, $identity) for @{ $table->{leaves} };
	}
	else
	{
		$table->{sql} .= $set_identity->($table->{ident}, $identity);
	}
	for my $big (grep { $_->{big} } @columns)
	{
		$table->{sql} .= "ALTER TABLE $_ ALTER $big->{ident} SET STORAGE EXTERNAL;\n" for $table->{ident}, @{ $table->{leaves} // [] };
	}
	$table->{shapes_of} = [ $table->{ident}, @{ $table->{leaves} // [] }, @{ $table->{inner} // [] } ];

	my @identity = $identity eq 'index' ? $unique : (@keys, $region // ());
	$table->{shape_keys} = $table->{identity} eq 'index' ? [$unique] : [ @keys, $region // () ];
	$table->{filterable} = [ grep { is_built_in($_) } $identity eq 'full' ? @{ $table->{streamed} } : @identity ];
	return $table;
}

# Types that a where clause may refer to.
sub is_built_in { my ($column) = @_; return $column->{type} !~ /^"fuzz|^regclass/; }

# Columns for a shape, with the key; NULL is all. With a where clause, without
# all of an old row, there can be none that is TOASTed.
sub column_list
{
	my ($self, $table, $filtered) = @_;
	my @may = grep { $table->{identity} eq 'full' || !$filtered || $is_short{ $_->{type} } } @{ $table->{streamed} };
	return 'NULL' unless @may < @{ $table->{streamed} } || $self->chance(30);
	my %want = map { $_->{name} => 1 } @{ $table->{shape_keys} }, $self->some($self->rnd(4), @may);
	return 'ARRAY[' . join(', ', map { literal($_) } sort keys %want) . ']';
}

# ------------------------------------------------------------------ clauses --

# Expressions that raise no error, by type; {x} is a column, a constant or an
# expression of type x. Built-in and immutable all of them.
my %expressions = (
	int4 => [
		'{int4} + {int2}', '- {int4}', 'abs({int4})', '{int4} % 7', '{int4} & 3', '{int4} # 5', 'length({text})', 'char_length({bpchar})',
		'octet_length({bytea})', "strpos({text}, 'a')", "position('b' IN {text})", 'ascii({text})', 'cardinality({text[]})',
		'array_length({int4[]}, 1)', 'array_ndims({int4[]})', '{int2}::int4', 'masklen({inet})', 'bit_length({text})',
		"jsonb_array_length('[1,2]')", 'num_nulls({int4}, {text})', 'num_nonnulls({numeric}, {bool}, {date})', 'array_position({text[]}, {text})', 'lower({int4range})',
		'{bool}::int4', 'length({varbit})', 'CASE WHEN {bool} THEN {int4} ELSE {int4} END', 'COALESCE({int4}, {int4}, 0)', 'NULLIF({int4}, {int4})',
		'GREATEST({int4}, {int4}, 3)', 'LEAST({int4}, {int4})', 'CASE {text} WHEN {text} THEN 1 WHEN {text} THEN {int4} END' ],
	int2 => [ 'abs({int2})', 'COALESCE({int2}, 0::int2)' ],
	int8 => [ '{int4}::int8', '{int8} % 3', 'abs({int8} / 2)', 'COALESCE({int8}, {int4})', '{int8} | 1', 'hashtextextended({text}, 0) % 5' ],
	numeric => [
		'{numeric} + 1', '{numeric} * {int4}', 'round({numeric}, 1)', 'trunc({numeric})', 'abs({numeric})', 'sign({numeric})', '{int8}::numeric',
		'EXTRACT(year FROM {timestamp})', 'EXTRACT(epoch FROM {interval})', 'scale({numeric})::numeric', 'ceil({numeric})',
		'EXTRACT(dow FROM {date})', 'date_part(\'hour\', {time})::numeric', 'upper({numrange})', 'GREATEST({numeric}, {int4})' ],
	float8 => [
		'{float8} / 2', '- {float8}', 'abs({float8})', 'floor({float8})', '{float4}::float8', '{int4}::float8',
		'sqrt(abs({float8}))', 'degrees(atan({float8}))', 'COALESCE({float8}, {float4})', 'ts_rank({tsvector}, {tsquery})::float8', '{point} <-> point \'(0,0)\'' ],
	float4 => [ 'abs({float4})', 'NULLIF({float4}, 0)' ],
	bool => [ '{predicate}', 'COALESCE({bool}, {bool})', 'NULLIF({bool}, {bool})' ],
	text => [
		'lower({text})', 'upper({text})', '{text} || {text}', 'substr({text}, 2, 3)', 'SUBSTRING({text} FROM 1 FOR 2)', 'left({text}, 2)',
		'right({text}, -1)', "replace({text}, 'a', 'b')", 'TRIM(BOTH FROM {text})', "TRIM(LEADING 'a' FROM {text})", 'reverse({text})', 'md5({text})',
		'initcap({text})', "translate({text}, 'ab', 'ba')", "split_part({text}, '_', 1)", "lpad({text}, 5, '*')", "regexp_replace({text}, '[ab]+', 'x', 'g')",
		"{jsonb} ->> 'k'", "{jsonb} #>> '{a,b,0}'", "encode({bytea}, 'hex')", "OVERLAY({text} PLACING 'z' FROM 1 FOR 1)", '{name}::text', '{bpchar}::text',
		'CASE WHEN {predicate} THEN {text} ELSE {text} END', 'COALESCE({text}, {text})', 'NULLIF({text}, {text})', 'GREATEST({text}, {text} COLLATE "C")', 'host({inet})',
		'{text} COLLATE "C"', 'to_hex({int4})', 'quote_literal({text})', "jsonb_typeof({jsonb})", 'NORMALIZE({text}, NFC)', '{"char"}::text',
		"SUBSTRING({text} FROM '^.')" ],
	bpchar => [ '{text}::char(3)', 'COALESCE({bpchar}, {bpchar})' ],
	name => [ '{text}::name', 'COALESCE({name}, {name})' ],
	bytea => [ '{bytea} || {bytea}', 'substr({bytea}, 1, 1)', 'sha256({bytea})' ],
	date => [ '{timestamp}::date', 'GREATEST({date}, {date})', 'make_date(2020, 1, 1 + abs({int4} % 28))', 'COALESCE({date}, {date})' ],
	time => [ '{timestamp}::time', "{time} + interval '1 hour'", 'make_time(1, 2, 3.5)' ],
	timestamp => [ "{timestamptz} AT TIME ZONE 'UTC'", "{timestamptz} AT TIME ZONE 'Europe/Berlin'", '{date}::timestamp', "date_trunc('day', {timestamp})", "{timestamp} + interval '1 day'", '{timestamp} - {interval}' ],
	timestamptz => [ "{timestamp} AT TIME ZONE 'America/New_York'", 'GREATEST({timestamptz}, {timestamptz})', 'to_timestamp(abs({int4}))' ],
	interval => [ '{interval} * 2', '{time} - {time}', 'justify_days({interval})', 'make_interval(0, 0, 0, {int4} % 100)', '- {interval}', '{time}::interval' ],
	jsonb => [ "{jsonb} -> 'k'", "{jsonb} -> 0", "{jsonb} #> '{a,b}'", 'jsonb_strip_nulls({jsonb})', q({jsonb} || '{"z": 1}'), q(jsonb_path_query_first({jsonb}, '$.k')), "COALESCE({jsonb}, '{}')" ],
	inet => [ 'network({inet})', 'set_masklen({inet}, 16)', '{cidr}::inet' ],
	'int4[]' => [ 'ARRAY[{int4}, {int4}, NULL]', 'array_replace({int4[]}, 1, 2)', 'COALESCE({int4[]}, ARRAY[1])', "array_cat({int4[]}, '{}')" ],
	'text[]' => [ '{text[]} || {text}', 'array_remove({text[]}, {text})', "string_to_array({text}, '_')", 'ARRAY[{text}::text, {text}]', "regexp_split_to_array({text}, 'a')", 'trim_array(ARRAY[{text}::text, {text}], 1)' ],
	int4range => [ '{int4range} * {int4range}', "int4range(0, abs({int4} % 100), '[]')", 'range_merge({int4range}, {int4range})' ],
	numrange => [ '{numrange} * {numrange}' ],
	int4multirange => [ '{int4multirange} + {int4multirange}', 'int4multirange({int4range})', '{int4multirange} - {int4multirange}' ],
	varbit => [ '{varbit} || {varbit}' ], bit => [ '~ {bit}', '{bit} & {bit}' ],
	tsvector => [ 'strip({tsvector})', "setweight({tsvector}, 'B')" ]);

# Conditions, beside comparisons; {o} and another {o} are of the same ordered
# type, {c} is a constant of it.
my @predicates = (
	'{o} = {c}', '{o} = {c}', '{o} = {c}', '{c} = {o}', '{o} = {o}', '{o} <> {c}', '{o} < {c}', '{o} <= {o}', '{o} > {c}', '{o} >= {o}',
	'{o} IN ({c}, {c}, {c})', '{o} IN ({c}, {o})', '{o} IN ({c}, NULL)', '{o} NOT IN ({c}, {c})', '{o} NOT IN ({c}, NULL)', '{o} BETWEEN {c} AND {c}', '{o} NOT BETWEEN {o} AND {c}',
	'{o} BETWEEN SYMMETRIC {c} AND {o}', '{o} = ANY (ARRAY[{c}, {c}])', '{o} <> ALL (ARRAY[{c}, {o}])', '{o} > ANY (ARRAY[{c}, {c}, NULL])', '{o} < ALL (ARRAY[{o}, {c}])',
	'{o} IS DISTINCT FROM {c}', '{o} IS NOT DISTINCT FROM {o}', '({o}, {int4}) < ({c}, 3)', '({o}, {text}) = ({c}, {text})', '({o}, {o}) <> ({c}, {c})', '({int4}, {text}) IN ((1, {text}), (2, {text}))',
	'NULLIF({o}, {c}) IS NULL', 'GREATEST({o}, {o}) = {c}', 'LEAST({o}, {c}, NULL) = {o}', 'COALESCE({o}, {c}) = {c}', 'CASE {o} WHEN {c} THEN true WHEN {c} THEN NULL ELSE {bool} END',
	'CASE WHEN {predicate} THEN {o} = {c} ELSE {predicate} END', '{any} IS NULL', '{any} IS NOT NULL', '{any} IS NULL',
	'{bool} IS TRUE', '{bool} IS NOT TRUE', '{bool} IS FALSE', '{bool} IS NOT FALSE', '{bool} IS UNKNOWN', '{bool} IS NOT UNKNOWN', '{bool}', 'NOT {bool}', '{bool} = true', '{bool} <> {bool}', 'true', 'false', 'NULL::bool',
	"{text} LIKE 'a%'", "{text} LIKE '%_'", "{text} NOT LIKE '%b%'", "{text} ILIKE '%A%'", "{text} LIKE 'x\\_y\\%%'", "{text} LIKE 'x#_%' ESCAPE '#'", "{text} ~ '^[ab]'", "{text} !~ 'b\$'", "{text} ~* 'A'", "{text} SIMILAR TO '(a|b)%'", "{text} NOT SIMILAR TO '[a-c]+'",
	"{text} LIKE ANY (ARRAY['a%', '%b'])", "{text} NOT ILIKE ALL (ARRAY['a%', NULL])", '{text} ^@ {text}', "starts_with({text}, 'a')", "{bpchar} LIKE 'a%'", "{name} ~ 'a'", "{bytea} LIKE '\\\\x61'", '{text} COLLATE "C" < {text}', '{text} = {text} COLLATE "C"', '{text} < {text} COLLATE "POSIX"', '{text} IS NORMALIZED', '{text} IS NOT NFC NORMALIZED', "regexp_like({text}, 'A', 'i')",
	"{jsonb} @> '{\"k\": 1}'", '{jsonb} <@ {jsonb}', "{jsonb} ? 'k'", "{jsonb} ?| ARRAY['k', 'x']", "{jsonb} ?& ARRAY['k', 'a']", "{jsonb} @? '\$.a.b'", "{jsonb} @@ '\$.k == 1'", "{jsonb} ->> 'k' = '1'", "{jsonb} -> 'k' = '1'", "{jsonb} #>> '{a,b,0}' = '1'", "jsonb_path_exists({jsonb}, '\$.k ? (@ == \"v\")')", "{jsonb} IS NULL",
	'{int4} = ANY ({int4[]})', '{int4} <> ALL ({int4[]})', '{int4[]} @> {int4[]}', '{int4[]} <@ {int4[]}', '{int4[]} && {int4[]}', '{text[]} && ARRAY[{text}::text]', '{int4[]} = ARRAY[1, 2, 3]', '{text} = ANY ({text[]})', "{text[]} @> ARRAY['a']", '{int4[]} < {int4[]}',
	'{int4range} @> {int4}', '{int4} <@ {int4range}', '{int4range} && {int4range}', '{int4range} @> {int4range}', '{int4range} << {int4range}', '{int4range} -|- {int4range}', 'isempty({int4range})', 'lower_inc({numrange})', 'upper_inf({tstzrange})', '{tstzrange} @> {timestamptz}', '{numrange} @> {numeric}', '{int4multirange} @> {int4}', '{int4multirange} && {int4range}',
	'({timestamp}, {timestamp}) OVERLAPS ({timestamp}, {timestamp})', '{date} = {timestamp}', '{int4} = {int8}', '{int2} = {int8}', '{int8} = {int2}', '{int4} = {int8}', '{float4} = {float8}', '{float8} = 0', '{numeric} = {int4}', '{numeric} = {float8}', '{numeric} = 1', '{int8} = 5', '{int8} = 5::int2', '{int2} = 5', '{float4} = 0.1::float8', '{float4} = 0.1', '{name} = {text}', '{text} = {name}', '{bpchar} = {text}', "{int8} IN (1, 2, 5::int2)", "{name} = 'a'", "{bpchar} = 'a'", "{bpchar} = 'a  '", '{oid} = 1', "{\"char\"} = 'a'",
	'{inet} << {inet}', '{inet} >>= {cidr}', '{inet} && {cidr}', 'family({inet}) = 4', '{tsvector} @@ {tsquery}', "{tsvector} @@ 'cat'", '{point} ~= {point}', '{box} @> {point}', '{box} && {box}', '{box} = {box}', '{circle} @> {point}', '{polygon} && {polygon}', '{xml} IS DOCUMENT', '{xml} IS NOT DOCUMENT', '{json} ->> \'b\' = \'2\'', "{json} #>> '{}' IS NULL", 'ROW({int4}, {text}) IS NULL', 'ROW({int4}, NULL) IS NOT NULL', '({int4}, {int4}) IS DISTINCT FROM ({int4}, 1)', 'length({text}) > 100', '{text} BETWEEN {text} AND {text}', 'num_nulls({int4}, {text}) = 1', 'hash_array({int4[]}) > 0');

my @raising = (
	'{numeric}::numeric(20,1) > 1', 	'array_remove({int4[]}, {int4}) IS NULL', '{int4[]} || {int4} IS NULL', 	'10 / {int4} > 1', '{int4} % ({int4} - 1) = 0', 'sqrt({float8}) > 1', 'ln({numeric}) > 0', 'make_date({int4}, 2, 29) IS NULL', "{jsonb} - 'k' = '{}'",
	'1 / length({text}) >= 0', "chr({int4}) = 'a'", 'repeat({text}, 2000000000 * abs({int4})) IS NULL', '({int4} * 1000000000)::int8 > 0', '{int4}::int2 > 0', "{text} ~ left({text}, 20)", "{text} LIKE {text} || '\\'",
	'int4range({int4}, {int4}) IS NULL', "get_byte({bytea}, 0) = 1", "{text} ~ ('(' || left({text}, 1))", 'power({float8}, {float8}) > 1', "decode({text}, 'hex') IS NULL", '{float8}::float4 > 0', '{numeric}::int4 > 1', "substring({text}, 1, {int4}) = 'a'", '{timestamp} - {timestamp} IS NULL');

# A server may be built without a type.
sub forget_type
{
	my ($type) = @_;
	delete $values{$type};
	@predicates = grep { !/\{\Q$type\E\}/ } @predicates;
	return;
}

sub constant
{
	my ($self, $type) = @_;
	my $base = $base{$type} // $type;
	my $values = $values{$type} // $values_of_base{$type} or die "no constants of type $type";
	return "NULL::$base" if $self->chance(4);
	my $value = literal($self->pick(@$values));
	return $value =~ s/^' *|'$//gr if $type =~ /^int[48]$/ && $self->chance(70) && $value !~ /-/;
	return $self->chance(50) && $type !~ /^(?:bit|\w+multirange)|\[\]/ ? "$base $value" =~ s/^"char"/"char"/r : $value . '::' . $base;
}

# An expression of a type.
sub expression
{
	my ($self, $type, $columns, $depth) = @_;
	$type = $base{$type} // $type;
	my @own = grep { ($base{ $_->{type} } // $_->{type}) eq $type } @$columns;
	return $self->pick(@own)->{ident} if @own && ($depth <= 0 || $self->chance(65));
	return $self->constant($type) if $depth <= 0 || !$expressions{$type} || $self->chance(20);
	my $expression = $self->fill($self->pick(@{ $expressions{$type} }), $columns, $depth - 1);
	return "($expression)";
}

sub fill
{
	my ($self, $template, $columns, $depth) = @_;
	my @types = grep { $ordered{$_} } map { $_->{type} } @$columns;
	my @ordered = sort keys %ordered;
	if ($template =~ /ARRAY\[\{[oc]\}/)    # of arrays, it would be another array of the same type
	{
		@types = grep { !/\[/ } @types;
		@ordered = grep { !/\[/ } @ordered;
	}
	my $o = @types && $self->chance(85) ? $self->pick(@types) : $self->pick(@ordered);
	$template =~ s[\{(o|c|any|predicate|"char"|[a-z]\w*(?:\[\])?)\}][
		  $1 eq 'o' ? $self->expression($o, $columns, $self->chance(30) ? $depth : 0)
		: $1 eq 'c' ? $self->constant($o)
		: $1 eq 'any' ? $self->pick(@$columns)->{ident}
		: $1 eq 'predicate' ? $self->condition($columns, $depth - 1)
		: $self->expression($1, $columns, $depth)]ge;
	return $template;
}

# One of these templates, at random: usually one in which such a column can be put.
sub fitting
{
	my ($self, $templates, $columns) = @_;
	my %types = map { ($base{ $_->{type} } // $_->{type}) => 1 } @$columns;
	my $ordered = grep { $ordered{ $_->{type} } } @$columns;
	my @fitting = grep { my $t = $_; ($ordered && $t =~ /\{o\}/) || $t =~ /\{any\}/ || grep { $types{$_} } $t =~ /\{([^{}]+)\}/g } @$templates;
	return @fitting && $self->chance(95) ? $self->pick(@fitting) : $self->pick(@$templates);
}

sub condition
{
	my ($self, $columns, $depth) = @_;
	if ($depth > 0 && $self->chance(45))
	{
		my $how = $self->rnd(5);
		return 'NOT (' . $self->condition($columns, $depth - 1) . ')' if $how == 0;
		return '(' . join($how < 3 ? ' AND ' : ' OR ', map { $self->condition($columns, $depth - 1) } 1 .. $self->pick(2, 2, 2, 3)) . ')';
	}
	return '(' . $self->fill($self->fitting(\@predicates, $columns), $columns, $depth) . ')';
}

# A where clause: (text, whether evaluating it may raise an error)
sub clause
{
	my ($self, $table) = @_;
	my $columns = $self->chance(4) ? $table->{streamed} : $table->{filterable};
	my $raises = $self->chance(5);
	my $text = $raises ? $self->fill($self->fitting(\@raising, $columns), $columns, 1) : $self->condition($columns, $self->rnd(4));
	$text = "($text) OR " . $self->condition($columns, 0) if $raises && $self->chance(30);
	$text =~ s/^\((.*)\)$/$1/ if $self->chance(50) && $text !~ /\).*\(/;
	return ($text, $raises);
}

# usage: my ($table, @clauses) = $fuzz->everything
#
# A table with a column of every type, and a where clause for every construct.
sub everything
{
	my ($self) = @_;
	my @columns = ($self->column('int4', key => 1), map { $self->column($_) } sort keys %values);
	my @filterable = grep { is_built_in($_) } @columns;
	my $name = 'everything';
	my $table = { ident => "public.$name", name => $name, identity => 'full', columns => \@columns, keys => [ $columns[0] ], plain => \@columns, streamed => \@columns,
		shape_keys => [ $columns[0] ], filterable => \@filterable, shapes_of => ["public.$name"] };
	$table->{sql} = "CREATE TABLE $table->{ident} (" . join(', ', map { column_sql($_) } @columns) . ", PRIMARY KEY ($columns[0]{ident}));\n"
	  . "ALTER TABLE $table->{ident} REPLICA IDENTITY FULL;\n";
	my @clauses = map { $self->fill($_, \@filterable, 0) } @predicates;
	for my $type (sort keys %expressions)
	{
		push @clauses, map { $self->fill($ordered{$type} ? "$_ IS DISTINCT FROM {$type}" : "$_ IS NOT NULL", \@filterable, 0) } @{ $expressions{$type} };
	}
	for my $column (@filterable)
	{
		push @clauses, "$column->{ident} IS NOT NULL";
		push @clauses, "$column->{ident} = $_" for map { $self->constant($column->{type}) } $ordered{ $column->{type} } ? (1, 2) : ();
	}
	return ($table, @clauses);
}

# ---------------------------------------------------------------------- DML --

sub big { my ($self) = @_; return '"fuzz Types".big(' . $self->rnd(8) . ')'; }

# A value for a column.
sub value
{
	my ($self, $column) = @_;
	return $self->rnd(3) if $column->{region};
	return 'NULL' if !$column->{unique} && $self->chance(12);
	return $self->chance(70) ? $self->big : "'small'" if $column->{big};
	return literal($self->pick(@{ $values{ $column->{type} } })) . '::' . $column->{type};
}

# An SQL expression for the column's value in row i, for many rows at once
sub row_value
{
	my ($self, $column, $i) = @_;
	return key_expr($column->{type}, $i) if $column->{key} && !$column->{region};
	return "($i) % 3" if $column->{region};
	return $i if $column->{unique};
	my @from = $self->some(3, @{ $values{ $column->{type} } });
	my $salt = $self->rnd(50);
	return "CASE (($i) * 7 + $salt) % 4 WHEN 0 THEN " . $self->big . " WHEN 1 THEN 'small' WHEN 2 THEN " . $self->big . ' END' if $column->{big};
	return "CASE (($i) * 7 + $salt) % " . (@from + 1) . join('', map { " WHEN $_ THEN " . literal($from[$_]) . "::$column->{type}" } 0 .. $#from) . ' END';
}

# usage: $fuzz->rows($table, lo, hi): an INSERT without its end
sub rows
{
	my ($self, $table, $lo, $hi) = @_;
	return "INSERT INTO $table->{ident} (" . join(', ', map { $_->{ident} } @{ $table->{plain} }) . ') SELECT '
	  . join(', ', map { $self->row_value($_, 'i') } @{ $table->{plain} }) . " FROM generate_series($lo, $hi) AS i";
}

sub keys_sql { my ($table) = @_; return join ', ', map { $_->{ident} } @{ $table->{keys} }, $table->{region} // (); }

# A condition that selects some rows, by their key and perhaps by other columns
sub which
{
	my ($self, $table) = @_;
	my $columns = $self->chance(50) ? $table->{keys} : $table->{plain};
	my $key = $table->{keys}[0];
	my $row = $self->rnd(120);
	my $how = $self->rnd(10);
	return "$key->{ident} = " . key_expr($key->{type}, $row) if $how < 3;
	return "$key->{ident} IN (" . join(', ', map { key_expr($key->{type}, $self->rnd(120)) } 1 .. 8) . ')' if $how < 7;
	my @usable = grep { is_built_in($_) } @$columns;
	my ($condition) = $how < 9 && @usable ? $self->condition(\@usable, 1) : 'true';
	return "hashtext(($key->{ident})::text) % 5 = " . ($self->rnd(9) - 4) . " AND ($condition)";
}

# Assignments for an UPDATE that leaves the key alone
sub plain_assignments
{
	my ($self, $table) = @_;
	my @others = grep { !$_->{key} && !$_->{unique} } @{ $table->{plain} };
	return map { "$_->{ident} = " . $self->value($_) } $self->some(1 + $self->rnd(3), @others);
}

# Assignments for an UPDATE, now and then of the key
sub assignments
{
	my ($self, $table) = @_;
	my @set = $self->plain_assignments($table);
	push @set, "$table->{keys}[0]{ident} = " . key_expr($table->{keys}[0]{type}, $self->rnd(150)) if $self->chance(15);
	my ($unique) = grep { $_->{unique} } @{ $table->{plain} };
	push @set, "$unique->{ident} = $unique->{ident} + " . $self->pick(-200, 1, 300) if $unique && $self->chance(20);
	push @set, "$table->{region}{ident} = " . $self->rnd(3) if $table->{region} && $self->chance(25);
	return join ', ', @set;
}

# One statement that changes rows of the table
sub dml
{
	my ($self, $table) = @_;
	my $target = $table->{leaves} && $self->chance(15) ? $self->pick(@{ $table->{leaves} }) : $table->{ident};
	my $lo = $self->rnd(120);
	my $hi = $lo + $self->pick(0, 0, 1, 3, 10);
	my $key = $table->{keys}[0];
	my $others = join ', ', map { "$_->{ident} = excluded.$_->{ident}" } $self->some(2, grep { !$_->{unique} && !$_->{key} } @{ $table->{plain} });
	my $how = $self->rnd(100);

	return $self->rows($table, $lo, $hi) . ' ON CONFLICT DO NOTHING' if $how < 14;
	return $self->rows($table, $lo, $hi) . ' ON CONFLICT (' . keys_sql($table) . ') DO UPDATE SET ' . $others
	  if $how < 28 && $others ne '';
	return "UPDATE $target SET " . $self->assignments($table) . ' WHERE ' . $self->which($table) if $how < 66;
	return "DELETE FROM $target WHERE " . $self->which($table) if $how < 78;
	return "UPDATE $target SET $key->{ident} = $key->{ident}" . ($self->chance(30) ? '' : ' WHERE ' . $self->which($table)) if $how < 81;
	return $self->copy($table, $lo + 200, $hi + 200) if $how < 88;
	return "DELETE FROM $target WHERE $key->{ident} IN (" . join(', ', map { key_expr($key->{type}, $lo + 200 + $_) } 0 .. 10) . ')' if $how < 91;
	return 'WITH gone AS (DELETE FROM ' . $target . ' WHERE ' . $self->which($table) . ' RETURNING 1) ' . $self->rows($table, $lo + 300, $hi + 300)
	  . ' WHERE (SELECT count(*) FROM gone) >= 0 ON CONFLICT DO NOTHING' if $how < 94;
	return $self->merge($table, $lo) if $how < 98;
	return $self->rows($table, $lo, $hi);    # may violate the key
}

sub merge
{
	my ($self, $table, $lo) = @_;
	my @key = (@{ $table->{keys} }, $table->{region} // ());
	my $n = 0;
	my $on = join ' AND ', map { "m.$_->{ident} = s.k" . $n++ } @key;
	$n = 0;
	return "MERGE INTO $table->{ident} AS m USING (SELECT i, " . join(', ', map { $self->row_value($_, 'i') . ' AS k' . $n++ } @key)
	  . " FROM generate_series($lo, $lo + 8) AS i) AS s ON $on"
	  . ' WHEN MATCHED AND s.i % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET ' . join(', ', $self->plain_assignments($table))
	  . ' WHEN NOT MATCHED THEN INSERT (' . join(', ', map { $_->{ident} } @{ $table->{plain} }) . ') VALUES ('
	  . join(', ', map { $self->row_value($_, 's.i') } @{ $table->{plain} }) . ')';
}

sub csv { my ($text) = @_; $text =~ s/"/""/g; return qq{"$text"}; }

# COPY ... FROM stdin, as psql reads it; of rows that only COPY makes.
sub copy
{
	my ($self, $table, $lo, $hi) = @_;
	my %text = (int4 => '%d', int8 => '%d', text => 'c %d', 'varchar(20)' => 'c %d', uuid => '00000000-0000-0000-0000-%012d',
		date => '2030-01-01', 'numeric(10,2)' => '%d.25', timestamptz => '2030-01-01 00:00:00.%06d+00', bytea => '\\x%08d', name => 'c%d');
	my $base = 1000 + $self->rnd(100000);
	my @lines;
	for my $i ($lo .. $hi)
	{
		my $offset = $base + $i;
		push @lines, join ',', map {
			my $column = $_;
			  $column->{region} ? $i % 3
			: $column->{unique} ? $offset
			: $column->{key} ? csv($column->{type} eq 'date' ? sprintf('%04d-01-01', 1 + $offset % 9999) : sprintf($text{ $column->{type} }, $offset))
			: $self->chance(20) ? ''
			: csv($column->{big} ? 'x' x (3000 + $self->rnd(3000)) : $self->pick(@{ $values{ $column->{type} } }))
		} @{ $table->{plain} };
	}
	return "COPY $table->{ident} (" . join(', ', map { $_->{ident} } @{ $table->{plain} }) . ") FROM stdin (FORMAT csv);\n" . join("\n", @lines) . "\n\\.\nSELECT";
}

# A transaction, as lines for psql; gid: for those that are prepared.
sub transaction
{
	my ($self, $tables, $gid) = @_;
	my $statements = sub { return join '', map { $self->dml($self->pick(@$tables)) . ";\n" } 1 .. $_[0]; };
	my $kind = $self->rnd(100);

	return $statements->(1) if $kind < 40;
	return "BEGIN;\n" . $statements->(1 + $self->rnd(5)) . "COMMIT;\n" if $kind < 65;
	return "BEGIN;\n" . $statements->(1 + $self->rnd(4)) . "ROLLBACK;\n" if $kind < 72;
	# what comes in between must not wait for what only the end of that ends
	return "BEGIN;\n" . $statements->(1) . "PREPARE TRANSACTION '$gid';\nSET lock_timeout = '100ms';\n"
	  . $statements->(1) . "RESET lock_timeout;\n" . ($self->chance(30) ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$gid';\n" if $kind < 77;
	return $self->pick('VACUUM', 'VACUUM (FULL)', 'ANALYZE', 'REINDEX TABLE') . ' ' . $self->pick(@$tables)->{ident} . ";\n" if $kind < 79;

	# savepoints, nested at random
	my ($depth, $text) = (0, "BEGIN;\n");
	for (1 .. 2 + $self->rnd(7))
	{
		my $what = $self->rnd(10);
		if ($what < 4) { $text .= 'SAVEPOINT s' . ++$depth . ";\n"; }
		elsif ($what < 6 && $depth > 0) { $text .= "ROLLBACK TO s$depth;\n"; }
		elsif ($what < 7 && $depth > 0) { $text .= 'RELEASE s' . $depth-- . ";\n"; }
		$text .= $statements->(1);
	}
	return $text . ($self->chance(85) ? "COMMIT;\n" : "ROLLBACK;\n");
}

# A transaction so large that decoding and consumers write it to disk
sub large_transaction
{
	my ($self, $table) = @_;
	my $rows = $self->pick(2000, 4000);
	return "BEGIN;\nSAVEPOINT s;\n" . $self->rows($table, 2000, 2000 + $rows) . " ON CONFLICT DO NOTHING;\n"
	  . ($self->chance(30) ? "ROLLBACK TO s;\n" : '')
	  . "UPDATE $table->{ident} SET " . join(', ', $self->plain_assignments($table)) . ";\n"
	  . "DELETE FROM $table->{ident} WHERE hashtext(($table->{keys}[0]{ident})::text) % 3 = 0;\nCOMMIT;\n";
}

# ---------------------------------------------------------------------- DDL --

# Commands that must all be done, or none.  No shape ends by them: they leave the key, the
# replica identity, and columns that shapes know by name alone.
sub commands
{
	my ($self, $table, $of, $publication) = @_;
	my $ident = $table->{ident};
	my $extra = 'extra' . $self->rnd(3);
	# of a filtered shape, no column may be TOASTed without all of the old row
	my $short = $table->{identity} ne 'full';
	my $alter = "ALTER TABLE $ident";
	my $alter_pub = "ALTER PUBLICATION $publication->{name}";
	my @kinds = (
		sub { return 'TRUNCATE ' . $self->pick($ident, @{ $table->{leaves} // [] }); },
		sub { return ("TRUNCATE $ident", $self->rows($table, 0, 40)); },
		(sub {
			my ($type, $default) = @{ $self->pick([ 'int', '7' ], [ 'timestamptz', 'now()' ], $short ? () : [ 'text', q{'new'} ], [ 'numeric(6,2)', '1.5' ], [ 'jsonb', q{'{"a": 1}'} ]) };
			return ("$alter ADD COLUMN IF NOT EXISTS $extra $type" . ($self->chance(50) ? " DEFAULT $default" : ''),
				$self->chance(50) ? "UPDATE $ident SET $extra = $default WHERE " . $self->which($table) : ());
		}) x 3,
		sub { return "$alter DROP COLUMN IF EXISTS $extra"; },
		sub { return "$alter DROP COLUMN IF EXISTS $extra, ADD COLUMN $extra int DEFAULT 3"; },
		sub { return "$alter RENAME COLUMN $extra TO extra" . $self->rnd(3); },
		sub { return "$alter ALTER COLUMN $extra TYPE " . ($short ? 'int8 USING 5' : "text USING $extra\::text || 'x'"); },
		(sub {
			my ($part, $bound) = @{ $self->pick(@{ $table->{parts} }) };
			return ("$alter DETACH PARTITION $part", $self->chance(50) ? "DELETE FROM $part WHERE " . $self->which($table) : (),
				"$alter ATTACH PARTITION $part FOR VALUES $bound");
		}) x ($table->{parts} ? 3 : 0),
		(sub {
			my $new = ident($table->{schema}) . '.' . ident(substr($table->{name}, 0, 40) . ' new');
			return "DROP TABLE IF EXISTS $new" if $self->chance(40);
			# one whose replica identity is not enough would end shapes
			my @create = $table->{identity} eq 'full'
			  ? ("CREATE TABLE $new (LIKE $ident INCLUDING ALL)", "ALTER TABLE $new REPLICA IDENTITY FULL", "$alter ATTACH PARTITION $new FOR VALUES $table->{new_bound}")
			  : "CREATE TABLE $new PARTITION OF $ident FOR VALUES $table->{new_bound}";
			return (@create, $self->rows($table, 0, 10) =~ s/\(i\) % 3/7/r);
		}) x ($table->{new_bound} ? 2 : 0),
		sub { return "$alter_pub DROP TABLE " . $self->pick(map { $_->{ident} } @$of); },
		sub { return ("$alter_pub DROP TABLE $ident", $self->plain_update($table), "$alter_pub ADD TABLE $ident"); },
		sub { return "$alter_pub SET TABLE " . $self->pick(map { $_->{ident} } @$of); },
		sub { return ("$alter_pub SET (publish = 'insert')", $self->plain_update($table), "$alter_pub SET (publish = 'insert, update, delete, truncate')"); },
		# with a change in between, there would have to be another slot, which there can be
		# three times an hour
		sub { return ("DROP PUBLICATION $publication->{name}", $publication->{sql}); },
		sub { return 'SELECT electric_cm_resync()'; });
	return $self->pick(@kinds)->();
}

sub plain_update
{
	my ($self, $table) = @_;
	return "UPDATE $table->{ident} SET " . join(', ', $self->plain_assignments($table)) . ' WHERE ' . $self->which($table);
}

# usage: $fuzz->ddl($tables, {name => of the publication, sql => that makes it})
#
# A transaction with such commands, as lines for psql: one that fails takes all back.
sub ddl
{
	my ($self, $tables, $publication) = @_;
	my $table = $self->pick(@$tables);
	# without COPY: of one in a transaction that has failed, psql takes the rows for commands
	my $dml = sub {
		my @dml = grep { !/^COPY/ } map { $self->dml($table) } 1 .. $self->rnd(3);
		return "\\set ON_ERROR_ROLLBACK on\n" . join('', map { "$_;\n" } @dml) . "\\set ON_ERROR_ROLLBACK off\n";
	};
	my $text = join '', map { "$_;\n" } $self->commands($table, $tables, $publication);

	$text = "SAVEPOINT ddl;\n$text" . $dml->() . "ROLLBACK TO ddl;\n" if $self->chance(15);
	return "BEGIN;\n" . $dml->() . $text . $dml->() . ($self->chance(10) ? 'ROLLBACK' : 'COMMIT') . ";\n";
}

1;
