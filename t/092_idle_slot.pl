# idle_replication_slot_timeout: a stack that runs is never idle; one that is
# stopped may lose its slot, and is told so before and after.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.wal_report_interval = '1 s'\nelectric_cm.status_check_interval = '1 s'\ncheckpoint_timeout = 1h\nautovacuum = off\n");
my $node = $stack->node;
my $check = q{SELECT verdict || ' ' || detail || coalesce(' | ' || fix, '') FROM electric_cm_check() WHERE name = 'idle_slot_timeout'};

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY)');
$stack->active or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');
is($stack->sql($check), 'PASS no slot is lost for being idle', 'check: no timeout');
is($stack->sql('SELECT invalidation_reason IS NULL AND inactive_since IS NULL FROM electric_cm_slots WHERE ours'), 't', 'a slot in use has neither');
if ($node->pg_version < 18)
{
	$node->stop;
	done_testing();
	exit;
}

my ($rc, $out, $err) = $node->psql($stack->db, 'SELECT electric_cm_stop()');
unlike($err, qr/idle_replication_slot_timeout/, 'without the setting, electric_cm_stop() says nothing of it');
$stack->sql(q{ALTER SYSTEM SET idle_replication_slot_timeout = '1 s'}, 'SELECT pg_reload_conf()', 'SELECT electric_cm_start()');
ok($stack->active, 'active with it');
like($stack->sql($check), qr/^WARN idle_replication_slot_timeout is 1s: a stack that is stopped, or disabled, for longer loses its slot, .* \| ALTER SYSTEM SET idle_replication_slot_timeout = 0;/,
	'check: it says what the timeout costs');

# a stack that runs, with nothing to do
$stack->becomes(q{SELECT clock_timestamp() - max(occurred_at) > '2 s' FROM electric_cm_events WHERE event = 'ready'});
$stack->sql('CHECKPOINT');
is($stack->sql('SELECT wal_status FROM electric_cm_slots WHERE ours'), 'reserved', 'a stack that has nothing to do keeps its slot');
is($stack->exists_shape($handle), 1, '... and its shapes');
my $reader = $stack->reader($handle);

($rc, $out, $err) = $node->psql($stack->db, 'SELECT electric_cm_stop()');
like($err, qr/WARNING:.*stays behind.*longer than idle_replication_slot_timeout \(1s\), the slot is lost, and all shapes are compared with their tables/s, 'electric_cm_stop() warns');
$stack->becomes(q{SELECT clock_timestamp() - inactive_since > '1 s' FROM electric_cm_slots WHERE ours}, 'the slot is idle for that long');
$stack->sql(q{INSERT INTO t VALUES (1)}, 'CHECKPOINT');
is($stack->sql('SELECT wal_status, invalidation_reason, verdict FROM electric_cm_slots WHERE ours'), 'lost|idle_timeout|lost', 'lost: the view says why');
like($stack->sql(q{SELECT detail FROM electric_cm_check() WHERE name = 'slot'}), qr/has been invalidated \(idle_timeout\)/, '... and so does electric_cm_check()');
$stack->becomes(q{SELECT detail LIKE 'Nobody has used it for longer than idle_replication_slot_timeout.%' AND detail NOT LIKE '%max_slot_wal_keep_size%'
	FROM electric_cm_events WHERE event = 'replication_slot_lost'}, '... and the event');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'it starts again, with a new slot');
$stack->becomes(q{SELECT count(*) > 0 FROM electric_cm_events WHERE concat(message, detail) LIKE '%Nobody has used it for longer than idle_replication_slot_timeout.%' AND event <> 'replication_slot_lost'},
	'... and says why the old one was of no use');
$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'idle for too long');

$node->stop;
done_testing();
