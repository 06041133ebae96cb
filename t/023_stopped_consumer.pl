# A consumer that is stopped for longer than wal_sender_timeout, with a full
# queue: the manager goes on answering and feeding back, and the connection is
# the same afterwards.
use strict;
use warnings;

use ElectricCM qw(new_impatient_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($stack, $handle) = new_impatient_stack();
my $node = $stack->node;
my $walsender = "(SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication')";

my $before = $stack->sql("SELECT $walsender || ' ' || current_setting('wal_sender_timeout')");
like($before, qr/ 2s$/, 'wal_sender_timeout is 2 s');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
my $began = $stack->sql('SELECT now()');
kill 'STOP', $consumer or die 'no consumer';
$stack->add_rows(10_000);
$stack->becomes("SELECT electric_cm_status() = 'active' AND sampled_at > '$began'::timestamptz + interval '7 s' FROM electric_cm_stat_replication",
	'a stopped consumer: the manager is responsive for more than three times wal_sender_timeout');
$stack->becomes("SELECT reply_time > '$began'::timestamptz + interval '5 s' FROM pg_stat_replication WHERE pid = $walsender",
	'... and the walsender has heard of it lately');
kill 'CONT', $consumer;
$stack->replays($handle, 't', 'it goes on');
is($stack->sql("SELECT $walsender || ' ' || current_setting('wal_sender_timeout')"), $before, 'the connection is the same');
is($stack->sql("SELECT count(*) FROM electric_cm_events WHERE event = 'connection_error'"), 0, 'no error in between');

$node->stop;
done_testing();
