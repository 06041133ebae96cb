# The stream is lost at the worst of moments: while a consumer is in the middle
# of a large transaction, and while the creation of a shape is decoded, but not
# visible yet.  Nobody waits for ever.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.reconnect_initial_delay = '200 ms'
electric_cm.reconnect_max_delay = '400 ms'
electric_cm.status_check_interval = '1 s'
});
my $node = $stack->node;
my $db = 'postgres';

sub becomes { return $stack->becomes($_[1], $_[0]); }

sub live
{
	my ($handle, $what) = @_;
	return becomes($what, "SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'");
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, filler text)');
ok($stack->active, 'active');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
live($handle, 'a shape');

# A new slot, while a consumer has half of a large transaction, for which it
# has a transaction of its own open, and its queue has no room for an order

my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
my $blocker = $node->background_psql($db);
$blocker->query_safe('BEGIN; LOCK TABLE _electric_cm.shape_log IN SHARE MODE');
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 40000) i});
becomes('a consumer is in the middle of a large transaction, and blocked',
	"SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $consumer AND NOT granted)");

# slot creation waits for this one first, and then for the consumer's
my $older = $node->background_psql($db);
$older->query_safe('BEGIN; SELECT pg_current_xact_id()');
$stack->sql('DROP PUBLICATION electric_cm_publication');
becomes('a new slot is being made, which waits for older transactions',
	q{SELECT step = 'create_slot' AND waiting_for LIKE '%older transactions%' FROM electric_cm_stat_manager});
$blocker->query_safe('COMMIT');
becomes('the consumer has gone on', "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE pid = $consumer AND NOT granted)");
$older->query_safe('COMMIT');
becomes('it gives up what was half received, and the stack is active again',
	q{SELECT electric_cm_status() = 'active'});
isnt($stack->sql('SELECT pid FROM electric_cm_stat_consumers'), $consumer, '... with another consumer, as this stream does not continue that one');
$handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
live($handle, '... and its shapes can be made again');
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "replay equals table ($entries entries)");

# A shape whose creator waits for a synchronous standby: its commit has been
# decoded and acknowledged, but nobody can see it yet

sub in_doubt
{
	my ($table, $what, $lose) = @_;

	$stack->sql("CREATE TABLE $table (id int PRIMARY KEY)");
	$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
	$node->reload;
	becomes('a synchronous standby is missing', q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
	my $creator = $node->background_psql($db);
	$creator->query_until(qr/creating/, "\\echo creating\nSELECT electric_cm_create_shape('$table');\n");
	becomes('the creator waits for the standby',
		q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%create_shape%' AND wait_event = 'SyncRep')});
	$stack->settle;

	$lose->();
	becomes("$what, and it has looked for shapes", q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity
		WHERE application_name LIKE 'electric_cm pool%' AND query LIKE 'SELECT s.id, s.relation%' AND state = 'active')});
	$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
	$node->reload;
	becomes('the creator is done', "SELECT EXISTS (SELECT FROM electric_cm_shapes WHERE relation = '$table'::regclass)");
	live($stack->sql("SELECT handle FROM electric_cm_shapes WHERE relation = '$table'::regclass"), "$what: the shape becomes live");
	$creator->quit;
	return;
}

in_doubt('u', 'the stream was lost', sub {
	my $sender = $stack->sql('SELECT active_pid FROM pg_replication_slots');
	$stack->sql("SELECT pg_terminate_backend($sender)");
	becomes('another stream',
		"SELECT electric_cm_status() = 'active' AND active_pid <> $sender FROM pg_replication_slots");
});
in_doubt('v', 'the manager was ended', sub {
	my $manager = $stack->sql('SELECT pid FROM electric_cm_stat_manager');
	$stack->sql("SELECT pg_terminate_backend($manager)");
	becomes('another manager',
		"SELECT electric_cm_status() = 'active' AND pid <> $manager FROM electric_cm_stat_manager");
});

$_->quit for ($blocker, $older);
$node->stop;
done_testing();
