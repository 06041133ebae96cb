# A table is being read in pieces when something ends: a session, a worker, the server.
# Reading goes on from where it was, nothing is read twice, and the log is right.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
restart_after_crash = on
electric_cm.shape_workers = 2
electric_cm.debug_piece_rows = 8
electric_cm.reconnect_initial_delay = '100 ms'
});
my $node = $stack->node;

$stack->sql(
	'CREATE EXTENSION electric_cm',
	'CREATE TABLE t (id int PRIMARY KEY, n int, big text)',
	'ALTER TABLE t ALTER big SET STORAGE EXTERNAL',
	'ALTER TABLE t REPLICA IDENTITY FULL',
	q{INSERT INTO t SELECT i, i % 3, repeat('x', 2500) FROM generate_series(1, 3000) i});
ok($stack->active, 'active');

my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set id random(1, 3000)
\set low random(1, 200)
\set high random(2500, 3000)
UPDATE t SET n = (n + 1) % 3 WHERE id = :id;
DELETE FROM t WHERE id = :id + 1;
INSERT INTO t VALUES (:id + 1, 0, 'new') ON CONFLICT DO NOTHING;
UPDATE t SET id = :low WHERE id = :high AND NOT EXISTS (SELECT FROM t WHERE id = :low);
UPDATE t SET id = :high WHERE id = :low AND NOT EXISTS (SELECT FROM t WHERE id = :high);
});

sub load
{
	my ($in, $out, $err) = ('', '', '');
	return IPC::Run::start([ 'pgbench', '-n', '-c', 2, '-T', 60, '-f', $script, $node->connstr('postgres') ],
		\$in, \$out, \$err);
}

sub pid_of
{
	my ($what) = @_;
	return $stack->sql("SELECT pid FROM pg_stat_activity WHERE $what LIMIT 1");
}

sub signalled
{
	my ($signal, $what) = @_;
	my $pid = pid_of($what);
	kill $signal, $pid or die "no $what";
	return;
}

my $pool = q{application_name ~ 'electric_cm pool' AND query ~ 'read_piece'};
my @faults = (
	[ 'a session of the pool is terminated' => sub { signalled('TERM', $pool) } ],
	[ 'a session of the pool is killed' => sub { signalled('KILL', $pool) } ],
	[ 'the stream is lost' => sub { $stack->sql(q{SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots}) } ],
	[ 'a consumer is terminated' => sub { signalled('TERM', q{backend_type ~ 'electric_cm consumer'}) } ],
	[ 'a consumer is killed' => sub { signalled('KILL', q{backend_type ~ 'electric_cm consumer'}) } ],
	[ 'the manager is killed' => sub { signalled('KILL', q{backend_type ~ 'electric_cm manager'}) } ],
	[ 'the stack is restarted' => sub { $stack->sql('SELECT electric_cm_restart()') } ],
	[ 'the server crashes' => sub { $node->stop('immediate'); $node->start } ],
	[ 'the server is restarted with another number of consumers' => sub {
		$node->append_conf('postgresql.conf', 'electric_cm.shape_workers = 3');
		$node->restart } ]);

# Dropped while it is being read
my $handle = $stack->shape('t');
$stack->becomes("SELECT count(*) > 5 FROM _electric_cm.reading_piece p JOIN _electric_cm.shape s USING (reading) WHERE handle = '$handle'");
$stack->sql("SELECT electric_cm_drop_shape('$handle')");
$stack->seen('NOT EXISTS (SELECT FROM _electric_cm.reading) AND NOT EXISTS (SELECT FROM _electric_cm.reading_piece)
	AND NOT EXISTS (SELECT FROM _electric_cm.shape_log)', 'a shape that is dropped meanwhile leaves nothing');

for my $fault (@faults)
{
	my ($what, $strike) = @{$fault};
	my $load = load();
	my %shapes = ($stack->shape('t') => undef, map { $stack->shape('t', where => "n = $_") => "n = $_" } 0 .. 2);
	my $generations = 'FROM _electric_cm.shape WHERE handle IN (' . join(', ', map { "'$_'" } keys %shapes) . ')';
	# one whose capturing has not begun yet would begin again
	$stack->becomes("SELECT max(n) > 10 AND (SELECT bool_and(reading IS NOT NULL) $generations) FROM (SELECT count(p.number) AS n FROM _electric_cm.reading r
		LEFT JOIN _electric_cm.reading_piece p ON p.reading = r.id WHERE r.id IN (SELECT reading $generations) GROUP BY r.id) x");
	$strike->();
	eval { $load->kill_kill };
	ElectricCM::poll($node, 'postgres', 'SELECT true');
	ok($stack->active, "$what: active again");
	$load = load();
	$stack->is_live($_) for keys %shapes;
	eval { $load->kill_kill };
	is($stack->sql("SELECT max(generation) $generations"), '1', '... and goes on from where it was');
	$stack->replays($_, 't', '... ' . ($shapes{$_} // 'all rows'), where => $shapes{$_}) for sort keys %shapes;
	$stack->sql("SELECT electric_cm_drop_shape('$_')") for keys %shapes;
}

# A key that moves from what has not been read to what has, without a value that the
# update did not change: nobody has that but the table
my $asked = q{SELECT n_tup_ins FROM pg_stat_all_tables WHERE relname = 'reading_again'};
my $before = $stack->sql($asked);
$stack->sql('ALTER TABLE t REPLICA IDENTITY DEFAULT');
$handle = $stack->shape('t');
$stack->becomes("SELECT count(*) > 20 FROM _electric_cm.reading_piece p JOIN _electric_cm.shape s USING (reading) WHERE handle = '$handle'");
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE _electric_cm.reading IN EXCLUSIVE MODE');
$stack->sql(q{DELETE FROM t WHERE id IN (10, 11, 12)},
	q{INSERT INTO t VALUES (9000, 0, repeat('9', 2500)), (9001, 1, repeat('8', 2500)), (9002, 2, repeat('7', 2500))
		ON CONFLICT (id) DO UPDATE SET big = excluded.big},
	q{UPDATE t SET id = 10 WHERE id = 9000},
	q{UPDATE t SET id = 9003 WHERE id = 10},
	q{UPDATE t SET id = 10 WHERE id = 9003},
	q{BEGIN; UPDATE t SET id = 11 WHERE id = 9001; SAVEPOINT s; UPDATE t SET id = 12 WHERE id = 11; UPDATE t SET n = 5 WHERE id = 12; END},
	q{BEGIN; UPDATE t SET id = 11, n = 7 WHERE id = 9002; DELETE FROM t WHERE id = 11; END});
my $lsn = $stack->sql('SELECT pg_current_wal_lsn()');
$stack->settle($lsn);
$locker->query_safe('COMMIT');
$stack->is_live($handle);
cmp_ok($stack->sql($asked), '>', $before, 'values that only the table has are read again');
$stack->replays($handle, 't', '... and the log is right');
is($stack->events('shape_errored'), 0, 'nothing was errored');
done_testing();
