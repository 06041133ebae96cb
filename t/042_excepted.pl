# A table that is excepted from a publication FOR ALL TABLES is not published: a
# shape of it is refused, or waits until the exception is taken back.  The same when
# the publication becomes one of sequences.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack server_major);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', start => 0, conf => "electric_cm.publication_name = 'everything'\n");

plan skip_all => 'publications have exceptions from PostgreSQL 19 on' if server_major($stack->node) < 19;
$stack->node->start;

sub all_tables
{
	my (@exceptions) = @_;
	$stack->sql('ALTER PUBLICATION everything SET ALL TABLES'
		  . (@exceptions ? ' EXCEPT (' . join(', ', map { "TABLE $_" } @exceptions) . ')' : ''));
	return;
}

sub refused
{
	my ($table, $what) = @_;
	my $error = $stack->error_of_sql("SELECT electric_cm_create_shape('$table')");
	like($error, qr/55000: table "$table" is excepted from publication "everything"/, $what);
	like($error, qr/HINT: .*ALTER PUBLICATION everything SET ALL TABLES/, '... with the command');
	return;
}

# Rows come and go that the stream does not have; readers keep what they had
my %reader;
sub waits
{
	my ($handle, $table, $what) = @_;
	$stack->becomes(qq{SELECT state = 'resyncing' AND waiting_for LIKE '%table public.$table is not in publication "everything"%' FROM electric_cm_shapes WHERE handle = '$handle'}, $what);
	$stack->sql("INSERT INTO $table SELECT max(id) + 1 FROM $table", "DELETE FROM $table WHERE id = (SELECT min(id) FROM $table)", "INSERT INTO $table SELECT max(id) + 1 FROM $table");
	return is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), $reader{$handle}{had}{n}, '... its log is readable, up to the gap');
}
sub resyncs
{
	my ($handle, $table, $what) = @_;
	$stack->resyncs($reader{$handle}, q{detail = 'the table has left the publication'}, $table, $what, command => 1);
	$stack->sql("INSERT INTO $table SELECT max(id) + 1 FROM $table");
	return $stack->goes_on($reader{$handle}, $table, "$what: and the stream goes on");
}

$stack->sql('CREATE TABLE a (id int PRIMARY KEY)', 'CREATE TABLE b (id int PRIMARY KEY)',
	'CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id)',
	'CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100)',
	'CREATE TABLE alone (id int PRIMARY KEY)', 'CREATE TABLE w (id int PRIMARY KEY)',
	'CREATE PUBLICATION everything FOR ALL TABLES EXCEPT (TABLE a) WITH (publish_generated_columns = stored)',
	'CREATE EXTENSION electric_cm');
$stack->active or BAIL_OUT('no stack');

# From the beginning

refused('a', 'a shape of an excepted table is refused');
my $of_b = $stack->live_shape('b');
all_tables();
my $of_a = $stack->live_shape('a');
is($stack->exists_shape($of_b), 1, 'an exception is taken back: no shape ends');
$stack->sql('INSERT INTO a VALUES (1)');
$stack->replays($of_a, 'a', '... and that table can have one');

# A table that becomes an exception

$reader{$of_a} = $stack->reader($of_a);
all_tables('a');
waits($of_a, 'a', 'an exception is made: the shape waits');
is($stack->state_of($of_b), 'live', '... and no other');
refused('a', '... another one is refused');
all_tables();
resyncs($of_a, 'a', 'the exception is taken back');
$stack->sql('BEGIN', 'ALTER PUBLICATION everything SET ALL TABLES EXCEPT (TABLE a, TABLE b)', 'ROLLBACK');
is($stack->exists_shape($of_b), 1, 'one that is rolled back changes nothing');

# Partitions are what their root is

$stack->sql('INSERT INTO r VALUES (1), (2)', 'INSERT INTO alone VALUES (150)');
my ($root, $leaf, $alone) = map { $stack->live_shape($_) } qw(r r1 alone);
$reader{$_} = $stack->reader($_) for $root, $leaf, $alone;
all_tables('r');
waits($root, 'r', 'a root becomes an exception: its shape waits');
waits($leaf, 'r1', '... and that of its partition');
refused($_, "a shape of $_ is refused then") for qw(r r1);
$stack->sql('ALTER TABLE r ATTACH PARTITION alone FOR VALUES FROM (100) TO (200)');
waits($alone, 'alone', 'attached to an excepted root: the shape waits');
$stack->sql('ALTER TABLE r DETACH PARTITION alone');
resyncs($alone, 'alone', 'detached it is published again');
all_tables();
resyncs($root, 'r', 'the root is no exception any more');
resyncs($leaf, 'r1', 'nor is its partition');
my $holder = $stack->node->background_psql($stack->db, on_error_stop => 1);
$holder->query_safe('BEGIN; SELECT FROM r; SELECT 1');
isnt($stack->node->psql($stack->db, "SET statement_timeout = '300 ms';\nALTER TABLE r DETACH PARTITION r1 CONCURRENTLY"), 0, 'a DETACH CONCURRENTLY is cancelled');
$holder->query_safe('COMMIT');
$holder->quit;
isnt($stack->live_shape('r1', where => 'id > 0'), '', '... that partition has no ancestors, and can have shapes');
$stack->sql('ALTER TABLE r DETACH PARTITION r1 FINALIZE', 'ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)');
$stack->sql('INSERT INTO r SELECT max(id) + 1 FROM r', 'DELETE FROM r WHERE id = (SELECT min(id) FROM r)');
$stack->settle;
$stack->goes_on($reader{$_->[0]}, $_->[1], "attached again: $_->[1]") for [ $root, 'r' ], [ $leaf, 'r1' ];

# An exception that is made while a shape is being created

my $writer = $stack->node->background_psql($stack->db, on_error_stop => 1);
$writer->query_safe('BEGIN; INSERT INTO w VALUES (1); SELECT 1');
my $held = $stack->shape('w');
$stack->becomes("SELECT waiting_for LIKE '%writing%' FROM electric_cm_shapes WHERE handle = '$held'", 'a shape waits for a writer');
all_tables('w');
$writer->query_safe('INSERT INTO w VALUES (2); COMMIT');
$writer->quit;
$stack->becomes(qq{SELECT state = 'creating' AND waiting_for LIKE '%publication "everything"%' FROM electric_cm_shapes WHERE handle = '$held'},
	'an exception is made: it is not created');
$stack->sql('DELETE FROM w WHERE id = 1', 'INSERT INTO w VALUES (3)');
all_tables();
$stack->is_live($held, '... until that is taken back');
$stack->replays($held, 'w', '... and then it is right');

# Another publication need not have the stack's tables

my $others = q{SELECT verdict FROM electric_cm_check() WHERE name = 'other_publications'};
$stack->sql('CREATE PUBLICATION theirs FOR ALL TABLES');
is($stack->sql($others), 'WARN', 'another publication has the tables of the stack: a warning');
my $ours = $stack->sql(q{SELECT string_agg('TABLE ' || oid::regclass, ', ') FROM pg_class WHERE relkind = 'r' AND relnamespace = '_electric_cm'::regnamespace});
$stack->sql("ALTER PUBLICATION theirs SET ALL TABLES EXCEPT ($ours)");
is($stack->sql($others), 'PASS', '... they are excepted: none');

# A publication of sequences

$stack->sql('ALTER PUBLICATION everything SET ALL TABLES, ALL SEQUENCES');
$reader{$of_b} = $stack->reader($of_b);
is($stack->events('shape_resynced', "occurred_at > '$reader{$of_b}{since}'"), 0, 'sequences beside all tables: nothing happens');
$stack->sql('ALTER PUBLICATION everything SET ALL SEQUENCES');
$stack->becomes(q{SELECT electric_cm_status() = 'failed'});
$stack->sql('INSERT INTO b VALUES (3)', 'DELETE FROM b WHERE id = 2');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$of_b')"), $reader{$of_b}{had}{n}, '... logs are readable');
like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'), qr/FOR ALL SEQUENCES/, 'a publication of sequences only: the stack has failed');
is($stack->sql(q{SELECT verdict || ': ' || fix FROM electric_cm_check() WHERE name = 'publication'}),
	'FAIL: DROP PUBLICATION everything', '... and electric_cm_check() with the remedy');
$stack->sql('DROP PUBLICATION everything');
ok($stack->active, 'it is dropped: active, with another one');
$stack->resyncs($reader{$of_b}, q{detail ~ 'publication|new one'}, 'b', '... that publishes tables', command => 1);
$stack->sql('INSERT INTO b VALUES (4)');
$stack->goes_on($reader{$of_b}, 'b', '... and the stream goes on');
is($stack->events('shape_invalidated'), 0, 'no shape has ended');

$stack->node->stop;
done_testing();
