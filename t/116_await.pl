
# One call of electric_cm_await() waits for many shapes: it returns those that have something new
# to the reader, or have ended, and nobody is woken by others. While it sleeps it holds no snapshot:
# VACUUM removes what has died, and CREATE INDEX CONCURRENTLY does not wait. It can be ended at any
# time, and leaves nothing behind.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack fails_with);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $stack = new_stack('main', conf => "electric_cm.max_awaited_shapes = 600\n");
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE a (id int PRIMARY KEY)', 'CREATE TABLE b (id int PRIMARY KEY)', 'CREATE TABLE c (id int PRIMARY KEY)');
my %shape = map { $_ => $stack->live_shape($_) } qw(a b c);

sub array { return "'{" . join(',', @_) . "}'"; }

# A session of its own; sends SQL, and returns what comes until the marker.
sub session
{
	my %session = (in => '', out => '', err => '');
	$session{timer} = IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default);
	$session{psql} = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db) ], '<', \$session{in}, '>', \$session{out}, '2>', \$session{err}, $session{timer});
	return \%session;
}

sub send_sql
{
	my ($session, $sql) = @_;
	$session->{in} .= "$sql;\n\\echo done\n";
	$session->{psql}->pump_nb;
	return;
}

sub answer
{
	my ($session) = @_;
	$session->{psql}->pump until $session->{out} =~ /^done$/m || $session->{timer}->is_expired;
	my $answer = $session->{out} =~ s/\n?done\n\z//r;
	$session->{out} = '';
	return $answer;
}

sub ask { my ($session, $sql) = @_; send_sql($session, $sql); return answer($session); }

sub await_sql
{
	my ($handles, $offsets, $timeout) = @_;
	return 'CALL electric_cm_await(' . array(@$handles) . ', ' . array(@$offsets) . ", '$timeout')";
}

sub offset_of { my ($handle) = @_; $stack->settle; return $stack->last_offset($handle) || '-1'; }

# Wait until a session sleeps in its call.
sub sleeps
{
	my ($what) = @_;
	return $stack->becomes(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'CALL electric_cm_await%' AND state = 'active' AND wait_event_type = 'Extension'}, $what);
}

my $waiter = session();
my @handles = @shape{qw(a b c)};
my @offsets = ('-1') x 3;

# -------------------------------------------------------------- what is ready --

is(ask($waiter, await_sql(\@handles, \@offsets, '100 ms')), '{}', 'nothing there: none is ready when the time has passed');
$stack->sql('INSERT INTO b VALUES (1)');
is(ask($waiter, await_sql(\@handles, \@offsets, '60 s')), "{$shape{b}}", 'one has an entry');
is(ask($waiter, await_sql(\@handles, \@offsets, '60 s')), "{$shape{b}}", '... and still has, for a reader who has not read it');
$offsets[1] = offset_of($shape{b});
is(ask($waiter, await_sql(\@handles, \@offsets, '100 ms')), '{}', '... not for one who has');

send_sql($waiter, await_sql(\@handles, \@offsets, '60 s'));
sleeps('a session waits for three');
is($stack->sql('SELECT sessions, shapes FROM electric_cm_stat_waiters WHERE datname = current_database()'), '1|3', 'a view counts it');
$stack->sql('BEGIN', 'INSERT INTO a VALUES (2)', 'INSERT INTO c VALUES (2)', 'COMMIT');
is(answer($waiter), "{$shape{a},$shape{c}}", 'a transaction over two shapes wakes it, for both');
@offsets = map { offset_of($_) } @handles;
send_sql($waiter, await_sql(\@handles, \@offsets, '60 s'));
sleeps('it waits again');
$stack->sql('CREATE TABLE other (id int PRIMARY KEY)');
my $other = $stack->live_shape('other');
$stack->sql('INSERT INTO other VALUES (1)');
$stack->settle;
is($waiter->{out}, '', 'other shapes do not concern it');
$stack->sql("SELECT electric_cm_drop_shape('$shape{c}')");
is(answer($waiter), "{$shape{c}}", 'a shape that ends is ready');
is(ask($waiter, await_sql(\@handles, \@offsets, '60 s')), "{$shape{c}}", '... whoever asks');
pop @handles, pop @offsets;

my $cut = $stack->sql("SELECT log_offset FROM electric_cm_shape_logs(" . array(@handles) . ', ' . array(@offsets) . ") WHERE operation = 'up-to-date'");
is(ask($waiter, await_sql(\@handles, [ $cut, $cut ], '100 ms')), '{}', 'the offset of a cut will do for all');
$stack->sql('INSERT INTO a VALUES (3)');
is(ask($waiter, await_sql(\@handles, [ $cut, $cut ], '60 s')), "{$shape{a}}", '... and is older than what comes');
is(ask($waiter, await_sql([ $shape{a}, 'nonsense' ], [ offset_of($shape{a}), '-1' ], '60 s')), '{nonsense}', 'a handle that there is not is ready, too');
is(ask($waiter, await_sql([ $shape{a} ], ['5_5'], '60 s')), "{$shape{a}}", 'so is a shape for an offset that it does not have');
is(ask($waiter, await_sql([], [], '100 ms')), '{}', 'none of none');

# a shape that is being created is ready when it is live
my $blocker = session();
ask($blocker, 'BEGIN; CREATE TABLE block (id int); SELECT 1');
$stack->sql('CREATE TABLE late (id int PRIMARY KEY)', 'INSERT INTO late VALUES (1)');
ask($blocker, 'INSERT INTO late VALUES (2)');
my $late = $stack->shape('late');
send_sql($waiter, await_sql([$late], ['-1'], '60 s'));
sleeps('waits for a shape that is being created');
is($waiter->{out}, '', '... which waits for a transaction');
ask($blocker, 'COMMIT');
is(answer($waiter), "{$late}", '... until it is live');

# ------------------------------------------------------ what it does not hold up --

@offsets = map { offset_of($_) } @handles;
for my $how ([ 'CALL', '', '' ], [ 'CALL in a transaction', 'BEGIN; ', '; COMMIT' ])
{
	my ($name, $begin, $end) = @$how;
	send_sql($waiter, $begin . await_sql(\@handles, \@offsets, '60 s') . $end);
	sleeps("$name: it waits");
	is($stack->sql(q{SELECT count(*) FILTER (WHERE backend_xmin IS NOT NULL), count(*) FILTER (WHERE backend_xid IS NOT NULL),
		(SELECT count(*) FROM pg_locks l JOIN pg_stat_activity b USING (pid) WHERE b.query LIKE '%CALL electric_cm_await%' AND b.state = 'active'
			AND l.locktype = 'relation' AND b.pid <> pg_backend_pid())
		FROM pg_stat_activity WHERE query LIKE '%CALL electric_cm_await%' AND pid <> pg_backend_pid()}), '0|0|0', '... with no snapshot, and no lock');
	$stack->sql('CREATE TABLE dead (id int PRIMARY KEY)', 'INSERT INTO dead SELECT generate_series(1, 1000)', 'DELETE FROM dead');
	$stack->sql('VACUUM dead');
	is($stack->sql("SELECT pg_relation_size('dead')"), '0', '... VACUUM removes what has died since');
	$stack->sql(q{SET statement_timeout = '30 s'}, 'CREATE INDEX CONCURRENTLY ON a (id)', 'DROP TABLE dead');
	pass('... CREATE INDEX CONCURRENTLY does not wait for it');
	$stack->sql('INSERT INTO a SELECT max(id) + 1 FROM a');
	is(answer($waiter), "{$shape{a}}", '... and it is woken');
	@offsets = map { offset_of($_) } @handles;
}
is(ask($waiter, "DO \$\$ DECLARE r text[]; BEGIN CALL electric_cm_await(" . array(@handles) . ', ' . array(@offsets) . ", '200 ms', r); RAISE EXCEPTION 'ready: %', r; END \$\$"), '', 'called by PL/pgSQL');
like($waiter->{err}, qr/ready: \{\}/, '... it waits, too');
$waiter->{err} = '';

# DROP EXTENSION does not wait for it, either, and is noticed
my $second = session();
send_sql($waiter, await_sql(\@handles, \@offsets, '60 s'));
sleeps('it waits');
my $pid = $stack->sql(q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL electric_cm_await%' AND state = 'active'});
$stack->sql("SELECT pg_cancel_backend($pid)");
answer($waiter);
like($waiter->{err}, qr/canceling statement due to user request/, 'it can be canceled');
$waiter->{err} = '';

# a client that goes away is noticed
send_sql($second, await_sql(\@handles, \@offsets, '1 hour'));
sleeps('another session waits');
$second->{psql}->kill_kill;
$stack->becomes(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE 'CALL electric_cm_await%' AND state = 'active'}, 'when its client is gone, it ends');

fails_with($node, $db, $_->[1], $_->[2], $_->[0])
  for (
	[ "BEGIN; INSERT INTO a VALUES (99999); " . await_sql(\@handles, \@offsets, '1 s'), qr/55000.*Commit first/s, 'not in a transaction that has written' ],
	[ "BEGIN ISOLATION LEVEL REPEATABLE READ; " . await_sql(\@handles, \@offsets, '1 s'), qr/55000.*READ COMMITTED/s, 'nor above READ COMMITTED' ],
	[ await_sql(\@handles, \@offsets, '2 hours'), qr/22023.*one hour/s, 'nor for longer than an hour' ],
	[ await_sql(\@handles, ['-1'], '1 s'), qr/2202E/, 'nor with too few offsets' ]);

# ---------------------------------------------------------------- many --

# more shapes than there are places: the rest is polled
$stack->sql('CREATE TABLE many (id int PRIMARY KEY, k int)', 'ALTER TABLE many REPLICA IDENTITY FULL');
$stack->sql("SELECT count(electric_cm_create_shape('many', 'k = ' || i)) FROM generate_series(1, 700) i");
$stack->becomes("SELECT count(*) = 700 FROM electric_cm_shapes WHERE relation = 'many'::regclass AND state = 'live'");
my @many = split /\n/, $stack->sql("SELECT handle FROM electric_cm_shapes WHERE relation = 'many'::regclass ORDER BY created_at, regexp_replace(where_clause, '[^0-9]', '', 'g')::int");
for my $n (500, 700)
{
	my @some = @many[ 0 .. $n - 1 ];
	my ($found, $told) = (0, 0);
	my $at = $stack->sql("SELECT log_offset FROM electric_cm_shape_logs(" . array(@some) . ', ' . array(('-1') x $n) . ", NULL) WHERE operation = 'up-to-date'");
	for my $round (1 .. 20)
	{
		my $k = 1 + int(rand($n));
		send_sql($waiter, await_sql(\@some, [ ($at) x $n ], '60 s'));
		sleeps() if $round % 2;
		my $before = time;
		$stack->sql("INSERT INTO many SELECT coalesce(max(id), 0) + 1, $k FROM many");
		my $ready = answer($waiter);
		$told++ if $ready =~ /^\{[^,]+\}$/;
		my ($handle) = $ready =~ /^\{([^,}]+)/;
		$found++ if $stack->sql("SELECT where_clause LIKE '%= $k)' FROM electric_cm_shapes WHERE handle = '$handle'") eq 't';
		$at = $stack->sql("SELECT max(log_offset) FROM electric_cm_shape_logs(" . array(@some) . ', ' . array(($at) x $n) . ", NULL) WHERE operation = 'up-to-date'");
	}
	is("$told $found", '20 20', "$n shapes: each time the one that has changed");

	# also after a look that has found nothing, it sleeps without a snapshot
	send_sql($waiter, await_sql(\@some, [ ($at) x $n ], '60 s'));
	sleeps("$n shapes: it waits");
	$stack->sql('GRANT SELECT ON many TO PUBLIC', 'REVOKE SELECT ON many FROM PUBLIC');    # it has to look that up again
	usleep(500_000);
	$stack->becomes(q{SELECT backend_xmin IS NULL AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE query LIKE 'CALL electric_cm_await%' AND state = 'active'},
		'... also after several looks, without a snapshot');
	$stack->sql("INSERT INTO many SELECT max(id) + 1, 1 FROM many");
	answer($waiter);
	$at = $stack->sql("SELECT max(log_offset) FROM electric_cm_shape_logs(" . array(@some) . ', ' . array(($at) x $n) . ", NULL) WHERE operation = 'up-to-date'");
}

# many sessions wait for one shape: all are woken, and their places come back
my @sessions = map { session() } 1 .. 20;
my $offset = offset_of($shape{b});
send_sql($_, await_sql([ $shape{b}, $shape{a} ], [ $offset, offset_of($shape{a}) ], '60 s')) for @sessions;
$stack->becomes(q{SELECT count(*) = 20 FROM pg_stat_activity WHERE query LIKE 'CALL electric_cm_await%' AND state = 'active' AND wait_event_type = 'Extension'}, '20 sessions wait');
$stack->sql('INSERT INTO b SELECT max(id) + 1 FROM b');
is(join(' ', map { answer($_) } @sessions), join(' ', ("{$shape{b}}") x 20), 'all are woken');
$_->{in} .= "\\q\n", $_->{psql}->finish for @sessions, $waiter, $blocker;

# while rows come all the time, nothing is missed: each wait ends, and the reader has all
$stack->sql('CREATE TABLE busy (id int PRIMARY KEY)');
my $busy = $stack->live_shape('busy');
append_to_file($node->basedir . '/busy.sql', join '', map { "INSERT INTO busy VALUES ($_);\nSELECT pg_sleep(random() * 0.004) \\g /dev/null\n" } 1 .. 1500);
my $writer = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db), '-f', $node->basedir . '/busy.sql' ], '<', \'', '>', \my $out, '2>', \my $err);
$stack->sql(qq{CREATE PROCEDURE follow(handle text, n int) LANGUAGE plpgsql AS \$\$
DECLARE
	at electric_cm_offset := '-1'; got int := 0; ready text[]; r record;
BEGIN
	WHILE got < n LOOP
		CALL electric_cm_await(ARRAY[handle], ARRAY[at], '30 s', ready);
		IF ready = '{}' THEN RAISE EXCEPTION 'nothing came after % of %', got, n; END IF;
		FOR r IN SELECT log_offset, operation FROM electric_cm_shape_logs(ARRAY[handle], ARRAY[at], 100) LOOP
			got := got + (r.operation = 'insert')::int;
			at := coalesce(r.log_offset, at);
		END LOOP;
		COMMIT;
	END LOOP;
END \$\$});
$stack->sql("CALL follow('$busy', 1500)");
$writer->finish;
pass('a reader who waits and reads has all that comes');

# a stack that stops
$waiter = session();
send_sql($waiter, await_sql([$busy], [ offset_of($busy) ], '60 s'));
sleeps('waits');
$stack->sql('SELECT electric_cm_stop()');
answer($waiter);
like($waiter->{err}, qr/the stack of database "$db" is stopped/, 'when the stack stops, it says so');
unlike(slurp_file($node->logfile), qr/leak|PANIC|server process .* was terminated/, 'no leaks, no crash');
$waiter->{in} .= "\\q\n";
$waiter->{psql}->finish;

$node->stop;
done_testing();
