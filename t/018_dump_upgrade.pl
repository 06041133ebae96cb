# A dump of a database that has the extension can be restored, and a cluster
# that has it upgraded.  Afterwards the stack starts afresh: without shapes.
use strict;
use warnings;

use Cwd;
use ElectricCM qw(new_node wait_active replay_equals);
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
				AND event <> 'shapes_invalidated' AND datname = current_database()}),
		'', "$what: nothing to complain about");
	return;
}

sub is_not_started
{
	my ($server, $db, $what) = @_;
	return ok( $server->poll_query_until($db,
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
GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[]) TO app;
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
		q{SELECT has_function_privilege('app', 'electric_cm_create_shape(regclass, text, text[])', 'execute'),
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
$restore->query_safe("CREATE PUBLICATION $publication");
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
ok( $target->poll_query_until('bystander',
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
ok( $target->poll_query_until('bystander',
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
is($node->safe_psql('app', 'SELECT count(*) FROM pg_replication_slots'), 1, 'the old cluster has a slot');
$node->stop;
my $cwd = getcwd;
chdir $dir or die "could not change to $dir: $!";
command_ok(
	[   'pg_upgrade', '-b', $bindir, '-B', $bindir, '-d', $node->data_dir, '-D', $new->data_dir,
		'-s', $sockets, '-p', $node->port, '-P', $new->port ],
	'pg_upgrade');
chdir $cwd or die "could not change to $cwd: $!";
is_deeply([ grep { !/^\./ } slurp_dir($new->data_dir . '/pg_replslot') ], [], 'nothing of ours ran meanwhile');
$new->start;
ok(wait_active($new, 'app'), 'upgraded: active');
($rc, $out, $err) = $new->psql('app',
	"\\set VERBOSITY verbose\nSELECT count(*) FROM electric_cm_shape_log('$handle')");
like($err, qr/42704.*HINT:.*create_shape/s, 'upgraded: the shapes of before are gone');
is( $new->safe_psql('app', q{SELECT string_agg(detail, ', ') FROM electric_cm_events WHERE event = 'shapes_invalidated'}),
	'the system identifier has changed', 'upgraded: an event says so once, and why');
works_afresh($new, 'app', 'upgraded');
$new->restart;
ok(wait_active($new, 'app'), 'upgraded: active after a restart');
is($new->safe_psql('app', 'SELECT count(*) FROM electric_cm_shapes'), 1, 'upgraded: the new shape stays');
$new->safe_psql('app', 'SELECT electric_cm_stop(drop_slot => true)');
is( $new->safe_psql('app', q{SELECT count(*) FROM pg_class
		WHERE relnamespace = '_electric_cm'::regnamespace AND relkind = 'r' AND relrewrite <> oid}),
	0, 'upgraded: our tables are hidden from decoding again');
is(publications($new, 'app'), '', 'upgraded: the publication is still known to be ours');
$new->stop;
done_testing();
