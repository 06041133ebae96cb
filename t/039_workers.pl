# Several consumers share the shapes.  With another number of them, shapes
# change hands: from consumers that were ahead to some that were behind, and
# the other way round; nothing is lost, nothing is logged twice.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "electric_cm.shape_workers = 3\n");
my $node = $stack->node;
my @tables = map { "t$_" } 1 .. 6;
my %shape;

sub write_to_all
{
	$stack->sql(join '', map { qq{
		INSERT INTO $_ (v) SELECT g FROM generate_series(1, 50) g;
		UPDATE $_ SET v = v + 1 WHERE id % 5 = 0;
		DELETE FROM $_ WHERE id % 7 = 0;
	} } @tables);
	return;
}

sub all_are_right
{
	my ($what) = @_;
	my $bad = 0;
	$stack->settle;
	for (@tables)
	{
		my ($ok, $entries) = $stack->replay_equals($shape{$_}, $_, ['id']);
		$bad++ unless $ok and $entries > 0;
	}
	return is($bad, 0, "$what: every shape's log gives its table");
}

# Holds back one consumer, so that the others get ahead of it, and ends the
# server; it starts with another number of consumers.
sub change_workers
{
	my ($behind, $workers) = @_;
	my $pid = $stack->sql("SELECT pid FROM electric_cm_stat_consumers WHERE worker = $behind");
	kill 'STOP', $pid;
	write_to_all();
	my $lsn = $stack->sql('SELECT pg_current_wal_lsn()');
	$stack->becomes("SELECT count(*) >= 1 FROM electric_cm_stat_consumers
		 WHERE worker <> $behind AND flushed_lsn > (SELECT flushed_lsn
			FROM electric_cm_stat_consumers WHERE worker = $behind)",
		"others are ahead of consumer $behind");
	is($stack->sql("SELECT max(flushed_lsn) < '$lsn' FROM electric_cm_stat_consumers WHERE worker = $behind"),
		't', 'and it is behind');
	$node->append_conf('postgresql.conf', "electric_cm.shape_workers = $workers");
	# its death is the server's, which is told not to restart after a crash
	kill 'KILL', $pid;
	$node->stop('immediate', fail_ok => 1);
	$node->start;
	ok($stack->active, "active with $workers consumers");
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;
for (@tables)
{
	$stack->sql("CREATE TABLE $_ (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)");
	$shape{$_} = $stack->sql("SELECT electric_cm_create_shape('$_')");
}
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$_')") for values %shape;
write_to_all();
all_are_right('3 consumers');
is($stack->sql('SELECT string_agg(shapes::text, \',\' ORDER BY worker) FROM electric_cm_stat_consumers'),
	'2,2,2', 'the shapes are shared evenly');

change_workers(1, 2);
all_are_right('2 consumers');
is($stack->sql('SELECT string_agg(shapes::text, \',\' ORDER BY worker) FROM electric_cm_stat_consumers'),
	'3,3', 'two consumers have them all');
write_to_all();
all_are_right('2 consumers, later');

# a shape that is being created meanwhile: a writer that is still at work
# keeps its snapshot from being taken
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN; INSERT INTO t1 (v) VALUES (-1)');
my $created = $stack->sql("SELECT electric_cm_create_shape('t1', 'id % 2 = 1')");
$stack->becomes("SELECT waiting_for IS NOT NULL FROM electric_cm_shapes WHERE handle = '$created'",
	'a shape waits for a writer');
# the server's end is the writer's too
change_workers(2, 4);
eval { $writer->quit };
all_are_right('4 consumers');
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$created')");
my ($ok) = $stack->replay_equals($created, 't1', ['id'], where => 'id % 2 = 1');
ok($ok, 'so is the shape that was being created');

change_workers(4, 1);
all_are_right('1 consumer');
write_to_all();
all_are_right('1 consumer, later');
is($stack->sql('SELECT string_agg(shapes::text, \',\') FROM electric_cm_stat_consumers'),
	'7', 'it has all shapes');

# Without a restart; and what a shape of another table gets, it gets once
$stack->sql('ALTER SYSTEM SET electric_cm.shape_workers = 3');
$stack->sql('SELECT pg_reload_conf()');
$stack->becomes('SELECT count(*) = 3 FROM electric_cm_stat_consumers WHERE pid IS NOT NULL', 'three consumers after a reload');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE u (id int PRIMARY KEY)');
my $other = $stack->live_shape('u');
$stack->sql('INSERT INTO u SELECT generate_series(1, 1000)');
$stack->settle;
my ($equal, $entries) = $stack->replay_equals($other, 'u', ['id']);
ok($equal, 'one of them logs a new shape');
is($entries, 1000, '... nothing twice');
is($stack->sql('SELECT sum(shapes) FROM electric_cm_stat_consumers'), 8, 'each shape has one consumer');

$node->stop;
done_testing();
