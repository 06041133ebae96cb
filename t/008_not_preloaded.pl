# Without shared_preload_libraries: the extension can be created (a dump can be
# restored), and everything else says what to do.
use strict;
use warnings;

use ElectricCM qw(new_node server_major wait_active);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', preload => 0, conf => "wal_level = replica\n");
my $db = 'postgres';

my ($rc, $out, $err) = $node->psql($db, 'CREATE EXTENSION electric_cm');
is($rc, 0, 'CREATE EXTENSION works');
like($err, qr/WARNING:.*shared_preload_libraries/, 'with a warning');
like($err, qr/^shared_preload_libraries = 'electric_cm'$/m, '... that has the line to add');
my $wal_level = server_major($node) < 19 ? qr/^wal_level = logical$/m : qr/\A(?!.*wal_level)/s;
like($err, $wal_level, '... and that about wal_level, before 19');

$node->safe_psql($db, 'CREATE TABLE t (id int PRIMARY KEY)');
for my $call (
	'electric_cm_status()', 'electric_cm_await_active()',
	'electric_cm_pg_version()', 'electric_cm_pg_info()',
	'electric_cm_exclusive_connection_lock_acquired()',
	'electric_cm_report_retained_wal_size()',
	'electric_cm_await_flushed()', 'electric_cm_start()',
	'electric_cm_stop()', 'electric_cm_stop(drop_slot => true)',
	'electric_cm_restart()', 'electric_cm_drop_replication_slot_on_stop()',
	q{electric_cm_create_shape('t')}, q{electric_cm_drop_shape('x')},
	q{electric_cm_shape_log('x')})
{
	($rc, $out, $err) = $node->psql($db, "\\set VERBOSITY verbose\nSELECT $call");
	isnt($rc, 0, "$call fails");
	like($err, qr/55000/, "... with 55000");
	like($err, qr/shared_preload_libraries = 'electric_cm'/, '... and the first line to add');
	like($err, $wal_level, '... and the second');
}
for my $view (qw(stat_manager stat_connections stat_replication stat_consumers stat_waiters events options))
{
	($rc, $out, $err) = $node->psql($db, "SELECT * FROM electric_cm_$view");
	like($err, qr/shared_preload_libraries/, "electric_cm_$view says so, too");
}
is($node->safe_psql($db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'electric%'}),
	0, 'nothing runs');

# Others that are preloaded already stay in the line
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'auto_explain'");
$node->restart;
SKIP:
{
	skip 'no auto_explain', 1
	  unless $node->safe_psql($db, 'SHOW shared_preload_libraries') eq 'auto_explain';
	($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_status()');
	like($err, qr/shared_preload_libraries = 'auto_explain,\s?electric_cm'/, 'the line to add keeps what is there');
}

# DDL and dumps are not hindered
is(($node->psql($db, 'TRUNCATE t; ALTER TABLE t ADD COLUMN x int; DROP TABLE t'))[0], 0, 'DDL works');
$node->command_ok([ 'pg_dump', '-f', '/dev/null', '-d', $node->connstr($db) ], 'pg_dump works');

# Doing as told
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'electric_cm'");
$node->append_conf('postgresql.conf', 'wal_level = logical') if server_major($node) < 19;
$node->restart;
ok(wait_active($node, $db), 'active after adding the line and a restart');

# ... and undoing it: the slot stays, and the server starts
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_status()');
like($err, qr/shared_preload_libraries/, 'not preloaded any more: says so again');
($rc, $out, $err) = $node->psql($db, 'DROP EXTENSION electric_cm');
is($rc, 0, 'DROP EXTENSION works') or diag($err);

$node->stop;
done_testing();
