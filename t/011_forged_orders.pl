# Orders of the stack's own travel as logical messages, and anybody may emit
# those: forged ones do nothing.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = 'postgres';

$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE ROLE mallory LOGIN');
$stack->sql('CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text)');
ok($stack->active, 'active');
my $handle = $stack->sql("SELECT electric_cm_create_shape('t')");
$stack->sql("SELECT * FROM electric_cm_shape_log('$handle')");

my $id = $stack->sql("SELECT id FROM _electric_cm.shape");
my @forged = ("drop $handle $id x", "resync $handle $id x", "mismatch $id", "truncate $id", "capture $id 1",
	"live $id 1 garbage", "create x");
for my $order (@forged)
{
	$node->safe_psql($db,
		"SELECT pg_logical_emit_message(true, 'electric_cm', '$order')",
		extra_params => [ '-U', 'mallory' ]);
}
my ($rc, $out, $err) = $node->psql($db, 'SELECT message_key FROM _electric_cm.stack',
	extra_params => [ '-U', 'mallory' ]);
like($err, qr/permission denied/, 'the key to the orders is a secret');
$stack->sql(q{INSERT INTO t (t) VALUES ('after the forgery')});
$stack->settle;
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "forged orders are ignored: replay equals table ($entries entries)");
is($stack->sql('SELECT sum(restarts) FROM electric_cm_stat_consumers'), 0, 'no consumer died of them');

$node->stop;
done_testing();
