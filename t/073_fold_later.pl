# A log that can't be folded at the moment, since the session that folds another
# one has not ended yet, is folded when it can be.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.shape_log_retention = -1\nelectric_cm.wal_report_interval = '1 s'\n");
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
$stack->active or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');
for my $i (1 .. 4)
{
	$stack->sql("INSERT INTO t SELECT $i, repeat('x', 100000) ON CONFLICT (id) DO UPDATE SET v = excluded.v");
	$stack->sql(q{UPDATE t SET v = v || 'y'});
	$stack->settle;
}

my $folder = $node->background_psql($stack->db, on_error_stop => 1);
$folder->query_safe('BEGIN; CALL _electric_cm.fold_shape(0, 0, NULL, NULL)');
$stack->sql(q{ALTER SYSTEM SET electric_cm.shape_log_retention = '64kB'});
$node->reload;
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
until (slurp_file($node->logfile) =~ /another shape log is being folded/ || time > $deadline) { $stack->sql('SELECT pg_sleep(0.1)'); }
like(slurp_file($node->logfile), qr/another shape log is being folded/, 'no log is folded while somebody folds another one');
is($stack->events('shape_log_folded'), 0, '... nor is it said to be');
$folder->query_safe('COMMIT');
$folder->quit;
$stack->becomes(q{SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'shape_log_folded'}, 'it is when that has ended');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE severity <> 'log'}), 0, '... without a word of warning');
$stack->replays($handle, 't', '... and replays to the table');

$node->stop;
done_testing();
