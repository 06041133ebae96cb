# Background workers are shared out; slots' names don't collide; and no slot is
# left behind by a DROP EXTENSION that nobody saw.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active);
use File::Path qw(remove_tree);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $postgres = 'postgres';

#
# Two of four stacks fit
#
my $node = new_node('workers', conf => "max_worker_processes = 6\nelectric_cm.reconnect_max_delay = '1 s'\n");
my @all = map { "d$_" } 1 .. 4;

sub value { my ($db, @sql) = @_; return $node->safe_psql($db, join ";\n", @sql); }
sub seen { my ($db, $query, $what) = @_; return ElectricCM::becomes($node, $db, "SELECT $query", $what); }
sub statuses { return q{(SELECT string_agg(status, ' ' ORDER BY status) FROM electric_cm_stat_manager WHERE datname LIKE 'd_')}; }

value($postgres, 'CREATE EXTENSION electric_cm', "ALTER DATABASE postgres SET electric_cm.enabled = off");
$node->reload;
seen($postgres, q{electric_cm_status() = 'stopped'}, 'one database has no stack');
for my $db (@all) { value($postgres, "CREATE DATABASE $db"); value($db, 'CREATE EXTENSION electric_cm'); }
seen($postgres, statuses() . q{ = 'active active waiting waiting'}, 'there are workers for two stacks: the others wait');
my $slots = q{SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots};
my $before = value($postgres, $slots);
for my $round (1 .. 2)
{
	$node->restart;
	seen($postgres, statuses() . q{ = 'active active waiting waiting'}, "restart $round: two run again, none starves another");
	is(value($postgres, $slots), $before, '... those that have slots already');
}
seen($postgres, q{bool_and(waiting_for ~ '\(max_worker_processes\): 2 are needed, 0 of 6 are free$')
	FROM electric_cm_stat_manager WHERE status = 'waiting'}, 'those who wait say for what');
my ($run) = $before =~ /electric_cm_(d\d)/;
value($run, 'SELECT electric_cm_stop(true)');
seen($postgres, statuses() . q{ = 'active active stopped waiting'}, 'when one is stopped, another gets its workers');
$node->stop;

#
# Names
#
$node = new_node('names');
value($postgres, qq{CREATE DATABASE "$_"}) for 'app', 'App', 'APP';
for my $db ('app', 'App', 'APP') { value($db, 'CREATE EXTENSION electric_cm'); wait_active($node, $db); }
value('app', 'CREATE TABLE t (id int PRIMARY KEY)');
# they all start without slots, and none may make its own before all run
my @sessions;
for my $db ('app', 'App', 'APP')
{
	value($db, 'SELECT electric_cm_stop(drop_slot => true)');
	push @sessions, $node->background_psql($db, on_error_stop => 1);
	$sessions[-1]->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_app'))});
}
value($_, 'SELECT electric_cm_start()') for 'app', 'App', 'APP';
seen('app', q{count(*) = 1 FROM electric_cm_stat_manager WHERE datname = 'app' AND step = 'acquire_lock'}, 'one waits for its lock');
$_->quit for @sessions;
seen($_, q{electric_cm_status() = 'active'}, "a start without slots: $_ has a slot of its own") for 'app', 'App', 'APP';
$node->stop;
remove_tree(glob($node->data_dir . '/pg_replslot/*'));
$node->start;
seen($_, q{electric_cm_status() = 'active'}, "slots were not copied: $_ is active") for 'app', 'App', 'APP';

is($node->psql('app', 'CREATE DATABASE copy TEMPLATE app'), 0, 'CREATE DATABASE TEMPLATE of the database that one is in');
is($node->psql('copy', 'SELECT') ? 'none' : value('copy', q{SELECT count(*) FROM pg_class WHERE relname = 't'}), 1, 'a database can be copied by a session in it');
ok(wait_active($node, 'app'), '... and its stack comes back');

#
# DROP EXTENSION, and nobody there to see to the slot
#
sub slots_of { return "(SELECT count(*) FROM pg_replication_slots WHERE database = '$_[0]')"; }

# in use, and then a crash
my $walsender = value('app', q{SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication' AND datname = 'app'});
kill 'STOP', $walsender or die 'no walsender';
value('app', 'DROP EXTENSION electric_cm');
is(value('app', 'SELECT ' . slots_of('app')), 1, 'a hung walsender keeps its slot when the extension is dropped');
$node->stop('immediate');
$node->start;
seen('app', slots_of('app') . ' = 0', 'crash: it is dropped after the restart');

# a server without the library
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
value('App', 'DROP EXTENSION electric_cm');
is(value('App', 'SELECT ' . slots_of('App')), 1, 'without the library, the slot stays');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'electric_cm'");
$node->restart;
seen('App', slots_of('App') . ' = 0', '... until it is there again');

# single-user mode
sub single_user
{
	my ($db, $sql) = @_;
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'postgres', '--single', '-D', $node->data_dir, $db ], '<', \"$sql\n", '>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return $err;
}
$node->stop;
like(single_user('APP', "SELECT $_;"), qr/cannot be used in single-user mode/, "single-user mode: $_ says that it can't wait there")
	for 'electric_cm_start()', 'electric_cm_stop()', 'electric_cm_restart()', 'electric_cm_await_active()';
single_user('APP', 'DROP EXTENSION electric_cm;');
$node->start;
seen('APP', slots_of('APP') . ' = 0', 'single-user mode: what it has left is dropped at the next start');

# not ours: it looks like it, but nobody has taken a note
value('app', q{SELECT pg_create_logical_replication_slot('electric_cm_app', 'pgoutput')});
value($postgres, 'CREATE EXTENSION electric_cm');
$node->restart;
seen($postgres, q{(SELECT count(*) FROM electric_cm_events WHERE event = 'replication_slot_left' AND message LIKE '%"electric_cm_app"%') = 1},
	'a slot that only looks like ours is reported');
is(value('app', 'SELECT ' . slots_of('app')), 1, '... and stays');

$node->stop;
done_testing();
