# What fails at the same place again and again, for a minute and more: a stream,
# a consumer.  It is never "active", and where nothing else helps the place is
# passed by.  Meanwhile, on a third server, a launcher that hangs.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $conf = q{
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.reconnect_max_delay = '4 s'
};
my %stack = map { $_ => new_stack($_, conf => $conf) } qw(stream consumer launcher);

sub health { return decode_json($stack{$_[0]}->sql('SELECT electric_cm_health()')); }

# How often a status was seen, by a session of its own that looks all the time
sub watch
{
	my ($name) = @_;
	my $watcher = $stack{$name}->node->background_psql('postgres');
	$watcher->query_safe(q{CREATE TEMP TABLE seen (status text, severity text)});
	$watcher->query_until(qr/started/, q{\echo started
DO $$ BEGIN
	WHILE to_regclass('public.enough') IS NULL LOOP
		INSERT INTO pg_temp.seen SELECT electric_cm_status(), electric_cm_health() ->> 'severity';
		PERFORM pg_sleep(0.2);
	END LOOP;
END $$;
});
	return $watcher;
}

sub seen_active
{
	my ($name, $watcher) = @_;
	$stack{$name}->sql('CREATE TABLE public.enough ()');
	my $result = $watcher->query_safe(q{SELECT count(*) > 10, count(*) FILTER (WHERE status = 'active' OR severity = 'ok') FROM seen});
	$watcher->quit;
	return $result;
}

for my $name (sort keys %stack)
{
	$stack{$name}->sql('CREATE EXTENSION electric_cm');
	ok($stack{$name}->active, "$name: active");
	$stack{$name}->sql('CREATE TABLE t (id int PRIMARY KEY)');
}

# A launcher that hangs

my $launcher = $stack{launcher}->sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'electric_cm launcher'});
kill 'STOP', $launcher or die 'no launcher';

# Rows that the walsender can't send, and not for what is in them: their type's
# output function is lost.  No shape has the column.

$stack{stream}->sql(q{
CREATE TYPE bad;
CREATE FUNCTION bad_in(cstring) RETURNS bad AS 'int4in' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION bad_out(bad) RETURNS cstring AS 'enum_out' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE bad (INPUT = bad_in, OUTPUT = bad_out, LIKE = int4);
UPDATE pg_type SET typoutput = '99999' WHERE typname = 'bad';
CREATE TABLE b (id int PRIMARY KEY, x bad)});
my $handle = $stack{stream}->sql(q{SELECT electric_cm_create_shape('t')});
my $other = $stack{stream}->sql(q{SELECT electric_cm_create_shape('b', NULL, '{id}')});
$stack{stream}->sql("SELECT count(*) FROM electric_cm_shape_log('$_')") for $handle, $other;
my $reader = $stack{stream}->reader($other);
$stack{stream}->sql(q{INSERT INTO b VALUES (1, '1234')});
$stack{stream}->sql(q{INSERT INTO t VALUES (1)});
$stack{stream}->seen(q{status = 'starting' AND retry_count > 0 AND last_error LIKE 'cache lookup failed for function 99999%' FROM electric_cm_stat_manager},
	'a stream that fails at the same place: not active, it says what fails, and counts');
my $stream_watcher = watch('stream');

# A consumer that can't write

$stack{consumer}->sql('CREATE INDEX trap ON _electric_cm.progress ((1 / worker))');
my $consumer_handle = $stack{consumer}->sql(q{SELECT electric_cm_create_shape('t')});
$stack{consumer}->sql(q{INSERT INTO t VALUES (1)});
$stack{consumer}->seen(q{status = 'starting' AND retry_count > 0 FROM electric_cm_stat_manager}, 'a consumer that dies at its first write: not active');
my $consumer_watcher = watch('consumer');

# Within a minute

my $h = health('stream');
is($h->{status}, 'starting', 'after some seconds: starting');
like($h->{reason}, qr/cache lookup failed for function 99999/, '... why is the reason');

# After that

$stack{launcher}->seen(q{electric_cm_health() ->> 'severity' = 'error'}, 'a launcher that hangs is an error');
like(health('launcher')->{reason}, qr/the launcher, PID $launcher, has not moved for \d+ s/, '... which is the reason');
is($stack{launcher}->sql('SELECT electric_cm_status()'), 'active', '... the stack is as active as before');
kill 'CONT', $launcher;
$stack{launcher}->seen(q{electric_cm_health() ->> 'severity' = 'ok'}, '... it goes on: well');

$stack{stream}->seen(q{electric_cm_health() ->> 'severity' = 'error' OR EXISTS (SELECT FROM electric_cm_events WHERE event = 'stream_given_up')}, 'after a minute it is an error');
$stack{stream}->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'stream_given_up' AND severity = 'error' AND message LIKE '%cache lookup failed for function 99999%'}, 'the stream is given up at that place, and an event says why');
is(seen_active('stream', $stream_watcher), 't|0', '... it was never active or well until then');
ok($stack{stream}->active, '... and goes on behind it: active');
is($stack{stream}->sql(q{SELECT message FROM electric_cm_events WHERE event = 'shapes_resyncing'}), 'all 2 shapes of this database are compared with their tables', '... which the shapes have to make up for');
$stack{stream}->resyncs($reader, q{detail = 'the replication slot is a new one'}, 'b', 'what could not be sent', columns => ['id']);
$stack{stream}->sql(q{INSERT INTO t VALUES (2)});
$stack{stream}->settle;
my ($ok, $entries) = $stack{stream}->replay_equals($handle, 't', ['id']);
ok($ok, "... replay equals table ($entries entries)");

$stack{consumer}->seen(q{electric_cm_health() ->> 'severity' = 'error'}, 'a consumer that dies for a minute is an error');
is($stack{consumer}->sql('SELECT electric_cm_status()'), 'starting', '... and not active');
is(seen_active('consumer', $consumer_watcher), 't|0', '... nor has it been, nor well, for a moment');
$stack{consumer}->sql('DROP INDEX _electric_cm.trap');
ok($stack{consumer}->active, 'it can write again: active');
$stack{consumer}->settle;
($ok, $entries) = $stack{consumer}->replay_equals($consumer_handle, 't', ['id']);
ok($ok, "... replay equals table ($entries entries)");
is($stack{consumer}->sql(q{SELECT count(*) FROM electric_cm_events WHERE event IN ('stream_given_up', 'shapes_resyncing')}), 0, '... nothing was given up for that');
$stack{consumer}->seen(q{electric_cm_health() ->> 'severity' = 'ok'}, '... and well');

$_->node->stop for values %stack;
done_testing();
