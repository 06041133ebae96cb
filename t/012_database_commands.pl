# DROP, RENAME, SET TABLESPACE and TEMPLATE of a database whose stack is
# active: the stack is paused, and comes back if the database is still there.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $stack = new_stack('main',
	conf => "allow_in_place_tablespaces = on\nlog_connections = on\n");
my $node = $stack->node;

sub manager_of
{
	my ($db, $column) = @_;
	return $stack->sql(
		"SELECT $column FROM electric_cm_stat_manager WHERE datname = '$db'");
}

sub events
{
	my ($db, $event) = @_;
	return $stack->sql(
		"SELECT count(*) FROM electric_cm_events WHERE datname = '$db' AND event = '$event'");
}

# a database with an active stack and a shape; returns the shape's handle
sub make_database
{
	my ($db, $owner) = @_;
	$stack->sql("CREATE DATABASE $db" . ($owner ? " OWNER $owner" : ''));
	$stack->beside($db)->sql('CREATE EXTENSION electric_cm');
	$stack->beside($db)->sql('CREATE TABLE t (id int PRIMARY KEY, v text)');
	ok($stack->beside($db)->active, "$db: active");
	my $handle = $stack->beside($db)->sql(q{SELECT electric_cm_create_shape('t')});
	$stack->beside($db)->sql(qq{SELECT count(*) FROM electric_cm_shape_log('$handle')});
	$stack->beside($db)->sql(q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i});
	return $handle;
}

# the shape is still the same one, and follows the table
sub shape_intact
{
	my ($db, $handle, $what) = @_;
	my $n = 1 + $stack->beside($db)->sql('SELECT max(id) FROM t');
	$stack->beside($db)->sql("INSERT INTO t VALUES ($n, 'after')");
	$stack->beside($db)->settle;
	my ($ok, $entries) = $stack->beside($db)->replay_equals($handle, 't', ['id']);
	return ok($ok && $entries == $n, "$what: the shape is intact ($entries entries)");
}

# the command fails and leaves the manager alone
sub refused
{
	my ($role, $sql, $db, $error, $what) = @_;
	my $pid = manager_of($db, 'pid');
	my ($rc, $out, $err) =
	  $node->psql('postgres', ($role ? "SET ROLE $role;\n" : '') . $sql);
	like($err, $error, "$what: refused");
	is(manager_of($db, 'pid || status'), "${pid}active", '... and the stack has not noticed');
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE ROLE stranger CREATEDB');
$stack->sql('CREATE ROLE keeper LOGIN');
$stack->sql(q{CREATE TABLESPACE elsewhere LOCATION ''});
ok($stack->active, 'active');
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

$stack->sql('ALTER DATABASE app RENAME TO shop');
ok($stack->beside('shop')->active, 'active after RENAME');
is(manager_of('shop', 'last_error'), '', '... without an error');
shape_intact('shop', $handle, 'RENAME');
is( $stack->beside('shop')->sql('SELECT string_agg(slot_name, $$ $$) FROM pg_replication_slots WHERE database = current_database()'),
	'electric_cm_app', 'it goes on with the slot it had');
is( $stack->beside('shop')->sql(q{SELECT setting FROM electric_cm_options
		WHERE datname = 'shop' AND name = 'electric_cm.slot_name'}),
	'electric_cm_app', '... and says so');
is( $stack->beside('shop')->sql(q{SELECT string_agg(concat_ws(' ', name, verdict), ', ' ORDER BY name) FROM electric_cm_check()
		WHERE name IN ('lock', 'slot') OR name = 'other_slots' AND verdict <> 'PASS'}),
	'lock PASS, slot PASS', '... so does electric_cm_check()');
like($stack->beside('shop')->sql(q{SELECT detail FROM electric_cm_check() WHERE name = 'slot'}), qr/electric_cm_app/, '... of that slot');
$stack->beside('shop')->sql('SELECT electric_cm_stop()');
like($stack->beside('shop')->sql(q{SELECT detail FROM electric_cm_check() WHERE name = 'slot'}), qr/electric_cm_app/, '... also while stopped');
$stack->beside('shop')->sql('SELECT electric_cm_start()');
ok($stack->beside('shop')->active, 'active');
is(events('app', 'stack_paused') . events('shop', 'stack_resumed'), '11', 'events tell of it');
$node->restart;
ok($stack->beside('shop')->active, 'active after a restart of the server');
shape_intact('shop', $handle, 'RENAME and restart');

# The old name is free for another database
my $other = make_database('app');
is($stack->beside('app')->sql('SELECT slot_name FROM electric_cm_stat_replication WHERE datname = $$app$$'),
	'electric_cm_app_' . $stack->beside('app')->sql('SELECT oid FROM pg_database WHERE datname = $$app$$'),
	'a new database of the old name has a slot of its own');
shape_intact('app', $other, 'the new database');
shape_intact('shop', $handle, 'the renamed one');
$stack->beside('app')->sql('SELECT electric_cm_restart()');
ok($stack->beside('app')->active, 'the new one is active after a restart');
shape_intact('app', $other, 'the new database after a restart');

# RENAME in a transaction
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe('ALTER DATABASE shop RENAME TO bazaar');
is(manager_of('shop', 'status || $$: $$ || waiting_for'),
	'stopped: paused for ALTER DATABASE RENAME',
	'the stack is paused until the end of the transaction, and says why');
$session->query_safe('ROLLBACK');
ok($stack->beside('shop')->active, 'active after ROLLBACK');
shape_intact('shop', $handle, 'ROLLBACK');
$session->query_safe('BEGIN');
$session->query_safe('SAVEPOINT s');
$session->query_safe('ALTER DATABASE shop RENAME TO bazaar');
$session->query_safe('ROLLBACK TO s');
ok($stack->beside('shop')->active, 'active after ROLLBACK TO SAVEPOINT, before the end');
$session->query_safe('ALTER DATABASE shop RENAME TO bazaar');
$session->query_safe('COMMIT');
ok($stack->beside('bazaar')->active, 'active after COMMIT');
$session->query_safe(q{DO 'BEGIN ALTER DATABASE bazaar RENAME TO shop; END'});
ok($stack->beside('shop')->active, 'active after RENAME in a function');
shape_intact('shop', $handle, 'RENAME in transactions');

# SET TABLESPACE, TEMPLATE

$stack->beside('shop')->sql(q{INSERT INTO t SELECT max(id) + 1, 'just before' FROM t}); # and not awaited
$stack->sql('ALTER DATABASE shop SET TABLESPACE elsewhere');
is( $stack->sql(q{SELECT spcname FROM pg_database d JOIN pg_tablespace t
		ON t.oid = dattablespace WHERE datname = 'shop'}),
	'elsewhere', 'SET TABLESPACE has moved the database');
ok($stack->beside('shop')->active, 'active after SET TABLESPACE');
shape_intact('shop', $handle, 'SET TABLESPACE');

$stack->sql('CREATE DATABASE copy TEMPLATE shop');
ok($stack->beside('shop')->active, 'active after having been the TEMPLATE of another');
$stack->becomes(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'copy'
	AND status = 'stopped' AND waiting_for LIKE '%copy%')}, 'the copy is stopped, and says why');
is($stack->beside('copy')->sql('SELECT count(*) FROM t'), $stack->beside('shop')->sql('SELECT count(*) FROM t'),
	'the copy is complete');
shape_intact('shop', $handle, 'TEMPLATE');
$stack->sql('DROP DATABASE copy');
is($stack->sql(q{SELECT string_agg(slot_name, ' ' ORDER BY slot_name COLLATE "C")
	FROM pg_replication_slots WHERE slot_name NOT LIKE 'electric_cm_app\_%'}),
	'electric_cm_app electric_cm_postgres', "its end has not touched the original's slot");

# The command fails in the end: another session is in the way

my $guest = $node->background_psql('shop');
my ($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE shop');
like($err, qr/is being accessed by other users/, 'DROP fails because of another session');
ok($stack->beside('shop')->active, 'active again after DROP has failed');
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
	$stack->becomes(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
		WHERE datname = 'shop' AND waiting_for = 'paused for DROP DATABASE')},
		"DROP waits for another session");
	$stack->sql("SELECT $end($dropper_pid)");
	ok($stack->beside('shop')->active, "active again after $end() of who runs DROP");
	# psql of a killed backend has no session to quit from
	$end eq 'pg_cancel_backend' ? $dropper->quit : $dropper->{run}->kill_kill;
}
shape_intact('shop', $handle, 'DROP that was interrupted');

# ... or while it waits for the stack itself, which is too slow
my $manager = manager_of('shop', 'pid');
kill 'STOP', $manager;
my $renamer = $node->background_psql('postgres', on_error_stop => 0);
$renamer->{stdin} .= "ALTER DATABASE shop RENAME TO nothing;\n";
$renamer->{run}->pump_nb;
$stack->becomes(q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%RENAME TO nothing%'
	AND pid <> pg_backend_pid() AND wait_event_type = 'Extension')}, 'RENAME waits for the stack');
$stack->sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity
	WHERE query LIKE '%RENAME TO nothing%' AND pid <> pg_backend_pid()});
$stack->becomes(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%RENAME TO nothing%'
	AND pid <> pg_backend_pid() AND state = 'active')}, '... and can be cancelled');
kill 'CONT', $manager;
ok(ElectricCM::poll($node, 'postgres', qq{SELECT pid <> $manager AND status = 'active'
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
$stack->becomes(q{SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted
	AND locktype = 'object' AND classid = 'pg_database'::regclass)}, 'a second RENAME waits for the first');
$renamers[0]->query_safe('ROLLBACK');
$stack->becomes(q{SELECT EXISTS (SELECT FROM pg_stat_activity
	WHERE query LIKE '%RENAME TO two%' AND state = 'idle in transaction')}, 'the second has its turn');
is(manager_of('shop', 'status'), 'stopped', 'the stack is still paused');
$renamers[1]->{run}->pump_nb;
$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE query LIKE '%RENAME TO two%' AND state = 'idle in transaction'});
ok($stack->beside('shop')->active, 'active when the second has been killed');
$renamers[0]->quit;
$renamers[1]->{run}->kill_kill;
shape_intact('shop', $handle, 'two at a time');

# drop_replication_slot_on_stop() does not mean these
$stack->beside('shop')->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
$session->query_safe('ALTER DATABASE shop RENAME TO market');
$session->quit;
ok($stack->beside('market')->active, 'active after RENAME with drop-on-stop');
shape_intact('market', $handle, 'drop-on-stop');
$stack->beside('market')->sql('SELECT electric_cm_stop()');
is($stack->beside('market')->sql(q{SELECT count(*) FROM pg_replication_slots WHERE database = 'market'}),
	0, '... and the stop itself still drops the slot');
$stack->beside('market')->sql('SELECT electric_cm_start()');
ok($stack->beside('market')->active, 'active');

# A stopped stack stays stopped
$stack->beside('app')->sql('SELECT electric_cm_stop()');
$stack->sql('ALTER DATABASE app RENAME TO app2');
$stack->becomes(q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'app2'
	AND status = 'stopped' AND waiting_for LIKE '%electric_cm_stop%')}, 'a stopped stack stays stopped');
is($stack->beside('app2')->sql('SELECT electric_cm_report_retained_wal_size() >= 0'), 't', 'its slot is known by the old name');
$node->restart;
is($stack->beside('app2')->sql('SELECT electric_cm_report_retained_wal_size() >= 0'), 't', '... also after a restart');
$stack->beside('app2')->sql('SELECT electric_cm_start()');
ok($stack->beside('app2')->active, 'active after start');
shape_intact('app2', $other, 'RENAME while stopped');

# Moved while stopped: nobody could consume what was written before
my $reader = $stack->beside('app2')->reader($other);
$stack->beside('app2')->sql('SELECT electric_cm_stop()');
$stack->beside('app2')->sql(q{INSERT INTO t SELECT max(id) + 1, 'unseen' FROM t});
$stack->sql('ALTER DATABASE app2 SET TABLESPACE elsewhere');
$stack->beside('app2')->sql('SELECT electric_cm_start()');
$stack->becomes(q{SELECT EXISTS (SELECT FROM electric_cm_events WHERE datname = 'app2' AND event = 'shapes_resyncing')},
	'moved while stopped: the stack begins anew');
ok($stack->beside('app2')->active, '... and becomes active');
$stack->beside('app2')->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'moved while stopped');
shape_intact('app2', $other, 'moved while stopped');

# DROP

# an unrelated database is dropped at once
ok($stack->beside('market')->active, 'active');
$stack->sql('CREATE DATABASE unrelated');
$manager = manager_of('market', 'pid');
my $began = time;
$stack->sql('DROP DATABASE unrelated');
cmp_ok(time - $began, '<', 3, 'an unrelated database is dropped without delay');
is(manager_of('market', 'pid'), $manager, '... and the stack has not noticed');

$stack->sql('GRANT CREATE ON TABLESPACE pg_default TO keeper');
$stack->sql("SET ROLE keeper;\nALTER DATABASE market SET TABLESPACE pg_default");
ok($stack->beside('market')->active, 'the owner may move it');
$guest = $node->background_psql('market', on_error_stop => 0);
($rc, $out, $err) = $node->psql('postgres', "SET ROLE keeper;\nDROP DATABASE market WITH (FORCE)");
like($err, qr/permission denied|must be/, "the owner can't end a superuser's session");
ok($stack->beside('market')->active, 'active again after that');
$guest->quit;
$node->safe_psql('postgres', "SET ROLE keeper;\nDROP DATABASE market");
pass('an owner who is no superuser may drop it');
is($stack->sql(q{SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'electric_cm_app'}),
	0, 'its slot is gone when DROP returns');
$stack->becomes(q{SELECT NOT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'market')},
	'the dropped database is forgotten');

$guest = $node->background_psql('app2', on_error_stop => 0);
$stack->sql('DROP DATABASE app2 WITH (FORCE)');
is($stack->sql(q{SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'electric_cm_app%'}),
	0, 'WITH (FORCE): its slot is gone when DROP returns');
$stack->becomes(q{SELECT count(*) = 1 FROM electric_cm_stat_manager}, 'only one stack is left');
$guest->{run}->kill_kill;

make_database('owned', 'keeper');
$node->safe_psql('postgres', "SET ROLE keeper;\nDROP DATABASE owned WITH (FORCE)");
pass('the owner may use FORCE');
$stack->becomes(q{SELECT count(*) = 1 FROM electric_cm_stat_manager}, 'only one stack is left');
ok($stack->active, '... and it is active');
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|terminated by signal/, 'the server is well');

$node->stop;
done_testing();
