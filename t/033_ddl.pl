# Commands that end a table's shapes, those that have them resynced, and commands that do
# neither: a shape ends where there is nothing left that its log could be of, and only
# there, in the command's own transaction.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "log_min_messages = warning\n");
my $node = $stack->node;

$stack->sql(
	'CREATE EXTENSION electric_cm',
	'CREATE ROLE reader',
	'CREATE ROLE bypasser BYPASSRLS',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO reader, bypasser',
	q{CREATE TYPE feeling AS ENUM ('sad', 'ok')},
	'CREATE TYPE inside AS (x int)',
	'CREATE TYPE pair AS (a int, b inside)',
	'CREATE DOMAIN pairs AS pair[]',
	'CREATE DOMAIN small AS int CHECK (VALUE < 100)',
	'CREATE TYPE spans AS RANGE (subtype = feeling)',
	'CREATE TABLE row_typed (x int)',
	'CREATE SCHEMA s1',
	'CREATE SCHEMA s2',
	'CREATE TABLE s1.t (id int PRIMARY KEY, a text, n int NOT NULL, f feeling, fs feeling[], ps pairs, s small,
		sp spans, r row_typed, c varchar(10))',
	'CREATE UNIQUE INDEX t_n ON s1.t (n)',
	'CREATE UNIQUE INDEX t_id_n ON s1.t (id, n)',
	q{INSERT INTO s1.t SELECT i, 'a', i, 'ok', '{sad,ok}', ARRAY[ROW(1, ROW(2))::pair], 7, NULL, ROW(1)::row_typed, 'c'
		FROM generate_series(1, 10) i},
	'GRANT USAGE ON SCHEMA s1, s2 TO reader, bypasser',
	'GRANT SELECT ON s1.t TO reader, bypasser',
	'CREATE TABLE root (id int, k int, t text, PRIMARY KEY (id, k)) PARTITION BY LIST (k)',
	'CREATE TABLE leaf1 PARTITION OF root FOR VALUES IN (1)',
	'CREATE TABLE leaf2 PARTITION OF root FOR VALUES IN (2)',
	'CREATE TABLE loose (t text, id int NOT NULL, k int NOT NULL, PRIMARY KEY (id, k))');
$stack->active or BAIL_OUT('no stack');

my $create = q{electric_cm_create_shape('s1.t')};

# Creates a shape, runs a command, looks whether the shape is still there, and
# runs what takes the command back.  What is ended is ended at the commit, and
# not if the transaction is rolled back.
sub outcome
{
	my ($command, $undo, $shape) = @_;
	my $handle = $stack->sql("SELECT $shape");
	my ($rolled_back, $there);

	# as long as nobody follows the shape, this could still be mended
	$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')") if $command =~ /REPLICA IDENTITY/;
	if ($command !~ /CONCURRENTLY|VACUUM|COMMIT/)
	{
		$stack->sql('BEGIN', $command, 'ROLLBACK');
		$rolled_back = $stack->exists_shape($handle);
	}
	$stack->sql($command);
	$there = $stack->exists_shape($handle);
	$stack->sql($undo) if defined $undo;
	return ($there, $rolled_back);
}

sub ends
{
	my ($command, $undo, $shape, $name) = @_;
	my ($there, $rolled_back) = outcome($command, $undo, $shape // $create);

	$name //= $command;
	is($there, 0, "$name: ends the shape");
	is($rolled_back, 1, "$name: not if rolled back") if defined $rolled_back;
	return;
}

# What a log lacks then is found by comparing it with the table.  Rows are changed behind
# the command, in its transaction.
sub resyncs
{
	my ($command, $undo, $shape, $name) = @_;
	my $handle = $stack->sql('SELECT ' . ($shape // $create));
	my ($table) = ($shape // $create) =~ /'([\w.]+)'/;
	my @keys = (keys => $table eq 's1.t' ? ['id'] : [ 'id', 'k' ]);
	my $write = $table eq 's1.t'
	  ? 'UPDATE s1.t SET n = n + 1000; INSERT INTO s1.t (id, n) SELECT coalesce(max(id), 0) + 1, coalesce(max(n), 0) + 1 FROM s1.t'
	  : "DELETE FROM $table WHERE id = -1; INSERT INTO $table (id, k) SELECT -1, 2";

	$name //= $command;
	$stack->is_live($handle);
	my $before = $stack->closed_gaps($handle);
	if ($command !~ /CONCURRENTLY|COMMIT/)
	{
		$stack->sql('BEGIN', $command, $write, 'ROLLBACK');
		is($stack->gaps($handle), $before, "$name: nothing if rolled back");
		$stack->sql('BEGIN', $command, $write, 'COMMIT');
	}
	else { $stack->sql($command, $write); }
	cmp_ok($stack->gaps($handle), '>', $before, "$name: the shape is resynced");
	$stack->is_live($handle);
	$stack->replays($handle, $table, '... and right', @keys);
	$stack->sql($undo) if defined $undo;
	return;
}

sub keeps
{
	my ($command, $undo, $shape, $name) = @_;
	my ($there) = outcome($command, $undo, $shape // $create);

	$name //= $command;
	is($there, 1, "$name: leaves the shape alone");
	return;
}

# once it is published, this is so for what follows
my $live = $stack->sql("SELECT $create");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$live')");

# what does not concern a shape
keeps(@$_) for (
	[ 'CREATE INDEX t_a ON s1.t (a)', undef ],
	[ 'DROP INDEX s1.t_a', 'CREATE INDEX t_a ON s1.t (a)' ],
	[ 'DROP INDEX CONCURRENTLY s1.t_a', 'CREATE INDEX t_a ON s1.t (a)' ],
	[ 'CREATE INDEX CONCURRENTLY t_a2 ON s1.t (a)', undef ],
	[ 'ALTER INDEX s1.t_a2 RENAME TO t_a3', undef ],
	[ 'REINDEX TABLE s1.t', undef ],
	[ 'REINDEX TABLE CONCURRENTLY s1.t', undef ],
	[ 'CREATE STATISTICS s1.stat ON id, a FROM s1.t', 'DROP STATISTICS s1.stat' ],
	[ q{COMMENT ON TABLE s1.t IS 'x'}, undef ],
	[ q{COMMENT ON COLUMN s1.t.a IS 'x'}, undef ],
	[ 'GRANT SELECT ON s1.t TO PUBLIC', 'REVOKE SELECT ON s1.t FROM PUBLIC' ],
	[ 'GRANT SELECT (a) ON s1.t TO PUBLIC', 'REVOKE SELECT (a) ON s1.t FROM PUBLIC' ],
	[ 'ALTER TABLE s1.t SET (fillfactor = 70)', undef ],
	[ 'ALTER TABLE s1.t OWNER TO bypasser', 'ALTER TABLE s1.t OWNER TO CURRENT_USER' ],
	[ 'CREATE TRIGGER trg BEFORE UPDATE ON s1.t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()', undef ],
	[ 'ALTER TABLE s1.t DISABLE TRIGGER trg', undef ],
	[ 'DROP TRIGGER trg ON s1.t', undef ],
	[ 'ALTER TABLE s1.t ADD CONSTRAINT c CHECK (n > 0)', undef ],
	[ 'ALTER TABLE s1.t RENAME CONSTRAINT c TO c2', undef ],
	[ 'ALTER TABLE s1.t DROP CONSTRAINT c2', undef ],
	[ 'VACUUM FULL s1.t', undef ],
	[ 'SET default_transaction_read_only = on; VACUUM FULL s1.t', undef ],
	[ 'CREATE VIEW v AS SELECT * FROM s1.t', 'DROP VIEW v' ],
	[ 'ALTER SCHEMA s1 OWNER TO bypasser', 'ALTER SCHEMA s1 OWNER TO CURRENT_USER' ],
	[ 'ALTER SCHEMA s2 RENAME TO s3', 'ALTER SCHEMA s3 RENAME TO s2' ],
	[ q{ALTER TYPE feeling ADD VALUE 'glad'}, undef ],
	[ 'ALTER TYPE feeling RENAME TO mood', 'ALTER TYPE mood RENAME TO feeling' ],
	[ 'ALTER DOMAIN small DROP CONSTRAINT small_check', undef ],
	[ 'ALTER DOMAIN small ADD CHECK (VALUE < 1000)', undef ],
	[ 'ALTER TABLE s1.t REPLICA IDENTITY FULL', undef ],
	[ 'ALTER TABLE s1.t REPLICA IDENTITY USING INDEX t_pkey', undef ],
	[ 'ALTER TABLE s1.t REPLICA IDENTITY DEFAULT', undef ],
	# a policy has a say only if row-level security is enabled, and its owner is a superuser
	[ 'CREATE POLICY p ON s1.t USING (false)', undef ],
	[ 'ALTER TABLE s1.t ENABLE ROW LEVEL SECURITY', undef ],
	[ 'ALTER TABLE s1.t FORCE ROW LEVEL SECURITY', undef ],
	[ 'ALTER TABLE s1.t NO FORCE ROW LEVEL SECURITY', undef ],
	[ 'ALTER TABLE s1.t DISABLE ROW LEVEL SECURITY', undef ],
	[ 'CREATE TABLE another (LIKE s1.t INCLUDING ALL)', 'DROP TABLE another' ],
	[ 'ALTER TABLE s1.t ALTER a SET STATISTICS 100', undef ],
	[ 'ALTER TABLE s1.t ALTER a SET (n_distinct = 5)', undef ],
	[ 'ALTER TABLE s1.t ALTER a RESET (n_distinct)', undef ],
	[ 'ALTER TABLE s1.t ALTER a SET STORAGE EXTERNAL', undef ],
	[ 'ALTER TABLE s1.t ALTER a SET COMPRESSION pglz', undef ],
	[ 'ALTER TABLE s1.t ALTER a SET NOT NULL', undef ],
	[ 'ALTER TABLE s1.t ALTER a DROP NOT NULL', undef ],
	[ q{ALTER TABLE s1.t ALTER a SET DEFAULT 'x'}, 'ALTER TABLE s1.t ALTER a DROP DEFAULT' ],
	[ 'ALTER TABLE s1.t ALTER n ADD GENERATED BY DEFAULT AS IDENTITY', 'ALTER TABLE s1.t ALTER n DROP IDENTITY' ],
	[ 'ALTER TABLE s1.t ALTER c TYPE varchar(20)', undef ],
	[ 'ALTER TABLE s1.t CLUSTER ON t_pkey', undef ],
	[ 'CLUSTER s1.t', undef ],
	[ 'ALTER TABLE s1.t SET ACCESS METHOD heap', undef ],
	[ 'ALTER TABLE s1.t SET TABLESPACE pg_default', undef ],
	[ 'ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE pg_default', undef ],
	[ 'ALTER TABLE row_typed ALTER x SET STATISTICS 10', undef ],
	[ 'CREATE TABLE child () INHERITS (s1.t)', 'DROP TABLE child' ],
	[ 'CREATE PUBLICATION other FOR TABLE s1.t', undef ],
	[ q{ALTER PUBLICATION other SET (publish = 'insert')}, undef ],
	[ 'DROP PUBLICATION other', undef ]);
is($stack->exists_shape($live), 1, 'it has been the same shape all the time');
$stack->sql('UPDATE s1.t SET n = n + 100', 'DELETE FROM s1.t WHERE id = 3', 'UPDATE s1.t SET id = id + 100 WHERE id > 8',
	'SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($live, 's1.t', ['id']);
ok($ok, "and it goes on ($entries entries)");

# what has one compared
resyncs(@$_) for (
	[ 'ALTER TABLE s1.t RENAME COLUMN a TO b', 'ALTER TABLE s1.t RENAME COLUMN b TO a' ],
	[ 'ALTER TABLE s1.t ADD COLUMN z int', undef ],
	[ 'ALTER TABLE s1.t DROP COLUMN z', undef ],
	[ q{ALTER TABLE s1.t ALTER COLUMN a TYPE text USING a || 'x'}, undef ],
	[ q{ALTER TABLE s1.t ALTER COLUMN a TYPE text USING upper(a)}, undef ],
	[ 'ALTER TABLE s1.t ALTER COLUMN c TYPE varchar(5)', 'ALTER TABLE s1.t ALTER COLUMN c TYPE varchar(10)' ],
	[ 'ALTER TABLE s1.t ALTER COLUMN c TYPE text', 'ALTER TABLE s1.t ALTER COLUMN c TYPE varchar(10)' ],
	[ q{ALTER TYPE feeling RENAME VALUE 'sad' TO 'sorry'}, q{ALTER TYPE feeling RENAME VALUE 'sorry' TO 'sad'} ],
	[ 'ALTER TYPE pair ADD ATTRIBUTE c int', undef ],
	[ 'ALTER TYPE pair DROP ATTRIBUTE c', undef ],
	[ 'ALTER TYPE inside ADD ATTRIBUTE y int', undef ],
	[ 'ALTER TABLE row_typed ADD COLUMN y int', undef ],
	[ 'TRUNCATE s1.t', undef ],
	[ 'BEGIN; TRUNCATE s1.t; SET TRANSACTION READ ONLY; COMMIT', undef ]);

# what ends one
ends(@$_) for (
	[ 'ALTER TABLE s1.t RENAME TO t2', 'ALTER TABLE s1.t2 RENAME TO t' ],
	[ 'ALTER TABLE s1.t SET SCHEMA s2', 'ALTER TABLE s2.t SET SCHEMA s1' ],
	[ 'ALTER SCHEMA s1 RENAME TO s4', 'ALTER SCHEMA s4 RENAME TO s1' ],
	[ 'ALTER TABLE s1.t REPLICA IDENTITY USING INDEX t_n', undef ],
	[ 'DROP INDEX s1.t_n', 'CREATE UNIQUE INDEX t_n ON s1.t (n); ALTER TABLE s1.t REPLICA IDENTITY USING INDEX t_n' ],
	[ 'DROP INDEX CONCURRENTLY s1.t_n', 'CREATE UNIQUE INDEX t_n ON s1.t (n); ALTER TABLE s1.t REPLICA IDENTITY DEFAULT' ],
	[ 'ALTER TABLE s1.t REPLICA IDENTITY USING INDEX t_id_n', 'ALTER TABLE s1.t REPLICA IDENTITY DEFAULT' ],
	[ 'ALTER TABLE s1.t REPLICA IDENTITY NOTHING', 'ALTER TABLE s1.t REPLICA IDENTITY DEFAULT' ],
	[ 'ALTER TABLE s1.t DROP CONSTRAINT t_pkey', 'ALTER TABLE s1.t ADD PRIMARY KEY (id)' ]);

# another sort of enum has nothing to do with it
$stack->sql(q{CREATE TYPE lamp AS ENUM ('on', 'off')}, 'CREATE TYPE unused AS (x int)');
keeps(q{ALTER TYPE lamp RENAME VALUE 'on' TO 'lit'});
keeps('ALTER TYPE unused ADD ATTRIBUTE y int');

# where clauses: what was enough for one shape is not for another
$stack->sql('ALTER TABLE s1.t REPLICA IDENTITY FULL');
ends('ALTER TABLE s1.t REPLICA IDENTITY DEFAULT', 'ALTER TABLE s1.t REPLICA IDENTITY FULL',
	q{electric_cm_create_shape('s1.t', 'n > 5')}, 'REPLICA IDENTITY DEFAULT, where clause on another column');
ends('ALTER TABLE s1.t REPLICA IDENTITY DEFAULT', 'ALTER TABLE s1.t REPLICA IDENTITY FULL',
	q{electric_cm_create_shape('s1.t', 'id > 5')}, 'REPLICA IDENTITY DEFAULT, large values');
keeps('ALTER TABLE s1.t REPLICA IDENTITY DEFAULT', undef,
	q{electric_cm_create_shape('s1.t', 'id > 5', '{id,n}')}, 'REPLICA IDENTITY DEFAULT, where clause on the key');

# row-level security is a matter of who the owner is
my $as_reader = q{electric_cm_create_shape('s1.t') FROM set_config('role', 'reader', false)};
my $as_bypasser = q{electric_cm_create_shape('s1.t') FROM set_config('role', 'bypasser', false)};
my $enable = 'ALTER TABLE s1.t ENABLE ROW LEVEL SECURITY';
my $disable = 'ALTER TABLE s1.t DISABLE ROW LEVEL SECURITY';
$stack->sql('GRANT USAGE ON SCHEMA s1 TO reader, bypasser', 'GRANT SELECT ON s1.t TO reader, bypasser');	# with the owner, grants have changed
keeps('ALTER POLICY p ON s1.t USING (true)', undef, $as_reader);
keeps('ALTER TABLE s1.t FORCE ROW LEVEL SECURITY', undef, $as_reader, 'FORCE alone');
ends($enable, $disable, $as_reader, 'ENABLE ROW LEVEL SECURITY, ordinary owner');
keeps($enable, $disable, $as_bypasser, 'ENABLE ROW LEVEL SECURITY, owner with BYPASSRLS');
$stack->sql('ALTER TABLE s1.t OWNER TO reader', 'ALTER TABLE s1.t NO FORCE ROW LEVEL SECURITY');
keeps($enable, undef, $as_reader, 'ENABLE ROW LEVEL SECURITY, owner of the table');
ends('ALTER TABLE s1.t FORCE ROW LEVEL SECURITY', $disable, $as_reader, 'FORCE ROW LEVEL SECURITY, owner of the table');
$stack->sql($enable, 'ALTER TABLE s1.t NO FORCE ROW LEVEL SECURITY');
ends('ALTER TABLE s1.t OWNER TO bypasser', $disable, $as_reader, 'another owner while row-level security is enabled');

# partitions
my $of_root = q{electric_cm_create_shape('root')};
my $of_leaf = q{electric_cm_create_shape('leaf2')};
$live = $stack->sql("SELECT $of_root");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$live')");
keeps('ALTER TABLE leaf1 SET (fillfactor = 70)', undef, $of_root);
keeps('ALTER TABLE leaf1 RENAME TO leaf', 'ALTER TABLE leaf RENAME TO leaf1', $of_root);
keeps('ALTER TABLE leaf1 REPLICA IDENTITY FULL', undef, $of_root);
keeps('ALTER TABLE leaf1 REPLICA IDENTITY DEFAULT', undef, $of_root);
keeps('CREATE INDEX ON root (t)', undef, $of_root);
keeps('ALTER TABLE root ALTER t SET STATISTICS 100', undef, $of_root);
keeps('ALTER TABLE leaf1 ALTER t SET STORAGE EXTERNAL', undef, $of_root);
resyncs('ALTER TABLE root ALTER t TYPE text USING upper(t)', undef, $of_root);
ends('ALTER TABLE leaf1 REPLICA IDENTITY NOTHING', 'ALTER TABLE leaf1 REPLICA IDENTITY DEFAULT', $of_root);
ends('ALTER TABLE leaf1 SET UNLOGGED', 'ALTER TABLE leaf1 SET LOGGED', $of_root);
$stack->sql(q{INSERT INTO loose VALUES ('loose', 3, 3)}, q{INSERT INTO root VALUES (1, 1, 'leaf1')});
resyncs('ALTER TABLE root ATTACH PARTITION loose FOR VALUES IN (3)', undef, $of_root);
resyncs('ALTER TABLE root DETACH PARTITION loose', undef, $of_root);
resyncs('CREATE TABLE leaf4 PARTITION OF root FOR VALUES IN (4)', q{INSERT INTO root VALUES (4, 4, 'leaf4')}, $of_root);
resyncs('ALTER TABLE root DETACH PARTITION leaf4 CONCURRENTLY', 'DROP TABLE leaf4', $of_root);
resyncs('CREATE TABLE leaf5 PARTITION OF root DEFAULT', q{INSERT INTO root VALUES (5, 5, 'leaf5')}, $of_root);
resyncs('DROP TABLE leaf5', undef, $of_root);
resyncs('TRUNCATE leaf1', undef, $of_root);
resyncs('ALTER TABLE root RENAME COLUMN t TO tt', 'ALTER TABLE root RENAME COLUMN tt TO t', $of_root);
$stack->sql('ALTER TABLE leaf1 REPLICA IDENTITY FULL', 'ALTER TABLE leaf2 REPLICA IDENTITY FULL');
ends('ALTER TABLE leaf2 REPLICA IDENTITY DEFAULT', 'ALTER TABLE leaf2 REPLICA IDENTITY FULL',
	q{electric_cm_create_shape('root', $$t = 'x'$$)}, q{a partition's replica identity, where clause on another column});

# a partition's own shape is served by what is published of the root, which it is
# as long as it has shapes
$stack->live_shape('root');
$live = $stack->sql("SELECT $of_leaf");
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$live')");
is($stack->sql(q{SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'leaf2'::regclass}), 0, 'a partition is not published by itself');
keeps('DROP TABLE leaf1', 'CREATE TABLE leaf1 PARTITION OF root FOR VALUES IN (1)', $of_leaf, q{DROP of a partition's sibling});
$stack->live_shape('root');
resyncs('ALTER TABLE root DETACH PARTITION leaf2', undef, $of_leaf, 'DETACH of the partition itself');
is($stack->sql(q{SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'leaf2'::regclass}), 1, '... which is published by itself then');
$stack->sql('ALTER TABLE root ATTACH PARTITION leaf2 FOR VALUES IN (2)');

# the publication: the resync of a table that has left it puts it in again
$live = $stack->sql("SELECT $create");
resyncs('ALTER PUBLICATION electric_cm_publication DROP TABLE s1.t', undef);
resyncs('ALTER PUBLICATION electric_cm_publication SET TABLE root', undef);
$stack->sql('ALTER PUBLICATION electric_cm_publication ADD TABLES IN SCHEMA s1', 'ALTER PUBLICATION electric_cm_publication DROP TABLE s1.t');
keeps('ALTER PUBLICATION electric_cm_publication ADD TABLES IN SCHEMA s2', undef);
keeps('ALTER PUBLICATION electric_cm_publication DROP TABLES IN SCHEMA s2', undef);
resyncs('ALTER PUBLICATION electric_cm_publication DROP TABLES IN SCHEMA s1', undef);
is($stack->exists_shape($live), 1, 'it has been the same shape all the time');

# partitions under their root's name: a leaf's own shapes would see nothing
my $leaf = $stack->live_shape('leaf2');
my $gaps = $stack->closed_gaps($leaf);
$stack->sql('BEGIN', 'ALTER PUBLICATION electric_cm_publication SET (publish_via_partition_root)', q{INSERT INTO leaf2 VALUES (2, 2, 'unseen')}, 'COMMIT');
cmp_ok($stack->gaps($leaf), '>', $gaps, 'partitions as their root: the shape is resynced');
$stack->becomes(q{SELECT status = 'failed' AND last_error LIKE '%changes of their root' FROM electric_cm_stat_manager},
	'... once that is mended: such a publication is a configuration error');
$stack->sql('ALTER PUBLICATION electric_cm_publication SET (publish_via_partition_root = false)', 'SELECT electric_cm_start()');
$stack->is_live($leaf);
$stack->replays($leaf, 'leaf2', '... and right', keys => [ 'id', 'k' ]);

# an event says why
is($stack->sql(q{SELECT count(*) FROM unnest(ARRAY['the table was renamed', 'the table''s key has changed',
		'the table''s replica identity has changed', 'row-level security applies to the shape''s owner',
		'the table is not logged any more']) r
	WHERE NOT EXISTS (SELECT FROM electric_cm_events e WHERE e.message LIKE '%' || r)}), 0, 'events say why');
is($stack->sql(q{SELECT count(*) FROM unnest(ARRAY['the table was truncated', 'the type of a column was changed',
		'a value of a column''s type was renamed', 'partitions were attached or detached', 'the table''s columns were changed',
		'the table has left the publication', 'the publication does not publish everything any more']) r
	WHERE NOT EXISTS (SELECT FROM electric_cm_events e WHERE event = 'shape_resynced' AND detail = r)}), 0, '... also of what was compared');
ok($stack->active, 'and the stack is active');

$node->stop;
done_testing();
