# The server runs for a while without the library: that something was changed then is
# noticed at the next start, and logs are compared with their tables.  Nothing else is taken for that: crashes,
# restarts, runs that changed nothing, single-user mode with the library.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "autovacuum = off\nrestart_after_crash = on\nelectric_cm.status_check_interval = '1 s'\n");
my $node = $stack->node;
my %in = (postgres => $stack, other => $stack->beside('other'));
my @dbs = ('postgres', 'other');
my %handle;
my %reader;

sub active { $in{$_}->active or BAIL_OUT("no stack in $_") for @dbs; return; }

# a shape of t in each database, where there is none
sub shapes
{
	active();
	for my $db (@dbs)
	{
		next if defined $handle{$db} && $in{$db}->exists_shape($handle{$db});
		$handle{$db} = $in{$db}->live_shape('t');
	}
	$reader{$_} = $in{$_}->reader($handle{$_}) for @dbs;
	return;
}

sub load
{
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', $_[0] ? "'electric_cm'" : "''");
	return;
}

# another start: with the library or without
sub start
{
	my ($with, $how) = @_;
	$node->stop($how // 'fast');
	load($with);
	$node->start;
	return;
}

# statements while the library is not there
sub without
{
	my ($db, $how, @statements) = @_;
	start(0);
	$in{$db}->sql(@statements);
	start(1, $how);
	active();
	return;
}

sub survives
{
	my ($what, @which) = @_;
	active();
	for my $db (@which ? @which : @dbs)
	{
		$in{$db}->sql('INSERT INTO t SELECT max(id) + 1 FROM t');
		$in{$db}->replays($handle{$db}, 't', "$what: the shape in $db goes on");
	}
	return;
}

sub is_gone
{
	my ($db, $what) = @_;
	$in{$db}->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$handle{$db}'", "$what: the shape in $db is gone");
	return;
}

my $unseen = q{detail LIKE 'The server ran without electric_cm in shared_preload_libraries%'};

sub resyncs
{
	my ($db, $what) = @_;
	return $in{$db}->resyncs($reader{$db}, $_[2] // 'true', 't', "$what, in $db");
}

sub single_user
{
	my ($with, @statements) = @_;
	my ($out, $err);
	my $input = join("\n", @statements, '');
	$node->stop;
	load($with);
	IPC::Run::run([ 'postgres', '--single', '-D', $node->data_dir, 'postgres' ], '<', \$input, '>', \$out, '2>', \$err)
	  or die "single-user mode: $err";
	unlike($err, qr/ERROR/, 'the statements run in single-user mode');
	load(1);
	$node->start;
	return;
}

$stack->sql('CREATE DATABASE other');
for my $db (@dbs)
{
	$in{$db}->sql('CREATE EXTENSION electric_cm', q{CREATE TYPE e AS ENUM ('a', 'b')}, q{CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT 'old', e e DEFAULT 'a')},
		'CREATE TABLE aside (id int PRIMARY KEY)', 'INSERT INTO t SELECT generate_series(1, 10)');
}
shapes();

#
# What looks similar
#

start(1);
survives('a restart');

$stack->sql('ALTER TABLE aside ADD COLUMN v int');
start(1, 'immediate');
survives('a crash after DDL');
start(1, 'immediate');
start(1, 'immediate');
survives('a crash, and another before anybody could look');

my $pid = $stack->sql('SELECT pg_backend_pid() FROM pg_create_restore_point(\'x\')');
my $session = $node->background_psql('postgres', on_error_stop => 0);
$pid = $session->query_safe('SELECT pg_backend_pid()');
kill 'KILL', $pid;
$session->{run}->finish;
ElectricCM::poll($node, 'postgres', 'SELECT true');
survives('a restart after the crash of a backend');

without('postgres', 'fast', 'UPDATE t SET v = \'new\' WHERE id < 5', 'DELETE FROM t WHERE id = 7');
survives('a run without the library that only wrote rows');
without('postgres', 'immediate', 'UPDATE t SET v = \'newer\' WHERE id < 5');
survives('... and crashed');
without('postgres', 'immediate', 'VACUUM (FREEZE, ANALYZE) t', 'VACUUM ANALYZE');
survives('... and made statistics');

single_user(1, 'ALTER TABLE aside DROP COLUMN v', 'UPDATE t SET v = \'single\' WHERE id = 2');
survives('single-user mode with the library, DDL of another table');

#
# DDL that nobody saw
#

without('postgres', 'fast', 'ALTER TABLE t ALTER v TYPE text USING upper(v)');
resyncs('postgres', 'a table rewritten without the library');
survives('nothing was changed in the other database', 'other');
is($stack->events('shapes_resyncing', $unseen), 1, 'an event says why');
is($in{other}->events('shapes_resyncing', q{datname = 'other'}), 0, 'nothing was compared in the other database');

shapes();
without('postgres', 'immediate', q{ALTER TYPE e RENAME VALUE 'a' TO 'z'});
resyncs('postgres', 'a value renamed without the library, which then crashed');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle{postgres}') WHERE operation = 'update' AND value->>'e' = 'z'") > 0 ? 1 : 0, 1, '... readers get its new name');

shapes();
single_user(1, 'ALTER TABLE t ADD COLUMN w int');
active();
$stack->is_live($handle{postgres});
$stack->replays($handle{postgres}, 't', 'DDL in single-user mode with the library');
shapes();
single_user(0, 'ALTER TABLE t ALTER w TYPE int USING 1');
active();
resyncs('postgres', 'DDL in single-user mode without the library');
without('postgres', 'fast', 'ALTER TABLE t ADD COLUMN more int');
resyncs('postgres', 'a column added without the library');
shapes();
without('postgres', 'fast', 'ALTER TABLE t RENAME TO renamed');
is_gone('postgres', 'a table renamed without the library');
$stack->sql('ALTER TABLE renamed RENAME TO t');
shapes();
without('postgres', 'fast', 'CREATE TABLE new AS SELECT * FROM t', 'DROP TABLE t', 'ALTER TABLE new RENAME TO t', 'ALTER TABLE t ADD PRIMARY KEY (id)');
is_gone('postgres', 'a table dropped, and made again, without the library');

# between runs of ours that have not looked: the stack does not run
shapes();
$stack->sql('SELECT electric_cm_stop()');
start(0);
$stack->sql('ALTER PUBLICATION electric_cm_publication DROP TABLE t', 'UPDATE t SET v = \'unseen\'', 'ALTER PUBLICATION electric_cm_publication ADD TABLE t');
start(1, 'immediate');
$stack->sql('ALTER TABLE aside ADD COLUMN v int');
start(1, 'immediate');
start(1);
$stack->sql('SELECT electric_cm_start()');
active();
resyncs('postgres', 'the table left the publication and came back, some runs ago');

# prepared without us, committed with us
shapes();
start(0);
$stack->sql('BEGIN', q{ALTER TYPE e RENAME VALUE 'b' TO 'y'}, q{PREPARE TRANSACTION 'unseen'});
start(1);
$stack->becomes(q{SELECT last_error LIKE 'prepared transaction % is to end first' FROM electric_cm_stat_manager WHERE datname = 'postgres'},
	'a transaction that was prepared without the library is named');
$stack->sql(q{COMMIT PREPARED 'unseen'});
active();
resyncs('postgres', '... and counts when it has ended');
survives('the other database does not wait for it', 'other');

# what can be seen of it meanwhile
start(0);
like($stack->sql(q{SELECT detail FROM electric_cm_check() WHERE name = 'preload'}), qr/after DDL in this database all shapes have to be compared with their tables/, 'electric_cm_check() says what DDL means now');
start(1);
shapes();
survives('after all');

done_testing();
