# What a shape's log holds is known without counting, and reading costs what is
# read: neither depends on how long the log has become.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "restart_after_crash = on\n");
my $node = $stack->node;

sub is_live
{
	my ($handle) = @_;
	return $stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'");
}

# The view's figures are those that counting gives.
sub figures_are_right
{
	my ($handle, $what) = @_;
	$stack->settle;
	return is(
		$stack->sql("SELECT log_entries, log_bytes, last_offset FROM electric_cm_shapes WHERE handle = '$handle'"),
		$stack->sql("SELECT count(*), (SELECT sum(length(data)) FROM _electric_cm.shape_log
				WHERE shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$handle')),
			(SELECT log_offset FROM electric_cm_shape_log('$handle') WITH ORDINALITY ORDER BY ordinality DESC LIMIT 1)
			FROM electric_cm_shape_log('$handle')"),
		"figures of $what");
}

# Buffers that a query touches when everything it needs is cached.
sub buffers
{
	my ($query) = @_;
	my $plan = $stack->sql($query, $query, "EXPLAIN (ANALYZE, BUFFERS, COSTS off, TIMING off, SUMMARY off) $query");
	my ($hit) = $plan =~ /(?:Function|Subquery) Scan.*?Buffers: shared hit=(\d+)/s or die "no buffers in:\n$plan";
	return $hit;
}

$stack->sql('CREATE EXTENSION electric_cm',
	'CREATE TABLE t (id int PRIMARY KEY, v text)', 'CREATE TABLE busy (id int PRIMARY KEY, v int)',
	'CREATE TABLE large (id int PRIMARY KEY, v text)', 'ALTER TABLE large ALTER v SET STORAGE EXTERNAL');
$stack->active or BAIL_OUT('no stack');

#
# Figures
#
my $empty = $stack->sql(q{SELECT electric_cm_create_shape('t')});
is_live($empty);
is($stack->sql("SELECT log_entries, log_bytes, last_offset IS NULL FROM electric_cm_shapes WHERE handle = '$empty'"),
	'0|0|t', 'an empty log');

# Created while others write.  The first writer is waited for; what others commit
# meanwhile is in the snapshot.  What is committed while the snapshot's own
# transaction can't go on is in the log.
my @writers = map { $node->background_psql($db) } 1 .. 3;
$writers[0]->query_safe('BEGIN');
$writers[0]->query_safe('INSERT INTO busy SELECT i, i FROM generate_series(1, 500) i');
my $busy = $stack->sql(q{SELECT electric_cm_create_shape('busy')});
$stack->becomes("SELECT waiting_for LIKE '%PID%' FROM electric_cm_shapes WHERE handle = '$busy'");
$stack->sql('INSERT INTO busy SELECT i, i FROM generate_series(501, 2500) i');
$stack->sql('INSERT INTO busy SELECT i, i FROM generate_series(2501, 2600) i');
$writers[1]->query_safe('BEGIN');
$writers[1]->query_safe('INSERT INTO busy SELECT i, i FROM generate_series(3001, 3700) i');
$writers[2]->query_safe('BEGIN');
$writers[2]->query_safe('LOCK TABLE _electric_cm.shape IN SHARE MODE');
$writers[0]->query_safe('COMMIT');
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%take_snapshot%'
	AND wait_event_type = 'Lock'}, 'a snapshot is held up');
$writers[1]->query_safe('COMMIT');
$stack->sql('UPDATE busy SET v = v + 1 WHERE id <= 300');
$stack->settle;
$writers[2]->query_safe('COMMIT');
$_->quit for @writers;
is_live($busy);
cmp_ok($stack->sql('SELECT count(*) FROM _electric_cm.shape_base'), '>', 0, 'what was captured has been dropped in part');
figures_are_right($busy, 'a log that began among writers');
$stack->sql('UPDATE busy SET v = v + 1');
figures_are_right($busy, '... and went on');

$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'electric_cm consumer%'});
$stack->sql('DELETE FROM busy WHERE id % 2 = 0');
figures_are_right($busy, '... with a new consumer');
$node->stop('immediate');
$node->start;
$stack->active;
$stack->sql('INSERT INTO busy SELECT i, i FROM generate_series(4000, 4100) i');
figures_are_right($busy, '... after a crash');
my ($ok) = $stack->replay_equals($busy, 'busy', ['id']);
ok($ok, '... and replays to the table');

# a transaction that is too large to wait for, and comes twice in part
my $writer = $node->background_psql($db);
my $large = $stack->sql(q{SELECT electric_cm_create_shape('large')});
is_live($large);
for my $round (1 .. 3)
{
	$writer->query_until(qr/sent/, "\\echo sent\nINSERT INTO large SELECT i, repeat('x', 20000) FROM generate_series(${round}0000, ${round}4000) i;\n");
	# in the middle of it, or before, or after
	$stack->becomes('SELECT sum(changes) > 0 FROM electric_cm_stat_consumers');
	$stack->sql(q{SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active});
	$writer->query_safe('SELECT 1');
}
$writer->quit;
$stack->active;
$stack->sql("INSERT INTO large VALUES (1, repeat('y', 5000000))");
figures_are_right($large, 'a log of large values');

#
# The last read
#
$stack->sql('CREATE TABLE unread (id int PRIMARY KEY)');
my $unread = $stack->sql(q{SELECT electric_cm_create_shape('unread')});
is_live($unread);
is($stack->sql("SELECT last_read_at IS NULL FROM electric_cm_shapes WHERE handle = '$unread'"), 't', 'never read');
for my $function ("shape_log('$unread')", "await_shape_log('$unread', '-1', '0')")
{
	my $before = $stack->sql('SELECT clock_timestamp()');
	$stack->sql("SELECT FROM electric_cm_$function");
	is($stack->sql("SELECT last_read_at BETWEEN '$before' AND clock_timestamp() FROM electric_cm_shapes WHERE handle = '$unread'"),
		't', "last read by electric_cm_$function");
}
$node->restart;
$stack->active;
is($stack->sql("SELECT last_read_at IS NULL FROM electric_cm_shapes WHERE handle = '$unread'"), 't', 'not known since a restart');

#
# Costs
#
sub grow { return $stack->sql(map { sprintf 'INSERT INTO t SELECT i, i FROM generate_series(%d, %d) i', $_ * 1000, $_ * 1000 + 999 } $_[0] .. $_[1]); }

my %cost;
grow(1, 20);
$stack->settle;
for my $length ('short', 'long')
{
	my $last = $stack->sql("SELECT last_offset FROM electric_cm_shapes WHERE handle = '$empty'");
	$stack->sql(q{INSERT INTO t VALUES (} . ($length eq 'short' ? -1 : -2) . q{, 'the last')});
	$stack->settle;
	$cost{$length} = {
		entries => $stack->sql("SELECT log_entries FROM electric_cm_shapes WHERE handle = '$empty'"),
		'reading on' => buffers("SELECT * FROM electric_cm_shape_log('$empty', '$last')"),
		'waiting' => buffers("SELECT * FROM electric_cm_await_shape_log('$empty', '$last')"),
		'the figures' => buffers("SELECT * FROM _electric_cm.shape_log_stats((SELECT id FROM _electric_cm.shape WHERE handle = '$empty'), NULL)"),
		'the beginning' => buffers("SELECT * FROM electric_cm_shape_log('$empty', max_entries => 100)") };
	next if $length eq 'long';
	grow(21, 500);
	$stack->settle;
	$stack->sql('VACUUM ANALYZE _electric_cm.shape_log');
}
is($cost{long}{entries} - $cost{short}{entries}, 480001, 'half a million entries more');
for my $what ('reading on', 'waiting', 'the figures', 'the beginning')
{
	# one more level of the index, for each descent
	cmp_ok($cost{long}{$what}, '<=', $cost{short}{$what} + 12,
		"$what: $cost{short}{$what} buffers of a short log, $cost{long}{$what} of a long one");
	cmp_ok($cost{long}{$what}, '<', 100, '... few');
}

$node->stop;
done_testing();
