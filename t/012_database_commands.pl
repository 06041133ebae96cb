# DROP, RENAME, SET TABLESPACE and TEMPLATE of a database whose stack is
# active: the stack is paused, and comes back if the database is still there.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $node = new_node('main',
	conf => "allow_in_place_tablespaces = on\nlog_connections = on\n");

sub value { return $node->safe_psql($_[0], $_[1]); }

sub become
{
	my ($sql, $what) = @_;
	return ok($node->poll_query_until('postgres', $sql), $what);
}

sub stack
{
	my ($db, $column) = @_;
	return value('postgres',
		"SELECT $column FROM electric_cm_stat_manager WHERE datname = '$db'");
}

sub events
{
	my ($db, $event) = @_;
	return value('postgres',
		"SELECT count(*) FROM electric_cm_events WHERE datname = '$db' AND event = '$event'");
}

# a database with an active stack and a shape; returns the shape's handle
sub make_database
{
	my ($db, $owner) = @_;
	value('postgres', "CREATE DATABASE $db" . ($owner ? " OWNER $owner" : ''));
	value($db, 'CREATE EXTENSION electric_cm');
	value($db, 'CREATE TABLE t (id int PRIMARY KEY, v text)');
	ok(wait_active($node, $db), "$db: active");
	my $handle = value($db, q{SELECT electric_cm_create_shape('t')});
	value($db, qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
	value($db, q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i});
	return $handle;
}

# the shape is still the same one, and follows the table
sub shape_intact
{
	my ($db, $handle, $what) = @_;
	my $n = 1 + value($db, 'SELECT max(id) FROM t');
	value($db, "INSERT INTO t VALUES ($n, 'after')");
	value($db, q{SELECT electric_cm_await_flushed(NULL, '60 s')});
	my ($ok, $entries) = replay_equals($node, $db, $handle, 't', ['id']);
	return ok($ok && $entries == $n, "$what: the shape is intact ($entries entries)");
}

# the command fails and leaves the manager alone
sub refused
{
	my ($role, $sql, $db, $error, $what) = @_;
	my $pid = stack($db, 'pid');
	my ($rc, $out, $err) =
	  $node->psql('postgres', ($role ? "SET ROLE $role;\n" : '') . $sql);
	like($err, $error, "$what: refused");
	is(stack($db, 'pid || status'), "${pid}active", '... and the stack has not noticed');
	return;
}

value('postgres', 'CREATE EXTENSION electric_cm');
value('postgres', 'CREATE ROLE stranger CREATEDB');
value('postgres', 'CREATE ROLE keeper LOGIN');
value('postgres', q{CREATE TABLESPACE elsewhere LOCATION ''});
ok(wait_active($node, 'postgres'), 'active');
my $handle = make_database('app', 'keeper');

# Who may not, or can't, does not disturb

refused('stranger', 'DROP DATABASE app', 'app', qr/must be owner of database/, 'DROP by a stranger');
refused('stranger', 'DROP DATABASE app WITH (FORCE)',
	'app', qr/must be owner of database/, 'DROP WITH (FORCE) by a stranger');
refused('stranger', 'ALTER DATABASE app RENAME TO other',
	'app', qr/must be owner of database/, 'RENAME by a stranger');
refused('stranger', 'ALTER DATABASE app SET TABLESPACE elsewhere',
	'app', qr/must be owner of database/, 'SET TABLESPACE by a stranger');
refused('stranger', 'CREATE DATABASE other TEMPLATE app',
	'app', qr/permission denied to copy database/, 'TEMPLATE by a stranger');
refused('keeper', 'ALTER DATABASE app RENAME TO other',
	'app', qr/permission denied to rename database/, 'RENAME by an owner without CREATEDB');
refused('keeper', 'CREATE DATABASE other TEMPLATE app',
	'app', qr/permission denied to create database/, 'TEMPLATE by an owner without CREATEDB');
refused('', 'BEGIN; DROP DATABASE app', 'app', qr/transaction block/, 'DROP in a transaction block');
refused('', 'BEGIN; ALTER DATABASE app SET TABLESPACE elsewhere',
	'app', qr/transaction block/, 'SET TABLESPACE in a transaction block');
refused('', 'BEGIN; CREATE DATABASE other TEMPLATE app',
	'app', qr/transaction block/, 'CREATE in a transaction block');
refused('', q{DO 'BEGIN EXECUTE $$DROP DATABASE app$$; END'},
	'app', qr/cannot be executed from a function/, 'DROP in a function');
refused('', 'BEGIN READ ONLY; ALTER DATABASE app RENAME TO other',
	'app', qr/read-only transaction/, 'RENAME in a read-only transaction');
refused('', 'ALTER DATABASE app RENAME TO postgres',
	'app', qr/already exists/, 'RENAME to a name that is taken');
refused('', 'DROP DATABASE postgres', 'postgres', qr/currently open database/,
	"DROP of one's own database");
is(events('app', 'stack_paused'), 0, 'the stack has never been paused');

# RENAME

value('postgres', 'ALTER DATABASE app RENAME TO shop');
ok(wait_active($node, 'shop'), 'active after RENAME');
is(stack('shop', 'last_error'), '', '... without an error');
shape_intact('shop', $handle, 'RENAME');
is( value('shop', 'SELECT string_agg(slot_name, $$ $$) FROM pg_replication_slots WHERE database = current_database()'),
	'electric_cm_app', 'it goes on with the slot it had');
is( value('shop', q{SELECT setting FROM electric_cm_options
		WHERE datname = 'shop' AND name = 'electric_cm.slot_name'}),
	'electric_cm_app', '... and says so');
is( value('shop', q{SELECT string_agg(concat_ws(' ', name, verdict), ', ' ORDER BY name) FROM electric_cm_check()
		WHERE name IN ('lock', 'slot') OR name = 'other_slots' AND verdict <> 'PASS'}),
	'lock PASS, slot PASS', '... so does electric_cm_check()');
like(value('shop', q{SELECT detail FROM electric_cm_check() WHERE name = 'slot'}), qr/electric_cm_app/, '... of that slot');
value('shop', 'SELECT electric_cm_stop()');
like(value('shop', q{SELECT detail FROM electric_cm_check() WHERE name = 'slot'}), qr/electric_cm_app/, '... also while stopped');
value('shop', 'SELECT electric_cm_start()');
ok(wait_active($node, 'shop'), 'active');
is(events('app', 'stack_paused') . events('shop', 'stack_resumed'), '11', 'events tell of it');
$node->restart;
ok(wait_active($node, 'shop'), 'active after a restart of the server');
shape_intact('shop', $handle, 'RENAME and restart');

# The old name is free for another database
my $other = make_database('app');
is(value('app', 'SELECT slot_name FROM electric_cm_stat_replication WHERE datname = $$app$$'),
	'electric_cm_app_' . value('app', 'SELECT oid FROM pg_database WHERE datname = $$app$$'),
	'a new database of the old name has a slot of its own');
shape_intact('app', $other, 'the new database');
shape_intact('shop', $handle, 'the renamed one');
value('app', 'SELECT electric_cm_restart()');
ok(wait_active($node, 'app'), 'the new one is active after a restart');
shape_intact('app', $other, 'the new database after a restart');

# RENAME in a transaction
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe('ALTER DATABASE shop RENAME TO bazaar');
is(stack('shop', 'status || $$: $$ || waiting_for'),
	'stopped: paused for ALTER DATABASE RENAME',
	'the stack is paused until the end of the transaction, and says why');
$session->query_safe('ROLLBACK');
ok(wait_active($node, 'shop'), 'active after ROLLBACK');
shape_intact('shop', $handle, 'ROLLBACK');
$session->query_safe('BEGIN');
$session->query_safe('SAVEPOINT s');
$session->query_safe('ALTER DATABASE shop RENAME TO bazaar');
$session->query_safe('ROLLBACK TO s');
ok(wait_active($node, 'shop'), 'active after ROLLBACK TO SAVEPOINT, before the end');
$session->query_safe('ALTER DATABASE shop RENAME TO bazaar');
$session->query_safe('COMMIT');
ok(wait_active($node, 'bazaar'), 'active after COMMIT');
$session->query_safe(q{DO 'BEGIN ALTER DATABASE bazaar RENAME TO shop; END'});
ok(wait_active($node, 'shop'), 'active after RENAME in a function');
shape_intact('shop', $handle, 'RENAME in transactions');

# SET TABLESPACE, TEMPLATE

value('shop', q{INSERT INTO t SELECT max(id) + 1, 'just before' FROM t}); # and not awaited
value('postgres', 'ALTER DATABASE shop SET TABLESPACE elsewhere');
is( value('postgres', q{SELECT spcname FROM pg_database d JOIN pg_tablespace t
		ON t.oid = dattablespace WHERE datname = 'shop'}),
	'elsewhere', 'SET TABLESPACE has moved the database');
ok(wait_active($node, 'shop'), 'active after SET TABLESPACE');
shape_intact('shop', $handle, 'SET TABLESPACE');

value('postgres', 'CREATE DATABASE copy TEMPLATE shop');
ok(wait_active($node, 'shop'), 'active after having been the TEMPLATE of another');
become(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'copy'
	AND status = 'stopped' AND waiting_for LIKE '%copy%')}, 'the copy is stopped, and says why');
is(value('copy', 'SELECT count(*) FROM t'), value('shop', 'SELECT count(*) FROM t'),
	'the copy is complete');
shape_intact('shop', $handle, 'TEMPLATE');
value('postgres', 'DROP DATABASE copy');
is(value('postgres', q{SELECT string_agg(slot_name, ' ' ORDER BY slot_name COLLATE "C")
	FROM pg_replication_slots WHERE slot_name NOT LIKE 'electric_cm_app\_%'}),
	'electric_cm_app electric_cm_postgres', "its end has not touched the original's slot");

# The command fails in the end: another session is in the way

my $guest = $node->background_psql('shop');
my ($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE shop');
like($err, qr/is being accessed by other users/, 'DROP fails because of another session');
ok(wait_active($node, 'shop'), 'active again after DROP has failed');
shape_intact('shop', $handle, 'DROP that has failed');
refused('', 'ALTER DATABASE shop SET TABLESPACE pg_default',
	'shop', qr/is being accessed by other users/, 'SET TABLESPACE because of another session');

# ... and the one who runs it is cancelled, or killed, while it waits for that
for my $end (qw(pg_cancel_backend pg_terminate_backend))
{
	my $dropper = $node->background_psql('postgres', on_error_stop => 0);
	my $dropper_pid = $dropper->query_safe('SELECT pg_backend_pid()');
	$dropper->{stdin} .= "DROP DATABASE shop;\n";
	$dropper->{run}->pump_nb;
	become(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
		WHERE datname = 'shop' AND waiting_for = 'paused for DROP DATABASE')},
		"DROP waits for another session");
	value('postgres', "SELECT $end($dropper_pid)");
	ok(wait_active($node, 'shop'), "active again after $end() of who runs DROP");
	# psql of a killed backend has no session to quit from
	$end eq 'pg_cancel_backend' ? $dropper->quit : $dropper->{run}->kill_kill;
}
shape_intact('shop', $handle, 'DROP that was interrupted');

# ... or while it waits for the stack itself, which is too slow
my $manager = stack('shop', 'pid');
kill 'STOP', $manager;
my $renamer = $node->background_psql('postgres', on_error_stop => 0);
$renamer->{stdin} .= "ALTER DATABASE shop RENAME TO nothing;\n";
$renamer->{run}->pump_nb;
become(q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%RENAME TO nothing%'
	AND pid <> pg_backend_pid() AND wait_event_type = 'Extension')}, 'RENAME waits for the stack');
value('postgres', q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity
	WHERE query LIKE '%RENAME TO nothing%' AND pid <> pg_backend_pid()});
become(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%RENAME TO nothing%'
	AND pid <> pg_backend_pid() AND state = 'active')}, '... and can be cancelled');
kill 'CONT', $manager;
ok($node->poll_query_until('postgres', qq{SELECT pid <> $manager AND status = 'active'
	FROM electric_cm_stat_manager WHERE datname = 'shop'}), 'active again after that');
$renamer->quit;
shape_intact('shop', $handle, 'RENAME that was cancelled');

# Two at a time: it does not come back before both are over
my @renamers = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 2;
$guest->quit;
$renamers[0]->query_safe('BEGIN');
$renamers[0]->query_safe('ALTER DATABASE shop RENAME TO one');
$renamers[1]->{stdin} .= "BEGIN; ALTER DATABASE shop RENAME TO two;\n";
$renamers[1]->{run}->pump_nb;
become(q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted
	AND locktype = 'object' AND classid = 'pg_database'::regclass)}, 'a second RENAME waits for the first');
$renamers[0]->query_safe('ROLLBACK');
become(q{SELECT EXISTS (SELECT FROM pg_stat_activity
	WHERE query LIKE '%RENAME TO two%' AND state = 'idle in transaction')}, 'the second has its turn');
is(stack('shop', 'status'), 'stopped', 'the stack is still paused');
$renamers[1]->{run}->pump_nb;
value('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE query LIKE '%RENAME TO two%' AND state = 'idle in transaction'});
ok(wait_active($node, 'shop'), 'active when the second has been killed');
$renamers[0]->quit;
$renamers[1]->{run}->kill_kill;
shape_intact('shop', $handle, 'two at a time');

# drop_replication_slot_on_stop() does not mean these
value('shop', 'SELECT electric_cm_drop_replication_slot_on_stop()');
$session->query_safe('ALTER DATABASE shop RENAME TO market');
$session->quit;
ok(wait_active($node, 'market'), 'active after RENAME with drop-on-stop');
shape_intact('market', $handle, 'drop-on-stop');
value('market', 'SELECT electric_cm_stop()');
is(value('market', q{SELECT count(*) FROM pg_replication_slots WHERE database = 'market'}),
	0, '... and the stop itself still drops the slot');
value('market', 'SELECT electric_cm_start()');
ok(wait_active($node, 'market'), 'active');

# A stopped stack stays stopped
value('app', 'SELECT electric_cm_stop()');
value('postgres', 'ALTER DATABASE app RENAME TO app2');
become(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'app2'
	AND status = 'stopped' AND waiting_for LIKE '%electric_cm_stop%')}, 'a stopped stack stays stopped');
is(value('app2', 'SELECT electric_cm_report_retained_wal_size() >= 0'), 't', 'its slot is known by the old name');
$node->restart;
is(value('app2', 'SELECT electric_cm_report_retained_wal_size() >= 0'), 't', '... also after a restart');
value('app2', 'SELECT electric_cm_start()');
ok(wait_active($node, 'app2'), 'active after start');
shape_intact('app2', $other, 'RENAME while stopped');

# Moved while stopped: nobody could consume what was written before
value('app2', 'SELECT electric_cm_stop()');
value('app2', q{INSERT INTO t SELECT max(id) + 1, 'unseen' FROM t});
value('postgres', 'ALTER DATABASE app2 SET TABLESPACE elsewhere');
value('app2', 'SELECT electric_cm_start()');
become(q{SELECT EXISTS (SELECT FROM electric_cm_events WHERE datname = 'app2' AND event = 'shapes_invalidated')},
	'moved while stopped: the stack begins anew');
ok(wait_active($node, 'app2'), '... and becomes active');
$other = value('app2', q{SELECT electric_cm_create_shape('t')});
value('app2', qq{SELECT count(*) FROM electric_cm_shape_log('$other')});
shape_intact('app2', $other, 'a new shape');

# DROP

# an unrelated database is dropped at once
ok(wait_active($node, 'market'), 'active');
value('postgres', 'CREATE DATABASE unrelated');
$manager = stack('market', 'pid');
my $began = time;
value('postgres', 'DROP DATABASE unrelated');
cmp_ok(time - $began, '<', 3, 'an unrelated database is dropped without delay');
is(stack('market', 'pid'), $manager, '... and the stack has not noticed');

value('postgres', 'GRANT CREATE ON TABLESPACE pg_default TO keeper');
value('postgres', "SET ROLE keeper;\nALTER DATABASE market SET TABLESPACE pg_default");
ok(wait_active($node, 'market'), 'the owner may move it');
$guest = $node->background_psql('market', on_error_stop => 0);
($rc, $out, $err) = $node->psql('postgres', "SET ROLE keeper;\nDROP DATABASE market WITH (FORCE)");
like($err, qr/permission denied|must be/, "the owner can't end a superuser's session");
ok(wait_active($node, 'market'), 'active again after that');
$guest->quit;
$node->safe_psql('postgres', "SET ROLE keeper;\nDROP DATABASE market");
pass('an owner who is no superuser may drop it');
is(value('postgres', q{SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'electric_cm_app'}),
	0, 'its slot is gone when DROP returns');
become(q{SELECT NOT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'market')},
	'the dropped database is forgotten');

$guest = $node->background_psql('app2', on_error_stop => 0);
value('postgres', 'DROP DATABASE app2 WITH (FORCE)');
is(value('postgres', q{SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'electric_cm_app%'}),
	0, 'WITH (FORCE): its slot is gone when DROP returns');
become(q{SELECT count(*) = 1 FROM electric_cm_stat_manager}, 'only one stack is left');
$guest->{run}->kill_kill;

make_database('owned', 'keeper');
$node->safe_psql('postgres', "SET ROLE keeper;\nDROP DATABASE owned WITH (FORCE)");
pass('the owner may use FORCE');
become(q{SELECT count(*) = 1 FROM electric_cm_stat_manager}, 'only one stack is left');
ok(wait_active($node, 'postgres'), '... and it is active');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal/, 'the server is well');

$node->stop;
done_testing();
