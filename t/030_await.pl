# Waiting for entries of a shape log: what comes is returned at once, and what
# ends the shape, the stack or the wait ends the wait.
use strict;
use warnings;

use ElectricCM qw(new_stack fails_with);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $db = 'postgres';
my $stack = new_stack('main', conf => "max_connections = 100\n");
my $node = $stack->node;

# Sessions that wait, in the background; each is a hash of its IPC::Run
# handle and what it has printed.
sub waiter
{
	my ($server, $sql) = @_;
	my %waiter = (out => '', err => '');

	$waiter{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $server->connstr($db), '-c', $sql ],
		'<', \undef, '>', \$waiter{out}, '2>', \$waiter{err},
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return \%waiter;
}

sub finish
{
	my ($waiter) = @_;
	$waiter->{run}->finish;
	return $waiter->{out} . $waiter->{err};
}

# That many sessions sleep in the function.
sub are_waiting
{
	my ($server, $n) = @_;
	return ElectricCM::poll($server, $db,
		qq{SELECT count(*) = $n FROM pg_stat_activity WHERE query LIKE '%await_shape_log%'
			AND pid <> pg_backend_pid() AND (wait_event_type = 'Extension' OR wait_event = 'WaitForWalReplay')});
}

sub await_sql
{
	my ($handle, $after, $timeout) = @_;
	return "SELECT operation, value->>'id' FROM electric_cm_await_shape_log('$handle', '$after', '$timeout')";
}

sub shape
{
	my ($definition) = @_;
	my $handle = $stack->sql("SELECT electric_cm_create_shape($definition)");
	$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'");
	return $handle;
}

$stack->sql('CREATE EXTENSION electric_cm',
	'CREATE TABLE t (id int PRIMARY KEY, v int)', 'INSERT INTO t VALUES (1, 1)',
	'CREATE TABLE other (id int PRIMARY KEY)', 'CREATE TABLE later (id int PRIMARY KEY)');
$stack->active or BAIL_OUT('no stack');
my $handle = shape(q{'t'});

#
# What is there is returned at once, as electric_cm_shape_log() does
#
is( $stack->sql("SELECT * FROM electric_cm_await_shape_log('$handle', '-1', '1 hour')"),
	$stack->sql("SELECT * FROM electric_cm_shape_log('$handle')"),
	'what is there is returned at once');
is($stack->sql(await_sql($handle, '0_1', '0')), '', 'a timeout of 0 only looks');
my $start = time;
is($stack->sql(await_sql($handle, '0_1', '300 ms')), '', 'nothing is returned after the timeout');
cmp_ok(time - $start, '>=', 0.3, '... and not before');

#
# What comes is returned when it comes
#
my $waiter = waiter($node, await_sql($handle, '0_1', '1 hour'));
ok(are_waiting($node, 1), 'a session waits');

# How often the session that waits has slept.
sub times_slept
{
	my $pid = $stack->sql(q{SELECT pid FROM pg_stat_activity WHERE query LIKE '%await_shape_log%' AND pid <> pg_backend_pid()});
	return slurp_file("/proc/$pid/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : die 'no such process';
}
my $slept = times_slept();
$stack->sql('SELECT pg_sleep(1)');
is(times_slept(), $slept, '... and does nothing else in a second');

$stack->sql('INSERT INTO other VALUES (1)');
$stack->settle;
ok(are_waiting($node, 1), 'what is of no concern to the shape does not end the wait');
$stack->sql('BEGIN', 'INSERT INTO t VALUES (2, 2)', 'UPDATE t SET v = 3 WHERE id = 1', 'COMMIT');
is(finish($waiter), "insert|2\nupdate|1\n", 'it gets a transaction as a whole');

my $after = $stack->last_offset($handle);
$waiter = waiter($node, "SELECT count(*) FROM electric_cm_await_shape_log('$handle', '$after', '1 hour', 1)");
ok(are_waiting($node, 1), 'a session waits for one entry');
$stack->sql('UPDATE t SET v = v + 1');
is(finish($waiter), "1\n", '... and gets max_entries');
$after = $stack->last_offset($handle);

# Latency, client to client.  The machine may be busy, so only an absurd figure
# fails; the real one is printed.
$stack->sql(q{CREATE PROCEDURE measure(handle text, rounds int) LANGUAGE plpgsql AS $$
DECLARE after text; started timestamptz; n int;
BEGIN
	FOR i IN 1 .. rounds LOOP
		SELECT last_offset INTO after FROM electric_cm_shapes s WHERE s.handle = measure.handle;
		UPDATE t SET v = v + 1 WHERE id = 1;
		COMMIT;
		started := clock_timestamp();
		SELECT count(*) INTO n FROM electric_cm_await_shape_log(handle, after, '10 s');
		INSERT INTO latency VALUES (extract(epoch FROM clock_timestamp() - started) * 1000, n);
		COMMIT;
	END LOOP;
END $$}, 'CREATE TABLE latency (ms float8, n int)', "CALL measure('$handle', 200)");
is($stack->sql('SELECT count(*) FROM latency WHERE n = 0'), 0, 'in a loop of changes and waits, each wait gets its change');
my ($median, $max) = split /\|/,
  $stack->sql('SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), max(ms) FROM latency');
diag(sprintf('from commit to return: median %.2f ms, maximum %.1f ms', $median, $max));
cmp_ok($median, '<', 100, 'they get it soon');
$after = $stack->last_offset($handle);

#
# Many
#
my @waiters = map { waiter($node, await_sql($handle, $after, '1 hour')) } 1 .. 50;
ok(are_waiting($node, 50), '50 sessions wait');
$stack->sql('INSERT INTO t VALUES (3, 3)');
is(join('', map { finish($_) } @waiters), "insert|3\n" x 50, '50 sessions get it');
$after = $stack->last_offset($handle);

#
# Cancelled, terminated
#
$waiter = waiter($node, await_sql($handle, $after, '1 hour'));
are_waiting($node, 1);
$stack->sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%await_shape_log%' AND pid <> pg_backend_pid()});
like(finish($waiter), qr/57014.*canceling statement/, 'a wait can be cancelled');
$waiter = waiter($node, 'SET statement_timeout = 200; ' . await_sql($handle, $after, '1 hour'));
like(finish($waiter), qr/57014.*statement timeout/, '... also by statement_timeout');
$waiter = waiter($node, await_sql($handle, $after, '1 hour'));
are_waiting($node, 1);
$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%await_shape_log%' AND pid <> pg_backend_pid()});
like(finish($waiter), qr/57P01/, '... and terminated');

#
# Transactions in which it would wait for itself
#
sub fails { return fails_with($node, $db, @_); }
my $await = await_sql($handle, '-1', '1 hour');
fails(qr/55000.*HINT:  Commit first/s, 'refused in a transaction that has made changes',
	'BEGIN', 'INSERT INTO other VALUES (2)', $await);
fails(qr/55000.*HINT:  Commit first/s, '... that locks the table',
	'BEGIN', 'LOCK t IN SHARE MODE', $await);
fails(qr/55000.*HINT:  Commit first/s, '... above READ COMMITTED',
	'BEGIN ISOLATION LEVEL REPEATABLE READ', $await);
is($stack->sql('BEGIN', 'SELECT count(*) > 0 FROM t', "SELECT count(*) > 0 FROM electric_cm_await_shape_log('$handle', '-1')", 'COMMIT'),
	"t\nt", 'not in one that has only read');
fails(qr/22004.*handle/s, 'no handle', q{SELECT * FROM electric_cm_await_shape_log(NULL, '-1')});
fails(qr/22004.*offset/s, 'no offset', "SELECT * FROM electric_cm_await_shape_log('$handle', NULL)");
fails(qr/22P02.*offset/s, 'not an offset', "SELECT * FROM electric_cm_await_shape_log('$handle', 'x')");
fails(qr/22023.*timeout/s, 'negative timeout', await_sql($handle, '-1', '-1 s'));
fails(qr/22023.*exceed one hour.*DETAIL:.*VACUUM.*HINT/s, 'a timeout of more than an hour', await_sql($handle, '-1', '1 hour 1 s'));
fails(qr/22023.*must not be null.*HINT/s, 'no timeout', "SELECT * FROM electric_cm_await_shape_log('$handle', '-1', NULL)");
fails(qr/22023.*max_entries/s, 'max_entries 0', "SELECT * FROM electric_cm_await_shape_log('$handle', '-1', '1 s', 0)");
fails(qr/42704.*HINT/s, 'no such shape', await_sql('none', '-1', '1 s'));

#
# A shape that is being created
#
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN');
$writer->query_safe('INSERT INTO later VALUES (1)');
my $creating = $stack->sql(q{SELECT electric_cm_create_shape('later')});
fails(qr/57014.*"$creating" to be created.*DETAIL:.*waits for: .*HINT/s,
	'a shape that is being created is not an empty one: the timeout says what it waits for', await_sql($creating, '-1', '200 ms'));
is($stack->sql("SELECT last_offset FROM electric_cm_shapes WHERE handle = '$creating'"), '', '... and it has no offset to go on from');
$waiter = waiter($node, await_sql($creating, '-1', '1 hour'));
are_waiting($node, 1);
$writer->query_safe('COMMIT');
is(finish($waiter), "insert|1\n", '... and its rows as soon as it is live');

#
# The shape's end
#
my %ends = (
	'dropped' => ["SELECT electric_cm_drop_shape('%s')"],
	'of a table that is renamed' => [ 'ALTER TABLE doomed RENAME TO elsewhere', 'ALTER TABLE elsewhere RENAME TO doomed' ],
	'dropped by a prepared transaction' =>
	  [ 'BEGIN', "SELECT electric_cm_drop_shape('%s')", q{PREPARE TRANSACTION 'drop'}, q{COMMIT PREPARED 'drop'} ]);
$stack->sql('CREATE TABLE doomed (id int PRIMARY KEY, v int)');
for my $how (sort keys %ends)
{
	my $doomed = shape(q{'doomed'});
	$waiter = waiter($node, await_sql($doomed, '-1', '1 hour'));
	are_waiting($node, 1);
	$stack->sql(map { s/%s/$doomed/r } @{ $ends{$how} });
	like(finish($waiter), qr/42704.*HINT:.*electric_cm_create_shape/s, "$how while one waits");
}

# but not by a gap: who waits gets the difference
$stack->sql('INSERT INTO doomed VALUES (1, 1)');
my $resynced = shape(q{'doomed'});
for ([ 'TRUNCATE doomed', "delete|\n" ], [ 'INSERT INTO doomed VALUES (1, 1)', "insert|1\n" ], [ 'ALTER TABLE doomed ADD more int DEFAULT 5', "update|1\n" ])
{
	my ($command, $entry) = @{$_};
	$waiter = waiter($node, await_sql($resynced, $stack->last_offset($resynced), '1 hour'));
	are_waiting($node, 1);
	$stack->sql($command);
	is(finish($waiter), $entry, "$command while one waits");
}
$stack->sql('TRUNCATE doomed', "SELECT electric_cm_drop_shape('$resynced')", 'ALTER TABLE doomed REPLICA IDENTITY FULL');
my $doomed = shape(q{'doomed', '100 / v > 1'});
$waiter = waiter($node, await_sql($doomed, '-1', '1 hour'));
are_waiting($node, 1);
$stack->sql('INSERT INTO doomed VALUES (1, 0)');
like(finish($waiter), qr/55000.*is errored.*DETAIL:  division by zero/s, 'errored while one waits');

# a drop that can't be seen yet when the stream has it
$stack->sql(q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'}, 'SELECT pg_reload_conf()');
$doomed = $stack->sql(q{SET synchronous_commit = local}, q{SELECT electric_cm_create_shape('doomed', 'id > 10')});
$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$doomed'");
$waiter = waiter($node, await_sql($doomed, '-1', '1 hour'));
are_waiting($node, 1);
my $dropper = waiter($node, "SELECT electric_cm_drop_shape('$doomed')");
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
$stack->becomes("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'shape_invalidated' AND message LIKE '%$doomed%'");
$stack->sql(q{SET synchronous_commit = local}, 'ALTER SYSTEM RESET synchronous_standby_names', 'SELECT pg_reload_conf()');
like(finish($waiter), qr/42704/, 'dropped by a commit that waits for a standby');
finish($dropper);

#
# Rights are checked when there is something to return, too
#
$stack->sql('CREATE ROLE reader LOGIN', 'GRANT SELECT ON t TO reader',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO reader');
my $theirs = $stack->sql('SET ROLE reader', q{SELECT electric_cm_create_shape('t')});
$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$theirs'");
my $last = $stack->last_offset($theirs);
$waiter = waiter($node, 'SET ROLE reader; ' . await_sql($theirs, $last, '1 hour'));
are_waiting($node, 1);
$stack->sql('REVOKE SELECT ON t FROM reader', 'UPDATE t SET v = v + 1');
like(finish($waiter), qr/42501/, 'a right that was taken away while one waited');
$after = $stack->last_offset($handle);

#
# The stack
#
$waiter = waiter($node, await_sql($handle, $after, '1 hour'));
are_waiting($node, 1);
$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'electric_cm consumer%'});
$stack->sql('INSERT INTO t VALUES (4, 4)');
is(finish($waiter), "insert|4\n", 'a consumer that ends does not end the wait');
$after = $stack->last_offset($handle);

$waiter = waiter($node, await_sql($handle, $after, '1 hour'));
are_waiting($node, 1);
$stack->sql('SELECT electric_cm_stop()');
like(finish($waiter), qr/55000.*stopped.*HINT:.*electric_cm_start/s, 'a stack that is stopped does');
fails(qr/55000.*stopped.*HINT:.*electric_cm_start/s, '... and nobody waits for it any more', await_sql($handle, '-1', '1 hour'));
is($stack->sql("SELECT count(*) > 0 FROM electric_cm_shape_log('$handle')"), 't', 'a log can be read all the same');
$stack->sql('SELECT electric_cm_start()');
$stack->active;

#
# A standby
#
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is( $standby->safe_psql($db, "SELECT * FROM electric_cm_await_shape_log('$handle', '-1', '1 hour')"),
	$stack->sql("SELECT * FROM electric_cm_shape_log('$handle')"), 'standby: what is there is returned at once');
is($standby->safe_psql($db, await_sql($handle, $after, '200 ms')), '', 'standby: nothing until the timeout');
@waiters = map { waiter($standby, await_sql($handle, $after, '1 hour')) } 1 .. 10;
ok(are_waiting($standby, 10), 'standby: sessions wait');
$stack->sql('INSERT INTO t VALUES (5, 5)');
is(join('', map { finish($_) } @waiters), "insert|5\n" x 10, 'standby: they get what comes');
$after = $stack->last_offset($handle);

$writer->query_safe('BEGIN');
$writer->query_safe('INSERT INTO other VALUES (10)');
$creating = $stack->sql(q{SELECT electric_cm_create_shape('other')});
$node->wait_for_catchup($standby);
@waiters = map { waiter($standby, $_) } "SELECT count(*) > 0 FROM electric_cm_shape_log('$creating') /* await_shape_log */",
  "SELECT count(*) > 0 FROM electric_cm_await_shape_log('$creating', '-1', '1 hour')";
ok(are_waiting($standby, 2), 'standby: they wait for a shape that is being created');
$writer->query_safe('COMMIT');
$writer->quit;
is(join('', map { finish($_) } @waiters), "t\nt\n", 'standby: until it is live');

$waiter = waiter($standby, await_sql($handle, $after, '1 hour'));
are_waiting($standby, 1);
$stack->sql("SELECT electric_cm_drop_shape('$handle')");
like(finish($waiter), qr/42704/, 'standby: dropped while one waits');
$standby->stop;

#
# The extension's end
#
$writer = $node->background_psql($db);
$writer->query_safe('BEGIN');
$writer->query_safe('INSERT INTO later VALUES (10)');
$stack->sql("SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes WHERE relation = 'later'::regclass");
my $unfinished = $stack->sql(q{SELECT electric_cm_create_shape('later', 'id > 5')});
@waiters = map { waiter($node, $_) } await_sql($creating, $stack->last_offset($creating), '1 hour'),
  await_sql($unfinished, '-1', '1 hour'), "SELECT FROM electric_cm_shape_log('$unfinished') /* await_shape_log */";
are_waiting($node, 3);
is($stack->sql(q{SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE c.relnamespace = '_electric_cm'::regnamespace AND a.query LIKE '%await_shape_log%' AND a.pid <> pg_backend_pid()}),
	0, 'those who wait hold no locks');
$stack->sql(q{SET lock_timeout = '30 s'}, 'DROP EXTENSION electric_cm');
like(finish($_), qr/55000.*extension electric_cm has been dropped/s, '... and the extension can be dropped, which ends the wait') for @waiters;
$writer->query_safe('COMMIT');
$writer->quit;

$node->stop;
done_testing();
