# Before a limit on retained WAL costs all shapes, the one goes that holds up the
# others: one whose clause does not end, long before shape_stall_timeout, and one
# that is only slow, row by row.  If none is to blame, or the setting is 0, the
# limit acts as ever.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.shape_stall_timeout = '10min'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.min_wal_free_space = -1
});
my $node = $stack->node;

# A slot's limit, or the server's own
sub set
{
	my (%settings) = @_;
	$stack->sql("ALTER SYSTEM SET $_ = '$settings{$_}'") for sort keys %settings;
	$node->reload;
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;
$stack->sql(q{
	CREATE TABLE t (id int PRIMARY KEY, n int);
	CREATE TABLE others (id int PRIMARY KEY);
	ALTER TABLE t REPLICA IDENTITY FULL;
});
my $other = $stack->live_shape('others');
my $id = 0;

sub others_go_on
{
	my ($what) = @_;
	$id++;
	$stack->sql("INSERT INTO others VALUES ($id)");
	return $stack->becomes("SELECT count(*) = $id FROM electric_cm_shape_log('$other')", $what);
}

sub goes_first
{
	my ($shape, $what) = @_;
	$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$shape'", $what);
	like($stack->error_of($shape), qr/most of the time of its consumer.*at a limit.*electric_cm\.shape_stall_timeout/, '... and its reason says so');
	others_go_on('... the others go on');
	is($stack->events('retained_wal_limit') + $stack->events('replication_slot_lost') + $stack->events('shapes_resyncing'), 0,
		'... and the slot stays');
	$stack->sql("SELECT electric_cm_drop_shape('$shape')", 'TRUNCATE t');
	return;
}

# Takes minutes for n = 32000
my $endless = join(' + ', map { "factorial(n - $_)" } 1 .. 100) . ' > 0';

# ---- a clause that does not end

set('electric_cm.retained_wal_limit' => '48MB');
my $shape = $stack->live_shape('t', where => $endless);
$stack->sql('INSERT INTO t VALUES (1, 32000)');
$stack->write_wal(80);
goes_first($shape, 'beyond retained_wal_limit, a shape goes whose clause does not end');

# ---- slow, row by row

my $slow = join(' + ', map { "factorial(n - $_)" } 1 .. 2) . ' > 0';
$shape = $stack->live_shape('t', where => $slow);
$stack->sql('INSERT INTO t SELECT i, 5000 FROM generate_series(1, 20000) i');
$stack->write_wal(80);
goes_first($shape, 'so does one that is slow');

# ---- the server's own limit

set('electric_cm.retained_wal_limit' => '-1', max_slot_wal_keep_size => '128MB');
$shape = $stack->live_shape('t', where => $endless);
$stack->sql('INSERT INTO t VALUES (1, 32000)');
$stack->write_wal(104);
goes_first($shape, 'near max_slot_wal_keep_size, a shape goes whose clause does not end');
set('max_slot_wal_keep_size' => '-1', 'electric_cm.retained_wal_limit' => '48MB');

# ---- somebody else's fault

my $bystander = $stack->live_shape('t', where => 'n > 0');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql('INSERT INTO t VALUES (1, 1)');
$stack->write_wal(80);
$stack->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_limit'}, 'a consumer that is stopped: the limit acts');
kill 'CONT', $consumer;
$stack->active;
is($stack->events('shape_errored', "message LIKE '%$bystander%'"), 0, '... and no shape is blamed for that');

# ---- turned off

set('electric_cm.shape_stall_timeout' => '0');
$stack->sql('TRUNCATE t');
$shape = $stack->live_shape('t', where => $endless);
$stack->sql('INSERT INTO t VALUES (1, 32000)');
$stack->write_wal(80);
$stack->seen(q{count(*) = 2 FROM electric_cm_events WHERE event = 'retained_wal_limit'}, 'shape_stall_timeout is 0: the limit acts');
is($stack->events('shape_errored', "message LIKE '%$shape%'"), 0, '... and the shape is not errored before');
$node->stop('immediate');
done_testing();
