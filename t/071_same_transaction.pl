# Shapes and DDL in one transaction: a shape that is declared after a command lives,
# one that was declared before it fares as any other, so it may end. And transactions that
# change what shapes are made of while others create them.
use strict;
use warnings;

use ElectricCM qw(new_stack wait_active becomes);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "log_min_messages = warning\n");
my $node = $stack->node;
my $pub = 'electric_cm_publication';
my $created = q{SELECT 'handle=' || electric_cm_create_shape};

# the handles that statements have returned, the last one first
sub handles { return reverse($stack->sql(@_) =~ /^handle=(.*)$/mg); }

sub lives
{
	my ($what, $table, @commands) = @_;
	my ($handle) = handles(@commands);

	if (!$stack->exists_shape($handle)) { fail("$what: the shape lives"); return; }
	$stack->is_live($handle, "$what: the shape lives");
	$stack->sql("UPDATE $table SET v = v || 'x'", "DELETE FROM $table WHERE id = 1", "INSERT INTO $table VALUES (7, 'new')");
	$stack->replays($handle, $table, '... and is right');
	$stack->sql("DELETE FROM $table WHERE id = 7", "INSERT INTO $table VALUES (1, 'old')");
	return;
}

sub ends
{
	my ($what, @commands) = @_;
	my ($handle) = handles(@commands);

	is($stack->exists_shape($handle), 0, "$what: the shape ends");
	return;
}

my $fill = q{INSERT INTO t VALUES (1, 'old'), (2, 'old')};

$stack->sql('CREATE EXTENSION electric_cm', q{CREATE TYPE feeling AS ENUM ('sad', 'ok')}, 'CREATE SCHEMA s');
$stack->active or BAIL_OUT('no stack');

#
# First the command, then the shape
#

lives('CREATE TABLE, a key, rows', 't', 'BEGIN', 'CREATE TABLE t (id int, v text, f feeling)', $fill, 'ALTER TABLE t ADD PRIMARY KEY (id)', "$created('t')", 'COMMIT');
lives('ADD COLUMN', 't', 'BEGIN', 'ALTER TABLE t ADD COLUMN w int DEFAULT 7', "$created('t')", 'COMMIT');
lives('TRUNCATE, and loaded again', 't', 'BEGIN', 'TRUNCATE t', $fill, "$created('t')", 'UPDATE t SET w = id', 'COMMIT');
lives('another type', 't', 'BEGIN', 'ALTER TABLE t ALTER w TYPE text', "$created('t')", 'COMMIT');
lives('a label of an enum', 't', 'BEGIN', q{UPDATE t SET f = 'sad'}, q{ALTER TYPE feeling RENAME VALUE 'sad' TO 'sorry'}, "$created('t')", 'COMMIT');
lives('another name', 'u', 'BEGIN', 'ALTER TABLE t RENAME TO u', "$created('u')", 'COMMIT');
lives('... and schema', 's.t', 'BEGIN', 'ALTER TABLE u RENAME TO t', 'ALTER TABLE t SET SCHEMA s', "$created('s.t')", 'COMMIT');
lives('... of the schema itself', 's2.t', 'BEGIN', 'ALTER SCHEMA s RENAME TO s2', "$created('s2.t')", 'COMMIT');
$stack->sql('ALTER TABLE s2.t SET SCHEMA public');
lives('a replica identity, a clause that needs it', 't', 'BEGIN', 'ALTER TABLE t REPLICA IDENTITY FULL', "$created('t', 'v IS NOT NULL')", 'COMMIT');
lives('another key', 't', 'BEGIN', 'ALTER TABLE t REPLICA IDENTITY DEFAULT', 'ALTER TABLE t DROP CONSTRAINT t_pkey', 'ALTER TABLE t ADD PRIMARY KEY (id)', "$created('t')", 'COMMIT');
lives('unlogged for a while', 'fresh', 'BEGIN', 'CREATE UNLOGGED TABLE fresh AS SELECT id, v FROM t', 'ALTER TABLE fresh ADD PRIMARY KEY (id)', 'ALTER TABLE fresh SET LOGGED', "$created('fresh')", 'COMMIT');
lives('CREATE TABLE AS', 'made', 'BEGIN', 'CREATE TABLE made AS SELECT id, v FROM t', 'ALTER TABLE made ADD PRIMARY KEY (id)', "$created('made')", 'COMMIT');
lives('partitions', 'r', 'BEGIN', 'CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (100)',
	q{INSERT INTO r VALUES (1, 'old'), (2, 'old')}, "$created('r')", 'COMMIT');
lives('a partition attached', 'r', 'BEGIN', 'CREATE TABLE r2 (id int PRIMARY KEY, v text)', 'ALTER TABLE r ATTACH PARTITION r2 FOR VALUES FROM (100) TO (200)', "$created('r')", 'COMMIT');
lives('the table leaves the publication and comes back', 't', 'BEGIN', "ALTER PUBLICATION $pub DROP TABLE t", q{UPDATE t SET v = 'unseen'}, "ALTER PUBLICATION $pub ADD TABLE t", "$created('t')", 'COMMIT');
lives('the same by a function', 't', "DO \$\$ BEGIN ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = 1; PERFORM electric_cm_create_shape('t'); END \$\$", "$created('t')");
lives('in a subtransaction', 't', 'BEGIN', 'SAVEPOINT a', 'ALTER TABLE t DROP COLUMN x', "$created('t')", 'RELEASE a', 'COMMIT');
lives('... after one that was rolled back', 't', 'BEGIN', 'SAVEPOINT a', "$created('t')", 'TRUNCATE t', 'ROLLBACK TO a', "$created('t')", 'SAVEPOINT b', 'TRUNCATE t', 'ROLLBACK TO b', 'COMMIT');
lives('prepared', 't', 'BEGIN', 'ALTER TABLE t ADD COLUMN y int', "$created('t')", q{PREPARE TRANSACTION 'p'}, q{COMMIT PREPARED 'p'});
lives('a transaction with one snapshot', 't', 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'SELECT FROM t', 'ALTER TABLE t DROP COLUMN y', "$created('t')", 'COMMIT');
my ($second, $first) = handles('BEGIN', 'ALTER TABLE t ADD COLUMN z int', "$created('t')", 'TRUNCATE t', $fill, "$created('t')", 'COMMIT');
is($first, $second, 'the shape is declared before and after commands: it is the same');
$stack->is_live($second, '... which lives');
$stack->replays($second, 't', '... and is right');

$stack->sql(q{CREATE FUNCTION again() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM electric_cm_create_shape('t'); END $$},
	q{CREATE EVENT TRIGGER again ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION again()}, 'ALTER TABLE t DROP COLUMN z', 'DROP EVENT TRIGGER again');
lives("the command's own event trigger", 't', q{SELECT 'handle=' || coalesce(max(handle), 'none') FROM electric_cm_shapes WHERE relation = 't'::regclass});

#
# First the shape, then the command
#

lives('TRUNCATE', 't', 'BEGIN', "$created('t')", 'TRUNCATE t', $fill, 'COMMIT');
lives('ADD COLUMN', 't', 'BEGIN', "$created('t')", 'ALTER TABLE t ADD COLUMN zz int', 'COMMIT');
lives('rewritten', 't', 'BEGIN', "$created('t')", 'ALTER TABLE t ALTER v TYPE text USING upper(v)', 'COMMIT');
ends('the key dropped and made again', 'BEGIN', "$created('t')", 'ALTER TABLE t DROP CONSTRAINT t_pkey', 'ALTER TABLE t ADD PRIMARY KEY (id)', 'COMMIT');
ends('another name', 'BEGIN', "$created('t')", 'ALTER TABLE t RENAME TO u', 'COMMIT', 'ALTER TABLE u RENAME TO t');
ends('... of the schema', 'BEGIN', "$created('t')", 'ALTER SCHEMA public RENAME TO private', 'COMMIT', 'ALTER SCHEMA private RENAME TO public');
lives('a label', 't', 'BEGIN', "$created('t')", q{ALTER TYPE feeling RENAME VALUE 'sorry' TO 'sad'}, 'COMMIT');
$stack->sql('CREATE TABLE fresh2 (id int PRIMARY KEY)');
ends('unlogged', 'BEGIN', "$created('fresh2')", 'ALTER TABLE fresh2 SET UNLOGGED', 'COMMIT');
ends('an unlogged partition', 'BEGIN', "$created('r')", 'CREATE UNLOGGED TABLE r3 PARTITION OF r FOR VALUES FROM (200) TO (300)', 'COMMIT', 'DROP TABLE r3');
ends('dropped', 'BEGIN', "$created('made')", 'DROP TABLE made', 'COMMIT');
lives('a command that changes nothing', 't', 'BEGIN', "$created('t')", 'ALTER TABLE t ALTER v SET STATISTICS 100', 'ALTER TABLE t ALTER v SET STORAGE EXTERNAL', 'CREATE INDEX ON t (v)', q{UPDATE t SET v = 'y'}, 'COMMIT');
lives('a shape of a table that is to be published yet', 'yet', 'BEGIN', 'CREATE TABLE yet (id int PRIMARY KEY, v text)', q{INSERT INTO yet VALUES (1, 'a')}, "$created('yet')",
	"ALTER PUBLICATION $pub ADD TABLE yet", "ALTER PUBLICATION $pub DROP TABLE yet", 'COMMIT');

#
# Unlogged partitions
#

$stack->sql('CREATE TABLE u (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE um PARTITION OF u FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)',
	'CREATE UNLOGGED TABLE ul PARTITION OF um FOR VALUES FROM (0) TO (100)', q{INSERT INTO u VALUES (1, 'a'), (2, 'a')});
my ($rc, $out, $err) = $node->psql($db, q{SELECT electric_cm_create_shape('u')});
like($err, qr/cannot create a shape of table "u".*partition "ul" is unlogged.*ALTER TABLE public.ul SET LOGGED/s, 'a shape of a table with an unlogged partition is refused, with a hint');
is($rc != 0, 1, '... by an error');
lives('... which the hint mends', 'u', 'ALTER TABLE ul SET LOGGED', "$created('u')");

# one that joins while the shape is being created
my $writer = $node->background_psql($db, on_error_stop => 1);
$writer->query_safe('BEGIN; CREATE UNLOGGED TABLE ul2 (id int PRIMARY KEY, v text); ALTER TABLE u ATTACH PARTITION ul2 FOR VALUES FROM (100) TO (200)');
$writer->query_safe(q{INSERT INTO ul2 VALUES (100, 'a')});
my ($u) = handles("$created('um')");
$stack->is_live($u, 'a shape beside it lives');
$writer->query_safe('COMMIT');
$writer->quit;
$stack->sql('DROP TABLE ul2');
$writer = $node->background_psql($db, on_error_stop => 1);
$stack->sql("SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes WHERE relation = 'u'::regclass");
$writer->query_safe(q{BEGIN; INSERT INTO u VALUES (50, 'held')});
($u) = handles("$created('u')");
$stack->becomes("SELECT waiting_for LIKE '%writing to the table%' FROM electric_cm_shapes WHERE handle = '$u'", 'a shape waits for a writer');
$stack->sql('CREATE UNLOGGED TABLE ul2 (id int PRIMARY KEY, v text)');
$writer->query_safe('COMMIT');
$stack->sql('ALTER TABLE u ATTACH PARTITION ul2 FOR VALUES FROM (100) TO (200)');
$writer->quit;
$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$u'", 'an unlogged partition that comes meanwhile ends it');

#
# What others create while a transaction is not over
#

$stack->sql('CREATE SCHEMA byname', 'CREATE TABLE byname.t (id int PRIMARY KEY, v text)', q{INSERT INTO byname.t VALUES (1, 'a')}, "ALTER PUBLICATION $pub ADD TABLES IN SCHEMA byname");
my $changer = $node->background_psql($db, on_error_stop => 1);
$changer->query_safe("BEGIN; ALTER PUBLICATION $pub DROP TABLES IN SCHEMA byname");
my ($late) = handles("$created('byname.t')");
$stack->becomes("SELECT waiting_for LIKE '%or changing it%' FROM electric_cm_shapes WHERE handle = '$late'", 'a shape waits for whoever has changed what is published');
$changer->query_safe(q{UPDATE byname.t SET v = 'unseen'});
$changer->query_safe("ALTER PUBLICATION $pub ADD TABLES IN SCHEMA byname");
$changer->query_safe('COMMIT');
$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$late' AND state <> 'live'");
($late) = handles("$created('byname.t')");
$stack->is_live($late, 'it is over: the shape lives');
$stack->replays($late, 'byname.t', '... and has what was not in the stream');

#
# A transaction with one snapshot, and rows that have been changed since
#

my ($held) = handles("$created('t')");
$stack->is_live($held);
$changer->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM r');
$stack->sql("UPDATE _electric_cm.shape SET snapshot_rows = snapshot_rows WHERE handle = '$held'");
my ($newer) = handles("$created('t', 'id > 0', '{id}')");
$stack->is_live($newer);
$changer->query_safe('TRUNCATE t; COMMIT');
$stack->settle;
$stack->is_live($_) for $held, $newer;
$stack->replays($held, 't', 'TRUNCATE in a REPEATABLE READ transaction: a shape that has changed since is resynced');
$stack->replays($newer, 't', '... and one that has come since', columns => ['id']);
is($stack->sql("SELECT log_entries > 1 FROM electric_cm_shapes WHERE handle = '$newer'"), 't', '... with entries of what is gone');
$changer->quit;

# partitions that are unpublished for a while, without a lock on them
$stack->sql('CREATE TABLE tree (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE branch PARTITION OF tree FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)',
	'CREATE TABLE twig PARTITION OF branch FOR VALUES FROM (0) TO (100)', q{INSERT INTO tree VALUES (1, 'a')});
my ($tree) = handles("$created('tree')");
$stack->is_live($tree);
$changer = $node->background_psql($db, on_error_stop => 1);
$changer->query_safe("BEGIN; ALTER PUBLICATION $pub DROP TABLE tree");
my ($twig) = handles("$created('twig')");
$stack->is_live($twig, q{a shape does not wait for whoever takes its table's root out of the publication});
$changer->query_safe(q{UPDATE twig SET v = 'unseen'});
$changer->query_safe("ALTER PUBLICATION $pub ADD TABLE tree; COMMIT");
$changer->quit;
is($stack->gaps($twig), 1, 'that is over: the shape is resynced');
for ([ $twig, 'twig' ], [ $tree, 'tree' ])
{
	my ($handle, $table) = @$_;
	$stack->is_live($handle, "the shape of the $table lives");
	$stack->replays($handle, $table, '... and is right');
	$stack->sql("UPDATE $table SET v = 'seen, of the $table'");
	$stack->replays($handle, $table, '... and goes on');
}

# a table that others make of a type which is being changed
$changer = $node->background_psql($db, on_error_stop => 1);
$changer->query_safe(q{BEGIN; ALTER TYPE feeling RENAME VALUE 'ok' TO 'well'});
$stack->sql('CREATE TABLE of_type (id int PRIMARY KEY, v text, f feeling)', q{INSERT INTO of_type VALUES (1, 'a', 'ok')});
my ($of_type) = handles("$created('of_type')");
$stack->is_live($of_type, 'a shape does not wait for whoever is changing the type of a column');
$changer->query_safe('COMMIT');
$changer->quit;
$stack->settle;
$stack->is_live($of_type, 'that is over: the shape is resynced');
$stack->replays($of_type, 'of_type', '... and has the new label');

#
# Types
#

$stack->sql('CREATE TYPE classes AS RANGE (subtype = regclass, subtype_opclass = oid_ops, multirange_type_name = many_classes)',
	'CREATE DOMAIN class_domain AS classes', 'CREATE TYPE class_pair AS (a int, c class_domain)', 'CREATE DOMAIN pairs AS class_pair[]',
	'CREATE TYPE texts AS RANGE (subtype = text)');
my $n = 0;
for my $type (qw(regclass classes many_classes class_domain classes[] many_classes[] class_pair class_pair[] pairs))
{
	$n++;
	$stack->sql("CREATE TABLE named_$n (id $type PRIMARY KEY)");
	(undef, undef, $err) = $node->psql($db, "SELECT electric_cm_create_shape('named_$n')");
	like($err, qr/the key of table .* has column "id" of type .*names for its values/s, "a key of type $type is refused");
}
$stack->sql('CREATE TABLE of_ranges (id int4range PRIMARY KEY, v text, t texts)');
is($stack->exists_shape($stack->sql(q{SELECT electric_cm_create_shape('of_ranges')})), 1, 'one of other ranges is not');

$stack->sql('CREATE DOMAIN mood AS feeling', 'CREATE TYPE moods AS RANGE (subtype = mood, multirange_type_name = many_moods)', 'CREATE TYPE of_moods AS (m many_moods[])',
	'CREATE TABLE deep (id int PRIMARY KEY, v text, d of_moods)', 'CREATE TABLE shallow (id int PRIMARY KEY, v text)');
my ($deep) = handles("$created('deep')");
my ($shallow) = handles("$created('shallow')");
$stack->sql(q{ALTER TYPE feeling RENAME VALUE 'well' TO 'ok'});
is($stack->sql("SELECT string_agg(handle, ' ') FROM _electric_cm.shape WHERE handle IN ('$deep', '$shallow') AND id IN (SELECT shape FROM _electric_cm.shape_gap)"),
	$deep, 'a label in a domain in a multirange in an array in a composite type: the shape is resynced');

#
# The extension dropped and created again
#

lives('DROP and CREATE EXTENSION', 't2', 'BEGIN', 'DROP EXTENSION electric_cm', 'CREATE EXTENSION electric_cm', 'CREATE TABLE t2 (id int PRIMARY KEY, v text)',
	q{INSERT INTO t2 VALUES (1, 'a'), (2, 'a')}, 'ALTER TABLE t ADD COLUMN q int', "$created('t2')", 'COMMIT');

ok($stack->active, 'and the stack is active');

#
# Other databases
#

$stack->sql('CREATE DATABASE late');
is($node->safe_psql('late', q{BEGIN; CREATE TABLE t (id int PRIMARY KEY, v text);
	DO $$ BEGIN FOR i IN 1 .. 100 LOOP ALTER TABLE t ALTER v SET DEFAULT 'x', ENABLE ROW LEVEL SECURITY; END LOOP; END $$;
	SELECT count(*) FROM pg_backend_memory_contexts WHERE name ~ 'electric_cm changes'; COMMIT}), 0, 'without the extension a transaction keeps nothing of its commands');
my $old = $node->background_psql('late', on_error_stop => 1);
$old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
$node->safe_psql('late', 'CREATE EXTENSION electric_cm');
wait_active($node, 'late');
$late = $node->safe_psql('late', q{SELECT electric_cm_create_shape('t')});
becomes($node, 'late', q{SELECT state = 'live' FROM electric_cm_shapes}, 'a shape in a database');
$old->query_safe('TRUNCATE t; COMMIT');
is($node->safe_psql('late', q{SELECT count(*) FROM _electric_cm.shape_gap}), 1, '... where a transaction that is older than the extension can have it resynced');
$old->quit;
$node->stop;
done_testing();
