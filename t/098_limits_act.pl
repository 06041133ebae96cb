# A limit on retained WAL waits for a stream that comes back, but not for one
# that does not get on.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use ElectricCM::Proxy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
wal_sender_timeout = '3 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.reconnect_initial_delay = '200 ms'
electric_cm.reconnect_max_delay = '500 ms'
electric_cm.min_wal_free_space = -1
electric_cm.retained_wal_limit = '48MB'
});
my $node = $stack->node;
my $db = 'postgres';

# Between the server and itself
my $proxy_dir = PostgreSQL::Test::Utils::tempdir_short();
my $proxy = ElectricCM::Proxy->new(map { "$_/.s.PGSQL." . $node->port } $proxy_dir, $node->host);

$stack->sql("ALTER DATABASE $db SET electric_cm.connection = 'host=$proxy_dir'");
$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');
$stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->seen(q{count(*) = 1 FROM electric_cm_shapes WHERE state = 'live'}, 'a shape is live');

sub write_wal { return $stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 80)}); }

# Each new stream is cut off, too

$proxy->stall;
write_wal();
$stack->seen(q{count(*) >= 1 FROM electric_cm_events WHERE event = 'connection_error' AND message ~ 'walsender PID'}, 'streams are cut off: that is noticed');
$stack->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_limit'}, 'no stream gets on: the limit acts');
$stack->seen(q{coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0) < 48 * 1024 * 1024 FROM pg_replication_slots}, '... and the WAL is free');
$stack->sql("ALTER DATABASE $db RESET electric_cm.connection");
$node->reload;
$stack->seen(q{setting = '' AND electric_cm_status() = 'active' FROM electric_cm_options WHERE name = 'electric_cm.connection'}, 'a direct connection: active');

# Beyond a limit when the server starts, and about to catch up

my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->seen(q{count(*) = 1 FROM electric_cm_shapes WHERE state = 'live'}, 'a shape is live');
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = -1});
$node->reload;
$stack->seen(q{setting = '-1' FROM electric_cm_options WHERE name = 'electric_cm.retained_wal_limit'}, 'no limit for a while');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql('INSERT INTO t VALUES (1)');
write_wal();
$stack->sql(q{ALTER SYSTEM RESET electric_cm.retained_wal_limit});
$node->stop('immediate');
$node->start;
ok($stack->active, 'a server that starts with a slot beyond its limit: active');
$stack->settle;
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'retained_wal_limit' AND occurred_at > pg_postmaster_start_time()}), 0, '... the limit waits for the stream');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle') WHERE operation = 'insert'"), 1, '... and the shape goes on');

$node->stop;
$proxy->end;
done_testing();
