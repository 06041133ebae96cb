# A log is folded that is larger than the WAL that the slot may retain: the fold waits
# for the slot, and never costs it.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main',
	init => { extra => ['--wal-segsize=1'] },
	conf => q{
min_wal_size = '4 MB'
max_wal_size = '16 MB'
electric_cm.wal_report_interval = '1 s'
maintenance_work_mem = '2 MB'
autovacuum = off
});
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, t text)', 'CREATE TABLE other (id int)',
	'ALTER TABLE t ALTER t SET STORAGE PLAIN');
ok($stack->active, 'active') or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');
my $id = $stack->sql('SELECT id FROM _electric_cm.shape');
my $value = q{(SELECT string_agg(md5(i || ' ' || j || random()), '') FROM generate_series(1, 32) j)};
for my $part (0 .. 2)
{
	my $rows = "generate_series($part * 5000 + 1, $part * 5000 + 5000) i";
	$stack->sql("INSERT INTO t SELECT i, $value FROM $rows", "UPDATE t SET t = $value FROM $rows WHERE id = i");
	$stack->settle;
}
cmp_ok($stack->sql('SELECT log_bytes FROM electric_cm_shapes') / 1048576, '>', 28, 'a log of 28 MB');

$stack->sql('CHECKPOINT', q{ALTER SYSTEM SET max_slot_wal_keep_size = '8 MB'}, 'SELECT pg_reload_conf()');
$stack->becomes('SELECT safe_wal_size > 7000000 FROM electric_cm_slots', 'the slot may retain 8 MB');

my $writer = $node->background_psql('postgres');
$writer->query_safe('BEGIN; INSERT INTO other VALUES (1)');
my $fold = $node->background_psql('postgres');
$fold->query_until(qr/begins/, "\\echo begins\nCALL _electric_cm.fold_shape($id, 1000, NULL, NULL);\n\\echo ends\n");
$stack->becomes(q{SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE query LIKE 'CALL _electric_cm.fold_shape%'},
	'somebody holds the slot, and the fold waits');
is($stack->sql('SELECT wal_status FROM pg_replication_slots') =~ /reserved|extended/ ? 1 : 0, 1, 'the slot is not near its end');
is($stack->sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL _electric_cm.fold_shape%' AND backend_xmin IS NOT NULL}), '0',
	'meanwhile it holds nothing itself');
$writer->query_safe('COMMIT');
$writer->quit;
$stack->becomes("SELECT lsn > '0/0' FROM _electric_cm.shape_base WHERE shape = $id", 'then the log is folded');
$fold->query_until(qr/ends/, '');
$fold->quit;
is($stack->sql("SELECT count(*) FROM electric_cm_events WHERE event ~ 'slot_(lost|dropped|recreated)|shapes_resyncing'"), '0', 'the slot is the same');
$stack->replays($handle, 't', 'the log is right');
$node->stop;
done_testing();
