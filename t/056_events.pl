# Warnings and errors survive the server's end, once each, at most 1,000 of
# them, and no publication sends them.  A shape's error is said when it counts.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
restart_after_crash = on
electric_cm.status_check_interval = '1 s'
electric_cm.reconnect_initial_delay = '50 ms'
electric_cm.pool_idle_timeout = '500 ms'
});
my $node = $stack->node;
my $db = 'postgres';

sub becomes { return $stack->becomes($_[1], $_[0]); }

# What the table has, as opposed to the view
sub stored
{
	my ($what) = @_;
	return "(SELECT count(*) FROM _electric_cm.event WHERE message LIKE '$what')";
}

sub doubles
{
	return $stack->sql(q{SELECT count(*) - count(DISTINCT (occurred_at, message)) FROM electric_cm_events WHERE datname = current_database()});
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql($stack->publication_sql('everything', 'FOR ALL TABLES'),
	q{CREATE TABLE t (id int PRIMARY KEY);
	SELECT pg_create_logical_replication_slot('other', 'pgoutput')});

# The same error again, before there is a stream, is no further event.
sub lose_stream
{
	becomes('there is a stream to lose', q{SELECT state = 'streaming' FROM electric_cm_stat_connections WHERE role = 'replication'});
	$stack->sql(q{SELECT pg_terminate_backend(backend_pid) FROM electric_cm_stat_connections WHERE role = 'replication'});
	return;
}
lose_stream();
becomes('a lost connection is in the table soon', 'SELECT ' . stored('%terminating connection%') . ' = 1');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE message LIKE '%terminating connection%'}), 1, '... and once in the view');
is($stack->sql(q{SELECT count(*) FROM _electric_cm.event WHERE severity NOT IN ('warning', 'error')}), 0, 'what is merely worth a note is not stored');

# An orderly restart

my $before = $stack->sql('SELECT count(*) FROM _electric_cm.event');
$node->restart;
ok($stack->active, 'active after a restart');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE message LIKE '%terminating connection%'}), 1, 'the event has survived it');
is($stack->sql(q{SELECT datname FROM electric_cm_events WHERE message LIKE '%terminating connection%'}), $db, '... with its database');
is(doubles(), 0, 'no doubles');

# A crash

lose_stream();
becomes('the next one is stored', 'SELECT ' . stored('%terminating connection%') . ' = 2');
$node->stop('immediate');
$node->start;
ok($stack->active, 'active after a crash');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE message LIKE '%terminating connection%'}), 2, 'both have survived it');
is(doubles(), 0, 'no doubles');

# While no manager runs, and at its end

$stack->sql('SELECT electric_cm_drop_replication_slot_on_stop()');
$stack->sql('SELECT electric_cm_stop()');
is($stack->sql('SELECT ' . stored('dropped replication slot%')), 1, 'a manager stores what happens at its end');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active again');
$before = $stack->sql("SELECT " . stored('%terminating connection%'));
lose_stream();
becomes('the next manager has delivered what there was, and more', "SELECT " . stored('%terminating connection%') . " > $before");
is($stack->sql('SELECT ' . stored('dropped replication slot%')), 1, '... nothing twice');
is(doubles(), 0, 'no doubles');

# A stack that has failed stores why before the server ends

$node->append_conf('postgresql.conf', "electric_cm.create_publication = off\nmax_wal_senders = 5");
$stack->sql("SELECT pg_drop_replication_slot('other')");
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$node->restart;
$stack->sql('SELECT electric_cm_start()');
becomes('the publication is missing', q{SELECT electric_cm_status() = 'failed'});
$node->append_conf('postgresql.conf', 'electric_cm.create_publication = on');
$node->restart;
ok($stack->active, 'active when it may be created');
is($stack->sql(q{SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'config_error' AND message LIKE '%create_publication is off%'}), 't', 'that it had failed is known');

# Bounded

$stack->sql(q{SELECT pg_create_logical_replication_slot('other', 'pgoutput')});
$stack->sql(q{INSERT INTO _electric_cm.event
	SELECT 'epoch'::timestamptz, i, 'epoch'::timestamptz + i * interval '1 s', 'old', 'warning', 'old ' || i FROM generate_series(1, 1500) i});
lose_stream();
becomes('the table is cut to 1,000', 'SELECT count(*) = 1000 FROM _electric_cm.event');
is($stack->sql('SELECT ' . stored('old 1') . ' + ' . stored('old 500')), 0, '... the oldest go');
is($stack->sql('SELECT ' . stored('%terminating connection%')), 4, '... the latest stay');

# No publication FOR ALL TABLES has any of it, but for our own INSERT above

my $peek = q{SELECT string_agg(DISTINCT substr(encode(data, 'hex'), 1, 2), ',')
	FROM pg_logical_slot_%s_binary_changes('other', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything')
	WHERE substr(encode(data, 'hex'), 1, 2) IN ('52', '49', '55', '44') };
$stack->sql(sprintf $peek, 'get');
lose_stream();
becomes('one more is stored, and an old one deleted', 'SELECT ' . stored('%terminating connection%') . ' = 5');
is($stack->sql('SELECT count(*) FROM _electric_cm.event'), 1000, '... of 1,000');
is($stack->sql(sprintf $peek, 'peek'), '', 'a publication FOR ALL TABLES sends neither');
$stack->sql('INSERT INTO t VALUES (1)');
is($stack->sql(sprintf $peek, 'peek'), '49,52', '... while it does send the tables it should');

# Nobody who locks the table is waited for, and nothing is made of it

my $locker = $node->background_psql($db, on_error_stop => 1);
$locker->query_safe('BEGIN; LOCK TABLE _electric_cm.event');
my $offset = -s $node->logfile;
lose_stream();
$node->wait_for_log(qr/could not store events/, $offset);
is($stack->sql('SELECT electric_cm_status()'), 'active', 'the table is locked: the stack is active all the same');
my ($rc, $recent, $warnings) = $node->psql($db, q{SELECT count(*) > 0, count(*) FILTER (WHERE event = 'old') FROM electric_cm_events});
is($recent, 't|0', '... and the view shows what is recent');
like($warnings, qr/WARNING:  older events are not shown: canceling statement due to lock timeout/, '... and that there is more');
$locker->query_safe('COMMIT');
$locker->quit;
becomes('... and the event is stored afterwards', 'SELECT ' . stored('%terminating connection%') . ' = 6');
my @complaints = slurp_file($node->logfile, $offset) =~ /could not store events/g;
is(scalar @complaints, 1, '... after one complaint');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE message LIKE '%store events%'}), 0, '... which is no event');

# A shape that ends with an error does so where the transaction commits, and if
# the stream is lost before that, the transaction comes again.

$stack->sql(q{CREATE TABLE failing (id int PRIMARY KEY, v text); ALTER TABLE failing REPLICA IDENTITY FULL});
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('failing', '1 / id > 0')});
$stack->sql(q{SELECT electric_cm_create_shape('failing')});
becomes('shapes are live', q{SELECT count(*) = 2 FROM electric_cm_shapes WHERE state = 'live'});
my $holder = $node->background_psql($db, on_error_stop => 1);
$holder->query_safe('BEGIN; LOCK TABLE _electric_cm.shape_log IN SHARE MODE');
my $from = -s $node->logfile;
$stack->sql(q{INSERT INTO failing SELECT i, string_agg(md5(i::text || j), '') FROM generate_series(0, 15000) i, generate_series(1, 60) j GROUP BY i ORDER BY i});
$node->wait_for_log(qr/division by zero/, $from);
becomes('the consumer waits in the midst of a transaction that has an error',
	q{SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = '_electric_cm.shape_log'::regclass});
my $errored = "SELECT count(*) FROM electric_cm_events WHERE event = 'shape_errored' AND message LIKE 'shape $handle %'";
is($stack->sql($errored), 0, '... which is no event yet');
my $manager = $stack->sql('SELECT pg_terminate_backend(pid)::text || pid FROM electric_cm_stat_manager WHERE datname = current_database()') =~ s/^true//r;
becomes('the manager ends', "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $manager");
$holder->query_safe('COMMIT');
$holder->quit;
becomes('the shape is errored', "SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$handle'");
becomes("... and an event says so", "SELECT ($errored) > 0");
my @times = slurp_file($node->logfile, $from) =~ /division by zero/g;
cmp_ok(scalar @times, '>=', 2, '... though the transaction has come twice');
is($stack->sql($errored), 1, '... once');
# A thousand events from a time when the clock was ahead
my $now = $stack->sql('SELECT now()');
$stack->sql(q{INSERT INTO _electric_cm.event SELECT '2100-01-01', i, '2100-01-01', 'old', 'warning', 'old ' || i FROM generate_series(1, 1000) i});
$stack->sql(q{SELECT pg_terminate_backend(backend_pid) FROM electric_cm_stat_connections WHERE role = 'replication'});
becomes('a clock that was ahead: a new event is kept',
	'SELECT ' . stored("%terminating connection%' AND occurred_at > '$now") . ' > 0');
becomes('... and an old one goes', 'SELECT count(*) = 1000 FROM _electric_cm.event');
ok($stack->active, 'active');

$node->stop;
done_testing();
