# electric_cm_health() in every status, and as a probe's exit code.
use strict;
use warnings;

use ElectricCM qw(new_node new_stack);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
restart_after_crash = on
electric_cm.status_check_interval = '1 s'
electric_cm.consumer_stall_timeout = '1 s'
electric_cm.pool_size = 2
electric_cm.connection = 'application_name=secret'
});
my $db = 'postgres';
my $node = $stack->node;

sub health { return decode_json($stack->sql('SELECT electric_cm_health()')); }

# The exit code of a shell command that gets the document by psql
sub probe
{
	my ($script, $probed_db) = @_;
	local $ENV{PGHOST} = $stack->node->host;
	local $ENV{PGPORT} = $stack->node->port;
	local $ENV{PGDATABASE} = $probed_db // $db;
	system('sh', '-c', "{ $script; } >$PostgreSQL::Test::Utils::tmp_check/probe 2>&1");
	return $? >> 8;
}
my $ready = q{psql -XAtqc "SELECT electric_cm_await_active('0')"};
my $well = q{psql -XAtqc "SELECT electric_cm_health() ->> 'severity'" | grep -qx ok};
my $nagios = q{case $(psql -XAtqc "SELECT electric_cm_health() ->> 'severity'") in
	ok) exit 0 ;; warning) exit 1 ;; *) exit 2 ;; esac};

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');

# All is well

my $h = health();
is($h->{severity}, 'ok', 'active: ok');
is($h->{reason}, undef, '... for no reason');
is_deeply($h->{problems}, [], '... and without problems');
is($h->{status}, 'active', 'status');
is($h->{standby}, JSON::PP::false, 'no standby');
is($h->{conditions}{$_}{met}, JSON::PP::true, "condition $_ is met") for qw(lock pool consumers replication);
is($h->{versions}{library}, decode_json(slurp_file('META.json'))->{version}, "the library's version is that of META.json");
is($h->{versions}{sql}, $stack->sql(q{SELECT extversion FROM pg_extension WHERE extname = 'electric_cm'}), "the extension's version");
is($h->{slot}{name}, 'electric_cm_postgres', 'slot');
is($h->{slot}{active}, JSON::PP::true, '... active');
like($h->{slot}{retained_wal_bytes}, qr/^\d+$/, '... with figures');
is_deeply($h->{settings}, {
		'electric_cm.status_check_interval' => '1s',
		'electric_cm.consumer_stall_timeout' => '1s',
		'electric_cm.pool_size' => '2',
		'electric_cm.connection' => '********',
	}, 'settings that are not the default, without secrets');
unlike($stack->sql('SELECT electric_cm_health()'), qr/secret/, '... nowhere');
$stack->becomes(q{SELECT electric_cm_health() @? '$.events[*] ? (@.event == "ready")'}, 'events');
is(probe($ready), 0, 'ready');
is(probe($well), 0, 'well');
is(probe($nagios), 0, 'well (0, 1, 2)');
is(probe($ready, 'nosuch'), 2, 'no connection: not ready');
is(probe($well, 'nosuch'), 1, '... not well');
is(probe($nagios, 'nosuch'), 2, '... critical');

# What pg_stat_activity says of the workers

my $workers = q{(SELECT array_agg(concat_ws('; ', backend_type, application_name, state, query) ORDER BY backend_type COLLATE "C")
	FROM pg_stat_activity WHERE backend_type LIKE 'electric_cm%')};
$stack->becomes("SELECT $workers = " . q{ARRAY[
	'electric_cm consumer; electric_cm consumer; idle; waiting for changes',
	'electric_cm launcher; electric_cm launcher; idle; supervising the stacks of this server',
	'electric_cm manager; electric_cm manager; idle; active, step streaming']}, 'workers say who they are and what they do');
$stack->becomes(q{SELECT bool_and(wait_event_type = 'Extension') FROM pg_stat_activity WHERE backend_type LIKE 'electric_cm%'}, '... and that they wait');

# A role that may only watch, in a transaction that may not write

$stack->sql('CREATE ROLE watcher LOGIN IN ROLE pg_monitor');
is($stack->sql(q{BEGIN READ ONLY; SET LOCAL ROLE watcher; SELECT electric_cm_health() ->> 'severity'; COMMIT}), 'ok', 'pg_monitor may ask, in a read-only transaction');
is($stack->sql(q{BEGIN ISOLATION LEVEL SERIALIZABLE; CREATE TABLE t (id int PRIMARY KEY); SELECT electric_cm_health() ->> 'severity'; COMMIT}), 'ok', '... and so may a transaction that writes');

# A shape that is errored

my $handle = $stack->sql(q{CREATE ROLE owner; ALTER TABLE t OWNER TO owner; GRANT EXECUTE ON FUNCTION electric_cm_create_shape TO owner;
	SET ROLE owner; SELECT electric_cm_create_shape('t', 'id > 0')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
is(health()->{shapes}{live}, 1, 'a live shape');
$stack->sql(q{UPDATE _electric_cm.shape_state SET state = 'errored'});
$h = health();
is_deeply([ $h->{severity}, $h->{shapes}{errored} ], [ 'warning', 1 ], 'a shape is errored: warning');
like($h->{reason}, qr/1 shape is errored/, '... which is the reason');
is(probe($well), 1, 'not well');
is(probe($nagios), 1, 'not well (0, 1, 2)');
is(probe($ready), 0, '... though ready');
$stack->sql("SELECT electric_cm_drop_shape('$handle')");

# Tables that it would read are locked

my $locker = $node->background_psql($db, on_error_stop => 1);
$locker->query_safe('BEGIN; LOCK TABLE _electric_cm.event, _electric_cm.shape');
$h = health();
is_deeply([ $h->{severity}, $h->{status}, $h->{shapes}{total} ], [ 'warning', 'active', undef ], 'tables are locked: it answers all the same');
like($h->{reason}, qr/could not read the shapes: /, '... and says so');
ok(scalar(grep { $_->{event} eq 'ready' } @{ $h->{events} }), '... with the recent events');
$locker->query_safe('COMMIT');

# Not all is up

$locker->query_safe(q{BEGIN; CREATE TABLE makes_it_wait ()});
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$h = health();
is_deeply([ $h->{severity}, $h->{status} ], [ 'warning', 'stopped' ], 'stopped: warning');
like($h->{reason}, qr/stopped/, '... which is the reason');
is($h->{slot}{exists}, JSON::PP::false, '... without a slot');
is($h->{conditions}{lock}{met}, JSON::PP::false, '... or a lock');
is(probe($ready), 1, 'not ready');
$stack->sql('SELECT electric_cm_start()');
$stack->becomes(q{SELECT electric_cm_health() #>> '{conditions,replication,waiting_for}' LIKE 'the end of older transactions%'}, 'the slot is being created');
$h = health();
is_deeply([ $h->{severity}, $h->{status}, $h->{step} ], [ 'warning', 'starting', 'create_slot' ], 'starting: warning');
is($h->{conditions}{lock}{met}, JSON::PP::true, '... with the lock');
is($h->{conditions}{replication}{met}, JSON::PP::false, '... without a stream');
$locker->query_safe('COMMIT');
$locker->quit;
ok($stack->active, 'active again');
is(health()->{severity}, 'ok', '... and well');

# Somebody else has the lock

$stack->sql('SELECT electric_cm_stop()');
my $other = $node->background_psql($db, on_error_stop => 1);
$other->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_postgres'))});
$stack->sql('SELECT electric_cm_start()');
$stack->becomes(q{SELECT electric_cm_health() #>> '{conditions,lock,waiting_for}' <> ''}, 'somebody else has the lock');
is(health()->{status}, 'waiting', '... so it waits');
$other->quit;
ok($stack->active, 'active again');

# A configuration error

$node->append_conf('postgresql.conf', "electric_cm.connection = 'user=nosuch'");
$node->reload;
$stack->becomes(q{SELECT electric_cm_status() = 'failed'}, 'a role that does not exist: failed');
$h = health();
is($h->{severity}, 'error', '... error');
like($h->{reason}, qr/"nosuch"/, '... with its message');
like($h->{conditions}{replication}{error}, qr/"nosuch"/, '... at the condition');
is($h->{last_error}{sqlstate}, '28000', '... and its code');
is(probe($nagios), 2, 'critical');
$node->append_conf('postgresql.conf', "electric_cm.connection = ''");
$node->reload;
ok($stack->active, 'active again');

# Elsewhere

$stack->sql('CREATE DATABASE off');
$stack->beside('off')->sql('CREATE EXTENSION electric_cm');
ok($stack->beside('off')->active, 'another stack');
$stack->sql('ALTER DATABASE off SET electric_cm.enabled = off');
$node->reload;
$stack->beside('off')->becomes(q{SELECT electric_cm_health() ->> 'status' = 'stopped'}, 'disabled: stopped');
is($stack->beside('off')->sql(q{SELECT electric_cm_health() #>> '{settings,electric_cm.pool_size}'}), 2, '... it answers');

# The library is not preloaded

my ($rc, $out, $err) = new_node('bare', preload => 0)->psql('postgres',
	q{CREATE EXTENSION electric_cm; SELECT electric_cm_health()}, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($err, qr/55000: electric_cm must be loaded/, 'not preloaded: 55000');

# A standby

$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
$stack = ElectricCM::Stack->new($standby);
$h = health();
is_deeply([ $h->{severity}, $h->{status}, $h->{standby} ], [ 'ok', 'stopped', JSON::PP::true ], 'a standby is well: it has no stack');
like($h->{reason}, qr/starts at promotion/, '... and says why');
cmp_ok(scalar @{ $h->{events} }, '>', 0, '... and shows what was stored on the primary');
is(probe($well), 0, 'well');

done_testing();
