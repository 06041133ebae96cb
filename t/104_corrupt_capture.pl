# While a table is read in pieces, what was captured of one shape turns out to be
# corrupt, or what it asks for can't be read: that shape ends, and nothing else.
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

# A key that is to be read again, and can't be
my $asks = $stack->shape('t', where => 'id > 0');
$stack->becomes("SELECT count(*) > 5 FROM _electric_cm.reading_piece JOIN _electric_cm.shape USING (reading) WHERE handle = '$asks'");
$stack->sql("INSERT INTO _electric_cm.reading_again (shape, lsn, op, generation, key)
	SELECT id, '0/1', 0, generation, '{no number}' FROM _electric_cm.shape WHERE handle = '$asks'");
$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$asks'", 'a key that can not be read again ends its shape');
like($stack->error_of($asks), qr/invalid input syntax for type integer/, '... which says why');
is($stack->state_of($good), 'live', '... and no other');
$stack->sql("SELECT electric_cm_drop_shape('$asks')");
$stack->seen('NOT EXISTS (SELECT FROM _electric_cm.reading_again)', 'and nothing of it is left');

# A key is asked for twice, and the answers come one after the other.  The row changes
# in between: when the consumer has used the first answer, and not committed that yet.
$stack->sql('CREATE TABLE moves (id int PRIMARY KEY, n int, big text)', 'ALTER TABLE moves ALTER big SET STORAGE EXTERNAL',
	q{INSERT INTO moves SELECT i, i, repeat(i::text, 2500) FROM generate_series(1, 300) i WHERE i <> 5},
	q{CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN UPDATE public.moves SET big = repeat('new', 2500) WHERE id = 5 AND big !~ 'new'; RETURN NULL; END $$},
	'CREATE TRIGGER t AFTER DELETE ON _electric_cm.reading_again FOR EACH ROW EXECUTE FUNCTION change()');
my $moves = $stack->shape('moves');
$stack->becomes("SELECT count(*) > 10 FROM _electric_cm.reading_piece JOIN _electric_cm.shape USING (reading) WHERE handle = '$moves'");
$changer->query_safe('BEGIN; LOCK TABLE _electric_cm.reading IN EXCLUSIVE MODE');
$stack->sql('UPDATE moves SET id = 5 WHERE id = 290',
	'DELETE FROM moves WHERE id = 295', 'UPDATE moves SET id = 295 WHERE id = 5', 'UPDATE moves SET id = 5 WHERE id = 291');
is($stack->sql("SELECT count(*) FROM _electric_cm.reading_piece JOIN _electric_cm.shape USING (reading) WHERE handle = '$moves' AND upto[1]::int >= 290"),
	'0', 'a key that has been read gets rows that have not');
$changer->query_safe('COMMIT');
$stack->is_live($moves);
cmp_ok($stack->sql(q{SELECT n_tup_ins FROM pg_stat_all_tables WHERE relname = 'reading_again'}), '>', 2, 'it is asked for twice');
is($stack->sql(q{SELECT left(big, 3) FROM moves WHERE id = 5}), 'new', 'the row changes in between');
$stack->settle;
$stack->replays($moves, 'moves', 'nothing of it is lost');
$_->quit for ($changer, $holder);
$node->stop;
done_testing();
