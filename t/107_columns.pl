# The columns of a table change: its shapes are resynced with the new ones, readers
# go on at their offsets, and get no more than what differs.
use strict;
use warnings;

use JSON::PP;
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.reconnect_initial_delay = 50ms
});
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, a int, big text)',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL',
	q{INSERT INTO t SELECT i, i % 7, repeat(md5(i::text), 70) FROM generate_series(1, 100) i},
	'CREATE TABLE parted (id int PRIMARY KEY, a int, big text) PARTITION BY RANGE (id)',
	'CREATE TABLE parted_low (big text, a int, id int NOT NULL)', 'ALTER TABLE parted ATTACH PARTITION parted_low FOR VALUES FROM (MINVALUE) TO (50)',
	'CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (50) TO (MAXVALUE)',
	'INSERT INTO parted SELECT * FROM t');
ok($stack->active, 'active');
my %shape = (all => $stack->live_shape('t'), some => $stack->live_shape('t', columns => [ 'id', 'a' ]), parted => $stack->live_shape('parted'));
my %table = (all => 't', some => 't', parted => 'parted');
my %offset = map { $_ => $stack->last_offset($shape{$_}) } keys %shape;

# What a reader has, who goes on where he was: rows by key, with the columns that he
# has seen, without those that he was not told to have a value.
my %mirror;
sub read_on
{
	my ($name) = @_;
	my $rows = $stack->sql(qq{SELECT json_agg(json_build_array(log_offset, operation, key, value, old_value))
		FROM electric_cm_shape_log('$shape{$name}', '} . ($mirror{$name}{offset} // '-1') . q{')});
	return 0 if $rows eq '';
	my $entries = decode_json($rows);
	for my $entry (@{$entries})
	{
		my ($offset, $operation, $key, $value) = @{$entry};
		delete $mirror{$name}{rows}{$key} if $operation eq 'delete';
		$mirror{$name}{rows}{$key} = $value if $operation eq 'insert';
		@{ $mirror{$name}{rows}{$key} }{ keys %{$value} } = values %{$value} if $operation eq 'update';
		$mirror{$name}{offset} = $offset;
	}
	return scalar @{$entries};
}
sub check_mirror
{
	my ($name, $what) = @_;
	my $columns = $name eq 'some' ? 'id, a' : '*';
	my $rows = decode_json($stack->sql(qq{SELECT json_agg((SELECT json_object_agg(key, value) FROM jsonb_each_text(to_jsonb(x))))
		FROM (SELECT $columns FROM $table{$name}) x}) || '[]');
	my @mine = values %{ $mirror{$name}{rows} };
	my %mine = map { $_->{id} => $_ } @mine;
	my $wrong = abs(@mine - @{$rows});
	for my $row (@{$rows})
	{
		for my $column (keys %{$row})
		{
			my ($is, $expected) = ($mine{ $row->{id} }{$column}, $row->{$column});
			$wrong++ if ($is // "\0") ne ($expected // "\0");
		}
	}
	return is($wrong, 0, $what);
}
read_on($_) for keys %shape;

sub after
{
	my ($what, $entries, @commands) = @_;
	my $resynced = $stack->events('shape_resynced');
	$stack->sql(@commands);
	$stack->settle;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'", "$what: all are live");
	for my $name (sort keys %shape)
	{
		my $n = read_on($name);
		is($n, $entries->{$name} // 0, "... $name: entries") if defined $entries;
		check_mirror($name, "... $name: a reader who goes on has the table");
	}
	$stack->sql(q{INSERT INTO t (id, a) VALUES (1000, 1), (1001, 2)}, q{UPDATE t SET a = a + 1 WHERE id % 10 = 0},
		q{UPDATE parted SET a = a + 1 WHERE id % 10 = 0}, q{UPDATE t SET id = id + 200 WHERE id = 1001}, 'DELETE FROM t WHERE id IN (1000, 1201)');
	$stack->settle;
	for my $name (sort keys %shape)
	{
		read_on($name);
		check_mirror($name, "... $name: and what comes then");
		delete $mirror{$name};
		read_on($name);
		check_mirror($name, "... $name: likewise from the beginning");
	}
	return;
}

after('a column without values', {}, 'ALTER TABLE t ADD b int', 'ALTER TABLE parted ADD b int');
after('with a default', { all => 100, parted => 100 }, 'ALTER TABLE t ADD c int DEFAULT 7', 'ALTER TABLE parted ADD c int DEFAULT 7');
after('with values of the same transaction', { all => 100, some => 200 }, 'BEGIN; UPDATE t SET b = 1; ALTER TABLE t ADD d text; UPDATE t SET d = id::text; COMMIT');
after('dropped', {}, 'ALTER TABLE t DROP c', 'ALTER TABLE parted DROP c');
after('renamed', { all => 100 }, 'ALTER TABLE t RENAME b TO e');
after('renamed back', undef, 'ALTER TABLE t RENAME e TO b');
after('another type with the same texts', {}, 'ALTER TABLE t ALTER a TYPE bigint');
after('another type with other texts', { all => 100, some => 100 }, q{ALTER TABLE t ALTER a TYPE numeric(10, 2)});
after('dropped and added', { all => 100 }, 'ALTER TABLE t DROP d, ADD d text');
after('added again, without values, after its namesake', undef, 'ALTER TABLE t ADD c int', 'ALTER TABLE parted ADD c int');
after('and dropped again', undef, 'ALTER TABLE t DROP c', 'ALTER TABLE parted DROP c');
after('rolled back', {}, 'BEGIN; ALTER TABLE t ADD f int DEFAULT 1; ROLLBACK');
after('what concerns nobody', {}, 'ALTER TABLE t ALTER a SET STATISTICS 10', 'ALTER TABLE t ALTER a SET DEFAULT 3', 'ALTER TABLE t ALTER d SET STORAGE EXTERNAL');
$stack->sql("UPDATE t SET big = repeat(md5('$_' || id), 70)") for 1 .. 4;
$stack->settle;
read_on($_) for keys %shape;
like($stack->fold($shape{all}, 1000), qr/^folded/, 'the log is folded');
after('folded', undef, 'ALTER TABLE t ADD g int');
# one that comes back without values, when readers have the old ones
sub read_everything
{
	$stack->settle;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'", 'all are live');
	read_on($_) for keys %shape;
	return;
}
$stack->sql('UPDATE t SET d = id::text');
read_everything();
$stack->sql('ALTER TABLE t DROP d');
read_everything();
$stack->sql('UPDATE t SET a = a + 1 WHERE id % 3 = 0');
after('dropped, and added again after updates', undef, 'ALTER TABLE t ADD d text');
$stack->sql('UPDATE t SET d = id::text');
read_everything();
$stack->sql('ALTER TABLE t DROP d');
read_everything();
$stack->sql("UPDATE t SET big = repeat(md5('$_' || id), 70)") for 5 .. 14;
read_everything();
my ($report, $calls) = ('', 0);
$report = $stack->fold($shape{all}, 1000) until $report =~ /^folded/ || ++$calls > 100;
like($report, qr/^folded/, 'the log is folded again');
after('dropped, and added again after a fold', undef, 'ALTER TABLE t ADD d text');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$shape{all}') WHERE operation = 'insert' AND value ?| '{c,e}'"), 0, 'rows of the base have no columns that are gone');
is($stack->events('shape_errored') + $stack->events('shape_invalidated'), 0, 'no shape has ended');

# the key gets another type, and the log has keys that are none of it
for my $pieces (0, 2)
{
	$stack->sql("ALTER SYSTEM SET electric_cm.debug_piece_rows = $pieces", 'SELECT pg_reload_conf()',
		'DROP TABLE IF EXISTS k', 'CREATE TABLE k (id text PRIMARY KEY, a int)', q{INSERT INTO k SELECT i, i FROM generate_series(1, 30) i},
		q{INSERT INTO k VALUES ('none', 1), ('007', 7)});
	$shape{k} = $stack->live_shape('k');
	$table{k} = 'k';
	delete $mirror{k};
	read_on('k');
	$stack->sql(q{BEGIN; DELETE FROM k WHERE id = 'none'; UPDATE k SET id = '100' WHERE id = '007'; ALTER TABLE k ALTER id TYPE int USING id::int; COMMIT});
	$stack->settle;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'", 'another type of the key');
	is(read_on('k'), 3, '... entries');
	check_mirror('k', '... a reader who goes on has the table');
	$stack->sql('ALTER TABLE k ALTER id TYPE bigint', 'INSERT INTO k VALUES (5000000000, 1)');
	$stack->settle;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'", '... and again');
	is(read_on('k'), 1, '... entries');
	check_mirror('k', '... a reader who goes on has the table');
}
# ... and columns that where clauses refer to
$stack->sql('CREATE TABLE w (id int PRIMARY KEY, list int, name varchar(10), at date)', 'ALTER TABLE w REPLICA IDENTITY FULL',
	q{INSERT INTO w SELECT i, i % 3, 'n' || i % 4, '2026-01-01'::date + i FROM generate_series(1, 20) i});
my @clauses = ('list = 1', 'list IN (0, 2) AND id > 3', q{name = 'n1'}, q{at < '2026-01-10'}, 'list > 0');
my @where = map { $stack->live_shape('w', where => s{'}{''}gr) } @clauses;
sub check_where
{
	my ($what, @commands) = @_;
	$stack->sql(@commands, 'UPDATE w SET list = (list + 1) % 3 WHERE id % 2 = 0', q{UPDATE w SET name = 'n1' WHERE id = 2});
	$stack->settle;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'", "$what: live");
	$stack->replays($where[$_], 'w', "... $clauses[$_]", where => $clauses[$_], columns => [ 'id', 'list', 'name' ]) for 0 .. $#where;
	return;
}
check_where('another type of what a where clause refers to', 'ALTER TABLE w ALTER list TYPE bigint');
check_where('likewise, with other values', q{BEGIN; UPDATE w SET list = 7 WHERE id = 1; ALTER TABLE w ALTER list TYPE numeric USING 2 - list; UPDATE w SET list = 0 WHERE list < 0; COMMIT});
check_where('another text type, and collation', 'ALTER TABLE w ALTER name TYPE text COLLATE "C"');
check_where('dropped and added', 'ALTER TABLE w DROP name, ADD name text');
# with this one, the clause has no meaning that does not depend on the session
$stack->sql('ALTER TABLE w ALTER at TYPE timestamptz');
$stack->becomes("SELECT state = 'resyncing' AND last_error IS NULL AND waiting_for ~ '.' FROM electric_cm_shapes WHERE handle = '$where[3]'", 'a clause that is not allowed for a type: the shape waits');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$where[3]')") > 0 ? 1 : 0, 1, '... and can be read');
$stack->sql('ALTER TABLE w ALTER at TYPE date');
check_where('until the column has a type that is', 'SELECT 1');
$stack->sql('DROP TABLE w');

# partitions that come with a replica identity which does not do for a where clause
$stack->sql('ALTER SYSTEM SET electric_cm.set_replica_identity = on', 'SELECT pg_reload_conf()',
	'CREATE TABLE months (id int, a int, m int, PRIMARY KEY (id, m)) PARTITION BY RANGE (m)', 'CREATE TABLE m1 PARTITION OF months FOR VALUES FROM (1) TO (2)',
	'INSERT INTO months SELECT i, i % 3, 1 FROM generate_series(1, 10) i', 'CREATE TABLE m2 (id int NOT NULL, a int, m int NOT NULL, PRIMARY KEY (id, m))', 'INSERT INTO m2 SELECT i, i % 3, 2 FROM generate_series(1, 10) i');
$stack->becomes(q{SELECT current_setting('electric_cm.set_replica_identity') = 'on'});
my $months = $stack->live_shape('months', where => 'a > 0');
for my $command ('ALTER TABLE months ATTACH PARTITION m2 FOR VALUES FROM (2) TO (3)', 'CREATE TABLE m3 PARTITION OF months FOR VALUES FROM (3) TO (4)',
	'BEGIN; CREATE TABLE m4 PARTITION OF months FOR VALUES FROM (4) TO (5); INSERT INTO months VALUES (1, 1, 4), (2, 2, 4); UPDATE months SET a = 0 WHERE id = 1 AND m = 4; COMMIT')
{
	$stack->sql($command, 'INSERT INTO months SELECT 100 + i, i, m FROM generate_series(0, 1) i, (SELECT max(m) AS m FROM months) x ON CONFLICT DO NOTHING',
		'UPDATE months SET a = (a + 1) % 3', 'UPDATE months SET a = (a + 1) % 3 WHERE id % 2 = 0');
	$stack->replays($months, 'months', $command, where => 'a > 0', keys => [ 'id', 'm' ]);
}
$stack->is_live($months);
$stack->sql('ALTER SYSTEM RESET electric_cm.set_replica_identity', 'SELECT pg_reload_conf()', 'CREATE TABLE m5 PARTITION OF months FOR VALUES FROM (5) TO (6)',
	'INSERT INTO months VALUES (1, 1, 5), (2, 2, 5)', 'UPDATE months SET a = a - 1 WHERE m = 5');
$stack->becomes("SELECT state = 'resyncing' AND waiting_for ~ 'replica identity FULL' FROM electric_cm_shapes WHERE handle = '$months'", 'one that is not for us to change is waited for');
$stack->sql('ALTER TABLE m5 REPLICA IDENTITY FULL', 'UPDATE months SET a = (a + 1) % 3');
$stack->replays($months, 'months', 'and what comes then', where => 'a > 0', keys => [ 'id', 'm' ]);
$stack->sql('DROP TABLE months');

# a column goes between an attempt's capture and its look at the table
my ($writer, $ddl) = map { $node->background_psql('postgres') } 1, 2;
$writer->query_safe('BEGIN');
$writer->query_safe('INSERT INTO t (id, a) VALUES (2000, 3)');
$stack->sql("SELECT electric_cm_resync('$shape{all}')");
$stack->becomes("SELECT s.generation = t.generation AND t.state = 'capturing' FROM _electric_cm.shape s JOIN _electric_cm.shape_state t ON t.shape = s.id WHERE handle = '$shape{all}'", 'an attempt waits for a transaction');
$ddl->query_until(qr/begins/, "\\echo begins\nALTER TABLE t DROP d, DROP g, ADD g int;\n");
$stack->becomes(q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 't'::regclass AND NOT granted}, '... as does a command');
$writer->query_safe('COMMIT');
$_->quit for $writer, $ddl;
$stack->settle;
$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$shape{all}'", 'the next attempt has the columns as they are then');
$stack->replays($shape{all}, 't', '... and the rows');
is($stack->sql('SELECT count(*) FROM _electric_cm.shape_gap WHERE closed_at IS NULL'), 0, '... and of orders that have begun no gap, nothing is left');

is($stack->events('shape_errored') + $stack->events('shape_invalidated', q{detail NOT LIKE '%dropped'}), 0, 'no shape has ended');
delete $shape{k};
$stack->sql('DROP TABLE k');

# what still ends a shape
my $asks = $stack->live_shape('t', columns => [ 'id', 'g' ]);
$stack->sql('ALTER TABLE t DROP g, ADD g text');
$stack->is_live($asks, 'a column that was asked for by its name, and is there again');
$stack->sql('ALTER TABLE t RENAME g TO h');
is($stack->exists_shape($asks), 0, '... and is not');
$stack->sql('ALTER TABLE t RENAME id TO key');
$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shapes");
like($stack->error_of_sql("SELECT electric_cm_shape_log('$shape{all}')"), qr/42704/, 'the key has got another name');

# A list of all columns is a list: it does not grow
$stack->sql('CREATE TABLE listed (id int PRIMARY KEY, a int)', 'INSERT INTO listed SELECT i, i FROM generate_series(1, 10) i');
my $listed = $stack->live_shape('listed', columns => [ 'a', 'id' ]);
isnt($stack->live_shape('listed'), $listed, 'a list of all columns makes another shape than none');
my $had = $stack->last_offset($listed);
$stack->sql('ALTER TABLE listed ADD b int DEFAULT 1', 'UPDATE listed SET b = 2 WHERE id = 1', 'INSERT INTO listed VALUES (11, 11, 11)');
$stack->settle;
$stack->replays($listed, 'listed', 'it gets no column that is added', columns => [ 'id', 'a' ]);
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$listed', '$had') WHERE operation = 'insert'"), '1', '... and is not compared');

# A change that no hook has seen: the stream tells.  Another shape of the table keeps the
# consumer's knowledge of it, with the columns that nobody has any more.
$stack->sql('CREATE TABLE unseen (id int PRIMARY KEY, a int)', 'INSERT INTO unseen SELECT i, i FROM generate_series(1, 10) i');
my $unseen = $stack->reader($stack->live_shape('unseen'));
my $ids = $stack->live_shape('unseen', columns => ['id']);
$stack->sql('INSERT INTO unseen VALUES (11, 11)');
$stack->settle;
$stack->sql(q{UPDATE pg_attribute SET attname = 'renamed' WHERE attrelid = 'unseen'::regclass AND attname = 'a'});
$stack->sql('INSERT INTO unseen VALUES (12, 12)');
$stack->resyncs($unseen, q{detail LIKE 'the stream has other columns%'}, 'unseen', 'columns renamed behind our back', command => 1);
$stack->sql('INSERT INTO unseen VALUES (13, 13)');
$stack->settle;
my ($oid, $from) = split /\|/, $stack->sql(q{SELECT 'unseen'::regclass::oid, pg_current_wal_insert_lsn()});
$stack->sql('INSERT INTO unseen VALUES (14, 14)', 'INSERT INTO unseen VALUES (15, 15)');
$stack->settle;
my ($wal) = run_command([ 'pg_waldump', '-p', $node->data_dir . '/pg_wal', '-s', $from, '-e', $stack->sql('SELECT pg_current_wal_flush_lsn()') ]);
like($wal, qr/COMMIT/, 'transactions come behind that');
unlike($wal, qr/relcache $oid\b/, '... and nobody looks at the table anew each time');
$stack->goes_on($unseen, 'unseen', 'columns renamed behind our back, and what comes then');
$stack->replays($ids, 'unseen', '... also of the other shape', columns => ['id']);

# columns change between the beginning of an attempt and the reading of the table, which
# the command makes wait
$stack->sql('CREATE TABLE late (id int PRIMARY KEY, a int, b int)', 'INSERT INTO late VALUES (1, 1, 1)');
my $late_writer = $node->background_psql($stack->db, on_error_stop => 1);
$late_writer->query_safe('BEGIN; INSERT INTO late VALUES (2, 2, 2)');
my $late = $stack->shape('late');
$stack->becomes("SELECT waiting_for LIKE 'transactions that were writing%' FROM electric_cm_shapes WHERE handle = '$late'", 'an attempt waits for a writer');
my $alter = $node->background_psql($stack->db, on_error_stop => 1);
$alter->{stdin} .= "BEGIN; ALTER TABLE late DROP COLUMN b, ADD COLUMN c int DEFAULT 9;\n";
$alter->{run}->pump_nb;
my $waits = q{SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE relation = 'late'::regclass AND NOT granted};
$stack->becomes("$waits AND query LIKE '%ALTER%'", '... and so does a command');
$late_writer->query_safe('COMMIT');
$late_writer->quit;
$stack->becomes("$waits AND application_name LIKE 'electric_cm%'", '... for which the attempt waits then');
$alter->query_safe('COMMIT');
$alter->quit;
$stack->is_live($late, 'that is no error of the shape');
$stack->replays($late, 'late', '... which has the columns of now');
done_testing();
