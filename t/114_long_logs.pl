# More long logs are to be compared with tables than a session keeps.  All of them come
# to an end, the shortest ones first, and hold up no table that is read for new shapes.
use strict;
use warnings;

use ElectricCM qw(new_stack source_constant);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# One session at a time reads pieces, and reads logs in steps of half a megabyte
my $stack = new_stack('main', conf => q{
maintenance_work_mem = '1 MB'
electric_cm.pool_size = 2
electric_cm.debug_piece_rows = 100
electric_cm.reconnect_initial_delay = 50ms
});
my $kept = source_constant('ECM_MAX_KEPT_LOGS');

$stack->sql('CREATE EXTENSION electric_cm');
$stack->install_compare;
for my $table ('t', 'short', 'new')
{
	$stack->sql("CREATE TABLE $table (id int PRIMARY KEY, n int, big text)",
		"ALTER TABLE $table ALTER big SET STORAGE EXTERNAL",
		"INSERT INTO $table SELECT i, 0, repeat(md5(i::text), 190) FROM generate_series(1, " . ($table eq 't' ? 400 : 300) . ') i');
}
$stack->sql('ALTER TABLE t REPLICA IDENTITY FULL');
ok($stack->active, 'active');

# Some of one table, as each has a clause of its own, and the last one has the shortest log
my @shapes = map { [ 't', "id > -$_" ] } 1 .. $kept + 3;
push @shapes, [ 'short', undef ];
my @handles = map { $stack->shape($_->[0], where => $_->[1]) } @shapes;
$stack->is_live($_) for @handles;
$stack->sql('UPDATE t SET n = n + 1 WHERE id % 3 = 0', 'UPDATE short SET n = n + 1');
$stack->settle;

# What differs was changed while nobody listened
$stack->sql('SELECT electric_cm_stop()', 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots',
	'DELETE FROM t WHERE id % 7 = 0', 'UPDATE t SET n = 5 WHERE id % 11 = 0', q{INSERT INTO short VALUES (1000, 1, 'x')},
	'SELECT electric_cm_start()');
ok($stack->active, 'active again');
$stack->becomes(q{SELECT count(*) > 0 FROM electric_cm_shapes WHERE waiting_for ~ 'shorter logs come first'}, 'some wait for others');
my $new = $stack->shape('new');
$stack->is_live($new);
cmp_ok($stack->sql(q{SELECT count(*) FROM electric_cm_shapes WHERE state = 'resyncing'}), '>', 1, 'a new shape does not wait for them');
$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, 'all come to an end');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shape_resynced'}), scalar @handles, '... once each');
cmp_ok($stack->sql(qq{SELECT count(*) FROM electric_cm_events WHERE event = 'shape_resynced' AND occurred_at <=
	(SELECT min(occurred_at) FROM electric_cm_events WHERE event = 'shape_resynced' AND message ~ '$handles[-1]')}), '<=', $kept,
	'... the shortest log among the first');
for my $i (0 .. $#shapes)
{
	is($stack->sql("SELECT wrong FROM ecm_test.compare('$handles[$i]', '$shapes[$i][0]', " . ($shapes[$i][1] ? "'$shapes[$i][1]'" : 'NULL') . ', NULL)'), '',
		"... $shapes[$i][0] " . ($shapes[$i][1] // ''));
}
is($stack->events('shape_errored') + $stack->events('shape_creation_failed'), 0, 'nothing has failed');
done_testing();
