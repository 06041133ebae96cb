# What changes shapes without a lock on their tables: tables that are published
# by way of an ancestor or a schema and are so no more, whose shapes are resynced; and
# transactions that are prepared, or wait for a standby, while shapes are created that they
# do not see.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "max_prepared_transactions = 5\nelectric_cm.status_check_interval = '1 s'\n");
my $node = $stack->node;
my $pub = 'electric_cm_publication';

# it waits, for just this, and is right afterwards
sub waits
{
	my ($handle, $whom) = @_;
	return $stack->becomes("SELECT waiting_for LIKE 'transactions that were writing to the table, or changing it:%$whom%' FROM electric_cm_shapes WHERE handle = '$handle'",
		"the shape waits for $whom");
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active or BAIL_OUT('no stack');

#
# A leaf that is published by way of others
#

sub partitions
{
	$stack->sql('DROP SCHEMA IF EXISTS s CASCADE', 'DROP SCHEMA IF EXISTS other CASCADE', 'CREATE SCHEMA s', 'CREATE SCHEMA other',
		'CREATE TABLE s.r (id int PRIMARY KEY) PARTITION BY RANGE (id)',
		'CREATE TABLE s.m PARTITION OF s.r FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)',
		'CREATE TABLE other.leaf PARTITION OF s.m FOR VALUES FROM (0) TO (100)');
	return;
}

for my $case (
	[ 'its ancestor is detached', 's.r', 'ALTER TABLE s.r DETACH PARTITION s.m' ],
	[ 'its ancestor is detached CONCURRENTLY', 's.r', 'ALTER TABLE s.r DETACH PARTITION s.m CONCURRENTLY' ],
	[ 'the root leaves the publication', 's.r', "ALTER PUBLICATION $pub DROP TABLE s.r" ],
	[ 'the root is replaced in the publication', 's.r', "ALTER PUBLICATION $pub SET TABLE ONLY present" ],
	[ 'the schema leaves the publication', undef, "ALTER PUBLICATION $pub DROP TABLES IN SCHEMA s" ],
	[ 'its ancestors leave the published schema', undef, 'BEGIN', 'ALTER TABLE s.r SET SCHEMA other', 'ALTER TABLE s.m SET SCHEMA other', 'COMMIT' ])
{
	my ($what, $published, @commands) = @$case;

	partitions();
	$stack->sql('CREATE TABLE IF NOT EXISTS present (id int PRIMARY KEY)');
	my $bystander = $stack->live_shape('present');
	if (defined $published) { $stack->live_shape($published); }
	else { $stack->sql("ALTER PUBLICATION $pub ADD TABLES IN SCHEMA s"); }
	my $leaf = $stack->live_shape('other.leaf');
	$stack->sql('INSERT INTO s.r VALUES (1)', 'SELECT electric_cm_await_flushed()');
	$stack->replays($leaf, 'other.leaf', 'before it');
	my $reader = $stack->reader($leaf);
	# what the stream lacks: the table is published again, by its own name, but a moment later
	$stack->sql(@commands, 'INSERT INTO other.leaf VALUES (2)', 'DELETE FROM other.leaf WHERE id = 1');
	is($stack->gaps($leaf), 1, "$what: its shape is resynced");
	is($stack->gaps($bystander), 0, '... and no other');
	$stack->goes_on($reader, 'other.leaf', $what);
	$stack->sql('INSERT INTO other.leaf VALUES (3)', 'UPDATE other.leaf SET id = 4 WHERE id = 2');
	$stack->replays($leaf, 'other.leaf', '... and it follows the table again');
	$stack->sql("ALTER PUBLICATION $pub DROP TABLES IN SCHEMA s") if !defined $published && $commands[0] !~ /DROP/;
}

# the walsender knows of a leaf that it is not published, and the server does not tell it
# that an ancestor has come into a published schema
partitions();
$stack->sql('ALTER TABLE s.r SET SCHEMA other', "ALTER PUBLICATION $pub ADD TABLES IN SCHEMA s", 'ALTER TABLE s.m SET SCHEMA other',
	'INSERT INTO other.leaf VALUES (1)');
$stack->settle;
$stack->sql('ALTER TABLE other.r SET SCHEMA s');
my $below = $stack->live_shape('other.leaf');
$stack->sql('INSERT INTO other.leaf VALUES (2)');
$stack->replays($below, 'other.leaf', 'an ancestor comes into the published schema: changes of its leaf are in the stream');
is($stack->sql(q{SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'other.leaf'::regclass}), 0, '... by way of the schema');

# its end in the middle: the parent has lost the rows already
partitions();
my $root = $stack->live_shape('s.r');
my $leaf = $stack->live_shape('other.leaf');
my $reader = $node->background_psql($db, on_error_stop => 1);
$reader->query_safe('BEGIN; SELECT * FROM s.r');
my $detach = $node->background_psql($db, on_error_stop => 0);
$detach->{stdin} .= "ALTER TABLE s.r DETACH PARTITION s.m CONCURRENTLY;\n";
$detach->{run}->pump_nb;
$stack->becomes('SELECT count(*) = 1 FROM pg_inherits WHERE inhdetachpending', 'a partition is being detached');
$stack->sql('INSERT INTO other.leaf VALUES (1), (2)');
$stack->becomes("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE s.r DETACH%' AND wait_event_type = 'Lock'", 'that is cancelled');
for ([ $root, "the root's", 's.r' ], [ $leaf, "the leaf's", 'other.leaf' ])
{
	my ($handle, $whose, $table) = @$_;
	cmp_ok($stack->gaps($handle), '>', 0, "$whose shape is resynced");
	$stack->is_live($handle);
	$stack->replays($handle, $table, '... and is right');
}
$reader->query_safe('COMMIT');
$reader->quit;
$detach->quit;
$stack->sql('INSERT INTO other.leaf VALUES (3)', 'ALTER TABLE s.r DETACH PARTITION s.m FINALIZE', 'INSERT INTO other.leaf VALUES (4)');
$stack->replays($root, 's.r', 'the rest of it changes nothing of the one');
$stack->replays($leaf, 'other.leaf', '... or the other');

#
# Transactions that are prepared
#

$stack->sql('CREATE SCHEMA k', q{CREATE TYPE feeling AS ENUM ('a', 'b')}, 'CREATE DOMAIN of_it AS feeling[]',
	'CREATE TABLE k.e (id int PRIMARY KEY, e feeling, l of_it)', q{INSERT INTO k.e VALUES (1, 'a', '{a,b}')},
	'CREATE TABLE k.p (id int PRIMARY KEY, v int)', 'INSERT INTO k.p VALUES (1, 1), (2, 2)');
sub prepared { $stack->sql('BEGIN', @_, q{PREPARE TRANSACTION 'p'}); return; }

prepared(q{ALTER TYPE feeling RENAME VALUE 'a' TO 'z'});
my $bystander = $stack->live_shape('k.p');
my $enum = $stack->shape('k.e');
waits($enum, 'prepared transaction');
$stack->sql(q{COMMIT PREPARED 'p'});
$stack->is_live($enum, 'the name of a value has changed');
$stack->sql('UPDATE k.e SET id = 2', 'SELECT electric_cm_await_flushed()');
$stack->replays($enum, 'k.e', '... and the log has the new one');

# before that, for some servers lock the schema; who asks for a shape that it
# has deleted waits for it
$stack->sql('CREATE TABLE k.q (id int PRIMARY KEY)');
prepared('ALTER SCHEMA k RENAME TO k2');
my $other = $stack->live_shape('other.leaf');
my $renamed = $stack->shape('k.q');
waits($renamed, 'prepared transaction');
$stack->sql(q{COMMIT PREPARED 'p'});
$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle IN ('$renamed', '$enum', '$bystander')", 'the schema has another name: its shapes are gone');
is($stack->exists_shape($other), 1, '... and no other');
$renamed = $stack->live_shape('k2.q');

# whoever adds a table to the publication has it locked
$stack->sql('CREATE TABLE by_hand (id int PRIMARY KEY)', 'CREATE TABLE late (id int PRIMARY KEY)');
prepared("ALTER PUBLICATION $pub ADD TABLE by_hand");
my $late = $stack->shape('late');
$stack->becomes("SELECT waiting_for ~ '^publication \"$pub\" is locked by prepared transaction [0-9]+\$' FROM electric_cm_shapes WHERE handle = '$late'",
	'a shape waits for who has locked the publication, and says so');
$stack->sql(q{COMMIT PREPARED 'p'});
$stack->is_live($late, '... until it is unlocked');

prepared("ALTER PUBLICATION $pub SET (publish = 'insert')");
$stack->sql('CREATE TABLE fresh (id int PRIMARY KEY, v int)', 'INSERT INTO fresh VALUES (1, 1), (2, 2)');
my $fresh = $stack->shape('fresh');
# from 19 on it has locked the publication
$stack->becomes("SELECT waiting_for ~ '^(transactions that were writing to the table, or changing it:|publication \"$pub\" is locked by) prepared transaction [0-9]+\$' FROM electric_cm_shapes WHERE handle = '$fresh'",
	'the shape waits for the prepared transaction');
$stack->sql(q{COMMIT PREPARED 'p'});
$stack->sql('UPDATE fresh SET v = 3', 'DELETE FROM fresh WHERE id = 2');
$stack->becomes(q{SELECT electric_cm_status() = 'failed'}, 'what is published lacks something: failed');
$stack->sql("ALTER PUBLICATION $pub SET (publish = 'insert, update, delete, truncate')");
$stack->active;
$stack->is_live($fresh, 'it is complete again');
$stack->sql('INSERT INTO fresh VALUES (4)', 'SELECT electric_cm_await_flushed()');
$stack->replays($fresh, 'fresh', '... and so is the shape');

#
# A commit that waits for a standby: done, and not seen
#

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
my $commit = $node->background_psql($db, on_error_stop => 1);
$commit->{stdin} .= qq{ALTER TYPE feeling RENAME VALUE 'b' TO 'y';\n};
$commit->{run}->pump_nb;
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'ALTER TYPE%'}, 'a commit waits for a standby');
$enum = $stack->sql('SET synchronous_commit = local', q{SELECT electric_cm_create_shape('k2.e')});
waits($enum, 'PID');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
$commit->quit;
$stack->is_live($enum, 'it is over');
$stack->sql('SELECT electric_cm_await_flushed()');
$stack->replays($enum, 'k2.e', 'the log has what it has made of the values');

done_testing();
