# Background workers are shared out; slots' names don't collide; and no slot is
# left behind by a DROP EXTENSION that nobody saw.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use File::Path qw(remove_tree);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

#
# Two of four stacks fit
#
my $stack = new_stack('workers', conf => "max_worker_processes = 6\nelectric_cm.reconnect_max_delay = '1 s'\n");
my $node = $stack->node;
my @all = map { "d$_" } 1 .. 4;

sub statuses { return q{(SELECT string_agg(status, ' ' ORDER BY status) FROM electric_cm_stat_manager WHERE datname LIKE 'd_')}; }

$stack->sql('CREATE EXTENSION electric_cm', "ALTER DATABASE postgres SET electric_cm.enabled = off");
$node->reload;
$stack->seen(q{electric_cm_status() = 'stopped'}, 'one database has no stack');
for my $db (@all) { $stack->sql("CREATE DATABASE $db"); $stack->beside($db)->sql('CREATE EXTENSION electric_cm'); }
$stack->seen(statuses() . q{ = 'active active waiting waiting'}, 'there are workers for two stacks: the others wait');
my $slots = q{SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots};
my $before = $stack->sql($slots);
for my $round (1 .. 2)
{
	$node->restart;
	$stack->seen(statuses() . q{ = 'active active waiting waiting'}, "restart $round: two run again, none starves another");
	is($stack->sql($slots), $before, '... those that have slots already');
}
$stack->seen(q{bool_and(waiting_for ~ '\(max_worker_processes\): 2 are needed, 0 of 6 are free$')
	FROM electric_cm_stat_manager WHERE status = 'waiting'}, 'those who wait say for what');
my ($run) = $before =~ /electric_cm_(d\d)/;
$stack->beside($run)->sql('SELECT electric_cm_stop(true)');
$stack->seen(statuses() . q{ = 'active active stopped waiting'}, 'when one is stopped, another gets its workers');
$node->stop;

#
# Names
#
$stack = new_stack('names');
$node = $stack->node;
$stack->sql(qq{CREATE DATABASE "$_"}) for 'app', 'App', 'APP';
for my $db ('app', 'App', 'APP') { $stack->beside($db)->sql('CREATE EXTENSION electric_cm'); $stack->beside($db)->active; }
$stack->beside('app')->sql('CREATE TABLE t (id int PRIMARY KEY)');
# they all start without slots, and none may make its own before all run
my @sessions;
for my $db ('app', 'App', 'APP')
{
	$stack->beside($db)->sql('SELECT electric_cm_stop(drop_slot => true)');
	push @sessions, $node->background_psql($db, on_error_stop => 1);
	$sessions[-1]->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_app'))});
}
$stack->beside($_)->sql('SELECT electric_cm_start()') for 'app', 'App', 'APP';
$stack->beside('app')->seen(q{count(*) = 1 FROM electric_cm_stat_manager WHERE datname = 'app' AND step = 'acquire_lock'}, 'one waits for its lock');
$_->quit for @sessions;
$stack->beside($_)->seen(q{electric_cm_status() = 'active'}, "a start without slots: $_ has a slot of its own") for 'app', 'App', 'APP';
$node->stop;
remove_tree(glob($node->data_dir . '/pg_replslot/*'));
$node->start;
$stack->beside($_)->seen(q{electric_cm_status() = 'active'}, "slots were not copied: $_ is active") for 'app', 'App', 'APP';

is($node->psql('app', 'CREATE DATABASE copy TEMPLATE app'), 0, 'CREATE DATABASE TEMPLATE of the database that one is in');
is($node->psql('copy', 'SELECT') ? 'none' : $stack->beside('copy')->sql(q{SELECT count(*) FROM pg_class WHERE relname = 't'}), 1, 'a database can be copied by a session in it');
ok($stack->beside('app')->active, '... and its stack comes back');

#
# DROP EXTENSION, and nobody there to see to the slot
#
sub slots_of { return "(SELECT count(*) FROM pg_replication_slots WHERE database = '$_[0]')"; }

# in use, and then a crash
my $walsender = $stack->beside('app')->sql(q{SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication' AND datname = 'app'});
kill 'STOP', $walsender or die 'no walsender';
$stack->beside('app')->sql('DROP EXTENSION electric_cm');
is($stack->beside('app')->sql('SELECT ' . slots_of('app')), 1, 'a hung walsender keeps its slot when the extension is dropped');
$node->stop('immediate');
$node->start;
$stack->beside('app')->seen(slots_of('app') . ' = 0', 'crash: it is dropped after the restart');

# a server without the library
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$stack->beside('App')->sql('DROP EXTENSION electric_cm');
is($stack->beside('App')->sql('SELECT ' . slots_of('App')), 1, 'without the library, the slot stays');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'electric_cm'");
$node->restart;
$stack->beside('App')->seen(slots_of('App') . ' = 0', '... until it is there again');

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
$stack->beside('APP')->seen(slots_of('APP') . ' = 0', 'single-user mode: what it has left is dropped at the next start');

# not ours: it looks like it, but nobody has taken a note
$stack->beside('app')->sql(q{SELECT pg_create_logical_replication_slot('electric_cm_app', 'pgoutput')});
$stack->sql('CREATE EXTENSION electric_cm');
$node->restart;
$stack->seen(q{(SELECT count(*) FROM electric_cm_events WHERE event = 'replication_slot_left' AND message LIKE '%"electric_cm_app"%') = 1},
	'a slot that only looks like ours is reported');
is($stack->beside('app')->sql('SELECT ' . slots_of('app')), 1, '... and stays');

$node->stop;
done_testing();
