# Tables that are read in many pieces while others write to them: whatever is inserted,
# updated, deleted or given another key meanwhile, each shape's log replays to its table.
use strict;
use warnings;

use IPC::Run ();
use ElectricCM qw(new_stack server_major);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seconds = 20;
my $stack = new_stack('main', conf => q{
electric_cm.shape_workers = 2
electric_cm.debug_piece_rows = 40
electric_cm.set_replica_identity = on
});
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');

$stack->sql(
	q{CREATE COLLATION nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false)},
	q{CREATE TABLE t (id int PRIMARY KEY, n int, big text)},
	q{ALTER TABLE t ALTER big SET STORAGE EXTERNAL},
	q{CREATE TABLE c (a int, b text COLLATE "de-x-icu", n int, big text, PRIMARY KEY (a, b))},
	q{ALTER TABLE c ALTER big SET STORAGE EXTERNAL},
	q{CREATE TABLE k (id text COLLATE nd PRIMARY KEY, n int)},
	q{CREATE TABLE p (id int, region int, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region)},
	q{CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0)},
	q{CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)},
	q{CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2, 3)},
	q{INSERT INTO t SELECT i, 0, repeat(chr(65 + i % 26), 2500) FROM generate_series(1, 1000) i},
	q{INSERT INTO c SELECT i % 7, (ARRAY['ä', 'z', 'Z', 'a', 'o', 'ö'])[i % 6 + 1] || i, 0, repeat('c', 2500)
		FROM generate_series(1, 600) i},
	q{INSERT INTO k SELECT (ARRAY['ä', 'Z', 'a', 'o', 'Ö'])[i % 5 + 1] || i, 0 FROM generate_series(1, 600) i},
	q{INSERT INTO p SELECT i, i % 4, 0 FROM generate_series(1, 600) i});

my $script = $node->basedir . '/load.sql';
append_to_file($script, q{
\set id random(1, 1100)
\set other random(1, 1100)
\set low random(1, 300)
\set high random(800, 1100)
\set a random(0, 6)
\set b random(1, 700)
\set region random(0, 3)
UPDATE t SET n = n + 1 WHERE id = :id;
DELETE FROM t WHERE id = :other;
INSERT INTO t VALUES (:id, 1, repeat('i', 2500)) ON CONFLICT (id) DO UPDATE SET n = t.n + 1;
UPDATE t SET id = :high WHERE id = :low AND NOT EXISTS (SELECT FROM t WHERE id = :high);
UPDATE t SET id = :low, n = n + 1 WHERE id = :high AND NOT EXISTS (SELECT FROM t WHERE id = :low);
BEGIN;
UPDATE t SET id = -:id WHERE id = :id;
SAVEPOINT s;
UPDATE t SET n = n + 1 WHERE id = -:id;
DELETE FROM t WHERE id = :other;
ROLLBACK TO s;
UPDATE t SET id = :id + 5000 WHERE id = -:id AND NOT EXISTS (SELECT FROM t WHERE id = :id + 5000);
END;
BEGIN;
DELETE FROM c WHERE a = :a AND b = 'ä' || :b;
INSERT INTO c VALUES (:a, 'ä' || :b, 1, repeat('d', 2500)), (6 - :a, 'Z' || :b, 1, repeat('d', 2500)) ON CONFLICT DO NOTHING;
UPDATE c SET a = 6 - a, n = n + 1 WHERE b = 'ä' || :b AND NOT EXISTS (SELECT FROM c d WHERE d.a = 6 - c.a AND d.b = c.b);
SAVEPOINT s;
UPDATE c SET b = 'y' || :b WHERE a = :a AND b = 'z' || :b AND NOT EXISTS (SELECT FROM c d WHERE d.a = :a AND d.b = 'y' || :b);
RELEASE s;
END;
UPDATE c SET b = 'z' || :b, n = n + 1 WHERE a = :a AND b = 'y' || :b AND NOT EXISTS (SELECT FROM c d WHERE d.a = :a AND d.b = 'z' || :b);
INSERT INTO k VALUES ('Ä' || :b, 0) ON CONFLICT (id) DO UPDATE SET n = k.n + 1;
UPDATE k SET id = upper(id) WHERE id = 'a' || :b;
DELETE FROM k WHERE id = 'o' || :b;
UPDATE k SET id = 'Z' || :b WHERE id = 'A' || :b AND NOT EXISTS (SELECT FROM k WHERE id = 'z' || :b);
INSERT INTO p VALUES (:b, :region, 1) ON CONFLICT DO NOTHING;
UPDATE p SET region = :region WHERE id = :b AND NOT EXISTS (SELECT FROM p q WHERE q.id = :b AND q.region = :region);
UPDATE p SET id = :b + 1000 WHERE id = :b AND region = :region AND NOT EXISTS (SELECT FROM p q WHERE q.id = :b + 1000 AND q.region = :region);
DELETE FROM p WHERE id = :id;
});

my ($in, $out, $err) = ('', '', '');
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-c', 3, '-T', $seconds, '-f', $script, $node->connstr('postgres') ],
	\$in, \$out, \$err);

# a transaction that is open all along, and one that is prepared
my $writer = $node->background_psql('postgres');
$stack->becomes("SELECT count(*) > 0 FROM t WHERE n > 0");

my %shapes;

sub create
{
	my ($table, %opts) = @_;
	my $handle = $stack->shape($table, %opts);
	$shapes{$handle} = [ $table, {%opts} ];
	return $handle;
}

my $round = 0;
my $end = time + $seconds - 4;
while (time < $end)
{
	$round++;
	my @new = (create('t'), create('c'), create('k'), create('p'), create('t', where => "id > 500 AND n < 3"),
		create('c', where => 'a < 4', columns => [ 'a', 'b', 'big' ]));
	push @new, map { create('t', where => "n = $_") } 0 .. 3;
	if ($round == 1)
	{
		# after the barrier of each of them, which waits for whoever has written before
		my $new = join ', ', map { "'$_'" } @new;
		$stack->becomes('SELECT count(*) > 3 FROM _electric_cm.reading_piece', 'tables are read in pieces');
		$stack->becomes("SELECT bool_and(s.reading IS NOT NULL OR coalesce(t.state = 'live', false)) FROM _electric_cm.shape s
			LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id WHERE s.handle IN ($new)", 'all of them');
		$writer->query_safe("BEGIN; UPDATE t SET n = n + 100 WHERE id < 5; INSERT INTO p VALUES (0, 0, 0)");
		$stack->sql(q{BEGIN; INSERT INTO t VALUES (-5000, 0, 'prepared'), (20000, 0, 'prepared');
			PREPARE TRANSACTION 'open'});
	}
	$stack->is_live($_) for @new;
	if ($round == 1)
	{
		$writer->query_safe('COMMIT');
		$stack->sql("COMMIT PREPARED 'open'");
	}
	else
	{
		# not ever more of them
		for my $handle (grep { $shapes{$_} && rand() < 0.4 } @new)
		{
			$stack->sql("SELECT electric_cm_drop_shape('$handle')");
			delete $shapes{$handle};
		}
	}
}
$load->finish;
like($out, qr/number of failed transactions: 0|tps/, 'there was load');
$writer->quit;
my %keys = (t => ['id'], c => [ 'a', 'b' ], k => ['id'], p => [ 'id', 'region' ]);
for my $handle (sort keys %shapes)
{
	my ($table, $opts) = @{ $shapes{$handle} };
	$stack->replays($handle, $table,
		"$table" . (defined $opts->{where} ? " WHERE $opts->{where}" : ''),
		keys => $keys{$table}, %{$opts});
}
is($stack->events('shape_errored'), 0, 'none is errored');
cmp_ok($round, '>', 1, "rounds: $round");
$stack->seen('NOT EXISTS (SELECT FROM _electric_cm.reading) AND NOT EXISTS (SELECT FROM _electric_cm.reading_piece)
	AND NOT EXISTS (SELECT FROM _electric_cm.reading_again)', 'what was known of the pieces is deleted');
done_testing();
