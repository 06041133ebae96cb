# A row that the server can't send costs the shapes that want what is missing,
# and nobody else.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => qq{
shared_buffers = 256MB
max_wal_size = 8GB
log_statement = none
});
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;
# the tables' own copies cost little: what the stream makes of them is tested
$stack->sql(q{SELECT format('ALTER DATABASE %I SET default_toast_compression = lz4', current_database())
	FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals) \gexec});
$stack->sql(q{
	CREATE TABLE huge (id int PRIMARY KEY, b bytea, n int, c1 bytea, c2 bytea, c3 bytea, c4 bytea, c5 bytea)
		PARTITION BY RANGE (id);
	CREATE TABLE huge1 PARTITION OF huge FOR VALUES FROM (0) TO (100);
	ALTER TABLE huge1 ALTER b SET STORAGE EXTERNAL;
	CREATE TABLE small (id int PRIMARY KEY);
});
my $small = $stack->sql("SELECT electric_cm_create_shape('small')");
my $ids = $stack->sql("SELECT electric_cm_create_shape('huge', NULL, '{id,n}')");
my $some = $stack->sql("SELECT electric_cm_create_shape('huge', NULL, '{id,c5}')");
my $all = $stack->sql("SELECT electric_cm_create_shape('huge')");
$stack->becomes("SELECT bool_and(state = 'live') FROM electric_cm_shapes");

# together, as text, that is 1.1 GB
$stack->sql("INSERT INTO huge SELECT 1, NULL, 1, x, x, x, x, x FROM decode(repeat('ab', 110000000), 'hex') x");
$stack->sql('INSERT INTO small VALUES (1)');
$stack->settle;
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$small')"), 1, "another table's shape goes on");
is($stack->state_of($ids), 'live', 'a shape without the large column lives');
my ($ok) = $stack->replay_equals($ids, 'huge', ['id'], columns => [qw(id n)]);
ok($ok, 'and its log gives its table');
is($stack->state_of($all), 'errored', 'one that wants it is errored');
like($stack->error_of($all), qr/too large/, 'and says why');
is($stack->sql("SELECT length(value->>'c5') FROM electric_cm_shape_log('$some')"), 220000002,
	'one of these columns alone is sent');
is($stack->sql("SELECT retry_count FROM electric_cm_stat_manager"), 0, 'the stream was not lost for it');

$stack->sql('UPDATE huge SET n = 2');
$stack->sql('DELETE FROM huge');
$stack->settle;
($ok) = $stack->replay_equals($ids, 'huge', ['id'], columns => [qw(id n)]);
ok($ok, 'so does what happens to that row later');

# could be sent, but not read
$stack->sql("SELECT electric_cm_drop_shape('$all')");
$all = $stack->sql("SELECT electric_cm_create_shape('huge')");
my $leaf = $stack->sql("SELECT electric_cm_create_shape('huge1', NULL, '{id}')");
$stack->becomes("SELECT count(*) = 2 FROM electric_cm_shapes WHERE state = 'live' AND handle IN ('$all', '$leaf')");
$stack->sql("INSERT INTO huge SELECT 2, decode(repeat('ab', 150000000), 'hex'), 1");
$stack->settle;
like($stack->error_of($all), qr/could not send .* column "b"/, 'a value that no reader could have is not sent');
is($stack->state_of($ids) . $stack->state_of($leaf), 'livelive', 'those who do without it live');
($ok) = $stack->replay_equals($leaf, 'huge1', ['id'], columns => ['id']);
ok($ok, 'also those of the partition');

# whose row it is counts
$stack->sql(q{CREATE TABLE parts (id int PRIMARY KEY, n int, b bytea); ALTER TABLE parts REPLICA IDENTITY FULL, ALTER b SET STORAGE EXTERNAL});
my %of = map { $_ => $stack->sql("SELECT electric_cm_create_shape('parts', '$_')") } 'n = 1', 'n > 1', 'n > 2', 'b IS NULL';
$stack->becomes("SELECT count(*) = 4 FROM electric_cm_shapes WHERE state = 'live' AND relation = 'parts'::regclass");
$stack->sql(q{
	BEGIN;
	INSERT INTO parts VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c');
	UPDATE parts SET b = decode(repeat('ab', 150000000), 'hex') WHERE id = 1;
	UPDATE parts SET n = 3 WHERE id = 3;
	COMMIT;
});
$stack->settle;
is(join(' ', map { $stack->state_of($of{$_}) } 'n = 1', 'n > 1', 'n > 2', 'b IS NULL'), 'errored live live errored',
	'a value that is not sent ends the shapes that have its row, or look at the value, and no others');
($ok) = $stack->replay_equals($of{'n > 1'}, 'parts', ['id'], where => 'n > 1', columns => [qw(id n b)]);
ok($ok, 'which go on');
$stack->sql('UPDATE parts SET n = 2 WHERE id = 1');
$stack->settle;
is(join(' ', map { $stack->state_of($of{$_}) } 'n > 1', 'n > 2'), 'errored live', 'until they would have it');
is($stack->sql("SELECT electric_cm_status()"), 'active', 'the stack is active');
$node->stop;
done_testing();
