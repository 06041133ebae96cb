# A shape does not wait for an autovacuum worker that analyzes its table, which
# takes as long as its cost limit makes it: it writes no rows.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => q{
autovacuum_naptime = '1 s'
autovacuum_analyze_threshold = 50
});
my $db = 'postgres';

$node->safe_psql($db, 'CREATE EXTENSION electric_cm');
ok(wait_active($node, $db), 'active');

# an index whose expression waits for whoever holds an advisory lock
$node->safe_psql($db, q{
	CREATE FUNCTION waits(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
		'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(42); RETURN $1; END';
	CREATE TABLE t (id int PRIMARY KEY) WITH (autovacuum_enabled = off);
	CREATE INDEX ON t (waits(id));
	INSERT INTO t SELECT generate_series(1, 1000);
	ALTER PUBLICATION electric_cm_publication ADD TABLE t});
my $holder = $node->background_psql($db);
$holder->query_safe('SELECT pg_advisory_lock(42)');
$node->safe_psql($db, 'ALTER TABLE t SET (autovacuum_enabled = on)');
my $analyzes = q{SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
	WHERE l.relation = 't'::regclass AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted
		AND a.backend_type = 'autovacuum worker' AND a.wait_event = 'advisory')};
ok(ElectricCM::poll($node, $db, $analyzes), 'autovacuum analyzes the table, and hangs');

my $handle = $node->safe_psql($db, q{SELECT electric_cm_create_shape('t')});
ok( ElectricCM::poll($node, $db, "SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'"),
	'a shape of it becomes live');
is($node->safe_psql($db, $analyzes), 't', '... while autovacuum still hangs');
$holder->quit;
$node->stop;
done_testing();
