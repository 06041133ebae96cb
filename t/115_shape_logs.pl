
# Many shapes are read at once: electric_cm_shape_logs() returns their entries in the order of
# the stream, also inside a transaction, up to a consistent cut; never cuts a transaction that
# fits; goes on from the cut's offset, whatever happens; tells of shapes that have ended, one by
# one. What it returns, it returns as soon as it has it. Offsets have a type, with an order.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack fails_with);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.shape_workers = 2\n");
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql(
	'CREATE TABLE a (id int PRIMARY KEY, t text)',
	'CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)',
	'CREATE TABLE c (id int PRIMARY KEY, b int REFERENCES b)',
	'INSERT INTO a SELECT i, $$old$$ FROM generate_series(1, 3) i');
my %shape = map { $_ => $stack->live_shape($_) } qw(a b c);
my @shapes = @shape{qw(a b c)};

# An array of texts.
sub array { return "'{" . join(',', map { qq("$_") } @_) . "}'"; }

# What shape_logs() returns for all three, a row a line.
sub logs
{
	my ($columns, $after, $max) = @_;
	$max = defined $max ? ", $max" : '';
	return $stack->sql("SELECT $columns FROM electric_cm_shape_logs(" . array(@shapes) . ', ' . array(@$after) . "$max)");
}

# The offset of the row up-to-date, after an offset for all.
sub up_to_date
{
	my ($after) = @_;
	$stack->settle;
	return $stack->sql("SELECT log_offset FROM electric_cm_shape_logs(" . array(@shapes) . ', ' . array(($after) x 3)
		  . ", NULL) WHERE operation = 'up-to-date'");
}

# ------------------------------------------------------------- the type --

is($stack->sql(q{SELECT string_agg(o::text, ' ' ORDER BY o) FROM unnest('{10_0,9_5,-1,9_12,0_0}'::electric_cm_offset[]) o}),
	'-1 0_0 9_5 9_12 10_0', 'offsets are in the order of the stream');
is($stack->sql(q{SELECT max(o), min(o), count(DISTINCT o), bool_and(o <= '9_12'), '16777216_3'::electric_cm_offset::pg_lsn = '0/1000000'
	FROM unnest('{9_5,-1,9_12,9_5}'::electric_cm_offset[]) o}), '9_12|-1|3|t|t', '... have max, min, distinct, and an LSN');
is($stack->sql(q{CREATE TABLE o (o electric_cm_offset PRIMARY KEY, h electric_cm_offset UNIQUE); CREATE INDEX ON o USING hash (h);
	INSERT INTO o SELECT (i || '_7')::text, (i || '_7')::text FROM generate_series(1, 1000) i; ANALYZE o; SET enable_seqscan = off;
	SELECT o, h FROM o WHERE o = '77_7' AND h = '77_7'::text}), '77_7|77_7', '... and can be indexed, also by hash');
$stack->sql(q{COPY o TO '} . $node->basedir . q{/o.bin' (FORMAT binary)}, 'CREATE TABLE p (LIKE o)', q{COPY p FROM '} . $node->basedir . q{/o.bin' (FORMAT binary)});
is($stack->sql('SELECT count(*) FROM o JOIN p USING (o, h)'), 1000, '... and sent in binary form');
fails_with($node, $db, qr/22P02.*invalid shape log offset: "$_"/s, "no offset: $_", "SELECT '$_'::electric_cm_offset")
  for '', '-2', '1', '1_', '_1', '1_x', ' 1_1', '18446744073709551616_0', '0_9223372036854775808';

# --------------------------------------------------- the stream's order --

is(logs('handle, operation', [ ('-1') x 3 ]), join("\n", ("$shape{a}|insert") x 3, '|up-to-date'), 'the rows that logs begin with, and up-to-date');
my $cut = up_to_date('-1');
is(logs('operation', [ ($cut) x 3 ]), 'up-to-date', 'the cut is an offset of each of the shapes: nothing comes after it');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$shape{a}', '$cut')"), 0, '... also for one shape alone');

$stack->sql(q{BEGIN;
	INSERT INTO a VALUES (10, 'x'); INSERT INTO b VALUES (10, 10); INSERT INTO c VALUES (10, 10);
	INSERT INTO a VALUES (11, 'x'); UPDATE a SET id = 12 WHERE id = 11; INSERT INTO b VALUES (12, 12); UPDATE a SET t = 'y' WHERE id = 12;
	DELETE FROM c WHERE id = 10; COMMIT});
$stack->settle;
my %name = reverse %shape;
my $order = logs('handle, operation', [ ($cut) x 3 ]) =~ s/^([^|\n]+)\|/$name{$1}|/gmr;
is($order, "a|insert\nb|insert\nc|insert\na|insert\na|delete\na|insert\nb|insert\na|update\nc|delete\n|up-to-date",
	'the entries of a transaction are in its order, over all shapes');
is($stack->sql('SELECT count(DISTINCT xid), bool_and(log_offset > before) FROM (SELECT xid, log_offset, lag(log_offset) OVER () AS before
	FROM electric_cm_shape_logs(' . array(@shapes) . ', ' . array(($cut) x 3) . ")) l WHERE xid IS NOT NULL AND before IS NOT NULL"), '1|t',
	'... of one xid, with ascending offsets');
is($stack->sql("SELECT operation FROM electric_cm_shape_log('$shape{a}', '$cut')"), "insert\ninsert\ndelete\ninsert\nupdate", 'so they are in one log');
$stack->replays($shape{$_}, $_, "log of $_") for qw(a b c);

# -------------------------------------------------------- max_entries --

$cut = up_to_date($cut);
$stack->sql("INSERT INTO a SELECT i, 'z' FROM generate_series(100, 104) i",
	"BEGIN; INSERT INTO a VALUES (110, 'z'); INSERT INTO b VALUES (110, 110); INSERT INTO c VALUES (110, 110); COMMIT",
	'INSERT INTO b VALUES (111, 110)');
$stack->settle;
is(logs('operation, key', [ ($cut) x 3 ], 6) =~ s/"public"\.//gr =~ s/"//gr, join("\n", map { "insert|a/$_" } 100 .. 104), 'a transaction that does not fit is left out, and so is up-to-date');
is(logs('count(*)', [ ($cut) x 3 ], 8), 8, '... one that fits is not');
is(logs('count(*)', [ ($cut) x 3 ], 3), 3, 'the first one is cut if it must be');
is(logs('count(*)', [ ($cut) x 3 ], 9), 10, 'all, and up-to-date');
is(logs('count(*)', [ ($cut) x 3 ], 'NULL'), 10, 'without a limit');

# the reader goes on behind each page, by what he has of each shape
my %after = map { $_ => $cut } @shapes;
my (@pages, @got);
for (1 .. 20)
{
	my @rows = map { [ split /\|/ ] } split /\n/,
	  $stack->sql('SELECT handle, log_offset, operation, xid FROM electric_cm_shape_logs(' . array(@shapes) . ', ' . array(@after{@shapes}) . ', 3)');
	push @pages, join ',', map { $name{ $_->[0] } // $_->[2] } @rows;
	push @got, map { "$_->[0] $_->[1]" } grep { $_->[0] ne '' } @rows;
	last if @rows && $rows[-1][2] eq 'up-to-date';
	$after{ $_->[0] } = $_->[1] for grep { $_->[0] ne '' } @rows;
}
is(join(' ', @pages), 'a,a,a a,a a,b,c b,up-to-date', 'page by page');
is(scalar(@got), 9, '... each entry once');

# a change that concerns several shapes is one change to all of them
$stack->sql('CREATE TABLE d (id int PRIMARY KEY)', 'INSERT INTO d VALUES (1), (2)');
my @twins = map { $stack->live_shape('d', where => $_) } 'id > 0', 'id > 1', 'id > 2';
my $twins_cut = $stack->sql('SELECT log_offset FROM electric_cm_shape_logs(' . array(@twins) . ', ' . array(('-1') x 3) . ", NULL) WHERE operation = 'up-to-date'");
$stack->sql("INSERT INTO d VALUES (120), (121)");
$stack->settle;
is($stack->sql('SELECT count(*), count(DISTINCT log_offset), count(DISTINCT handle) FROM electric_cm_shape_logs(' . array(@twins) . ', ' . array(($twins_cut) x 3) . ', 2)'),
	'3|1|3', '... which is not cut, either');

# -------------------------------------------------------- what ended --

my $gone = $stack->live_shape('c', where => 'id > 1000');
$stack->sql("SELECT electric_cm_drop_shape('$gone')");
$stack->becomes("SELECT NOT EXISTS (SELECT FROM electric_cm_shapes WHERE handle = '$gone')");
is($stack->sql('SELECT handle, operation, value ->> $$sqlstate$$, value ->> $$message$$, value ->> $$hint$$ IS NOT NULL FROM electric_cm_shape_logs('
		  . array($gone, $shape{b}, 'nonsense', $shape{a}) . ", '{-1,-1,-1,1_1}')
	WHERE operation NOT IN ('insert', 'update', 'delete')"),
	qq{$gone|ended|42704|shape "$gone" does not exist|t
nonsense|ended|42704|shape "nonsense" does not exist|t
$shape{a}|ended|EC001|offset 1_1 is not in the log of shape "$shape{a}"|t
|up-to-date|||f}, 'shapes that have ended, and offsets that are of no use, are told one by one; the others go on');
$stack->sql('CREATE ROLE somebody');
is($stack->sql('SET ROLE somebody', 'SELECT handle, value ->> $$sqlstate$$ FROM electric_cm_shape_logs(' . array($shape{a}, $shape{b}) . ", '{-1,-1}')"),
	"$shape{a}|42501\n$shape{b}|42501", '... and so are those that somebody may not read');
fails_with($node, $db, $_->[1], $_->[2], "SELECT * FROM electric_cm_shape_logs($_->[0])")
  for (
	[ "'{x,x}', '{-1,-1}'", qr/22023.*more than once/s, 'a handle twice' ],
	[ "'{x,y}', '{-1}'", qr/2202E.*2 handles, and 1 offsets/s, 'too few offsets' ],
	[ "NULL, '{}'", qr/22004/, 'no handles' ],
	[ "'{x,NULL}', '{-1,-1}'", qr/22004/, 'a null handle' ],
	[ "'{{x}}', '{{-1}}'", qr/2202E/, 'two dimensions' ],
	[ "'{x}', '{-1}', 0", qr/22023.*max_entries/s, 'no entries' ]);
is($stack->sql("SELECT count(*) FROM electric_cm_shape_logs('{}', '{}')"), 0, 'nothing of nothing');

# a cut is older than a shape that is created after it: that one is read from its beginning
my $late = $stack->live_shape('d', where => 'id < 3');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$late', '$cut')"), 2, 'who has an older cut reads a new shape from its beginning');

# ------------------------------------------------------ a cut through time --

# as the logs grow, transfers are seen as a whole, or not at all
$stack->sql('CREATE TABLE left_side (id int PRIMARY KEY, n int)', 'CREATE TABLE right_side (id int PRIMARY KEY, n int)');
my @sides = map { $stack->live_shape($_) } qw(left_side right_side);
$node->append_conf('postgresql.conf', "log_statement = none\n");
$node->reload;
$stack->sql(q{CREATE PROCEDURE follow(handles text[], upto int, INOUT at electric_cm_offset, INOUT seen int, INOUT torn int, INOUT looks int)
LANGUAGE plpgsql AS $$
DECLARE
	l int; r int; c electric_cm_offset;
BEGIN
	WHILE seen < upto AND looks < 1000000 LOOP
		SELECT count(*) FILTER (WHERE handle = handles[1]), count(*) FILTER (WHERE handle = handles[2]),
			max(log_offset) FILTER (WHERE operation = 'up-to-date')
		INTO l, r, c FROM electric_cm_shape_logs(handles, ARRAY[at, at], NULL);
		looks := looks + 1;
		torn := torn + (l <> r)::int;
		IF c IS NOT NULL THEN	-- else it is read again
			seen := seen + l;
			at := c;
		END IF;
		COMMIT;
	END LOOP;
END $$});
my ($after, $seen, $torn, $looks) = ('-1', 0, 0, 0);
for my $workers (2, 3, 1, 2)
{
	my $upto = $seen + 1000;
	my $file = $node->basedir . "/transfers$upto.sql";
	append_to_file($file, join '', map {
			"BEGIN; INSERT INTO left_side VALUES ($_, 1); INSERT INTO right_side VALUES ($_, 1); COMMIT;\n" } $seen + 1 .. $upto);

	# shapes change hands, between consumers that have come to different places
	$node->append_conf('postgresql.conf', "electric_cm.shape_workers = $workers");
	my $writer = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db), '-f', $file ], '<', \'', '>', \my $out, '2>', \my $err);
	$node->reload;
	($after, $seen, $torn, $looks) = split /\|/, $stack->sql('CALL follow(' . array(@sides) . ", $upto, '$after', $seen, $torn, $looks)");
	$writer->finish;
	$stack->seen("count(*) = $workers FROM electric_cm_stat_consumers WHERE datname = 'postgres'", "$workers consumers");
	ok($stack->active, 'active');
}
is("$torn $seen", '0 4000', "while they grow, and change hands: no transaction is torn, none is missing ($looks looks)");

# who has nothing to write does not hold back the others, also after that
$node->append_conf('postgresql.conf', 'electric_cm.shape_workers = 4');
$node->reload;
$stack->seen("count(*) = 4 FROM electric_cm_stat_consumers WHERE datname = 'postgres'", 'other consumers');
ok($stack->active, 'active again');
$stack->sql('INSERT INTO left_side VALUES (100001, 1)');
$stack->settle;
is($stack->sql('SELECT operation FROM electric_cm_shape_logs(' . array(@sides, @shapes) . ', ' . array($after, $after, ($after) x 3) . ", NULL) WHERE operation <> 'ended'"),
	"insert\nup-to-date", 'consumers that have not written anything yet do not hold back the others');

# ------------------------------------------------------------------- gaps --

# One gap in two logs, of which one stays open: what closes the other has the gap's LSN.
my @gapped;
for my $table (qw(first_gap second_gap))
{
	$stack->sql("CREATE TABLE $table (id int PRIMARY KEY)", "INSERT INTO $table VALUES (1), (2)");
	push @gapped, $stack->live_shape($table);
}
$stack->settle;
my $up_to = $stack->sql('SELECT max(log_offset) FROM electric_cm_shape_logs(' . array(@gapped) . ", '{-1,-1}') WHERE operation = 'up-to-date'");
my ($truncates, $holds) = map { $node->background_psql($db) } 1 .. 2;
$truncates->query_safe('BEGIN; TRUNCATE first_gap, second_gap; INSERT INTO first_gap VALUES (3); INSERT INTO second_gap VALUES (4)');
$holds->query_until(qr/begun/, "\\echo begun\nBEGIN; LOCK TABLE second_gap;\n");
$stack->seen(q{count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'second_gap'::regclass}, 'a table is about to be locked');
$truncates->query_safe('COMMIT');
$stack->is_live($gapped[0], 'a log whose gap is closed');
is($stack->column_of('state', $gapped[1]), 'resyncing', '... beside one with the same gap');
my @looks;
for my $look (1 .. 4)
{
	if ($look == 3)
	{
		$holds->query_safe('COMMIT');
		$stack->is_live($gapped[1], 'both are closed');
		$stack->settle;
	}
	my $page = $stack->sql('SELECT string_agg(operation, $$ $$), max(log_offset) FILTER (WHERE operation = $$up-to-date$$) FROM (SELECT * FROM electric_cm_shape_logs('
		  . array(@gapped) . ", '{$up_to,$up_to}') ORDER BY operation) x");
	($page, $up_to) = split /\|/, $page;
	push @looks, $page;
}
is(join(', ', @looks), 'up-to-date, up-to-date, delete delete delete delete insert insert up-to-date, up-to-date',
	'... comes with it, and once');
$_->quit for $truncates, $holds;

# -------------------------------------------------------------- streaming --

$stack->sql('CREATE TABLE large (id int PRIMARY KEY, t text)', q{INSERT INTO large SELECT i, repeat('x', 100) FROM generate_series(1, 300000) i});
my $large = $stack->live_shape('large');
my $plan = $stack->sql("EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF, SUMMARY OFF, BUFFERS) SELECT * FROM electric_cm_shape_log('$large') LIMIT 10");
my ($buffers) = $plan =~ /shared hit=(\d+)/;
cmp_ok($buffers, '<', 2000, 'LIMIT 10 reads the beginning of a log');
unlike($plan, qr/temp/, '... and stores nothing');
is($stack->sql("BEGIN; DECLARE c CURSOR FOR SELECT log_offset FROM electric_cm_shape_logs('{$large}', '{-1}', NULL); FETCH 3 FROM c; SAVEPOINT s; FETCH 2 FROM c; ROLLBACK TO s; FETCH 1 FROM c; COMMIT"),
	join("\n", map { "0_$_" } 1 .. 6), 'a cursor, also over savepoints');
is($stack->sql("SELECT count(*), max(log_offset) = (SELECT last_offset FROM electric_cm_shapes WHERE handle = '$large') FROM electric_cm_shape_log('$large')"), '300000|t', 'all of it');
is($stack->sql("DO \$\$ DECLARE r record; n int := 0; BEGIN FOR r IN SELECT * FROM electric_cm_shape_log('$large') LOOP n := n + 1; EXIT WHEN n = 5; END LOOP; END \$\$; SELECT 'good'"), 'good', 'a loop that ends early leaves nothing behind');
unlike(slurp_file($node->logfile), qr/leak|WARNING:  .*snapshot/, 'no leaks');

# ---------------------------------------------------------- many shapes --

$stack->sql('CREATE TABLE many (id int PRIMARY KEY, k int)', 'ALTER TABLE many REPLICA IDENTITY FULL', 'INSERT INTO many SELECT i, i % 200 FROM generate_series(1, 2000) i');
$stack->sql("SELECT count(electric_cm_create_shape('many', 'k = ' || i)) FROM generate_series(0, 199) i");
$stack->becomes("SELECT count(*) = 200 FROM electric_cm_shapes WHERE relation = 'many'::regclass AND state = 'live'");
$stack->sql('UPDATE many SET id = id + 10000', 'DELETE FROM many WHERE k = 7');
$stack->settle;
is($stack->sql("WITH s AS (SELECT array_agg(handle) AS h, array_fill('-1'::electric_cm_offset, ARRAY[200]) AS o FROM electric_cm_shapes WHERE relation = 'many'::regclass),
	l AS (SELECT l.*, row_number() OVER () AS n FROM s, electric_cm_shape_logs(h, o, NULL) l)
	SELECT count(*), count(DISTINCT handle), count(*) FILTER (WHERE operation = 'delete'), bool_and(coalesce(log_offset >= b, true)) FROM
	(SELECT *, lag(log_offset) OVER (ORDER BY n) AS b FROM l WHERE xid IS NOT NULL) x"), '4010|200|2010|t', '200 shapes in the order of the stream');

$node->stop;
done_testing();
