# Retention: past electric_cm.shape_log_retention the oldest part of a log is
# folded.  A new reader gets a shorter log that replays to the same rows; one
# that is past the fold goes on as if nothing had happened; one that is not is
# told.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $db = 'postgres';
my $stack = new_stack('main', conf => q{
restart_after_crash = on
electric_cm.wal_report_interval = '1s'
electric_cm.shape_log_retention = -1
log_min_messages = info
});
my $node = $stack->node;

sub retention
{
	my ($size) = @_;
	return $stack->sql("ALTER SYSTEM SET electric_cm.shape_log_retention = '$size'", 'SELECT pg_reload_conf()');
}

sub shape
{
	my ($definition) = @_;
	my $handle = $stack->sql("SELECT electric_cm_create_shape($definition)");
	$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'");
	return $handle;
}

sub log_bytes { return $stack->sql("SELECT log_bytes FROM electric_cm_shapes WHERE handle = '$_[0]'"); }
sub entries
{
	my ($handle, $after) = @_;
	return $stack->sql("SELECT l FROM electric_cm_shape_log('$handle', '$after') l");
}
sub base
{
	my ($handle) = @_;
	return $stack->sql("SELECT (lsn - '0/0') || '_' || op FROM _electric_cm.shape_base
		WHERE shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$handle')");
}
sub nothing_is_left_before
{
	my ($handle, $what) = @_;
	return $stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape s JOIN _electric_cm.shape_base b ON b.shape = s.id
		JOIN _electric_cm.shape_log l ON l.shape = s.id AND (l.first_lsn, l.first_op) <= (b.lsn, b.op)
		WHERE s.handle = '$handle'", $what);
}
sub figures_are_right
{
	my ($handle, $what) = @_;
	return is(
		$stack->sql("SELECT log_entries, log_bytes FROM electric_cm_shapes WHERE handle = '$handle'"),
		$stack->sql("SELECT (SELECT count(*) FROM electric_cm_shape_log('$handle')),
			sum(length(data)) FROM _electric_cm.shape_log
			WHERE shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$handle')"),
		$what);
}
sub fails
{
	my ($sql, $like, $what) = @_;
	my ($rc, $out, $err) = $node->psql($db, "\\set VERBOSITY verbose\n$sql");
	return like($err, $like, $what);
}

$stack->sql('CREATE EXTENSION electric_cm',
	'CREATE TABLE t (id int, part text, n int, big text, PRIMARY KEY (id, part))',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL',
	'CREATE TABLE f (id int PRIMARY KEY, n int, more text)', 'ALTER TABLE f REPLICA IDENTITY FULL',
	# rows of the initial snapshot
	q{INSERT INTO t SELECT i, 'a', 0, repeat('x', 3000) FROM generate_series(1, 20) i},
	q{INSERT INTO f SELECT i, i % 10, 'more' FROM generate_series(1, 600) i});
$stack->active or BAIL_OUT('no stack');
my $handle = shape(q{'t'});
my $filtered = shape(q{'f', 'n > 4', '{id,n}'});
my @filtered = ('f', ['id'], where => 'n > 4', columns => [ 'id', 'n' ]);

#
# A log far over its retention
#
# Updates that leave the TOASTed column out, keys that change (also back, also
# one into another's former), deletes, inserts again, a large transaction.
sub churn
{
	my ($from, $to) = @_;
	return $stack->sql(
		'SET synchronous_commit = off',
		map {
			(   q{UPDATE t SET n = n + 1},
				"UPDATE t SET id = -id WHERE id % 3 = $_ % 3",
				q{UPDATE t SET part = part || '"' WHERE id = 7},
				"DELETE FROM t WHERE abs(id) = $_ % 20 + 1",
				"INSERT INTO t VALUES ($_ % 20 + 1, 'a', NULL, repeat('$_', 1000)) ON CONFLICT DO NOTHING",
				"UPDATE t SET big = 'short' WHERE id = 5",
				"UPDATE f SET n = (n + $_) % 10 WHERE id % 2 = 0",
				"DELETE FROM f WHERE id = $_",
				"INSERT INTO f SELECT $_ + 1000, 5, NULL") } $from .. $to);
}
churn(1, 150);
$stack->sql('BEGIN', (map { 'UPDATE t SET n = n + 1' } 1 .. 300), 'UPDATE f SET n = 9 - n', 'COMMIT');
churn(151, 250);
$stack->settle;
my $before = log_bytes($handle);
cmp_ok($before, '>', 1000000, "a log of $before bytes");
my %saved = map { $_ => $stack->sql("SELECT string_agg(log_offset::text, ' ') FROM electric_cm_shape_log('$_')") } $handle, $filtered;
$stack->sql('CREATE TABLE saved AS SELECT * FROM electric_cm_shape_log(' . "'$handle') WITH ORDINALITY");
is(base($handle), '', 'not folded with retention -1');

my $idle_reader = $node->background_psql($db);
$idle_reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
my $seen = $idle_reader->query_safe("SELECT count(*), md5(string_agg(l::text, '')) FROM electric_cm_shape_log('$handle') l");

retention('256 kB');
$stack->becomes("SELECT count(*) = 2 FROM _electric_cm.shape_base WHERE lsn > '0/0'", 'both logs are folded');
nothing_is_left_before($handle, '... and what has been folded is deleted');
nothing_is_left_before($filtered);
my $after = log_bytes($handle);
cmp_ok($after, '<', $before / 2, "... down to $after bytes");
$stack->becomes(q{SELECT count(*) >= 2 FROM electric_cm_events WHERE event = 'shape_log_folded'}, 'events tell of it');
my ($ok, $n) = $stack->replay_equals($handle, 't', [ 'id', 'part' ]);
ok($ok, "replay of what is left equals the table ($n entries)");
($ok, $n) = $stack->replay_equals($filtered, @filtered);
ok($ok, "... and the query ($n entries)");
figures_are_right($handle, 'its figures are right');
figures_are_right($filtered, '... those of the other, too');
is($idle_reader->query_safe("SELECT count(*), md5(string_agg(l::text, '')) FROM electric_cm_shape_log('$handle') l"),
	$seen, 'a reader with a snapshot of before still sees the log of then');
$idle_reader->quit;

#
# Readers
#
my $base = base($handle);
my @offsets = split / /, $saved{$handle};
my ($at) = grep { $offsets[$_] eq $base } 0 .. $#offsets;
ok(defined $at, 'the fold is at an offset of the log that was');
like($offsets[ $at + 1 ], qr/_0$/, '... at the end of a transaction');
my $number = $at + 1;
is( $stack->sql("SELECT md5(string_agg(ROW(log_offset, operation, key, value, old_value, xid)::text, '')) FROM electric_cm_shape_log('$handle', '$base')"),
	$stack->sql("SELECT md5(string_agg(ROW(log_offset, operation, key, value, old_value, xid)::text, '' ORDER BY ordinality)) FROM saved WHERE ordinality > $number"),
	'a reader who is there goes on with what was next, without loss or doubles');
is(entries($handle, $offsets[ $at + 10 ]) eq $stack->sql("SELECT (log_offset, operation, key, value, old_value, xid) FROM saved WHERE ordinality > $number + 10 ORDER BY ordinality") ? 1 : 0,
	1, '... so does one who is further');
for my $offset ($offsets[ $at - 1 ], '0_1', '0_0')
{
	fails("SELECT FROM electric_cm_shape_log('$handle', '$offset')",
		qr/EC001.*not in the log.*DETAIL:.*$base.*HINT:.*-1/s, "one who is at $offset is told");
	fails("SELECT FROM electric_cm_await_shape_log('$handle', '$offset')", qr/EC001.*not in the log/s, '... also who would wait');
}
my $rows = $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle') WHERE xid IS NULL");
is( $stack->sql("SELECT bool_and(operation = 'insert'), min(split_part(log_offset::text, '_', 1)) = split_part('$base', '_', 1)
			AND max(split_part(log_offset::text, '_', 1)) = split_part('$base', '_', 1),
		min(split_part(log_offset::text, '_', 2)::int8 & 4294967295), max(split_part(log_offset::text, '_', 2)::int8 & 4294967295),
		count(DISTINCT split_part(log_offset::text, '_', 2)::int8 >> 32), min(split_part(log_offset::text, '_', 2)::int8) > split_part('$base', '_', 2)::int8
		FROM electric_cm_shape_log('$handle') WHERE xid IS NULL"),
	"t|t|1|$rows|1|t", 'the log begins with inserts of the rows as they stood there');
is( $stack->sql("CREATE TEMP TABLE pieces (LIKE saved)",
		q{DO $$
DECLARE after text := '-1'; n int := 1; count int;
BEGIN
	LOOP
		INSERT INTO pieces SELECT * FROM electric_cm_shape_log('} . $handle . q{', after, 7) WITH ORDINALITY;
		GET DIAGNOSTICS count = ROW_COUNT;
		EXIT WHEN count = 0;
		SELECT log_offset INTO after FROM electric_cm_shape_log('} . $handle . q{', after, 7) WITH ORDINALITY ORDER BY ordinality DESC LIMIT 1;
	END LOOP;
END $$},
		"SELECT (SELECT count(*) FROM pieces) = (SELECT count(*) FROM electric_cm_shape_log('$handle')),
			(SELECT count(*) FROM pieces JOIN electric_cm_shape_log('$handle') USING (log_offset))
			= (SELECT count(*) FROM electric_cm_shape_log('$handle'))"),
	't|t', 'it can be read in pieces');

#
# Under concurrent writes
#
$stack->sql('CREATE TABLE enough (x int)', q{CREATE PROCEDURE write(worker int) LANGUAGE plpgsql AS $$
DECLARE i int := 0;
BEGIN
	SET synchronous_commit = off;
	WHILE NOT EXISTS (SELECT FROM enough) LOOP
		i := i + 1;
		INSERT INTO t VALUES (worker * 1000 + i % 50, 'w', i, repeat('z', 2500))
			ON CONFLICT (id, part) DO UPDATE SET n = excluded.n;
		UPDATE t SET part = CASE part WHEN 'w' THEN 'v' ELSE 'w' END, n = i
			WHERE id = worker * 1000 + i % 37 AND NOT EXISTS (SELECT FROM t o WHERE o.id = t.id AND o.part <> t.part);
		DELETE FROM t WHERE id = worker * 1000 + i % 41 AND i % 5 = 0;
		UPDATE f SET n = (n + i) % 10 WHERE id = worker * 10 + i % 10;
		COMMIT;
	END LOOP;
END $$});
# A follower: keeps its own copy of the rows, by offsets, and starts again when it
# has fallen behind.
$stack->sql(q{CREATE TABLE copy (key text PRIMARY KEY, value jsonb)},
	q{CREATE TABLE follower (after text, restarts int, entries int)}, q{INSERT INTO follower VALUES ('-1', 0, 0)},
	q{CREATE PROCEDURE follow(handle text, until text) LANGUAGE plpgsql AS $$
DECLARE e record; pos text; found_any bool;
BEGIN
	LOOP
		SELECT after INTO pos FROM follower;
		COMMIT;
		found_any := false;
		BEGIN
			FOR e IN SELECT * FROM electric_cm_shape_log(handle, pos, 200) LOOP
				found_any := true;
				IF e.operation = 'insert' THEN
					INSERT INTO copy VALUES (e.key, e.value);
				ELSIF e.operation = 'update' THEN
					UPDATE copy SET value = copy.value || e.value WHERE key = e.key;
					IF NOT FOUND THEN RAISE 'update of nothing at %', e.log_offset; END IF;
				ELSE
					DELETE FROM copy WHERE key = e.key;
					IF NOT FOUND THEN RAISE 'delete of nothing at %', e.log_offset; END IF;
				END IF;
				UPDATE follower SET after = e.log_offset, entries = entries + 1;
			END LOOP;
		EXCEPTION WHEN SQLSTATE 'EC001' THEN
			DELETE FROM copy;
			UPDATE follower SET after = '-1', restarts = restarts + 1;
			found_any := true;
		END;
		COMMIT;
		EXIT WHEN NOT found_any AND EXISTS (SELECT FROM done);
		IF NOT found_any THEN PERFORM pg_sleep(0.01); END IF;
	END LOOP;
END $$}, 'CREATE TABLE done (x int)');

sub background
{
	my ($sql) = @_;
	my ($out, $err) = ('', '');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db), '-c', $sql ],
		'<', \undef, '>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return sub { $run->finish; return $out . $err; };
}
my $folds = $stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shape_log_folded'});
my $more_folds = qq{SELECT count(*) - $folds FROM electric_cm_events WHERE event = 'shape_log_folded'};
my @writers = map { background("CALL write($_)") } 1 .. 2;
my $follower = background("CALL follow('$handle', '')");
# four rounds, two folds, and eight seconds, however long that takes
my $end = time + 8;
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default / 2;
my $rounds = 0;
my $holder = $node->background_psql($db);
while (time < $end || (time < $deadline && ($rounds < 4 || $stack->sql($more_folds) < 2)))
{
	$holder->query_safe('BEGIN');
	$holder->query_safe('LOCK TABLE t, f IN SHARE MODE');
	$stack->settle;
	my ($ok1) = $stack->replay_equals($handle, 't', [ 'id', 'part' ]);
	my ($ok2) = $stack->replay_equals($filtered, @filtered);
	$holder->query_safe('COMMIT');
	$ok1 && $ok2 ? $rounds++ : fail('replay equals table under concurrent writes');
	$stack->becomes('SELECT true');
}
$holder->quit;
$stack->sql('INSERT INTO enough VALUES (1)');
is(join('', map { $_->() } @writers), '', 'writers meet no errors');
cmp_ok($rounds, '>', 3, "replay equals table, $rounds times under concurrent writes");
$folds = $stack->sql($more_folds);
cmp_ok($folds, '>', 1, "$folds folds meanwhile");
$stack->settle;
$stack->sql('INSERT INTO done VALUES (1)');
is($follower->(), '', 'a follower meets no contradiction');
is( $stack->sql("SELECT count(*) FROM copy c FULL JOIN (SELECT jsonb_populate_record(NULL::t, '{}'), t.* FROM t) t
		ON (c.value->>'id')::int = t.id AND c.value->>'part' = t.part
		WHERE c.key IS NULL OR t.id IS NULL OR (c.value->>'n')::int IS DISTINCT FROM t.n OR c.value->>'big' IS DISTINCT FROM t.big"),
	0, sprintf('... and has the table in the end (%s entries, %s restarts)', split(/\|/, $stack->sql('SELECT entries, restarts FROM follower'))));

#
# Crashes
#
sub crash_pool_session
{
	my ($like) = @_;
	my $pid = $stack->sql("SELECT pid FROM pg_stat_activity WHERE query LIKE '%fold_shape%' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'");
	kill 'KILL', $pid;
	ElectricCM::poll($node, $db, "SELECT pg_postmaster_start_time() IS NOT NULL AND electric_cm_status() = 'active'") or die 'no restart';
	return;
}

# ... before it has become the new base.  Somebody has a lock on the bases.
retention(-1);
churn(300, 420);
$stack->settle;
my $former = base($handle);
my $locker = $node->background_psql($db);
$locker->query_safe('BEGIN');
$locker->query_safe('LOCK TABLE _electric_cm.shape_base IN SHARE MODE');
retention('256 kB');
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%fold_shape%' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'},
	'a fold that is all but done');
is($stack->sql(q{INSERT INTO t VALUES (99999, 'while folding', 1, 'x')}, q{SELECT electric_cm_await_flushed(timeout => '60 s') IS NOT NULL},
		"SELECT value->>'part' FROM electric_cm_shape_log('$handle', '$former') WHERE value->>'id' = '99999'"),
	"t\nwhile folding", 'it holds up neither consumer nor readers');
retention(-1);
crash_pool_session();
$stack->active;
$stack->settle;
is(base($handle), $former, 'after a crash it has not happened');
($ok) = $stack->replay_equals($handle, 't', [ 'id', 'part' ]);
ok($ok, '... and replay equals the table');
figures_are_right($handle, '... with the right figures');

# ... after that.  Somebody has a lock on the first chunk.
$locker = $node->background_psql($db);
$locker->query_safe('BEGIN');
$locker->query_safe("SELECT FROM _electric_cm.shape_log WHERE shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$handle')
	ORDER BY first_lsn, first_op LIMIT 1 FOR UPDATE");
retention('256 kB');
$stack->becomes("SELECT (lsn - '0/0') || '_' || op <> '$former' FROM _electric_cm.shape_base
	WHERE shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$handle')", 'folded');
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%fold_shape%' AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'},
	'... but nothing deleted yet');
($ok) = $stack->replay_equals($handle, 't', [ 'id', 'part' ]);
ok($ok, '... replay equals the table');
crash_pool_session();
$stack->active;
$stack->settle;
($ok) = $stack->replay_equals($handle, 't', [ 'id', 'part' ]);
ok($ok, '... also after a crash');
nothing_is_left_before($handle, '... and what has been folded is deleted in the end');
$stack->sql(q{INSERT INTO t VALUES (99998, 'after crashes', 1, 'x')});
$stack->settle;
figures_are_right($handle, '... with the right figures');
($ok) = $stack->replay_equals($filtered, @filtered);
ok($ok, '... the other log is right, too');

#
# Ends
#
retention(-1);
churn(500, 620);
$stack->settle;
my $id = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$handle'");
my $dropper = $node->background_psql($db);
$dropper->query_safe('BEGIN');
$dropper->query_safe("SELECT electric_cm_drop_shape('$handle')");
retention('256 kB');
fails("CALL _electric_cm.fold_shape($id, 256 * 1024, NULL, NULL)", qr/shape "$handle" is locked|another shape log is being folded/, 'a shape that is being dropped is not folded');
$dropper->query_safe('COMMIT');
$dropper->quit;
$stack->becomes("SELECT (SELECT count(*) FROM _electric_cm.shape_log WHERE shape = $id)
	+ (SELECT count(*) FROM _electric_cm.shape_base WHERE shape = $id) = 0", 'nothing is left of it');

# a table that is empty where the log is folded
$stack->sql('DELETE FROM f');
$folds = base($filtered);
$stack->sql(map { ("INSERT INTO f SELECT i, 5, $_ FROM generate_series(1, 300) i", 'DELETE FROM f') } 1 .. 120);
$stack->settle;
$stack->becomes("SELECT (lsn - '0/0') || '_' || op <> '$folds' AND log_bytes < 300000 FROM electric_cm_shapes v
	JOIN _electric_cm.shape s USING (handle) JOIN _electric_cm.shape_base b ON b.shape = s.id WHERE handle = '$filtered'",
	'a log of rows that come and go is folded');
nothing_is_left_before($filtered);
($ok) = $stack->replay_equals($filtered, @filtered);
ok($ok, '... and replays to nothing');
figures_are_right($filtered, '... with the right figures');

retention(0);
is($stack->sql('SHOW electric_cm.shape_log_retention'), '0', 'the default');
fails(q{CALL _electric_cm.fold_shape(1, 1, NULL, NULL)} , qr/^$/, 'a shape that does not exist is nothing to fold');
fails(q{SET electric_cm.shape_log_retention = -2}, qr/22023/, 'retention has no other special value');
$node->stop;
done_testing();
