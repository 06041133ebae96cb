# Gaps in the stream while others write to tables of every kind: a handle lives, also
# when the next gap comes before one is closed, and the server crashes.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use ElectricCM::Kinds qw(make_kinds start_changes stop_changes);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.debug_piece_rows = 10
electric_cm.reconnect_initial_delay = 50ms
electric_cm.reconnect_max_delay = 1s
max_prepared_transactions = 2
deadlock_timeout = '20 ms'
});
my $node = $stack->node;

make_kinds($stack);
ok($stack->active, 'active') or BAIL_OUT('no stack');
$stack->sql(q{SELECT electric_cm_create_shape(relation) FROM kind},
	q{SELECT electric_cm_create_shape('wholly', 'n % 3 = ' || i) FROM generate_series(0, 2) i},
	q{SELECT electric_cm_create_shape('wholly', 'n = ' || i) FROM generate_series(0, 9) i},
	q{SELECT electric_cm_create_shape('number', columns => '{id,n}')});
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all shapes are live');
$stack->sql('CREATE TABLE was AS SELECT handle, last_offset FROM electric_cm_shapes WHERE last_offset IS NOT NULL');

# However soon the stack comes back to it
sub drop_slot
{
	$stack->sql(q{DO $$
	BEGIN
		LOOP
			BEGIN
				PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL;
				PERFORM pg_drop_replication_slot(slot_name) FROM pg_replication_slots;
				EXIT;
			EXCEPTION WHEN object_in_use THEN
				NULL;
			END;
		END LOOP;
	END $$});
	return;
}
sub comparing { $stack->becomes(q{SELECT count(*) > 3 FROM _electric_cm.reading_piece p WHERE EXISTS
	(SELECT FROM _electric_cm.shape s JOIN _electric_cm.shape_state t ON t.shape = s.id WHERE s.reading = p.reading AND t.gap_lsn IS NOT NULL)}); return; }

# If a command and a change wait for each other, it is the change that is rolled back.
my $patient = q{SET deadlock_timeout = '1 h'};
my @faults = (
	[ 'the slot is dropped', sub { drop_slot() } ],
	[ 'likewise, and again while logs are compared', sub { drop_slot(); comparing(); drop_slot() } ],
	[ 'the server is killed while logs are compared', sub {
		drop_slot();
		comparing();
		$node->stop('immediate');
		$node->start } ],
	[ 'a transaction is prepared before, and committed behind', sub {
		# the slot is made when it has ended, so this lies in the gap
		$stack->sql('SELECT electric_cm_stop()');
		$stack->sql('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots',
			q{BEGIN; SELECT change() FROM generate_series(1, 20); PREPARE TRANSACTION 'gap'}, 'SELECT electric_cm_start()');
		$stack->becomes('SELECT pinned_by IS NOT NULL OR waiting_for IS NOT NULL FROM electric_cm_stat_replication, electric_cm_stat_manager');
		$stack->sql(q{COMMIT PREPARED 'gap'}) } ],
	[ 'TRUNCATE and reload', sub {
		$stack->sql($patient, 'CREATE TABLE kept AS SELECT * FROM parted',
			'BEGIN; TRUNCATE parted, word; INSERT INTO parted SELECT * FROM kept WHERE id % 5 <> 0; COMMIT') } ],
	[ 'a column is added, while slots are dropped', sub {
		$stack->sql($patient, 'ALTER TABLE many ADD extra int DEFAULT 3', 'ALTER TABLE parted ADD extra int');
		drop_slot();
		$stack->sql($patient, 'ALTER TABLE number ADD extra text') } ],
	[ 'electric_cm_resync() is called', sub { $stack->sql('SELECT electric_cm_resync()') } ],
	[ 'a consumer is killed while logs are compared', sub {
		drop_slot();
		comparing();
		$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ 'electric_cm consumer'}) } ],
);
for my $fault (@faults)
{
	my ($what, $strike) = @{$fault};
	my $load = start_changes($stack);
	$strike->();
	$stack->active;
	$stack->settle;
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, "$what: all are live")
	  or diag($stack->sql("SELECT handle, relation, state, last_error, waiting_for FROM electric_cm_shapes WHERE state <> 'live'"));
	stop_changes($stack, $load);
	$stack->settle;
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'});
	for (split /\n/, $stack->sql(q{
		SELECT handle, relation, coalesce(where_clause, ''), entries, c.rows, coalesce(wrong, '') FROM electric_cm_shapes s,
			LATERAL ecm_test.compare(handle, relation::text, where_clause, columns) c ORDER BY 2, 3}))
	{
		my ($handle, $table, $clause, $entries, $nrows, $wrong) = split /\|/, $_, 6;
		is($wrong, '', "... $table $clause, $entries entries, $nrows rows");
	}
}
is($stack->sql('SELECT count(*) FROM was JOIN electric_cm_shapes USING (handle)'), $stack->sql('SELECT count(*) FROM was'), 'all handles live');
is($stack->sql(q{SELECT count(*) FROM was WHERE NOT (SELECT count(*) FROM electric_cm_shape_log(handle, last_offset))
	BETWEEN 1 AND (SELECT count(*) - 1 FROM electric_cm_shape_log(handle))}), 0, '... and all offsets: each has entries before it, and behind it');
is($stack->events('shape_errored') + $stack->events('shape_invalidated'), 0, 'no shape has ended');
is($stack->sql('SELECT count(*) FROM _electric_cm.shape_gap WHERE closed_at IS NULL'), 0, 'no gap is left open');
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|terminated by signal/, 'nothing has crashed');
$node->stop;
done_testing();
