# The library changes with a restart, the extension with ALTER EXTENSION ...
# UPDATE: with a version that is to come, in each order.  An update loses nothing
# and ends no shape; where the two do not go together, the stack says so and what
# mends it, and takes up its work by itself once that is done.
use strict;
use warnings;

use File::Copy qw(copy move);
use IPC::Run ();
use ElectricCM::Stack;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $own = PostgreSQL::Test::Utils::tempdir;
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

#
# An installation of our own, and what is to come
#
sub run_ok
{
	my (@command) = @_;
	my $output = '';
	IPC::Run::run(\@command, '<', \undef, '>&', \$output) or BAIL_OUT("@command: $output");
	chomp $output;
	return $output;
}

# A server finds the extension by lines in its configuration, or else is a copy.
my $server_conf = slurp_file($ENV{TEMP_CONFIG});
my $copied = $server_conf !~ /\S/;
my $pg_config = $ENV{PG_CONFIG};
run_ok('cp', '-R', $copied ? "$ENV{ECM_TMP}/server" : "$ENV{ECM_TMP}/dest", "$own/installed");
$server_conf =~ s/\Q$ENV{ECM_TMP}\E\/dest/$own\/installed/g;
my $root = $copied ? '' : "$own/installed";
$pg_config = "$own/installed/bin/pg_config" if $copied;
my $library = $root . run_ok($pg_config, '--pkglibdir') . '/electric_cm.so';
my $extension = $root . run_ok($pg_config, '--sharedir') . '/extension';
BAIL_OUT("no $library") unless -f $library and -f "$extension/electric_cm.control";

# The library of a version to come, and what it makes of the one before.
run_ok('cp', '-a', '.', "$own/src");
copy($library, "$own/old.so");

sub build_next
{
	my ($name, $runs_old) = @_;
	my $file = "$own/src/src/base/version.c";
	my $text = slurp_file('src/base/version.c');
	$text =~ s/\{"1\.0", true\}/{"1.0", $runs_old},\n\t{"1.1", true}/ or BAIL_OUT('version.c has no table');
	$text .= q{
#include "fmgr.h"
PG_FUNCTION_INFO_V1(electric_cm_next);
Datum
electric_cm_next(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(PG_NARGS() == 0 ? "next" : ""));
}
};
	(my $header = slurp_file('src/base/version.h')) =~ s/^(#define ECM_VERSION\s+)"[^"]+"/$1"1.1.0"/m
	  or BAIL_OUT('version.h has no version');
	unlink $file, "$own/src/src/base/version.h", "$own/src/src/base/version.o";
	append_to_file($file, $text);
	append_to_file("$own/src/src/base/version.h", $header);
	run_ok('make', '-s', '-C', "$own/src", "PG_CONFIG=$ENV{PG_CONFIG}", 'electric_cm.so');
	copy("$own/src/electric_cm.so", "$own/$name.so");
	return;
}
build_next('next', 'true');
build_next('strict', 'false');

# As packages do it: another file, by the same name.
sub install
{
	my ($name) = @_;
	copy("$own/$name.so", "$library.new") and move("$library.new", $library) or BAIL_OUT("$library: $!");
	return;
}

sub install_sql
{
	my $control = slurp_file("$extension/electric_cm.control");
	$control =~ s/^(default_version = )'1\.0'/$1'1.1'/m or BAIL_OUT('no default_version');
	unlink "$extension/electric_cm.control";
	append_to_file("$extension/electric_cm.control", $control);
	append_to_file("$extension/electric_cm--1.0--1.1.sql", q{
ALTER TABLE _electric_cm.stack ADD COLUMN note text;
ALTER TABLE _electric_cm.shape ADD COLUMN note text;
ALTER TABLE _electric_cm.shape_state ADD COLUMN note text;
ALTER TABLE _electric_cm.shape_log ADD COLUMN note text;
CREATE FUNCTION electric_cm_next() RETURNS text AS 'MODULE_PATHNAME' LANGUAGE C;
});
	return;
}

#
# The stack, readers, writers
#
my $node = PostgreSQL::Test::Cluster->new('main', $copied ? (install_path => "$own/installed") : ());
$node->init(allows_streaming => 'logical');
$node->append_conf('postgresql.conf', $server_conf . q{
max_connections = 50
max_worker_processes = 16
shared_preload_libraries = 'electric_cm'
});
$node->start;
my $stack = ElectricCM::Stack->new($node, $db);

sub waits_for_change
{
	my ($handle) = @_;
	my %reader = (out => '', err => '');
	my $after = $stack->last_offset($handle) || '-1';
	my $name = "reader of $handle";
	$reader{run} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr($db) . " application_name='$name'",
			'-c', "SELECT operation, value->>'v' FROM electric_cm_await_shape_log('$handle', '$after', '10 min')" ],
		'<', \undef, '>', \$reader{out}, '2>', \$reader{err}, IPC::Run::timeout($timeout));
	$stack->seen("count(*) = 1 FROM pg_stat_activity WHERE application_name = '$name' AND wait_event_type = 'Extension'");
	return \%reader;
}

sub gets
{
	my ($reader, $expected, $what) = @_;
	$reader->{run}->finish;
	return is($reader->{out} . $reader->{err}, "$expected\n", $what);
}

sub finding
{
	return $stack->sql(q{SELECT verdict, fix, detail FROM electric_cm_check() WHERE name = 'version'});
}

# Debian's servers before 18 don't list what is not in their own directory.
sub is_listed { return $stack->sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'electric_cm'}); }

sub manager { return $stack->sql(q{SELECT pid FROM electric_cm_stat_manager}); }

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, v text)',
	'CREATE TABLE busy (id int PRIMARY KEY, n int)', 'INSERT INTO busy SELECT i, 0 FROM generate_series(1, 200) i');
$stack->active or BAIL_OUT('no stack');
my $quiet = $stack->live_shape('t');
my $busy = $stack->live_shape('busy');
like(finding(), qr/^PASS\|\|PostgreSQL \d.*, electric_cm 1\.0$/, 'all of one version: nothing to say');

#
# New files under a running server
#
install('next');
install_sql();
my $reader = waits_for_change($quiet);
like(finding(), is_listed() ? qr/^WARN\|-- restart the server\|version 1\.1 is installed, and the library that the server has loaded, 1\.0\.0, does not know it;/ :
	  qr/^PASS\|/, 'new files: the server goes on, and is to be restarted');
my $error = $stack->error_of_sql('ALTER EXTENSION electric_cm UPDATE');
like($error, qr/ERROR:  55000: version 1\.1 of the extension electric_cm is not known to the library that the server has loaded, 1\.0\.0\nHINT:  Restart the server/,
	'... and an update before that is refused, with the command that comes first');
is($stack->sql(q{SELECT extversion FROM pg_extension WHERE extname = 'electric_cm'}), '1.0', '... as a whole');
$stack->sql(q{INSERT INTO t VALUES (1, 'one')});
gets($reader, 'insert|one', '... and a reader gets his change');
$stack->sql('SELECT electric_cm_restart()');
$stack->active;
$stack->replays($quiet, 't', 'a manager that is started anew is of the old library, too');
$stack->sql('CREATE DATABASE other');
like($stack->beside('other')->error_of_sql('CREATE EXTENSION electric_cm'), qr/55000: version 1\.1 of the extension .* is not known to the library/,
	'CREATE EXTENSION is refused likewise');
is($stack->beside('other')->error_of_sql(q{CREATE EXTENSION electric_cm VERSION '1.0'}), '', '... but not of the version that is known');
$stack->beside('other')->sql('DROP EXTENSION electric_cm');

#
# The new library with the extension as it was
#
$node->restart;
ok($stack->active, 'the new library runs a stack of the version before');
like(finding(), is_listed() ? qr/^WARN\|ALTER EXTENSION electric_cm UPDATE\|the extension's version here is 1\.0, the installed one is 1\.1$/ :
	  qr/^PASS\|/, '... and says what is to be done');
is($stack->sql(q{SELECT electric_cm_health()->'versions'->>'library', electric_cm_health()->'versions'->>'sql'}),
	'1.1.0|1.0', '... health has both versions');
is($stack->sql(q{SELECT count(*) FROM jsonb_array_elements(electric_cm_health()->'problems') p
	WHERE p->>'severity' = 'warning' AND p->>'problem' LIKE 'the extension''s version here is 1.0%'}), is_listed(), '... and the problem');
$stack->replays($quiet, 't', '... the shapes are there');

#
# ALTER EXTENSION ... UPDATE in the midst of things
#
my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set id random(1, 200)
UPDATE busy SET n = n + 1 WHERE id = :id;
});
my ($load_out, $load_err) = ('', '');
my $load = IPC::Run::start([ 'pgbench', '-n', '-c', 2, '-T', $timeout, '-f', $script, $node->connstr($db) ],
	'<', \undef, '>', \$load_out, '2>', \$load_err);
$stack->seen('sum(n) > 100 FROM busy', 'there is load');
$reader = waits_for_change($quiet);
my $manager = manager();
is($stack->error_of_sql(q{SET lock_timeout = '60 s'}, 'ALTER EXTENSION electric_cm UPDATE'), '',
	'an update with readers waiting and consumers writing');
is($stack->sql('SELECT electric_cm_next()'), 'next', '... brings what is new');
my $updated_at = $stack->sql('SELECT sum(n) FROM busy');
$stack->seen("sum(n) > $updated_at + 100 FROM busy", '... writers go on');
$stack->sql(q{INSERT INTO t VALUES (2, 'two')});
gets($reader, 'insert|two', '... a reader who waited before it gets his change');
$stack->seen("last_offset IS NOT NULL FROM electric_cm_shapes WHERE handle = '$busy'");
$load->signal('INT');
IPC::Run::finish($load);
is(manager(), $manager, '... the manager is the same');
is($stack->sql('SELECT electric_cm_status()'), 'active', '... and active');
$stack->replays($busy, 'busy', '... nothing is lost or comes twice');
$stack->replays($quiet, 't', '... nor of the other shape');
$stack->replays($stack->live_shape('busy'), 'busy', 'a new shape');
like(finding(), qr/^PASS\|\|PostgreSQL \d.*, electric_cm 1\.1$/, 'all of one version again');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE severity = 'error' OR event IN ('stack_restarting', 'shapes_resyncing')}),
	0, '... and no event of trouble');

#
# The old library with the extension of the new one
#
$stack->sql('CREATE TABLE changed (id int PRIMARY KEY)');
my $ended = $stack->live_shape('changed');
$stack->settle;
install('old');
$node->restart;
$stack->seen(q{status = 'stopped' AND waiting_for LIKE 'the library that the server has loaded does not know this version of the extension: %'
	FROM electric_cm_stat_manager}, 'an old library with a newer extension: no stack, and the view says why');
is($stack->events('version_mismatch', q{severity = 'error'}), 1, '... an event does');
like(finding(), qr/^FAIL\|-- restart the server\|the extension's version here is 1\.1, which the library that the server has loaded, 1\.0\.0, does not know/,
	'... electric_cm_check() does');
is($stack->sql(q{SELECT electric_cm_health()->>'severity'}), 'error', '... and health is bad');
for my $call ("electric_cm_shape_log('$quiet')", "electric_cm_await_shape_log('$quiet', '-1')", q{electric_cm_create_shape('t')}, "electric_cm_drop_shape('$quiet')")
{
	like($stack->error_of_sql("SELECT $call"), qr/55000: version 1\.1 of the extension .* is not known to the library.*\nHINT:  Install the library/,
		"... $call says so");
}
for my $call ('electric_cm_start()', 'electric_cm_await_active()', 'electric_cm_restart()')
{
	like($stack->error_of_sql("SELECT $call"), qr/55000: the stack of database "postgres" is stopped: the library .*HINT:  Install the library/s, "... $call too");
}
like($stack->error_of_sql('SELECT electric_cm_next()'), qr/could not find function "electric_cm_next"/, '... a function that it has not is none');
$stack->sql(q{INSERT INTO t VALUES (3, 'three')});
ok($stack->sql('SELECT active = false FROM pg_replication_slots'), '... the slot stays');
is($stack->sql(q{SELECT count(*) FROM electric_cm_slots WHERE retained_wal_bytes >= 0}), 1, '... and is looked after');

install('next');
$node->restart;
ok($stack->active, 'with the newer library again, the stack goes on');
$stack->replays($quiet, 't', '... and nothing is lost: what was written meanwhile is there');
is($stack->state_of($ended), 'live', '... no shape has ended');

# What was not seen has its price, and costs nobody's command
my $quiet_reader = $stack->reader($quiet);
install('old');
$node->restart;
$stack->seen(q{status = 'stopped' FROM electric_cm_stat_manager});
is($stack->error_of_sql('ALTER TABLE changed ADD COLUMN v int', 'TRUNCATE changed'), '', 'DDL while nobody knows the extension goes through');
install('next');
$node->restart;
ok($stack->active, 'with the newer library again, the stack goes on');
$stack->resyncs($quiet_reader, 'true', 't', '... and compares shapes with their tables');
is($stack->events('shapes_resyncing', q{detail LIKE 'The library that the server had loaded did not know the extension''s version, %'}),
	1, '... and it says why');
$stack->is_live($ended);
$stack->replays($ended, 'changed', '... a shape whose table has got a column has it, too');

#
# A library that can't do with the version before
#
$stack->beside('other')->sql(q{CREATE EXTENSION electric_cm VERSION '1.0'}, 'CREATE TABLE t (id int PRIMARY KEY, v text)');
my $other = $stack->beside('other');
ok($other->active, 'another database, with the version before');
my $handle = $other->live_shape('t');
$other->settle;
install('strict');
$node->restart;
ok($stack->active, 'a library that needs the new version runs a stack of it');
$other->seen(q{status = 'stopped' AND waiting_for LIKE 'the extension in this database is too old for the library % ALTER EXTENSION electric_cm UPDATE'
	FROM electric_cm_stat_manager WHERE datname = current_database()}, '... and none of the version before, and the view says why');
is($other->events('version_mismatch'), 1, '... an event does');
like($other->sql(q{SELECT verdict, fix, detail FROM electric_cm_check() WHERE name = 'version'}),
	qr/^FAIL\|ALTER EXTENSION electric_cm UPDATE\|the extension's version here is 1\.0, which is too old/, '... electric_cm_check() has the command');
like($other->error_of_sql("SELECT electric_cm_shape_log('$handle')"), qr/55000: version 1\.0 .* is too old .*HINT:  ALTER EXTENSION electric_cm UPDATE/s,
	'... a reader is told it, too');
$other->sql(q{INSERT INTO t VALUES (1, 'meanwhile')});
$other->sql('ALTER EXTENSION electric_cm UPDATE');
ok($other->active, '... with which the stack starts by itself');
$other->replays($handle, 't', '... and has what was written meanwhile');

# The same, with changes that nobody could look at, in one run of the server
$node->stop;
install('next');
$node->start;
$other->sql('DROP EXTENSION electric_cm', q{CREATE EXTENSION electric_cm VERSION '1.0'});
ok($other->active, 'once more, with the version before');
$handle = $other->live_shape('t');
$other->settle;
my $kept = $other->reader($handle);
install('strict');
$node->restart;
$other->seen(q{status = 'stopped' FROM electric_cm_stat_manager WHERE datname = current_database()});
$other->sql(q{INSERT INTO t VALUES (2, 'more')}, q{ALTER TABLE t ALTER v TYPE text USING v || '!'}, 'ALTER EXTENSION electric_cm UPDATE');
ok($other->active, 'an update after DDL that was not seen');
$other->resyncs($kept, 'true', 't', '... has logs and tables compared');
is($stack->exists_shape($quiet), 1, '... and none of another database');

$node->stop;
done_testing();
