# Shutdowns are not held up; other people's publications don't see what is ours.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('main', conf => "electric_cm.pool_idle_timeout = '1 s'\n");
my $db = 'postgres';

sub value { return $node->safe_psql($db, $_[0]); }

sub stop_within
{
	my ($seconds, $mode, $what) = @_;
	my $start = time;
	my $stopped = $node->stop($mode, fail_ok => 1);
	my $took = sprintf '%.1f', time - $start;
	ok($stopped && $took < $seconds, "$what: $mode shutdown within $seconds s (took $took s)");
	$node->stop('immediate') unless $stopped;
	$node->start;
	ok(wait_active($node, $db), "$what: active again");
	return;
}

value('CREATE EXTENSION electric_cm');
ok(wait_active($node, $db), 'active');
value('CREATE TABLE t (id int PRIMARY KEY, t text)');
my $handle = value("SELECT electric_cm_create_shape('t')");
value("SELECT count(*) FROM electric_cm_shape_log('$handle')");
value("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i");
value('SELECT electric_cm_await_flushed()');

stop_within(3, 'fast', 'active');
stop_within(5, 'smart', 'active');

# ... with a walsender that has a lot to do
value("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(10000, 200000) i");
stop_within(4, 'fast', 'busy');
value('SELECT electric_cm_await_flushed()');
my ($ok, $entries) = replay_equals($node, $db, $handle, 't', ['id']);
ok($ok, "replay equals table ($entries entries)");

# ... while it waits for the lock, which nobody who holds it can hold up
my $holder = $node->background_psql($db, on_error_stop => 0);
$node->psql($db, 'SELECT electric_cm_stop()');
$holder->query_safe("SELECT pg_advisory_lock(hashtext('electric_cm_$db'))");
value('SELECT electric_cm_start()');
ok($node->poll_query_until($db, 'SELECT electric_cm_status()', 'waiting'), 'waits for the lock');
eval { stop_within(3, 'fast', 'waiting'); };
eval { $holder->quit; };

# ... while it waits for a slot to be created
$node->psql($db, 'SELECT electric_cm_stop(drop_slot => true)');
my $writer = $node->background_psql($db, on_error_stop => 0);
$writer->query_safe('BEGIN');
$writer->query_safe('CREATE TABLE pending ()');
value('SELECT electric_cm_start()');
ok( $node->poll_query_until($db, 'SELECT step FROM electric_cm_stat_manager', 'create_slot'),
	'waits for the creation of the slot');
eval { stop_within(3, 'fast', 'creating a slot'); };
eval { $writer->quit; };

# Other people's publications.  Entries of the log are not decoded at all.
$handle = value("SELECT electric_cm_create_shape('t')");
value("SELECT count(*) FROM electric_cm_shape_log('$handle', '-1', 1)");
value('CREATE PUBLICATION theirs FOR ALL TABLES');
value(q{SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')});
value("UPDATE t SET t = 'y' WHERE id <= 1000");
value('SELECT electric_cm_await_flushed()');
my $other = value("SELECT electric_cm_create_shape('t', columns => ARRAY['id'])");
value("SELECT count(*) FROM electric_cm_shape_log('$other')");
value("SELECT electric_cm_drop_shape('$other')");
value('SELECT electric_cm_await_flushed()');
my $peek = q{pg_logical_slot_peek_binary_changes('theirs', NULL, NULL,
	'proto_version', '1', 'publication_names', 'theirs')};
is( value("SELECT count(*) FROM $peek
		WHERE get_byte(data, 0) = ascii('U') AND substring(data, 2, 4) = int4send('t'::regclass::oid::int)"),
	1000, 'their slot has their changes');
is( value("SELECT count(*) FROM $peek WHERE position('shape_log'::bytea IN data) > 0"),
	0, 'and nothing of our log');
is( value("SELECT count(*) FROM $peek WHERE position('_electric_cm'::bytea IN data) > 0"),
	0, 'and nothing else of ours');
value(q{SELECT pg_drop_replication_slot('theirs')});
value('DROP PUBLICATION theirs');

$node->stop;
done_testing();
