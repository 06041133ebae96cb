# Catalogs and the stack's own tables are locked, or rewritten by VACUUM FULL:
# the manager goes on answering, sampling and feeding back.
use strict;
use warnings;

use ElectricCM qw(new_impatient_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my ($stack, $handle) = new_impatient_stack();
my $node = $stack->node;
my $db = $stack->db;

# Locks on catalogs, held for some seconds by a session, which also looks

sub locked
{
	my ($what, $lock) = @_;
	my $holder = $node->background_psql($db);
	my $seen = "SELECT electric_cm_status() || ' ' || (sampled_at > %s) || ' ' || (reply_time > %s)
		FROM electric_cm_stat_replication, pg_stat_replication WHERE active_pid = pid";
	my $result = '';

	$holder->query_safe('BEGIN');
	$holder->query_safe($lock);
	my $since = "'" . $holder->query_safe('SELECT clock_timestamp()') . "'::timestamptz + interval '3 s'";
	for (1 .. 300)
	{
		$result = $holder->query_safe(sprintf $seen, $since, $since);
		last if $result eq 'active true true';
		usleep(100_000);
	}
	is($result, 'active true true', "$what locked: the manager answers, samples and feeds back");
	$holder->query_safe('COMMIT');
	$holder->quit;
	$stack->add_rows(100);
	$stack->replays($handle, 't', "$what locked, and released");
	return;
}

locked('catalogs', 'LOCK TABLE pg_class, pg_attribute, pg_type, pg_proc, pg_publication, pg_publication_rel, pg_extension, pg_db_role_setting, pg_namespace');
locked('the database list', 'LOCK TABLE pg_database, pg_authid');
locked("the stack's own tables",
	'LOCK TABLE _electric_cm.stack, _electric_cm.shape, _electric_cm.shape_state, _electric_cm.shape_log, _electric_cm.progress');

# ... under which applications go on
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN');
$holder->query_safe('LOCK TABLE _electric_cm.shape, _electric_cm.shape_state, _electric_cm.shape_log, _electric_cm.progress');
$stack->add_rows(2000);
pass("the stack's own tables locked: applications write as before");
$holder->query_safe('COMMIT');
$holder->quit;
$stack->replays($handle, 't', 'what they wrote meanwhile');

my $load = $node->background_psql($db);
$load->query_until(qr/^start/m, q{
\echo start
DO $$ BEGIN FOR i IN 1 .. 400 LOOP
	INSERT INTO t SELECT (SELECT max(id) FROM t) + 1, 'load'; COMMIT; END LOOP; END $$;
});
$stack->sql("VACUUM FULL $_")
  for qw(_electric_cm.shape_log _electric_cm.progress _electric_cm.shape_state _electric_cm.shape _electric_cm.stack
  pg_publication pg_publication_rel pg_class pg_attribute pg_database pg_extension);
$load->query_safe('SELECT 1');
$load->quit;
is($stack->sql('SELECT electric_cm_status()'), 'active', 'VACUUM FULL of all of them under load: active');
$stack->replays($handle, 't', 'VACUUM FULL under load');
is( $stack->sql("SELECT count(*) FROM electric_cm_events WHERE event = 'manager_restarting' AND message NOT LIKE '%by request%'"),
	0, 'no manager has given up meanwhile');
$node->stop;
done_testing();
