# A gap in the stream is closed by a comparison of logs and tables: handles and
# offsets stay, and readers get what differs.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.reconnect_initial_delay = 50ms
});
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
$stack->install_compare;
$stack->sql(
	'CREATE TABLE t (id int PRIMARY KEY, n int, big text)',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL',
	'CREATE TABLE wholly (a int, id int, n int, big text, PRIMARY KEY (id, a))',
	'ALTER TABLE wholly REPLICA IDENTITY FULL',
	'CREATE TABLE parted (id int PRIMARY KEY, n int, big text) PARTITION BY RANGE (id)',
	'CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (100)',
	'CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (MAXVALUE)',
	'CREATE TABLE untouched (id int PRIMARY KEY)', 'INSERT INTO untouched VALUES (1)',
	'CREATE TABLE empty (id int PRIMARY KEY)');
for my $table ('t', 'parted', 'wholly')
{
	my ($columns, $values) = $table eq 'wholly' ? ('a, id', 'i % 3, i') : ('id', 'i');
	$stack->sql("INSERT INTO $table ($columns, n, big) SELECT $values, i % 10, repeat(md5(i::text), 70) FROM generate_series(1, 200) i");
}
ok($stack->active, 'active');

my @shapes = (
	[ 't' ], [ 't', columns => [ 'id', 'n' ] ],
	[ 'wholly', where => 'n > 4', keys => [ 'id', 'a' ] ],
	(map { [ 'wholly', where => "n = $_", keys => [ 'id', 'a' ] ] } 0 .. 5),
	[ 'wholly', keys => [ 'id', 'a' ] ], [ 'parted' ], [ 'untouched' ], [ 'empty' ],
);
$_->[0] = { table => $_->[0], handle => $stack->shape(@{$_}) } for @shapes;


# Each has read some of it: all, or half
sub read_on
{
	my ($shape, $max) = @_;
	my $entries = $stack->sql("SELECT log_offset FROM electric_cm_shape_log('$shape->{handle}', '" . ($shape->{offset} // '-1') . "'" . ($max ? ", $max" : '') . ')');
	my @offsets = split /\n/, $entries;
	$shape->{offset} = $offsets[-1] if @offsets;
	return scalar @offsets;
}
for my $shape (@shapes)
{
	$stack->is_live($shape->[0]{handle});
	read_on($shape->[0]);
}
$stack->sql('UPDATE t SET n = n + 1 WHERE id < 50', 'UPDATE parted SET id = id + 1000 WHERE id BETWEEN 90 AND 110');
$stack->settle;
read_on($shapes[0][0], 20);


sub change
{
	my ($round) = @_;
	for my $table ('t', 'parted', 'wholly')
	{
		my ($columns, $values) = $table eq 'wholly' ? ('a, id', 'i % 3, i') : ('id', 'i');
		my $from = 10000 + 100 * $round;
		my $to = $from + 10;
		$stack->sql("INSERT INTO $table ($columns, n, big) SELECT $values, 7, 'x' || i FROM generate_series($from, $to) i",
			"DELETE FROM $table WHERE id % 17 = $round",
			"UPDATE $table SET n = n + 3 WHERE id % 13 = $round",
			"UPDATE $table SET id = id + 5000 * ($round + 1) WHERE id % 19 = $round AND id < 5000",
			"UPDATE $table SET big = repeat('y', 2500) WHERE id % 23 = $round",
			"UPDATE $table SET big = NULL WHERE id % 29 = $round");
	}
}

sub check
{
	my ($what) = @_;
	for my $shape (@shapes)
	{
		my ($s, %opts) = @{$shape};
		my $keys = delete $opts{keys};
		$stack->is_live($s->{handle});
		$stack->replays($s->{handle}, $s->{table}, "$what: $s->{table} " . join(' ', map { ref ? @{$_} : $_ } %opts), %opts, $keys ? (keys => $keys) : ());
		$s->{before} = $s->{offset};
		read_on($s);
		is($stack->sql("SELECT log_entries = (SELECT count(*) FROM electric_cm_shape_log(handle)) AND log_bytes =
				(SELECT coalesce(sum(length(data)), 0) FROM _electric_cm.shape_log l JOIN _electric_cm.shape s ON l.shape = s.id WHERE s.handle = e.handle)
			FROM electric_cm_shapes e WHERE handle = '$s->{handle}'"), 't', '... and it is counted right');
	}
}

my $round = 0;
for my $pieces (0, 3)
{
	$stack->sql("ALTER SYSTEM SET electric_cm.debug_piece_rows = $pieces");
	my $entries = $stack->sql("SELECT log_entries FROM electric_cm_shapes WHERE handle = '$shapes[-2][0]{handle}'");
	$stack->sql('SELECT electric_cm_stop()');
	$stack->sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
	change($round++);
	my $handle = $shapes[0][0]{handle};
	my $before = $stack->sql("SELECT last_offset, (SELECT count(*) FROM electric_cm_shape_log(handle)) FROM electric_cm_shapes WHERE handle = '$handle'");
	$stack->sql(q{SELECT _electric_cm.resync_all('a test')});
	is($stack->sql("SELECT state, waiting_for FROM electric_cm_shapes WHERE handle = '$handle'"), 'resyncing|its turn to be compared with the table', 'a view says what is going to be done');
	is($stack->sql("SELECT command, phase FROM electric_cm_stat_progress WHERE handle = '$handle'"), 'resync|preparing', '... and so does another one');
	is($stack->sql("SELECT last_offset, (SELECT count(*) FROM electric_cm_shape_log(handle)) FROM electric_cm_shapes WHERE handle = '$handle'"), $before, 'readers have the log up to there');
	$stack->sql('SELECT pg_reload_conf()', 'SELECT electric_cm_start()');
	ok($stack->active, 'active');
	check("pieces of $pieces");
	is($stack->sql("SELECT log_entries FROM electric_cm_shapes WHERE handle = '$shapes[-2][0]{handle}'"), $entries, 'what nobody has touched has no entries more');
}
$stack->sql('ALTER SYSTEM RESET electric_cm.debug_piece_rows', 'SELECT pg_reload_conf()');
change($round++);
check('the stream goes on');

# What commands do to the rows of a table, beside the stream
sub after
{
	my ($what, @commands) = @_;
	$stack->sql(@commands);
	$stack->settle;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE state <> 'live'");
	check($what);
}
after('TRUNCATE and reload', 'CREATE TABLE kept AS SELECT * FROM t',
	'BEGIN; INSERT INTO t VALUES (-1); TRUNCATE t, empty; INSERT INTO t SELECT * FROM kept WHERE id % 50 <> 0; INSERT INTO t VALUES (-2); COMMIT');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$shapes[0][0]{handle}', '$shapes[0][0]{before}') WHERE xid IS NOT NULL"), 0, 'nothing of the transaction is in the log');
after('TRUNCATE that is rolled back', 'BEGIN; TRUNCATE t; INSERT INTO t VALUES (-3); ROLLBACK', 'INSERT INTO t VALUES (-4)');
after('TRUNCATE of a leaf', 'TRUNCATE parted_low');
after('DETACH', 'ALTER TABLE parted DETACH PARTITION parted_high', 'DELETE FROM parted_high WHERE id % 3 = 0');
after('ATTACH', 'ALTER TABLE parted ATTACH PARTITION parted_high FOR VALUES FROM (100) TO (MAXVALUE)');
after('DROP of a leaf', 'DROP TABLE parted_high');
after('electric_cm_resync()', 'SELECT electric_cm_resync()');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shape_resynced' AND detail = 'electric_cm_resync() was called'
	AND message !~ ' 0 differed$'}), 0, 'nothing differed');
is($stack->events('shape_errored') + $stack->events('shape_invalidated'), 0, 'no shape has ended');
done_testing();
