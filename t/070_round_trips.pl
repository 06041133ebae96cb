# What a transaction takes back before its commit: changes that it has made in
# between are missing from the stream, or look different there, so that shapes end, or
# are resynced, all the same. If it was a subtransaction that was rolled back, nothing has
# happened. And commands that take nothing away leave shapes alone.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "log_min_messages = warning\n");
my $pub = 'electric_cm_publication';

sub live_shapes
{
	my @handles = split /\n/, $stack->sql(map { "SELECT electric_cm_create_shape('$_')" } @_);
	my $list = join ', ', map { "'$_'" } @handles;
	$stack->becomes("SELECT bool_and(state = 'live') FROM electric_cm_shapes WHERE handle IN ($list)");
	return @handles;
}

# For each of these shapes, 1 if it is there, else 0
sub are_there { return join ',', split /\n/, $stack->sql(map { "SELECT count(*) FROM electric_cm_shapes WHERE handle = '$_'" } @_); }

# Shapes of these tables, those first that the transaction concerns: it ends them, or with
# a tilde has them resynced.  The others it must leave alone.  Before that, the same in
# subtransactions that are rolled back.
sub round_trip
{
	my ($what, $concerned, $others, @commands) = @_;
	my @gone = grep { !/~/ } @{$concerned};
	my @resynced = map { s/~//r } grep { /~/ } @{$concerned};
	my @tables = (@gone, @resynced, @{$others});
	my @handles = live_shapes(@tables);
	my @gaps = map { $stack->closed_gaps($_) } @handles;

	# one each: a server with assertions does not decode a catalog's row where one of
	# a rolled-back subtransaction has been
	$stack->sql('BEGIN', 'SAVEPOINT a', @commands, 'ROLLBACK TO a', 'COMMIT',
		'BEGIN', 'SAVEPOINT a', @commands[0 .. $#commands - 1], 'ROLLBACK TO a', 'COMMIT',
		'BEGIN', 'SAVEPOINT a', 'SAVEPOINT b', @commands, 'RELEASE b', 'ROLLBACK TO a', 'COMMIT');
	is(are_there(@handles), join(',', map { 1 } @handles), "$what: rolled back, nothing has happened");
	is_deeply([ map { $stack->gaps($_) } @handles ], \@gaps, '... to their logs, either');
	$stack->sql('BEGIN', @commands, 'COMMIT');
	is(are_there(@handles), join(',', (map { 0 } @gone), (map { 1 } @resynced, @{$others})),
		"$what: ends the shapes of (@gone), leaves (@resynced @{$others}) there");
	splice @$_, 0, scalar @gone for \@tables, \@handles, \@gaps;
	is(join(',', map { $stack->gaps($handles[$_]) > $gaps[$_] ? 1 : 0 } 0 .. $#handles),
		join(',', (map { 1 } @resynced), (map { 0 } @{$others})), "... and has (@resynced) resynced");
	for my $i (0 .. $#handles)
	{
		$stack->is_live($handles[$i]);
		$stack->replays($handles[$i], $tables[$i], "... $tables[$i] is right");
		next unless $gaps[$i] < $stack->gaps($handles[$i]);
		$stack->sql("UPDATE $tables[$i] SET v = left(v, 50) || 'z' WHERE id % 2 = 1");
		$stack->replays($handles[$i], $tables[$i], '... and goes on with the stream');
	}
	return;
}

my $write = q{UPDATE %1$s SET v = v || 'x' WHERE id %% 2 = 0; INSERT INTO %1$s SELECT max(id) + 1, 'new' FROM %1$s; DELETE FROM %1$s WHERE id = (SELECT min(id) FROM %1$s)};
sub dml { return sprintf $write, $_[0]; }

#
# Tables that are published by name, and by their root
#

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE SCHEMA elsewhere',
	'CREATE TABLE t (id int PRIMARY KEY, v text)', q{INSERT INTO t SELECT i, 'old' FROM generate_series(1, 9) i},
	'CREATE TABLE bystander (id int PRIMARY KEY, v text)', q{INSERT INTO bystander VALUES (1, 'old')},
	'CREATE TABLE r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)',
	'CREATE TABLE m PARTITION OF r FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)',
	'CREATE TABLE leaf PARTITION OF m FOR VALUES FROM (0) TO (100)',
	'CREATE TABLE other_leaf PARTITION OF r FOR VALUES FROM (100) TO (200)',
	q{INSERT INTO r SELECT i, 'old' FROM generate_series(1, 9) i}, q{INSERT INTO r VALUES (101, 'old')},
	'CREATE TABLE archive (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)');
$stack->active or BAIL_OUT('no stack');
live_shapes('archive', 'r');

# partitions
round_trip('a leaf is detached and attached', [ 'r~', 'm~', 'leaf~' ], ['other_leaf'],
	'ALTER TABLE m DETACH PARTITION leaf', dml('leaf'), 'ALTER TABLE m ATTACH PARTITION leaf FOR VALUES FROM (0) TO (100)');
round_trip('a middle level is detached and attached', [ 'r~', 'm~', 'leaf~' ], ['other_leaf'],
	'ALTER TABLE r DETACH PARTITION m', dml('leaf'), 'ALTER TABLE r ATTACH PARTITION m FOR VALUES FROM (0) TO (100)');
round_trip('a leaf changes to another published root', [ 'r~', 'other_leaf~' ], ['leaf'],
	'ALTER TABLE r DETACH PARTITION other_leaf', dml('other_leaf'), 'ALTER TABLE archive ATTACH PARTITION other_leaf FOR VALUES FROM (100) TO (200)');
round_trip('... and back', [ 'archive~', 'other_leaf~' ], ['bystander'],
	'ALTER TABLE archive DETACH PARTITION other_leaf', dml('other_leaf'), 'ALTER TABLE r ATTACH PARTITION other_leaf FOR VALUES FROM (100) TO (200)');
round_trip('the root leaves the publication and comes back', [ 'r~', 'm~', 'leaf~' ], ['bystander'],
	"ALTER PUBLICATION $pub DROP TABLE r", dml('leaf'), "ALTER PUBLICATION $pub ADD TABLE r");
round_trip('a function does that', [ 'r~', 'leaf~' ], ['bystander'],
	"DO \$\$ BEGIN ALTER PUBLICATION $pub DROP TABLE r; UPDATE leaf SET v = 'by function'; ALTER PUBLICATION $pub ADD TABLE r; END \$\$");
$stack->sql("ALTER PUBLICATION $pub ADD TABLE leaf");
round_trip('a leaf that its root publishes as well leaves it', [], [ 'r', 'leaf' ],
	"ALTER PUBLICATION $pub DROP TABLE leaf", dml('leaf'));

# the publication
sub set_table { return "ALTER PUBLICATION $pub SET TABLE r, archive, bystander" . (@_ ? ', t' . $_[0] : ''); }
live_shapes('t', 'bystander');
$stack->sql(set_table(''));
round_trip('the list of tables is replaced, and again', ['t~'], [ 'r', 'bystander' ], set_table(), dml('t'), set_table(''));
round_trip('the same list', [], [ 't', 'r' ], set_table(''), dml('t'));
round_trip('a row filter', ['t~'], [ 'r', 'bystander' ], set_table(' WHERE (id < 0)'), dml('t'), set_table(''));
round_trip('a column list', ['t~'], [ 'r', 'bystander' ], set_table(' (id)'), q{UPDATE t SET v = v || 'y'}, set_table(''));
round_trip(q{a leaf's own row filter}, [ 'r~', 'leaf~' ], ['bystander'],
	"ALTER PUBLICATION $pub ADD TABLE leaf WHERE (id < 0)", dml('leaf'), "ALTER PUBLICATION $pub DROP TABLE leaf");
round_trip('some kinds of changes only', [ 't~', 'r~', 'leaf~', 'bystander~' ], [],
	"ALTER PUBLICATION $pub SET (publish = 'insert')", dml('t'), "ALTER PUBLICATION $pub SET (publish = 'insert, update, delete, truncate')");
round_trip('partitions as their root', [ 't~', 'r~', 'leaf~', 'bystander~' ], [],
	"ALTER PUBLICATION $pub SET (publish_via_partition_root)", dml('leaf'), "ALTER PUBLICATION $pub SET (publish_via_partition_root = false)");
$stack->sql($stack->publication_sql('spare', 'FOR TABLE bystander'));
round_trip('another one under its name', [ 't~', 'r~', 'leaf~', 'bystander~' ], [],
	"ALTER PUBLICATION $pub RENAME TO aside", "ALTER PUBLICATION spare RENAME TO $pub", dml('t'),
	"ALTER PUBLICATION $pub RENAME TO spare", "ALTER PUBLICATION aside RENAME TO $pub");
round_trip('what is done to other publications', [], [ 't', 'r', 'leaf' ],
	q{ALTER PUBLICATION spare SET (publish = 'insert')}, 'ALTER PUBLICATION spare RENAME TO spare2', dml('t'), 'DROP PUBLICATION spare2', 'CREATE PUBLICATION spare FOR TABLE t');
$stack->sql('CREATE ROLE someone SUPERUSER');
round_trip('another owner of the publication', [], [ 't', 'r', 'leaf' ],
	"ALTER PUBLICATION $pub OWNER TO someone", dml('t'), "ALTER PUBLICATION $pub OWNER TO CURRENT_USER");

# what an event trigger does within the command
$stack->sql("CREATE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql AS \$\$ BEGIN
		IF current_query() LIKE '%DROP TABLE t' AND NOT EXISTS (SELECT FROM pg_publication_tables WHERE pubname = '$pub' AND tablename = 't') THEN
			UPDATE t SET v = 'by trigger'; ALTER PUBLICATION $pub ADD TABLE t;
		END IF; END \$\$",
	'CREATE EVENT TRIGGER meddler ON ddl_command_end WHEN TAG IN (\'ALTER PUBLICATION\') EXECUTE FUNCTION meddle()');
my ($by_trigger) = live_shapes('t');
my $by_trigger_gaps = $stack->closed_gaps($by_trigger);
$stack->sql("ALTER PUBLICATION $pub DROP TABLE t");
is($stack->gaps($by_trigger), $by_trigger_gaps + 1, 'an event trigger takes the command back: its shapes are resynced');
$stack->is_live($by_trigger);
$stack->replays($by_trigger, 't', '... and right');
$stack->sql('DROP EVENT TRIGGER meddler');

# names
round_trip('a table renamed and renamed back', [], ['t'], 'ALTER TABLE t RENAME TO u', dml('u'), 'ALTER TABLE u RENAME TO t');
round_trip('... a schema', [], ['t'], 'ALTER SCHEMA public RENAME TO private', dml('private.t'), 'ALTER SCHEMA private RENAME TO public');
round_trip('a table that goes into another schema and back', [], [ 'r', 't' ],
	'ALTER TABLE t SET SCHEMA elsewhere', dml('elsewhere.t'), 'ALTER TABLE elsewhere.t SET SCHEMA public');
round_trip('a column renamed and renamed back', ['t~'], ['r'], 'ALTER TABLE t RENAME v TO w', 'INSERT INTO t VALUES (50, \'w\')', 'ALTER TABLE t RENAME w TO v');

# columns
round_trip('a type changed and changed back', ['t~'], ['r'],
	'ALTER TABLE t ALTER v TYPE bytea USING convert_to(v, \'UTF8\')', q{UPDATE t SET v = 'x'::bytea WHERE id = 2}, 'ALTER TABLE t ALTER v TYPE text USING convert_from(v, \'UTF8\')');
round_trip('a type kept, and the rows rewritten', ['t~'], ['r'], 'ALTER TABLE t ALTER v SET STATISTICS 10, ALTER v TYPE text USING upper(v)');
round_trip('... of partitions', [ 'r~', 'm~', 'leaf~', 'other_leaf~' ], ['t'], 'ALTER TABLE r ALTER v TYPE text USING upper(v)');

# persistence
round_trip('a leaf is unlogged for a while', [ 'r', 'm', 'leaf' ], ['other_leaf'], 'ALTER TABLE leaf SET UNLOGGED', dml('leaf'), 'ALTER TABLE leaf SET LOGGED');

# keys
$stack->sql('CREATE TABLE k (id int NOT NULL, n int NOT NULL, v text)', 'CREATE UNIQUE INDEX k_id ON k (id)', 'CREATE UNIQUE INDEX k_n ON k (n)',
	'ALTER TABLE k REPLICA IDENTITY USING INDEX k_id', q{INSERT INTO k VALUES (1, 1, 'a'), (2, 2, 'b')},
	'CREATE TABLE p (id int PRIMARY KEY, v text)', 'ALTER TABLE p REPLICA IDENTITY FULL', q{INSERT INTO p VALUES (1, 'a')});
round_trip('the identity index dropped and made again', ['k'], ['p'],
	'ALTER TABLE k REPLICA IDENTITY FULL', 'DROP INDEX k_id', q{INSERT INTO k VALUES (1, 3, 'c')}, q{DELETE FROM k WHERE v = 'a'},
	'CREATE UNIQUE INDEX k_id ON k (id)', 'ALTER TABLE k REPLICA IDENTITY USING INDEX k_id');
round_trip('the replica identity changed and changed back', ['k'], ['p'],
	'ALTER TABLE k REPLICA IDENTITY USING INDEX k_n', 'UPDATE k SET id = id + 10', 'ALTER TABLE k REPLICA IDENTITY USING INDEX k_id');
round_trip('none for a while', ['p'], ['k'], 'ALTER TABLE p REPLICA IDENTITY NOTHING', q{INSERT INTO p VALUES (5, 'e')}, 'ALTER TABLE p REPLICA IDENTITY FULL');
round_trip('the primary key dropped and added', ['p'], ['k'],
	'ALTER TABLE p DROP CONSTRAINT p_pkey', q{INSERT INTO p VALUES (1, 'b')}, q{DELETE FROM p WHERE v = 'a'}, 'ALTER TABLE p ADD PRIMARY KEY (id)', q{UPDATE p SET v = 'a' WHERE id = 1});
round_trip('... by an index that is there', ['p'], ['k'],
	'ALTER TABLE p DROP CONSTRAINT p_pkey', q{INSERT INTO p VALUES (1, 'b')}, q{DELETE FROM p WHERE v = 'a'}, 'CREATE UNIQUE INDEX p_id ON p (id)', 'ALTER TABLE p ADD CONSTRAINT p_pkey PRIMARY KEY USING INDEX p_id', q{UPDATE p SET v = 'a' WHERE id = 1});
round_trip('its columns lose NOT NULL meanwhile', ['k'], ['p'],
	'ALTER TABLE k REPLICA IDENTITY FULL', 'ALTER TABLE k ALTER id DROP NOT NULL', q{INSERT INTO k VALUES (NULL, 8, 'x')}, q{DELETE FROM k WHERE n = 8}, 'ALTER TABLE k ALTER id SET NOT NULL', 'ALTER TABLE k REPLICA IDENTITY USING INDEX k_id');
round_trip(q{a partition's replica identity}, ['r'], ['t'],
	'ALTER TABLE leaf REPLICA IDENTITY NOTHING', q{INSERT INTO leaf VALUES (60, 'x')}, 'ALTER TABLE leaf REPLICA IDENTITY DEFAULT', 'DELETE FROM leaf WHERE id = 60');
round_trip('indexes rebuilt', [], [ 'k', 'p', 'r' ], 'REINDEX TABLE k', 'REINDEX INDEX p_pkey', 'REINDEX TABLE leaf', 'ALTER INDEX k_id SET (fillfactor = 50)', 'ALTER INDEX k_n RENAME TO k_n2', 'ALTER INDEX k_n2 RENAME TO k_n');
my ($key_of_index) = live_shapes('k');
$stack->sql('REINDEX TABLE CONCURRENTLY k');
is($stack->exists_shape($key_of_index), 1, 'REINDEX CONCURRENTLY of the identity index leaves the shape alone');
$stack->replays($key_of_index, 'k', '... which goes on');

# row-level security: what was hidden from the owner once has not been for him
$stack->sql('CREATE ROLE reader', 'GRANT USAGE ON SCHEMA public TO reader', 'GRANT SELECT ON t TO reader', 'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO reader');
my $read = $stack->sql('SET ROLE reader', q{SELECT electric_cm_create_shape('t')});
$stack->is_live($read);
my ($owned) = live_shapes('t');
$stack->sql('BEGIN', 'ALTER TABLE t ENABLE ROW LEVEL SECURITY', q{INSERT INTO t VALUES (70, 'hidden')}, 'DELETE FROM t WHERE id = 70', 'ALTER TABLE t DISABLE ROW LEVEL SECURITY', 'COMMIT');
is($stack->exists_shape($read) . $stack->exists_shape($owned), '01', 'row-level security for a while: ends the shapes of those it applies to');

# prepared transactions
my @prepared = live_shapes('t', 'leaf');
my @gaps = map { $stack->closed_gaps($_) } @prepared;
$stack->sql('BEGIN', 'ALTER TABLE m DETACH PARTITION leaf', dml('leaf'), 'ALTER TABLE m ATTACH PARTITION leaf FOR VALUES FROM (0) TO (100)', q{PREPARE TRANSACTION 'p'}, q{ROLLBACK PREPARED 'p'});
is_deeply([ map { $stack->gaps($_) } @prepared ], \@gaps, 'prepared and rolled back: nothing has happened');
$stack->sql('BEGIN', 'ALTER TABLE m DETACH PARTITION leaf', dml('leaf'), 'ALTER TABLE m ATTACH PARTITION leaf FOR VALUES FROM (0) TO (100)', q{PREPARE TRANSACTION 'p'}, q{COMMIT PREPARED 'p'});
is($stack->gaps($prepared[0]) - $gaps[0], 0, 'prepared and committed: no other shape is resynced');
is($stack->gaps($prepared[1]) > $gaps[1], 1, '... but that one');
$stack->is_live($prepared[1]);
$stack->replays($prepared[1], 'leaf', '... and is right');

# the publication itself
sub made_anew
{
	my ($what, $of, $unseen, @tables) = @_;
	my @handles = live_shapes(@tables);
	my @readers = map { $stack->reader($_) } @handles;

	$stack->sql('BEGIN', "DROP PUBLICATION $pub", $unseen, $stack->publication_sql($pub, $of), 'COMMIT', $unseen);
	$stack->active;
	$stack->goes_on($readers[$_], $tables[$_], "$what, $tables[$_]") for 0 .. $#tables;
	$stack->sql($unseen);
	$stack->replays($handles[$_], $tables[$_], '... and goes on') for 0 .. $#tables;
	return;
}
made_anew('dropped and made again', 'FOR TABLE bystander', dml('t') . ';' . dml('leaf'), 't', 'r', 'bystander');

#
# Tables that are published by their schema, and all tables
#

$stack->sql('CREATE DATABASE by_schema');
$stack = $stack->beside('by_schema');
$stack->sql('CREATE SCHEMA s1', 'CREATE SCHEMA s2', 'CREATE TABLE s1.t (id int PRIMARY KEY, v text)', q{INSERT INTO s1.t SELECT i, 'old' FROM generate_series(1, 9) i},
	'CREATE TABLE s1.r (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE s2.leaf PARTITION OF s1.r FOR VALUES FROM (0) TO (100)',
	q{INSERT INTO s1.r SELECT i, 'old' FROM generate_series(1, 9) i}, 'CREATE TABLE named (id int PRIMARY KEY, v text)',
	$stack->publication_sql($pub, 'FOR TABLES IN SCHEMA s1, TABLE named'), 'CREATE EXTENSION electric_cm');
$stack->active;
round_trip('out of the published schema and back', ['s1.t~'], ['s1.r'], 'ALTER TABLE s1.t SET SCHEMA s2', dml('s2.t'), 'ALTER TABLE s2.t SET SCHEMA s1');
round_trip('... a root whose leaf is elsewhere', [ 's1.r~', 's2.leaf~' ], ['s1.t'], 'ALTER TABLE s1.r SET SCHEMA s2', dml('s2.leaf'), 'ALTER TABLE s2.r SET SCHEMA s1');
round_trip('the schema leaves the publication and comes back', [ 's1.t~', 's1.r~', 's2.leaf~' ], ['named'], "ALTER PUBLICATION $pub DROP TABLES IN SCHEMA s1", dml('s1.t'), "ALTER PUBLICATION $pub ADD TABLES IN SCHEMA s1");
round_trip('... by being replaced by another, which has a leaf', [ 's1.t~', 's1.r~' ], [ 's2.leaf', 'named' ], "ALTER PUBLICATION $pub SET TABLES IN SCHEMA s2, TABLE named", dml('s1.t'), "ALTER PUBLICATION $pub SET TABLES IN SCHEMA s1, TABLE named");
round_trip('the schema renamed and renamed back', [], [ 's1.t', 's1.r', 's2.leaf' ], 'ALTER SCHEMA s1 RENAME TO s3', dml('s3.t'), 'ALTER SCHEMA s3 RENAME TO s1');
round_trip('unlogged for a while', ['s1.t'], ['s1.r'], 'ALTER TABLE s1.t SET UNLOGGED', dml('s1.t'), 'ALTER TABLE s1.t SET LOGGED');
$stack->sql("ALTER PUBLICATION $pub ADD TABLE s1.t");
round_trip('published twice, once is enough', [], [ 's1.t', 'named' ], "ALTER PUBLICATION $pub DROP TABLE s1.t", dml('s1.t'));

$stack->sql('CREATE DATABASE by_all');
$stack = $stack->beside('by_all');
$stack->sql('CREATE TABLE a (id int PRIMARY KEY, v text)', 'CREATE TABLE b (id int PRIMARY KEY, v text)', q{INSERT INTO b VALUES (1, 'old')},
	$stack->publication_sql($pub, 'FOR ALL TABLES'), 'CREATE EXTENSION electric_cm');
$stack->active;
round_trip('of all tables, unlogged for a while', ['b'], ['a'], 'ALTER TABLE b SET UNLOGGED', dml('b'), 'ALTER TABLE b SET LOGGED');
made_anew('FOR ALL TABLES dropped and made again for one', 'FOR TABLE a', dml('b'), 'a', 'b');

$stack->node->stop;
done_testing();
