# Whatever the stack is doing, a fast shutdown and electric_cm_stop() end it
# within two seconds, and what was to be dropped is dropped.
use strict;
use warnings;

use IO::Socket::INET;
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $limit = 2;
my $stack = new_stack('main', conf => q{
electric_cm.pool_idle_timeout = '1 s'
electric_cm.reconnect_initial_delay = '100 ms'
electric_cm.status_check_interval = '1 s'
});
my $node = $stack->node;
my $db = 'postgres';
my @sessions;

sub becomes { return $stack->becomes($_[0]); }

sub at_step { return becomes("SELECT step = '$_[0]' FROM electric_cm_stat_manager"); }

# A session that holds something until the end of the case
sub hold
{
	my (@sql) = @_;
	my $session = $node->background_psql($db, on_error_stop => 0);
	$session->query_safe($_) for @sql;
	push @sessions, $session;
	return $session;
}

# ends the sessions; what they do if the server is gone is of no interest
sub let_go
{
	eval { $_->quit; } for @sessions;
	@sessions = ();
	return;
}

sub terminate
{
	return $stack->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = '$_[0]' AND application_name LIKE 'electric%'");
}

# A server that accepts connections and says nothing
my $silent = IO::Socket::INET->new(Listen => 128, LocalAddr => '127.0.0.1', Proto => 'tcp') or die $!;
my $silent_conninfo = 'host=127.0.0.1 port=' . $silent->sockport;

my $handle;

# Each case brings a stack that is active to where it hangs.  "keeps" says that
# its manager is still the same, and so may be told to drop the slot.
my @cases = (
	{
		name => 'waiting for the lock',
		keeps => 0,
		enter => sub {
			$node->psql($db, 'SELECT electric_cm_stop()');
			hold("SELECT pg_advisory_lock(hashtext('electric_cm_$db'))");
			$stack->sql('SELECT electric_cm_start()');
			becomes("SELECT status = 'waiting' AND waiting_for LIKE '%lock%' FROM electric_cm_stat_manager");
		}
	},
	{
		name => 'connecting to an address that does not answer',
		keeps => 0,
		enter => sub {
			$stack->sql("ALTER DATABASE $db SET electric_cm.connection = '$silent_conninfo'");
			$node->reload;
			at_step('connect_replication');
		},
		leave => sub { $stack->sql("ALTER DATABASE $db RESET electric_cm.connection"); }
	},
	{
		name => 'looking at the publication',
		keeps => 1,
		enter => sub {
			hold('BEGIN', 'LOCK TABLE pg_publication');
			terminate('walsender');
			at_step('create_publication');
		},
		not_by_hand => 1    # no table can be written to while that is locked
	},
	{
		name => 'creating a slot',
		keeps => 1,
		enter => sub {
			# a slot that is lost while nothing uses it, and a transaction
			hold('BEGIN', 'CREATE TABLE pending ()');
			hold('SET client_min_messages = error', q{DO $$ BEGIN LOOP
				BEGIN
					PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL;
					PERFORM pg_drop_replication_slot('electric_cm_postgres');
					EXIT;
				EXCEPTION WHEN object_in_use THEN NULL;
				END;
				END LOOP; END $$});
			at_step('create_slot');
			becomes("SELECT waiting_for LIKE '%older transactions%' FROM electric_cm_stat_manager");
		}
	},
	{
		name => 'opening the pool',
		keeps => 0,
		enter => sub {
			$stack->sql("ALTER DATABASE $db SET electric_cm.pooled_connection = '$silent_conninfo'");
			$node->reload;
			at_step('start_pool');
		},
		leave => sub { $stack->sql("ALTER DATABASE $db RESET electric_cm.pooled_connection"); }
	},
	{
		name => 'recording the timeline',
		keeps => 0,
		enter => sub {
			# after a clean stop, whose record is removed
			$stack->sql("ALTER DATABASE $db SET electric_cm.enabled = off");
			$node->reload;
			becomes("SELECT electric_cm_status() = 'stopped'");
			hold('BEGIN', 'LOCK TABLE _electric_cm.stack IN SHARE MODE');
			$stack->sql("ALTER DATABASE $db RESET electric_cm.enabled");
			$node->reload;
			at_step('check_timeline');
		},
		not_by_hand => 1    # electric_cm_stop() itself has to write to that table
	},
	{
		name => 'starting a consumer',
		keeps => 1,
		enter => sub {
			hold('BEGIN', 'LOCK TABLE _electric_cm.progress');
			terminate('electric_cm consumer');
			at_step('start_consumers');
		}
	},
	{
		name => 'in the middle of a snapshot',
		keeps => 1,
		enter => sub {
			$stack->sql('CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)',
				q{SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes WHERE relation = 't'::regclass});
			my $writer = hold('BEGIN', 'INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t');
			$handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
			becomes("SELECT waiting_for LIKE '%writing%' FROM electric_cm_shapes WHERE handle = '$handle'");
			# what the snapshot will have to write at its end
			hold('BEGIN', 'LOCK TABLE _electric_cm.shape IN SHARE MODE');
			$writer->query_safe('COMMIT');
			becomes("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%take_snapshot(%' AND pid <> pg_backend_pid()
				AND wait_event_type = 'Lock')");
		}
	},
	{
		name => 'with a consumer that waits for a lock',
		keeps => 1,
		enter => sub {
			$stack->sql('CREATE TABLE IF NOT EXISTS u (id int PRIMARY KEY)');
			my $u = $stack->sql(q{SELECT electric_cm_create_shape('u')});
			$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$u')");
			hold('BEGIN', 'LOCK TABLE _electric_cm.shape_log');
			$stack->sql('INSERT INTO u SELECT coalesce(max(id), 0) + i FROM u, generate_series(1, 5000) i GROUP BY i');
			$stack->sql('INSERT INTO u SELECT (SELECT coalesce(max(id), 0) FROM u) + i FROM generate_series(1, 5000) i');
			becomes("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'electric_cm consumer' AND wait_event_type = 'Lock')");
		}
	},
	{
		name => 'failed',
		keeps => 0,
		enter => sub {
			$stack->sql("ALTER DATABASE $db SET electric_cm.connection = 'user=nobody_there'");
			$node->reload;
			becomes("SELECT status = 'failed' FROM electric_cm_stat_manager");
		},
		leave => sub { $stack->sql("ALTER DATABASE $db RESET electric_cm.connection"); }
	},
	{ name => 'active', keeps => 1, enter => sub { return 1; } });

sub left_behind
{
	return $stack->sql(q{SELECT concat_ws(' ', (SELECT 'slot' FROM pg_replication_slots WHERE slot_name LIKE 'electric%'),
		(SELECT 'publication' FROM pg_publication WHERE pubname LIKE 'electric%'))});
}

sub starts_again
{
	my ($case) = @_;
	let_go();
	$case->{leave}->() if $case->{leave};
	$node->reload;
	$node->psql($db, 'SELECT electric_cm_start()');
	return ok($stack->active, "$case->{name}: active afterwards");
}

my @took;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');

for my $case (@cases)
{
	my $start;
	my $took;

	next if $case->{not_by_hand};

	# by hand
	ok($case->{enter}->(), "$case->{name}: got there") or next;
	$start = time;
	my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_stop()', timeout => 60);
	$took = time - $start;
	is($rc, 0, "$case->{name}: electric_cm_stop() succeeds") or diag($err);
	cmp_ok($took, '<', $limit, sprintf "%s: electric_cm_stop() took %.2f s", $case->{name}, $took);
	is( $stack->sql(q{SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'electric%'
			AND backend_type <> 'electric_cm launcher'}),
		0, "$case->{name}: nothing of it is left");
	is($stack->sql('SELECT count(*) FROM pg_replication_slots WHERE active'), 0, "$case->{name}: the slot is not in use");
	starts_again($case);
}

for my $case (@cases)
{
	my $start;
	my $stopped;
	my $took;

	if ($case->{keeps})
	{
		$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
	}
	ok($case->{enter}->(), "$case->{name}: got there again") or next;
	$start = time;
	$stopped = $node->stop('fast', fail_ok => 1);
	$took = time - $start;
	push @took, sprintf '%s %.2f s', $case->{name}, $took;
	ok($stopped && $took < $limit, sprintf "%s: a fast shutdown took %.2f s", $case->{name}, $took);
	$node->stop('immediate') unless $stopped;

	if ($case->{keeps})
	{
		is_deeply([ glob($node->data_dir . '/pg_replslot/*') ], [], "$case->{name}: the slot has been dropped");
		$node->append_conf('postgresql.conf', 'electric_cm.databases = nowhere');
		$node->start;
		is(left_behind(), '', "$case->{name}: so has the publication");
		$node->append_conf('postgresql.conf', q{electric_cm.databases = '*'});
	}
	else
	{
		$node->start;
	}
	starts_again($case);
}

# Smart shutdown waits for sessions, and ours are sessions while they last
for my $case (grep { $_->{name} =~ /active|failed|connecting|pool/ } @cases)
{
	ok($case->{enter}->(), "$case->{name}: got there once more");
	my $start = time;
	my $stopped = $node->stop('smart', fail_ok => 1);
	my $took = time - $start;
	ok($stopped && $took < 1 + $limit,
		sprintf "%s: a smart shutdown took %.2f s, with a pool_idle_timeout of 1 s", $case->{name}, $took);
	$node->stop('immediate') unless $stopped;
	$node->start;
	starts_again($case);
}

note("fast shutdown: $_") for @took;
$node->stop;
done_testing();
