# REPACK (CONCURRENTLY) of one of our tables is refused, since it would lose rows;
# of a table with a shape it changes nothing.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_stack server_major);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', start => 0);

plan skip_all => 'REPACK is there from PostgreSQL 19 on' if server_major($stack->node) < 19;
$stack->node->start;

$stack->sql('CREATE TABLE t (id int PRIMARY KEY, v text)', q{INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 10000) i},
	'CREATE EXTENSION electric_cm');
$stack->active or BAIL_OUT('no stack');
my $handle = $stack->live_shape('t');

my $tables = q{SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relnamespace = '_electric_cm'::regnamespace AND %s ORDER BY 1};
for my $table (split /\n/, $stack->sql(sprintf($tables, 'true')))
{
	my $error = $stack->error_of_sql("REPACK (CONCURRENTLY) $table");
	like($error, qr/0A000: cannot execute REPACK \(CONCURRENTLY\) on table "\w+" of electric_cm.*DETAIL:.*HINT:  REPACK $table$/ms,
		"$table: refused, with the command to use");
	is($stack->error_of_sql("REPACK $table"), '', '... which works');
}
is($stack->error_of_sql('SET search_path = _electric_cm', 'REPACK (CONCURRENTLY true) shape') =~ /0A000: cannot execute/, 1, 'also without the schema');
is($stack->error_of_sql('REPACK (CONCURRENTLY false) _electric_cm.shape'), '', 'CONCURRENTLY that is turned off is none');
is($stack->sql(sprintf($tables, 'relrewrite <> oid')), '', 'our tables are hidden from decoding as before');

$stack->sql('UPDATE t SET v = id WHERE id < 100', 'REPACK (CONCURRENTLY) t', 'DELETE FROM t WHERE id > 9000', 'REPACK t USING INDEX t_pkey',
	'INSERT INTO t VALUES (0)');
is($stack->exists_shape($handle), 1, 'a table with a shape is repacked: the shape stays');
$stack->replays($handle, 't', '... and has all that was written before, between and after');

# What happens meanwhile

my $writer = $stack->node->background_psql($stack->db, on_error_stop => 1);
$writer->query_safe(q{BEGIN; UPDATE t SET v = 'open' WHERE id = 1; SELECT 1});
my $repack = $stack->node->background_psql($stack->db, on_error_stop => 1);
$repack->{stdin} .= "REPACK (CONCURRENTLY) t;\n";
$repack->{run}->pump_nb;
$stack->becomes(q{SELECT count(*) = 1 FROM electric_cm_slots WHERE slot_name LIKE 'pg\_repack%'}, 'its slot is among electric_cm_slots');
$stack->sql('UPDATE t SET v = NULL WHERE id BETWEEN 500 AND 600');
$writer->query_safe('COMMIT');
$writer->quit;
$repack->quit;
$stack->replays($handle, 't', 'what was written while it was repacked is in the log');
$stack->seen(q{count(*) = 0 FROM electric_cm_slots WHERE slot_name LIKE 'pg\_repack%'}, 'the slot is gone');

$stack->node->stop;
done_testing();
