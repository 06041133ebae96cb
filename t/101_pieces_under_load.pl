# Tables are read in pieces of a few rows while others write to them: each shape's
# log replays to its table, whatever its key is, and whatever moves from one piece
# into another.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use ElectricCM::Kinds qw(make_kinds start_changes stop_changes);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.debug_piece_rows = 3
deadlock_timeout = '20 ms'
});
my $node = $stack->node;

make_kinds($stack);
ok($stack->active, 'active') or BAIL_OUT('no stack');
my $load = start_changes($stack);

sub inserted { my ($table) = @_; return $stack->sql("SELECT n_tup_ins FROM pg_stat_all_tables WHERE relname = '$table'"); }

for my $round (1 .. 3)
{
	$stack->sql("SELECT electric_cm_create_shape(relation) FROM kind");
	$stack->sql("SELECT electric_cm_create_shape('wholly', 'n % 3 = ' || i) FROM generate_series(0, 2) i");
	$stack->sql("SELECT electric_cm_create_shape('wholly', 'n = ' || i) FROM generate_series(0, 9) i");
	if ($round == 2)
	{
		# the next consumer judges from the beginning, and goes on
		$stack->becomes("SELECT count(*) > 5 FROM _electric_cm.reading_piece", 'some pieces are read');
		$stack->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ 'electric_cm consumer'});
	}
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'}, "all shapes are live, $round")
	  or diag($stack->sql("SELECT handle, relation, state, last_error, waiting_for FROM electric_cm_shapes WHERE state <> 'live'"));
	last if $round == 3 && $stack->becomes("SELECT n_tup_ins > 20 FROM pg_stat_all_tables WHERE relname = 'reading_again'");
	$stack->sql('SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes');
}
stop_changes($stack, $load);
cmp_ok(inserted('reading_piece'), '>', 500, 'many pieces were read');
note(inserted('reading_again') . ' keys were read again');

$stack->settle;
for (split /\n/, $stack->sql(q{
	SELECT handle, relation, coalesce(where_clause, ''), entries, c.rows, coalesce(wrong, '') FROM electric_cm_shapes s,
		LATERAL ecm_test.compare(handle, relation::text, where_clause, NULL) c ORDER BY 2, 3}))
{
	my ($handle, $table, $clause, $entries, $nrows, $wrong) = split /\|/, $_, 6;
	is($wrong, '', "replays: $table $clause, $entries entries, $nrows rows");
}
is($stack->sql('SELECT count(*) FROM _electric_cm.reading_again'), 0, 'nothing is left to be read again');
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|terminated by signal/, 'nothing has crashed');
$node->stop;
done_testing();
