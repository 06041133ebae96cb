# A consumer that is stopped for longer than wal_sender_timeout, with a full
# queue: the manager goes on answering and feeding back, and the connection is
# the same afterwards.
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

my $before = $stack->sql("SELECT $walsender || ' ' || current_setting('wal_sender_timeout')");
like($before, qr/ 2s$/, 'wal_sender_timeout is 2 s');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
my $began = $stack->sql('SELECT now()');
kill 'STOP', $consumer or die 'no consumer';
add_rows(10_000);
becomes('a stopped consumer: the manager is responsive for more than three times wal_sender_timeout',
	"SELECT electric_cm_status() = 'active' AND sampled_at > '$began'::timestamptz + interval '7 s' FROM electric_cm_stat_replication");
becomes('... and the walsender has heard of it lately',
	"SELECT reply_time > '$began'::timestamptz + interval '5 s' FROM pg_stat_replication WHERE pid = $walsender");
kill 'CONT', $consumer;
$stack->replays($handle, 't', 'it goes on');
is($stack->sql("SELECT $walsender || ' ' || current_setting('wal_sender_timeout')"), $before, 'the connection is the same');
is($stack->sql("SELECT count(*) FROM electric_cm_events WHERE event = 'connection_error'"), 0, 'no error in between');

$node->stop;
done_testing();
