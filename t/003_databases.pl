# Several databases at once; enabling, listing and copying them.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;

sub status_becomes
{
	my ($db, $status, $what) = @_;
	return ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', $status), $what);
}

sub slots
{
	return $stack->sql(
		q{SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots});
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'one is active');

# Created later; its name is no good for a slot
$stack->sql('CREATE DATABASE "Second-DB"');
$stack->beside('Second-DB')->sql('CREATE EXTENSION electric_cm');
ok($stack->beside('Second-DB')->active, 'one that is created later is active, too');
is(slots(), 'electric_cm_postgres electric_cm_second_db', 'each has a slot of its own');
is( $stack->sql(
		q{SELECT string_agg(datname || ' ' || status, ', ' ORDER BY datname) FROM electric_cm_stat_manager}),
	'Second-DB active, postgres active',
	'both are on show in each of them');

# Each follows its own tables
my %handle;
for my $db ('postgres', 'Second-DB')
{
	$stack->beside($db)->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
	$handle{$db} = $stack->beside($db)->sql(q{SELECT electric_cm_create_shape('t')});
	$stack->beside($db)->sql("SELECT count(*) FROM electric_cm_shape_log('$handle{$db}')");
	$stack->beside($db)->sql("INSERT INTO t SELECT i, '$db' FROM generate_series(1, 100) i");
}
for my $db ('postgres', 'Second-DB')
{
	$stack->beside($db)->settle;
	my ($ok, $entries) = $stack->beside($db)->replay_equals($handle{$db}, 't', ['id']);
	ok($ok && $entries == 100, "$db has its own rows ($entries)");
}
my ($rc, $out, $err) =
  $node->psql('postgres', "SELECT * FROM electric_cm_shape_log('$handle{'Second-DB'}')");
like($err, qr/does not exist/, 'and not those of the other');

# A database without the extension has nothing
$stack->sql('CREATE DATABASE without');
is( $stack->sql(q{SELECT count(*) FROM electric_cm_stat_manager WHERE datname = 'without'}),
	0, 'a database without the extension has no stack');

# Disabling one
$stack->sql('ALTER DATABASE "Second-DB" SET electric_cm.enabled = off');
$node->reload;
status_becomes('Second-DB', 'stopped', 'one that is disabled is stopped');
is( $stack->sql(q{SELECT waiting_for FROM electric_cm_stat_manager WHERE datname = 'Second-DB'}),
	'electric_cm.enabled is off', '... and says why');
is($stack->sql('SELECT electric_cm_status()'), 'active', 'the other one is active');
is(slots(), 'electric_cm_postgres electric_cm_second_db', 'its slot stays');
($rc, $out, $err) = $node->psql('Second-DB', 'SELECT electric_cm_await_active()');
like($err, qr/stopped: electric_cm.enabled is off.*HINT:/s, 'awaiting it is an error with a hint');
$stack->beside('Second-DB')->sql(q{INSERT INTO t VALUES (101, 'meanwhile')});
$stack->sql('ALTER DATABASE "Second-DB" RESET electric_cm.enabled');
$node->reload;
ok($stack->beside('Second-DB')->active, 'enabled again: active again');
$stack->beside('Second-DB')->settle;
my ($ok, $entries) = $stack->beside('Second-DB')->replay_equals($handle{'Second-DB'}, 't', ['id']);
ok($ok && $entries == 101, 'and has what was written meanwhile');

# A setting of the whole server
$node->append_conf('postgresql.conf', "electric_cm.databases = 'postgres'");
$node->reload;
status_becomes('Second-DB', 'stopped', 'one that is not listed any more is stopped');
is( $stack->sql(q{SELECT waiting_for FROM electric_cm_stat_manager WHERE datname = 'Second-DB'}),
	'not listed in electric_cm.databases', '... and says why');
is($stack->sql('SELECT electric_cm_status()'), 'active', 'the one that is listed is active');
($rc, $out, $err) = $node->psql('Second-DB', 'SELECT electric_cm_start()');
like($err, qr/not listed in electric_cm\.databases.*HINT:/s, 'it cannot be started by hand');
$node->append_conf('postgresql.conf', q{electric_cm.databases = 'postgres, "Second-DB"'});
$node->reload;
ok($stack->beside('Second-DB')->active, 'listed again: active again');

# A copy: stopped until it is told otherwise, lest two databases want one slot
$node->append_conf('postgresql.conf', "electric_cm.databases = '*'");
$node->reload;

# the stack's own sessions are in the way of a copy
$stack->sql('ALTER DATABASE "Second-DB" SET electric_cm.enabled = off');
$node->reload;
status_becomes('Second-DB', 'stopped', 'disabled for a copy');
$stack->sql('CREATE DATABASE copy TEMPLATE "Second-DB"');
$stack->sql('ALTER DATABASE "Second-DB" RESET electric_cm.enabled');
$node->reload;
ok($stack->beside('Second-DB')->active, 'the original is active again');
ok( ElectricCM::poll($node, 		'copy', q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE datname = 'copy' AND status = 'stopped' AND waiting_for LIKE '%copy%')}),
	'a copied database stays stopped and says why');
my $reader = $stack->beside('copy')->reader($handle{'Second-DB'});
$stack->beside('copy')->sql(q{INSERT INTO t VALUES (102, 'unseen')});
is(slots(), 'electric_cm_postgres electric_cm_second_db', 'it has no slot');
$node->restart;
ok($stack->beside('Second-DB')->active, 'the original is active after a restart');
ok( ElectricCM::poll($node, 		'copy', q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE datname = 'copy' AND status = 'stopped')}),
	'the copy is stopped after a restart');
$stack->beside('copy')->sql('SELECT electric_cm_start()');
ok($stack->beside('copy')->active, 'active after electric_cm_start()');
is(slots(), 'electric_cm_copy electric_cm_postgres electric_cm_second_db', 'with a slot of its own');
$stack->beside('copy')->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'the shape that was copied');
$stack->beside('copy')->sql(q{INSERT INTO t VALUES (103, 'copy')});
$stack->beside('copy')->goes_on($reader, 't', 'and it follows the copied table');
$stack->beside('Second-DB')->settle;
($ok, $entries) = $stack->beside('Second-DB')->replay_equals($handle{'Second-DB'}, 't', ['id']);
ok($ok && $entries == 101, 'the original has not noticed');
$node->restart;
ok($stack->beside('copy')->active, 'the copy is a database like any other after another restart');

# Dropping one
$stack->beside('copy')->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql('DROP DATABASE copy');
ok( ElectricCM::poll($node, 'postgres',
		q{SELECT count(*) = 2 FROM electric_cm_stat_manager}),
	'a dropped database is forgotten');

# DROP EXTENSION ends the stack
$stack->beside('Second-DB')->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->beside('Second-DB')->sql('DROP EXTENSION electric_cm');
ok( ElectricCM::poll($node, 'postgres',
		q{SELECT count(*) = 1 FROM electric_cm_stat_manager}),
	'a database without the extension is forgotten');
is(slots(), 'electric_cm_postgres', 'its slot is gone');

$node->stop;
done_testing();
