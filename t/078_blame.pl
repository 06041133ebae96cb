# A shape whose where clause ends its consumer, by lack of memory or by a crash
# of the server, costs itself, not the others; and whoever ends a consumer for
# other reasons costs no shape.
use strict;
use warnings;

use ElectricCM qw(new_stack measures_memory);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $db = 'postgres';
my $stack = new_stack('main', conf => qq{
restart_after_crash = on
max_parallel_workers_per_gather = 0
electric_cm.shape_stall_timeout = 0
electric_cm.reconnect_initial_delay = 100ms
electric_cm.reconnect_max_delay = 1s
});
my $node = $stack->node;

sub shape
{
	my ($table, $clause) = @_;
	my $handle = $stack->sql("SELECT electric_cm_create_shape('$table', \$\$$clause\$\$)");
	$stack->sql("SELECT FROM electric_cm_shape_log('$handle', max_entries => 1)");
	return $handle;
}

# Only after a crash can a session be refused.
sub is_up
{
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		my ($rc) = $node->psql($db, 'SELECT 1');
		return 1 if defined $rc and $rc == 0;
		usleep(100_000);
	}
	return 0;
}

# The PID of the consumer, once it is at the transaction that lasts.
sub busy_consumer
{
	my ($not) = @_;
	my $query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'electric_cm consumer'
		AND state = 'active' AND query = 'writing shape logs'
		AND state_change < clock_timestamp() - interval '0.5 s' AND pid <> $not";
	is_up();
	$stack->becomes("SELECT EXISTS ($query)");
	return $stack->sql($query);
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;
$stack->sql(q{
	CREATE TABLE mine (id int PRIMARY KEY, v text);
	CREATE TABLE slow (id int PRIMARY KEY, n int);
	CREATE TABLE theirs (id int PRIMARY KEY, v text);
	ALTER TABLE slow REPLICA IDENTITY FULL;
	ALTER TABLE mine REPLICA IDENTITY FULL;
});
my $theirs = shape('theirs', 'true');

# ---- ended by others: no blame, however often

# as long as this lasts, half a minute, its consumer is at it
my $slow = shape('slow', join( ' + ', map { "factorial(n - $_)" } 1 .. 12) . ' > 0');
my $quick = shape('slow', 'n > 0');
$stack->sql('INSERT INTO slow VALUES (1, 30000)');
my $pid = 0;
for my $what ('manager', 'manager')
{
	$pid = busy_consumer($pid);
	my $manager = $stack->sql('SELECT pid FROM electric_cm_stat_manager');
	kill 'KILL', $manager;
	becomes_gone($pid);
}
for (1 .. 3)
{
	$pid = busy_consumer($pid);
	$stack->sql("SELECT pg_terminate_backend($pid)");
	becomes_gone($pid);
}
is($stack->state_of($slow), 'live', 'whoever ends the consumer at a where clause costs no shape');

sub becomes_gone
{
	my ($gone) = @_;
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 unless kill 0, $gone;
		usleep(100_000);
	}
	return 0;
}

# ---- killed twice, at the same clause and the same row

for (1 .. 2)
{
	$pid = busy_consumer($pid);
	kill 'KILL', $pid;
	becomes_gone($pid);
}
is_up();
$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$slow'",
	'a shape at which the server crashes twice is errored');
like($stack->sql("SELECT last_error FROM electric_cm_shapes WHERE handle = '$slow'"),
	qr/killed, or crashed, twice/, 'and says why');
$stack->sql("INSERT INTO theirs VALUES (1, 'new')");
$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shape_log('$theirs')",
	"another table's shape goes on");
$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shape_log('$quick')",
	"so does another of the same table");

# ---- the same while the table is read for a new shape

my $late = $stack->sql("SELECT electric_cm_create_shape('slow', '" . join(' - ', map { "factorial(n - $_)" } 1 .. 12) . " > 0')");
my $early = $stack->sql("SELECT electric_cm_create_shape('slow', 'n > 1')");
$pid = 0;
for (1 .. 2)
{
	my $query = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%take_snapshot%' AND state = 'active' AND pid NOT IN ($pid, pg_backend_pid())
		AND query_start < clock_timestamp() - interval '0.5 s'";
	is_up();
	$stack->becomes("SELECT EXISTS ($query)");
	$pid = $stack->sql("$query LIMIT 1");
	kill 'KILL', $pid;
	becomes_gone($pid);
}
is_up();
$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$late'",
	'a shape at whose snapshot the server crashes twice is errored');
like($stack->sql("SELECT last_error FROM electric_cm_shapes WHERE handle = '$late'"),
	qr/crashed twice while it read the table/, 'and says why');
$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$early'",
	'another that was waiting with it is live');

# ---- out of memory

SKIP:
{
	skip 'memory is limited where no sanitizer needs it', 8 unless measures_memory();
	my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
	skip 'prlimit is missing', 8
	  if system('prlimit', '--pid', $postmaster, '--as=900000000') != 0;
	$stack->sql('SELECT electric_cm_restart()');
	$stack->active;
	my @hungry = map { shape('mine', "octet_length(repeat(repeat('x', 1000000 + id), 1000)) > $_") } 1 .. 4;
	my $modest = shape('mine', "v = 'a'");
	my $restarts = $stack->sql('SELECT restarts FROM electric_cm_stat_consumers');
	$stack->sql("INSERT INTO mine VALUES (1, 'a')");
	$stack->sql("UPDATE theirs SET v = 'newer'");
	$stack->becomes("SELECT count(*) = 2 FROM electric_cm_shape_log('$theirs')",
		"clauses that are out of memory don't stop the others");
	is(join(' ', map { $stack->state_of($_) } @hungry), 'errored errored errored errored',
		'they are errored');
	like($stack->sql("SELECT last_error FROM electric_cm_shapes WHERE handle = '$hungry[0]'"),
		qr/out of memory/, 'and say why');
	$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shape_log('$modest')",
		'a modest one of the same table goes on');
	is($stack->sql('SELECT restarts FROM electric_cm_stat_consumers') - $restarts, 1,
		'which took one end of the consumer');
	is($stack->sql("SELECT count(*) > 0 FROM electric_cm_events WHERE message LIKE '%consumer 1 has ended: out of memory%'"),
		't', 'whose reason is told');

	my $hungrier = $stack->sql("SELECT electric_cm_create_shape('mine', 'octet_length(repeat(repeat(v, 1000001), 1000)) > 1')");
	$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$hungrier'",
		'a shape whose snapshot is out of memory each time is errored');
	like($stack->sql("SELECT last_error FROM electric_cm_shapes WHERE handle = '$hungrier'"), qr/out of memory/, 'and says why');
}

is($stack->sql("SELECT string_agg(f, ' ') FROM pg_ls_dir('pg_stat_tmp') f WHERE f LIKE 'electric_cm%'
		AND NOT EXISTS (SELECT FROM electric_cm_stat_consumers WHERE pid IS NOT NULL AND f LIKE '%.0')"),
	'', 'notes are kept for consumers that run, at most');
$node->stop;
done_testing();
