# LISTEN electric_cm: every event, of any severity, once, as JSON.
use strict;
use warnings;

use ElectricCM qw(new_stack wait_active);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.pool_idle_timeout = '500 ms'
electric_cm.reconnect_initial_delay = '50 ms'
});
my $node = $stack->node;
my $db = 'postgres';

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE DATABASE other');
$stack->sql('CREATE TABLE heard (n serial, payload jsonb)');

my $listener = $node->background_psql($db, on_error_stop => 1);
$listener->query_safe('LISTEN electric_cm');
my $heard = '';

# psql shows notifications after a query
sub hear
{
	my ($pattern, $what) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while ($heard !~ $pattern && time < $deadline)
	{
		$heard .= $listener->query_safe('SELECT pg_sleep(0.05)') . "\n";
	}
	return like($heard, $pattern, $what);
}

$stack->sql(q{SELECT pg_terminate_backend(backend_pid) FROM electric_cm_stat_connections WHERE role = 'replication'});
hear(qr/"event":"connection_error"/, 'a warning is heard');
hear(qr/"event":"ready"/, 'what is merely worth a note, too');

# an event of the launcher's, while there is no manager, and one of a settings' change
$stack->sql('ALTER DATABASE postgres SET electric_cm.pool_size = 3');
$node->reload;
hear(qr/"event":"settings_changed"/, 'what the last manager had no time for, the next one delivers');
hear(qr/"event":"ready".*"event":"ready"/s, 'active again');

# another database's events are not ours
$node->safe_psql('other', 'CREATE EXTENSION electric_cm');
ok(wait_active($node, 'other'), 'another stack');
$node->safe_psql('other', 'SELECT electric_cm_restart()');
ok(wait_active($node, 'other'), '... restarted');
$stack->sql('SELECT electric_cm_restart()');
hear(qr/(?:"event":"ready".*){3}/s, 'restarted here');

my @payloads = $heard =~ /Asynchronous notification "electric_cm" with payload "(.*)" received/g;
cmp_ok(scalar @payloads, '>=', 4, 'payloads');
my $list = join ', ', map { s/'/''/gr =~ s/(.*)/('$1')/r } @payloads;
is($stack->sql("SELECT count(*) FROM (VALUES $list) v(p) WHERE p::jsonb->>'datname' <> 'postgres'"), 0, 'only of this database');
is($stack->sql("SELECT string_agg(DISTINCT k, ',' ORDER BY k) FROM (VALUES $list) v(p), jsonb_object_keys(p::jsonb) k"),
	'datname,event,message,occurred_at,severity', 'members');
is($stack->sql("SELECT count(*) - count(DISTINCT p) FROM (VALUES $list) v(p)"), 0, 'none twice');
is($stack->sql(qq{SELECT count(*) FROM (VALUES $list) v(p) WHERE NOT EXISTS (
	SELECT FROM electric_cm_events e WHERE e.event = p::jsonb->>'event' AND e.severity = p::jsonb->>'severity'
		AND e.occurred_at = (p::jsonb->>'occurred_at')::timestamptz)}), 0, 'as in electric_cm_events');
is($stack->sql(qq{SELECT count(*) FROM electric_cm_events e WHERE datname = current_database()
	AND occurred_at > (SELECT min((p::jsonb->>'occurred_at')::timestamptz) FROM (VALUES $list) v(p))
	AND occurred_at < (SELECT max((p::jsonb->>'occurred_at')::timestamptz) FROM (VALUES $list) v(p))
	AND NOT EXISTS (SELECT FROM (VALUES $list) v(p) WHERE (p::jsonb->>'occurred_at')::timestamptz = e.occurred_at)}),
	0, 'none missing');
$listener->quit;

# Texts that have to be escaped fit and are valid
my $quote = $node->background_psql($db, on_error_stop => 1);
$quote->query_safe('LISTEN electric_cm');
$stack->sql(q{CREATE DATABASE "we""ird\db"});
$node->safe_psql('we"ird\db', 'CREATE EXTENSION electric_cm');
ok(wait_active($node, 'we"ird\db'), 'a database with an odd name is active');
my $weird = $node->background_psql('we"ird\db', on_error_stop => 1);
$weird->query_safe('LISTEN electric_cm');
$node->safe_psql('we"ird\db', 'SELECT electric_cm_restart()');
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
my $odd = '';
$odd .= $weird->query_safe('SELECT pg_sleep(0.05)') while $odd !~ /ready/ && time < $deadline;
like($odd, qr/"datname":"we\\"ird\\\\db"/, 'its name is escaped');
$weird->quit;
$quote->quit;

# Nothing more: an idle database stays idle
$stack->becomes(q{SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'electric_cm pool%')},
	'the pool closes when all is delivered');

$node->stop;
done_testing();
