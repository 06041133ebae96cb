# What hangs, or is cut off, says nothing.  It is noticed all the same, said,
# and mended, before any limit takes the slot.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use ElectricCM::Proxy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
wal_sender_timeout = '4 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.reconnect_initial_delay = '200 ms'
electric_cm.reconnect_max_delay = '500 ms'
electric_cm.min_wal_free_space = -1
});
my $node = $stack->node;
my $db = 'postgres';

my $walsender = q{(SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication')};

# Between the server and itself
my $proxy_dir = PostgreSQL::Test::Utils::tempdir_short();
my $proxy = ElectricCM::Proxy->new(map { "$_/.s.PGSQL." . $node->port } $proxy_dir, $node->host);

# Nothing is forwarded any more, and nothing is closed either
sub cut_off
{
	$proxy->refuse;
	return $proxy->lose;
}

$stack->sql("ALTER DATABASE $db SET electric_cm.connection = 'host=$proxy_dir'");
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, x text)');

# The answer to a slot's creation gets lost: the slot is there, and ours

my $open = $node->background_psql($db);
$open->query_safe('BEGIN; INSERT INTO t VALUES (0)');
$stack->sql('CREATE EXTENSION electric_cm');
$stack->seen(q{step = 'create_slot' AND waiting_for <> '' FROM electric_cm_stat_manager}, 'the slot is being created');
cut_off();
$open->query_safe('COMMIT');
$open->quit;
$stack->seen(q{confirmed_flush_lsn IS NOT NULL AND NOT active FROM pg_replication_slots}, 'it is there, but the answer is lost');
$proxy->answer;
ok($stack->active, 'that is noticed: active');
is($stack->sql(q{SELECT ours FROM electric_cm_slots}), 't', 'the slot is ours');
is($stack->sql(q{SELECT slot_name IS NOT NULL FROM _electric_cm.stack}), 't', '... for good');
$stack->seen(q{count(*) = 1 FROM pg_stat_activity WHERE application_name = 'electric_cm replication'}, '... and its session is not left behind');
is($stack->events('replication_slot_dropped'), 0, '... nor was it made twice');

my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

sub log_is_right
{
	my ($what) = @_;
	$stack->sql(q{INSERT INTO t SELECT (SELECT max(id) FROM t) + i, $$x$$ FROM generate_series(1, 10) i});
	$stack->settle;
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}
log_is_right('at first');

# A quiet stream is not a dead one

my $first = $stack->sql("SELECT $walsender");
$stack->seen(q{max(reply_time) > pg_postmaster_start_time() FROM pg_stat_replication}, 'the walsender hears from us');
my $began = $stack->sql('SELECT clock_timestamp()');
$stack->seen("clock_timestamp() > timestamptz '$began' + interval '7 s'", 'more than wal_sender_timeout later');
is($stack->sql("SELECT $walsender"), $first, '... the quiet stream is the same');
is($stack->sql('SELECT electric_cm_status()'), 'active', '... and active');

# Cut off: nothing comes, nothing is closed

cut_off();
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(101, 1000) i});
$stack->seen(q{electric_cm_status() = 'starting'}, 'cut off: not active any more');
$stack->seen(q{electric_cm_health() ->> 'severity' <> 'ok'}, '... nor well');
like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'), qr/walsender PID \d+ has (not answered|gone)|timed out/, '... and last_error says that the walsender is silent');
$proxy->answer;
ok($stack->active, 'connections work again: active');
log_is_right('cut off');
is($stack->events('shapes_resyncing'), 0, 'no shape has a gap');

# Cut off, and over a limit before that is noticed

$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '48MB'});
$node->reload;
$stack->seen(q{setting = '48MB' FROM electric_cm_options WHERE name = 'electric_cm.retained_wal_limit'}, 'with a limit');
ok($stack->active, 'active');
cut_off();
$proxy->answer;
$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 80)});
$stack->seen(q{count(*) >= 2 FROM electric_cm_events WHERE event = 'connection_error' AND message ~ 'walsender PID'}, 'cut off and beyond the limit: that is noticed');
ok($stack->active, '... and mended');
log_is_right('beyond the limit');
is($stack->events('retained_wal_limit'), 0, '... without giving up the slot');
$stack->sql(q{ALTER SYSTEM RESET electric_cm.retained_wal_limit});
$node->reload;

# A job of the pool whose answer gets lost

$stack->sql(q{CREATE TABLE big (id int PRIMARY KEY)});
$stack->sql(q{CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_catalog.pg_sleep(2); END $$;
	CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('ALTER PUBLICATION') EXECUTE FUNCTION slow()});
my $big = $stack->sql(q{SELECT electric_cm_create_shape('big')});
$stack->seen(q{EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'electric_cm pool%' AND wait_event = 'PgSleep')}, 'a session of the pool is at work');
cut_off();
$stack->seen(q{count(*) > 0 FROM pg_publication_tables WHERE tablename = 'big'}, '... it is done, but the answer is lost');
$proxy->answer;
$stack->sql('DROP EVENT TRIGGER slow');
$stack->seen("state = 'live' FROM electric_cm_shapes WHERE handle = '$big'", '... and it is done again');
ok($stack->active, 'active');

$stack->sql("ALTER DATABASE $db RESET electric_cm.connection");
$node->reload;
$stack->seen(q{setting = '' AND electric_cm_status() = 'active' FROM electric_cm_options WHERE name = 'electric_cm.connection'}, 'without a proxy');

# A walsender that has stopped: it can't be ended, nor can its slot be taken

my $pid = $stack->sql("SELECT $walsender");
kill 'STOP', $pid or die 'no walsender';
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(2001, 3000) i});
$stack->seen(q{electric_cm_status() = 'starting'}, 'a walsender that has stopped: not active any more');
$stack->seen("last_error LIKE 'walsender PID $pid%does not answer and does not end' AND waiting_for LIKE '%$pid%' FROM electric_cm_stat_manager", '... who it is, and what it does');
my $health = q{electric_cm_health() ->> 'reason'};
$stack->seen("$health LIKE '%$pid%kill -CONT $pid%'", '... and what to do');
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = '48MB'});
$node->reload;
$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 80)});
$stack->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_limit'}, 'a limit says that it is reached');
is($stack->sql('SELECT count(*) FROM pg_replication_slots'), 1, '... and drops nothing that is in use');
$stack->sql(q{ALTER SYSTEM RESET electric_cm.retained_wal_limit});
$node->reload;
kill 'CONT', $pid;
ok($stack->active, 'it goes on, and ends: active');
log_is_right('a walsender that had stopped');
is($stack->sql('SELECT count(*) FROM electric_cm_shapes'), 2, 'no shape has a gap');
isnt($stack->sql("SELECT $walsender"), $pid, 'the walsender is another one');

# One that is busy is not suspected: nothing of a large transaction is published

$stack->sql('CREATE TABLE other (id int, x text)');
$pid = $stack->sql("SELECT $walsender");
$stack->sql(q{INSERT INTO other SELECT i, repeat('x', 50) FROM generate_series(1, 500000) i});
log_is_right('a walsender that is busy');
is($stack->sql("SELECT $walsender"), $pid, '... is left alone');

# A consumer that has stopped keeps the stream from being read, which is not the
# walsender's fault

my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(10001, 14000) i});
$stack->seen(q{electric_cm_health() ->> 'reason' LIKE 'Readers are % s behind: consumer 1 (PID ' || } . "$consumer || '%'", 'a consumer that has stopped: readers are behind, and why');
$stack->seen("electric_cm_health() ->> 'reason' LIKE '%pg_terminate_backend($consumer)%'", '... and what to do');
is($stack->sql("SELECT $walsender"), $pid, '... the walsender is not suspected');
kill 'CONT', $consumer;
$stack->seen(q{electric_cm_health() ->> 'severity' = 'ok'}, 'it goes on: well');
log_is_right('a consumer that had stopped');

# Who waits for what will never be does not keep everybody busy

my ($rc) = $node->psql($db, q{SELECT electric_cm_await_flushed('FFFFFFFF/FFFFFFFF', '100 ms')});
isnt($rc, 0, 'nobody gets to the end of all WAL');
$stack->seen(q{electric_cm_await_flushed() IS NOT NULL}, 'others do not wait for that');

# A walsender that stops while it waits for others, to make the slot

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$open = $node->background_psql($db);
$open->query_safe('BEGIN; INSERT INTO t VALUES (-1)');
$stack->sql('SELECT electric_cm_start()');
$stack->seen(q{EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'electric_cm replication' AND wait_event_type = 'Lock')}, 'the slot is being created');
$pid = $stack->sql(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'electric_cm replication'});
kill 'STOP', $pid or die 'no walsender';
$open->query_safe('COMMIT');
$open->quit;
$stack->seen("EXISTS (SELECT FROM electric_cm_events WHERE message LIKE '%PID $pid, which runs a query of ours, has not moved for%')", 'it stops: that is noticed');
$stack->seen("$health LIKE '%$pid%'", '... and said');
kill 'CONT', $pid;
ok($stack->active, 'it goes on, and ends: active');
is($stack->sql(q{SELECT count(*) FROM pg_replication_slots}), 1, '... with one slot');
is($stack->sql(q{SELECT ours FROM electric_cm_slots}), 't', '... of ours');

$node->stop;
$proxy->end;
done_testing();
