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

# The stream has a command that nobody else sees yet
my $reader = $stack->reader($handle);
my $alters = $node->background_psql($db, on_error_stop => 0, timeout => 180);
$alters->query_safe('SET synchronous_commit = on');
$alters->query_until(qr/^start/m, "\\echo start\nBEGIN; ALTER PUBLICATION electric_cm_publication DROP TABLE t; DELETE FROM t WHERE id % 10 = 0; INSERT INTO t VALUES (-2); COMMIT;\n");
my $pid = q{SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT;'};
$stack->becomes("SELECT state = 'resyncing' AND waiting_for LIKE '%PID ' || ($pid) || '%' FROM electric_cm_shapes WHERE handle = '$handle'",
	'a command waits for it: so does the comparison that it has ordered, and says for whom');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
$waits->quit;
$alters->quit;
delete $ENV{PGOPTIONS};
$stack->resyncs($reader, q{detail = 'the table has left the publication'}, 't', 'without a standby', command => 1);
is($stack->events('shape_creation_failed', q{message LIKE '%does not publish%'}), 0, '... at the first attempt that could see the command');

$node->stop;
done_testing();
