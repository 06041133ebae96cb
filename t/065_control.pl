# The stack is never a synchronous standby, and what starts, stops and checks it
# waits for none; nothing that is recommended costs shapes; and who creates a
# shape hears what is in its way.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "electric_cm.max_managers = 3\nelectric_cm.reconnect_max_delay = '1 s'\n");
my $node = $stack->node;
my $local = '-c synchronous_commit=local -c client_min_messages=warning';
my $superuser;

sub value
{
	local $ENV{PGOPTIONS} = $local;
	return $stack->sql(@_);
}

sub becomes
{
	local $ENV{PGOPTIONS} = $local;
	return $stack->becomes($_[1], $_[0]);
}

# What psql has on standard error, in a session as applications have it
sub said
{
	my ($sql, %opts) = @_;
	my ($rc, $out, $err) = $node->psql($opts{db} // $db, $sql, timeout => 60, %{ $opts{with} // {} });
	return $err;
}

sub names
{
	my ($names) = @_;
	value(q{ALTER SYSTEM SET synchronous_standby_names = '} . ($names =~ s/'/''/gr) . q{'}, 'SELECT pg_reload_conf()');
	return becomes(undef, "SELECT current_setting('synchronous_standby_names') = \$n\$$names\$n\$");
}

my $ours = q{FROM pg_stat_replication WHERE application_name = 'electric_cm replication'};

value('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
value('CREATE TABLE t (id int PRIMARY KEY)', 'INSERT INTO t VALUES (1)');
my $handle = value(q{SELECT electric_cm_create_shape('t')});
value("SELECT count(*) FROM electric_cm_shape_log('$handle')");

# Synchronous standbys, with a real one to see when a reload has been heeded

my $receiver = IPC::Run::start(
	[ 'pg_receivewal', '-d', $node->connstr($db) . ' application_name=real', '-D', $node->basedir, '--synchronous', '--no-loop' ],
	'>', \my $receiver_out, '2>', \my $receiver_err);
becomes('a standby is there', q{SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'real' AND state = 'streaming')});
for my $all ('*', '1 (*)', 'FIRST 2 (*)', 'ANY 1 (*)', 'ANY 1 ("electric_cm replication", real)', '"electric_cm replication", "electric_cm pool", real')
{
	names('');
	becomes(undef, q{SELECT sync_priority = 0 FROM pg_stat_replication WHERE application_name = 'real'});
	names($all);
	becomes(undef, q{SELECT sync_priority > 0 FROM pg_stat_replication WHERE application_name = 'real'});
	value('INSERT INTO t SELECT max(id) + 1 FROM t', 'SELECT electric_cm_await_flushed()');	# it has woken since
	is(value("SELECT sync_priority || ' ' || sync_state $ours"), '0 async', "synchronous_standby_names = $all: the stack is no standby");
}
is(said('INSERT INTO t VALUES (-1)'), '', 'commits go on by the real one');
like(value(q{SELECT verdict || ' ' || detail FROM electric_cm_check() WHERE name = 'synchronous_standbys'}), qr/^PASS .*never one itself/, 'the check says so');
value("SELECT pg_terminate_backend(pid) $ours");
becomes('the walsender is another one', "SELECT state = 'streaming' $ours");
is(value("SELECT sync_priority || ' ' || sync_state $ours"), '0 async', '... which is no standby either');

# ... while its slot is being made, before it streams
names('');
value('SELECT electric_cm_stop(drop_slot => true)');
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN; SELECT pg_current_xact_id()');
value('SELECT electric_cm_start()');
becomes('a slot is being made', q{SELECT step = 'create_slot' AND waiting_for <> '' FROM electric_cm_stat_manager});
names('*');
becomes(undef, q{SELECT sync_priority > 0 FROM pg_stat_replication WHERE application_name = 'real'});
is(value("SELECT sync_priority || ' ' || sync_state $ours"), '0 async', '... by a walsender that is no standby');
names('');
$writer->query_safe('ROLLBACK');
$writer->quit;
ok($stack->active, 'active');
$receiver->kill_kill;

# A synchronous standby that is dead

$handle = value(q{SELECT electric_cm_create_shape('t')});
value("SELECT count(*) FROM electric_cm_shape_log('$handle')");
names('nobody');
like(value(q{SELECT verdict || ' ' || detail FROM electric_cm_check() WHERE name = 'synchronous_standbys'}),
	qr/^WARN .*no standby that it names is connected/, 'a standby is missing: the check says that commits wait');
like(said('SELECT electric_cm_stop()'), qr/stays behind/, 'electric_cm_stop() does not wait for it');
is(value(q{SELECT verdict || ' ' || fix FROM electric_cm_check() WHERE name = 'slot'}), 'WARN SELECT public.electric_cm_start()',
	'the check has a fix for a slot that stays behind');
is(said('SELECT public.electric_cm_start()'), '', '... which waits for no standby');
ok($stack->active, '... and starts the stack');
is(value('SELECT string_agg(handle, q) FROM electric_cm_shapes, (SELECT 1::text) s(q)'), $handle, '... with its shapes');
is(said('SELECT electric_cm_restart()'), '', 'nor does electric_cm_restart()');
ok($stack->active, 'active');
$node->restart;
ok($stack->active, 'after a restart of the server, the last that was said holds: active');
names('');

# A stop that is not committed yet, and a start elsewhere

my $stopper = $node->background_psql($db);
$stopper->query_safe('SET client_min_messages = error; BEGIN; SELECT electric_cm_stop()');
my $pid = $stopper->query_safe('SELECT pg_backend_pid()');
my $starter = $node->background_psql($db);
$starter->query_until(qr/^start/m, "\\echo start\nSELECT electric_cm_start();\n");
becomes('a start waits for the transaction that has stopped the stack',
	"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $pid = ANY (pg_blocking_pids(pid)) AND query LIKE '%electric_cm_start%')");
$stopper->query_safe('COMMIT');
$stopper->quit;
$starter->query_safe('SELECT 1');
$starter->quit;
ok($stack->active, '... and then starts it');
$node->restart;
ok($stack->active, '... also for the next start of the server');

# Somebody who has locked the stack's row

value('SELECT electric_cm_stop()');
my $locker = $node->background_psql($db);
$locker->query_safe('BEGIN; SELECT FROM _electric_cm.stack FOR UPDATE');
$pid = $locker->query_safe('SELECT pg_backend_pid()');
$starter = $node->background_psql($db);
$starter->query_until(qr/^start/m, "\\echo start\nSELECT electric_cm_start();\n");
becomes('a start that waits for a lock says whose',
	"SELECT step = 'check_timeline' AND waiting_for LIKE 'a lock that is held by PID $pid %' FROM electric_cm_stat_manager");
$locker->query_safe('ROLLBACK');
$locker->quit;
$starter->query_safe('SELECT 1');
$starter->quit;
ok($stack->active, '... and goes on when it is released');
is(value('SELECT coalesce(waiting_for, q) FROM electric_cm_stat_manager, (SELECT $$nothing$$) s(q)'), 'nothing', '... waiting for nothing any more');
is(value(q{SELECT handle FROM electric_cm_shapes}), $handle, 'the shape is still there');

# A slot name that is somebody else's

value(q{SELECT pg_create_physical_replication_slot('taken')}, "ALTER DATABASE $db SET electric_cm.slot_name = 'taken'", 'SELECT pg_reload_conf()');
becomes("a slot name that is somebody else's: the stack fails", q{SELECT electric_cm_status() = 'failed'});
my $fix = value(q{SELECT fix FROM electric_cm_check() WHERE name = 'slot'});
like($fix, qr/SET electric_cm.slot_name = 'electric_cm_postgres'/, '... the fix is the slot that the shapes depend on');
value($fix);
value('SELECT pg_reload_conf()');
ok($stack->active, '... with which it is active');
is(value(q{SELECT handle FROM electric_cm_shapes}), $handle, '... and the shape is still there');

# Shapes that nobody makes

value('CREATE TABLE u (id int PRIMARY KEY)', 'CREATE TABLE w (id int PRIMARY KEY)');
value('SELECT electric_cm_stop()');
like(said(q{SELECT electric_cm_create_shape('u')}), qr/NOTICE: .*stopped.*HINT: .*electric_cm_start/s, 'a shape for a stopped stack: a notice');
is(said(q{SELECT electric_cm_create_shape('u')}), '', '... not of one that is there already');
value("ALTER DATABASE $db SET electric_cm.connection = 'user=there_is_none'");
my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_start()');
ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', 'failed');
like(said(q{SELECT electric_cm_create_shape('w')}), qr/NOTICE: .*has failed.*HINT: .*electric_cm_check/s, 'a shape for a stack that has failed: a notice');
value("ALTER DATABASE $db RESET electric_cm.connection", 'SELECT pg_reload_conf()');
ok($stack->active, 'active');
is(said(q{SELECT electric_cm_create_shape('t', 'id > 1')}), '', 'for an active one there is none');
becomes('all of them are made', q{SELECT bool_and(state = 'live') AND count(*) = 4 FROM electric_cm_shapes});

# Of a table of somebody else's

value('CREATE ROLE app LOGIN', 'CREATE SCHEMA "S"', 'CREATE TABLE "S".x (id int PRIMARY KEY)', 'GRANT USAGE ON SCHEMA "S" TO app', 'GRANT SELECT ON "S".x TO app',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape TO app');
my @app = (with => { extra_params => [ '-U', 'app' ] });
my $said = said(q{SELECT electric_cm_create_shape('"S".x')}, @app);
like($said, qr/ERROR: +must be owner of table x\nDETAIL: .*"S".x is not in publication/, "another's table: it is said what is missing");
my ($command) = $said =~ /(ALTER PUBLICATION .*)/;
is($command, 'ALTER PUBLICATION electric_cm_publication ADD TABLE "S".x', '... and which command');
value($command);
is(said(q{SELECT electric_cm_create_shape('"S".x')}, @app), '', '... after which it works');

# An event trigger with names that are not qualified

value('CREATE TABLE ddl_log (tag text)',
	q{CREATE FUNCTION log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO ddl_log VALUES (tg_tag); END'},
	'CREATE EVENT TRIGGER log_ddl ON ddl_command_end EXECUTE FUNCTION log_ddl()', 'CREATE TABLE y (id int PRIMARY KEY)');
$handle = value(q{SELECT electric_cm_create_shape('y')});
becomes('an event trigger that fails is named',
	qq{SELECT waiting_for LIKE '%"ddl_log" does not exist, in PL/pgSQL function public.log_ddl() line 1%' FROM electric_cm_shapes WHERE handle = '$handle'});
becomes('... with what mends it', q{SELECT detail LIKE '%ALTER FUNCTION ... SET search_path%' FROM electric_cm_events WHERE event = 'shape_creation_failed' AND message LIKE '%log_ddl%'});
value('ALTER FUNCTION log_ddl() SET search_path = public');
becomes('... which it does', "SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'");

# Databases in other encodings, seen from one that takes any bytes

value(q{CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
value(q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
$node->safe_psql($_, 'SET client_min_messages = warning; CREATE EXTENSION electric_cm') for qw(latin bytes);
{
	local $ENV{PGCLIENTENCODING} = 'UTF8';
	$node->safe_psql('latin', "ALTER DATABASE latin SET electric_cm.stack_id = 'caf\xc3\xa9'; SELECT pg_reload_conf()");
	ok(ElectricCM::poll($node, 'latin', "SELECT stack_id = 'caf\xc3\xa9' AND status = 'active' FROM electric_cm_stat_manager WHERE datname = 'latin'"), 'a stack has a name in LATIN1');
	for my $view (qw(stat_manager options events stat_connections stat_replication retained_wal_history))
	{
		is(said("SELECT * FROM electric_cm_$view", db => 'bytes'), '', "electric_cm_$view can be read with another client's encoding");
	}
	is($node->safe_psql('bytes', q{SELECT stack_id FROM electric_cm_stat_manager WHERE datname = 'latin'}), 'caf?', '... with what is not valid replaced');
}

# No room for another stack

value('CREATE DATABASE fourth');
like(said('CREATE EXTENSION electric_cm', db => 'fourth'), qr/NOTICE: +the stack may have to wait: all 3 stacks.*HINT: .*electric_cm.max_managers/s,
	'CREATE EXTENSION without room for a stack: a notice');
value('ALTER SYSTEM SET electric_cm.max_managers = 5', 'ALTER SYSTEM SET max_worker_processes = 8');
$node->restart;
value('CREATE DATABASE fifth');
like(said('CREATE EXTENSION electric_cm', db => 'fifth'), qr/NOTICE: +the stack may have to wait: max_worker_processes is 8.*HINT: +ALTER SYSTEM SET max_worker_processes/s,
	'... without room for its workers: likewise');

$node->stop;
done_testing();
