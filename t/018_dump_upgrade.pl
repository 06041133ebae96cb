# A dump of a database that has the extension can be restored: afterwards the stack
# starts afresh, without shapes.  A cluster that has it can be upgraded: afterwards
# shapes are compared with their tables.
use strict;
use warnings;

use Cwd;
use ElectricCM qw(new_node wait_active replay_equals);
use ElectricCM::Stack ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $dir = PostgreSQL::Test::Utils::tempdir;
my $publication = 'electric_cm_publication';

# A new shape of t works, and is all that there is.
sub works_afresh
{
	my ($server, $db, $what) = @_;
	ok(wait_active($server, $db), "$what: active");
	is($server->safe_psql($db, 'SELECT count(*) FROM electric_cm_shapes'), 0, "$what: no shapes");
	my $handle = $server->safe_psql($db, q{SELECT electric_cm_create_shape('app.t')});
	$server->safe_psql($db, "SET statement_timeout = '60 s'; SELECT count(*) FROM electric_cm_shape_log('$handle')");
	$server->safe_psql($db, q{UPDATE app.t SET t = 'y' WHERE id <= 10});
	$server->safe_psql($db, 'SELECT electric_cm_await_flushed(NULL, \'60 s\')');
	my ($ok, $entries) = replay_equals($server, $db, $handle, 'app.t', ['id']);
	ok($ok && $entries == 110, "$what: a new one replays to the table ($entries entries)");
	is( $server->safe_psql($db,
			q{SELECT event, datname, message, detail FROM electric_cm_events WHERE severity <> 'log'
				AND event <> 'shapes_resyncing' AND datname = current_database()}),
		'', "$what: nothing to complain about");
	return;
}

sub is_not_started
{
	my ($server, $db, $what) = @_;
	return ok( ElectricCM::poll($server, $db,
			q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = current_database()
				AND status = 'stopped' AND waiting_for = 'not started yet: electric_cm_start() starts it')}),
		"$what: not started, and the view says so");
}

# Like psql, in an environment of its own.
sub restore_with
{
	my ($server, $db, $what, $options, @command) = @_;
	local $ENV{PGOPTIONS} = $options;
	my ($out, $err);
	my $ok = IPC::Run::run([ @command, '-d', $server->connstr($db) ], '>', \$out, '2>', \$err);
	ok($ok, "$what: no errors");
	return is($err, '', "$what: no warnings either");
}

sub publications
{
	my ($server, $db) = @_;
	return $server->safe_psql($db,
		q{SELECT string_agg(pubname || ' ' || (SELECT count(*) FROM pg_publication_rel r WHERE r.prpubid = p.oid), ', ')
			FROM pg_publication p});
}

#
# What is dumped
#
$node->safe_psql('postgres', 'CREATE ROLE app; CREATE DATABASE app OWNER app');
$node->safe_psql('app', q{
CREATE SCHEMA app AUTHORIZATION app;
CREATE TABLE app.t (id int PRIMARY KEY, t text);
ALTER TABLE app.t OWNER TO app;
INSERT INTO app.t SELECT i, 'x' FROM generate_series(1, 100) i;
CREATE EXTENSION electric_cm;
GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO app;
REVOKE EXECUTE ON FUNCTION electric_cm_status() FROM pg_monitor;
});
ok(wait_active($node, 'app'), 'active');
my $handle = $node->safe_psql('app', q{SELECT electric_cm_create_shape('app.t')});
$node->safe_psql('app', "SET statement_timeout = '60 s'; SELECT count(*) FROM electric_cm_shape_log('$handle')");
is(publications($node, 'app'), "$publication 1", 'the publication has a table');

command_ok([ 'pg_dump', '-f', "$dir/plain", $node->connstr('app') ], 'pg_dump');
command_ok([ 'pg_dump', '-Fc', '-f', "$dir/custom", $node->connstr('app') ], 'pg_dump -Fc');
command_ok([ 'pg_dumpall', '-f', "$dir/all", '-d', $node->connstr('postgres') ], 'pg_dumpall');
my $dump = slurp_file("$dir/plain");
unlike($dump, qr/COPY _electric_cm|CREATE \w+ _electric_cm|setval/, 'nothing of our tables is in the dump');
like($dump, qr/CREATE PUBLICATION $publication.*ADD TABLE ONLY app\.t/s, 'the publication is');

#
# Into another server
#
my $target = new_node('target');
$target->safe_psql('postgres', 'CREATE ROLE app');
$target->safe_psql('postgres', "CREATE DATABASE $_") for qw(off parallel plain custom bystander);

# ... the documented way for parallel restores and the like
restore_with($target, 'off', 'with electric_cm.enabled = off', '-c electric_cm.enabled=off',
	'psql', '-qX', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain");
is_not_started($target, 'off', 'with electric_cm.enabled = off');
my ($rc, $out, $err) = $target->psql('off', 'SELECT electric_cm_await_active()');
like($err, qr/not started yet.*HINT:.*electric_cm_start/s, '... and so does waiting for it');
$target->restart;
is_not_started($target, 'off', '... after a restart of the server');
is(publications($target, 'off'), "$publication 1", '... the publication is as it was');
$target->safe_psql('off', 'SELECT electric_cm_start()');
works_afresh($target, 'off', '... electric_cm_start()');
is( $target->safe_psql('off',
		q{SELECT has_function_privilege('app', 'electric_cm_create_shape(regclass, text, text[], text[])', 'execute'),
			has_function_privilege('pg_monitor', 'electric_cm_status()', 'execute')}),
	't|f', '... privileges are as they were');
$target->restart;
ok(wait_active($target, 'off'), '... it is a stack like any other: active after a restart');
$target->safe_psql('off', 'SELECT electric_cm_stop(drop_slot => true)');
is(publications($target, 'off'), "$publication 1", '... but the publication is the user\'s, and stays');

restore_with($target, 'parallel', 'pg_restore --jobs with electric_cm.enabled = off', '-c electric_cm.enabled=off',
	'pg_restore', '--jobs=2', "$dir/custom");
$target->safe_psql('parallel', 'SELECT electric_cm_start()');
works_afresh($target, 'parallel', 'pg_restore --jobs with electric_cm.enabled = off');

# ... and without any precaution
restore_with($target, 'plain', 'pg_dump | psql', '',
	'psql', '-qX', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain");
works_afresh($target, 'plain', 'pg_dump | psql');
is(publications($target, 'plain'), "$publication 1", 'pg_dump | psql: the publication is the one that was dumped');
restore_with($target, 'custom', 'pg_restore --single-transaction', '',
	'pg_restore', '--single-transaction', "$dir/custom");
works_afresh($target, 'custom', 'pg_restore --single-transaction');

# The stack is not merely slow: it waits for the end of the session
my $restore = $target->background_psql('bystander');
$restore->query_safe('SET check_function_bodies = off');
$restore->query_safe('SET client_min_messages = warning');
$restore->query_safe('CREATE EXTENSION electric_cm');
is_not_started($target, 'bystander', 'while a dump is being restored');
$restore->query_safe(ElectricCM::Stack->new($target)->publication_sql($publication));
$restore->quit;
ok(wait_active($target, 'bystander'), 'active when that is over');
$target->safe_psql('bystander', 'DROP EXTENSION electric_cm');

# ... or for electric_cm_start()
$restore = $target->background_psql('bystander', on_error_stop => 0);
$restore->query('SET check_function_bodies = off');
($out) = $restore->query('CREATE EXTENSION electric_cm');
like($restore->{stderr}, qr/NOTICE:.*when this session ends.*HINT:.*electric_cm_start/s, 'a notice says so');
is_not_started($target, 'bystander', 'and again');
$restore->query('SELECT electric_cm_start()');
ok(wait_active($target, 'bystander'), 'active after electric_cm_start() in that session');
$restore->query('SELECT electric_cm_stop()');
$restore->quit;
$target->restart;
ok( ElectricCM::poll($target, 'bystander',
		q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE datname = 'bystander' AND status = 'stopped' AND waiting_for = 'electric_cm_stop() was called')}),
	'what was stopped there stays stopped');
$target->safe_psql('bystander', 'SELECT electric_cm_stop(drop_slot => true)');
$target->safe_psql('bystander', 'DROP EXTENSION electric_cm');

# CREATE EXTENSION that comes to nothing
($rc, $out, $err) = $target->psql('bystander', q{
SET check_function_bodies = off;
BEGIN; CREATE EXTENSION electric_cm; DROP EXTENSION electric_cm; COMMIT;
BEGIN; CREATE EXTENSION electric_cm; ROLLBACK;
SELECT 'fine'});
is("$rc $out", '0 fine', 'dropped or rolled back at once');

# A setting that the whole database has needs no electric_cm_start() later
$target->safe_psql('postgres', 'ALTER DATABASE bystander SET electric_cm.enabled = off');
$target->safe_psql('bystander', 'CREATE EXTENSION electric_cm');
ok( ElectricCM::poll($target, 'bystander',
		q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE datname = 'bystander' AND status = 'stopped' AND waiting_for = 'electric_cm.enabled is off')}),
	'off for the whole database: stopped');
$target->safe_psql('postgres', 'ALTER DATABASE bystander RESET electric_cm.enabled');
$target->reload;
ok(wait_active($target, 'bystander'), '... and started when it is on again');
$target->safe_psql('bystander', 'DROP EXTENSION electric_cm');
($rc, $out, $err) = $target->psql('bystander', 'SET electric_cm.enabled = off; CREATE EXTENSION electric_cm');
like($err, qr/NOTICE:.*enabled is off in this session.*HINT:.*electric_cm_start/s, 'off in the session: a notice says so');
is_not_started($target, 'bystander', 'off in the session');
$target->stop;

#
# A whole cluster.  Its superuser has another name, or CREATE ROLE would fail.
#
$target = new_node('target_all', init => { extra => [ '-U', 'boot' ] });
restore_with($target, 'postgres', 'pg_dumpall | psql', '',
	'psql', '-U', 'boot', '-qX', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1', '-f', "$dir/all");
works_afresh($target, 'app', 'pg_dumpall | psql');
$target->stop;

#
# pg_upgrade
#
my $new = new_node('new', start => 0);
my $bindir = $node->config_data('--bindir');
my $sockets = PostgreSQL::Test::Utils::tempdir_short;
my $counts_slots = $node->pg_version >= 17;	# does pg_upgrade ask what slots have consumed?

# pg_upgrade from the old server to the new one: is it possible, and its output.
sub upgrade
{
	my @options = @_;
	my $cwd = getcwd;
	my $text = '';
	chdir $dir or die "could not change to $dir: $!";
	my $ok = IPC::Run::run(
		[   'pg_upgrade', '-b', $bindir, '-B', $bindir, '-d', $node->data_dir, '-D', $new->data_dir,
			'-s', $sockets, '-p', $node->port, '-P', $new->port, @options ],
		'>', \$text, '2>&1');
	chdir $cwd or die "could not change to $cwd: $!";
	note($text);
	return ($ok ? 'possible' : 'refused', $text);
}

# The stack has consumed what there is, and written down what it had to.
sub is_quiet
{
	my ($what) = @_;
	return ok(ElectricCM::poll($node, 'app', q{SELECT electric_cm_await_flushed(NULL, '60 s') >= pg_current_wal_lsn()}), $what);
}

# The shape of before still follows its table.
sub goes_on
{
	my ($what) = @_;
	ok(wait_active($node, 'app'), "$what: active");
	$node->safe_psql('app', q{UPDATE app.t SET t = t || '+' WHERE id <= 5});
	$node->safe_psql('app', q{SELECT electric_cm_await_flushed(NULL, '60 s')});
	my ($ok) = replay_equals($node, 'app', $handle, 'app.t', ['id']);
	ok($ok, "$what: the shape goes on");
	is($node->safe_psql('app', q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_resyncing'}),
		0, "$what: no shape has a gap");
	return;
}

# The old server is quiet: a plain shutdown will do, and costs no shape.
is($node->safe_psql('app', 'SELECT count(*) FROM pg_replication_slots'), 1, 'the old cluster has a slot');
is_quiet('the stack has nothing to do');
$node->stop;
my ($verdict, $output) = upgrade('--check');
is($verdict, 'possible', 'pg_upgrade --check after a plain shutdown');
$node->start;
goes_on('after pg_upgrade --check');

# Changes that were consumed by nobody are not passed over
is_quiet('the stack has nothing to do again');
$node->safe_psql('app', 'SELECT electric_cm_stop()');
$node->safe_psql('app', q{UPDATE app.t SET t = t || '!' WHERE id <= 5});
$node->stop;
if ($counts_slots)
{
	($verdict, $output) = upgrade('--check');
	like("$verdict $output", qr/^refused.*logical replication slots/s, 'pg_upgrade --check while a stopped stack has missed something');
}
$node->start;

# Everything else is what electric_cm_prepare_upgrade() is for
($rc, $out, $err) = $node->psql('app', 'BEGIN; SELECT electric_cm_prepare_upgrade(); COMMIT');
like($err, qr/cannot run inside a transaction block/, 'prepare_upgrade: not inside a transaction block');
if ($counts_slots)
{
	my $writer = $node->background_psql('app', on_error_stop => 0);
	my $pid = $writer->query_safe('SELECT pg_backend_pid()');
	$writer->{stdin} .= 'DO $$ BEGIN LOOP UPDATE app.t SET t = t WHERE id = 1; COMMIT; PERFORM pg_sleep(0.005); END LOOP; END $$;' . "\n";
	$writer->{run}->pump_nb;
	ElectricCM::poll($node, 'app', "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $pid AND query LIKE 'DO%'");
	($rc, $out, $err) = $node->psql('app', "\\set VERBOSITY verbose\nSELECT electric_cm_prepare_upgrade()");
	like($err, qr/55006: others go on writing.*HINT:.*End these sessions/s, 'prepare_upgrade: impossible while somebody writes all the time');
	ok(wait_active($node, 'app'), '... the stack runs on');
	$node->safe_psql('app', "SELECT pg_terminate_backend($pid, 60000)");
	$writer->{run}->finish;
}
my $open = $node->background_psql('app');
$open->query_safe(q{SET application_name = 'somebody'});
$open->query_safe('BEGIN');
$open->query_safe(q{UPDATE app.t SET t = t || '?' WHERE id = 6});
($rc, $out, $err) = $node->psql('app', 'SELECT electric_cm_prepare_upgrade()');
like($err, qr/NOTICE:.*ready for pg_upgrade.*transactions are open: PID \d+ \(somebody\).*HINT:.*stop the server/s,
	'prepare_upgrade: a NOTICE says what remains to be done');
is($out, $node->safe_psql('app', 'SELECT confirmed_flush_lsn FROM pg_replication_slots'), '... its result is the position of the slot');
my $prepared = q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager WHERE datname = 'app' AND status = 'stopped'
	AND waiting_for = 'prepared for pg_upgrade: electric_cm_start() starts it')};
ok(ElectricCM::poll($node, 'app', $prepared), '... the stack is stopped, and the view says so');
is($node->safe_psql('app', q{SELECT verdict || ': ' || detail FROM electric_cm_check() WHERE name = 'stopped'}),
	'FAIL: the stack was stopped by electric_cm_prepare_upgrade(), for pg_upgrade', '... and electric_cm_check() as well');
$node->safe_psql('app', 'SELECT electric_cm_prepare_upgrade()');
pass('... it can be called again');

# Somebody writes all the same
$open->query_safe('COMMIT');
$open->quit;
$node->stop;
if ($counts_slots)
{
	($verdict, $output) = upgrade('--check');
	like("$verdict $output", qr/^refused.*logical replication slots/s, 'pg_upgrade --check when somebody has written since');
}
$node->start;
ok(ElectricCM::poll($node, 'app', $prepared), 'a stack that was prepared stays stopped when the server is started');
$node->safe_psql('app', 'SELECT electric_cm_start()');
goes_on('electric_cm_start() instead of pg_upgrade');
$node->safe_psql('app', q{UPDATE app.t SET t = 'last'});
$node->safe_psql('app', 'SELECT electric_cm_prepare_upgrade()');
my $reader = ElectricCM::Stack->new($node, 'app')->reader($handle);
$node->stop;
($verdict, $output) = upgrade();
is($verdict, 'possible', 'pg_upgrade after electric_cm_prepare_upgrade()');
my @slots = grep { !/^\./ } slurp_dir($new->data_dir . '/pg_replslot');
is(scalar(@slots), $counts_slots ? 1 : 0, 'nothing of ours ran meanwhile');
$new->start;
ok(wait_active($new, 'app'), 'upgraded: active');
my $upgraded = ElectricCM::Stack->new($new, 'app');
if ($counts_slots)
{
	$upgraded->goes_on($reader, 'app.t', 'upgraded');
	is($upgraded->events('shapes_resyncing'), 0, 'upgraded: no shape has a gap');
	is($upgraded->sql('SELECT count(*) FROM _electric_cm.epoch'), 1, 'upgraded: an epoch begins');
}
else
{
	$upgraded->resyncs($reader, q{detail = 'the system identifier has changed'}, 'app.t', 'upgraded');
}
is($upgraded->events('replication_slot_dropped'), 0, 'upgraded: no slot had to go');
$upgraded->sql(q{UPDATE app.t SET t = 'y' WHERE id <= 10});
$upgraded->goes_on($reader, 'app.t', 'upgraded, and what comes later');
$upgraded->replays($upgraded->live_shape('app.t', columns => ['id']), 'app.t', 'upgraded: a new shape', columns => ['id']);
is($new->safe_psql('app', q{SELECT electric_cm_health() ->> 'severity'}), 'ok', 'upgraded: healthy');
is($new->safe_psql('app', q{SELECT string_agg(name || ': ' || detail, ', ') FROM electric_cm_check() WHERE verdict = 'FAIL'}), '', 'upgraded: nothing is missing');
$new->restart;
ok(wait_active($new, 'app'), 'upgraded: active after a restart');
is($new->safe_psql('app', 'SELECT count(*) FROM electric_cm_shapes'), 2, 'upgraded: the shapes stay');
$new->safe_psql('app', 'SELECT electric_cm_stop(drop_slot => true)');
is( $new->safe_psql('app', q{SELECT count(*) FROM pg_class
		WHERE relnamespace = '_electric_cm'::regnamespace AND relkind = 'r' AND relrewrite <> oid}),
	0, 'upgraded: our tables are hidden from decoding again');
is(publications($new, 'app'), '', 'upgraded: the publication is still known to be ours');
$new->stop;
done_testing();
