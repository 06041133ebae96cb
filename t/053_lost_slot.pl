# The server's own limit, max_slot_wal_keep_size: the slot is about to be lost,
# and then it is.  And what is seen on a standby.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main',
	init => { extra => [ '--wal-segsize', '1' ] },
	conf => q{
electric_cm.wal_report_interval = 10s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.min_wal_free_space = -1
max_slot_wal_keep_size = 32MB
max_wal_size = 1GB
checkpoint_timeout = 1h
autovacuum = off
});
my $node = $stack->node;
my $db = 'postgres';
my $view = 'electric_cm_stat_replication';

sub count_of { my ($event) = @_; return "(SELECT count(*) FROM electric_cm_events WHERE event = '$event')"; }

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
ok($stack->active, 'active');
my $handle = $stack->live_shape('t');

for my $how ('stopped', 'streaming')
{
	my $is = $how eq 'stopped' ? 1 : 2;
	my $reader = $stack->reader($handle);
	my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
	if ($how eq 'stopped') { $stack->sql('SELECT electric_cm_stop()'); }
	else { kill 'STOP', $consumer or die 'no consumer'; }
	$stack->sql("INSERT INTO t VALUES ($is, 'for the consumer')");
	$stack->sql('SELECT electric_cm_report_retained_wal_size()');
	$stack->write_wal(10);
	is( $stack->sql("SELECT electric_cm_report_retained_wal_size() > 10 * 1024 * 1024"), 't', "$how: some WAL");
	is($stack->sql("SELECT safe_wal_size BETWEEN 20 * 1024 * 1024 AND 24 * 1024 * 1024 FROM $view"), 't', '... the rest is what may be written yet');
	$stack->seen("electric_cm_report_retained_wal_size() > 0 AND (SELECT time_to_limit > '0' FROM $view)",
		'... and how long that takes is estimated');

	# from here on, samples are taken every second, unasked
	$stack->write_wal(17);
	$stack->sql('SELECT electric_cm_report_retained_wal_size()');
	my $sampled = $stack->sql("SELECT sampled_at FROM $view");
	$stack->seen("sampled_at BETWEEN '$sampled'::timestamptz + interval '0.5 s' AND '$sampled'::timestamptz + interval '5 s' FROM $view",
		'near the limit, samples are taken every second');
	$stack->write_wal(10);
	$stack->seen("wal_status = 'unreserved' FROM $view", 'too much: it is about to be lost');
	$stack->seen(count_of('replication_slot_unreserved') . " = $is", '... and an event says so');
	is($stack->sql(q{SELECT verdict FROM electric_cm_slots WHERE ours}), 'will be invalidated at the next checkpoint', '... and the verdict');
	my $retained = $stack->sql("SELECT retained_wal_bytes FROM $view");
	$stack->sql('CHECKPOINT');
	$stack->seen(count_of('replication_slot_lost') . " = $is", 'lost: an event says so');
	like( $stack->sql(q{SELECT detail FROM electric_cm_events WHERE event = 'replication_slot_lost' ORDER BY occurred_at DESC LIMIT 1}),
		qr/^It retained 3[5-9] MB of WAL, and max_slot_wal_keep_size is 32 MB\..* shapes? of this database (?:is|are) compared with (?:its table|their tables)/, '... and what it held');
	if ($how eq 'stopped')
	{
		is( $stack->sql("SELECT wal_status, retained_wal_bytes >= $retained, restart_lsn IS NOT NULL, pinned_by IS NULL FROM $view"),
			'lost|t|t|t', '... as does the view');
		is($stack->sql("SELECT electric_cm_report_retained_wal_size() = retained_wal_bytes FROM $view"), 't', '... and the function');
		is($stack->sql(q{SELECT verdict FROM electric_cm_slots WHERE ours}), 'lost', '... and the verdict');
		is($stack->sql('SELECT wal_status FROM electric_cm_retained_wal_history ORDER BY sampled_at DESC LIMIT 1'), 'lost', '... and the history');
		like($stack->sql('SELECT electric_cm_retained_wal_plot()'), qr/#!+x|!x/, '... and the plot');
		$stack->sql('SELECT electric_cm_start()');
	}
	else { kill 'CONT', $consumer; }
	$stack->seen("electric_cm_status() = 'active' AND wal_status = 'reserved' FROM $view", 'with a new slot, it is active again');
	$stack->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', $how);
}
is($stack->sql(q{SELECT DISTINCT message FROM electric_cm_events WHERE event = 'shapes_resyncing'}),
	'the one shape of this database is compared with its table', 'an event says how many shapes there are');
is($stack->events('shape_resynced', "message ~ '^shape $handle was compared with its table: of [12] rows, [01] differed\$'"),
	2, '... and another one how many rows differed');

#
# A standby
#
$stack->sql(q{SELECT pg_create_physical_replication_slot('standby')});
$node->backup('base', backup_options => [ '-c', 'fast' ]);
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "primary_slot_name = 'standby'");
$standby->start;
$stack->write_wal(3);
$node->wait_for_catchup($standby);
my $lsn = $stack->sql('SELECT pg_current_wal_lsn()');
is( $standby->safe_psql($db, "SELECT datname, slot_name, current_lsn >= '$lsn', retained_wal_bytes IS NULL, active IS NULL, wal_free_bytes > 0 FROM $view"),
	"$db|electric_cm_$db|t|t|t|t", 'standby: the view shows how far it is');
is($standby->safe_psql($db, 'SELECT count(*) FROM electric_cm_retained_wal_history'), 0, 'standby: there is no history');
is($standby->safe_psql($db, 'SELECT electric_cm_retained_wal_plot()'), q{There are no samples of this database's slot yet.},
	'standby: and no plot');
$standby->safe_psql($db, q{SELECT pg_create_physical_replication_slot('cascade', true)});
like($standby->safe_psql($db, 'SELECT slot_name, verdict FROM electric_cm_slots'), qr/^cascade\|idle and holding \d+ (?:bytes|kB|MB)$/,
	'standby: its slots are shown');
$standby->stop;

$node->stop;
done_testing();
