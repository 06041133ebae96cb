# A slot that is kept in step on standbys: a standby that the stream waits for is
# named, and electric_cm_check() leaves a standby's copy of the slot alone.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.wal_report_interval = '1 s'\n");
my $node = $stack->node;
plan skip_all => 'slots are kept in step from 17 on' if $node->pg_version < 17;

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY)');
$stack->active or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');
my $slot = $stack->sql('SELECT slot_name FROM electric_cm_stat_replication');

# The slot waits for the standby, which is not there
$stack->sql('SELECT electric_cm_stop()');
$node->safe_psql('postgres', "ALTER_REPLICATION_SLOT $slot (FAILOVER true)", replication => 'database');
$stack->sql(q{SELECT pg_create_physical_replication_slot('sb', true)});
$node->append_conf('postgresql.conf', "synchronized_standby_slots = 'sb'");
$node->reload;
$stack->sql('SELECT electric_cm_start()', 'INSERT INTO t VALUES (1)');
my $standby = 'the standby of replication slot "sb", which is not connected (let it catch up, or take it out of synchronized_standby_slots and reload)';
$stack->becomes("SELECT waiting_for = '$standby' FROM electric_cm_stat_manager", 'waiting_for names the standby, and how to end it');
$stack->becomes("SELECT pinned_by ~ '^its walsender .*which waits for ' AND strpos(pinned_by, '$standby') > 0 FROM electric_cm_stat_replication",
	'... and so does pinned_by');
$stack->becomes(q{SELECT electric_cm_health() ->> 'problems' LIKE '%the slot is pinned by its walsender%"sb\\\\"%'}, '... and health');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 0, 'nothing has come to the log yet');

$stack->sql(q{SELECT pg_create_physical_replication_slot('away', true)});
$node->append_conf('postgresql.conf', "synchronized_standby_slots = 'away'");
$node->reload;
$stack->becomes(q{SELECT waiting_for LIKE '%"away", which is not connected%' FROM electric_cm_stat_manager}, 'another one: named as well');
$stack->sql(q{SELECT pg_drop_replication_slot('away')});
$stack->becomes(q{SELECT waiting_for LIKE '%"away", which does not exist%' FROM electric_cm_stat_manager}, '... also if its slot is gone');
$node->append_conf('postgresql.conf', "synchronized_standby_slots = ''");
$node->reload;
$stack->replays($handle, 't', 'goes on as soon as the setting is another one');
$stack->becomes(q{SELECT waiting_for IS NULL AND (SELECT pinned_by IS NULL FROM electric_cm_stat_replication) FROM electric_cm_stat_manager},
	'... and nothing is waited for any more');

# A standby with a copy of the slot
$node->backup('base');
my $copy = PostgreSQL::Test::Cluster->new('standby');
$copy->init_from_backup($node, 'base', has_streaming => 1);
my $conninfo = $node->connstr('postgres') =~ s/'/''/gr;
$copy->append_conf('postgresql.conf', qq{
primary_conninfo = '$conninfo'
primary_slot_name = 'sb'
hot_standby_feedback = on
});
$copy->start;
$node->wait_for_catchup($copy);
ElectricCM::poll($copy, 'postgres', "SELECT pg_sync_replication_slots() IS NOT NULL AND EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '$slot' AND synced)")
  or BAIL_OUT('the slot is not kept in step');
is($copy->safe_psql('postgres', q{SELECT verdict || coalesce(': ' || fix, '') FROM electric_cm_check() WHERE name = 'slot'}),
	'PASS', 'on the standby: its copy of the slot is in order');
is($copy->safe_psql('postgres', q{SELECT count(*) FROM electric_cm_check() WHERE fix ~ 'drop_replication_slot' OR detail ~ 'drop_replication_slot'}),
	0, '... and nobody says that it should be dropped');

# Promoted: in the right words
$copy->promote;
ElectricCM::poll($copy, 'postgres', q{SELECT electric_cm_status() = 'active'}) or BAIL_OUT('not active after the promotion');
unlike($copy->safe_psql('postgres', 'SELECT string_agg(message || coalesce(detail, $$$$), $$ $$) FROM electric_cm_events'),
	qr/copy of the data directory/, 'promoted: no event speaks of a copy');
is($copy->safe_psql('postgres', q{SELECT count(*) FROM electric_cm_events WHERE event = 'connection_error' AND occurred_at > (SELECT max(occurred_at) FROM electric_cm_events WHERE event = 'ready') - interval '10 s'}),
	0, '... nor of an error');
$copy->stop;
done_testing();
