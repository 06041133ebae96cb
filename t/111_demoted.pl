# A primary that is stopped, and comes back as a standby of the one that was promoted:
# its stack's own slot is dropped there, which would keep slot synchronization from all
# slots; slots of others stay.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use ElectricCM::Stack ();
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $db = 'postgres';
my $slot = "electric_cm_$db";
my $stack = new_stack('main', conf => q{
wal_sender_timeout = 0
hot_standby_feedback = on
});
my $node = $stack->node;
plan skip_all => 'slots are kept in step from 17 on' if $node->pg_version < 17;

sub slots
{
	my ($server) = @_;
	return $server->safe_psql($db, q{SELECT string_agg(slot_name || CASE WHEN synced THEN ' synced' ELSE '' END, ', ' ORDER BY slot_name)
		FROM pg_replication_slots WHERE slot_type = 'logical' AND NOT temporary});
}

# The server follows the other one, by a slot of its own name there.
sub follows
{
	my ($server, $primary) = @_;
	my $conninfo = $primary->connstr($db) =~ s/'/''/gr;
	my $name = $server->name;
	$primary->safe_psql($db, "SELECT pg_create_physical_replication_slot('$name', true)
		WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$name')");
	$server->append_conf('postgresql.conf', "primary_conninfo = '$conninfo'\nprimary_slot_name = '$name'\n");
	return;
}

# The standby keeps our slot in step.
sub keeps_slot
{
	my ($standby, $primary, $what) = @_;
	for my $i (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		# the slot becomes usable when that of the primary moves on: with a marker, for which
		# somebody has to write
		ElectricCM::write_wal($primary, $db, 2) if $i % 10 == 0;
		$primary->safe_psql($db, 'SELECT pg_log_standby_snapshot()');
		return pass($what) if slots($standby) =~ /$slot synced/;
		usleep(100_000);
	}
	return fail($what);
}

sub demote
{
	my ($server, $primary) = @_;
	follows($server, $primary);
	$server->set_standby_mode;
	$server->start;
	return;
}

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, v text)');
$stack->active or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');
$stack->sql(q{INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 100) i}, map { "SELECT pg_create_logical_replication_slot('$_', 'pgoutput')" } qw(electric_cm_other foreign));
$stack->settle;

$node->backup('base');
my $second = PostgreSQL::Test::Cluster->new('second');
$second->init_from_backup($node, 'base', has_streaming => 1);
follows($second, $node);
$second->append_conf('postgresql.conf', "sync_replication_slots = on\n");
$second->start;
keeps_slot($second, $node, 'a standby keeps the slot in step');
is($second->safe_psql($db, q{SELECT count(*) FROM electric_cm_events WHERE event = 'replication_slot_dropped'}), 0, '... and drops nothing');

# What the servers say of that
sub check { my ($server) = @_; return $server->safe_psql($db, q{SELECT verdict || ': ' || detail || coalesce(' FIX ' || fix, '') FROM electric_cm_check() WHERE name = 'failover'}); }
my $standbys = q{SELECT string_agg(concat_ws('|', standby, slot_name, connected, synchronized, waited_for, failover_ready, reason), ', ' ORDER BY slot_name) FROM electric_cm_stat_standby};
$stack->becomes("SELECT ($standbys) = 'second|second|t|f|f|t'", 'the view has the standby, ready');
like(check($node), qr/^PASS: shapes go on after the promotion of any of 1 standbys, of 1$/, '... and so has the check');
like(check($second), qr/^PASS: this standby keeps replication slot "$slot" in step/, '... also on the standby');
is($stack->sql(q{SELECT electric_cm_health() -> 'failover'}), '{"ready": true, "reason": null, "standbys": 1, "ready_standbys": 1}', '... and health');
like($second->safe_psql($db, q{SELECT electric_cm_health() -> 'failover'}), qr/"ready": true, .*"standbys": null/, '... also there');

my $archive = PostgreSQL::Test::Utils::tempdir;
$stack->sql(q{SELECT pg_create_physical_replication_slot('archive', true)});
my $receiver = IPC::Run::start([ 'pg_receivewal', '-D', $archive, '-S', 'archive', '-d', $node->connstr($db) ], \my $in, '>&', \my $out);
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid WHERE slot_name = 'archive' AND state = 'streaming'}, 'a receiver of WAL for an archive');
is($stack->sql($standbys), 'second|second|t|f|f|t', '... is no standby');
$receiver->kill_kill;
$stack->becomes(q{SELECT pg_drop_replication_slot('archive') IS NOT NULL FROM pg_replication_slots WHERE slot_name = 'archive' AND NOT active});

for my $case ([ 'sync_replication_slots', 'off', 'sync_replication_slots is off', 'on' ], [ 'hot_standby_feedback', 'off', 'hot_standby_feedback is off', 'on' ], [ 'primary_slot_name', '', 'primary_slot_name is empty', 'second' ])
{
	my ($name, $wrong, $text, $right) = @{$case};
	$second->safe_psql($db, "ALTER SYSTEM SET $name = '$wrong'");
	$second->reload;
	ElectricCM::poll($second, $db, "SELECT current_setting('$name') = '$wrong'");
	like(check($second), qr/^WARN: .*$text/, "on a standby: $text");
	$second->safe_psql($db, "ALTER SYSTEM RESET $name");
	$second->reload;
	ElectricCM::poll($second, $db, "SELECT current_setting('$name') = '$right'");
}
like(check($second), qr/^PASS/, '... and none of that any more');
keeps_slot($second, $node, '... the slot is still there');

$stack->sql(q{SELECT pg_create_physical_replication_slot('nobody')}, q{ALTER SYSTEM SET synchronized_standby_slots = 'nobody'});
$node->reload;
$stack->becomes(q{SELECT current_setting('synchronized_standby_slots') = 'nobody'});
$stack->sql(q{SELECT pg_drop_replication_slot('nobody')});
$stack->becomes("SELECT ($standbys) LIKE 'nobody|f|t|%|f|replication slot \"nobody\" does not exist, second|%'", 'a slot that synchronized_standby_slots names, and that does not exist');
like(check($node), qr/^WARN: .*slot of "nobody"|^WARN: .*of slot "nobody": replication slot "nobody" does not exist/, '... which the check says');
$stack->sql('INSERT INTO t VALUES (1000)');
$stack->becomes('SELECT bool_or(waited_for) FROM electric_cm_stat_standby', '... and which the stream waits for');
$stack->sql('ALTER SYSTEM RESET synchronized_standby_slots', 'ALTER SYSTEM SET electric_cm.failover = off');
$node->reload;
$stack->becomes(q{SELECT verdict = 'WARN' AND fix LIKE 'ALTER SYSTEM SET electric_cm.failover = on;%' FROM electric_cm_check() WHERE name = 'failover'}, 'electric_cm.failover is off: the check says so, and has a fix');
$stack->sql('ALTER SYSTEM RESET electric_cm.failover');
$node->reload;
$stack->becomes(q{SELECT verdict = 'PASS' FROM electric_cm_check() WHERE name = 'failover'}, '... and is content again');
$stack->settle;
keeps_slot($second, $node, '... as soon as the standby keeps the slot in step again');

# A clean switchover.  Whoever has switched all of this off keeps his slot.
$node->append_conf('postgresql.conf', "electric_cm.failover = off\n");
$node->stop;
$second->promote;
my $there = ElectricCM::Stack->new($second, $db);
ok($there->active, 'promoted: active');
is(slots($second), "$slot synced", 'promoted: it has the slot');
demote($node, $second);
$second->wait_for_catchup($node);
is(slots($node), "electric_cm_other, $slot, foreign", 'the former primary, as a standby: with electric_cm.failover and sync_replication_slots off it keeps its slots');

# ... which nobody notices; slot synchronization does, wherever that is the standby's task
my $log = -s $node->logfile;
$node->append_conf('postgresql.conf', "sync_replication_slots = on\n");
$node->reload;
ok(ElectricCM::poll($node, $db, "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$slot' AND NOT synced)"), 'with sync_replication_slots on: the slot is dropped');
like(slurp_file($node->logfile, $log), qr/dropped replication slot "$slot" of the time as primary/, '... the log says so');
is($node->safe_psql($db, q{SELECT severity || ': ' || message FROM electric_cm_events WHERE event = 'replication_slot_dropped'}),
	qq{log: dropped replication slot "$slot" of the time as primary}, '... and so does an event');
keeps_slot($node, $second, '... and kept in step with the new primary');
is(slots($node), "electric_cm_other, $slot synced, foreign", '... slots of others stay');

# And back: by electric_cm.failover alone, and with a slot that was synced once, which stays
$node->append_conf('postgresql.conf', "electric_cm.failover = on\n");
$node->reload;
$there->settle;
keeps_slot($node, $second, 'the slot is in step before the second switchover');
$second->stop;
$node->promote;
ok($stack->active, 'switched back: active');
demote($second, $node);
$node->wait_for_catchup($second);
keeps_slot($second, $node, 'a slot that has come by slot synchronization goes on being kept in step');
unlike(slurp_file($second->logfile), qr/of the time as primary/, '... and was not dropped');

# A server that is a standby without a primary, as an HA manager may start it, drops nothing
$node->stop;
$second->promote;
ok($there->active, 'switched over again: active');
is($there->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_kept'}), 3, '... each switchover has kept the shapes');
is($there->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_resyncing'}), 0, '... though nobody wrote anything in between');
$there->sql('SELECT electric_cm_stop()', "SELECT pg_drop_replication_slot('$slot')", 'SELECT electric_cm_start()');
ok($there->active, 'the stack has made a slot there');
$second->append_conf('postgresql.conf', "primary_conninfo = ''\n");
$second->stop;
$second->set_standby_mode;
$second->start;
my $until = time + 3;
$second->safe_psql($db, 'SELECT pg_sleep(0.5)') while time < $until;
is(slots($second), $slot, 'a standby that follows nobody keeps its slot');
$second->promote;
ok($there->active, '... and goes on with it, or makes another one');
$second->stop;
done_testing();
