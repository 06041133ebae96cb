# DROP EXTENSION in every state of the stack, by every command that can do it,
# committed or not: nothing stays that the stack has made.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', db => 'app');
my $node = $stack->node;
my $db = 'app';
my $notice = qr/NOTICE:  replication slot "electric_cm_app" will be dropped after commit/;

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
	return ok(ElectricCM::poll($node, $db, $sql), $what);
}

sub create
{
	$stack->sql('CREATE EXTENSION electric_cm' . ($_[0] // ''));
	return ok($stack->active, 'active');
}

# Nothing stays.  The server's own view is from another database, lest the
# extension be loaded again by our looking.
sub nothing_stays
{
	my ($what) = @_;
	is($stack->sql('SELECT count(*) FROM pg_publication'), 0, "$what: no publication stays");
	become(q{SELECT NOT EXISTS (SELECT FROM pg_replication_slots)}, '... no slot');
	become(
		q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'app'
			AND (backend_type LIKE 'electric_cm%' OR application_name LIKE 'electric_cm%'))},
		'... no process');
	ok( ElectricCM::poll($node, 'postgres', q{SELECT NOT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE datname = 'app')}),
		'... no stack');
	return;
}

# the functions are in this database, but no stack: it sees the others'
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET electric_cm.enabled = off');
$node->safe_psql('postgres', 'CREATE EXTENSION electric_cm');
$node->safe_psql('postgres', "CREATE DATABASE $db");
$stack->sql("ALTER DATABASE $db SET search_path = public, tools");
$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');

# Active

create();
like(output('DROP EXTENSION electric_cm'), $notice, 'a notice names the slot');
nothing_stays('dropped while active');

# By other commands

$stack->sql('CREATE SCHEMA tools');
create(' SCHEMA tools');
like(output('DROP SCHEMA tools CASCADE'), $notice, 'DROP SCHEMA CASCADE: a notice names the slot');
nothing_stays('DROP SCHEMA CASCADE');

$stack->sql('CREATE ROLE keeper SUPERUSER');
$stack->sql("SET ROLE keeper;\nCREATE EXTENSION electric_cm");
ok($stack->active, 'active');
like(output('DROP OWNED BY keeper'), $notice, 'DROP OWNED: a notice names the slot');
nothing_stays('DROP OWNED');

create();
like(output(q{DO 'BEGIN DROP EXTENSION electric_cm; END'}), $notice, 'in a function: a notice names the slot');
nothing_stays('DROP in a function');

$stack->sql('CREATE SCHEMA tools');
create(' SCHEMA tools');
output(q{DO 'BEGIN DROP SCHEMA tools CASCADE; END'});
nothing_stays('DROP SCHEMA CASCADE in a function');

# Not by somebody without the right to it

create();
my $manager = "SELECT pid FROM electric_cm_stat_manager WHERE datname = 'app'";
my $pid = $stack->sql($manager);
$stack->sql('CREATE ROLE stranger');
my ($rc, $out, $err) = $node->psql($db, "SET ROLE stranger;\nDROP EXTENSION electric_cm");
like($err, qr/must be owner of extension/, 'a stranger may not');
($rc, $out, $err) = $node->psql($db, "SET ROLE stranger;\nDROP OWNED BY keeper");
like($err, qr/permission denied/, '... nor what is not his');
($rc, $out, $err) = $node->psql($db, "SET ROLE stranger;\nDROP SCHEMA public CASCADE");
like($err, qr/must be owner of schema/, '... nor the schema');
is($stack->sql($manager), $pid, 'the stack has not noticed');

# Rolled back

my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});

sub all_there
{
	my ($what) = @_;
	ok($stack->active, "$what: active");
	my $n = 1 + $stack->sql('SELECT coalesce(max(id), 0) FROM t');
	$stack->sql("INSERT INTO t VALUES ($n)");
	$stack->settle;
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	ok($ok && $entries == $n, '... with its shape');
	is( $stack->sql('SELECT (SELECT count(*) FROM pg_replication_slots) || $$ $$ ||
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
$stack->sql(q{SELECT electric_cm_create_shape('t')});
my $before = $stack->sql('SELECT restart_lsn FROM pg_replication_slots');
output("BEGIN;\nDROP EXTENSION electric_cm;\nCREATE EXTENSION electric_cm;\nCOMMIT");
ok($stack->active, 'dropped and created again: active');
is($stack->sql(q{SELECT electric_cm_status()}), 'active', '... it really is');
is( $stack->sql(q{SELECT (SELECT count(*) FROM electric_cm_shapes) || ' ' || (SELECT count(*) FROM pg_publication)
		|| ' ' || (SELECT string_agg(slot_name, ' ') FROM pg_replication_slots)}),
	'0 1 electric_cm_app', '... with a new slot and publication, and no shape');
is($stack->sql("SELECT restart_lsn > '$before' FROM pg_replication_slots"), 't', '... not the old one');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped again');

# Stopped

create();
$handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql('SELECT electric_cm_stop()');
like(output('DROP EXTENSION electric_cm'), $notice, 'dropped while stopped: the notice');
nothing_stays('dropped while stopped');

create();
$stack->sql('SELECT electric_cm_stop()');
$node->restart;
like(output('DROP EXTENSION electric_cm'), $notice, 'dropped after a restart while stopped: the notice');
nothing_stays('dropped while stopped since before a restart');

# Disabled; not listed any more, so that no manager may even have a look
create();
$stack->sql('ALTER DATABASE app SET electric_cm.enabled = off');
$node->reload;
become(q{SELECT electric_cm_status() = 'stopped'}, 'disabled');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped while disabled');
$stack->sql('ALTER DATABASE app RESET electric_cm.enabled');

create();
$node->append_conf('postgresql.conf', "electric_cm.databases = 'postgres'");
$node->restart;
like(output('DROP EXTENSION electric_cm'), $notice, 'dropped while not listed: the notice');
nothing_stays('dropped while not listed');
$node->append_conf('postgresql.conf', "electric_cm.databases = '*'");
$node->reload;

# Failed

create();
$stack->sql(q{ALTER DATABASE app SET electric_cm.publication_name = 'half'});
$stack->sql($stack->publication_sql('half', undef, q{publish = 'insert'}));
$node->reload;
become(q{SELECT electric_cm_status() = 'failed'}, 'failed');
output('DROP EXTENSION electric_cm');
is($stack->sql('SELECT pubname FROM pg_publication'), 'half', "the user's publication stays");
$stack->sql('DROP PUBLICATION half');
nothing_stays('dropped while failed');
$stack->sql('ALTER DATABASE app RESET electric_cm.publication_name');

# Waiting for the lock

create();
$stack->sql('SELECT electric_cm_stop()');
my $holder = $node->background_psql($db);
$holder->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_app'))});
$stack->sql('SELECT electric_cm_start()');
become(q{SELECT electric_cm_status() = 'waiting'}, 'waits for the lock');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped while waiting for the lock');
$holder->quit;

# Creating its slot, which an old transaction keeps it from

$holder = $node->background_psql($db);
$holder->query_safe('BEGIN');
$holder->query_safe('CREATE TABLE never (id int)');
$stack->sql('CREATE EXTENSION electric_cm');
become(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'app'
	AND step = 'create_slot' AND waiting_for <> '')}, 'waits with its slot for an old transaction');
output('DROP EXTENSION electric_cm');
nothing_stays('dropped while creating the slot');

$holder->query_safe('ROLLBACK');
$holder->quit;

# While a consumer is in the middle of a transaction

create();
$handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
my $locker = $node->background_psql($db);
$locker->query_safe('BEGIN');
$locker->query_safe('LOCK TABLE _electric_cm.progress IN EXCLUSIVE MODE');
$stack->sql('INSERT INTO t SELECT 1000000 + i FROM generate_series(1, 1000) i');
become(q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'app'
	AND backend_type = 'electric_cm consumer' AND wait_event_type = 'Lock')},
	'a consumer waits in the middle of its transaction');
my $dropper = $node->background_psql($db, on_error_stop => 0);
$dropper->{stdin} .= "DROP EXTENSION electric_cm;\n";
$dropper->{run}->pump_nb;
become(q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')},
	'the stack is out of the way, only the user is waited for');
become(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'app' AND backend_type LIKE 'electric_cm%'},
	'... no consumer is left to wait for');
$locker->query_safe('ROLLBACK');
$locker->quit;
become(q{SELECT NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'electric_cm')}, 'and it is dropped');
$dropper->quit;
nothing_stays('dropped while a consumer was in a transaction');

# What the user has made stays

$stack->sql($stack->publication_sql('electric_cm_publication'));
create();
output('DROP EXTENSION electric_cm');
is($stack->sql('SELECT pubname FROM pg_publication'), 'electric_cm_publication', "the user's publication stays");

$stack->sql(q{ALTER DATABASE app SET electric_cm.slot_name = 'mine'});
$stack->sql(q{SELECT pg_create_logical_replication_slot('mine', 'pgoutput')});
create();
is($stack->sql('SELECT active FROM pg_replication_slots'), 't', "the user's slot is used");
unlike(output('DROP EXTENSION electric_cm'), qr/slot/, 'no notice of it');
become(q{SELECT NOT active FROM pg_replication_slots}, 'it is not used any more');
is($stack->sql('SELECT slot_name FROM pg_replication_slots'), 'mine', "the user's slot stays");
$stack->sql(q{SELECT pg_drop_replication_slot('mine')});
$stack->sql('DROP PUBLICATION electric_cm_publication');
nothing_stays("a user's slot");

# ... one that we make by that name does not
create();
like(output('DROP EXTENSION electric_cm'), qr/NOTICE:  replication slot "mine" will be dropped/,
	'a slot of that name that we have made: the notice');
nothing_stays('a slot with a name of its own');

# A changed name leaves no slot behind
create();
$stack->sql('ALTER DATABASE app RESET electric_cm.slot_name');
$node->reload;
become(q{SELECT electric_cm_status() = 'active'}, 'active after the setting was reset');
is($stack->sql('SELECT string_agg(slot_name, $$ $$) FROM pg_replication_slots'),
	'mine', 'without the setting it goes on with the slot that it has');
$stack->sql(q{ALTER DATABASE app SET electric_cm.slot_name = 'another'});
$node->reload;
become(q{SELECT string_agg(slot_name, ' ') = 'another' FROM pg_replication_slots},
	'with another name the former slot is dropped');
ok($stack->active, 'active');
is( $stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'replication_slot_dropped'
		AND message LIKE '%"mine"%' AND detail LIKE '%"another"%'}),
	1, '... and an event says so');
output('DROP EXTENSION electric_cm');
nothing_stays('a changed name');
$stack->sql('ALTER DATABASE app RESET electric_cm.slot_name');

# A user may dump and drop our publication all the same
create();
my ($dump, $dump_err) = run_command([ 'pg_dump', '-d', $node->connstr($db) ]);
is($dump_err, '', 'pg_dump has nothing to say');
like($dump, qr/CREATE PUBLICATION electric_cm_publication/, '... and dumps the publication');
unlike($dump, qr/DEPENDS ON EXTENSION/, '... as an ordinary one');
$stack->sql('SELECT electric_cm_stop()');
$stack->sql('DROP PUBLICATION electric_cm_publication');
$stack->sql($stack->publication_sql('electric_cm_publication'));
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
is($stack->sql('SELECT count(*) FROM pg_publication'), 1, "one that the user has made instead of ours is the user's");
output('DROP EXTENSION electric_cm');
is($stack->sql('SELECT count(*) FROM pg_publication'), 1, '... also for DROP EXTENSION');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal|deadlock detected/, 'the server is well');

$node->stop;
done_testing();
