# Transactions of sizes at which something changes inside: an entry, a chunk, a
# batch, a spill, each also one byte or one entry more and less.
use strict;
use warnings;

use ElectricCM qw(new_stack source_constant);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $CHUNK = source_constant('ECM_CHUNK_TARGET');
my $TXN_RECORD = source_constant('ECM_CHUNK_TXN_SIZE');
my $BATCH = source_constant('BATCH_BYTES');
my $SPILL = source_constant('SPILL_BYTES');

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
$stack->sql('ALTER TABLE t ALTER COLUMN t SET STORAGE EXTERNAL');
ok($stack->active, 'active');
my ($handle, $shape);
new_shape();

# An empty table, and a shape of it that is live
sub new_shape
{
	$stack->sql("SELECT electric_cm_drop_shape('$handle')") if $handle;
	$stack->sql('TRUNCATE t');
	$handle = $stack->sql("SELECT electric_cm_create_shape('t')");
	$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
	$shape = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$handle'");
	return;
}

sub varint { my ($n) = @_; return $n < 128 ? 1 : $n < 16384 ? 2 : $n < 2097152 ? 3 : 4; }

# An insert's packed size: operation, number of columns, and for each its
# length and text.  All ids here have six digits.
sub entry_size { my ($length) = @_; return 1 + 1 + (1 + 6) + varint($length + 4) + $length; }

# The length of the text that makes an entry of that size
sub text_for
{
	my ($size) = @_;
	for my $v (1 .. 4)
	{
		my $length = $size - 9 - $v;
		return $length if $length >= 0 && entry_size($length) == $size;
	}
	return;    # none has
}

my $next_id = 100000;
my $last_lsn = '0/0';

# One transaction that inserts rows with texts of these lengths
sub insert_rows
{
	my (@lengths) = @_;
	my @rows = map { '(' . $next_id++ . ", $_)" } @lengths;
	$stack->sql("INSERT INTO t SELECT id, repeat(chr(97 + id % 26), n) FROM (VALUES " . join(', ', @rows) . ') v (id, n)');
	return;
}

# n rows of one length
sub insert_many
{
	my ($n, $length) = @_;
	my $first = $next_id;
	$next_id += $n;
	$stack->sql("INSERT INTO t SELECT i, repeat(chr(97 + i % 26), $length) FROM generate_series($first, $next_id - 1) i");
	return;
}

# The sizes of the chunks since the last call
sub chunks
{
	$stack->sql('SELECT electric_cm_await_flushed()');
	my $sizes = $stack->sql("SELECT string_agg(octet_length(data)::text, ' ' ORDER BY first_lsn, first_op)
		FROM _electric_cm.shape_log WHERE shape = $shape AND first_lsn > '$last_lsn'");
	$last_lsn = $stack->sql("SELECT coalesce(max(first_lsn), '0/0') FROM _electric_cm.shape_log WHERE shape = $shape");
	return $sizes;
}

sub check
{
	my ($what) = @_;
	$stack->settle;
	my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
	my $rows = $stack->sql('SELECT count(*) FROM t');
	ok($ok && $entries == $rows, "$what: replay equals table ($entries entries)");
	new_shape();
	return;
}

# A chunk that is just full, by one row and by several

for my $d (-1, 0, 1)
{
	my $size = $CHUNK - $TXN_RECORD + $d;
	insert_rows(text_for($size));
	is(chunks(), $TXN_RECORD + $size, "one row of $size bytes: a chunk");
}
for my $d (-1, 0, 1)
{
	my $first = 3000;
	my $second = $CHUNK - $TXN_RECORD - entry_size($first) + $d;
	insert_rows($first, text_for($second));
	my $whole = $CHUNK + $d;
	is( chunks(),
		$d <= 0 ? $whole : join(' ', $TXN_RECORD + entry_size($first), $TXN_RECORD + $second),
		"two rows of $whole bytes in all: " . ($d <= 0 ? 'one chunk' : 'two chunks'));
}
for my $d (-1, 0, 1)
{
	my $n = 20;
	my $each = 300;
	my $rest = $CHUNK - $TXN_RECORD - $n * entry_size($each) + $d;
	insert_rows((($each) x $n), text_for($rest), $each);
	is(scalar(split / /, chunks()), 2, "many rows around a chunk's size ($d)");
}
check('around the size of a chunk');

# Transactions that are merged to a chunk that is just full.  They wait in the
# queue together while the consumer is stopped.
sub while_consumer_sleeps
{
	my ($code) = @_;
	$stack->sql('SELECT electric_cm_await_flushed()');
	my $pid = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
	kill 'STOP', $pid;
	my $ok = eval { $code->(); 1 };
	my $error = $@;
	kill 'CONT', $pid;
	die $error unless $ok;
	return;
}
for my $d (-1, 0, 1)
{
	my $first = 4000;
	my $second = $CHUNK - 2 * $TXN_RECORD - entry_size($first) + $d;
	while_consumer_sleeps(sub { insert_rows($first); insert_rows(text_for($second)); });
	note('two transactions, ' . ($CHUNK + $d) . ' bytes in all: chunks of ' . chunks());
}
check('transactions merged into one chunk');

# Batches that are just full
for my $d (-1, 0, 1)
{
	# one entry in a chunk of its own
	insert_rows(text_for($BATCH - $TXN_RECORD + $d));
	is(chunks(), $BATCH + $d, 'one row of ' . ($BATCH + $d) . ' bytes');
}
for my $d (-1, 0, 1)
{
	my $size = $BATCH / 16;
	while_consumer_sleeps(sub {
		insert_rows(text_for($size - $TXN_RECORD)) for 1 .. 15;
		insert_rows(text_for($size - $TXN_RECORD + $d));
		insert_rows(10);
	});
}
check('around the size of a batch');
chunks();

# Transactions that are just large enough to be written before their end
for my $d (-1, 0, 1)
{
	insert_rows(text_for($SPILL - $TXN_RECORD + $d));
	is(chunks(), $SPILL + $d, 'one row of ' . ($SPILL + $d) . ' bytes');
	insert_rows(text_for($SPILL - $TXN_RECORD + $d), 5, 6);
	is((split / /, chunks())[0], $SPILL + $d, '... and two small ones after it');
	insert_rows(5, text_for($SPILL - $TXN_RECORD + $d), 6, text_for($SPILL - $TXN_RECORD + $d));
	chunks();
}
check('around the size of a spill, in large rows');

my $length = 1000;
my $per_chunk = int(($CHUNK - $TXN_RECORD) / entry_size($length));
my $spill_rows = 0;
{
	# the first number of rows that reaches the limit
	my $bytes = 0;
	while ($bytes < $SPILL)
	{
		$bytes += $TXN_RECORD if $spill_rows % $per_chunk == 0;
		$bytes += entry_size($length);
		$spill_rows++;
	}
}
insert_many($spill_rows + $_, $length) for (-1, 0, 1);
insert_many(2 * $spill_rows + $_, $length) for (-1, 0, 1);
check('around the size of a spill, in small rows');

# Several small ones behind a large one, waiting together
while_consumer_sleeps(sub {
	insert_rows(10);
	insert_many($spill_rows + 1, $length);
	insert_rows(10);
	insert_rows(20);
});
check('small transactions around a large one');

# A large transaction that is rolled back, in part and as a whole
$stack->sql("BEGIN; INSERT INTO t SELECT -i, repeat('x', 100) FROM generate_series(1, 100000) i; ROLLBACK");
$stack->sql("BEGIN; INSERT INTO t VALUES (1, 'kept'); SAVEPOINT s;
	INSERT INTO t SELECT -i, repeat('x', 100) FROM generate_series(1, 100000) i; ROLLBACK TO s;
	INSERT INTO t VALUES (2, 'kept'); COMMIT");
check('a large transaction that is rolled back');

# The connection breaks in the middle of a large transaction, when part of it
# has been written: that part must not stay
for my $victim (qw(walsender consumer manager))
{
	my %query = (
		walsender => "SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication'",
		consumer => 'SELECT pid FROM electric_cm_stat_consumers',
		manager => 'SELECT pid FROM electric_cm_stat_manager');
	my $pid = $stack->sql($query{$victim});
	my $ended = 0;

	# 30 MB
	my $first = $next_id;
	$next_id += 30_000;
	my $inserter = $node->background_psql($db);
	$inserter->query_safe("INSERT INTO t SELECT i, repeat(chr(97 + i % 26), 1000) FROM generate_series($first, $next_id - 1) i");
	# what is written to WAL from here on is the log's
	my $before = $inserter->query_safe('SELECT pg_current_wal_insert_lsn()');
	my $written = 0;
	for (1 .. 30000)
	{
		$written = $inserter->query_safe("SELECT pg_current_wal_insert_lsn() - '$before'");
		if ($written > 6_000_000)
		{
			$ended = kill 'TERM', $pid;
			last;
		}
		usleep(1000);
	}
	$inserter->quit;
	ok($ended, "$victim ended in the middle of a large transaction, after $written bytes of WAL");
	ok( ElectricCM::poll($node, $db,
			"SELECT coalesce(($query{$victim}) <> $pid, false) AND electric_cm_status() = 'active'"),
		"$victim: back");
	check("large transaction interrupted by the end of the $victim");
}

$node->stop;
done_testing();
