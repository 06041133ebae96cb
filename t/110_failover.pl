# A standby that is promoted goes on with its shapes, if slot synchronization has kept
# its slot and its logs reach up to that; if not, they are resynced, and the reason is said.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use ElectricCM::Stack ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::RecursiveCopy;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $db = 'postgres';
my $slot = "electric_cm_$db";
my $conf = q{
electric_cm.shape_workers = 2
electric_cm.wal_report_interval = '1 s'
max_prepared_transactions = 5
wal_sender_timeout = 0
hot_standby_feedback = on
};
my $stack = new_stack('main', conf => $conf);
my $node = $stack->node;
my $keeps_slots = $node->pg_version >= 17;

# A standby of a server, by a physical slot of the same name.
sub standby_of
{
	my ($primary, $name) = @_;
	$primary->safe_psql($db, "SELECT pg_create_physical_replication_slot('$name', true)");
	$primary->backup($name);
	my $standby = PostgreSQL::Test::Cluster->new($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	my $conninfo = $primary->connstr($db) =~ s/'/''/gr;
	$standby->append_conf('postgresql.conf', "primary_conninfo = '$conninfo'\nprimary_slot_name = '$name'\n");
	$standby->start;
	$primary->wait_for_catchup($standby);
	return $standby;
}

# The standby has the slot, at or beyond that position of the primary's WAL.
sub keep_slot
{
	my ($primary, $standby, $lsn) = @_;
	my $kept = 0;
	$lsn //= $primary->lsn('flush');
	# by the worker: what pg_sync_replication_slots() begins, it gives up at its end
	$standby->append_conf('postgresql.conf', 'sync_replication_slots = on');
	$standby->reload;
	for my $i (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$kept = $standby->safe_psql($db, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$slot' AND synced AND NOT temporary AND confirmed_flush_lsn >= '$lsn')") eq 't'
		  and last;
		# the slot moves on with records of running transactions, and with markers, which
		# are written at once where it would retain less WAL then
		ElectricCM::write_wal($primary, $db, 2) if $i % 10 == 0;
		$primary->safe_psql($db, 'SELECT pg_log_standby_snapshot()');
		usleep(100_000);
	}
	$standby->append_conf('postgresql.conf', 'sync_replication_slots = off');
	$standby->reload;
	return ok($kept, 'the slot is kept in step');
}

sub promote
{
	my ($standby) = @_;
	$standby->promote;
	my $there = ElectricCM::Stack->new($standby, $db);
	ok($there->active, 'promoted: active') or BAIL_OUT('not active after the promotion');
	return $there;
}

# The shapes were resynced, for that reason only, and readers go on.
sub is_resynced
{
	my ($there, $readers, $reason, $what) = @_;
	is($there->sql(q{SELECT string_agg(detail, ', ') FROM electric_cm_events WHERE event = 'shapes_resyncing'}), $reason, "$what: resynced, and why");
	is($there->events('shapes_kept'), 0, "$what: nobody says that shapes were kept");
	ok($there->sql('SELECT count(*) FROM _electric_cm.epoch') > 0, "$what: an epoch begins all the same");
	$there->sql(q{INSERT INTO t VALUES (-1, 'later')});
	$there->goes_on({ %{ $readers->{$_} } }, $_, "$what: $_") for sort keys %{$readers};
	return;
}

$stack->sql('CREATE EXTENSION electric_cm', map { ("CREATE TABLE $_ (id int PRIMARY KEY, v text)") } qw(t u blocked));
$stack->active or BAIL_OUT('no stack');
my %handle = map { $_ => $stack->live_shape($_) } qw(t u);
$stack->sql('INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 500) i', 'INSERT INTO u SELECT i, md5(i::text) FROM generate_series(1, 100) i');
$stack->settle;
my %reader = map { $_ => $stack->reader($handle{$_}) } qw(t u);

#
# Without a slot that is kept in step: resynced, by the same handles
#
my $plain = standby_of($node, 'plain');
$stack->sql('UPDATE t SET v = $$while there is a standby$$ WHERE id % 10 = 0');
$stack->settle;
$node->wait_for_catchup($plain);
my $there = promote($plain);
is_resynced($there, \%reader, 'the timeline has changed', 'no slot');
$plain->stop;
$stack->sql(q{SELECT pg_drop_replication_slot('plain')});

my $copied = standby_of($node, 'copied');
$copied->stop;
$stack->sql('SELECT electric_cm_stop()');
PostgreSQL::Test::RecursiveCopy::copypath($node->data_dir . "/pg_replslot/$slot", $copied->data_dir . "/pg_replslot/$slot");
$stack->sql('SELECT electric_cm_start()');
$stack->active or BAIL_OUT('no stack');
# or the standby would drop it
$copied->append_conf('postgresql.conf', "electric_cm.failover = off\n" . ($keeps_slots ? "sync_replication_slots = off\n" : ''));
$copied->start;
$node->wait_for_catchup($copied);
$there = promote($copied);
is_resynced($there, \%reader, 'the timeline has changed, and the replication slot was not synchronized from the primary', 'a copied slot');
$copied->stop;
$stack->sql(q{SELECT pg_drop_replication_slot('copied')});

if (!$keeps_slots)
{
	note 'slots are kept in step from 17 on';
	done_testing();
	exit;
}

#
# The setting
#
sub failover_is
{
	my ($value, $what) = @_;
	return $stack->becomes("SELECT failover = '$value' FROM pg_replication_slots WHERE slot_name = '$slot'", $what);
}
failover_is('t', 'the slot is made for failovers');
$stack->sql(q{ALTER SYSTEM SET electric_cm.failover = off}, 'SELECT pg_reload_conf()');
failover_is('f', '... not if the setting is off');
$stack->sql(q{ALTER SYSTEM RESET electric_cm.failover}, 'SELECT pg_reload_conf()');
failover_is('t', '... and again, once it is on');
$stack->active;
is($stack->events('shapes_resyncing'), 0, '... which costs no shape anything');

#
# What is acknowledged: only what the standby knows to be logged
#
my $b = standby_of($node, 'b');
keep_slot($node, $b);
my $receiver = $b->safe_psql($db, 'SELECT pid FROM pg_stat_wal_receiver');
kill 'STOP', $receiver;
$stack->write_wal(1);
$stack->sql(q{INSERT INTO t VALUES (1000, 'while the standby hangs')});
my $lsn = $stack->sql('SELECT pg_current_wal_flush_lsn()');
$stack->settle;
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle{t}') WHERE key LIKE '%1000%'"), 1, 'a standby hangs: the log goes on');
$stack->sql('SELECT pg_sleep(2)');
is($stack->sql("SELECT confirmed_flush_lsn < '$lsn' FROM pg_replication_slots WHERE slot_name = '$slot'"), 't', '... but the slot waits');
kill 'CONT', $receiver;
$stack->write_wal(1);
$stack->becomes("SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = '$slot'", '... until the standby has the rows');
kill 'STOP', $receiver;
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_warning = '4MB'}, 'SELECT pg_reload_conf()');
$stack->sql(q{INSERT INTO t VALUES (1001, 'while the standby hangs')});
$lsn = $stack->sql('SELECT pg_current_wal_flush_lsn()');
$stack->write_wal(12);
$stack->sql('SELECT pg_log_standby_snapshot()');
$stack->becomes("SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = '$slot'", '... or the slot retains too much WAL');
kill 'CONT', $receiver;
$stack->sql(q{ALTER SYSTEM RESET electric_cm.retained_wal_warning}, 'SELECT pg_reload_conf()');

#
# Killed, and promoted: the shapes go on
#
sub kept
{
	my ($there, $what, $n) = @_;
	is($there->events('shapes_resyncing'), 0, "$what: nothing is resynced");
	is($there->events('shape_invalidated'), 0, "$what: ... nor gone");
	is($there->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_kept' AND message = 'all 3 shapes of this database go on'}), $n, "$what: an event says that they were kept");
	is($there->sql('SELECT count(*) FROM _electric_cm.epoch'), $n, "$what: an epoch each");
	is($there->sql(qq{SELECT count(*) FROM electric_cm_events WHERE event = 'replication_slot_created' AND occurred_at > pg_postmaster_start_time()}), 0, "$what: with the slot that is there");
	return;
}

my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN; INSERT INTO blocked VALUES (1)');
$handle{blocked} = $stack->shape('blocked');
$stack->becomes("SELECT state <> 'live' AND waiting_for IS NOT NULL FROM electric_cm_shapes WHERE handle = '$handle{blocked}'", 'a shape is being created');
$reader{$_} = $stack->reader($handle{$_}) for qw(t u);
keep_slot($node, $b, '0/0');
$stack->sql(q{BEGIN; INSERT INTO t VALUES (2000, 'prepared'); PREPARE TRANSACTION 'p'});
$stack->sql('DELETE FROM t WHERE id % 7 = 0', 'UPDATE u SET v = v || $$!$$');
$stack->sql("INSERT INTO t VALUES (3000 + $_, 'load')") for 1 .. 10;
$node->wait_for_catchup($b, 'flush', $node->lsn('flush'));
$node->stop('immediate');
$there = promote($b);
kept($there, 'after kill -9', 1);
$there->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle{blocked}'", 'after kill -9: the shape that was being created becomes live');
$there->sql(q{COMMIT PREPARED 'p'}, q{INSERT INTO t VALUES (4000, 'later')}, q{INSERT INTO blocked VALUES (2)});
$there->goes_on($reader{$_}, $_, "after kill -9: $_") for qw(t u);
$there->replays($handle{blocked}, 'blocked', 'after kill -9: the shape that was being created');
is($there->sql('SELECT count(DISTINCT worker) FROM _electric_cm.shape_worker'), 2, 'after kill -9: two consumers');
eval { $holder->quit };

# ... and once more, by a clean switchover
my $c = standby_of($b, 'c');
keep_slot($b, $c);
$there->sql('UPDATE t SET v = $$second$$ WHERE id < 50');
$b->wait_for_catchup($c, 'flush', $b->lsn('flush'));
$b->stop;
$there = promote($c);
kept($there, 'after a switchover', 2);
$there->sql(q{INSERT INTO t VALUES (5000, 'later still')});
$there->goes_on($reader{$_}, $_, "after a switchover: $_") for qw(t u);
$c->restart;
ok($there->active, 'restarted: active');
kept($there, 'restarted', 2);

#
# A slot that is ahead of the logs
#
my $d = standby_of($c, 'd');
keep_slot($c, $d);
$c->backup('e');
my @consumers = split /\n/, $there->sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'electric_cm consumer'});
is(@consumers, 2, 'there are consumers');
kill 'STOP', @consumers;
$there->sql(q{INSERT INTO t VALUES (6000, 'not in the log there')});
my $target = $there->sql('SELECT pg_current_wal_insert_lsn()');
kill 'CONT', @consumers;
$there->settle;
keep_slot($c, $d, $target);
$d->stop;

# ... since its WAL ends before that
my $e = PostgreSQL::Test::Cluster->new('e');
$e->init_from_backup($c, 'e', has_streaming => 1);
PostgreSQL::Test::RecursiveCopy::copypath($d->data_dir . "/pg_replslot/$slot", $e->data_dir . "/pg_replslot/$slot");
$e->append_conf('postgresql.conf', "recovery_target_lsn = '$target'\nrecovery_target_action = promote\nprimary_slot_name = ''\n");
$e->start;
ElectricCM::poll($e, $db, 'SELECT NOT pg_is_in_recovery()') or BAIL_OUT('not promoted');
$c->stop('immediate');
$there = ElectricCM::Stack->new($e, $db);
ok($there->active, 'a slot ahead of the logs: active');
is($there->sql('SELECT count(*) FROM t WHERE id = 6000'), 1, '... the table has the row');
is( $there->sql(q{SELECT detail FROM electric_cm_events WHERE event = 'shapes_resyncing'}),
	'the timeline has changed, and the replication slot is ahead of the logs', '... resynced, and why');
$there->goes_on($reader{$_}, $_, "a slot ahead of the logs: $_") for qw(t u);
is($there->sql("SELECT count(*) FROM electric_cm_shape_log('$handle{t}') WHERE key LIKE '%6000%'"), 1, '... no row is missing');
$e->stop;
done_testing();
