# What changes shapes without a lock on their tables: tables that are published
# by way of an ancestor or a schema and are so no more; and transactions that
# are prepared, or wait for a standby, while shapes are created that they do
# not see.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_node wait_active becomes replay_equals);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = new_node('main', conf => "max_prepared_transactions = 5\nelectric_cm.status_check_interval = '1 s'\n");
my $pub = 'electric_cm_publication';

sub run_sql { return $node->safe_psql($db, join(";\n", @_)); }
sub shape { return run_sql("SELECT electric_cm_create_shape('$_[0]')"); }
sub is_live { return becomes($node, $db, "SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$_[0]'", $_[1]); }
sub live_shape { my $handle = shape(@_); is_live($handle, "a shape of $_[0]"); return $handle; }
sub exists_shape { return run_sql("SELECT count(*) FROM electric_cm_shapes WHERE handle = '$_[0]'"); }
sub replays
{
	my ($handle, $table, $what) = @_;
	my ($ok, $entries) = replay_equals($node, $db, $handle, $table, ['id']);
	ok($ok, "$what ($entries entries)");
	return;
}
# it waits, for just this, and is right afterwards
sub waits
{
	my ($handle, $whom) = @_;
	return becomes($node, $db, "SELECT waiting_for LIKE 'transactions that were writing to the table, or changing it:%$whom%' FROM electric_cm_shapes WHERE handle = '$handle'",
		"the shape waits for $whom");
}

run_sql('CREATE EXTENSION electric_cm');
wait_active($node, $db) or BAIL_OUT('no stack');

#
# A leaf that is published by way of others
#

sub partitions
{
	run_sql('DROP SCHEMA IF EXISTS s CASCADE', 'DROP SCHEMA IF EXISTS other CASCADE', 'CREATE SCHEMA s', 'CREATE SCHEMA other',
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
	run_sql('CREATE TABLE IF NOT EXISTS present (id int PRIMARY KEY)');
	my $bystander = live_shape('present');
	if (defined $published) { live_shape($published); }
	else { run_sql("ALTER PUBLICATION $pub ADD TABLES IN SCHEMA s"); }
	my $leaf = live_shape('other.leaf');
	run_sql('INSERT INTO s.r VALUES (1)', 'SELECT electric_cm_await_flushed()');
	replays($leaf, 'other.leaf', 'before it');
	run_sql(@commands);
	is(exists_shape($leaf), 0, "$what: its shape is gone");
	is(exists_shape($bystander), 1, '... and no other');
	run_sql('INSERT INTO other.leaf VALUES (2)');
	my $again = live_shape('other.leaf');
	run_sql('INSERT INTO other.leaf VALUES (3)', 'SELECT electric_cm_await_flushed()');
	replays($again, 'other.leaf', 'the next one is right');
	run_sql("ALTER PUBLICATION $pub DROP TABLES IN SCHEMA s") if !defined $published && $commands[0] !~ /DROP/;
}

# its end in the middle: the parent has lost the rows already
partitions();
my $root = live_shape('s.r');
my $leaf = live_shape('other.leaf');
my $reader = $node->background_psql($db, on_error_stop => 1);
$reader->query_safe('BEGIN; SELECT * FROM s.r');
my $detach = $node->background_psql($db, on_error_stop => 0);
$detach->{stdin} .= "ALTER TABLE s.r DETACH PARTITION s.m CONCURRENTLY;\n";
$detach->{run}->pump_nb;
becomes($node, $db, 'SELECT count(*) = 1 FROM pg_inherits WHERE inhdetachpending', 'a partition is being detached');
becomes($node, $db, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE s.r DETACH%' AND wait_event_type = 'Lock'", 'that is cancelled');
is(exists_shape($_->[0]), 0, "$_->[1] shape is gone") for [ $root, "the root's" ], [ $leaf, "the leaf's" ];
$reader->query_safe('COMMIT');
$reader->quit;
$detach->quit;
run_sql('ALTER TABLE s.r DETACH PARTITION s.m FINALIZE');

#
# Transactions that are prepared
#

run_sql('CREATE SCHEMA k', q{CREATE TYPE feeling AS ENUM ('a', 'b')}, 'CREATE DOMAIN of_it AS feeling[]',
	'CREATE TABLE k.e (id int PRIMARY KEY, e feeling, l of_it)', q{INSERT INTO k.e VALUES (1, 'a', '{a,b}')},
	'CREATE TABLE k.p (id int PRIMARY KEY, v int)', 'INSERT INTO k.p VALUES (1, 1), (2, 2)');
sub prepared { run_sql('BEGIN', @_, q{PREPARE TRANSACTION 'p'}); return; }

prepared(q{ALTER TYPE feeling RENAME VALUE 'a' TO 'z'});
my $bystander = live_shape('k.p');
my $enum = shape('k.e');
waits($enum, 'prepared transaction');
run_sql(q{COMMIT PREPARED 'p'});
is_live($enum, 'the name of a value has changed');
run_sql('UPDATE k.e SET id = 2', 'SELECT electric_cm_await_flushed()');
replays($enum, 'k.e', '... and the log has the new one');

# before that, for some servers lock the schema; who asks for a shape that it
# has deleted waits for it
run_sql('CREATE TABLE k.q (id int PRIMARY KEY)');
prepared('ALTER SCHEMA k RENAME TO k2');
my $other = live_shape('other.leaf');
my $renamed = shape('k.q');
waits($renamed, 'prepared transaction');
run_sql(q{COMMIT PREPARED 'p'});
becomes($node, $db, "SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle IN ('$renamed', '$enum', '$bystander')", 'the schema has another name: its shapes are gone');
is(exists_shape($other), 1, '... and no other');
$renamed = live_shape('k2.q');

prepared("ALTER PUBLICATION $pub SET (publish = 'insert')");
run_sql('CREATE TABLE fresh (id int PRIMARY KEY, v int)', 'INSERT INTO fresh VALUES (1, 1), (2, 2)');
my $fresh = shape('fresh');
waits($fresh, 'prepared transaction');
run_sql(q{COMMIT PREPARED 'p'});
run_sql('UPDATE fresh SET v = 3', 'DELETE FROM fresh WHERE id = 2');
becomes($node, $db, q{SELECT electric_cm_status() = 'failed'}, 'what is published lacks something: failed');
run_sql("ALTER PUBLICATION $pub SET (publish = 'insert, update, delete, truncate')");
wait_active($node, $db);
$fresh = live_shape('fresh') unless exists_shape($fresh);
is_live($fresh, 'it is complete again');
run_sql('INSERT INTO fresh VALUES (4)', 'SELECT electric_cm_await_flushed()');
replays($fresh, 'fresh', '... and so is the shape');

#
# A commit that waits for a standby: done, and not seen
#

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
my $commit = $node->background_psql($db, on_error_stop => 1);
$commit->{stdin} .= qq{ALTER TYPE feeling RENAME VALUE 'b' TO 'y';\n};
$commit->{run}->pump_nb;
becomes($node, $db, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'ALTER TYPE%'}, 'a commit waits for a standby');
$enum = run_sql('SET synchronous_commit = local', q{SELECT electric_cm_create_shape('k2.e')});
waits($enum, 'PID');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
$commit->quit;
is_live($enum, 'it is over');
run_sql('SELECT electric_cm_await_flushed()');
replays($enum, 'k2.e', 'the log has what it has made of the values');

done_testing();
