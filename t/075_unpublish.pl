# A table that we have added to the publication leaves it again: after its last
# shape, and at once where it loses what identifies its rows, so that the
# application's UPDATE goes on.  Who takes it out before sees it come back.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "electric_cm.status_check_interval = '1 s'\n");
my $node = $stack->node;
my $pub = 'electric_cm_publication';

sub drop_shapes { $stack->sql(map { "SELECT electric_cm_drop_shape('$_')" } @_); return; }
my $published = "SELECT count(*) FROM pg_publication_rel WHERE prrelid = '%s'::regclass AND prpubid = (SELECT oid FROM pg_publication WHERE pubname = '$pub')";
sub is_published { return $stack->sql(sprintf($published, $_[0])); }
sub leaves { return $stack->becomes(sprintf("SELECT ($published) = 0", $_[0]), $_[1]); }
# each table that should have left by now has
sub all_have_left
{
	my $handle = $stack->live_shape('sentinel');
	drop_shapes($handle);
	$stack->sql('SELECT _electric_cm.unpublish_tables()');
	return leaves('sentinel', 'what is to leave has left');
}
# what the stream does not have, since the user has taken a table out
sub comes_back
{
	my ($handle, $table, $out, $what) = @_;
	my $has = $stack->reader($handle);
	$stack->sql('BEGIN', $out, "UPDATE $table SET v = v || '.'", "DELETE FROM $table WHERE id = (SELECT min(id) FROM $table)", "INSERT INTO $table SELECT max(id) + 1 FROM $table", 'COMMIT');
	$stack->resyncs($has, q{detail = 'the table has left the publication'}, $table, $what, command => 1);
	$stack->sql("UPDATE $table SET v = coalesce(v, '') || '.'");
	return $stack->goes_on($has, $table, "$what: and the stream goes on");
}
sub manual
{
	my ($value) = @_;
	$stack->sql("ALTER SYSTEM SET electric_cm.manual_table_publishing = $value", 'SELECT pg_reload_conf()');
	return $stack->becomes("SELECT setting = '$value' FROM electric_cm_options WHERE datname = '$db' AND name = 'electric_cm.manual_table_publishing'");
}

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE ROLE app LOGIN', 'CREATE ROLE reader LOGIN', 'GRANT CREATE ON SCHEMA public TO app',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_drop_shape(text) TO app, reader',
	(map { "CREATE TABLE $_ (id int PRIMARY KEY, v text)" } qw(sentinel by_hand bystander)),
	'INSERT INTO bystander VALUES (1)');
$stack->active or BAIL_OUT('no stack');
my $bystander = $stack->live_shape('bystander');

#
# The last shape has gone
#

$stack->sql('CREATE TABLE t (id int PRIMARY KEY, v text)', q{INSERT INTO t SELECT i, 'old' FROM generate_series(1, 10) i}, 'ALTER TABLE t OWNER TO app', 'GRANT SELECT ON t TO reader');
my $one = $stack->live_shape('t');
my $two = $stack->sql('SET ROLE app', q{SELECT electric_cm_create_shape('t', 'id > 5', '{id}')});
$stack->is_live($two);
$stack->sql("ALTER PUBLICATION $pub ADD TABLE by_hand");
my $by_hand = $stack->live_shape('by_hand');

drop_shapes($one, $by_hand);
all_have_left();
is(is_published('t'), 1, 'with another shape the table stays published');
is(is_published('by_hand'), 1, '... and one that the user has added, without any');
$stack->sql('UPDATE t SET id = 17 WHERE id = 7', 'SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($two, 't', ['id'], where => 'id > 5', columns => ['id']);
ok($ok, 'that shape goes on');

my $locker = $node->background_psql($db, on_error_stop => 1);
$locker->query_safe('BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE');
drop_shapes($two);
leaves('t', 'after the last one it is not published any more, and whoever has locked it is not waited for');
$locker->query_safe('COMMIT');
$locker->quit;
is($stack->exists_shape($bystander), 1, 'no other shape ends with that');

$stack->sql('ALTER TABLE t DROP CONSTRAINT t_pkey', q{UPDATE t SET v = 'x' WHERE id = 1}, 'DELETE FROM t WHERE id = 2', 'ALTER TABLE t ADD PRIMARY KEY (id)');
pass('its key can be dropped, and the application goes on');

# whoever may read a table that was published with its owner's consent ...
my $reader = $stack->sql('SET ROLE reader', q{SELECT electric_cm_create_shape('t')});
$stack->is_live($reader, 'a reader brings it back');
$stack->sql(q{INSERT INTO t VALUES (11, 'reader')});
$stack->replays($reader, 't', '... for a shape of his own');
drop_shapes($reader);
leaves('t', '... which leaves it unpublished again');
$reader = $stack->sql('SET ROLE reader', q{SELECT electric_cm_create_shape('t')});
$stack->is_live($reader, 'once more');
comes_back($reader, 't', "ALTER PUBLICATION $pub DROP TABLE t", 'taken out by hand');
is(is_published('t'), 1, '... it is published again');
manual('on');
$stack->sql("ALTER PUBLICATION $pub DROP TABLE t");
$stack->becomes("SELECT state = 'resyncing' FROM electric_cm_shapes WHERE handle = '$reader'", 'with manual_table_publishing the shape waits');
drop_shapes($reader);
manual('off');
all_have_left();
is(is_published('t'), 0, '... and without it nobody publishes the table');
like(($node->psql($db, q{SET ROLE reader; SELECT electric_cm_create_shape('t')}))[2], qr/must be owner of table t/, '... and its owner has to agree anew');

# the user adds himself what we have added before
$one = $stack->live_shape('t');
comes_back($one, 't', "ALTER PUBLICATION $pub DROP TABLE t; ALTER PUBLICATION $pub ADD TABLE t", 'taken out and added');
drop_shapes($one);
all_have_left();
is(is_published('t'), 1, '... a table that the user has added again stays');
$stack->sql("ALTER PUBLICATION $pub DROP TABLE t");

$by_hand = $stack->live_shape('by_hand');
$stack->sql(q{INSERT INTO by_hand SELECT i, 'x' FROM generate_series(1, 10) i});
comes_back($by_hand, 'by_hand', "ALTER PUBLICATION $pub DROP TABLE by_hand", 'what the user has added, and takes out');
drop_shapes($by_hand);
leaves('by_hand', '... leaves after its last shape, since the stack has put it back');

$one = $stack->live_shape('t');
$stack->sql('TRUNCATE t', q{INSERT INTO t SELECT i, 'again' FROM generate_series(1, 10) i});
$stack->replays($one, 't', 'TRUNCATE leaves the shape alone');
all_have_left();
is(is_published('t'), 1, '... and the table in the publication');
drop_shapes($one);
leaves('t', '... until it is dropped');
$one = $stack->live_shape('t');
drop_shapes($one);
# at once, since a few seconds later the stack takes it out itself
is($stack->sql('SET electric_cm.manual_table_publishing = on', 'SELECT _electric_cm.unpublish_tables()', sprintf($published, 't')), "f\n1", 'with manual_table_publishing nothing is taken out');

#
# Partitions that are published by way of their root
#

$stack->sql('CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE mid PARTITION OF root FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)',
	'CREATE TABLE leaf PARTITION OF mid FOR VALUES FROM (0) TO (100)', 'INSERT INTO root VALUES (1)');
$one = $stack->live_shape('root');
$two = $stack->live_shape('leaf');
drop_shapes($one);
all_have_left();
is(is_published('root'), 1, 'a root stays as long as a partition has shapes');
$stack->sql('INSERT INTO root VALUES (2)');
$stack->replays($two, 'leaf', '... which go on');
drop_shapes($two);
leaves('root', '... and leaves after them');

# named beside its root, which is enough
$two = $stack->live_shape('leaf');
$one = $stack->live_shape('root');
is(join(' ', map { is_published($_) } qw(root leaf)), '1 1', 'a partition and its root are published');
$stack->sql("ALTER PUBLICATION $pub DROP TABLE leaf", 'INSERT INTO root VALUES (3)');
$stack->replays($one, 'root', "the user takes the partition out: the root's shape goes on");
$stack->replays($two, 'leaf', q{... and the partition's own});
drop_shapes($one);
all_have_left();
$stack->sql('INSERT INTO root VALUES (4)');
$stack->replays($two, 'leaf', "... without the root's shape as well");
comes_back($two, 'leaf', "ALTER PUBLICATION $pub DROP TABLE root", '... until nothing publishes it');
is(join(' ', map { is_published($_) } qw(root leaf)), '0 1', '... for which it is published by itself');
drop_shapes($two);
leaves('leaf', '... until it is dropped');

#
# What identifies the rows is gone
#

sub keyed
{
	$stack->sql('DROP TABLE IF EXISTS k CASCADE', 'CREATE TABLE k (id int PRIMARY KEY, u int NOT NULL, v text)', 'CREATE UNIQUE INDEX ki ON k (u)', 'ALTER TABLE k OWNER TO app', q{INSERT INTO k VALUES (1, 1, 'a'), (2, 2, 'b')}, @_);
	return $stack->live_shape('k');
}
my $by_index = 'ALTER TABLE k REPLICA IDENTITY USING INDEX ki';
for my $case (
	[ 'the key', undef, 'ALTER TABLE k DROP CONSTRAINT k_pkey' ],
	[ "the key's column", undef, 'ALTER TABLE k DROP COLUMN id' ],
	[ 'the identity', undef, 'ALTER TABLE k REPLICA IDENTITY NOTHING' ],
	[ 'the identity index', $by_index, 'DROP INDEX ki' ],
	[ 'its column', $by_index, 'ALTER TABLE k DROP COLUMN u' ],
	[ 'the key, in a DO block', undef, q{DO $$ BEGIN ALTER TABLE k DROP CONSTRAINT k_pkey; UPDATE k SET v = 'do'; END $$} ])
{
	my ($what, $before, $command) = @$case;
	my $handle = keyed($before ? $before : ());

	$stack->sql('SET ROLE app', 'BEGIN', $command, q{UPDATE k SET v = 'c'}, q{DELETE FROM k WHERE v = 'c' AND ctid = (SELECT min(ctid) FROM k)}, 'COMMIT', q{UPDATE k SET v = 'd'}, 'DELETE FROM k');
	is($stack->exists_shape($handle), 0, "$what is gone: so is the shape, and UPDATE works at once");
}
$stack->becomes(q{SELECT count(*) > 3 FROM electric_cm_events WHERE detail = 'the table''s key has changed'}, '... of which events tell the cause, not the consequence');

my $handle = keyed($by_index);
$stack->sql('DROP INDEX CONCURRENTLY ki');
$stack->sql(q{UPDATE k SET v = 'c'});
is($stack->exists_shape($handle), 0, 'an identity index dropped CONCURRENTLY: likewise');

# a publication of a former name
$handle = keyed();
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'second'");
$node->reload;
$stack->becomes(q{SELECT publication_name = 'second' FROM electric_cm_stat_replication}, 'another publication');
$stack->active;
$stack->live_shape('k');
$stack->sql('ALTER TABLE k DROP CONSTRAINT k_pkey', q{UPDATE k SET v = 'c'});
is($stack->sql(q{SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'k'::regclass}), 0, 'a table that two of them have leaves both');
$stack->sql("ALTER DATABASE $db RESET electric_cm.publication_name");
$node->reload;
$stack->becomes(qq{SELECT publication_name = '$pub' FROM electric_cm_stat_replication}, 'the first one again');
$stack->active;
$bystander = $stack->live_shape('bystander');

$handle = keyed();
$stack->sql('SELECT electric_cm_stop()', 'ALTER TABLE k DROP CONSTRAINT k_pkey', q{UPDATE k SET v = 'c'}, 'SELECT electric_cm_start()');
$stack->active;
is($stack->exists_shape($handle), 0, 'while the stack is stopped: likewise');

$handle = keyed();
$stack->sql('BEGIN', 'SAVEPOINT s', 'ALTER TABLE k DROP CONSTRAINT k_pkey', 'ROLLBACK TO s', q{UPDATE k SET v = 'kept'}, 'COMMIT');
is($stack->exists_shape($handle), 1, 'rolled back: the shape is there');
$stack->replays($handle, 'k', '... and has what was changed then');
$stack->sql('BEGIN', 'SAVEPOINT s', q{DO $$ BEGIN ALTER TABLE k DROP CONSTRAINT k_pkey, ADD CHECK (v IS NULL); EXCEPTION WHEN check_violation THEN END $$}, q{UPDATE k SET v = 'kept again'}, 'COMMIT');
my ($failed) = $node->psql($db, q{BEGIN; SAVEPOINT s; ALTER TABLE k DROP CONSTRAINT k_pkey, ADD CHECK (v IS NULL); ROLLBACK TO s; UPDATE k SET v = 'at last'; COMMIT}, on_error_stop => 0);
$stack->replays($handle, 'k', '... also where the command itself fails');
$stack->sql('ALTER TABLE k DROP CONSTRAINT k_pkey, ADD PRIMARY KEY (id)', q{UPDATE k SET v = 'e'});
$handle = $stack->live_shape('k');
$stack->sql(q{UPDATE k SET v = 'f'});
$stack->replays($handle, 'k', 'a key that is replaced: the next shape is right');

# a leaf, by way of its root
$stack->sql('DROP TABLE root', 'CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (100)', 'INSERT INTO root VALUES (1)');
$handle = $stack->live_shape('root');
$stack->sql('BEGIN', 'ALTER TABLE leaf REPLICA IDENTITY NOTHING', q{UPDATE root SET v = 'leaf'}, 'COMMIT', 'DELETE FROM root');
is($stack->exists_shape($handle), 0, "a leaf's identity is gone: so is the root's shape, and UPDATE works");
$stack->sql('ALTER TABLE leaf REPLICA IDENTITY DEFAULT', 'INSERT INTO root VALUES (1)', 'CREATE TABLE more (id int PRIMARY KEY, v text)', 'ALTER TABLE more REPLICA IDENTITY NOTHING');
$handle = $stack->live_shape('root');
$stack->sql('ALTER TABLE root ATTACH PARTITION more FOR VALUES FROM (100) TO (200)', 'INSERT INTO root VALUES (101)', q{UPDATE root SET v = 'more'});
$stack->becomes("SELECT state = 'resyncing' FROM electric_cm_shapes WHERE handle = '$handle'", 'a leaf without identity is attached: UPDATE works, and the shape waits');
$stack->sql('ALTER TABLE more REPLICA IDENTITY DEFAULT', q{UPDATE root SET v = 'identity' WHERE id = 101});
$stack->replays($handle, 'root', '... for an identity');
$stack->sql('ALTER TABLE more REPLICA IDENTITY NOTHING');

#
# Shapes that come just when the table leaves
#

$stack->sql('CREATE TABLE busy (id int PRIMARY KEY, v int)', 'INSERT INTO busy VALUES (0, 0)');
my $leaver = $node->background_psql($db, on_error_stop => 0);
$leaver->{stdin} .= q{DO $$ BEGIN FOR i IN 1 .. 3000 LOOP PERFORM _electric_cm.unpublish_tables(); COMMIT; PERFORM pg_sleep(0.001); END LOOP; END $$;} . "\n";
$leaver->{run}->pump_nb;
for my $i (1 .. 15)
{
	$handle = $stack->shape('busy');
	$stack->sql("INSERT INTO busy VALUES ($i, 1)", "UPDATE busy SET v = v + 1");
	$stack->is_live($handle);
	$stack->sql("UPDATE busy SET v = v + 1", "DELETE FROM busy WHERE id = $i - 1");
	last if $i == 15;
	drop_shapes($handle);
}
$stack->replays($handle, 'busy', 'declared while its table was leaving, again and again: the shape is right');
$leaver->quit;
is($stack->exists_shape($bystander), 1, 'in the end the other shape is still there');
$stack->sql(q{UPDATE bystander SET v = 'end'});
$stack->replays($bystander, 'bystander', '... and right');

done_testing();
