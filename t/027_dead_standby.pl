# A synchronous standby that is dead: commits of others wait for it, ours do not.
use strict;
use warnings;

use ElectricCM qw(new_impatient_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($stack, $handle) = new_impatient_stack();
my $node = $stack->node;
my $db = $stack->db;
my $walsender = "(SELECT backend_pid FROM electric_cm_stat_connections WHERE role = 'replication')";

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
$ENV{PGOPTIONS} = '-c synchronous_commit=local';
my $waits = $node->background_psql($db, on_error_stop => 0, timeout => 180);
$waits->query_safe('SET synchronous_commit = on');
$waits->query_until(qr/^start/m, "\\echo start\nINSERT INTO t VALUES (-1);\n");
$stack->becomes(q{SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')},
	'a dead synchronous standby: an application waits for it');
$stack->add_rows(100);
my $another = $stack->sql(q{CREATE TABLE s (id int PRIMARY KEY); SELECT electric_cm_create_shape('s')});
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$another')"), 0, '... a shape is created all the same');
$stack->sql("SELECT pg_terminate_backend($walsender)");
$stack->becomes(q{SELECT electric_cm_status() = 'active'},
	'... the stack comes back');
$stack->sql('SELECT electric_cm_restart()');
ok($stack->active, '... a manager ends and starts');
$stack->settle;
cmp_ok($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"),
	'>=', $stack->sql('SELECT count(*) FROM t'), '... and what others can see is in the log');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
$waits->quit;
delete $ENV{PGOPTIONS};
$stack->replays($handle, 't', 'without a standby');

$node->stop;
done_testing();
