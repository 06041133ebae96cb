# Shutdowns are not held up; other people's publications don't see what is ours.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $stack = new_stack('main', conf => "electric_cm.pool_idle_timeout = '1 s'\n");
my $node = $stack->node;
my $db = 'postgres';

sub stop_within
{
	my ($seconds, $mode, $what) = @_;
	my $start = time;
	my $stopped = $node->stop($mode, fail_ok => 1);
	my $took = sprintf '%.1f', time - $start;
	ok($stopped && $took < $seconds, "$what: $mode shutdown within $seconds s (took $took s)");
	$node->stop('immediate') unless $stopped;
	$node->start;
	ok($stack->active, "$what: active again");
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
my $handle = $stack->sql("SELECT electric_cm_create_shape('t')");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
$stack->sql("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i");
$stack->sql('SELECT electric_cm_await_flushed()');

stop_within(3, 'fast', 'active');
stop_within(5, 'smart', 'active');

# ... with a walsender that has a lot to do
$stack->sql("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(10000, 200000) i");
stop_within(4, 'fast', 'busy');
$stack->sql('SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "replay equals table ($entries entries)");

# ... while it waits for the lock, which nobody who holds it can hold up
my $holder = $node->background_psql($db, on_error_stop => 0);
$node->psql($db, 'SELECT electric_cm_stop()');
$holder->query_safe("SELECT pg_advisory_lock(hashtext('electric_cm_$db'))");
$stack->sql('SELECT electric_cm_start()');
ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', 'waiting'), 'waits for the lock');
eval { stop_within(3, 'fast', 'waiting'); };
eval { $holder->quit; };

# ... while it waits for a slot to be created
$node->psql($db, 'SELECT electric_cm_stop(drop_slot => true)');
my $writer = $node->background_psql($db, on_error_stop => 0);
$writer->query_safe('BEGIN');
$writer->query_safe('CREATE TABLE pending ()');
$stack->sql('SELECT electric_cm_start()');
ok( ElectricCM::poll($node, $db, 'SELECT step FROM electric_cm_stat_manager', 'create_slot'),
	'waits for the creation of the slot');
eval { stop_within(3, 'fast', 'creating a slot'); };
eval { $writer->quit; };

# Other people's publications.  Entries of the log are not decoded at all.
$handle = $stack->sql("SELECT electric_cm_create_shape('t')");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle', '-1', 1)");
$stack->sql('CREATE PUBLICATION theirs FOR ALL TABLES');
$stack->sql(q{SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')});
$stack->sql("UPDATE t SET t = 'y' WHERE id <= 1000");
$stack->sql('SELECT electric_cm_await_flushed()');
my $other = $stack->sql("SELECT electric_cm_create_shape('t', columns => ARRAY['id'])");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$other')");
$stack->sql("SELECT electric_cm_drop_shape('$other')");
$stack->sql('SELECT electric_cm_await_flushed()');
my $peek = q{pg_logical_slot_peek_binary_changes('theirs', NULL, NULL,
	'proto_version', '1', 'publication_names', 'theirs')};
is( $stack->sql("SELECT count(*) FROM $peek
		WHERE get_byte(data, 0) = ascii('U') AND substring(data, 2, 4) = int4send('t'::regclass::oid::int)"),
	1000, 'their slot has their changes');
is( $stack->sql("SELECT count(*) FROM $peek WHERE position('shape_log'::bytea IN data) > 0"),
	0, 'and nothing of our log');
is( $stack->sql("SELECT count(*) FROM $peek WHERE position('_electric_cm'::bytea IN data) > 0"),
	0, 'and nothing else of ours');
$stack->sql(q{SELECT pg_drop_replication_slot('theirs')});
$stack->sql('DROP PUBLICATION theirs');

$node->stop;
done_testing();
