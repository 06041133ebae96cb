# Connections, consumers and managers end, again and again: the stack comes
# back by itself, at a pace, and says what happened.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $stack = new_stack('main', conf => q{
electric_cm.reconnect_initial_delay = '300 ms'
electric_cm.reconnect_max_delay = '600 ms'
electric_cm.status_check_interval = '1 s'
electric_cm.consumer_stall_timeout = '1 s'
});
my $node = $stack->node;
my $db = 'postgres';

sub becomes { return $stack->becomes($_[1], $_[0]); }

my $walsender = "(SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication')";
my $consumer = '(SELECT pid FROM electric_cm_stat_consumers)';
my $manager = '(SELECT pid FROM electric_cm_stat_manager)';

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

sub log_is_right
{
	my ($what) = @_;
	$stack->sql(q{INSERT INTO t SELECT (SELECT coalesce(max(id), 0) FROM t) + i, $$x$$ FROM generate_series(1, 10) i});
	$stack->settle;
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}

# The stream's first loss is mended at once, however short it has been active.
# Measured by the server's own clock: from the loss noticed to "ready".
sub lose_stream
{
	$stack->sql("SELECT pg_terminate_backend($walsender)");
	becomes($_[0],
		"SELECT electric_cm_status() = 'active' AND count(*) FILTER (WHERE event = 'ready') > $_[1] FROM electric_cm_events");
	return $stack->sql(q{SELECT extract(milliseconds FROM max(occurred_at) FILTER (WHERE event = 'ready')
		- max(occurred_at) FILTER (WHERE event = 'connection_error')) FROM electric_cm_events});
}

my $ms = lose_stream('the walsender ended: active again', 1);
cmp_ok($ms, '<', 290, "... without waiting for the first delay ($ms ms)");
like($stack->sql('SELECT last_error FROM electric_cm_stat_manager'), qr/administrator command/, '... last_error says why');
is($stack->sql('SELECT retry_count FROM electric_cm_stat_manager'), 0, '... and nothing counts as a retry');
$ms = lose_stream('it ended again soon after: active again', 2);
cmp_ok($ms, '>=', 290, "... after the first delay ($ms ms)");
log_is_right('two broken connections');

# The delays are on show while they last: the walsender can't come back while
# nobody may connect
my $pgdata = $node->data_dir;
my $hba = slurp_file("$pgdata/pg_hba.conf");
open my $fh, '>', "$pgdata/pg_hba.conf" or die $!;
print $fh "local all all reject\n";
close $fh;
my $keep = $node->background_psql($db);
$node->reload;
$keep->query_safe("SELECT pg_terminate_backend($walsender)");
my $row = '';
for (1 .. 300)
{
	$row = $keep->query_safe('SELECT status, step, last_error_sqlstate, last_error FROM electric_cm_stat_manager');
	last if $row =~ /failed/;
	usleep(50_000);
}
like($row, qr/failed\|connect_replication\|28000\|.*pg_hba\.conf/, 'no entry in pg_hba.conf: failed, at which step, and why');
open $fh, '>', "$pgdata/pg_hba.conf" or die $!;
print $fh $hba;
close $fh;
$node->reload;
$keep->quit;
ok($stack->active, 'the entry is back: active after a reload');

# A consumer that keeps dying

# as soon as there is another one, until the stack restarts (which takes more
# than three within five seconds)
my $deaths = $stack->sql(q{
CREATE FUNCTION pg_temp.kill_consumers() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	last int := 0;
	this int;
	deaths int := 0;
BEGIN
	WHILE deaths < 50 AND NOT EXISTS (SELECT FROM electric_cm_events WHERE event = 'stack_restarting') LOOP
		SELECT c.pid INTO this FROM electric_cm_stat_consumers c;
		IF this <> last AND pg_terminate_backend(this) THEN
			last := this;
			deaths := deaths + 1;
		END IF;
		PERFORM pg_sleep(0.002);
	END LOOP;
	RETURN deaths;
END $$;
SELECT pg_temp.kill_consumers()});
cmp_ok($deaths, '>', 3, 'up to three deaths in a row are mended one by one');
becomes('active again', q{SELECT electric_cm_status() = 'active'});
is($stack->events('stack_restarting', "severity = 'warning'"), 1, 'then the stack restarts from the beginning');
log_is_right('a consumer that kept dying');

# A consumer that hangs is named, and holds up neither the manager nor, once it
# goes on, anything else

my $pid = $stack->sql("SELECT $consumer");
kill 'STOP', $pid or die "no consumer";
# just more than its queue of 1 MB holds, so that the manager stops reading
$stack->sql("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(100001, 102050) i");
becomes('a consumer that hangs with work to do is named in pinned_by',
	"SELECT pinned_by LIKE 'consumer 1 (PID $pid)%' AND pinned_since < now() FROM electric_cm_stat_replication");
is($stack->events('consumer_stalled', "severity = 'warning' AND message LIKE '%$pid%'"), 1, 'a warning says so, once');
is($stack->sql('SELECT electric_cm_status()'), 'active', 'the status is still answered');
cmp_ok($stack->sql('SELECT electric_cm_report_retained_wal_size()'), '>', 1_000_000, 'retained WAL grows and is reported');

# nobody reads the stream now; its end is noticed all the same
my $sender = $stack->sql("SELECT $walsender");
$stack->sql("SELECT pg_terminate_backend($sender)");
becomes('a connection that ends while the consumer hangs is replaced',
	"SELECT coalesce($walsender <> $sender, false)");
kill 'CONT', $pid;
becomes('it goes on: active', q{SELECT electric_cm_status() = 'active'});
log_is_right('a consumer that hung');
becomes('nothing is pinned any more', 'SELECT pinned_by IS NULL AND pinned_since IS NULL FROM electric_cm_stat_replication');
is($stack->events('consumer_resumed'), 1, 'an event says that it goes on');

# One shape whose entries can't be written: an index of an administrator's
# raises an error for it

$stack->sql('CREATE TABLE other (id int PRIMARY KEY)');
my $other = $stack->sql(q{SELECT electric_cm_create_shape('other')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$other')");
my $id = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$other'");
$stack->sql("CREATE INDEX trap ON _electric_cm.shape_log ((1 / (shape - $id)))");
$stack->sql('INSERT INTO other VALUES (1)');
becomes('a shape that raises errors is "errored"',
	"SELECT state = 'errored' AND last_error = 'division by zero' FROM electric_cm_shapes WHERE handle = '$other'");
becomes('an event names it', "SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'shape_errored' AND message LIKE '%$other%'");
my ($rc, $out, $err) = $node->psql($db, "SELECT * FROM electric_cm_shape_log('$other')");
like($err, qr/is errored.*DETAIL:\s+division by zero/s, 'its readers get the message');
ok($stack->active, 'the stack is active again');
$stack->sql('INSERT INTO other VALUES (2)');
log_is_right('beside an errored shape');
$stack->sql('DROP INDEX _electric_cm.trap');
$stack->sql("SELECT electric_cm_drop_shape('$other')");
$other = $stack->sql(q{SELECT electric_cm_create_shape('other')});
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$other')"), 2, 'dropped and created again, it works');

# A shape that can't be created: its owner lost the right to read the table
# after it was declared

$stack->sql('CREATE ROLE reader LOGIN');
$stack->sql('CREATE TABLE secret (id int PRIMARY KEY)');
$stack->sql('GRANT SELECT ON secret TO reader');
$stack->sql('GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO reader');
$stack->sql('ALTER PUBLICATION electric_cm_publication ADD TABLE secret');
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE secret IN ROW EXCLUSIVE MODE');
my $secret = $node->safe_psql($db, q{SELECT electric_cm_create_shape('secret')}, extra_params => [ '-U', 'reader' ]);
becomes('a shape waits for who may be writing to its table, and says so',
	"SELECT waiting_for LIKE '%writing%' FROM electric_cm_shapes WHERE handle = '$secret'");
$stack->sql('REVOKE SELECT ON secret FROM reader');
$holder->query_safe('COMMIT');
$holder->quit;
becomes('... and is errored when its owner may not read the table any more',
	"SELECT state = 'errored' AND last_error LIKE 'permission denied%' FROM electric_cm_shapes WHERE handle = '$secret'");

# A manager that can't run is started again with backoff

$stack->sql('CREATE TABLE saved AS TABLE _electric_cm.stack');
$stack->sql('DELETE FROM _electric_cm.stack');
$stack->sql("SELECT pg_terminate_backend($manager)");
becomes('a manager that fails is waited for, with a time for the next attempt',
	q{SELECT status = 'waiting' AND retry_count >= 2 AND next_retry_at IS NOT NULL FROM electric_cm_stat_manager});
cmp_ok($stack->events('manager_restarting'), '>=', 1, 'an event says so');
$stack->sql('INSERT INTO _electric_cm.stack TABLE saved');
becomes('mended: active', q{SELECT electric_cm_status() = 'active'});
log_is_right('a manager that could not run');

$node->stop;
done_testing();
