# Standby, promotion, point-in-time recovery and copies of the data directory:
# wherever the stream is not the one that the shapes were made from, the stack
# starts by itself and compares their logs with the tables; where it is, they go on.
use strict;
use warnings;

use ElectricCM qw(new_stack wait_active replay_equals);
use ElectricCM::Stack ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $db = 'postgres';
my $slot = "electric_cm_$db";
my $stack = new_stack('main', init => { has_archiving => 1 });
my $node = $stack->node;

# A shape with some rows in its log.
sub shape
{
	my ($server) = @_;
	my $handle = $server->safe_psql($db, "SELECT electric_cm_create_shape('t')");
	$server->safe_psql($db, "SET statement_timeout = '60 s'; SELECT count(*) FROM electric_cm_shape_log('$handle')");
	$server->safe_psql($db, 'INSERT INTO t (t) SELECT md5(i::text) FROM generate_series(1, 10) i');
	$server->safe_psql($db, 'SELECT electric_cm_await_flushed(NULL, \'60 s\')');
	return $handle;
}

# The shape's log as it is, and one more row.
sub shape_goes_on
{
	my ($server, $handle, $what) = @_;
	$server->safe_psql($db, q{INSERT INTO t (t) VALUES ('one more')});
	$server->safe_psql($db, 'SELECT electric_cm_await_flushed(NULL, \'60 s\')');
	my ($ok, $entries) = replay_equals($server, $db, $handle, 't', ['id']);
	return ok($ok, "$what: replay equals table ($entries entries)");
}

# A reader of the original goes on at a server that continues it.
sub shapes_are_compared
{
	my ($server, $reader, $reason, $what) = @_;
	my $there = ElectricCM::Stack->new($server, $db);
	$reader = { %{$reader} };
	$there->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$reader->{handle}'");
	is( $server->safe_psql($db,
			q{SELECT string_agg(detail, ', ') FROM electric_cm_events WHERE event = 'shapes_resyncing'}),
		$reason, "$what: an event says once that shapes are compared, and why");
	cmp_ok($there->events('shape_resynced', "detail = '$reason'"), '>', 0, "$what: ... and another one how it went");
	$there->goes_on($reader, 't', $what);
	shape_goes_on($server, $reader->{handle}, "$what, and what comes later");
	return $there->goes_on($reader, 't', "$what, and who was there before");
}

# A server restored from a backup, with lines for its configuration.
sub restored
{
	my ($name, $backup, $conf, %opts) = @_;
	my $server = PostgreSQL::Test::Cluster->new($name);
	$server->init_from_backup($node, $backup, %opts);
	$server->append_conf('postgresql.conf', "archive_mode = off\n$conf");
	return $server;
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)');
$stack->sql('CREATE TABLE blocked (id int PRIMARY KEY)');
my $beyond = $stack->live_shape('t', columns => ['id']);
my $handle = shape($node);
my $system = $stack->sql('SELECT system_identifier FROM pg_control_system()');
$node->backup('base');
$stack->sql(q{INSERT INTO t (t) VALUES ('after the backup')});
$stack->sql('SELECT electric_cm_await_flushed(NULL, \'60 s\')');

#
# A standby: no stack, but shape logs can be read
#
my $standby = restored('standby', 'base', '', has_streaming => 1);
$standby->start;
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN');
$writer->query_safe('INSERT INTO blocked VALUES (1)');
my $creating = $stack->sql("SELECT electric_cm_create_shape('blocked')");
$node->wait_for_catchup($standby);
is( $standby->safe_psql($db, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'electric%'}),
	0, 'standby: nothing runs');
is($standby->safe_psql($db, 'SELECT electric_cm_status()'), 'stopped', 'standby: its status is "stopped"');
is( $standby->safe_psql($db,
		q{SELECT datname, pid IS NULL, status, waiting_for FROM electric_cm_stat_manager
			WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database())
				AND status_since = pg_postmaster_start_time()}),
	"$db|t|stopped|a standby has no stack: it starts at promotion", 'standby: the view says why');
is($standby->safe_psql($db, 'SELECT count(*) FROM electric_cm_stat_manager'), 1, 'standby: in one row');
for my $function (qw(await_active await_flushed start stop restart))
{
	my ($rc, $out, $err) = $standby->psql($db, "SELECT electric_cm_$function()");
	like($err, qr/recovery.*HINT:.*promotion/s, "standby: electric_cm_$function() is an error with a hint");
}
is( $standby->safe_psql($db, "SELECT string_agg(l::text, E'\\n') FROM electric_cm_shape_log('$handle') l"),
	$stack->sql("SELECT string_agg(l::text, E'\\n') FROM electric_cm_shape_log('$handle') l"),
	'standby: a shape log can be read');
is( $standby->safe_psql($db, "SELECT state, log_entries FROM electric_cm_shapes WHERE handle = '$handle'"),
	'live|11', 'standby: the shape can be seen');
my ($rc, $out, $err) = $standby->psql($db, "SET statement_timeout = '300 ms'; SELECT * FROM electric_cm_shape_log('$creating')");
like($err, qr/statement timeout/, 'standby: one that is being created is waited for');
is($standby->safe_psql($db, 'SELECT electric_cm_report_retained_wal_size() IS NULL'), 't',
	'standby: there is no slot');
$writer->query_safe('ROLLBACK');
$writer->quit;

#
# What will be restored
#

# ... a moment after a clean stop.  The lock keeps the stack from going on.
# And what nothing should ever bring about: progress, and a log, beyond the end of the WAL.
my $holder = $node->background_psql($db);
$holder->query_until(qr/waiting/, "\\echo waiting\nSELECT pg_advisory_lock(hashtext('$slot'));\n");
ok( ElectricCM::poll($node, $db,
		q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}),
	'somebody else waits for the lock');
$stack->sql('SELECT electric_cm_restart()');
ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', 'waiting'), 'and has it');
is($stack->sql('SELECT count(*) FROM _electric_cm.stack WHERE clean_stop_lsn IS NOT NULL'), 1,
	'a clean stop is recorded');
my $at_clean_stop = $stack->reader($handle);
$stack->sql(q{UPDATE _electric_cm.progress SET lsn = lsn + 1000000000},
	qq{UPDATE _electric_cm.shape_log SET first_lsn = first_lsn + 1000000000 WHERE first_lsn > '0/0' AND shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$beyond')});
$stack->sql(q{SELECT pg_create_restore_point('clean stop')});
$stack->sql(q{UPDATE _electric_cm.progress SET lsn = lsn - 1000000000},
	qq{UPDATE _electric_cm.shape_log SET first_lsn = first_lsn - 1000000000 WHERE first_lsn > '0/0' AND shape = (SELECT id FROM _electric_cm.shape WHERE handle = '$beyond')});
$holder->quit;
ok($stack->active, 'active again');
shape_goes_on($node, $handle, 'after the clean stop');

# ... a moment when the stack was stopped by hand
$node->psql($db, 'SELECT electric_cm_stop()');
my $at_stop_by_hand = $stack->reader($handle);
$stack->sql(q{SELECT pg_create_restore_point('stopped by hand')});
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'active again');
$stack->sql(q{INSERT INTO t (t) VALUES ('never happens there')});
$stack->sql('SELECT electric_cm_await_flushed(NULL, \'60 s\')');

# ... and complete copies, one of a running server, and one of one that is not
my $at_copy = $stack->reader($handle);
$node->backup('running');
$stack->sql('CHECKPOINT');	# also writes the slot
my $wal = $stack->sql('SELECT pg_walfile_name(pg_switch_wal())');
$node->stop;
ok(-e $node->archive_dir . "/$wal", 'the WAL is archived');
$node->backup_fs_cold('cold');
$node->start;
ok($stack->active, 'active again');

#
# Point-in-time recovery
#
my $pitr = restored('pitr', 'base', "recovery_target_name = 'clean stop'\nrecovery_target_action = 'promote'\n",
	has_restoring => 1, standby => 0);
$pitr->start;
ok(wait_active($pitr, $db), 'recovered to a clean stop: active');
is($pitr->safe_psql($db, 'SELECT timeline_id FROM electric_cm_pg_info()'), 2,
	'recovered to a clean stop: on another timeline');
shapes_are_compared($pitr, $at_clean_stop, 'the timeline has changed', 'recovered to a clean stop');
my $there = ElectricCM::Stack->new($pitr, $db);
$there->replays($beyond, 't', 'recovered to a clean stop: a log that was beyond the end of WAL begins again', columns => ['id']);
like($there->error_of_sql("SELECT electric_cm_shape_log('$beyond', '$at_clean_stop->{had}{last}')"), qr/EC001/, '... which its readers are told');
$pitr->restart;
ok(wait_active($pitr, $db), 'recovered to a clean stop: active after a restart');
is( $pitr->safe_psql($db, q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_resyncing' AND occurred_at > pg_postmaster_start_time()}),
	0, 'recovered to a clean stop: they are not compared again');
$pitr->stop;

# A slot that was copied too is as it was later than that: it would wait for
# WAL that was never written here.
$pitr = restored('pitr_slot', 'base',
	"recovery_target_name = 'stopped by hand'\nrecovery_target_action = 'promote'\n",
	has_restoring => 1, standby => 0);
my $slot_dir = '/pg_replslot/' . $slot;
PostgreSQL::Test::RecursiveCopy::copypath($node->data_dir . $slot_dir, $pitr->data_dir . $slot_dir);
$pitr->start;
ok( ElectricCM::poll($pitr, $db,
		q{SELECT EXISTS (SELECT FROM electric_cm_stat_manager
			WHERE status = 'stopped' AND waiting_for = 'electric_cm_stop() was called')}),
	'recovered to a stop by hand: stopped, and says why');
is( $pitr->safe_psql($db,
		q{SELECT confirmed_flush_lsn > pg_current_wal_lsn() FROM pg_replication_slots}),
	't', 'recovered to a stop by hand: there is a slot from the future');
$pitr->safe_psql($db, 'SELECT electric_cm_start()');
ok(wait_active($pitr, $db), 'recovered to a stop by hand: active after electric_cm_start()');
shapes_are_compared($pitr, $at_stop_by_hand, 'the timeline has changed, and the replication slot was not synchronized from the primary',
	'recovered to a stop by hand');
like( $pitr->safe_psql($db,
		q{SELECT string_agg(event || ': ' || message, ', ' ORDER BY occurred_at) FROM electric_cm_events
			WHERE event LIKE 'replication_slot%' OR event = 'connection_error'}),
	qr/^replication_slot_dropped.*replication_slot_created[^,]*$/,
	'recovered to a stop by hand: events tell what happened to the slot');
is( $pitr->safe_psql($db, q{SELECT severity || ': ' || detail FROM electric_cm_events WHERE event = 'replication_slot_dropped'}),
	'log: The server has been promoted or recovered: its timeline is 2, and was 1 when the shapes were made.',
	'recovered to a stop by hand: ... and why, which is no cause for alarm');
$pitr->stop;

#
# Copies that are not recovered to anything: crash recovery, the same timeline
#
my $copy = restored('copy', 'running', '');
$copy->start;
ok(wait_active($copy, $db), 'copy by pg_basebackup: active');
is( $copy->safe_psql($db, 'SELECT system_identifier, timeline_id FROM electric_cm_pg_info()'),
	"$system|1", 'copy by pg_basebackup: the same system and timeline');
shapes_are_compared($copy, $at_copy, 'the replication slot is a new one', 'copy by pg_basebackup');
$copy->stop;

$copy = restored('cold_copy', 'cold', '');
$copy->start;
ok(wait_active($copy, $db), 'copy of the whole directory: active');
is($copy->safe_psql($db, q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_resyncing'}), 0,
	'copy of the whole directory: slot and shapes are complete');
shape_goes_on($copy, $handle, 'copy of the whole directory');

# ... whose slot lacks its WAL, as pg_resetwal leaves it
my $at_reset = ElectricCM::Stack->new($copy, $db)->reader($handle);
$copy->stop;
system_or_bail('pg_resetwal', '-f', '-D', $copy->data_dir);
$copy->start;
ok( ElectricCM::poll($copy, $db,
		q{SELECT electric_cm_status() = 'active' AND
			EXISTS (SELECT FROM electric_cm_events WHERE event = 'shapes_resyncing')}),
	'after pg_resetwal: active');
shapes_are_compared($copy, $at_reset, 'the replication slot is a new one', 'after pg_resetwal');
$copy->stop;

#
# Promotion
#
shape_goes_on($node, $handle, 'the original');
my $at_promotion = $stack->reader($handle);
$node->wait_for_catchup($standby);
$node->stop;
my $start = time;
$standby->promote;
ok(wait_active($standby, $db), sprintf('promoted: active (%.1f s)', time - $start));
is($standby->safe_psql($db, 'SELECT timeline_id FROM electric_cm_pg_info()'), 2, 'promoted: on another timeline');
is($standby->safe_psql($db, 'SELECT count(*) FROM electric_cm_stat_manager'), 1, 'promoted: one row in the view');
shapes_are_compared($standby, $at_promotion, 'the timeline has changed', 'promoted');
$standby->stop;
done_testing();
