# One shape whose clause does not end holds up a hundred others for no longer than
# electric_cm.shape_stall_timeout: it is errored, they go on.  So is one whose write
# waits for somebody's lock, one whose snapshot does not end, and one that eats
# memory meanwhile.  The server never restarts.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $timeout = $ENV{STALL_TIMEOUT} // 2;
my $stack = new_stack('main', conf => qq{
restart_after_crash = on
electric_cm.shape_stall_timeout = '${timeout}s'
electric_cm.reconnect_initial_delay = 100ms
electric_cm.reconnect_max_delay = 1s
electric_cm.retained_wal_limit = -1
});
my $node = $stack->node;
my $restarts = sub { return scalar(() = slurp_file($node->logfile) =~ /all server processes terminated/g); };

# Takes minutes for n = 32000, and can be interrupted
my $endless = 'n < 1000 OR ' . join(' + ', map { "factorial(n - $_)" } 1 .. 100) . ' > 0';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->active;
$stack->sql(q{
	CREATE TABLE slow (id int PRIMARY KEY, n int);
	CREATE TABLE others (id int PRIMARY KEY, v int);
	CREATE TABLE locked (id int PRIMARY KEY);
	ALTER TABLE slow REPLICA IDENTITY FULL;
	ALTER TABLE others REPLICA IDENTITY FULL;
	CREATE ROLE weak;
	GRANT SELECT ON slow, others TO weak;
	GRANT USAGE ON SCHEMA public TO weak;
	GRANT EXECUTE ON FUNCTION electric_cm_create_shape TO weak;
	DO $$BEGIN
		PERFORM electric_cm_create_shape('others', format('v %% 100 = %s', i)) FROM generate_series(0, 99) i;
	END$$;
});
my ($other) = $stack->sql(q{SELECT min(handle) FROM electric_cm_shapes WHERE where_clause LIKE '%= 7)'});
$stack->seen(q{count(*) = 100 FROM electric_cm_shapes WHERE state = 'live'}, 'a hundred shapes are live');

sub errored
{
	my ($handle, $what, $reason) = @_;
	$stack->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$handle'", "$what is errored");
	like($stack->error_of($handle), $reason, '... and says why, with the setting');
	return;
}

# What the others wait for an entry that comes behind the one that takes so long
my $row = 0;
sub others_go_on
{
	my ($what) = @_;
	my $began = time;
	$row += 100;
	$stack->sql("INSERT INTO others VALUES ($row, 7)");
	$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shape_log('$other') WHERE key LIKE '%\"$row\"'", $what);
	my $waited = sprintf '%.1f', time - $began;
	note "the others waited $waited s";
	return $waited;
}

# ---- a clause that does not end

my $quick = $stack->live_shape('slow', where => 'n > 0');
my $shape = $stack->sql(qq{SET ROLE weak; SELECT electric_cm_create_shape('slow', '$endless')});
$stack->is_live($shape, 'a shape that an unprivileged role has made');
$stack->sql('INSERT INTO slow VALUES (1, 32000)');
my $waited = others_go_on('a hundred others go on beside a clause that does not end');
cmp_ok($waited, '<', 3 * $timeout + 5, "... after about the timeout ($waited s)");
errored($shape, 'its shape', qr/held up the others for electric_cm.shape_stall_timeout \(${timeout}s\)/);
$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shape_log('$quick')", 'another of the same table has the row');
is($stack->sql('SELECT restarts FROM electric_cm_stat_consumers'), 0, 'the consumer went on');
is($stack->events('shape_errored', "detail LIKE '%electric_cm.shape_stall_timeout%' AND message LIKE '%$shape%'"), 1, 'an event names shape and setting');

# ---- its snapshot

my $late = $stack->sql(qq{SET ROLE weak; SELECT electric_cm_create_shape('slow', '$endless OR n = -1')});
my $beside = $stack->sql(q{SELECT electric_cm_create_shape('slow', 'n > 1')});
errored($late, 'a shape whose snapshot does not end', qr/electric_cm.shape_stall_timeout/);
$stack->is_live($beside, 'one that was created with it');

# ---- dropped, and created again

$stack->sql("SELECT electric_cm_drop_shape('$_')") for $shape, $late;
$stack->sql('DELETE FROM slow');
$shape = $stack->sql(qq{SET ROLE weak; SELECT electric_cm_create_shape('slow', '$endless')});
$stack->is_live($shape, 'dropped and created again, without that row');
$stack->sql('INSERT INTO slow VALUES (2, 100)');
$stack->becomes("SELECT count(*) = 1 FROM electric_cm_shape_log('$shape')", '... it works');

# ---- amid a large transaction

$stack->sql(q{INSERT INTO slow SELECT i, 10 FROM generate_series(10, 100000) i; INSERT INTO slow VALUES (3, 32000)});
$waited = others_go_on('the others go on when it is in a large transaction');
errored($shape, 'its shape', qr/electric_cm.shape_stall_timeout/);
$stack->replays($quick, 'slow', 'another of that table has all of it');

# ---- a lock that only this shape's entries wait for

my $held = $stack->live_shape('locked');
my $id = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$held'");
$stack->sql(qq{
	CREATE FUNCTION public.trap(int8) RETURNS int8 IMMUTABLE LANGUAGE plpgsql AS \$\$
	BEGIN IF \$1 = $id THEN PERFORM pg_advisory_xact_lock_shared(4711); END IF; RETURN \$1; END \$\$;
	CREATE INDEX trap ON _electric_cm.shape_log (public.trap(shape))});
my $holder = $node->background_psql('postgres');
$holder->query_safe('SELECT pg_advisory_lock(4711)');
$stack->sql('INSERT INTO locked VALUES (1)');
$waited = others_go_on("the others go on beside a shape whose entry waits for somebody's lock");
errored($held, 'that shape', qr/electric_cm.shape_stall_timeout/);
$holder->quit;
$stack->sql('DROP INDEX _electric_cm.trap');
$stack->sql("SELECT electric_cm_drop_shape('$held')");
$held = $stack->live_shape('locked');
$stack->sql('INSERT INTO locked VALUES (2)');
$stack->replays($held, 'locked', 'created again');

# ---- what can't be interrupted

$stack->sql('DELETE FROM slow WHERE n > 1000');

# an operator that takes time by the square of n, and looks at no interrupt: for so many times
# the timeout, on this machine
my $n = 10000;
my $began = time;
$stack->sql("SELECT array_fill($n, ARRAY[$n]) && array_fill($n + 1, ARRAY[$n])");
$n = int($n * sqrt(8 * $timeout / (time - $began)));
note "n = $n";
my $deaf = $stack->live_shape('slow', where => 'array_fill(n, ARRAY[n]) && array_fill(n + 1, ARRAY[n])');
$stack->sql("INSERT INTO slow VALUES (4, $n)");
$stack->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'consumer_stalled' AND message LIKE '%does not react to the end of electric_cm.shape_stall_timeout'},
	'a consumer that can not be interrupted: an event says so');
$waited = others_go_on('... the others go on when that ends');
errored($deaf, '... the shape', qr/electric_cm.shape_stall_timeout/);

# ---- a table that is locked is nobody's fault

$holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE _electric_cm.shape_log IN SHARE MODE');
$stack->sql('INSERT INTO locked VALUES (3)');
$stack->becomes("SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = '_electric_cm.shape_log'::regclass AND waitstart < clock_timestamp() - interval '@{[2 * $timeout]} s'",
	"the stack's own table is locked for longer than that");
$holder->query_safe('COMMIT');
$holder->quit;
$stack->replays($held, 'locked', '... which costs no shape');

# ---- a clause that eats memory meanwhile

$stack->sql('CREATE TABLE hungry (id int PRIMARY KEY, n int)', 'ALTER TABLE hungry REPLICA IDENTITY FULL');
my $hungry = $stack->live_shape('hungry', where => "octet_length(repeat(chr(120), 200000000 + n)) < n OR $endless");
$stack->sql('INSERT INTO hungry VALUES (1, 32000)');
$waited = others_go_on('the others go on beside a clause that does not end, and has 200 MB');
errored($hungry, 'its shape', qr/electric_cm.shape_stall_timeout/);

is(&$restarts, 0, 'the server has never restarted');
$node->stop;
done_testing();
