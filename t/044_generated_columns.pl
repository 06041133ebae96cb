# Generated columns: what is in the stream is in shapes, what is not is left out,
# and no shape makes the application's UPDATE or DELETE fail.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.status_check_interval = '1 s'\nelectric_cm.reconnect_initial_delay = '50 ms'\n");
my $node = $stack->node;
my $pub = 'electric_cm_publication';
my $streamed = $node->pg_version >= 18;

sub is_published
{
	return $stack->sql("SELECT count(*) FROM pg_publication_tables WHERE pubname = '$pub' AND tablename = '$_[0]'");
}
sub refused { my ($sql, $like, $what) = @_; return like($stack->error_of_sql($sql), $like, $what); }
sub goes_on
{
	my ($table, $what) = @_;
	my ($rc, $out, $err) = $node->psql($stack->db, "UPDATE $table SET a = a + 1000; DELETE FROM $table WHERE id = (SELECT min(id) FROM $table)");
	is($err, '', "UPDATE and DELETE of $table: $what");
	return;
}
# A command leads to a comparison, and who has read a part goes on
sub resyncs
{
	my ($handle, $table, $what, $reason, @commands) = @_;
	my $reader = $stack->reader($handle);
	$stack->sql(@commands);
	$stack->resyncs($reader, "detail = '" . ($reason =~ s/'/''/gr) . "'", $table, $what, command => 1);
	goes_on($table, $what);
	return $stack->goes_on($reader, $table, "$what: and the stream goes on");
}
my $columns_changed = q{the table's columns were changed};
sub ends
{
	my ($handle, $what) = @_;
	return $stack->becomes("SELECT NOT EXISTS (SELECT FROM electric_cm_shapes WHERE handle = '$handle')", $what);
}

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE full_s (id int PRIMARY KEY, a int, s int GENERATED ALWAYS AS (a * 2) STORED)',
	'ALTER TABLE full_s REPLICA IDENTITY FULL', 'CREATE TABLE key_s (a int, id int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY, v text)',
	'INSERT INTO full_s SELECT i, i FROM generate_series(1, 20) i', 'INSERT INTO key_s SELECT i FROM generate_series(1, 20) i');
$stack->active or BAIL_OUT('no stack');

my $whole = $stack->live_shape('full_s');
goes_on('full_s', 'FULL, and a stored column');
$stack->sql('UPDATE full_s SET a = -a WHERE id % 3 = 0');
$stack->settle;
is($stack->sql("SELECT bool_and(value ? 's') FROM electric_cm_shape_log('$whole') WHERE operation <> 'delete'"), $streamed ? 't' : 'f',
	$streamed ? 'its stored column is in snapshot and log' : 'it is left out of snapshot and log');
$stack->replays($whole, 'full_s', 'the shape has the rows of the table');

if (!$streamed)
{
	my $detail = qr/0A000.*DETAIL:  Generated columns are replicated only if they are stored, and by PostgreSQL 18 or later\./s;
	refused(q{SELECT electric_cm_create_shape('full_s', 's > 5')}, $detail, 'it cannot be in a where clause');
	refused(q{SELECT electric_cm_create_shape('full_s', columns => '{id,s}')}, $detail, 'nor be asked for');
	refused(q{SELECT electric_cm_create_shape('key_s')}, $detail, 'nor be a key');
	resyncs($whole, 'full_s', 'a column that is not generated any more is one more column', $columns_changed, 'ALTER TABLE full_s ALTER s DROP EXPRESSION');
	is($stack->sql("SELECT bool_or(value ? 's') FROM electric_cm_shape_log('$whole')"), 't', '... which readers get');
	$node->stop;
	done_testing();
	exit;
}

# a stored column is like any other
my $where = $stack->sql(q{SELECT electric_cm_create_shape('full_s', 's > 5', '{id,s}')});
$stack->is_live($where, 'a stored column in a where clause');
my $keyed = $stack->live_shape('key_s');
goes_on('key_s', 'the key is generated');
goes_on('full_s', 'rows move in and out');
$stack->sql('UPDATE full_s SET a = 2010 - a', 'UPDATE key_s SET a = a + 100 WHERE id % 4 = 0', q{UPDATE key_s SET v = 'x'});
$stack->settle;
my ($ok, $entries) = $stack->replay_equals($where, 'full_s', ['id'], where => 's > 5', columns => [ 'id', 's' ]);
ok($ok, "it has its rows ($entries entries)");
$stack->replays($keyed, 'key_s', 'rows are told apart by a generated key');
$stack->replays($whole, 'full_s', 'the whole one goes on');

# changes of the column itself
$stack->sql('ALTER TABLE key_s ALTER id DROP EXPRESSION', 'INSERT INTO key_s VALUES (1, 1)');
$stack->settle;
is($stack->exists_shape($keyed), 1, 'DROP EXPRESSION changes nothing');
$stack->replays($keyed, 'key_s', '... and the shape goes on');
my $part_reader = $stack->reader($where);
resyncs($whole, 'full_s', 'SET EXPRESSION rewrites the column', $columns_changed, 'ALTER TABLE full_s ALTER s SET EXPRESSION AS (a * 3)');
$stack->resyncs($part_reader, 'true', 'full_s', '... also for a where clause', command => 1, where => 's > 5', columns => [ 'id', 's' ]);
resyncs($whole, 'full_s', 'a further stored column', $columns_changed, 'ALTER TABLE full_s ADD COLUMN more int GENERATED ALWAYS AS (a + 1) STORED');
is($stack->sql("SELECT bool_or(value ? 'more') FROM electric_cm_shape_log('$whole')"), 't', '... readers get it');
$stack->goes_on($part_reader, 'full_s', '... and those who have not asked for it, do not', where => 's > 5', columns => [ 'id', 's' ]);

# partitions, whose columns are in another order
$stack->sql('CREATE TABLE part (id int PRIMARY KEY, a int, s int GENERATED ALWAYS AS (a * 2) STORED) PARTITION BY RANGE (id)',
	'CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10)',
	'CREATE TABLE part_2 (s int GENERATED ALWAYS AS (a * 2) STORED, id int PRIMARY KEY, a int)', 'ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (100)',
	'ALTER TABLE part_1 REPLICA IDENTITY FULL', 'ALTER TABLE part_2 REPLICA IDENTITY FULL', 'INSERT INTO part SELECT i, i FROM generate_series(1, 20) i');
my $part = $stack->sql(q{SELECT electric_cm_create_shape('part', 's > 10')});
$stack->is_live($part, 'partitions with FULL and stored columns');
goes_on($_, 'a partition') for qw(part part_1 part_2);
$stack->sql('UPDATE part SET id = id + 30, a = 2010 - a WHERE id % 2 = 0 AND id < 8');
$stack->settle;
($ok, $entries) = $stack->replay_equals($part, 'part', ['id'], where => 's > 10');
ok($ok, "... have their rows ($entries entries)");

#
# Virtual columns
#
$stack->sql('CREATE TABLE v (id int PRIMARY KEY, a int, w int GENERATED ALWAYS AS (a * 2) VIRTUAL, big text)',
	'INSERT INTO v (id, a) SELECT i, i FROM generate_series(1, 20) i');
my $v = $stack->live_shape('v');
goes_on('v', 'a virtual column');
$stack->settle;
is($stack->sql("SELECT bool_or(value ? 'w') FROM electric_cm_shape_log('$v')"), 'f', 'a virtual column is left out of the shape');
my $detail = qr/0A000.*DETAIL:  Generated columns are replicated only if they are stored/s;
refused(q{SELECT electric_cm_create_shape('v', 'w > 5')}, $detail, '... cannot be in a where clause');
refused(q{SELECT electric_cm_create_shape('v', columns => '{id,w}')}, $detail, '... nor be asked for');
my $cannot = qr/0A000.*table "v" cannot have replica identity FULL.*"w" is virtual.*HINT:  Make that column STORED/s;
refused(q{SELECT electric_cm_create_shape('v', 'a > 5')}, $cannot, 'who needs FULL is not told to set what would break the application');
$stack->sql(q{ALTER SYSTEM SET electric_cm.set_replica_identity = on}, 'SELECT pg_reload_conf()');
refused(q{SELECT electric_cm_create_shape('v', 'a > 5')}, $cannot, '... nor is it set');
goes_on('v', 'nothing has changed');

# FULL, set by somebody else, before and after
$stack->sql('CREATE TABLE fv (LIKE v INCLUDING ALL)', 'INSERT INTO fv (id, a) SELECT i, i FROM generate_series(1, 20) i', 'ALTER TABLE fv REPLICA IDENTITY FULL');
refused(q{SELECT electric_cm_create_shape('fv')}, qr/0A000.*UPDATE and DELETE on "fv" fail.*HINT:.*ALTER TABLE public\.fv REPLICA IDENTITY DEFAULT/s,
	'FULL and a virtual column: no shape, since it would have to be published');
goes_on('fv', 'it is not published');
my $fv = $stack->sql('ALTER TABLE fv REPLICA IDENTITY DEFAULT', q{SELECT electric_cm_create_shape('fv')});
$stack->is_live($fv, 'what the hint says helps');
$stack->sql('ALTER TABLE fv REPLICA IDENTITY FULL');
goes_on('fv', 'FULL is set while it is published');
is(is_published('fv'), 0, '... so it has left the publication');
ends($fv, '... and the shape ends');
is($stack->events('shape_invalidated', q{detail = 'the table''s replica identity is FULL, and a generated column is virtual'}), 1, '... with that reason');

my $added = $stack->live_shape('full_s');
$stack->sql('ALTER TABLE full_s ADD COLUMN w int GENERATED ALWAYS AS (a + 7) VIRTUAL');
goes_on('full_s', 'a virtual column is added to a table with FULL');
is(is_published('full_s'), 0, '... so it has left the publication');
ends($added, '... and the shape ends');

# between the declaration of a shape and its table's publishing
$stack->sql('CREATE TABLE late (id int PRIMARY KEY, a int, w int GENERATED ALWAYS AS (a * 2) VIRTUAL)', 'INSERT INTO late (id, a) VALUES (1, 1), (2, 2), (3, 3)');
my $late = $stack->sql('BEGIN', q{SELECT electric_cm_create_shape('late')}, 'ALTER TABLE late REPLICA IDENTITY FULL', 'COMMIT');
$stack->becomes(qq{SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'shape_creation_failed' AND message LIKE '%"late"%' AND detail LIKE '%ALTER TABLE public.late REPLICA IDENTITY DEFAULT'},
	'FULL is set just after a shape was declared: an event says what is to be done');
goes_on('late', '... and the table was not published');
$stack->sql('ALTER TABLE late REPLICA IDENTITY DEFAULT');
$stack->is_live($late, '... and when that is done, the shape is made');

# a partition of its own identity
$stack->sql('CREATE TABLE pv (id int PRIMARY KEY, a int, w int GENERATED ALWAYS AS (a * 2) VIRTUAL) PARTITION BY RANGE (id)',
	'CREATE TABLE pv_1 PARTITION OF pv FOR VALUES FROM (0) TO (10)', 'CREATE TABLE pv_2 PARTITION OF pv FOR VALUES FROM (10) TO (100)',
	'INSERT INTO pv (id, a) SELECT i, i FROM generate_series(1, 20) i', 'ALTER TABLE pv_2 REPLICA IDENTITY FULL');
refused(q{SELECT electric_cm_create_shape('pv')}, qr/0A000.*UPDATE and DELETE on "pv_2" fail/s, 'the same of a partition');
$stack->sql('ALTER TABLE pv_2 REPLICA IDENTITY DEFAULT');
my $pv = $stack->live_shape('pv');
$stack->sql('ALTER TABLE pv_2 REPLICA IDENTITY FULL');
goes_on('pv_2', 'a partition gets FULL later');
ends($pv, '... and the shape of its root ends');
$stack->sql('ALTER TABLE pv_2 REPLICA IDENTITY DEFAULT');
$pv = $stack->live_shape('pv');
$stack->sql('CREATE TABLE pv_3 (LIKE pv INCLUDING ALL)', 'ALTER TABLE pv_3 REPLICA IDENTITY FULL', 'INSERT INTO pv_3 (id, a) VALUES (100, 1), (101, 1)',
	'ALTER TABLE pv ATTACH PARTITION pv_3 FOR VALUES FROM (100) TO (200)');
goes_on('pv_3', 'a table with FULL becomes a partition');

# published by somebody else's doing: not ours to undo
$stack->sql("CREATE TABLE theirs (LIKE v INCLUDING ALL)", "ALTER PUBLICATION $pub ADD TABLE theirs");
my ($rc, $out, $err) = $node->psql($stack->db, 'ALTER TABLE theirs REPLICA IDENTITY FULL');
like($err, qr/WARNING:  UPDATE and DELETE on table public\.theirs fail from now on.*HINT:  ALTER TABLE public\.theirs REPLICA IDENTITY DEFAULT/s,
	'a table that the user has published: a warning says what becomes of it');
my $check = q{SELECT verdict || ' ' || detail || ' | ' || fix FROM electric_cm_check() WHERE name = 'publication'};
like($stack->sql($check), qr/^FAIL UPDATE and DELETE fail on tables .*: public\.theirs \| ALTER TABLE public\.theirs REPLICA IDENTITY DEFAULT$/, '... and so does electric_cm_check()');
$stack->sql('ALTER TABLE theirs REPLICA IDENTITY DEFAULT');
is($stack->sql(q{SELECT verdict FROM electric_cm_check() WHERE name = 'publication'}), 'PASS', '... until it is mended');

#
# Other publications
#
$stack->sql('CREATE TABLE o (id int PRIMARY KEY, a int, s int GENERATED ALWAYS AS (a * 2) STORED)', 'INSERT INTO o VALUES (1, 1), (2, 2), (3, 3)');
for my $of ('FOR TABLE o', 'FOR TABLES IN SCHEMA public', 'FOR ALL TABLES')
{
	$stack->sql("CREATE PUBLICATION other $of");
	refused(q{SELECT electric_cm_create_shape('o', 'a > 1')}, qr/0A000.*table "o" cannot have replica identity FULL.*Publication "other" does not publish its generated columns/s,
		"another publication $of leaves stored columns out: FULL would break the application");
	$stack->sql('DROP PUBLICATION other');
}
my $o = $stack->sql(q{SELECT electric_cm_create_shape('o', 'a > 1')});
$stack->is_live($o, 'without it, FULL is set');
goes_on('o', 'FULL was set by the stack');

#
# The publication itself
#
is($stack->sql("SELECT pubgencols FROM pg_publication WHERE pubname = '$pub'"), 's', 'our publication publishes stored columns');
my $reader = $stack->reader($o);
$stack->sql("ALTER PUBLICATION $pub SET (publish_generated_columns = none)", 'TRUNCATE o', 'INSERT INTO o VALUES (3, 30), (4, 4), (5, 1)');	# the server refuses UPDATE
$stack->becomes(q{SELECT electric_cm_status() = 'failed'}, 'somebody takes that away: the stack has failed');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$o')"), $reader->{had}{n}, '... logs are readable');
like($stack->sql($check), qr/^FAIL .*does not publish stored generated columns \| ALTER PUBLICATION $pub SET \(publish_generated_columns = stored\)$/, '... electric_cm_check() says what to do');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, '... and a start does it');
is($stack->sql("SELECT pubgencols FROM pg_publication WHERE pubname = '$pub'"), 's', '... the publication is altered');
$stack->resyncs($reader, q{detail = 'the publication does not publish everything any more'}, 'o', '... with which the shapes go on', command => 1, where => 'a > 1');
goes_on('o', 'published again');
$stack->goes_on($reader, 'o', '... and so does the stream', where => 'a > 1');

$stack->sql('CREATE PUBLICATION mine', q{ALTER SYSTEM SET electric_cm.publication_name = 'mine'}, 'SELECT pg_reload_conf()', 'SELECT electric_cm_restart()');
$stack->becomes(q{SELECT status = 'failed' AND last_error LIKE '%"mine" does not publish stored generated columns%' FROM electric_cm_stat_manager},
	q{a user's own publication is judged, and not altered});
like($stack->sql($check), qr/^FAIL .*"mine" does not publish stored generated columns/, '... by electric_cm_check(), too');
$stack->sql('ALTER PUBLICATION mine SET (publish_generated_columns = stored)', 'SELECT electric_cm_start()');
ok($stack->active, '... until it publishes them');

$node->stop;
done_testing();
