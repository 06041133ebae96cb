# What fails at the same place again and again, for a minute and more: a stream,
# a consumer.  It is never "active", and where nothing else helps the place is
# passed by.  Meanwhile, on a third server, a launcher that hangs.
use strict;
use warnings;

use ElectricCM qw(new_node wait_active becomes replay_equals);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $conf = q{
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.reconnect_max_delay = '4 s'
};
my %node = map { $_ => new_node($_, conf => $conf) } qw(stream consumer launcher);

sub value { my ($node, $query) = @_; return $node{$node}->safe_psql($db, $query); }
sub seen { my ($node, $query, $what) = @_; return becomes($node{$node}, $db, "SELECT $query", $what); }
sub health { return decode_json(value($_[0], 'SELECT electric_cm_health()')); }

# How often a status was seen, by a session of its own that looks all the time
sub watch
{
	my ($node) = @_;
	my $watcher = $node{$node}->background_psql($db);
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
	my ($node, $watcher) = @_;
	value($node, 'CREATE TABLE public.enough ()');
	my $result = $watcher->query_safe(q{SELECT count(*) > 10, count(*) FILTER (WHERE status = 'active' OR severity = 'ok') FROM seen});
	$watcher->quit;
	return $result;
}

for my $node (sort keys %node)
{
	value($node, 'CREATE EXTENSION electric_cm');
	ok(wait_active($node{$node}, $db), "$node: active");
	value($node, 'CREATE TABLE t (id int PRIMARY KEY)');
}

# A launcher that hangs

my $launcher = value('launcher', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'electric_cm launcher'});
kill 'STOP', $launcher or die 'no launcher';

# Rows that the walsender can't send, and not for what is in them: their type's
# output function is lost.  No shape has the column.

value('stream', q{
CREATE TYPE bad;
CREATE FUNCTION bad_in(cstring) RETURNS bad AS 'int4in' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION bad_out(bad) RETURNS cstring AS 'enum_out' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE bad (INPUT = bad_in, OUTPUT = bad_out, LIKE = int4);
UPDATE pg_type SET typoutput = '99999' WHERE typname = 'bad';
CREATE TABLE b (id int PRIMARY KEY, x bad)});
my $handle = value('stream', q{SELECT electric_cm_create_shape('t')});
my $other = value('stream', q{SELECT electric_cm_create_shape('b', NULL, '{id}')});
value('stream', "SELECT count(*) FROM electric_cm_shape_log('$_')") for $handle, $other;
value('stream', q{INSERT INTO b VALUES (1, '1234')});
value('stream', q{INSERT INTO t VALUES (1)});
seen('stream', q{status = 'starting' AND retry_count > 0 AND last_error LIKE 'cache lookup failed for function 99999%' FROM electric_cm_stat_manager},
	'a stream that fails at the same place: not active, it says what fails, and counts');
my $stream_watcher = watch('stream');

# A consumer that can't write

value('consumer', 'CREATE INDEX trap ON _electric_cm.progress ((1 / worker))');
my $consumer_handle = value('consumer', q{SELECT electric_cm_create_shape('t')});
value('consumer', q{INSERT INTO t VALUES (1)});
seen('consumer', q{status = 'starting' AND retry_count > 0 FROM electric_cm_stat_manager}, 'a consumer that dies at its first write: not active');
my $consumer_watcher = watch('consumer');

# Within a minute

my $h = health('stream');
is($h->{status}, 'starting', 'after some seconds: starting');
like($h->{reason}, qr/cache lookup failed for function 99999/, '... why is the reason');

# After that

seen('launcher', q{electric_cm_health() ->> 'severity' = 'error'}, 'a launcher that hangs is an error');
like(health('launcher')->{reason}, qr/the launcher, PID $launcher, has not moved for \d+ s/, '... which is the reason');
is(value('launcher', 'SELECT electric_cm_status()'), 'active', '... the stack is as active as before');
kill 'CONT', $launcher;
seen('launcher', q{electric_cm_health() ->> 'severity' = 'ok'}, '... it goes on: well');

seen('stream', q{electric_cm_health() ->> 'severity' = 'error' OR EXISTS (SELECT FROM electric_cm_events WHERE event = 'stream_given_up')}, 'after a minute it is an error');
seen('stream', q{count(*) = 1 FROM electric_cm_events WHERE event = 'stream_given_up' AND severity = 'error' AND message LIKE '%cache lookup failed for function 99999%'}, 'the stream is given up at that place, and an event says why');
is(seen_active('stream', $stream_watcher), 't|0', '... it was never active or well until then');
ok(wait_active($node{stream}, $db), '... and goes on behind it: active');
is(value('stream', q{SELECT message FROM electric_cm_events WHERE event = 'shapes_invalidated'}), 'all 2 shapes of this database are gone: create them again', '... at the price of the shapes');
$handle = value('stream', q{SELECT electric_cm_create_shape('t')});
value('stream', q{INSERT INTO t VALUES (2)});
value('stream', q{SELECT electric_cm_await_flushed(NULL, '60 s')});
my ($ok, $entries) = replay_equals($node{stream}, $db, $handle, 't', ['id']);
ok($ok, "... replay equals table ($entries entries)");

seen('consumer', q{electric_cm_health() ->> 'severity' = 'error'}, 'a consumer that dies for a minute is an error');
is(value('consumer', 'SELECT electric_cm_status()'), 'starting', '... and not active');
is(seen_active('consumer', $consumer_watcher), 't|0', '... nor has it been, nor well, for a moment');
value('consumer', 'DROP INDEX _electric_cm.trap');
ok(wait_active($node{consumer}, $db), 'it can write again: active');
value('consumer', q{SELECT electric_cm_await_flushed(NULL, '60 s')});
($ok, $entries) = replay_equals($node{consumer}, $db, $consumer_handle, 't', ['id']);
ok($ok, "... replay equals table ($entries entries)");
is(value('consumer', q{SELECT count(*) FROM electric_cm_events WHERE event IN ('stream_given_up', 'shapes_invalidated')}), 0, '... nothing was given up for that');
seen('consumer', q{electric_cm_health() ->> 'severity' = 'ok'}, '... and well');

$_->stop for values %node;
done_testing();
