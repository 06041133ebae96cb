# A long log is folded in steps, each in a transaction of its own: whoever looks
# sees none of it before the last one, and neither a crash nor the shape's end
# leaves anything of it.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What a step reads, and what is folded at once, depends on the memory to sort in.
my $stack = new_stack('main', conf => q{
restart_after_crash = on
electric_cm.wal_report_interval = '1s'
electric_cm.shape_log_retention = -1
maintenance_work_mem = '1MB'
log_min_messages = info
});
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm',
	# two keys, one of them text; large values that are updated by themselves
	'CREATE TABLE t (id int, part text, n int, big text, PRIMARY KEY (id, part))', 'ALTER TABLE t ALTER big SET STORAGE EXTERNAL',
	'CREATE TABLE d (id int PRIMARY KEY, n int, pad text)', 'ALTER TABLE d REPLICA IDENTITY FULL',
	# a look at a log, for comparing
	q{CREATE FUNCTION seen(shape text, after text) RETURNS text LANGUAGE sql STABLE AS $$
SELECT count(*) || ' ' || coalesce(md5(string_agg(l::text, '' ORDER BY ordinality)), '') FROM electric_cm_shape_log(shape, after) WITH ORDINALITY l
$$});
$stack->active or BAIL_OUT('no stack');

sub retention
{
	my ($size) = @_;
	return $stack->sql("ALTER SYSTEM SET electric_cm.shape_log_retention = '$size'", 'SELECT pg_reload_conf()');
}
sub shape_id { return $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$_[0]'"); }

# Some megabytes of it: rows of all sizes, one that is changed all the time, keys
# that change while the large value stays, also again and again, rows that go and
# come back.
my $round = 0;
sub churn
{
	my ($rounds) = @_;
	$stack->sql(
		'SET synchronous_commit = off',
		map {
			$round++;
			(   "INSERT INTO t SELECT $round * 1000 + i, 'a', i, repeat(md5(i::text), 10 + i % 60) FROM generate_series(1, 120) i",
				q{INSERT INTO t VALUES (0, 'hot', 1, repeat('h', 60000)) ON CONFLICT (id, part) DO UPDATE SET n = t.n + 1, big = repeat(md5(random()::text), 1900)},
				"UPDATE t SET id = id + 500 WHERE id BETWEEN $round * 1000 + 50 AND $round * 1000 + 59",
				'UPDATE t SET n = n + 1 WHERE id % 3 = 1 AND id <= 4000',
				q{UPDATE t SET part = CASE part WHEN 'a' THEN 'b' ELSE 'a' END WHERE id = 1065},
				'UPDATE t SET id = -id WHERE id % 1000 = 77 AND id < 6000 AND id > 0',
				"DELETE FROM t WHERE id > 5000 AND id < ($round - 12) * 1000",
				"INSERT INTO t SELECT 1000000 + i, 'back', $round, 'small' FROM generate_series(1, 30) i ON CONFLICT DO NOTHING",
				"DELETE FROM t WHERE id > 1000000 AND id % 2 = $round % 2") } 1 .. $rounds);
	return $stack->settle;
}
sub replays { my ($shape, $what) = @_; return $stack->replays($shape, 't', $what, keys => [ 'id', 'part' ]); }

# ---- while it goes on

my $handle = $stack->live_shape('t');
churn(50);
my $id = shape_id($handle);
my $bytes = $stack->sql("SELECT log_bytes FROM electric_cm_shapes WHERE handle = '$handle'");
cmp_ok($bytes, '>', 8_000_000, "a log of $bytes bytes");
my $whole = $stack->sql("SELECT seen('$handle', '-1')");
my $last = $stack->last_offset($handle);

# A session that samples: the transactions of the one that folds, what readers see
# when half of the rows have been written, and how long that takes them.
$stack->sql('CREATE TABLE sample (xact_start timestamptz, xmin_age int, lasts interval, done int, partitions int)',
	'CREATE TABLE look (done int, seen text, stats text)',
	qq{CREATE PROCEDURE watch() LANGUAGE plpgsql AS \$\$
DECLARE
	f record;
	looks int := 0;
BEGIN
	LOOP
		-- the fold and this go in turns
		LOCK TABLE _electric_cm.shape_fold IN SHARE MODE;
		SELECT max(done) AS done, max(partitions) AS partitions INTO f FROM _electric_cm.shape_fold;
		INSERT INTO sample SELECT xact_start, age(backend_xmin), clock_timestamp() - xact_start, f.done, f.partitions
			FROM pg_stat_activity WHERE query LIKE 'CALL _electric_cm.fold_shape%' AND state = 'active' AND xact_start IS NOT NULL;
		IF f.done > 0 AND looks < 3 THEN
			looks := looks + 1;
			-- in one snapshot
			INSERT INTO look SELECT s.done, seen('$handle', '-1'),
				(SELECT log_entries || ' ' || log_bytes || ' ' || last_offset FROM electric_cm_shapes WHERE handle = '$handle')
				FROM _electric_cm.shape_fold s WHERE s.done > 0;
		END IF;
		COMMIT;
		EXIT WHEN EXISTS (SELECT FROM _electric_cm.shape_base WHERE shape = $id AND lsn > '0/0');
	END LOOP;
END \$\$});
my $stats = $stack->sql("SELECT log_entries || ' ' || log_bytes || ' ' || last_offset FROM electric_cm_shapes WHERE handle = '$handle'");
my $watcher = $node->background_psql($db);
$watcher->query_until(qr/watching/, "\\echo watching\nCALL watch();\n");
retention('256 kB');
$stack->becomes("SELECT lsn > '0/0' FROM _electric_cm.shape_base WHERE shape = $id", 'the log is folded');
$watcher->quit;
my ($transactions, $longest, $partitions) = split /\|/,
  $stack->sql('SELECT count(DISTINCT xact_start), extract(epoch FROM max(lasts)), max(partitions) FROM sample');
cmp_ok($transactions, '>', 5, "... in $transactions transactions at least, of which the longest took $longest s");
cmp_ok($partitions // 0, '>', 10, '... whose rows were written in parts');
cmp_ok($stack->sql('SELECT count(*) FROM look'), '>', 0, 'somebody has read meanwhile');
is($stack->sql('SELECT DISTINCT seen FROM look'), $whole, '... and has seen the log as it was');
is($stack->sql('SELECT DISTINCT stats FROM look'), $stats, '... with the figures that it had');
replays($handle, 'replay equals the table');

sub nothing_is_left
{
	my ($shape, $what) = @_;
	return $stack->becomes("SELECT NOT EXISTS (SELECT FROM _electric_cm.shape_fold WHERE shape = $shape) AND NOT EXISTS (SELECT FROM
		_electric_cm.shape_log l LEFT JOIN _electric_cm.shape_base b ON b.shape = l.shape WHERE l.shape = $shape
		AND ((l.first_lsn, l.first_op) <= (b.lsn, b.op) OR l.first_lsn <> coalesce(b.lsn, '0/0') AND l.first_op >> 62 > 0))", $what);
}
sub figures_are_right
{
	my ($shape, $what) = @_;
	return is($stack->sql("SELECT log_entries, log_bytes FROM electric_cm_shapes WHERE handle = '$shape'"),
		$stack->sql("SELECT (SELECT count(*) FROM electric_cm_shape_log('$shape')), sum(length(data)) FROM _electric_cm.shape_log
			WHERE shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$shape')"), $what);
}
nothing_is_left($id, '... and nothing is left of what was before');
figures_are_right($handle, 'its figures are right');
is($stack->sql("SELECT seen('$handle', '$last')"), '0 ', 'a reader who was at its end is there now');

# ---- crashes

# A moment in a fold, by SQL that is true then; returns the PID of who folds, and
# how far he is.
my $folder = q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL _electric_cm.fold_shape%' AND state = 'active'};
my $folding = "EXISTS ($folder)";
my $reading = "$folding AND NOT EXISTS (SELECT FROM _electric_cm.shape_fold)";
my $writing = "$folding AND EXISTS (SELECT FROM _electric_cm.shape_fold WHERE done > 2)";
$stack->sql(qq{CREATE PROCEDURE await_moment(moment text, INOUT who int DEFAULT NULL, INOUT fold text DEFAULT NULL) LANGUAGE plpgsql AS \$\$
DECLARE
	until timestamptz := clock_timestamp() + '100 s';
	met bool;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || moment INTO met;
		EXIT WHEN met;
		IF clock_timestamp() > until THEN RAISE 'no such moment'; END IF;
		COMMIT;
	END LOOP;
	fold := (SELECT done || ' ' || first_op FROM _electric_cm.shape_fold LIMIT 1);
	who := ($folder LIMIT 1);
END \$\$});
my $session = $node->background_psql($db, on_error_stop => 1);
sub await_moment { my ($moment) = @_; return $session->query_safe("CALL await_moment(\$_\$$moment\$_\$)"); }
sub crash_at
{
	my ($moment, $what) = @_;
	my ($pid, $fold) = split /\|/, await_moment($moment);
	ok($pid, "a crash while it $what");
	kill 'KILL', $pid if $pid;
	$session->{run}->kill_kill;
	ElectricCM::poll($node, $db, q{SELECT pg_postmaster_start_time() IS NOT NULL AND electric_cm_status() = 'active'}) or die 'no restart';
	$session = $node->background_psql($db, on_error_stop => 1);
	return $fold || '0 0';
}

# Where the fold would be over too soon, a lock keeps it there.
for ([ 'reads', $reading, 'LOCK TABLE _electric_cm.shape_fold IN SHARE MODE' ], [ 'writes', $writing ],
	[ 'deletes', "$folding AND EXISTS (SELECT FROM _electric_cm.shape_base b JOIN _electric_cm.shape_log l USING (shape)
		WHERE (l.first_lsn, l.first_op) <= (b.lsn, b.op))", "SELECT count(*) FROM (SELECT FROM _electric_cm.shape_log WHERE shape = $id FOR SHARE) l" ])
{
	my ($what, $moment, $lock) = @$_;
	retention(-1);
	churn(40);
	my $base = $stack->sql("SELECT lsn FROM _electric_cm.shape_base WHERE shape = $id");
	my $holder;
	if ($lock)
	{
		$holder = $node->background_psql($db, on_error_stop => 1);
		$holder->query_safe("BEGIN; $lock");
		$moment .= " AND EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'CALL _electric_cm.fold_shape%' AND wait_event_type = 'Lock')";
	}
	retention('256 kB');
	# before the crash: the stack goes on as soon as it is there again
	my ($done, $op) = split / /, crash_at($moment, $what);
	$holder->{run}->kill_kill if $holder;
	replays($handle, '... replay equals the table');
	$stack->becomes("SELECT lsn > '$base' FROM _electric_cm.shape_base WHERE shape = $id", '... it is folded in the end');
	nothing_is_left($id, '... and nothing is left over');
	replays($handle, '... replay equals the table');
	figures_are_right($handle, '... with the right figures');
	if ($what eq 'writes')
	{
		cmp_ok($done, '>', 2, "... of what was written, $done parts were still there");
		is($stack->sql("SELECT count(*) > 0 FROM _electric_cm.shape_log WHERE shape = $id AND first_op BETWEEN $op AND $op + 4294967295"),
			't', '... and have become the new base');
	}
}

# ---- half of it is written, and it can't go on: somebody has the shape's row locked

retention(-1);
churn(40);
my $base = $stack->sql("SELECT lsn FROM _electric_cm.shape_base WHERE shape = $id");
$whole = $stack->sql("SELECT seen('$handle', '-1')");
$stats = $stack->sql("SELECT log_entries || ' ' || log_bytes || ' ' || last_offset FROM electric_cm_shapes WHERE handle = '$handle'");
retention('256 kB');
await_moment($writing);
$session->query_safe("BEGIN; SELECT FROM _electric_cm.shape WHERE id = $id FOR UPDATE");
$stack->becomes("SELECT NOT $folding AND (SELECT done < partitions FROM _electric_cm.shape_fold)", 'a fold that is half done');
is($stack->sql("SELECT seen('$handle', '-1')"), $whole, 'readers see the log as it was');
is($stack->sql("SELECT log_entries || ' ' || log_bytes || ' ' || last_offset FROM electric_cm_shapes WHERE handle = '$handle'"), $stats, '... with its figures');
my ($point, $row, $following) = split /\|/, $stack->sql("SELECT (f.lsn - '0/0') || '_' || f.op, (f.lsn - '0/0') || '_' || f.first_op + 1,
	(SELECT (first_lsn - '0/0') || '_' || first_op FROM _electric_cm.shape_log l WHERE l.shape = $id AND l.first_lsn > f.lsn ORDER BY first_lsn, first_op LIMIT 1)
	FROM _electric_cm.shape_fold f");
is($stack->sql("SELECT log_offset FROM electric_cm_shape_log('$handle', '$point', 1)"), $following, 'who is where it ends goes on with what follows');
like($stack->error_of_sql("SELECT FROM electric_cm_shape_log('$handle', '$row')"), qr/EC001.*not in the log/s, 'an offset of its rows is not known yet');
churn(2);
replays($handle, 'the log goes on');
retention(-1);
$session->query_safe('ROLLBACK');
nothing_is_left($id, 'what was written is deleted when logs are not folded any more');
is($stack->sql("SELECT lsn FROM _electric_cm.shape_base WHERE shape = $id"), $base, '... and the log begins where it did');
replays($handle, '... replay equals the table');

# ---- the shape ends

sub long_log
{
	my (%options) = @_;
	retention(-1);
	$stack->sql('TRUNCATE d');
	my $shape = $stack->live_shape('d', %options);
	$stack->sql('SET synchronous_commit = off', map { ("INSERT INTO d SELECT $_ * 1000 + i, i, repeat('x', 300) FROM generate_series(1, 800) i", 'UPDATE d SET n = n + 1 WHERE id % 10 = 1') } 1 .. 40);
	$stack->settle;
	return $shape;
}
for my $moment ($reading, $writing)
{
	my $shape = long_log();
	my $number = shape_id($shape);
	retention('256 kB');
	await_moment($moment);
	$stack->sql("SELECT electric_cm_drop_shape('$shape')");
	$stack->becomes("SELECT NOT EXISTS (SELECT FROM _electric_cm.shape_log WHERE shape = $number) AND NOT EXISTS (SELECT FROM _electric_cm.shape_fold
		WHERE shape = $number) AND NOT EXISTS (SELECT FROM _electric_cm.shape_base WHERE shape = $number) AND NOT ($folding)",
		'nothing is left of a shape that is dropped while its log is being folded');
}
my $errored = long_log(where => '1000 / n > 0');
my $number = shape_id($errored);
retention('256 kB');
await_moment($writing);
$stack->sql('INSERT INTO d VALUES (0, 0)');
$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$errored'", 'a shape that ends with an error meanwhile');
nothing_is_left($number, '... keeps nothing of it');
$stack->active;

$session->quit;
$node->stop;
done_testing();
