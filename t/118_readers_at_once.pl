
# Named readers when several things happen at once: two sessions, folds, rights that come and
# go, old snapshots, thousands of shapes.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack fails_with);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $stack = new_stack('main', conf => "electric_cm.shape_workers = 2\n");
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql((map { "CREATE TABLE $_ (id int PRIMARY KEY, n int, t text)" } qw(a b e)), 'CREATE TABLE q (n serial, reader text, handle text, operation text, key text)');
$stack->sql(<<'SQL');
CREATE FUNCTION eat(r text, max int DEFAULT 10000) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	e record; last record; mark text := '';
BEGIN
	FOR e IN SELECT * FROM electric_cm_read(r, max) LOOP
		IF e.operation IN ('ended', 'snapshot-end', 'up-to-date') THEN mark := mark || e.operation || ' '; END IF;
		CONTINUE WHEN e.operation = 'ended';
		last := e;
		CONTINUE WHEN e.operation IN ('snapshot-end', 'up-to-date');
		INSERT INTO q (reader, handle, operation, key) VALUES (r, e.handle, e.operation, e.key);
	END LOOP;
	IF last IS DISTINCT FROM NULL THEN PERFORM electric_cm_ack(r, last.log_offset, last.handle); END IF;
	RETURN mark;
END $$
SQL

sub eat
{
	my ($reader) = @_;
	my @marks;
	for (1 .. 200)
	{
		push @marks, $stack->sql("SELECT eat('$reader')");
		last if $marks[-1] =~ /^up-to-date $/ or $marks[-1] eq '';
	}
	return @marks;
}
sub got { my ($reader, $table) = @_; return $stack->sql("SELECT coalesce(string_agg(operation || ' ' || substring(key FROM '[0-9]+'), ', ' ORDER BY n), '') FROM q WHERE reader = '$reader' AND key ~ '\"$table\"'"); }
sub stat_of { my ($reader, $columns) = @_; return $stack->sql("SELECT $columns FROM electric_cm_stat_readers WHERE name = '$reader'"); }
sub touch { my ($times) = @_; for (1 .. $times) { $stack->sql('UPDATE a SET n = n + 1 WHERE id > 1000'); $stack->settle; } return; }
sub retention
{
	my ($value) = @_;
	$stack->sql("ALTER SYSTEM SET electric_cm.reader_retention = '$value'", 'SELECT pg_reload_conf()');
	return $stack->becomes("SELECT current_setting('electric_cm.reader_retention') = '$value'", "readers may keep $value");
}

my %shape = map { $_ => $stack->live_shape($_) } qw(a b e);

# ---------------------------------------------------------- two sessions --

$stack->sql("SELECT electric_cm_create_reader('twice', '{$shape{a},$shape{b}}')");
eat('twice');
$stack->sql('INSERT INTO a VALUES (1, 1)');
$stack->settle;
my ($old, $new) = map { $node->background_psql($db, on_error_stop => 0) } 1 .. 2;
$old->query_safe(q{BEGIN; SELECT eat('twice')});
$new->query_until(qr/begun/, "\\echo begun\nBEGIN; SELECT eat('twice'); COMMIT;\n");
$stack->seen(q{count(*) = 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory'}, 'a second session that reads waits for the first');
$old->query_safe('COMMIT');
$_->quit for $new, $old;
is(got('twice', 'a'), 'insert 1', '... and does not get what that had');

# ----------------------------------------------------------- rights --

$stack->sql('CREATE ROLE joe LOGIN', 'GRANT SELECT ON a, b TO joe', 'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO joe', 'GRANT ALL ON q, q_n_seq TO joe');
my %joes = map { $_ => $stack->sql("SET ROLE joe; SELECT electric_cm_create_shape('$_')") } qw(a b);
$stack->is_live($joes{$_}) for qw(a b);
$stack->sql("SET ROLE joe; SELECT electric_cm_create_reader('joe', '{$joes{a},$joes{b}}')", (q{SET ROLE joe; SELECT eat('joe')}) x 3, 'RESET ROLE',
	'DELETE FROM q', 'REVOKE SELECT ON a FROM joe', 'INSERT INTO a VALUES (3, 3)', 'INSERT INTO b VALUES (3, 3)');
$stack->settle;
fails_with($node, $db, qr/42501/, 'who may not read one of the shapes any more reads none', q{SET ROLE joe; SELECT eat('joe')});
$stack->sql('GRANT SELECT ON a TO joe', 'INSERT INTO a VALUES (4, 4)');
$stack->settle;
$stack->sql(q{SET ROLE joe; SELECT eat('joe')});
is(got('joe', 'a') . '; ' . got('joe', 'b'), 'insert 3, insert 4; insert 3', '... and all when he may again');

# -------------------------------------------------------------- folding --

$stack->sql(q{SELECT electric_cm_drop_reader('twice')}, q{SELECT electric_cm_drop_reader('joe')},
	q{INSERT INTO a SELECT i, 0, repeat('x', 200) FROM generate_series(1001, 1400) i});
touch(10);
$stack->fold_all($shape{a}, 1000);
$stack->sql("SELECT electric_cm_create_reader('late', '{$shape{a},$shape{b}}')");
my $lag = stat_of('late', 'lag_bytes');
like($stack->sql(q{SELECT eat('late')}), qr/snapshot-end/, 'a reader has the rows that a folded log begins with');
cmp_ok(stat_of('late', 'lag_bytes'), '<', $lag, '... which is so much less to acknowledge');
retention('300kB');
touch(1);
cmp_ok(stat_of('late', 'lag_bytes'), '<', 300_000, '... and less than it may keep, though the log had more before');
$stack->fold_all($shape{a}, 1000);
is(stat_of('late', 'state'), 'initial', '... so it does not lose it');

retention('1kB');
eat('late');
touch(6);
my $drop = $node->background_psql($db, on_error_stop => 0);
$drop->query_safe("BEGIN; SELECT electric_cm_alter_reader('late', drop_handles => '{$shape{a}}')");
$stack->fold_all($shape{a}, 1000);
$drop->query_safe('COMMIT');
is($stack->sql('SELECT count(*) FROM _electric_cm.reader_lost'), 1, 'a shape is lost while it is being dropped from the reader');
$stack->sql("SELECT electric_cm_alter_reader('late', '{$shape{a}}')");
is(stat_of('late', 'state'), 'initial', '... and not when it is added again');
$stack->sql('SELECT _electric_cm.invalidate_ownerless()');
is($stack->sql('SELECT count(*) FROM _electric_cm.reader_lost'), 0, '... and nothing is left of that');
$drop->quit;
touch(6);
$stack->fold_all($shape{a}, 1000);
is(stat_of('late', 'state'), 'initial', 'who has had nothing of a log yet loses nothing');
retention('1GB');
$stack->sql(q{SELECT electric_cm_drop_reader('late')}, 'DELETE FROM q');

# A log that is folded to nothing: its base ends with an offset of the stream.
$stack->sql("SELECT electric_cm_create_reader('empty', '{$shape{b}}')");
eat('empty');
$stack->sql('INSERT INTO b VALUES (60, 6)');
for (1 .. 10)
{
	$stack->sql(q{INSERT INTO e SELECT i, 0, repeat('y', 200) FROM generate_series(1, 100) i}, 'DELETE FROM e');
	$stack->settle;
}
$stack->sql(q{INSERT INTO e SELECT i, 0, repeat('y', 200) FROM generate_series(1, 30) i});
$stack->settle;
$stack->fold_all($shape{e}, 20000);
$stack->sql("SELECT electric_cm_alter_reader('empty', '{$shape{e}}')");
is($stack->sql(q{SELECT count(*), count(*) FILTER (WHERE operation = 'snapshot-end' AND log_offset > '1_0') FROM electric_cm_read('empty')}), '1|1', 'a log that begins without rows');
fails_with($node, $db, qr/42P08/, '... which is not acknowledged without the handle',
	q{SELECT electric_cm_ack('empty', (SELECT log_offset FROM electric_cm_read('empty') WHERE operation = 'snapshot-end'))});
$stack->sql('DELETE FROM q');
eat('empty');
is(got('empty', 'b'), 'insert 60', '... and with it, concerns no other shape');
$stack->sql(q{SELECT electric_cm_drop_reader('empty')}, 'DELETE FROM q');

# -------------------------------------------------------- an old snapshot --

my $repeatable = $node->background_psql($db, on_error_stop => 0);
$repeatable->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
touch(6);
$stack->sql('INSERT INTO a VALUES (80, 1)');
touch(3);
$stack->fold_all($shape{a}, 1000);
$repeatable->query_safe("SELECT electric_cm_create_reader('old', '{$shape{a},$shape{b}}')");
$repeatable->query_safe(q{DO $$ BEGIN PERFORM eat('old'); EXCEPTION WHEN SQLSTATE 'EC001' THEN NULL; END $$});
$repeatable->query_safe('COMMIT');
$repeatable->quit;
$stack->sql('INSERT INTO a VALUES (81, 1)', 'INSERT INTO b VALUES (81, 1)');
$stack->settle;
eat('old');
is($stack->sql(q{SELECT count(*) FROM q WHERE operation = 'insert' AND key ~ '"8[01]"'}), 3, 'a reader that is created in an old snapshot misses nothing');
is(stat_of('old', 'state'), 'current', '... and is current');
$stack->sql(q{SELECT electric_cm_drop_reader('old')}, 'DELETE FROM q');

# --------------------------------------------------------- many shapes --

$stack->sql('CREATE TABLE many (id int PRIMARY KEY)', 'INSERT INTO many SELECT generate_series(1, 600)');
$stack->sql(q{SELECT count(electric_cm_create_shape('many', 'id = ' || i)) FROM generate_series(1, 600) i});
$stack->becomes(q{SELECT count(*) = 600 FROM electric_cm_shapes WHERE relation = 'many'::regclass AND state = 'live'});
my @handles = split /\n/, $stack->sql(q{SELECT handle FROM electric_cm_shapes WHERE relation = 'many'::regclass});
$stack->sql("SELECT electric_cm_create_reader('many', '{" . join(',', @handles) . "}')",
	q{DO $$ BEGIN LOOP EXIT WHEN eat('many') = 'up-to-date '; END LOOP; END $$});
is($stack->sql(q{SELECT count(*), count(DISTINCT key) FROM q WHERE reader = 'many'}), '600|600', 'a reader of 600 shapes has their rows');
is(stat_of('many', 'shapes, lag_bytes, state'), '600|0|current', '... and is current');
$stack->sql('UPDATE many SET id = id + 1000 WHERE id = 7');
$stack->settle;
eat('many');
is(stat_of('many', 'state'), 'current', '... and goes on');

my $log = slurp_file($node->logfile);
unlike($log, qr/(?:still referenced|leak|TRAP|PANIC|signal \d+ *:)/, 'no leaks, no crash');

$node->stop;
done_testing();
