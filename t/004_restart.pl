# The server is restarted, cleanly and not, in the middle of a load: nothing is
# lost and nothing comes twice.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, filler text)');
$stack->sql('CREATE TABLE history (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int, delta int, at timestamptz)');
$stack->sql("INSERT INTO account SELECT i, 0, repeat('x', 80) FROM generate_series(1, 5000) i");
ok($stack->active, 'active');
my %handle = map { $_ => $stack->sql("SELECT electric_cm_create_shape('$_')") } qw(account history);

my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set id random(1, 5000)
\set other random(5001, 100000)
\set delta random(-500, 500)
BEGIN;
UPDATE account SET balance = balance + :delta WHERE id = :id;
INSERT INTO account VALUES (:other, 0) ON CONFLICT (id) DO UPDATE SET balance = account.balance + 1;
DELETE FROM account WHERE id = :other + 1;
INSERT INTO history (account, delta, at) VALUES (:id, :delta, now());
COMMIT;
});

my ($in, $out, $err);

sub start_load
{
	my ($seconds) = @_;
	($in, $out, $err) = ('', '', '');
	return IPC::Run::start(
		[
			'pgbench', '-n', '-c', 4, '-T', $seconds, '-f', $script, $node->connstr($db)
		],
		\$in, \$out, \$err);
}

for my $mode (qw(fast immediate fast immediate))
{
	my $before = $stack->sql('SELECT count(*) FROM history');
	my $load = start_load(30);
	ok(ElectricCM::poll($node, $db, "SELECT count(*) > $before + 300 FROM history"), 'load');
	$node->stop($mode);
	$load->finish;    # has lost its connections
	isnt($load->result(0), 0, "$mode shutdown in the middle of it");
	$node->start;
	ok($stack->active, "active again after $mode shutdown");
}
my $load = start_load(1);
$load->finish;
is($load->result(0), 0, 'a last load') or diag($err);

$stack->settle;
for my $table (sort keys %handle)
{
	my ($ok, $entries) = $stack->replay_equals($handle{$table}, $table, ['id']);
	ok($ok, "$table: replay equals table ($entries entries)");
}
cmp_ok($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle{history}') WHERE operation <> 'insert'"),
	'==', 0, 'what was only inserted has only inserts');
is( $stack->sql('SELECT count(*) FROM electric_cm_shapes WHERE state = $$live$$'),
	2, 'the shapes are the same all along');

# A crash right after the commits: what is acknowledged is in the logs
$stack->sql('SELECT electric_cm_await_flushed()');
$node->stop('immediate');
$node->start;
is( $stack->sql("SELECT count(*) = (SELECT count(*) FROM history)
		FROM electric_cm_shape_log('$handle{history}')"),
	't', 'what electric_cm_await_flushed() has said to be there survives a crash');

# A process that is killed takes the whole server down and up again, as it does
# with any of PostgreSQL's: a worker of ours, and the walsender
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->reload;
for my $type ('electric_cm consumer', 'electric_cm manager', 'walsender')
{
	$stack->active or die 'not active';
	$stack->seen("count(*) = 1 FROM pg_stat_activity WHERE backend_type = '$type'");
	my $started = $stack->sql('SELECT pg_postmaster_start_time()');
	my ($pid, $since) = split /\|/, $stack->sql("SELECT pid, backend_start FROM pg_stat_activity WHERE backend_type = '$type'");
	my $load = start_load(30);
	ok(ElectricCM::poll($node, $db, "SELECT count(*) > 0 FROM history WHERE at > '$since'::timestamptz"), 'load');
	my $offset = -s $node->logfile;
	kill 'KILL', $pid or die "no $type";
	$load->finish;
	# a psql that is refused does not read the query that it is sent
	$node->wait_for_log(qr/ready to accept connections/, $offset);
	ok( ElectricCM::poll($node, $db,
			"SELECT electric_cm_status() = 'active' AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)"),
		"$type killed: the server restarts, and the stack is active again");
	is($stack->sql('SELECT pg_postmaster_start_time()'), $started, '... by itself');
}
$stack->settle;
for my $table (sort keys %handle)
{
	my ($ok, $entries) = $stack->replay_equals($handle{$table}, $table, ['id']);
	ok($ok, "$table: replay equals table ($entries entries)");
}

$node->stop;
done_testing();
