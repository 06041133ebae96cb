# Everything works where LSNs and transaction numbers get large: across
# 80000000/0 and FFFFFFFF/0, and across 2^31 and 2^32 (the next epoch).
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "autovacuum = off\nwal_keep_size = 0\nlog_statement = none\n");
my $node = $stack->node;

# Moves the stopped server ahead.  A transaction number must be the first of a
# page of pg_xact, for there is no such page.
sub jump
{
	my (%opts) = @_;
	$node->stop;
	system_or_bail('pg_resetwal', %opts, '-D', $node->data_dir);
	$node->start;
	return;
}

# Transaction numbers are compared modulo 2^32, so nothing may be left behind
# by more than half of that.
sub freeze
{
	$stack->sql('UPDATE pg_database SET datallowconn = true WHERE NOT datallowconn');
	system_or_bail('vacuumdb', '--all', '--freeze', '--quiet',
		'--maintenance-db', $node->connstr($db));
	return;
}

sub next_xid { return 0 + $stack->sql('SELECT pg_snapshot_xmax(pg_current_snapshot())'); }

sub use_xids_up_to
{
	my ($xid) = @_;
	my $n = $xid - next_xid();
	$stack->sql("DO \$\$ BEGIN FOR i IN 1..$n LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END \$\$");
	return;
}

# Many small transactions
sub load
{
	my ($n) = @_;
	$stack->sql(qq{
DO \$\$ BEGIN
	FOR i IN 1..$n LOOP
		INSERT INTO t (t) VALUES (md5(i::text));
		UPDATE t SET t = 'updated' WHERE id = (SELECT max(id) - 3 FROM t);
		IF i % 5 = 0 THEN DELETE FROM t WHERE id = (SELECT max(id) - 7 FROM t); END IF;
		COMMIT;
	END LOOP;
END \$\$});
	return;
}

# The WAL goes on in the next file, a few times, until it is past the boundary.
sub write_wal_up_to
{
	my ($lsn) = @_;
	while ($stack->sql("SELECT pg_current_wal_insert_lsn() < '$lsn'") eq 't')
	{
		$stack->sql(q{SELECT pg_logical_emit_message(false, 'test', 'fill')});
		$stack->sql('SELECT pg_switch_wal()');
	}
	return;
}

sub shape
{
	my ($table) = @_;
	return $stack->sql("SELECT electric_cm_create_shape('$table')");
}

sub replays
{
	my ($handle, $table, $what) = @_;
	$stack->sql("SET statement_timeout = '60 s'; SELECT count(*) FROM electric_cm_shape_log('$handle', '-1', 1)");
	$stack->sql('SELECT electric_cm_await_flushed(NULL, \'60 s\')');
	my ($ok, $entries) = $stack->replay_equals($handle, $table, ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}

# The stack is not running yet; the server is shortly before both boundaries.
sub cross
{
	my ($what, $lsn, $xid) = @_;
	my $position = $stack->sql("SELECT '$lsn'::pg_lsn - '0/0'");

	ok($stack->active, "$what: active");
	my $t = shape('t');
	$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$t', '-1', 1)");
	my $from = $stack->last_offset($t) || '-1';
	load(100);
	replays($t, 't', "$what, before");
	is($stack->sql("SELECT pg_current_wal_insert_lsn() < '$lsn'"), 't', "$what: the WAL is not there yet");
	cmp_ok(next_xid(), '<', $xid, "$what: nor are the transactions");

	# Transactions cross while a shape is created: the snapshot decides over
	# what was captured on both sides
	my $writer = $node->background_psql($db);
	$writer->query_safe('BEGIN');
	$writer->query_safe('INSERT INTO u DEFAULT VALUES');
	use_xids_up_to($xid - 100);
	$stack->sql('INSERT INTO u DEFAULT VALUES');
	my $u = shape('u');
	ok( ElectricCM::poll($node, $db,
			"SELECT waiting_for LIKE '%writing to the table%' FROM electric_cm_shapes WHERE handle = '$u'"),
		"$what: a shape waits for a writer");
	$stack->sql('INSERT INTO u DEFAULT VALUES');
	load(200);
	cmp_ok(next_xid(), '>', $xid, "$what: transactions have crossed");
	$stack->sql('INSERT INTO u DEFAULT VALUES');
	$writer->query_safe('INSERT INTO u DEFAULT VALUES');
	$writer->query_safe('COMMIT');
	replays($u, 'u', "$what, created meanwhile");
	$stack->sql('UPDATE u SET id = id + 1000000');
	replays($u, 'u', "$what, created meanwhile, changed");
	replays($t, 't', "$what, transactions crossed");
	is( $stack->sql("SELECT bool_and(xid BETWEEN $xid - 1000000 AND $xid + 1000000),
			bool_or(xid < $xid), bool_or(xid >= $xid) FROM electric_cm_shape_log('$t', '$from') WHERE xid IS NOT NULL"),
		't|t|t', "$what: the log has transactions from both sides");

	# The WAL crosses while the stack is stopped, in the middle of a transaction
	$writer->query_safe('BEGIN');
	$writer->query_safe(q{INSERT INTO t (t) SELECT 'one side' FROM generate_series(1, 1000)});
	my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_stop()');
	load(50);
	is($stack->sql("SELECT pg_current_wal_insert_lsn() < '$lsn'"), 't', "$what: the WAL is not there yet");
	write_wal_up_to($lsn);
	load(50);
	$writer->query_safe(q{INSERT INTO t (t) SELECT 'other side' FROM generate_series(1, 1000)});
	$writer->query_safe('COMMIT');
	$writer->quit;
	$node->restart;
	$stack->sql('SELECT electric_cm_start()');
	ok($stack->active, "$what: active on the other side");
	replays($t, 't', "$what, the WAL has crossed");
	my ($before, $after) = split /\|/,
	  $stack->sql("SELECT count(*) FILTER (WHERE split_part(log_offset::text, '_', 1)::numeric < $position),
			count(*) FILTER (WHERE split_part(log_offset::text, '_', 1)::numeric >= $position)
		FROM electric_cm_shape_log('$t')");
	cmp_ok($before, '>=', 500, "$what: offsets on one side ($before)");
	cmp_ok($after, '>=', 2000, "$what: offsets on the other side ($after)");
	is( $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$t',
			(SELECT log_offset FROM electric_cm_shape_log('$t') WITH ORDINALITY AS l (log_offset, b, c, d, e, f, n)
				WHERE n = $before))"),
		$after, "$what: a reader goes on from one side to the other");

	# While it runs, too; and waiting
	load(50);
	my $now = $stack->sql('SELECT pg_current_wal_insert_lsn()');
	is($stack->sql("SELECT electric_cm_await_flushed('$now') >= '$now'"), 't', "$what: await_flushed() returns what it has waited for");
	($rc, $out, $err) = $node->psql($db, "SELECT electric_cm_await_flushed('FFFFFFFF/FFFFFFFF', '100 ms')");
	like($err, qr/timed out.*FFFFFFFF\/FFFFFFFF/, "$what: and waits for the future");
	$node->stop('immediate');
	$node->start;
	ok($stack->active, "$what: active after a crash");
	load(50);
	replays($t, 't', "$what, after a crash");

	# Figures
	cmp_ok($stack->sql('SELECT electric_cm_report_retained_wal_size()'), '<', 200 * 1024 * 1024, "$what: retained WAL");
	ok( ElectricCM::poll($node, $db, q{
SELECT retained_wal_bytes = current_lsn - restart_lsn AND retained_wal_bytes BETWEEN 0 AND 200000000
	AND flush_lag_bytes = greatest(0, current_lsn - confirmed_flush_lsn) AND flush_lag_bytes BETWEEN 0 AND 200000000
	AND received_lsn >= '} . $lsn . q{' AND flushed_lsn >= '} . $lsn . q{'
	AND wal_status = 'reserved' AND safe_wal_size IS NULL
FROM electric_cm_stat_replication}), "$what: the figures are what they should be");
	$stack->sql('ALTER SYSTEM SET max_slot_wal_keep_size = \'8GB\'');
	$node->reload;
	ok( ElectricCM::poll($node, $db, q{
SELECT electric_cm_report_retained_wal_size() IS NOT NULL AND safe_wal_size BETWEEN 1 AND 9::int8 << 30
FROM electric_cm_stat_replication}), "$what: safe_wal_size, too");
	$stack->sql('ALTER SYSTEM RESET max_slot_wal_keep_size');
	$node->reload;

	# Drop the slot and go on
	my $reader = $stack->reader($t);
	$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
	is($stack->sql('SELECT count(*) FROM pg_replication_slots'), 0, "$what: the slot is dropped");
	load(50);
	$stack->sql('SELECT electric_cm_start()');
	ok($stack->active, "$what: active with another slot");
	$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', "$what, another slot");
	load(50);
	replays($t, 't', "$what, another slot");
	replays($u, 'u', "$what, another slot");
	$stack->sql("SELECT electric_cm_drop_shape('$u')");	# the next one waits for a writer, too
	$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
	return;
}

# From one billion to the next, so that nothing is ever too old
freeze();
jump('-x' => 1000013824);
freeze();
jump('-x' => 2**31 - 32768, '-l' => '000000017FFFFFFF000000FE');
$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)');
$stack->sql('CREATE TABLE u (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY)');
cross('half way', '80000000/0', 2**31);

freeze();
jump('-x' => 3000008704, '-e' => 7);
freeze();
jump('-x' => 2**32 - 32768, '-e' => 7, '-l' => '00000001FFFFFFFE000000FE');
$stack->sql('SELECT electric_cm_start()');
cross('near the end', 'FFFFFFFF/0', 8 * 2**32);

$node->stop;
done_testing();
