# pg_stat_activity says what each process of the stack, and each function, waits for.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
plan skip_all => 'wait events have names from 17 on' if $node->pg_version < 17;

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY)');
$stack->active or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');

sub waits_for
{
	my ($event, $who, $what) = @_;
	$stack->becomes("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND wait_event = '$event' AND $who", $what);
	return;
}

waits_for('ElectricCm' . ucfirst($_) . 'Main', "backend_type LIKE 'electric_cm $_%'", "the $_, with nothing to do") for qw(launcher manager consumer);

# A statement that waits, and ends when it is cancelled
sub statement_waits
{
	my ($event, $query, $what) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	$session->{stdin} .= "$query;\n";
	$session->{run}->pump_nb;
	waits_for($event, "pid = $pid", $what);
	$stack->sql("SELECT pg_cancel_backend($pid)");
	$session->quit;
	return;
}

statement_waits('ElectricCmShapeLog', "SELECT electric_cm_await_shape_log('$handle', '-1', '10 min')", 'a reader, for entries');
statement_waits('ElectricCmStack', q{SELECT electric_cm_await_flushed('FFFF/0', '10 min')}, 'a function, for the stack');

# ... and somebody who has to be waited for: he is in the database to be copied
$stack->sql('CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION electric_cm');
ElectricCM::poll($node, 'other', q{SELECT electric_cm_status() = 'active'}) or BAIL_OUT('no second stack');
my ($manager) = $stack->sql(q{SELECT pid FROM electric_cm_stat_manager WHERE datname = 'other'});
kill 'STOP', $manager;
statement_waits('ElectricCmStackPause', 'CREATE DATABASE copy TEMPLATE other', 'a command, for the stack to make way');
kill 'CONT', $manager;

is($stack->sql(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Extension' AND wait_event NOT LIKE 'ElectricCm%'}),
	0, 'nobody waits without a name');
is($stack->sql(q{SELECT count(*) FROM pg_wait_events WHERE type = 'Extension' AND name LIKE 'ElectricCm%'}) >= 6 ? 1 : 0,
	1, 'pg_wait_events lists them');
$node->stop;
done_testing();
