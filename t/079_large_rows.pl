# Rows that are too large for a reader end the shapes that want them, with a
# message, whichever way they come; rows that just fit can be read.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $limit = 268435455;			# bytes of a jsonb object
my $stack = new_stack('main', conf => qq{
shared_buffers = 256MB
max_wal_size = 8GB
log_statement = none
max_parallel_workers_per_gather = 0
});
my $node = $stack->node;

sub live
{
	my $handles = join ', ', map { "'$_'" } @_;
	return $stack->becomes("SELECT bool_and(state = 'live') FROM electric_cm_shapes WHERE handle IN ($handles)");
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;

# The tables' own copies of giants shall cost little: only what becomes of them
# in the stream and in the logs is tested.
$stack->sql(q{SELECT format('ALTER DATABASE %I SET default_toast_compression = lz4', current_database())
	FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals) \gexec});
$stack->sql(q{CREATE FUNCTION giant(text, bigint) RETURNS text LANGUAGE sql
	RETURN repeat(repeat($1, 10000), ($2 / 10000)::int) || repeat($1, ($2 % 10000)::int)});
$stack->sql(q{
	CREATE TABLE t (i int PRIMARY KEY, v text, w text);
	CREATE TABLE c (i int PRIMARY KEY, v text);
	CREATE TABLE u (i int PRIMARY KEY, v text, w text);
});

# ---- the exact limit, in the stream

my $all = $stack->shape('t');
my $narrow = $stack->shape('t', columns => [qw(i w)]);
live($all, $narrow);
# besides the names and values, four bytes, and eight for each column
my $fits = $limit - length('ivw' . '1' . '22') - 4 - 3 * 8;
$stack->sql("INSERT INTO t VALUES (1, giant('x', $fits), '22')");
$stack->settle;
is($stack->state_of($all), 'live', 'a row that just fits is logged');
is($stack->sql("SELECT length(value->>'v') FROM electric_cm_shape_log('$all')"), $fits, 'and can be read');
$stack->sql("INSERT INTO t VALUES (2, giant('x', $fits), '333')");
$stack->settle;
is($stack->state_of($all), 'errored', 'one byte more ends the shape');
like($stack->error_of($all), qr/too large to be read.*\b$limit\b/, 'with the limit in its message');
my ($rc, $out, $err) = $node->psql($db, "SELECT FROM electric_cm_shape_log('$all')");
like($err, qr/too large to be read/, 'which its readers get');
is($stack->sql("SELECT string_agg(value->>'i', ' ') FROM electric_cm_shape_log('$narrow')"), '1 2',
	'a shape without the large column goes on');

# ---- in a snapshot

my $again = $stack->shape('t');
$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$again'",
	'a shape of a table that has such a row is errored');
like($stack->error_of($again), qr/too large to be read/, 'for the same reason');
$stack->sql('DELETE FROM t WHERE i = 2; SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes WHERE relation = \'t\'::regclass');
$again = $stack->shape('t');
live($again);
is($stack->sql("SELECT length(value->>'v') FROM electric_cm_shape_log('$again')"), $fits,
	'a snapshot with a row that just fits can be read');
$stack->sql('SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes; TRUNCATE t');

# ---- what is longer when it is sent: control characters, quotes

my $control = $stack->shape('c');
live($control);
$stack->sql(q{INSERT INTO c VALUES (1, giant(E'\x01', 180000000))});
$stack->settle;
is($stack->state_of($control), 'errored', 'a row whose escaped text could not be sent ends the shape');
like($stack->error_of($control), qr/too large to be read: .* the server can send/, 'with its reason');
$stack->sql('TRUNCATE c');

# ---- a row that has become too large piece by piece, without any entry being so

my $pieces = $stack->shape('u');
live($pieces);
$stack->sql(q{INSERT INTO u VALUES (1, giant('x', 150000000))});
$stack->sql(q{UPDATE u SET w = giant('y', 150000000)});
$stack->sql(q{INSERT INTO u SELECT g, repeat('z', 1000) FROM generate_series(2, 2000) g});
$stack->settle;
is($stack->sql("SELECT string_agg(operation || coalesce(length(value->>'v'), 0) || ',' || coalesce(length(value->>'w'), 0), ' ') FROM electric_cm_shape_log('$pieces', max_entries => 2)"),
	'insert150000000,0 update0,150000000', 'both entries can be read');
$stack->sql('ALTER SYSTEM SET electric_cm.shape_log_retention = \'1MB\'; ALTER SYSTEM SET electric_cm.wal_report_interval = \'1s\'');
$stack->sql('SELECT pg_reload_conf()');
$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$pieces'",
	'what could not be folded into a row ends the shape');
like($stack->error_of($pieces), qr/too large to be read/, 'with its reason');
is($stack->sql("SELECT electric_cm_status()"), 'active', 'the stack is active');
$node->stop;
done_testing();
