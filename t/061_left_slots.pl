# Slots that stacks leave behind are watched, whatever has become of their
# database or of their name; changed settings reach them at once.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.retained_wal_limit = 16MB
electric_cm.min_wal_free_space = -1
electric_cm.max_managers = 2
max_wal_size = 4GB
autovacuum = off
});
my $node = $stack->node;
my $other = $stack->beside('other');

sub there { my ($name) = @_; return "(SELECT count(*) FROM pg_replication_slots WHERE slot_name = '$name')"; }

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE DATABASE other');
$other->sql('CREATE EXTENSION electric_cm');
ok($stack->active && $other->active, 'two stacks are active');

# A template; a database that takes no connections
for my $change ('IS_TEMPLATE true', 'ALLOW_CONNECTIONS false')
{
	$stack->sql("ALTER DATABASE other $change");
	$stack->seen(q{(SELECT status = 'stopped' FROM electric_cm_stat_manager WHERE datname = 'other')}, "$change: stopped");
	my $why = $stack->sql(q{SELECT waiting_for FROM electric_cm_stat_manager WHERE datname = 'other'});
	$node->restart;
	$stack->seen(q{(SELECT ours FROM electric_cm_slots WHERE slot_name = 'electric_cm_other')}, '... its slot is known as ours after a restart');
	$stack->seen(qq{(SELECT status = 'stopped' AND waiting_for = '$why' FROM electric_cm_stat_manager WHERE datname = 'other')}, "... it is stopped still, because: $why");
	$stack->write_wal(20);
	$stack->seen(there('electric_cm_other') . ' = 0', '... the slot is dropped at the limit');
	$stack->sql('ALTER DATABASE other IS_TEMPLATE false');
	$stack->sql('ALTER DATABASE other ALLOW_CONNECTIONS true');
	ok($other->active, '... and it is active again');
}

# More databases than stacks: what is not watched is named
$stack->sql('ALTER DATABASE other SET electric_cm.enabled = off');
$stack->sql('SELECT pg_reload_conf()');
$node->append_conf('postgresql.conf', 'electric_cm.max_managers = 1');
$node->restart;
$stack->seen(q{EXISTS (SELECT FROM electric_cm_events WHERE event = 'too_many_stacks'
	AND detail ~ 'is watched for slots "electric_cm_(other|postgres)"')}, 'a slot that is not watched for want of a stack is named');
$node->append_conf('postgresql.conf', 'electric_cm.max_managers = 2');
$stack->sql('ALTER DATABASE other RESET electric_cm.enabled');
$node->restart;
ok($stack->active && $other->active, 'both are active');

# Another name, which is taken: the former slot.  It is within the limit at first:
# it has let go of what was written above.
my $slot = q{FROM pg_replication_slots WHERE slot_name = 'electric_cm_postgres'};
my $end = $stack->sql('SELECT pg_current_wal_lsn()');
$stack->seen("(SELECT confirmed_flush_lsn >= '$end' $slot)");
$stack->sql('CHECKPOINT');
$stack->seen("(SELECT restart_lsn >= '$end' $slot)", 'the slot of the stack that runs has let go of all that was written');
$stack->sql(q{SELECT pg_create_logical_replication_slot('taken', 'test_decoding')});
$stack->sql(q{ALTER DATABASE postgres SET electric_cm.slot_name = 'taken'});
$stack->sql('SELECT pg_reload_conf()');
$stack->seen(q{electric_cm_status() = 'failed'}, 'the new name is taken: failed');
is($stack->sql('SELECT ' . there('electric_cm_postgres')), 1, '... the former slot is there');
is($stack->sql(q{SELECT ours FROM electric_cm_slots WHERE slot_name = 'electric_cm_postgres'}), 't', '... as ours');
$node->restart;
$stack->seen(q{(SELECT ours FROM electric_cm_slots WHERE slot_name = 'electric_cm_postgres')}, '... also after a restart');
$stack->write_wal(20);
$stack->seen(q{EXISTS (SELECT FROM electric_cm_events WHERE event = 'retained_wal_limit' AND message LIKE '%"electric_cm_postgres"%'
	AND detail LIKE '%would free nothing. Replication slot "taken"%')}, '... past the limit, but it stays, since another one holds the same, and that is said');
# where the server has written down its transactions: up to there a slot can let go
$stack->sql('CHECKPOINT');
$stack->sql(q{SELECT pg_replication_slot_advance('taken', pg_current_wal_lsn())});
$stack->seen(there('electric_cm_postgres') . ' = 0', '... and is dropped when that helps');
is($stack->sql('SELECT ' . there('taken')), 1, '... unlike the other one');
$stack->seen(q{EXISTS (SELECT FROM electric_cm_events WHERE event = 'retained_wal_limit' AND message ~ 'electric_cm_postgres' AND detail ~ 'another name')}, '... with an event');
$stack->sql(q{ALTER DATABASE postgres RESET electric_cm.slot_name});
$stack->sql('SELECT pg_reload_conf()');
ok($stack->active, 'the old name again: active');
$stack->sql(q{SELECT pg_drop_replication_slot('taken')});

# Settings reach a slot without a manager at once
$node->append_conf('postgresql.conf', "electric_cm.retained_wal_limit = -1\nelectric_cm.wal_report_interval = '1h'");
$stack->sql('SELECT pg_reload_conf()');
$stack->sql('SELECT electric_cm_stop()');
$stack->sql('SELECT electric_cm_report_retained_wal_size()');
$stack->write_wal(20);
$node->append_conf('postgresql.conf', "electric_cm.retained_wal_limit = 16MB");
$stack->sql('SELECT pg_reload_conf()');
$stack->seen(there('electric_cm_postgres') . ' = 0', 'a limit that is set counts at once');

$node->stop;
done_testing();
