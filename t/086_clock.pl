# The clock is set back, or forward, by an hour: nothing stands still, nothing
# is spared, and nothing happens before its time.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# What all processes of the server see as the time: shifted by as many seconds
# as a file says
my $shim = <<'C';
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *shift;

__attribute__((constructor)) static void init(void)
{
	const char *file = getenv("CLOCK_SHIFT");
	int fd = file ? open(file, O_RDONLY) : -1;

	if (fd < 0)
		return;
	shift = mmap(0, sizeof(*shift), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (shift == MAP_FAILED)
		shift = 0;
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	int result = syscall(SYS_clock_gettime, clock, ts);

	if (result == 0 && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		ts->tv_sec += *shift;
	return result;
}

int gettimeofday(struct timeval *tv, void *tz)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	if (t)
		*t = ts.tv_sec;
	return ts.tv_sec;
}
C
my $dir = PostgreSQL::Test::Utils::tempdir_short();
chmod 0755, $dir;
append_to_file("$dir/shim.c", $shim);
plan skip_all => 'no C compiler, or not Linux'
  if $^O ne 'linux' || system("cc -O1 -fPIC -shared -o $dir/shim.so $dir/shim.c") != 0;

sub set_clock
{
	my ($seconds) = @_;
	open my $fh, '+<:raw', "$dir/shift" or die $!;
	syswrite $fh, pack('q', $seconds);
	close $fh;
	return;
}
append_to_file("$dir/shift", pack('q', 0));

my $stack = new_stack('main', start => 0, conf => q{
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.consumer_stall_timeout = '20 s'
electric_cm.reconnect_initial_delay = '500 ms'
electric_cm.reconnect_max_delay = '1 s'
electric_cm.retained_wal_limit = '192 MB'
electric_cm.min_wal_free_space = -1
});
my $node = $stack->node;
my $db = 'postgres';
{
	local $ENV{LD_PRELOAD} = "$dir/shim.so";
	local $ENV{CLOCK_SHIFT} = "$dir/shift";
	$node->start;
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id bigserial PRIMARY KEY, x text)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

my $insert = q{INSERT INTO t (x) SELECT repeat('x', 400) FROM generate_series(1, 500)};
my $sampled = q{abs(extract(epoch FROM clock_timestamp() - sampled_at)) < 5 FROM electric_cm_stat_replication};
my $clock = 0;

# While the stream is busy: a pause in reading, and a sample, are due at any time
sub jump
{
	my ($seconds) = @_;
	my $load = $node->background_psql($db);
	$load->query_until(qr/started/, "\\echo started\n" . "$insert;\n" x 200);
	$clock += $seconds;
	set_clock($clock);
	ok($stack->active, "the clock goes by $seconds s: active");
	$stack->seen($sampled, '... samples of retained WAL go on');

	# The load may be over by now, and nothing more to acknowledge without this
	my $lsn = $stack->sql('SELECT pg_current_wal_lsn()');
	$stack->sql($insert);
	$stack->seen("confirmed_flush_lsn > '$lsn' FROM pg_replication_slots", '... what is written is acknowledged');
	$load->quit;
	my ($rc) = $node->psql($db, q{SELECT electric_cm_await_flushed(NULL, '60 s')});
	is($rc, 0, '... and logged');
	return;
}

for my $seconds (-3600, 3600, 3600, -7200, 3600)
{
	jump($seconds);

	# A wait ends by its timeout, neither sooner nor later
	my $last = $stack->sql("SELECT log_offset FROM electric_cm_shape_log('$handle') OFFSET (SELECT log_entries - 1 FROM electric_cm_shapes)");
	my $waiter = $node->background_psql($db);
	my $began = time;
	$waiter->query_until(qr/started/, "\\echo started\nSELECT electric_cm_await_shape_log('$handle', '$last', '4 s');\n\\echo ended\n");
	$stack->seen(q{EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT electric_cm_await_shape_log%' AND state = 'active')}, 'somebody waits for 4 s');
	$clock -= $seconds;
	set_clock($clock);
	$waiter->query_until(qr/ended/, '');
	my $took = time - $began;
	ok($took >= 3.5 && $took < 60, sprintf('... for %.1f s, whatever the clock does', $took));
	$waiter->quit;
	$clock += $seconds;
	set_clock($clock);
}
is($stack->events('consumer_stalled') + $stack->events('retained_wal_limit') + $stack->events('stack_restarting'), 0, 'nothing was given up for it');
is($stack->sql('SELECT count(*) FROM electric_cm_shapes'), 1, '... and no shape is lost');

# A consumer that hangs: not named before its time, nor later

my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql($insert);
$clock += 3600;
set_clock($clock);
$stack->sql(q{SELECT pg_sleep(3)});
is($stack->events('consumer_stalled'), 0, 'forward: a consumer that has stopped a moment ago does not count as hanging');
$clock -= 7200;
set_clock($clock);
$stack->seen("pinned_by LIKE 'consumer 1 (PID $consumer)%' FROM electric_cm_stat_replication", 'back: it does when its time has come');
kill 'CONT', $consumer;
$stack->seen('pinned_by IS NULL FROM electric_cm_stat_replication', '... no longer when it goes on');

# Retries

$stack->sql(q{SELECT electric_cm_stop()});
my $other = $node->background_psql($db);
$other->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_postgres'))});
$stack->sql('SELECT electric_cm_start()');
$stack->seen(q{waiting_for LIKE '%lock%' FROM electric_cm_stat_manager}, 'waiting for the lock');
$clock -= 3600;
set_clock($clock);
$other->quit;
ok($stack->active, 'the clock is set back meanwhile: taken over as soon as it is free');

$stack->sql(q{CREATE TABLE u (id int PRIMARY KEY)});
my $u = $stack->sql(q{BEGIN; SELECT electric_cm_create_shape('u'); COMMIT});
$clock -= 3600;
set_clock($clock);
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$u')"), 0, 'back: a shape is created all the same');

# The limit holds at once, whatever the clock says: who is to blame for it is
# the consumer

$stack->seen(q{now() - sampled_at < '5 s' FROM electric_cm_stat_replication}, 'sampled');
$consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$clock -= 3600;
set_clock($clock);

# First something for the consumer to do, or the slot may move on past the rest
$stack->sql(q{INSERT INTO t (x) SELECT repeat(md5(i::text), 20) FROM generate_series(1, 10000) i});
$stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 100)}) for 1 .. 2;
ok(ElectricCM::poll($node, $db, q{SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'retained_wal_limit'}), 'back: a slot that holds too much is dropped');
kill 'CONT', $consumer;
ok($stack->active, 'active again');

# A stack without a manager: the launcher's clock

$stack->sql(q{SELECT electric_cm_stop()});
$stack->seen(q{sampled_at > clock_timestamp() - interval '5 s' FROM electric_cm_stat_replication}, 'stopped: sampled');
for my $seconds (-3600, 7200)
{
	$clock += $seconds;
	set_clock($clock);
	$stack->seen($sampled, "stopped, the clock goes by $seconds s: sampled");
}
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'started: active');

$node->stop;
done_testing();
