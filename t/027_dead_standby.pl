# A synchronous standby that is dead: commits of others wait for it, ours do not.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
wal_sender_timeout = '2 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
});
my $node = $stack->node;
my $db = 'postgres';

sub becomes { return $stack->becomes($_[1], $_[0]); }

my $walsender = "(SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication')";

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");

sub add_rows
{
	my ($n) = @_;
	$stack->sql(qq{SET statement_timeout = '30 s';
		INSERT INTO t SELECT (SELECT coalesce(max(id), 0) FROM t) + i, repeat('x', 1000) FROM generate_series(1, $n) i});
	return;
}

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
$ENV{PGOPTIONS} = '-c synchronous_commit=local';
my $waits = $node->background_psql($db, on_error_stop => 0, timeout => 180);
$waits->query_safe('SET synchronous_commit = on');
$waits->query_until(qr/^start/m, "\\echo start\nINSERT INTO t VALUES (-1);\n");
becomes('a dead synchronous standby: an application waits for it',
	q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')});
add_rows(100);
my $another = $stack->sql(q{CREATE TABLE s (id int PRIMARY KEY); SELECT electric_cm_create_shape('s')});
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$another')"), 0, '... a shape is created all the same');
$stack->sql("SELECT pg_terminate_backend($walsender)");
becomes('... the stack comes back', q{SELECT electric_cm_status() = 'active'});
$stack->sql('SELECT electric_cm_restart()');
ok($stack->active, '... a manager ends and starts');
$stack->sql(q{SELECT electric_cm_await_flushed(NULL, '60 s')});
cmp_ok($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	'>=', $stack->sql('SELECT count(*) FROM t'), '... and what others can see is in the log');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
$waits->quit;
delete $ENV{PGOPTIONS};
$stack->replays($handle, 't', 'without a standby');

$node->stop;
done_testing();
