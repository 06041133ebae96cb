# Too few background workers: PostgreSQL's own launcher takes one, ours another,
# and the manager says what it waits for.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "max_worker_processes = 2\nelectric_cm.reconnect_max_delay = '1 s'\n");
my $node = $stack->node;
my $db = 'postgres';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->becomes(
	q{SELECT status = 'waiting' AND waiting_for LIKE '%max\_worker\_processes%' FROM electric_cm_stat_manager},
	'no worker for the manager: it says what it waits for');
$stack->becomes(
	q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'no_free_worker'
		AND detail LIKE 'Raise max\_worker\_processes%'},
	'an event says so, once, with the remedy');
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$node->restart;
$stack->becomes(
	q{SELECT status = 'waiting' AND waiting_for LIKE '%max\_worker\_processes): 2 are needed, 1 of 3 are free' AND retry_count > 1
		FROM electric_cm_stat_manager},
	'none for its consumer: the manager waits for both, and it is tried again');
my ($rc, $out, $err) = $node->psql($db, q{SELECT electric_cm_start()});
like($err, qr/no background worker slot is free.*Raise max_worker_processes/s, 'who waits is told why');
$stack->becomes(
	q{SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'no_free_worker'
		AND message LIKE '%needs 2 background workers%' AND detail LIKE 'Raise max\_worker\_processes%'},
	'an event says so, once, with the remedy');
$node->append_conf('postgresql.conf', 'max_worker_processes = 4');
$node->restart;
ok($stack->active, 'enough workers: active');
$node->stop;

done_testing();
