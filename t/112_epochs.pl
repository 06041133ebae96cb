# A failover that the shapes survive begins an epoch: offsets of what commits from
# there on say so, and whoever has read what never happened here is told.  The rows
# of the epochs are written by hand; t/110_failover.pl has real ones.
use strict;
use warnings;

use ElectricCM qw(new_stack becomes wait_active fails_with);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => q{
electric_cm.shape_workers = 2
electric_cm.shape_log_retention = -1
electric_cm.reconnect_initial_delay = 50ms
hot_standby_feedback = on
});
my $node = $stack->node;

sub fails { my $server = shift; return fails_with($server, $db, @_); }

# The log as the parts of its offsets: lsn, op, what op has in its upper half, the number
my $parts = q{LATERAL (SELECT split_part(log_offset::text, '_', 1)::numeric AS lsn, split_part(log_offset::text, '_', 2)::int8 AS op) p,
	LATERAL (SELECT op >> 32 AS upper, op & 4294967295 AS number) q};
sub of_log
{
	my ($handle, $after, $what) = @_;
	return $stack->sql("SELECT $what FROM electric_cm_shape_log('$handle', '$after') l, $parts");
}
sub epochs { return of_log(@_, q{string_agg(DISTINCT upper::text, ',')}); }
sub counted
{
	my ($handle, $after, $what) = @_;
	return is($stack->sql("SELECT count(*) FILTER (WHERE number <> n), count(*) > 0
			FROM (SELECT number, row_number() OVER (PARTITION BY lsn, upper ORDER BY op) - 1 AS n
				FROM electric_cm_shape_log('$handle', '$after') l, $parts) c"), '0|t', $what);
}
sub upper { my ($op) = $_[0] =~ /_(\d+)$/; return $op >> 32; }
sub with_epoch
{
	my ($offset, $epoch) = @_;
	my ($lsn, $op) = split /_/, $offset;
	return $lsn . '_' . ($op % 2**32 + $epoch * 2**32);
}
sub begin_epoch
{
	my ($epoch) = @_;
	$stack->settle;
	$stack->sql('SELECT electric_cm_stop()', "INSERT INTO _electric_cm.epoch VALUES (pg_current_wal_insert_lsn(), $epoch)", 'SELECT electric_cm_start()');
	return ok($stack->active, "active in epoch $epoch");
}

$stack->sql('CREATE EXTENSION electric_cm',
	'CREATE TABLE t (id int PRIMARY KEY, v text)', q{INSERT INTO t SELECT i, 'first' FROM generate_series(1, 50) i},
	'CREATE TABLE u (id int PRIMARY KEY, v text)', q{INSERT INTO u SELECT i, 'first' FROM generate_series(1, 50) i});
$stack->active or BAIL_OUT('no stack');
my $t = $stack->live_shape('t');
my $same = $stack->live_shape('t', columns => [ 'id', 'v' ]);
my $u = $stack->live_shape('u');
is($stack->sql('SELECT count(DISTINCT worker) FROM _electric_cm.shape_worker'), 2, 'shapes of two consumers');

my $moves = 0;
sub churn
{
	my ($round) = @_;
	$moves++;
	$stack->sql((map { ("UPDATE $_ SET v = v || '$round' WHERE id % 5 = $round", "DELETE FROM $_ WHERE id % 7 = $round AND id < 100",
			"INSERT INTO $_ SELECT i, 'again' FROM generate_series(1, 50) i ON CONFLICT DO NOTHING") } qw(t u)),
		'BEGIN', "UPDATE t SET v = 'three' WHERE id IN (1, 2)", "UPDATE t SET id = id + 1000 * $moves WHERE id = 3", 'COMMIT');
	return $stack->settle;
}
sub large
{
	my ($round) = @_;
	my $from = 100000 * ($round + 1);
	$stack->sql("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series($from, $from + 3000) i");
	return $stack->settle;
}
sub is_whole
{
	my ($what) = @_;
	$stack->replays($t, 't', "$what: the log replays");
	return $stack->replays($u, 'u', '... and so does the other one');
}

churn(0);
is(epochs($t, '-1'), '0', 'a database that never failed over has no epochs in its offsets');
my $before = $stack->last_offset($t);
my $early = $stack->sql("SELECT log_offset FROM electric_cm_shape_log('$t') LIMIT 1 OFFSET 30");

#
# The first epoch
#
my ($first, $second, $third) = (11, 536870911, 7);
begin_epoch($first);
my $border = $stack->sql("SELECT began_at - '0/0' FROM _electric_cm.epoch");
churn(1);
large(1);
churn(2);
is(epochs($t, $before), $first, 'what commits after a takeover has its epoch');
is(epochs($t, $early), "0,$first", 'a reader of before goes on');
is(of_log($t, '-1', "bool_and((lsn >= $border) = (upper = $first))"), 't', '... and by its LSN each entry has an epoch or none');
counted($t, $before, 'entries of a transaction are counted as before');
cmp_ok($stack->sql("SELECT count(*) FROM _electric_cm.shape_log WHERE first_op >> 32 = $first AND first_op & 4294967295 > 0"), '>', 20, '... over several chunks');
is($stack->sql("SELECT count(*) FROM (SELECT log_offset, key, value FROM electric_cm_shape_log('$t', '$before') EXCEPT SELECT log_offset, key, value FROM electric_cm_shape_log('$same', '$before')) d"),
	0, 'another consumer gives the same offsets');
is_whole('in an epoch');

# In pages, which end within transactions
sub in_pages
{
	my ($after, $size) = @_;
	my @all;
	while (my @page = split /\n/, $stack->sql("SELECT * FROM electric_cm_shape_log('$t', '$after', $size)"))
	{
		push @all, @page;
		($after) = $page[-1] =~ /^([^|]+)/;
	}
	return join "\n", @all;
}
is(in_pages($early, 997), $stack->sql("SELECT * FROM electric_cm_shape_log('$t', '$early')"), 'a log is read in pages');

#
# Decoded again
#
my $log = $stack->sql("SELECT * FROM electric_cm_shape_log('$t')");
my $last = $stack->last_offset($t);
# Consumers come no further than here, and must do it all again
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN; LOCK TABLE _electric_cm.progress IN SHARE MODE');
my $lsn = $stack->sql(q{UPDATE t SET v = 'once more' WHERE id < 20}, 'SELECT pg_current_wal_insert_lsn()');
$stack->becomes(q{SELECT count(*) >= 2 FROM pg_locks WHERE relation = '_electric_cm.progress'::regclass AND NOT granted}, 'consumers are held up');
$node->stop('immediate');
$holder->{run}->kill_kill;
$node->start;
ok($stack->active, 'active after a crash');
$stack->settle($lsn);
is(epochs($t, $last), $first, 'a transaction that is decoded again has its epoch');
counted($t, $last, '... counted from the beginning');
is(substr($stack->sql("SELECT * FROM electric_cm_shape_log('$t')"), 0, length $log), $log, 'what was read before the crash is the same');
my $tail = $stack->sql("SELECT * FROM electric_cm_shape_log('$t', '$last')");
$stack->sql('SELECT electric_cm_restart()');
ok($stack->active, 'active after a restart');
churn(3);
is(substr($stack->sql("SELECT * FROM electric_cm_shape_log('$t', '$last')"), 0, length $tail), $tail, 'a restart changes no offset');
is(epochs($t, $last), $first, '... and the epoch goes on');

#
# A shape that is being created, and a second epoch
#
$stack->sql('CREATE TABLE w (id int PRIMARY KEY, v text)', q{INSERT INTO w SELECT i, 'first' FROM generate_series(1, 100) i});
begin_epoch($second);
my $writer = $node->background_psql($db);
$writer->query_safe(q{BEGIN; UPDATE w SET v = 'in flight' WHERE id = 1});
my $w = $stack->shape('w');
$stack->becomes("SELECT waiting_for IS NOT NULL AND state <> 'live' FROM electric_cm_shapes WHERE handle = '$w'");
$stack->sql(q{UPDATE w SET v = 'captured'  WHERE id > 50}, q{DELETE FROM w WHERE id = 99});
$writer->query_safe('COMMIT');
$writer->quit;
$stack->is_live($w);
$stack->sql(q{UPDATE w SET v = 'afterwards' WHERE id > 90});
$stack->replays($w, 'w', 'a shape that was created meanwhile');
is(of_log($w, '0_99', q{string_agg(DISTINCT upper::text, ',')}), $second, '... has the epoch in its offsets');
my $at = $stack->last_offset($t);
churn(4);
large(4);
is(epochs($t, '-1'), "0,$first,$second", 'the log has three epochs');
is(epochs($t, $at), $second, '... the last of which goes on');
is(of_log($t, '-1', 'bool_and(lsn >= ' . $stack->sql("SELECT began_at - '0/0' FROM _electric_cm.epoch WHERE epoch = $second") . " OR upper <> $second)"), 't', '... from its border on');
is(in_pages($before, 997), $stack->sql("SELECT * FROM electric_cm_shape_log('$t', '$before')"), 'a reader of before the first one goes on to the last');
is_whole('over two epochs');

#
# Differences
#
my $read = $stack->last_offset($u);
$stack->sql('BEGIN', q{INSERT INTO u VALUES (500, 'gone')}, 'TRUNCATE u', q{INSERT INTO u VALUES (501, 'stays')}, 'COMMIT', q{INSERT INTO u VALUES (502, 'stays')});
$stack->settle;
$stack->replays($u, 'u', 'after a TRUNCATE the log replays, in the order of its offsets');
$stack->sql(q{INSERT INTO u VALUES (503, 'later')});
$stack->settle;
is(of_log($u, $read, q{count(*) FILTER (WHERE upper >= 1 << 29 AND upper < 1 << 30) > 50}), 't', '... the difference is marked as such');
is(of_log($u, $read, "count(*) FILTER (WHERE upper = $second) > 0 AND count(*) FILTER (WHERE upper < 1 << 29 AND upper <> $second) = 0"), 't', '... and what comes is in the epoch');
$stack->sql(q{SELECT electric_cm_stop()}, 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots', q{UPDATE t SET v = 'unseen' WHERE id < 10}, 'DELETE FROM t WHERE id > 100000 AND id % 3 = 0',
	'SELECT electric_cm_start()');
ok($stack->active, 'active after a gap');
$stack->is_live($_) for $t, $same, $u, $w;
is(epochs($t, $stack->sql("SELECT l.log_offset FROM electric_cm_shape_log('$t', '$at') l, $parts WHERE upper = $second LIMIT 1")) =~ /\b$second\b/, 1, 'the log goes on behind a gap');
churn(1);
is_whole('with differences');

#
# Folded at a border, in the large transaction, and behind it
#
for my $limit (400_000, 200_000)
{
	like($stack->fold($t, $limit), qr/folded/, "folded to $limit bytes");
	my $point = $stack->sql("SELECT b.op >> 32, b.op & 4294967295 FROM _electric_cm.shape_base b JOIN _electric_cm.shape s ON s.id = b.shape WHERE s.handle = '$t'");
	note("the base ends at $point");
	# what was folded is deleted, by the next call
	is($stack->fold($t, 1_000_000_000), '', 'nothing more is to be folded');
	churn(2);
	is_whole("folded to $limit");
	is(epochs($t, $stack->last_offset($same)) // '', '', 'a reader at the end stays there');
}
fails($node, qr/EC001.*any more/s, 'what was folded is not read on', "SELECT FROM electric_cm_shape_log('$t', '$before')");

#
# Offsets of histories that are not this server's
#
my $end = $stack->last_offset($t);
is(upper($end), $second, 'the last offset has the last epoch');
is($stack->sql("SELECT FROM electric_cm_shape_log('$t', '$end')"), '', 'it is right');
my $told = sub {
	my ($server, $offset, $what) = @_;
	fails($server, qr/EC001.*offset $offset is not in the log.*DETAIL:[^\n]*failover.*HINT:.*-1/s, $what, "SELECT FROM electric_cm_shape_log('$t', '$offset')");
	return fails($server, qr/EC001.*failover/s, '... also who would wait', "SELECT FROM electric_cm_await_shape_log('$t', '$offset', '1 s')");
};
$told->($node, with_epoch($end, $_->[0]), "who comes with an offset of $_->[1] is told")
	for [ 0, 'before the failovers' ], [ $first, 'the former epoch' ], [ 4711, 'an epoch that is none' ];

# Where the log has not come yet, what belongs to the epoch may come, and nothing else.
$stack->sql('SELECT electric_cm_stop()');
my ($coming) = split /\n/, $stack->sql('INSERT INTO t VALUES (10001)', "SELECT pg_current_wal_insert_lsn() - '0/0'", q{INSERT INTO t VALUES (10002)}, 'SELECT pg_switch_wal() IS NULL');
fails($node, qr/55000/, 'an offset that the stack, which is stopped, has not come to is not called wrong',
	"SELECT FROM electric_cm_shape_log('$t', '" . with_epoch("${coming}_0", $second) . q{')});
fails($node, qr/EC001.*failover/s, "... but with $_ in the place of the epoch it is", "SELECT FROM electric_cm_shape_log('$t', '" . with_epoch("${coming}_0", $_) . q{')})
	for 0, $first, 4711;
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active');
is($stack->sql("SELECT count(*) FROM electric_cm_await_shape_log('$t', '$end', '60 s')") > 0, 1, 'a right one goes on');

#
# A standby that lags
#
$stack->settle;
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
$end = $stack->last_offset($t);
is($standby->safe_psql($db, "SELECT FROM electric_cm_shape_log('$t', '$end')"), '', 'a standby has the epochs');
$standby->safe_psql($db, 'SELECT pg_wal_replay_pause()');
becomes($standby, $db, q{SELECT pg_get_wal_replay_pause_state() = 'paused'});
begin_epoch($third);
churn(3);
my $new = $stack->last_offset($t);
is(upper($new), $third, 'the primary has another epoch');
fails($standby, qr/55000.*offset $new is not in the log of shape "$t" yet/s, 'a standby that lags does not have it yet', "SELECT FROM electric_cm_await_shape_log('$t', '$new', '1 s')");
$told->($standby, with_epoch($new, $_), "... but knows that $_ has been left") for 0, $first;
my %waiter = (out => '', err => '');
$waiter{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $standby->connstr($db), '-c', "SELECT count(*) FROM electric_cm_await_shape_log('$t', '$new', '1 hour')" ],
	'<', \undef, '>', \$waiter{out}, '2>', \$waiter{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
$standby->safe_psql($db, 'SELECT pg_wal_replay_resume()');
churn(0);
$waiter{run}->finish;
is($waiter{err}, '', 'who waits there for the epoch to come goes on in it');
$node->wait_for_catchup($standby);
$told->($standby, with_epoch($new, $_), "... which then is no longer $_") for 0, $second;
is_whole('at the end');

my ($rc, $out, $err) = $node->psql($db, 'INSERT INTO _electric_cm.epoch VALUES (pg_current_wal_lsn(), 536870912)');
like($err, qr/check constraint/, 'an epoch has 29 bits');
$standby->stop;

done_testing();
