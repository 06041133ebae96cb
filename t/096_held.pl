# A transaction that has changed a type, or what is published, and that stays
# prepared, holds up shapes that it concerns, and no others; so do locks.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "autovacuum = off\nelectric_cm.status_check_interval = '1 s'\n");
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE SCHEMA moved',
	(map { "CREATE TYPE $_ AS ENUM ('a', 'b')" } qw(mine theirs)),
	'CREATE DOMAIN mine_domain AS mine', 'CREATE TYPE mine_range AS RANGE (subtype = mine)', 'CREATE TYPE mine_pair AS (x int, y mine_range)',
	'CREATE TABLE plain (id int PRIMARY KEY)',
	(map { ("CREATE TABLE with_$_ (id int PRIMARY KEY, v $_)", "INSERT INTO with_$_ VALUES (1)") } qw(mine theirs mine_domain mine_range mine_pair)),
	'CREATE TABLE with_array (id int PRIMARY KEY, v mine_pair[])', 'INSERT INTO with_array VALUES (1)',
	(map { ("CREATE TABLE $_ (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)", "CREATE TABLE ${_}_mid PARTITION OF $_ FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)",
		"CREATE TABLE ${_}_leaf PARTITION OF ${_}_mid FOR VALUES FROM (0) TO (50)", "INSERT INTO $_ VALUES (1, 'a')") } qw(root other)));
$stack->active or BAIL_OUT('no stack');

for my $case (
	[ 'a type', q{ALTER TYPE mine RENAME VALUE 'a' TO 'z'}, [ 'plain', 'with_theirs', 'other_leaf' ], [ map { "with_$_" } qw(mine mine_domain mine_range mine_pair array) ] ],
	[ 'many types', q{DO $$ BEGIN FOR i IN 1 .. 1001 LOOP EXECUTE format('CREATE TYPE many_%s AS (a int)', i); EXECUTE format('ALTER TYPE many_%s ADD ATTRIBUTE b int', i); END LOOP; END $$},
		['other'], ['with_theirs'] ],
	[ 'a root of partitions', 'ALTER TABLE root SET SCHEMA moved', [ 'plain', 'with_theirs', 'other', 'other_leaf' ], ['root_leaf'] ])
{
	my ($what, $command, $free, $held) = @$case;

	$stack->sql('SELECT count(electric_cm_drop_shape(handle)) FROM electric_cm_shapes');
	$stack->sql('BEGIN', $command, q{PREPARE TRANSACTION 'p'});
	my %handle = map { $_ => $stack->shape($_) } @$free, @$held;
	$stack->becomes("SELECT waiting_for ~ 'prepared transaction' FROM electric_cm_shapes WHERE handle = '$handle{$_}'", "$what changed: a shape of $_ waits") for @$held;
	$stack->is_live($handle{$_}, "... one of $_ does not") for @$free;
	$stack->sql(q{COMMIT PREPARED 'p'});
	for my $table (@$held)
	{
		$stack->is_live($handle{$table}, "... it is over: $table");
		$stack->sql("INSERT INTO $table (id) VALUES (2)");
		$stack->replays($handle{$table}, $table, '... is right');
	}
}

# a schema that somebody else's publication has
$stack->sql('CREATE SCHEMA s', 'CREATE TABLE s.t (id int PRIMARY KEY)', 'CREATE PUBLICATION elsewhere FOR TABLES IN SCHEMA s');
my $dropper = $node->background_psql($db, on_error_stop => 1);
$dropper->query_safe('SET client_min_messages = warning; BEGIN; DROP SCHEMA s CASCADE');
$stack->sql('DROP TABLE plain', 'CREATE TABLE plain (id int PRIMARY KEY)');
$stack->is_live($stack->shape('plain'), 'a schema being dropped holds up no shape, be it published elsewhere');
$dropper->quit;

# tables that their owner has locked, more than the pool has sessions
$stack->sql((map { "CREATE TABLE locked_$_ (id int PRIMARY KEY)" } 1 .. 6), 'CREATE TABLE free (id int PRIMARY KEY)');
my $locker = $node->background_psql($db, on_error_stop => 1);
$locker->query_safe('BEGIN; LOCK TABLE ' . join(', ', map { "locked_$_" } 1 .. 6) . ' IN EXCLUSIVE MODE');
my @locked = map { $stack->shape("locked_$_") } 1 .. 6;
my $began = time;
$stack->is_live($stack->shape('free'), 'tables that somebody has locked hold up no shape of another one');
cmp_ok(time - $began, '<', 20, '... for the time that a lock may be waited for');
$locker->query_safe('COMMIT');
$locker->quit;
$stack->is_live($_, '... and have theirs when they are free') for @locked;

# A command that has a partitioned table, and comes to its partitions, while the
# reading waits for the table: that would be a deadlock if the reading had them.
# The command gets the table when a writer ends whom the shape has waited for.
my $writer = $node->background_psql($db, on_error_stop => 1);
$writer->query_safe('BEGIN; INSERT INTO other VALUES (3)');
my $of_locked = $stack->shape('other', columns => ['id']);
$stack->becomes("SELECT waiting_for ~ 'writing to the table' FROM electric_cm_shapes WHERE handle = '$of_locked'", 'a shape of partitions waits for a writer');
$locker = $node->background_psql($db, on_error_stop => 0);
$locker->query_until(qr/begun/, <<'SQL');
\echo begun
BEGIN;
LOCK TABLE ONLY other IN ACCESS EXCLUSIVE MODE;
DO $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE NOT granted AND relation = 'other'::regclass AND application_name LIKE 'electric_cm pool%')
	LOOP
		PERFORM pg_sleep(0.01), pg_stat_clear_snapshot();
	END LOOP;
	LOCK TABLE other_leaf IN ACCESS EXCLUSIVE MODE NOWAIT;
END $$;
SQL
$stack->becomes(q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'other'::regclass)}, '... as does who is to alter it');
$writer->query_safe('COMMIT');
$writer->quit;
is($locker->query('SELECT count(*) FROM other_leaf'), '2', 'a command that has the table gets its partitions, while reading waits for it');
$locker->quit;
$stack->is_live($of_locked, '... and goes on when it has ended');
$stack->replays($of_locked, 'other', '... and is right', columns => ['id']);

$node->stop;
done_testing();
