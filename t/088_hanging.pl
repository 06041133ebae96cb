# A manager that hangs, a pool that is dead, a connection that leads nowhere, shapes
# that are compared with their tables: status and health say so, and what to do.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $stack = new_stack('main', conf => q{
wal_sender_timeout = '2 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.pool_idle_timeout = '500 ms'
electric_cm.reconnect_initial_delay = '200 ms'
electric_cm.reconnect_max_delay = '500 ms'
electric_cm.min_wal_free_space = -1
});
my $node = $stack->node;
my $db = 'postgres';

sub health { return decode_json($stack->sql('SELECT electric_cm_health()')); }

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, x text); CREATE TABLE u (id int PRIMARY KEY)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

# All of them have a gap at once

is(health()->{severity}, 'ok', 'well');
$stack->sql(q{SELECT electric_cm_create_shape('t', NULL, '{id}')});
$stack->seen(q{count(*) = 2 FROM electric_cm_shapes WHERE state = 'live'}, 'two shapes');
$stack->seen(q{sum(shapes) = 2 FROM electric_cm_stat_consumers}, '... as their consumer knows');
my $reader = $stack->reader($handle);
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '32MB'});
$node->reload;
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 4000) i});
$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 60)});
$stack->seen(q{detail LIKE '%All 2 shapes of this database are compared with their tables.%' FROM electric_cm_events WHERE event = 'retained_wal_limit'}, 'a limit takes the slot: an event says how many shapes that concerns');

# somebody is about to write to the table, which their comparison has to wait for
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE');
kill 'CONT', $consumer;
$stack->seen(q{count(*) = 2 FROM electric_cm_shapes WHERE state = 'resyncing' AND waiting_for LIKE '%writing to the table%'}, 'a new slot: the shapes wait for a writer');
is($stack->sql(q{SELECT message FROM electric_cm_events WHERE event = 'shapes_resyncing'}), 'all 2 shapes of this database are compared with their tables', '... an event says what is done');
my $h = health();
is($h->{shapes}{resyncing}, 2, '... health has their number');
is($h->{severity}, 'ok', '... and nothing to complain about yet');
is($stack->sql(q{SELECT string_agg(DISTINCT command || ', ' || phase, '; ') FROM electric_cm_stat_progress}), 'resync, preparing', '... progress says what is done');
$stack->sql(q{UPDATE _electric_cm.shape_gap SET ordered_at = ordered_at - interval '2 minutes'});
$h = health();
is($h->{severity}, 'warning', 'if it takes more than a minute, it is not well');
like($h->{reason}, qr/^2 shapes have been compared with the table for more than a minute; $handle waits for .*writing to the table/, '... for that reason');
$writer->query_safe(q{INSERT INTO t VALUES (100000, 'late')});
$writer->query_safe('COMMIT');
$writer->quit;
$stack->seen(q{electric_cm_health() ->> 'severity' = 'ok'}, 'they are compared: well');
is(health()->{shapes}{resyncing}, 0, '... and live');
$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'a limit has taken the slot');

# A manager that hangs

my $manager = $stack->sql('SELECT pid FROM electric_cm_stat_manager');
kill 'STOP', $manager or die 'no manager';
$stack->seen(q{electric_cm_status() = 'starting'}, 'a manager that hangs: not active any more');
$stack->seen("status = 'starting' AND waiting_for LIKE 'manager PID $manager, which has not moved for %' FROM electric_cm_stat_manager", '... nor in the view, which says why');
$h = health();
isnt($h->{severity}, 'ok', '... nor well');
like($h->{reason}, qr/manager PID $manager has not moved for \d+ s.*kill -CONT $manager/, '... which says what to do');
my ($rc, $out, $err) = $node->psql($db, q{SELECT electric_cm_await_active('100 ms')});
like($err, qr/timed out.*manager PID $manager/s, 'nobody takes it for active');
$stack->seen("count(*) = 1 FROM electric_cm_events WHERE event = 'manager_hangs' AND message LIKE '%$manager%'", 'an event says so');
$stack->seen(q{sampled_at > clock_timestamp() - interval '3 s' FROM electric_cm_stat_replication}, 'its slot is sampled by the launcher');
$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 40)});
$stack->seen(q{count(*) = 0 FROM pg_replication_slots}, '... and dropped when it is beyond a limit');
kill 'CONT', $manager;
ok($stack->active, 'it goes on: active');
is($stack->sql('SELECT pid FROM electric_cm_stat_manager'), $manager, '... the same');
$stack->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'manager_resumed'}, '... an event says so');
$stack->sql(q{ALTER SYSTEM RESET electric_cm.retained_wal_limit});
$node->reload;
$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'the launcher has dropped the slot');
$stack->seen(q{count(*) = 2 FROM electric_cm_shapes WHERE state = 'live'}, 'both shapes are live');

# No session of the pool can be opened any more, while the stream goes on

$stack->sql('CREATE ROLE me SUPERUSER LOGIN');
$stack->seen(q{count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'electric_cm pool%'}, 'the pool has nothing to do');
my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
sub write_hba
{
	open my $fh, '>', $node->data_dir . '/pg_hba.conf' or die $!;
	print $fh $_[0];
	close $fh;
	$node->reload;
	return;
}
my @me = (extra_params => [ '-U', 'me' ]);
sub mine { return $node->safe_psql($db, $_[0], @me); }
sub mine_seen
{
	my ($query, $what) = @_;
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return ok(1, $what) if mine("SELECT $query") eq 't';
		usleep(100_000);
	}
	diag(mine('SELECT electric_cm_health()'));
	return ok(0, $what);
}
write_hba("local all me trust\nlocal all all reject\n");

# The postmaster may take a while to read it, and a session may have got in before
my $refused = 0;
for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
{
	last if $refused = $node->psql($db, 'SELECT 1') != 0;
	usleep(100_000);
}
ok($refused, 'only one role is let in');
mine_seen(q{count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'electric_cm pool%'}, '... and no session of the pool is left');
my $u = mine(q{SELECT electric_cm_create_shape('u')});
mine_seen(q{status = 'starting' AND step = 'start_pool' FROM electric_cm_stat_manager}, 'no session of the pool can be opened: not active any more');
mine_seen(q{last_error LIKE '%pg_hba.conf%' FROM electric_cm_stat_manager}, '... last_error says why');
mine_seen(q{electric_cm_health() ->> 'reason' ~ 'start_pool.*pg_hba\.conf.*Put this line'}, '... and what to do is the reason');
is(mine(q{SELECT electric_cm_health() #>> '{conditions,pool,met}'}), 'false', '... the pool is not there');
mine(q{INSERT INTO t VALUES (100001, 'y')});
mine_seen("count(*) > 0 FROM electric_cm_shape_log('$handle') WHERE key LIKE '%100001%'", 'the stream goes on');
mine(q{UPDATE _electric_cm.shape SET created_at = now() - interval '2 minutes' WHERE relation = 'u'::regclass});
mine_seen(qq{electric_cm_health() ->> 'problems' LIKE '%1 shape has been in creation for more than a minute; $u waits for %'}, 'a shape that is not created is said to wait');
write_hba($hba);
ok($stack->active, 'it can: active, without anybody\'s help');
$stack->seen("state = 'live' FROM electric_cm_shapes WHERE handle = '$u'", '... and the shape is live');
is($stack->sql('SELECT count(*) FROM electric_cm_shapes'), 3, '... and none was lost');

# A connection string that leads nowhere

$stack->sql(qq{ALTER DATABASE $db SET electric_cm.connection = 'host=/nowhere'});
$node->reload;
$stack->seen(q{electric_cm_status() = 'starting' AND last_error LIKE '%/nowhere%' FROM electric_cm_stat_manager}, 'a connection string that leads nowhere');
$h = health();
like($h->{reason}, qr{/nowhere.*electric_cm\.connection says where to connect to; it is set by ALTER DATABASE}, '... the error is the reason, with the setting to blame');
unlike($stack->sql(q{SELECT string_agg(coalesce(detail, ''), ' ') FROM electric_cm_events}), qr/Is the server running/, '... and nobody asks the server whether it runs');
$stack->sql(qq{ALTER DATABASE $db RESET electric_cm.connection});
$node->reload;
ok($stack->active, 'active again');

# Stopped

$stack->sql('SELECT electric_cm_stop()');
is(health()->{reason}, 'the stack is stopped: electric_cm_stop() was called', 'stopped: said once');
($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_await_active()');
like($err, qr/the stack of database "postgres" is stopped: electric_cm_stop\(\) was called/, '... here, too');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'started: active');

$node->stop;
done_testing();
