# The log of a dropped shape is deleted, also if logs that belong to no shape are
# found just while the transaction that dropped it is coming in.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.reconnect_initial_delay = '100 ms'\nelectric_cm.reconnect_max_delay = '200 ms'\n");
my $node = $stack->node;

# A session that has a table of ours locked
sub locks
{
	my ($table, $mode) = @_;
	my $session = $node->background_psql($stack->db, on_error_stop => 1);
	$session->query_safe("BEGIN; LOCK TABLE _electric_cm.$table IN $mode MODE");
	return $session;
}

# A consumer, or a session of the pool, that waits for such a lock
sub waits_for
{
	my ($table, $what) = @_;
	return $stack->seen("EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = '_electric_cm.$table'::regclass)", $what);
}

sub chunks { my ($id) = @_; return "(SELECT count(*) FROM _electric_cm.shape_log WHERE shape = $id)"; }

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active or BAIL_OUT('no stack');
$stack->sql(map { ("CREATE TABLE $_ (id int PRIMARY KEY, v text)", "INSERT INTO $_ VALUES (1, '')") } qw(dropped ownerless followed));
my %handle = map { $_ => $stack->live_shape($_) } qw(dropped ownerless followed);
my %id = map { $_ => $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$handle{$_}'") } keys %handle;
$stack->settle;

# A log without a shape, which nobody has told the stack of; and a drop in a
# transaction that takes long to come in.
$stack->sql('SELECT electric_cm_stop()', "DELETE FROM _electric_cm.shape WHERE id = $id{ownerless}",
	"BEGIN; SELECT electric_cm_drop_shape('$handle{dropped}'); "
	  . q{INSERT INTO followed SELECT i, repeat('x', 1000) FROM generate_series(2, 30000) i; COMMIT});
is($stack->sql('SELECT ' . join(' > 0 AND ', map { chunks($id{$_}) } qw(dropped ownerless)) . ' > 0'), 't', 'both logs are there');

# The look for logs without a shape waits for the one, the consumer for the
# other, in the midst of that transaction.
my $look = locks('shape_base', 'ACCESS EXCLUSIVE');
my $consumer = locks('shape_log', 'SHARE');
$stack->sql('SELECT electric_cm_start()');
waits_for('shape_log', 'a transaction is coming in');
waits_for('shape_base', 'logs without a shape are looked for');
$look->quit;
$stack->seen("NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'electric_cm%' AND query LIKE '%shape_base%' AND state = 'active')",
	'... and found');
$consumer->quit;

$stack->seen(chunks($id{ownerless}) . ' = 0', 'the log without a shape is deleted');
$stack->seen(chunks($id{dropped}) . ' = 0', 'so is the log of the shape that was dropped');
$stack->replays($handle{followed}, 'followed', 'the others go on');
done_testing();
