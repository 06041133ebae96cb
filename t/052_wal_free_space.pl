# pg_wal is on a small file system, which is about to be full.
use strict;
use warnings;

# The file system is mounted in a namespace of our own, in which we are root;
# then we become ourselves again, since the server does not run as root.  The
# test runs once more inside of it, before anything is loaded that would write
# to its output, and nothing is left behind.
BEGIN
{
	require File::Temp;
	if (!defined $ENV{ECM_TEST_WAL_FS})
	{
		my $fs = File::Temp::tempdir('walXXXX', TMPDIR => 1, CLEANUP => 1);
		my $gid = (split / /, $))[0];
		my @inside = (
			'unshare', '--map-root-user', '--mount', 'sh', '-c',
			'mount -t tmpfs -o size=400m,mode=0700 tmpfs "$1" && shift && exec unshare "$@"',
			'sh', $fs, "--map-user=$>", "--map-group=$gid");
		if (system(@inside, 'true') != 0)
		{
			print "1..0 # SKIP no file system can be mounted here: unshare --map-root-user --mount fails\n";
			exit 0;
		}
		$ENV{ECM_TEST_WAL_FS} = $fs;
		my $status = system @inside, $^X, (map { "-I$_" } @INC), $0;
		exit($status == 0 ? 0 : 1);
	}
}

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $fs = $ENV{ECM_TEST_WAL_FS};

my $stack = new_stack('main',
	init => { extra => [ '--waldir', "$fs/wal", '--wal-segsize', '1' ] },
	conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
electric_cm.retained_wal_warning = -1
electric_cm.min_wal_free_space = 200MB
max_wal_size = 16MB
min_wal_size = 2MB
autovacuum = off
});
my $node = $stack->node;
my $slot = 'electric_cm_postgres';
my $exists = "EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$slot')";

sub seen
{
	my ($query, $what) = @_;
	return $stack->becomes($query =~ /^SELECT/ ? $query : "SELECT $query", $what);
}
sub count_of { my ($event) = @_; return "(SELECT count(*) FROM electric_cm_events WHERE event = '$event')"; }

# Something else that takes up space there
sub take_space
{
	my ($name, $mb) = @_;
	append_to_file("$fs/$name", 'x' x (1024 * 1024)) for 1 .. $mb;
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
ok($stack->active, 'active');
seen('SELECT wal_free_bytes BETWEEN 300 * 1024 * 1024 AND 400 * 1024 * 1024 FROM electric_cm_stat_replication',
	'the free space is that of the file system under pg_wal');
is($stack->sql('SELECT data_free_bytes <> wal_free_bytes FROM electric_cm_stat_replication'), 't', '... not that of the data directory');

#
# It is somebody else's fault
#
take_space('theirs', 210);
seen(count_of('wal_free_space_low') . ' = 1', 'too little is free: a warning');
$stack->write_wal(20);
$stack->sql('CHECKPOINT');
my $sampled = $stack->sql('SELECT sampled_at FROM electric_cm_stat_replication');
seen("SELECT sampled_at > '$sampled'::timestamptz + interval '2 s' FROM electric_cm_stat_replication");
is($stack->sql('SELECT ' . count_of('wal_free_space_limit')), 0, 'a slot that holds little is not to blame');
is($stack->sql('SELECT ' . count_of('wal_free_space_low')), 1, '... and there is one warning');
unlink "$fs/theirs" or die $!;
seen(count_of('wal_free_space_over') . ' = 1', 'when there is room again, an event says so');

#
# It is our slot's, and it is the WAL that takes the room
#
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
take_space('theirs', 110);
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql(q{INSERT INTO t VALUES (-1, 'for the consumer')});
$stack->write_wal(50);
$stack->write_wal(60);
seen(count_of('wal_free_space_limit') . ' = 1', 'too little is free, and our slot holds more than 64 MB: an event');
kill 'CONT', $consumer;
seen(count_of('replication_slot_created') . q{ = 2 AND electric_cm_status() = 'active'}, '... a new slot is made');
seen(count_of('wal_free_space_over') . ' = 2', '... when there was room again');
seen(q{SELECT bool_and(state = 'live') AND count(*) = 1 FROM electric_cm_shapes, electric_cm_events WHERE event = 'shape_resynced'}, '... and the shape is compared with its table');
is( $stack->sql(q{SELECT string_agg(event, ' ' ORDER BY occurred_at) FROM electric_cm_events
	WHERE event ~ 'wal_free|slot' AND occurred_at >= (SELECT max(occurred_at) FROM electric_cm_events WHERE event = 'wal_free_space_low')}),
	'wal_free_space_low wal_free_space_limit replication_slot_dropped wal_free_space_over replication_slot_created',
	'... in this order');

#
# There is no room even without it
#
$handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
$consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql(q{INSERT INTO t VALUES (-2, 'for the consumer')});
$stack->write_wal(50);
take_space('more', 60);
$stack->write_wal(30);
seen("NOT $exists", 'the slot is dropped again');
kill 'CONT', $consumer;
seen(q{SELECT status = 'starting' AND step = 'create_slot' AND waiting_for LIKE 'free space under pg_wal: %'
	FROM electric_cm_stat_manager}, '... and none is made as long as there is no room');
$stack->write_wal(10);
is($stack->sql('SELECT ' . count_of('replication_slot_created')), 2, '... indeed');
unlink "$fs/more" or die $!;
ok($stack->active, 'as soon as there is, the stack is active again');

#
# While it is stopped
#
$stack->sql('SELECT electric_cm_stop()');
$stack->write_wal(110);
seen("NOT $exists", 'stopped: the slot is dropped');
seen('SELECT wal_free_bytes > 225 * 1024 * 1024 FROM electric_cm_stat_replication', '... and its WAL is removed');
unlink "$fs/theirs" or die $!;
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active again');
is($stack->sql('SELECT ' . count_of('wal_free_space_limit')), 3, 'each time was an event');

$node->stop;
done_testing();
