
# A shape that nobody reads is dropped after a while, if that is wanted: not one that is read,
# waited for, or a named reader's; nor after a restart, when it is not known yet who reads.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $stack = new_stack('main');
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
my %shape;
for my $table (qw(unread is_read awaited of_reader locked errored next_first next_second))
{
	$stack->sql("CREATE TABLE $table (id int PRIMARY KEY)", "INSERT INTO $table VALUES (1)");
	$shape{$table} = $stack->live_shape($table);
}
$stack->sql("SELECT electric_cm_create_reader('r', '{$shape{of_reader}}')",
	# it does not come to its second shape
	"SELECT electric_cm_create_reader('slow', '{$shape{next_first},$shape{next_second}}')", "SELECT electric_cm_shape_log('$shape{$_}')") for 'unread';
my $writes = $node->background_psql($stack->db);
$stack->sql('CREATE TABLE slow (id int PRIMARY KEY)', 'CREATE TABLE patient (id int PRIMARY KEY)');
$writes->query_safe('BEGIN; INSERT INTO slow VALUES (1)');
my $locks = $node->background_psql($stack->db);
$locks->query_safe("BEGIN; SELECT electric_cm_drop_shape('$shape{locked}')");

sub read_on
{
	my ($seconds) = @_;
	my $end = time() + $seconds;
	my $up_to = $stack->sql("SELECT log_offset FROM electric_cm_shape_logs('{$shape{awaited}}', '{-1}') WHERE operation = 'up-to-date'");
	while (time() < $end)
	{
		$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$shape{is_read}')", q{SELECT count(*) FROM electric_cm_read('r')}, q{SELECT count(*) FROM electric_cm_read('slow')},
			"CALL electric_cm_await('{$shape{awaited}}', '{$up_to}', '0.3 s')", "CALL electric_cm_await('{$shape{awaited}}', '{$up_to}', '0.3 s')");
	}
	return;
}
sub there { return join ' ', grep { $stack->exists_shape($shape{$_}) } sort keys %shape; }

my $patient = $stack->live_shape('patient');
read_on(2);
is(there(), 'awaited errored is_read locked next_first next_second of_reader unread', 'nothing expires unless that is wanted');
$stack->sql(q{ALTER SYSTEM SET electric_cm.shape_expiry = '3s'}, 'SELECT pg_reload_conf()');
# one that waits for long, and one whose shape is not created for long
my $waits = $node->background_psql($stack->db);
$waits->query_until(qr/begun/, "\\echo begun\nCALL electric_cm_await('{$patient}', '{9999999_0}', '60 s');\n");
my $slow = $stack->shape('slow');
read_on(6);
is($stack->sql("SELECT string_agg(relation::text || ' ' || state, ', ' ORDER BY relation::text) FROM electric_cm_shapes WHERE handle IN ('$slow', '$patient')"), 'patient live, slow creating',
	'a session that waits for long keeps a shape; one that is being created does not expire');
$writes->query_safe('COMMIT');
$writes->quit;
$stack->is_live($slow);
is(there(), 'awaited is_read locked next_first next_second of_reader', 'what nobody has read is dropped, unless it is locked');
my ($id, $message) = split /\|/, $stack->sql(q{SELECT severity, message FROM electric_cm_events WHERE event = 'shape_invalidated' AND message ~ 'nobody'});
like($message, qr/nobody has read it for 00:00:03/, '... an event says why');
$stack->sql("SELECT electric_cm_drop_shape('$patient')");
$waits->quit;
$locks->query_safe('ROLLBACK');
$locks->quit;
read_on(3);
is(there(), 'awaited is_read next_first next_second of_reader', '... and also what was locked, later');
ok($stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$slow'"), '... and what became live later');

$node->stop('immediate');
$node->start;
my $started = time();
ok($stack->active, 'after a crash');
usleep(100_000) while time() < $started + 2;
is(there(), 'awaited is_read next_first next_second of_reader', '... nothing expires at once');
ok($stack->becomes('SELECT count(*) = 0 FROM electric_cm_shapes'), '... but when the time has passed again');

unlike(slurp_file($node->logfile), qr/(?:still referenced|leak|TRAP|PANIC|signal \d+ *:)/, 'no leaks, no crash');
$node->stop;
done_testing();
