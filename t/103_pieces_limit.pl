# A table that is larger than the WAL that the slot may retain becomes a shape: reading
# it waits for the slot, and never costs it.  (Nobody else writes much: no autovacuum.)
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main',
	init => { extra => ['--wal-segsize=1'] },
	conf => q{
max_slot_wal_keep_size = '16 MB'
min_wal_size = '4 MB'
max_wal_size = '16 MB'
electric_cm.retained_wal_limit = '24 MB'
electric_cm.wal_report_interval = '1 s'
autovacuum = off
});
my $node = $stack->node;

# The planner does not see how large values are that are TOASTed
$stack->sql('CREATE TABLE wide (id int PRIMARY KEY, t text)', 'ALTER TABLE wide ALTER t SET STORAGE EXTERNAL',
	q{INSERT INTO wide SELECT i, repeat(md5(i::text), 1000) FROM generate_series(1, 600) i}, 'ANALYZE wide');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)', 'CREATE TABLE small (id int PRIMARY KEY)',
	'CREATE TABLE other (id int)',
	q{INSERT INTO t SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 60000) i}, 'VACUUM ANALYZE t', 'CHECKPOINT');
$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
my $first = $stack->live_shape('small');
my $wide = $stack->live_shape('wide');

my $large = $stack->shape('t');
$stack->becomes('SELECT count(*) > 1 FROM _electric_cm.reading_piece', 'a table of 60 MB is read in pieces');

# small before large
my $second = $stack->live_shape('small', where => 'id > 0');
is($stack->state_of($large), 'creating', 'a small one does not wait for it');

# Somebody's transaction holds the slot
my $writer = $node->background_psql('postgres');
$writer->query_safe('BEGIN; INSERT INTO other VALUES (1)');
$stack->becomes("SELECT waiting_for ~ 'the replication slot, which retains too much WAL' FROM electric_cm_shapes WHERE handle = '$large'",
	'reading waits while somebody holds the slot, and says so');
is($stack->sql('SELECT wal_status FROM pg_replication_slots') =~ /reserved|extended/ ? 1 : 0, 1, 'the slot is not near its end');
$writer->query_safe('COMMIT');
$writer->quit;

my $progress = $stack->sql("SELECT command, phase, rows_done > 0 AND rows_done < rows_total AND bytes_done > 0 AND pieces > 0
	AND remaining > '0' FROM electric_cm_stat_progress WHERE handle = '$large'");
is($progress, 'create|reading|t', 'electric_cm_stat_progress says how far it is');

is($stack->sql('CREATE ROLE plain', 'CREATE ROLE watcher IN ROLE pg_monitor',
	'SET ROLE plain', 'SELECT count(*) FROM electric_cm_stat_progress',
	'SET ROLE watcher', "SELECT count(*) FROM electric_cm_stat_progress WHERE relation = 't'::regclass"),
	"0\n1", '... to whom it may concern');

$stack->sql("UPDATE t SET t = 'changed' WHERE id % 10000 = 0");
$stack->is_live($large, 'it is live');
is($stack->sql("SELECT max(generation) FROM _electric_cm.shape"), '1', 'at the first attempt');
is($stack->sql("SELECT count(*) FROM electric_cm_shapes WHERE state = 'live'"), '4', 'no shape was lost');
is($stack->sql("SELECT count(*) FROM electric_cm_events WHERE event ~ 'slot_(lost|dropped|recreated)|shapes_resyncing'"), '0',
	'nor the slot');
is($stack->sql('SELECT count(*) FROM electric_cm_stat_progress'), '0', 'and nothing is in progress');

# Comparing writes WAL as well: hint bits
$stack->sql('ALTER SYSTEM SET max_slot_wal_keep_size = -1', 'ALTER SYSTEM SET "electric_cm.retained_wal_limit" = -1',
	'SELECT pg_reload_conf()');
$stack->becomes(q{SELECT setting = '-1' FROM electric_cm_options WHERE name = 'electric_cm.retained_wal_limit'});
$stack->replays($large, 't', 'its log is right');
$stack->replays($wide, 'wide', '... and that of large values');
done_testing();
