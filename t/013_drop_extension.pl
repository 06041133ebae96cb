# DROP EXTENSION in every state of the stack, by every command that can do it,
# committed or not: nothing stays that the stack has made.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $db = 'app';
my $notice = qr/NOTICE:  replication slot "electric_cm_app" will be dropped after commit/;

sub value { return $node->safe_psql($db, $_[0]); }

sub output
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql($db, $sql, on_error_stop => 1);
	is($rc, 0, 'it succeeds') or diag($err);
	return $err;
}

sub become
{
	my ($sql, $what) = @_;
	return ok($node->poll_query_until($db, $sql), $what);
}

sub create
{
	value('CREATE EXTENSION electric_cm' . ($_[0] // ''));
	return ok(wait_active($node, $db), 'active');
}

# Nothing stays.  The server's own view is from another database, lest the
# extension be loaded again by our looking.
sub nothing_stays
{
	my ($what) = @_;
	is(value('SELECT count(*) FROM pg_publication'), 0, "$what: no publication stays");
	become(q{SELECT NOT EXISTS (SELECT FROM pg_replication_slots)}, '... no slot');
	become(
		q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'app'
			AND (backend_type LIKE 'electric_cm%' OR application_name LIKE 'electric_cm%'))},
		'... no process');
	ok( $node->poll_query_until('postgres', q{SELECT NOT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE datname = 'app')}),
		'... no stack');
	return;
}

# the functions are in this database, but no stack: it sees the others'
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET electric_cm.enabled = off');
$node->safe_psql('postgres', 'CREATE EXTENSION electric_cm');
$node->safe_psql('postgres', "CREATE DATABASE $db");
value("ALTER DATABASE $db SET search_path = public, tools");
value('CREATE TABLE t (id int PRIMARY KEY)');

# Active

create();
like(output('DROP EXTENSION electric_cm'), $notice, 'a notice names the slot');
nothing_stays('dropped while active');

# By other commands

value('CREATE SCHEMA tools');
create(' SCHEMA tools');
like(output('DROP SCHEMA tools CASCADE'), $notice, 'DROP SCHEMA CASCADE: a notice names the slot');
nothing_stays('DROP SCHEMA CASCADE');

value('CREATE ROLE keeper SUPERUSER');
value("SET ROLE keeper;\nCREATE EXTENSION electric_cm");
ok(wait_active($node, $db), 'active');
like(output('DROP OWNED BY keeper'), $notice, 'DROP OWNED: a notice names the slot');
nothing_stays('DROP OWNED');

create();
like(output(q{DO 'BEGIN DROP EXTENSION electric_cm; END'}), $notice, 'in a function: a notice names the slot');
nothing_stays('DROP in a function');

value('CREATE SCHEMA tools');
create(' SCHEMA tools');
output(q{DO 'BEGIN DROP SCHEMA tools CASCADE; END'});
nothing_stays('DROP SCHEMA CASCADE in a function');

# Not by somebody without the right to it

create();
my $manager = "SELECT pid FROM electric_cm_stat_manager WHERE datname = 'app'";
my $pid = value($manager);
value('CREATE ROLE stranger');
my ($rc, $out, $err) = $node->psql($db, "SET ROLE stranger;\nDROP EXTENSION electric_cm");
like($err, qr/must be owner of extension/, 'a stranger may not');
($rc, $out, $err) = $node->psql($db, "SET ROLE stranger;\nDROP OWNED BY keeper");
like($err, qr/permission denied/, '... nor what is not his');
($rc, $out, $err) = $node->psql($db, "SET ROLE stranger;\nDROP SCHEMA public CASCADE");
like($err, qr/must be owner of schema/, '... nor the schema');
is(value($manager), $pid, 'the stack has not noticed');

# Rolled back

my $handle = value(q{SELECT electric_cm_create_shape('t')});
value(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});

sub all_there
{
	my ($what) = @_;
	ok(wait_active($node, $db), "$what: active");
	my $n = 1 + value('SELECT coalesce(max(id), 0) FROM t');
	value("INSERT INTO t VALUES ($n)");
	value(q{SELECT electric_cm_await_flushed(NULL, '60 s')});
	my ($ok, $entries) = replay_equals($node, $db, $handle, 't', ['id']);
	ok($ok && $entries == $n, '... with its shape');
	is( value('SELECT (SELECT count(*) FROM pg_replication_slots) || $$ $$ ||
			(SELECT count(*) FROM pg_publication)'),
		'1 1', '... with slot and publication');
	return;
}

like(output("BEGIN;\nDROP EXTENSION electric_cm;\nROLLBACK"), $notice, 'rolled back: the notice');
all_there('rolled back');
output("BEGIN;\nSAVEPOINT s;\nDROP EXTENSION electric_cm;\nROLLBACK TO s;\nCREATE DOMAIN d AS int;\nCOMMIT");
all_there('rolled back to a savepoint');
output("BEGIN;\nSAVEPOINT s;\nDROP SCHEMA public CASCADE;\nROLLBACK TO s;\nINSERT INTO t SELECT max(id) + 1 FROM t;\nCOMMIT");
all_there('DROP SCHEMA rolled back to a savepoint');
output(q{DO $$ BEGIN
	BEGIN DROP EXTENSION electric_cm; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;
	INSERT INTO t SELECT max(id) + 1 FROM t; END $$});
all_there('rolled back in a function');
($rc, $out, $err) = $node->psql($db, "BEGIN;\nDROP EXTENSION electric_cm;\nPREPARE TRANSACTION 'p'");
like($err, qr/cannot PREPARE a transaction that has dropped the extension/, 'it cannot be prepared');
all_there('not prepared');

my $session = $node->background_psql($db, on_error_stop => 0);
my $session_pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe('BEGIN');
$session->query('DROP EXTENSION electric_cm');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($session_pid)");
all_there('who drops it is killed before the commit');
$session->{run}->kill_kill;

# what counts is the release, not the savepoint
output("BEGIN;\nSAVEPOINT s;\nDROP EXTENSION electric_cm;\nRELEASE s;\nSAVEPOINT u;\nROLLBACK TO u;\nCOMMIT");
nothing_stays('dropped after a released savepoint');

# Dropped and created again in one transaction

create();
value(q{SELECT electric_cm_create_shape('t')});
my $before = value('SELECT restart_lsn FROM pg_replication_slots');
output("BEGIN;\nDROP EXTENSION electric_cm;\nCREATE EXTENSION electric_cm;\nCOMMIT");
ok(wait_active($node, $db), 'dropped and created again: active');
is(value(q{SELECT electric_cm_status()}), 'active', '... it really is');
is( value(q{SELECT (SELECT count(*) FROM electric_cm_shapes) || ' ' || (SELECT count(*) FROM pg_publication)
		|| ' ' || (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots)}),
	'0 1 electric_cm_app', '... with a new slot and publication, and no shape');
is(value("SELECT restart_lsn > '$before' FROM pg_replication_slots"), 't', '... not the old one');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped again');

# Stopped

create();
$handle = value(q{SELECT electric_cm_create_shape('t')});
value('SELECT electric_cm_stop()');
like(output('DROP EXTENSION electric_cm'), $notice, 'dropped while stopped: the notice');
nothing_stays('dropped while stopped');

create();
value('SELECT electric_cm_stop()');
$node->restart;
like(output('DROP EXTENSION electric_cm'), $notice, 'dropped after a restart while stopped: the notice');
nothing_stays('dropped while stopped since before a restart');

# Disabled; not listed any more, so that no manager may even have a look
create();
value('ALTER DATABASE app SET electric_cm.enabled = off');
$node->reload;
become(q{SELECT electric_cm_status() = 'stopped'}, 'disabled');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped while disabled');
value('ALTER DATABASE app RESET electric_cm.enabled');

create();
$node->append_conf('postgresql.conf', "electric_cm.databases = 'postgres'");
$node->restart;
like(output('DROP EXTENSION electric_cm'), $notice, 'dropped while not listed: the notice');
nothing_stays('dropped while not listed');
$node->append_conf('postgresql.conf', "electric_cm.databases = '*'");
$node->reload;

# Failed

create();
value(q{ALTER DATABASE app SET electric_cm.publication_name = 'half'});
value(q{CREATE PUBLICATION half WITH (publish = 'insert')});
$node->reload;
become(q{SELECT electric_cm_status() = 'failed'}, 'failed');
output('DROP EXTENSION electric_cm');
is(value('SELECT pubname FROM pg_publication'), 'half', "the user's publication stays");
value('DROP PUBLICATION half');
nothing_stays('dropped while failed');
value('ALTER DATABASE app RESET electric_cm.publication_name');

# Waiting for the lock

create();
value('SELECT electric_cm_stop()');
my $holder = $node->background_psql($db);
$holder->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_app'))});
value('SELECT electric_cm_start()');
become(q{SELECT electric_cm_status() = 'waiting'}, 'waits for the lock');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped while waiting for the lock');
$holder->quit;

# Creating its slot, which an old transaction keeps it from

$holder = $node->background_psql($db);
$holder->query_safe('BEGIN');
$holder->query_safe('CREATE TABLE never (id int)');
value('CREATE EXTENSION electric_cm');
become(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'app'
	AND step = 'create_slot' AND waiting_for <> '')}, 'waits with its slot for an old transaction');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped while creating the slot');

$holder->query_safe('ROLLBACK');
$holder->quit;

# While a consumer is in the middle of a transaction

create();
$handle = value(q{SELECT electric_cm_create_shape('t')});
value(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
my $locker = $node->background_psql($db);
$locker->query_safe('BEGIN');
$locker->query_safe('LOCK TABLE _electric_cm.progress IN EXCLUSIVE MODE');
value('INSERT INTO t SELECT 1000000 + i FROM generate_series(1, 1000) i');
become(q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'app'
	AND backend_type = 'electric_cm consumer' AND wait_event_type = 'Lock')},
	'a consumer waits in the middle of its transaction');
my $dropper = $node->background_psql($db, on_error_stop => 0);
$dropper->{stdin} .= "DROP EXTENSION electric_cm;\n";
$dropper->{run}->pump_nb;
become(q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')},
	'the stack is out of the way, only the user is waited for');
is( value(q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'app' AND backend_type LIKE 'electric_cm%'}),
	0, '... no consumer is left to wait for');
$locker->query_safe('ROLLBACK');
$locker->quit;
become(q{SELECT NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'electric_cm')}, 'and it is dropped');
$dropper->quit;
nothing_stays('dropped while a consumer was in a transaction');

# What the user has made stays

value('CREATE PUBLICATION electric_cm_publication');
create();
output('DROP EXTENSION electric_cm');
is(value('SELECT pubname FROM pg_publication'), 'electric_cm_publication', "the user's publication stays");

value(q{ALTER DATABASE app SET electric_cm.slot_name = 'mine'});
value(q{SELECT pg_create_logical_replication_slot('mine', 'pgoutput')});
create();
is(value('SELECT active FROM pg_replication_slots'), 't', "the user's slot is used");
unlike(output('DROP EXTENSION electric_cm'), qr/slot/, 'no notice of it');
become(q{SELECT NOT active FROM pg_replication_slots}, 'it is not used any more');
is(value('SELECT slot_name FROM pg_replication_slots'), 'mine', "the user's slot stays");
value(q{SELECT pg_drop_replication_slot('mine')});
value('DROP PUBLICATION electric_cm_publication');
nothing_stays("a user's slot");

# ... one that we make by that name does not
create();
like(output('DROP EXTENSION electric_cm'), qr/NOTICE:  replication slot "mine" will be dropped/,
	'a slot of that name that we have made: the notice');
nothing_stays('a slot with a name of its own');

# A changed name leaves no slot behind
create();
value('ALTER DATABASE app RESET electric_cm.slot_name');
$node->reload;
become(q{SELECT electric_cm_status() = 'active'}, 'active after the setting was reset');
is(value('SELECT string_agg(slot_name, $$ $$) FROM pg_replication_slots'),
	'mine', 'without the setting it goes on with the slot that it has');
value(q{ALTER DATABASE app SET electric_cm.slot_name = 'another'});
$node->reload;
become(q{SELECT string_agg(slot_name, ' ') = 'another' FROM pg_replication_slots},
	'with another name the former slot is dropped');
ok(wait_active($node, $db), 'active');
is( value(q{SELECT count(*) FROM electric_cm_events WHERE event = 'replication_slot_dropped'
		AND message LIKE '%"mine"%' AND detail LIKE '%"another"%'}),
	1, '... and an event says so');
output('DROP EXTENSION electric_cm');
nothing_stays('a changed name');
value('ALTER DATABASE app RESET electric_cm.slot_name');

# A user may dump and drop our publication all the same
create();
my ($dump, $dump_err) = run_command([ 'pg_dump', '-d', $node->connstr($db) ]);
is($dump_err, '', 'pg_dump has nothing to say');
like($dump, qr/CREATE PUBLICATION electric_cm_publication/, '... and dumps the publication');
unlike($dump, qr/DEPENDS ON EXTENSION/, '... as an ordinary one');
value('SELECT electric_cm_stop()');
value('DROP PUBLICATION electric_cm_publication');
value('CREATE PUBLICATION electric_cm_publication');
value('SELECT electric_cm_stop(drop_slot => true)');
is(value('SELECT count(*) FROM pg_publication'), 1, "one that the user has made instead of ours is the user's");
output('DROP EXTENSION electric_cm');
is(value('SELECT count(*) FROM pg_publication'), 1, '... also for DROP EXTENSION');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|deadlock detected/, 'the server is well');

$node->stop;
done_testing();
