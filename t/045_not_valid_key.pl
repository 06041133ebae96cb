# A key whose NOT NULL is NOT VALID: rows with nulls would have no key, so there is
# no shape before the constraint has been validated.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack server_major);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
if ($stack->node->pg_version < 18)
{
	$stack->node->stop;
	plan skip_all => 'NOT NULL ... NOT VALID is new in PostgreSQL 18';
}

my $identity = 'ALTER TABLE t REPLICA IDENTITY USING INDEX i';
$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (k int, v text)', q{INSERT INTO t VALUES (1, 'a'), (NULL, 'b')},
	'ALTER TABLE t ADD CONSTRAINT "k is there" NOT NULL k NOT VALID', 'CREATE UNIQUE INDEX i ON t (k)');
$stack->active or BAIL_OUT('no stack');

if (server_major($stack->node) >= 19)
{
	like($stack->error_of_sql($identity), qr/"k is there" on column "k" is marked NOT VALID/s, 'the server itself refuses such a key');
	$stack->sql(q{UPDATE t SET k = 2 WHERE k IS NULL}, 'ALTER TABLE t VALIDATE CONSTRAINT "k is there"', $identity);
}
else
{
	my $refused = qr/55000.*the key of table "t" has column "k", which may have nulls.*HINT:  ALTER TABLE public\.t VALIDATE CONSTRAINT "k is there"/s;
	$stack->sql($identity);
	like($stack->error_of_sql(q{SELECT electric_cm_create_shape('t')}), $refused, 'not while there may be a null');
	$stack->sql(q{UPDATE t SET k = 2 WHERE k IS NULL});
	like($stack->error_of_sql(q{SELECT electric_cm_create_shape('t')}), $refused, '... and nobody has looked');
	$stack->sql('ALTER TABLE t VALIDATE CONSTRAINT "k is there"');
}
my $handle = $stack->live_shape('t');
$stack->sql(q{UPDATE t SET v = 'c' WHERE k = 2}, q{INSERT INTO t VALUES (3, 'd')}, 'DELETE FROM t WHERE k = 1', 'UPDATE t SET k = 7 WHERE k = 3');
$stack->settle;
$stack->replays($handle, 't', 'what the hint says helps', keys => ['k']);

$stack->node->stop;
done_testing();
