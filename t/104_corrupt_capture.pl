# While a table is read in pieces, what was captured of one shape turns out to be
# corrupt: that shape ends, and nothing else.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.debug_piece_rows = 1\n");
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, n int)', 'CREATE TABLE other (id int PRIMARY KEY, n int)');
$stack->sql("INSERT INTO $_ SELECT i, 0 FROM generate_series(1, 300) i") for qw(t other);
ok($stack->active, 'active') or BAIL_OUT('no stack');

my $changer = $node->background_psql($stack->db);
my $holder = $node->background_psql($stack->db);
my ($bad, $good) = ($stack->shape('t'), $stack->shape('other'));
my $consumers = q{SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE backend_type = 'electric_cm consumer'};
my $before = $stack->sql($consumers);

# Reading waits behind the lock, with some pieces read.  The change is committed then,
# and the next session in turn, which has the lock at once, is not the pool's.
$stack->becomes(q{SELECT count(*) > 5 FROM _electric_cm.reading_piece JOIN _electric_cm.shape USING (reading) WHERE relation = 't'::regclass}, 'some pieces are read');
$changer->query_safe('BEGIN');
$changer->query_safe('LOCK TABLE t');
$changer->query_safe('UPDATE t SET n = n + 1') for 1 .. 5;
$holder->query_until(qr/asked/, "\\echo asked\nBEGIN; LOCK TABLE t;\n\\echo held\n");
$stack->becomes(q{SELECT coalesce(min(waitstart) FILTER (WHERE mode = 'AccessExclusiveLock') <
	min(waitstart) FILTER (WHERE mode <> 'AccessExclusiveLock'), false)
	FROM pg_locks WHERE relation = 't'::regclass AND NOT granted}, 'the pool waits behind who holds the table next');
$changer->query_safe('COMMIT');
my $captured = "FROM _electric_cm.shape_log WHERE captured_xid IS NOT NULL AND shape = (SELECT id FROM _electric_cm.shape WHERE relation = 't'::regclass)";
$stack->becomes("SELECT count(*) > 1 $captured", 'the change is captured, in some chunks');
is($stack->state_of($bad), 'creating', 'the shape is being created');
$stack->sql("UPDATE _electric_cm.shape_log SET data = '\\x0000' WHERE (shape, first_lsn, first_op) IN (SELECT shape, first_lsn, first_op $captured ORDER BY 2, 3 LIMIT 1)");
$holder->query_safe('ROLLBACK');

$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$bad'", 'the shape ends');
like($stack->error_of($bad), qr/log of shape .* is corrupt/, 'and says why');
$stack->is_live($good, 'another one goes on');
is($stack->sql($consumers), $before, 'no consumer has ended');
$stack->replays($good, 'other', 'and replays');
$_->quit for ($changer, $holder);
$node->stop;
done_testing();
