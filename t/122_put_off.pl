# What is put off to cost less is done all the same when nothing else happens: the flush
# of a consumer's commit, feedback to the walsender, and what is sent while
# transactions come by the thousand.
use strict;
use warnings;

use lib 't/lib';
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

# Nobody but the stack flushes WAL: no checkpoint, no autovacuum, and at first no WAL
# writer and no background writer; and no timer wakes the consumer
my $stack = new_stack('main', conf => q{
autovacuum = off
checkpoint_timeout = '1h'
electric_cm.shape_stall_timeout = 0
});
my $node = $stack->node;
$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql('CREATE TABLE t (id serial PRIMARY KEY, n int)');
ok($stack->active, 'active');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT FROM electric_cm_shape_log('$handle')");
$stack->settle;

# One commit, and then nothing

my @writers = split /\n/, $stack->sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type IN ('walwriter', 'background writer')});
is(kill('STOP', @writers), 2, 'nobody else writes');
for my $n (1 .. 3)
{
	my $before = $stack->sql('SELECT pg_current_wal_insert_lsn()');
	$stack->sql("INSERT INTO t (n) VALUES ($n)");
	$stack->seen("min(flushed_lsn) > '$before' FROM electric_cm_stat_consumers", "commit $n: durable without another one");
	$stack->seen("count(*) = $n FROM electric_cm_shape_log('$handle')", '... and readable');
}
kill 'CONT', @writers;
my $end = $stack->sql('SELECT min(flushed_lsn) FROM electric_cm_stat_consumers');
$stack->seen("flushed_lsn >= '$end' FROM electric_cm_stat_replication", 'the manager gets to know');
$stack->seen("confirmed_flush_lsn >= '$end' FROM pg_replication_slots WHERE slot_name LIKE 'electric_cm_%'", '... and acknowledges it');

# Nor does one who waits have to wait for others

my $there = 0;
for my $n (1 .. 20)
{
	$there++ if $stack->sql("INSERT INTO t (n) VALUES (100 + $n); SELECT electric_cm_await_flushed(timeout => '10 s') IS NOT NULL") eq 't'
	  and $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle') WHERE value ->> 'n' = '${\(100 + $n)}'") == 1;
}
is($there, 20, 'twenty commits, each waited for');

# By the thousand, from several sessions, and then nothing

my $script = $node->basedir . '/insert.sql';
append_to_file($script, "INSERT INTO t (n) VALUES (:client_id);\n");
$node->command_ok([ 'pgbench', '--no-vacuum', '--client=8', '--jobs=2', '--transactions=500', "--file=$script", 'postgres' ],
	'transactions by the thousand');
$stack->seen("count(*) = (SELECT count(*) FROM t) FROM electric_cm_shape_log('$handle')", 'the last ones are there, too');
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "the log is the table ($entries entries)");

# An index that somebody has put on the table of progress: its rows move then

$stack->sql('CREATE INDEX ON _electric_cm.progress (lsn)');
for my $n (1 .. 40)
{
	$stack->sql("INSERT INTO t (n) VALUES ($n)");
	$stack->sql(q{SELECT electric_cm_await_flushed(timeout => '10 s')});
}
my $latest = $stack->sql('SELECT max(lsn) FROM (SELECT lsn FROM _electric_cm.progress OFFSET 0) AS p');
is( $stack->sql("SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT lsn FROM _electric_cm.progress WHERE lsn = '$latest' LIMIT 1"),
	$latest, 'an index on it has the last row');
is($stack->sql(q{SELECT count(*) FROM _electric_cm.progress WHERE worker >= 0}), 32, '... and there are no more rows than before');

unlike(slurp_file($node->logfile), qr/(?:still referenced|leak|TRAP|PANIC|signal \d+ *:)/, 'no leaks, no crash');
$node->stop;
done_testing();
