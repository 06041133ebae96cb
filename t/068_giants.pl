# What is large, or somebody else's, in the stream: it costs no memory for good,
# and nobody's transaction waits for it.
use strict;
use warnings;

use ElectricCM qw(new_stack measures_memory memory_mb);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $unmeasured = 'memory is measured on Linux, and without a sanitizer';
my $db = 'postgres';
my $stack = new_stack('main', conf => q{
max_wal_size = '4GB'
autovacuum = off
electric_cm.shape_workers = 2
electric_cm.retained_wal_warning = -1
});
my $node = $stack->node;

sub pids
{
	return (
		manager => $stack->sql('SELECT pid FROM electric_cm_stat_manager'),
		consumer => $stack->sql('SELECT pid FROM electric_cm_stat_consumers WHERE worker = 1'),
		walsender => $stack->sql(q{SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication'}));
}

# All three are small, perhaps others than before
sub become_small
{
	my ($what) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	my %mb;

  SKIP:
	{
		skip $unmeasured, 1 unless measures_memory();
		do
		{
			my %pid = pids();
			%mb = map { $_ => $pid{$_} ne '' ? memory_mb($pid{$_}, 'RssAnon') : 999 } keys %pid;
			usleep(200_000);
		} while ((grep { $_ > 30 } values %mb) && time < $deadline);
		ok(!(grep { $_ > 30 } values %mb), "$what: " . join ', ', map { "$_ $mb{$_} MB" } sort keys %mb);
	}
	return;
}

sub shape_is_right
{
	my ($handle, $what) = @_;
	$stack->sql('SELECT electric_cm_await_flushed()');
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE ROLE mallory LOGIN', 'CREATE TABLE t (id int PRIMARY KEY, v text)',
	'ALTER TABLE t ALTER v SET STORAGE EXTERNAL', 'ALTER TABLE t REPLICA IDENTITY FULL', q{INSERT INTO t VALUES (1, 'old')}, 'CREATE TABLE big (id int, v text)');
$stack->active or BAIL_OUT('no stack');
my @handles = map { $stack->sql("SELECT electric_cm_create_shape('t'$_)") } '', q{, 'id > -2'};
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$_')") for @handles;

# Messages of a role that may only log in

my %first = pids();
my $key = $stack->sql('SELECT message_key FROM _electric_cm.stack');
for my $message (
	[ 'true', q{'x'} ], [ 'false', q{'x'} ], [ 'true', q{''} ], [ 'false', q{''} ],
	[ 'true', q{'electric_cm/' || gen_random_uuid()} ], [ 'true', "'electric_cm/$key'" ], [ 'false', "'electric_cm/$key'" ])
{
	my ($transactional, $prefix) = @$message;
	$node->safe_psql($db, "SELECT FROM pg_logical_emit_message($transactional, $prefix, repeat('x', 40000000))",
		extra_params => [ '-U', 'mallory' ]);
}
$stack->sql('SELECT electric_cm_await_flushed()');
SKIP:
{
	skip $unmeasured, 2 unless measures_memory();
	cmp_ok(memory_mb($first{$_}, 'VmHWM'), '<', 50, "messages of 40 MB do not come to the $_") for qw(manager consumer);
}
become_small('... nor does the walsender keep what it needed');
$stack->sql(q{INSERT INTO t VALUES (2, 'new')});
shape_is_right($handles[0], '... and the stream goes on');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE severity <> 'log'}), '0', '... without a word of warning');
is($stack->sql('SELECT pid FROM electric_cm_stat_manager'), $first{manager}, '... by the same manager');

# Rows: they must come, but their memory is given back

$stack->sql(q{INSERT INTO t VALUES (3, repeat('y', 40000000))}, 'SELECT electric_cm_await_flushed()');
SKIP:
{
	skip $unmeasured, 1 unless measures_memory();
	cmp_ok(memory_mb($first{manager}, 'VmHWM'), '>', 50, 'a row of 40 MB has taken memory');
}
become_small('... which is given back');
is($stack->sql("SELECT length(value->>'v') FROM electric_cm_shape_log('$handles[0]') WHERE value->>'id' = '3'"), '40000000', 'the row is in the log');
is($stack->sql("SELECT length(value->>'v') FROM electric_cm_shape_log('$handles[1]') WHERE value->>'id' = '3'"), '40000000', '... and in the other consumer\'s');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE severity <> 'log'}), '0', 'no warning of that either');
is($stack->sql('SELECT sum(restarts) FROM electric_cm_stat_consumers'), '0', 'no consumer had to end for it');

# What comes in pieces, through queues that are full, between what does not
$stack->sql('DELETE FROM t WHERE id = 3');
my @stopped = split /\n/, $stack->sql('SELECT pid FROM electric_cm_stat_consumers ORDER BY worker');
$stack->becomes("SELECT bool_and(wait_event_type = 'Extension') FROM pg_stat_activity WHERE pid IN (@{[join ', ', @stopped]})");
kill 'STOP', @stopped;
$stack->sql(q{INSERT INTO t SELECT 10 + i, repeat(chr(97 + i % 26), (ARRAY[10, 131071, 131072, 131073, 300000, 700000])[1 + i % 6]) FROM generate_series(1, 24) i},
	q{UPDATE t SET v = v || 'x' WHERE id % 5 = 0});
kill 'CONT', $stopped[0];
kill 'CONT', $stopped[1];
shape_is_right($handles[$_], "rows in pieces, consumer " . ($_ + 1)) for 0, 1;

# A stream that is lost in the middle of it
for my $i (1 .. 3)
{
	$stack->sql(qq{INSERT INTO t SELECT $i * 1000 + i, repeat('z', 200000) FROM generate_series(1, 12) i},
		q{SELECT pg_terminate_backend(backend_pid) FROM electric_cm_stat_connections WHERE role = 'replication'});
	$stack->active;
}
shape_is_right($handles[$_], "... and after lost streams, consumer " . ($_ + 1)) for 0, 1;

# A committed transaction does not wait for the commit of a large one that has
# nothing for us, whether that is in memory or on disk.

for my $where ([ '256MB', 500000, 'in memory' ], [ '64kB', 250000, 'on disk' ])
{
	my ($work_mem, $rows, $what) = @$where;
	$stack->sql("ALTER SYSTEM SET logical_decoding_work_mem = '$work_mem'");
	$node->reload;
	$stack->sql('SELECT electric_cm_restart()');
	$stack->active;
	$stack->sql('TRUNCATE big', q{INSERT INTO t VALUES (-1, '') ON CONFLICT DO NOTHING}, q{SELECT electric_cm_await_flushed()});

	my $large = $node->background_psql($db, on_error_stop => 1);
	$large->query_safe("BEGIN; INSERT INTO big SELECT i, 'x' FROM generate_series(1, $rows) i");
	$stack->becomes(q{SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), sent_lsn) < 1000 FROM pg_stat_replication WHERE application_name LIKE 'electric_cm%'},
		"a large transaction has been read, $what");
	my %pid = pids();
	kill 'STOP', $pid{walsender};
	my $offset = $stack->sql("SELECT log_offset FROM electric_cm_shape_log('$handles[0]') WITH ORDINALITY ORDER BY ordinality DESC LIMIT 1");
	$stack->sql(q{UPDATE t SET v = v || 'y' WHERE id = 1});
	$large->query_safe('COMMIT');
	$large->quit;
	my $end = $stack->sql('SELECT pg_current_wal_lsn()');
	$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000))) FROM generate_series(1, 200)});
	# quick, since decoding takes a second or two: without the rows of megabytes
	my $reader = $node->background_psql($db, on_error_stop => 1);
	my $look = "SELECT EXISTS (SELECT FROM electric_cm_shape_log('$handles[0]', after_offset => '$offset')),
		sent_lsn < '$end' FROM pg_stat_replication WHERE application_name LIKE 'electric_cm%'";
	my $seen = $reader->query_safe($look);
	kill 'CONT', $pid{walsender};
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	$seen = $reader->query_safe($look) while ($seen !~ /^t/ && time < $deadline);
	is($seen, 't|t', "... and a small one before it is readable while it is decoded, $what");
	$reader->quit;
	$stack->sql('SELECT electric_cm_await_flushed()');
}

$node->stop;
done_testing();
