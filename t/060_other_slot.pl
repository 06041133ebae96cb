# Somebody has dropped the stack's slot and made another one of the same name:
# that one is not dropped, whatever it retains, nor after a restart.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.retained_wal_warning = 8MB
electric_cm.retained_wal_limit = 16MB
electric_cm.min_wal_free_space = -1
max_wal_size = 4GB
autovacuum = off
});
my $node = $stack->node;
my $slot = 'electric_cm_postgres';
my $there = "(SELECT count(*) FROM pg_replication_slots WHERE slot_name = '$slot')";
my $kept = q{(SELECT count(*) FROM electric_cm_events WHERE event = 'retained_wal_limit'
	AND detail LIKE '%was not made by electric_cm%'
	AND occurred_at > pg_postmaster_start_time())};

sub remake
{
	my ($plugin) = @_;
	$stack->sql("SELECT pg_drop_replication_slot('$slot')");
	$stack->sql("SELECT pg_create_logical_replication_slot('$slot', '$plugin')");
	$stack->sql('SELECT electric_cm_report_retained_wal_size()');
	return;
}

# Writes more than the limit; once that is seen nothing has happened but words
sub stays
{
	my ($what) = @_;
	my $before = $stack->sql("SELECT $kept");

	$stack->write_wal(20);
	$stack->seen("$kept = $before + 1", "$what: that it holds too much is said") or return;
	$stack->write_wal(10);
	$stack->seen("retained_wal_bytes > 29 * 1024 * 1024 FROM electric_cm_stat_replication");
	return is($stack->sql("SELECT $there"), 1, '... but it stays');
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('SELECT electric_cm_stop()');

for my $plugin ('test_decoding', 'pgoutput')
{
	remake($plugin);
	stays("another $plugin slot");
	$node->restart;
	$stack->seen("$kept = 1", '... and after a restart as well');
	is($stack->sql("SELECT $there"), 1, '... it stays');
	$node->stop('immediate');
	$node->start;
	$stack->seen("$kept = 1", '... and after a crash');
	is($stack->sql("SELECT $there"), 1, '... it stays');
}

# The stack takes it, since it can; that makes it nobody else's, but not ours
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active with the slot that was there');
is($stack->sql('SELECT slot_name IS NULL FROM _electric_cm.stack'), 't', '... which is not recorded as our own');
$stack->sql('SELECT electric_cm_stop()');
$stack->write_wal(20);
$stack->seen('retained_wal_bytes > 19 * 1024 * 1024 FROM electric_cm_stat_replication', 'stopped: it holds too much');
is($stack->sql("SELECT $there"), 1, '... but it stays');
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
is($stack->sql("SELECT $there"), 0, 'the user drops it');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active with one of our own');

# While the stack has failed
$stack->sql(q{ALTER PUBLICATION electric_cm_publication SET (publish = 'insert')});
$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');
$stack->seen(q{electric_cm_status() = 'failed'}, 'failed');
remake('test_decoding');
stays('failed, another test_decoding slot');
remake('pgoutput');
stays('failed, another pgoutput slot');
$node->restart;
$stack->seen("$kept = 1", '... also after a restart');
is($stack->sql("SELECT $there"), 1, '... it stays');
$stack->sql(qq{SELECT pg_drop_replication_slot('$slot')});
$stack->sql(q{ALTER PUBLICATION electric_cm_publication SET (publish = 'insert, update, delete, truncate')});
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active again');

# Ours is ours also after a crash
$stack->sql('ALTER DATABASE postgres SET electric_cm.enabled = off');
$node->stop('immediate');
$node->start;
$stack->seen(q{electric_cm_status() = 'stopped'}, 'disabled by the time of a crash');
$stack->write_wal(20);
$stack->seen("$there = 0", '... our own slot is dropped');

$node->stop;
done_testing();
