# What surrounds the stack misbehaves: a consumer that is stopped for long, a
# synchronous standby that is dead, locks on catalogs and on the stack's own
# tables, too few workers.  The manager goes on answering and feeding back.
use strict;
use warnings;

use ElectricCM qw(new_stack new_node wait_active);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $stack = new_stack('main', conf => q{
wal_sender_timeout = '2 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
});
my $node = $stack->node;
my $db = 'postgres';

sub becomes { return $stack->becomes($_[1], $_[0]); }

my $walsender = "(SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication')";

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

sub add_rows
{
	my ($n) = @_;
	$stack->sql(qq{SET statement_timeout = '30 s';
		INSERT INTO t SELECT (SELECT coalesce(max(id), 0) FROM t) + i, repeat('x', 1000) FROM generate_series(1, $n) i});
	return;
}

sub log_is_right
{
	my ($what) = @_;
	$stack->sql(q{SELECT electric_cm_await_flushed(NULL, '60 s')});
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}

# A consumer that is stopped for longer than wal_sender_timeout, with a full
# queue: the connection is the same afterwards

my $before = $stack->sql("SELECT $walsender || ' ' || current_setting('wal_sender_timeout')");
like($before, qr/ 2s$/, 'wal_sender_timeout is 2 s');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
my $began = $stack->sql('SELECT now()');
kill 'STOP', $consumer or die 'no consumer';
add_rows(10_000);
becomes('a stopped consumer: the manager is responsive for more than three times wal_sender_timeout',
	"SELECT electric_cm_status() = 'active' AND sampled_at > '$began'::timestamptz + interval '7 s' FROM electric_cm_stat_replication");
becomes('... and the walsender has heard of it lately',
	"SELECT reply_time > '$began'::timestamptz + interval '5 s' FROM pg_stat_replication WHERE pid = $walsender");
kill 'CONT', $consumer;
log_is_right('it goes on');
is($stack->sql("SELECT $walsender || ' ' || current_setting('wal_sender_timeout')"), $before, 'the connection is the same');
is($stack->sql("SELECT count(*) FROM electric_cm_events WHERE event = 'connection_error'"), 0, 'no error in between');

# A synchronous standby that is dead: commits of others wait, ours do not

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
$ENV{PGOPTIONS} = '-c synchronous_commit=local';
my $waits = $node->background_psql($db, on_error_stop => 0, timeout => 180);
$waits->query_safe('SET synchronous_commit = on');
$waits->query_until(qr/^start/m, "\\echo start\nINSERT INTO t VALUES (-1);\n");
becomes('a dead synchronous standby: an application waits for it',
	q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')});
add_rows(100);
my $another = $stack->sql(q{CREATE TABLE s (id int PRIMARY KEY); SELECT electric_cm_create_shape('s')});
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$another')"), 0, '... a shape is created all the same');
$stack->sql("SELECT pg_terminate_backend($walsender)");
becomes('... the stack comes back', q{SELECT electric_cm_status() = 'active'});
$stack->sql('SELECT electric_cm_restart()');
ok($stack->active, '... a manager ends and starts');
$stack->sql(q{SELECT electric_cm_await_flushed(NULL, '60 s')});
cmp_ok($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	'>=', $stack->sql('SELECT count(*) FROM t'), '... and what others can see is in the log');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
$waits->quit;
delete $ENV{PGOPTIONS};
log_is_right('without a standby');

# Locks on catalogs, held for some seconds by a session, which also looks

sub locked
{
	my ($what, $lock) = @_;
	my $holder = $node->background_psql($db);
	my $seen = "SELECT electric_cm_status() || ' ' || (sampled_at > %s) || ' ' || (reply_time > %s)
		FROM electric_cm_stat_replication, pg_stat_replication WHERE active_pid = pid";
	my $result = '';

	$holder->query_safe('BEGIN');
	$holder->query_safe($lock);
	my $since = "'" . $holder->query_safe('SELECT clock_timestamp()') . "'::timestamptz + interval '3 s'";
	for (1 .. 300)
	{
		$result = $holder->query_safe(sprintf $seen, $since, $since);
		last if $result eq 'active true true';
		usleep(100_000);
	}
	is($result, 'active true true', "$what locked: the manager answers, samples and feeds back");
	$holder->query_safe('COMMIT');
	$holder->quit;
	add_rows(100);
	log_is_right("$what locked, and released");
	return;
}

locked('catalogs', 'LOCK TABLE pg_class, pg_attribute, pg_type, pg_proc, pg_publication, pg_publication_rel, pg_extension, pg_db_role_setting, pg_namespace');
locked('the database list', 'LOCK TABLE pg_database, pg_authid');
locked("the stack's own tables",
	'LOCK TABLE _electric_cm.stack, _electric_cm.shape, _electric_cm.shape_state, _electric_cm.shape_log, _electric_cm.progress');

# ... under which applications go on
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE _electric_cm.shape, _electric_cm.shape_state, _electric_cm.shape_log, _electric_cm.progress');
add_rows(2000);
pass("the stack's own tables locked: applications write as before");
$holder->query_safe('COMMIT');
$holder->quit;
log_is_right('what they wrote meanwhile');

my $load = $node->background_psql($db);
$load->query_until(qr/^start/m, q{
\echo start
DO $$ BEGIN FOR i IN 1 .. 400 LOOP
	INSERT INTO t SELECT (SELECT max(id) FROM t) + 1, 'load'; COMMIT; END LOOP; END $$;
});
$stack->sql("VACUUM FULL $_")
  for qw(_electric_cm.shape_log _electric_cm.progress _electric_cm.shape_state _electric_cm.shape _electric_cm.stack
  pg_publication pg_publication_rel pg_class pg_attribute pg_database pg_extension);
$load->query_safe('SELECT 1');
$load->quit;
is($stack->sql('SELECT electric_cm_status()'), 'active', 'VACUUM FULL of all of them under load: active');
log_is_right('VACUUM FULL under load');
is( $stack->sql("SELECT count(*) FROM electric_cm_events WHERE event = 'manager_restarting' AND message NOT LIKE '%by request%'"),
	0, 'no manager has given up meanwhile');
$node->stop;

# Too few background workers: PostgreSQL's own launcher takes one, ours another

my $small = new_node('small', conf => "max_worker_processes = 2\nelectric_cm.reconnect_max_delay = '1 s'\n");
$small->safe_psql($db, 'CREATE EXTENSION electric_cm');
ok( $small->poll_query_until($db,
		q{SELECT status = 'waiting' AND waiting_for LIKE '%max\_worker\_processes%' FROM electric_cm_stat_manager}),
	'no worker for the manager: it says what it waits for');
is( $small->safe_psql($db, q{SELECT count(*) FROM electric_cm_events WHERE event = 'no_free_worker'
		AND detail LIKE 'Raise max\_worker\_processes%'}),
	1, 'an event says so, once, with the remedy');
$small->append_conf('postgresql.conf', 'max_worker_processes = 3');
$small->restart;
ok( $small->poll_query_until($db,
		q{SELECT status = 'waiting' AND waiting_for LIKE '%max\_worker\_processes): 2 are needed, 1 of 3 are free' AND retry_count > 1
			FROM electric_cm_stat_manager}),
	'none for its consumer: the manager waits for both, and it is tried again');
my ($rc, $out, $err) = $small->psql($db, q{SELECT electric_cm_start()});
like($err, qr/no background worker slot is free.*Raise max_worker_processes/s, 'who waits is told why');
is( $small->safe_psql($db, q{SELECT count(*) FROM electric_cm_events WHERE event = 'no_free_worker'
		AND message LIKE '%needs 2 background workers%' AND detail LIKE 'Raise max\_worker\_processes%'}),
	1, 'an event says so, once, with the remedy');
$small->append_conf('postgresql.conf', 'max_worker_processes = 4');
$small->restart;
ok(wait_active($small, $db), 'enough workers: active');
$small->stop;

done_testing();
