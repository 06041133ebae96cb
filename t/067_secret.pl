# What rows have, and the key to the stack's orders, is shown to nobody who may
# not read the rows: not by events, views, notifications, statements, our tables
# or statistics.  And whoever has the key all the same harms nobody's shapes.
use strict;
use warnings;

use ElectricCM qw(new_stack measures_memory memory_mb);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $pkglibdir = `$ENV{PG_CONFIG} --pkglibdir`;
chomp $pkglibdir;
my @libraries = ('electric_cm', grep { -e "$pkglibdir/$_.so" } qw(auto_explain pg_stat_statements));
my $stack = new_stack('main', preload => 0, conf => qq{
shared_preload_libraries = '@{[join ', ', @libraries]}'
log_statement = all
log_min_duration_statement = 0
log_min_messages = debug2
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
pg_stat_statements.track = all
electric_cm.pool_idle_timeout = '60 s'
});
my $node = $stack->node;

sub value_as
{
	my $role = shift;
	return $node->safe_psql($db, join(";\n", @_), extra_params => [ '-U', $role ]);
}

sub error_as
{
	my $role = shift;
	my ($rc, $out, $err) = $node->psql($db, join(";\n", @_), extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? '' : $err;
}

sub state_of { return "SELECT state FROM electric_cm_shapes WHERE handle = '$_[0]'"; }
sub becomes_errored { my ($handle, $what) = @_; return $stack->becomes("SELECT (" . state_of($handle) . ") = 'errored'", $what); }
sub log_of { return "SELECT count(*) FROM electric_cm_shape_log('$_[0]')"; }

$stack->sql(
	'CREATE EXTENSION electric_cm',
	'CREATE ROLE mallory LOGIN', 'CREATE ROLE monitor LOGIN IN ROLE pg_monitor',
	'CREATE ROLE auditor LOGIN IN ROLE pg_read_all_data, pg_write_all_data, pg_read_all_stats',
	'CREATE ROLE alice LOGIN', 'CREATE ROLE member LOGIN IN ROLE alice', 'CREATE ROLE watcher LOGIN IN ROLE alice, pg_monitor',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO alice',
	'CREATE TABLE patient (id int PRIMARY KEY, note text)', 'ALTER TABLE patient REPLICA IDENTITY FULL',
	'CREATE TABLE other (id int PRIMARY KEY, v text)', 'ALTER TABLE other REPLICA IDENTITY FULL', q{INSERT INTO other VALUES (1, 'old')},
	'GRANT SELECT ON patient TO alice');
$stack->active or BAIL_OUT('no stack');
my $others = $stack->sql(q{SELECT electric_cm_create_shape('other')});
$stack->sql(log_of($others), q{SELECT electric_cm_create_shape('patient', 'id < 0')});
$stack->becomes(q{SELECT bool_and(state = 'live') FROM electric_cm_shapes}, 'shapes are live');

# Errors that quote a row: in the stream, in the snapshot, and of every shape of
# a batch alike.

my $listener = $node->background_psql($db, on_error_stop => 1, extra_params => [ '-U', 'mallory' ]);
$listener->query_safe('LISTEN electric_cm');

my $clause = q{to_tsvector('simple', 'x') @@ to_tsquery('simple', note)};
my $streamed = value_as('alice', "SELECT electric_cm_create_shape('patient', \$\$$clause\$\$)");
value_as('alice', log_of($streamed));
$stack->sql(q{INSERT INTO patient VALUES (1, 'PIN 4711 of Alice')});
becomes_errored($streamed, 'a row that a clause fails for ends the shape');
my $snapshot = value_as('alice', "SELECT electric_cm_create_shape('patient', \$\$$clause AND id > 0\$\$)");
becomes_errored($snapshot, '... and one that is there already ends it, too');
my @more = map { value_as('alice', "SELECT electric_cm_create_shape('patient', \$\$$clause AND id > $_\$\$)") } -3 .. -1;
becomes_errored($_, '... each of several') for @more;
becomes_errored(value_as('alice', q{SELECT electric_cm_create_shape('patient', $$date_trunc(note, timestamp 'epoch') > 'epoch'$$)}),
	'... also where the error is of another class');

my $heard = '';
my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
$heard .= $listener->query_safe('SELECT pg_sleep(0.05)') . "\n" while (() = $heard =~ /"event":"shape_errored"/g) < 6 && time < $deadline;
is(scalar(() = $heard =~ /"event":"shape_errored"/g), 6, 'whoever can log in hears of it');
unlike($heard, qr/4711|Alice|tsquery|patient/, '... and nothing of the row, the clause, or the table');
$listener->quit;

my $watched = value_as('monitor', q{SELECT string_agg(e::text, E'\n') FROM electric_cm_events e},
	q{SELECT string_agg(concat_ws('|', state, waiting_for, last_error), E'\n') FROM electric_cm_shapes}, 'SELECT electric_cm_health()',
	q{SELECT string_agg(m::text, E'\n') FROM electric_cm_stat_manager m}, q{SELECT string_agg(c::text, E'\n') FROM electric_cm_stat_consumers c},
	q{SELECT string_agg(concat_ws('|', query, application_name), E'\n') FROM pg_stat_activity WHERE application_name LIKE 'electric_cm%' OR backend_type LIKE 'electric_cm%'});
unlike($watched, qr/4711|Alice/, 'pg_monitor sees nothing of the row in views, events, health and activity');
like($watched, qr/errored\|syntax error \(SQLSTATE 42601\)/, '... but what kind of an error it was');
is(value_as('watcher', "SELECT last_error FROM electric_cm_shapes WHERE handle = '$snapshot'"), 'syntax error in tsquery: "PIN 4711 of Alice"',
	'who may read the shape sees the text');
is($stack->sql("SELECT count(*) FROM electric_cm_shapes WHERE last_error LIKE '%4711%'"), '6', '... and so does a superuser');
like(error_as($_, log_of($streamed)), qr/55000.*DETAIL:  syntax error in tsquery: "PIN 4711 of Alice"/s, "$_ reads the shape's error") for qw(alice member);
unlike(error_as('mallory', log_of($streamed)), qr/4711/, '... mallory does not');
$stack->sql('REVOKE SELECT ON patient FROM alice');
like(error_as($_, log_of($streamed)), qr/42501: permission denied/, "$_ does not when the right to read the rows is gone") for qw(alice member);
is(value_as('watcher', "SELECT count(*) FROM electric_cm_shapes WHERE last_error LIKE '%4711%'"), '0', '... nor by the view');
$stack->sql('GRANT SELECT ON patient TO alice');

# The texts of statements: what the stack does, nested statements included

my $key = $stack->sql('SELECT message_key FROM _electric_cm.stack');
my $log = slurp_file($node->logfile);
unlike($log, qr/\Q$key\E/, 'the key is not in the log, whatever is logged');
my @own = grep { /_electric_cm\.|pg_logical_emit_message/ && /4711/ } split /\n/, $log;
is(scalar @own, 0, '... nor a row in the text of a statement of ours') or diag($own[0]);
if (grep { $_ eq 'pg_stat_statements' } @libraries)
{
	$stack->sql('CREATE EXTENSION pg_stat_statements');
	$stack->sql('UPDATE other SET v = v', q{SELECT electric_cm_create_shape('other', '1 / (id - 1) > 0')});
	$stack->becomes(q{SELECT count(*) = 1 FROM electric_cm_shapes WHERE last_error = 'division by zero'}, 'another shape fails');
	is($stack->sql("SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%$key%' OR query LIKE '%electric_cm/%'"), '0', 'pg_stat_statements has no key');
	is(value_as('monitor', q{SELECT count(*) FROM pg_stat_activity WHERE query ~ 'electric_cm/[0-9a-f]' AND pid <> pg_backend_pid()}), '0', 'nor has pg_stat_activity');
}

# Our tables, for those who may read and write everything

$stack->sql(q{INSERT INTO other SELECT i, string_agg(md5(i::text || j), '') FROM generate_series(2, 4) i, generate_series(1, 1000) j GROUP BY i}, 'SELECT electric_cm_await_flushed()');
my @tables = split /\n/, $stack->sql(q{SELECT oid::regclass FROM pg_class WHERE relnamespace = '_electric_cm'::regnamespace AND relkind = 'r'});
cmp_ok(scalar @tables, '>=', 7, 'tables');
for my $table (@tables)
{
	is(value_as('auditor', "SELECT count(*) FROM $table"), '0', "$table: pg_read_all_data sees no row");
	my ($column) = split /\n/, $stack->sql("SELECT attname FROM pg_attribute WHERE attrelid = '$table'::regclass AND attnum > 0 AND attidentity = '' ORDER BY attnum DESC LIMIT 1");
	error_as('auditor', "DELETE FROM $table", "UPDATE $table SET $column = NULL");
}
isnt(error_as('auditor', q{INSERT INTO _electric_cm.progress VALUES (0, 'F/0')}), '', 'pg_write_all_data writes nothing');
isnt(error_as('auditor', "COPY $_ TO STDOUT", 'SELECT 1/0'), '', "$_: nothing by COPY") for '_electric_cm.shape_log';
my $toast = $stack->sql(q{SELECT reltoastrelid::regclass FROM pg_class WHERE oid = '_electric_cm.shape_log'::regclass});
like(error_as('auditor', "SELECT count(*) FROM $toast"), qr/42501/, 'nor from its TOAST table');
$stack->sql("ANALYZE $_") for @tables;
is($stack->sql(q{SELECT count(*) FROM pg_statistic s, LATERAL (VALUES (s.stavalues1::text), (s.stavalues2::text)) v (t)
	WHERE starelid::regclass::text LIKE '\_electric\_cm.%' AND (t LIKE '%} . $key . q{%' OR t LIKE '%4711%' OR t LIKE '%' || encode('4711', 'hex') || '%')}),
	'0', 'samples in pg_statistic have nothing of it');
is(value_as('alice', 'SET row_security = off', qq{SELECT count(*) FROM electric_cm_shape_log('} . value_as('alice', q{SELECT electric_cm_create_shape('patient', 'id > 100')}) . q{')}), '0',
	"our functions don't mind row_security = off");
is($stack->sql('SELECT electric_cm_status()'), 'active', 'the stack is active');

# Orders of somebody who has the key, from the WAL say

my $slot_sees = $stack->sql(q{SELECT pg_create_logical_replication_slot('peeping', 'pgoutput')});
$stack->sql('CREATE TABLE unpublished (id int, v text)', 'CREATE TABLE held (id int PRIMARY KEY, v text)', q{INSERT INTO held VALUES (1, 'a')});
my $publication_before = $stack->sql(q{SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'electric_cm_publication'});

sub forge
{
	my (@orders) = @_;
	value_as('mallory', map { my $text = s/'/''/gr; "SELECT pg_logical_emit_message(true, 'electric_cm/$key', '$text')" } @orders);
	return $stack->sql('SELECT electric_cm_await_flushed()');
}

my ($id, $generation, $relation, $snapshot_text) = split /\|/, $stack->sql("SELECT id, generation, relation, snapshot FROM _electric_cm.shape WHERE handle = '$others'");
my $oid = $stack->sql(q{SELECT 'unpublished'::regclass::oid});
my $mallory = $stack->sql(q{SELECT 'mallory'::regrole::oid});
my %orders = (
	drop => ["drop $others $id forged", "drop x $id,$id,1,,,", 'drop'],
	lost => ["lost $others $id forged", "lost x $id,$id,1,,,", 'lost'],
	unsendable => ["unsendable $relation v", "unsendable $relation ", 'unsendable'],
	fail => ["fail $id $generation 22012: forged"],
	capture => ["capture 1 $id $generation", "capture 1 $id @{[$generation + 1]}"],
	live => ["live $snapshot_text $id $generation", "live 1:1: $id $generation"],
	owner => ["owner $id $mallory"],
	truncate => ["truncate $relation"],
	mismatch => ["mismatch $relation 0", "mismatch $relation 1"],
	create => ["create $id $relation $others", "create 999999 $oid x", "create $id $oid x"],
	garbage => ['live', 'live x', 'capture', 'capture 1 1', "capture 1 $id x", 'giant', '', 'drop x ', "fail $id", 'live ' . ('1 ' x 1000)]);
for my $order (sort keys %orders)
{
	forge(@{ $orders{$order} });
	$stack->sql("UPDATE other SET v = v || '$order' WHERE id = 1", 'SELECT electric_cm_await_flushed()');
	is($stack->sql(state_of($others)), 'live', "forged '$order': the shape is live");
	my ($ok, $entries) = $stack->replay_equals($others, 'other', ['id']);
	ok($ok, "... and its log is right ($entries entries)");
}
is($stack->sql(q{SELECT string_agg(severity, ',') FROM electric_cm_events WHERE event = 'unknown_message'}), 'warning', 'that there are messages of nobody is said, once');

# Such messages are kept until their transaction's end; they take no more memory
# there than they have text
sub consumer_mb
{
	my $pid = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
	return memory_mb($pid, 'VmHWM');
}

SKIP:
{
	skip 'memory is measured on Linux, and without a sanitizer', 1 unless measures_memory();
	my $before = consumer_mb();
	value_as('mallory', "SELECT pg_logical_emit_message(true, 'electric_cm/$key', message) FROM generate_series(1, 30),"
		. q{ (VALUES ('fail 1 1' || repeat(' ', 1000000)), ('capture 1' || repeat(' 1 1', 250000))) AS m (message)});
	$stack->sql('SELECT electric_cm_await_flushed()');
	my $after = consumer_mb();
	cmp_ok($after - $before, '<', 100, "60 MB of forged orders take a consumer no more than that ($before MB, then $after MB)");
}

# in one transaction with a drop of one's own
$stack->sql('GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_drop_shape(text) TO mallory', 'GRANT SELECT ON other TO mallory');
my $own = value_as('mallory', q{SELECT electric_cm_create_shape('other')});
value_as('mallory', log_of($own));
value_as('mallory', 'BEGIN', "SELECT electric_cm_drop_shape('$own')", "SELECT pg_logical_emit_message(true, 'electric_cm/$key', 'drop $others $id forged')", 'COMMIT');
$stack->becomes("SELECT count(*) > 0 FROM electric_cm_events WHERE message LIKE '%$own%'", 'a genuine drop beside a forged one is obeyed');
$stack->sql(q{UPDATE other SET v = 'last' WHERE id = 1}, 'SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($others, 'other', ['id']);
ok($ok, "... and the forged one is not ($entries entries)");
is($stack->sql(q{SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'electric_cm_publication'}), $publication_before,
	'nothing was published by it');
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE concat(message, detail) LIKE '%forged%'}), '0', 'no event says what a forger wants');

# ... while a shape is being created: it waits for a writer

my $writer = $node->background_psql($db, on_error_stop => 1);
$writer->query_safe(q{BEGIN; INSERT INTO held VALUES (2, 'b')});
my $held = $stack->sql(q{SELECT electric_cm_create_shape('held')});
$stack->becomes("SELECT waiting_for LIKE '%PID%' OR waiting_for LIKE '%process%' OR waiting_for LIKE '%transaction%' FROM electric_cm_shapes WHERE handle = '$held'", 'a shape waits for a writer');
($id, $generation) = split /\|/, $stack->sql("SELECT id, generation FROM _electric_cm.shape WHERE handle = '$held'");
$stack->sql(q{UPDATE held SET v = 'changed' WHERE id = 1});
forge("live 1:1: $id $generation", "capture 1 $id $generation", "fail $id $generation 22012: forged", "drop $held $id forged", "lost $held $id forged", "create $id $oid x");
is($stack->sql(state_of($held)), 'creating', 'forged orders do not make it live, nor end it');
$writer->query_safe('COMMIT');
$writer->quit;
$stack->becomes("SELECT (" . state_of($held) . ") = 'live'", '... it becomes live all the same');
$stack->sql(q{INSERT INTO held VALUES (3, 'c')}, 'SELECT electric_cm_await_flushed()');
($ok, $entries) = $stack->replay_equals($held, 'held', ['id']);
ok($ok, "... with all its rows ($entries entries)");

# ... before it is declared
my $next = $stack->sql('SELECT max(id) + 1 FROM _electric_cm.shape');
forge(map { "create $_ $oid x" } $next .. $next + 5);
forge(map { ("drop x $_ forged", "lost x $_ forged", "capture 1 $_ 1", "live 1:1: $_ 1", "fail $_ 1 22012: forged") } $next .. $next + 5);
my $later = $stack->sql(q{SELECT electric_cm_create_shape('held', NULL, '{id}')});
$stack->becomes("SELECT (" . state_of($later) . ") = 'live'", 'a shape whose number was named before becomes live');
is($stack->sql('SELECT sum(restarts) FROM electric_cm_stat_consumers'), '0', 'no consumer has died of all that');

# ... by somebody whose commit waits for a synchronous standby, for ever: he waits alone

$stack->sql(q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'});
$node->reload;
$stack->becomes(q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
($id, $generation) = split /\|/, $stack->sql("SELECT id, generation FROM _electric_cm.shape WHERE handle = '$others'");
my $waiting = $node->background_psql($db, extra_params => [ '-U', 'mallory' ]);
$waiting->query_until(qr/emitting/, "\\echo emitting\nSELECT count(pg_logical_emit_message(true, 'electric_cm/$key', o || '$id $generation')) FROM unnest('{capture 1 ,live 1:1: ,drop x }'::text[]) o;\n");
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE usename = 'mallory' AND wait_event = 'SyncRep'}, 'a forger waits for a synchronous standby');
$stack->sql(q{ALTER SYSTEM SET synchronous_commit = local});
$node->reload;
$stack->becomes(q{SELECT current_setting('synchronous_commit') = 'local'});
$stack->sql(q{UPDATE other SET v = 'not waiting' WHERE id = 1}, q{SELECT electric_cm_await_flushed(timeout => '60 s')});
($ok, $entries) = $stack->replay_equals($others, 'other', ['id']);
ok($ok, "... and nobody else does ($entries entries)");
$stack->sql('ALTER SYSTEM RESET synchronous_standby_names');
$stack->sql('ALTER SYSTEM RESET synchronous_commit');
$node->reload;
$stack->becomes(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
$waiting->quit;

# Logs are deleted only of what is gone.
($id) = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$held'");
$stack->sql("SELECT _electric_cm.purge_shapes(ARRAY[$id, 1], 1000, 1000000000)");
($ok, $entries) = $stack->replay_equals($held, 'held', ['id']);
ok($ok, "the log of a shape that is there is not deleted ($entries entries)");
$stack->sql("SELECT electric_cm_drop_shape('$held')");
$stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape_log WHERE shape = $id", '... that of one which was dropped is');

$node->stop;
done_testing();
