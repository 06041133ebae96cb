# electric_cm.set_replica_identity: tables whose shapes need REPLICA IDENTITY FULL
# get it, without anybody waiting for that, where it is for us to do so.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "electric_cm.set_replica_identity = on\n");
my $node = $stack->node;

sub identity { return $stack->sql("SELECT relreplident FROM pg_class WHERE oid = '$_[0]'::regclass"); }
sub state_of
{
	my ($rc, $stdout, $stderr) = $node->psql($db, "\\set VERBOSITY sqlstate\n" . join(";\n", @_));
	return $rc == 0 ? 'none' : $stderr =~ /ERROR:  (\w{5})/ ? $1 : $stderr;
}
sub replays
{
	my ($handle, $table, $where, $what) = @_;
	my ($ok, $entries) = $stack->replay_equals($handle, $table, ['id'], defined $where ? (where => $where) : ());
	ok($ok, "$what ($entries entries)");
	return;
}

$stack->sql(
	'CREATE EXTENSION electric_cm',
	'CREATE ROLE owner', 'CREATE ROLE guest',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO owner, guest',
	'CREATE TABLE t (id int PRIMARY KEY, a int, big text)',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL',
	q{INSERT INTO t SELECT i, i % 3, repeat(i::text, 3000) FROM generate_series(1, 30) i});
$stack->active or BAIL_OUT('no stack');

# a shape that needs nothing changes nothing, and goes on when another one needs it
my $whole = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->is_live($whole, 'a shape of the whole table');
is(identity('t'), 'd', '... leaves the replica identity alone');
my $keyed = $stack->sql(q{SELECT electric_cm_create_shape('t', 'id > 10', '{id,a}')});
$stack->is_live($keyed, 'a shape with a where clause on the key');
is(identity('t'), 'd', '... too');
$stack->sql('UPDATE t SET a = a + 1 WHERE id < 20');
my $where = $stack->sql(q{SELECT electric_cm_create_shape('t', 'a > 1')});
$stack->is_live($where, 'a shape with a where clause on another column');
is(identity('t'), 'f', '... has it set to FULL');
$stack->sql('UPDATE t SET a = a % 3 WHERE id > 5', 'UPDATE t SET id = id + 100 WHERE id > 25', 'DELETE FROM t WHERE id % 7 = 0',
	q{INSERT INTO t SELECT i, i % 4, 'x' FROM generate_series(200, 220) i}, 'SELECT electric_cm_await_flushed()');
replays($where, 't', 'a > 1', 'it has its rows');
replays($whole, 't', undef, 'the whole one goes on');
my ($ok, $entries) = $stack->replay_equals($keyed, 't', ['id'], where => 'id > 10', columns => [qw(id a)]);
ok($ok, "and so does the other ($entries entries)");
is($stack->sql(q{SELECT count(*) FROM electric_cm_shapes WHERE state = 'live'}), '3', 'they are the same shapes');

# a value that was stored out of line when that was still so for its column, or is in a partition
$stack->sql(
	'CREATE TABLE s (id int PRIMARY KEY, v text)', 'ALTER TABLE s ALTER v SET STORAGE EXTERNAL',
	q{INSERT INTO s VALUES (1, repeat('x', 5000)), (2, repeat('y', 5000))}, 'ALTER TABLE s ALTER v SET STORAGE PLAIN',
	'CREATE TABLE sp (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'ALTER TABLE sp ALTER v SET STORAGE PLAIN',
	'CREATE TABLE sp1 PARTITION OF sp DEFAULT', 'ALTER TABLE sp1 ALTER v SET STORAGE EXTERNAL',
	q{INSERT INTO sp VALUES (1, repeat('x', 5000))});
my %moved_in = map { $_ => $stack->sql("SELECT electric_cm_create_shape('$_', 'id > 10')") } qw(s sp);
$stack->is_live($moved_in{$_}, "a shape of $_, whose column's storage is plain now") for qw(s sp);
is(identity('s') . identity('sp1'), 'ff', '... has it set to FULL');
$stack->sql((map { "UPDATE $_ SET id = 11 WHERE id = 1" } qw(s sp)), 'SELECT electric_cm_await_flushed()');
replays($moved_in{$_}, $_, 'id > 10', '... and has the row that moves into it') for qw(s sp);

# should such a row lack a value all the same, the shape finds it in the table
my $others = $stack->sql(q{SELECT electric_cm_create_shape('s')});
my $short = $stack->sql(q{SELECT electric_cm_create_shape('s', 'id > 10', '{id}')});
$stack->is_live($_, 'a shape that needs no such value') for $others, $short;
$stack->sql(q{UPDATE pg_class SET relreplident = 'd' WHERE oid = 's'::regclass}, 'UPDATE s SET id = 12 WHERE id = 2', 'UPDATE s SET id = 13 WHERE id = 12',
	'SELECT electric_cm_await_flushed()');
$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$moved_in{s}'", 'a row that lacks a value: the shape is live again');
replays($moved_in{s}, 's', 'id > 10', '... and has the value');
is( $stack->sql("SELECT DISTINCT detail FROM electric_cm_events WHERE event = 'shape_resynced' AND message LIKE '%$moved_in{s}%'"),
	'an update moved a row into the shape, and the stream lacks its value of column "v", which needs REPLICA IDENTITY FULL', '... and an event says why');
replays($others, 's', undef, '... and not the others');
($ok, $entries) = $stack->replay_equals($short, 's', ['id'], where => 'id > 10', columns => ['id']);
ok($ok, "... which go on ($entries entries)");

# a column comes for which FULL would be needed: neither that command nor a later one costs the
# shape, nor does one that is not live yet wait for anybody to set it
$stack->sql(
	'CREATE TABLE grows (id int PRIMARY KEY, n int)', 'INSERT INTO grows SELECT i, i FROM generate_series(1, 20) i');
$stack->sql('ALTER SYSTEM SET electric_cm.set_replica_identity = off', 'SELECT pg_reload_conf()');
$stack->becomes(q{SELECT current_setting('electric_cm.set_replica_identity') = 'off'}, 'nobody sets FULL');
my $early = $stack->live_shape('grows', where => 'id > 10');
my $altering = $node->background_psql($db);
$altering->query_safe('BEGIN; UPDATE grows SET n = 0 WHERE id = 1');
my $coming = $stack->sql(q{SELECT electric_cm_create_shape('grows', 'id > 12')});
$altering->query_safe('ALTER TABLE grows ADD v text; ALTER TABLE grows ALTER v SET STORAGE EXTERNAL; COMMIT');
$altering->quit;
$stack->becomes("SELECT bool_and(state = 'live') FROM electric_cm_shapes WHERE handle IN ('$early', '$coming')",
	'a column comes whose values may be TOASTed: the shapes are live');
$stack->sql('ALTER TABLE grows ALTER n SET DEFAULT 1', q{UPDATE grows SET v = repeat('z', 5000)}, 'UPDATE grows SET id = 30 WHERE id = 1',
	'SELECT electric_cm_await_flushed()');
for my $handle ($early, $coming)
{
	$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'", '... also after another command, and a row that moves in');
	replays($handle, 'grows', $handle eq $early ? 'id > 10' : 'id > 12', '... and has the row');
}
$stack->sql('ALTER TABLE grows REPLICA IDENTITY FULL', 'ALTER TABLE grows REPLICA IDENTITY DEFAULT');
is($stack->sql("SELECT count(*) FROM electric_cm_shapes WHERE handle IN ('$early', '$coming')"), '0', '... but not after one that sets another identity');
$stack->sql('ALTER SYSTEM RESET electric_cm.set_replica_identity', 'SELECT pg_reload_conf()');
$stack->becomes(q{SELECT current_setting('electric_cm.set_replica_identity') = 'on'}, 'FULL is set again');

# nobody waits
$stack->sql('CREATE TABLE busy (id int PRIMARY KEY, a int)', 'INSERT INTO busy SELECT i, i FROM generate_series(1, 10) i');
my $reader = $node->background_psql($db);
$reader->query_safe('BEGIN; SELECT * FROM busy');
my $busy = $stack->sql(q{SELECT electric_cm_create_shape('busy', 'a > 5')});
$stack->becomes("SELECT waiting_for LIKE '%lock timeout%' FROM electric_cm_shapes WHERE handle = '$busy'",
	'somebody reads the table for long: the lock is not waited for');
is(identity('busy'), 'd', '... and nothing has changed');
is($stack->sql(q{SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'busy'::regclass}), '0', '... nor is it published');
sub attempts { return scalar(() = slurp_file($node->logfile) =~ /canceling statement due to lock timeout/g); }
my $before = attempts();
my $written = 0;
while (attempts() < $before + 2)
{
	# twenty times as long as it may take
	last if state_of(q{SET lock_timeout = '2 s'}, 'INSERT INTO busy SELECT max(id) + 1, 10 FROM busy') ne 'none';
	$written++;
}
cmp_ok($written, '>', 0, "the application goes on writing ($written times during two more attempts)");
is($stack->sql(q{SELECT count(*) FROM busy}), 10 + $written, '... each time');
$reader->query_safe('COMMIT');
$reader->quit;
$stack->is_live($busy, 'when the reader is done, the shape is created');
is(identity('busy'), 'f', '... with the replica identity');
$stack->sql('UPDATE busy SET a = 20 - a', 'SELECT electric_cm_await_flushed()');
replays($busy, 'busy', 'a > 5', '... and has its rows');

# partitions: each that needs it; all at once or none
$stack->sql(
	'CREATE TABLE p (id int, k int, a int, PRIMARY KEY (id, k)) PARTITION BY LIST (k)',
	'CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)',
	'CREATE TABLE "P 2" PARTITION OF p FOR VALUES IN (2, 3) PARTITION BY LIST (k)',
	'CREATE TABLE p2 PARTITION OF "P 2" FOR VALUES IN (2)',
	'CREATE TABLE "p 3" PARTITION OF "P 2" FOR VALUES IN (3)',
	'ALTER TABLE p1 REPLICA IDENTITY FULL',
	'INSERT INTO p SELECT i, 1 + i % 3, i FROM generate_series(1, 30) i');
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN; SELECT * FROM "p 3"');
my $parted = $stack->sql(q{SELECT electric_cm_create_shape('p', 'a > 10')});
$stack->becomes("SELECT waiting_for LIKE '%lock timeout%' FROM electric_cm_shapes WHERE handle = '$parted'", 'one partition is busy');
is(identity('p2'), 'd', '... so that no other is changed either');
$holder->query_safe('COMMIT');
$holder->quit;
$stack->is_live($parted, 'a shape of a partitioned table');
is(join('', map { identity($_) } ('p', 'p1', '"P 2"', 'p2', '"p 3"')), 'dfdff', '... has it set on its leaves');
$stack->sql('UPDATE p SET a = 30 - a', 'UPDATE p SET k = 1 + k % 3', 'SELECT electric_cm_await_flushed()');
replays($parted, 'p', 'a > 10', '... and has its rows');

# whose table it is
$stack->sql('CREATE TABLE theirs (id int PRIMARY KEY, a int)', 'ALTER TABLE theirs OWNER TO owner', 'GRANT SELECT ON theirs TO guest',
	'ALTER PUBLICATION electric_cm_publication ADD TABLE theirs');
my $guests = q{SELECT electric_cm_create_shape('theirs', 'a > 1')};
is(state_of('SET ROLE guest', $guests), '42501', 'only for the owner of the table');
is(identity('theirs'), 'd', '... not for others');
my $owners = $stack->sql('SET ROLE owner', $guests);
$stack->is_live($owners, q{the owner's shape});
is(state_of('SET ROLE guest', $guests), 'none', 'once it is set, others can have such shapes');

# not where that would make the application's updates fail, or is not wanted
$stack->sql('CREATE TABLE listed (id int PRIMARY KEY, a int, b int)', 'CREATE PUBLICATION lists FOR TABLE listed (id, a)');
is(state_of(q{SELECT electric_cm_create_shape('listed', 'a > 1')}), '0A000', 'not where another publication has a column list');
$stack->sql(q{ALTER PUBLICATION lists SET (publish = 'insert')});
$stack->is_live($stack->sql(q{SELECT electric_cm_create_shape('listed', 'a > 1')}), '... unless it publishes no updates');
$stack->sql('INSERT INTO listed VALUES (1, 2, 3)', 'UPDATE listed SET a = 3', 'DELETE FROM listed');
$stack->sql('CREATE TABLE lp (id int PRIMARY KEY, a int) PARTITION BY RANGE (id)', 'CREATE TABLE lp1 PARTITION OF lp DEFAULT',
	'CREATE PUBLICATION lists2 FOR TABLE lp (id) WITH (publish_via_partition_root = true)');
is(state_of(q{SELECT electric_cm_create_shape('lp', 'a > 1')}), '0A000', '... also for what it is a partition of');
$stack->sql('CREATE TABLE indexed (id int PRIMARY KEY, a int, b int NOT NULL UNIQUE)', 'ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_b_key');
is(state_of(q{SELECT electric_cm_create_shape('indexed', 'a > 1')}), '55000', 'not where the key would become another one');
$stack->sql('CREATE TABLE manual (id int PRIMARY KEY, a int)', 'ALTER PUBLICATION electric_cm_publication ADD TABLE manual');
is(state_of('SET electric_cm.manual_table_publishing = on', q{SELECT electric_cm_create_shape('manual', 'a > 1')}), '55000',
	'not with electric_cm.manual_table_publishing');
is(state_of('SET electric_cm.set_replica_identity = off', q{SELECT electric_cm_create_shape('manual', 'a > 1')}), '55000', 'not if it is off');
is(state_of('SET ROLE guest', 'SET electric_cm.set_replica_identity = off'), '42501', 'which not everybody can change');
is(identity('manual'), 'd', '... and nothing has changed');

# a right that is lost while the shape is being created
$stack->sql('CREATE TABLE late (id int PRIMARY KEY, a int)', 'ALTER TABLE late OWNER TO owner');
$holder = $node->background_psql($db);
$holder->query_safe('BEGIN; SELECT * FROM late');
my $late = $stack->sql('SET ROLE owner', q{SELECT electric_cm_create_shape('late', 'a > 1')});
$stack->becomes("SELECT waiting_for LIKE '%lock timeout%' FROM electric_cm_shapes WHERE handle = '$late'");
$holder->query_safe('ALTER TABLE late OWNER TO guest');
$holder->query_safe('COMMIT');
$holder->quit;
$stack->becomes("SELECT waiting_for LIKE 'must be owner%' FROM electric_cm_shapes WHERE handle = '$late'",
	q{not any more once the shape's owner has lost the table});
is(identity('late'), 'd', '... and nothing has changed');
$stack->sql('ALTER TABLE late OWNER TO owner');
$stack->is_live($late, '... until he has it back');

# what one shape lacks is not the others' problem
$stack->sql('CREATE TABLE mixed (id int PRIMARY KEY, a int)', 'ALTER TABLE mixed OWNER TO owner', 'GRANT SELECT ON mixed TO owner, guest',
	'ALTER TABLE mixed REPLICA IDENTITY FULL', 'INSERT INTO mixed SELECT i, i FROM generate_series(1, 10) i');
$stack->sql('SELECT electric_cm_stop()');
my @plain = map { $stack->sql("SELECT electric_cm_create_shape('mixed', 'id > $_')") } 1 .. 5;
my $lacking = $stack->sql('SET ROLE owner', q{SELECT electric_cm_create_shape('mixed', 'a > 1')});
$stack->sql('ALTER TABLE mixed REPLICA IDENTITY DEFAULT', 'ALTER TABLE mixed OWNER TO guest', 'GRANT SELECT ON mixed TO owner');
$stack->sql('SELECT electric_cm_start()');
$stack->is_live($_, 'a shape of the same batch') for @plain;
$stack->becomes("SELECT waiting_for LIKE 'must be owner%' FROM electric_cm_shapes WHERE handle = '$lacking'",
	'only the one that needs another replica identity waits');
is(identity('mixed'), 'd', '... which is not set');
$stack->sql('ALTER TABLE mixed OWNER TO owner');
$stack->is_live($lacking, '... until it is for us to set');

# another session's command meanwhile: no deadlock, and it is not in its way
$stack->sql('CREATE TABLE fought (id int PRIMARY KEY, a int)');
$holder = $node->background_psql($db);
$holder->query_safe('BEGIN; LOCK TABLE fought IN SHARE UPDATE EXCLUSIVE MODE');
my $fought = $stack->sql(q{SELECT electric_cm_create_shape('fought', 'a > 1')});
$stack->becomes("SELECT waiting_for LIKE '%lock timeout%' FROM electric_cm_shapes WHERE handle = '$fought'");
$holder->query_safe('ALTER TABLE fought ADD COLUMN b int');
$holder->query_safe('COMMIT');
$holder->quit;
$stack->is_live($fought, 'DDL does not end a shape that waits for its table');
$stack->sql('INSERT INTO fought VALUES (1, 2, 3), (2, 0, 3)');
$stack->replays($fought, 'fought', '... which has the new column, too', where => 'a > 1');
$stack->is_live($stack->sql(q{SELECT electric_cm_create_shape('fought', 'a > 1')}), 'which can be created again');
ok($stack->active, 'and the stack is active');

$node->stop;
done_testing();
