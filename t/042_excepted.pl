# A table that is excepted from a publication FOR ALL TABLES is not published: a
# shape of it is refused, or ends.  The same when the publication becomes one of
# sequences.
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

$stack->sql('CREATE TABLE a (id int PRIMARY KEY)', 'CREATE TABLE b (id int PRIMARY KEY)',
	'CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id)',
	'CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100)',
	'CREATE TABLE alone (id int PRIMARY KEY)',
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

all_tables('a');
is($stack->exists_shape($of_a), 0, 'an exception is made: the shape ends');
is($stack->exists_shape($of_b), 1, '... and no other');
is($stack->events('shape_invalidated', "message LIKE '%the table has left the publication'"), 1, '... with an event');
$stack->sql('BEGIN', 'ALTER PUBLICATION everything SET ALL TABLES EXCEPT (TABLE a, TABLE b)', 'ROLLBACK');
is($stack->exists_shape($of_b), 1, 'one that is rolled back changes nothing');

# Partitions are what their root is

my ($root, $leaf, $alone) = map { $stack->live_shape($_) } qw(r r1 alone);
all_tables('r');
is($stack->exists_shape($root), 0, 'a root becomes an exception: its shape ends');
is($stack->exists_shape($leaf), 0, '... and that of its partition');
refused($_, "a shape of $_ is refused then") for qw(r r1);
$stack->sql('ALTER TABLE r ATTACH PARTITION alone FOR VALUES FROM (100) TO (200)');
is($stack->exists_shape($alone), 0, 'attached to an excepted root: the shape ends');
refused('alone', '... and another is refused');
$stack->sql('ALTER TABLE r DETACH PARTITION alone');
$alone = $stack->live_shape('alone');
$stack->sql('INSERT INTO alone VALUES (150)');
$stack->replays($alone, 'alone', 'detached it is published again');
all_tables();
my $holder = $stack->node->background_psql($stack->db, on_error_stop => 1);
$holder->query_safe('BEGIN; SELECT FROM r; SELECT 1');
isnt($stack->node->psql($stack->db, "SET statement_timeout = '300 ms';\nALTER TABLE r DETACH PARTITION r1 CONCURRENTLY"), 0, 'a DETACH CONCURRENTLY is cancelled');
$holder->query_safe('COMMIT');
$holder->quit;
isnt($stack->live_shape('r1'), '', '... that partition has no ancestors, and can have shapes');
$stack->sql('ALTER TABLE r DETACH PARTITION r1 FINALIZE', 'ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (100)');
$root = $stack->live_shape('r');
$stack->sql('INSERT INTO r VALUES (1), (2)', 'DELETE FROM r WHERE id = 1');
$stack->replays($root, 'r', 'the root is no exception any more');

# An exception that is made while a shape is being created

my $writer = $stack->node->background_psql($stack->db, on_error_stop => 1);
$writer->query_safe('BEGIN; INSERT INTO a VALUES (2); SELECT 1');
my $held = $stack->shape('a');
$stack->becomes("SELECT waiting_for LIKE '%writing%' FROM electric_cm_shapes WHERE handle = '$held'", 'a shape waits for a writer');
$writer->query_safe('COMMIT; BEGIN; INSERT INTO b VALUES (2); SELECT 1');
all_tables('a');
is($stack->exists_shape($held), 0, 'an exception ends also a shape that is being created');
$writer->query_safe('COMMIT');
$writer->quit;

# Another publication need not have the stack's tables

my $others = q{SELECT verdict FROM electric_cm_check() WHERE name = 'other_publications'};
$stack->sql('CREATE PUBLICATION theirs FOR ALL TABLES');
is($stack->sql($others), 'WARN', 'another publication has the tables of the stack: a warning');
my $ours = $stack->sql(q{SELECT string_agg('TABLE ' || oid::regclass, ', ') FROM pg_class WHERE relkind = 'r' AND relnamespace = '_electric_cm'::regnamespace});
$stack->sql("ALTER PUBLICATION theirs SET ALL TABLES EXCEPT ($ours)");
is($stack->sql($others), 'PASS', '... they are excepted: none');

# A publication of sequences

$stack->sql('ALTER PUBLICATION everything SET ALL TABLES, ALL SEQUENCES');
is($stack->exists_shape($of_b), 1, 'sequences beside all tables: nothing ends');
$stack->sql('ALTER PUBLICATION everything SET ALL SEQUENCES');
is($stack->sql('SELECT count(*) FROM electric_cm_shapes'), 0, 'a publication of sequences only: all shapes end');
$stack->becomes(q{SELECT electric_cm_status() = 'failed'}, '... the stack says so');
like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'), qr/FOR ALL SEQUENCES/, '... with the reason');
is($stack->sql(q{SELECT verdict || ': ' || fix FROM electric_cm_check() WHERE name = 'publication'}),
	'FAIL: DROP PUBLICATION everything', '... and electric_cm_check() with the remedy');
$stack->sql('DROP PUBLICATION everything');
ok($stack->active, 'it is dropped: active, with another one');
$of_b = $stack->live_shape('b');
$stack->sql('INSERT INTO b VALUES (3)');
$stack->replays($of_b, 'b', '... that publishes tables');

$stack->node->stop;
done_testing();
