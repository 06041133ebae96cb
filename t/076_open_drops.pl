# A role that drops a shape in a transaction which it leaves open, or prepares,
# holds up nobody: neither DDL of others at their commit, nor the stack.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "autovacuum = off\nelectric_cm.status_check_interval = '1 s'\n");
my $node = $stack->node;
my $pub = 'electric_cm_publication';

# of the superuser, and of u
sub theirs { my $handle = $stack->sql("SELECT electric_cm_create_shape('$_[0]')"); $stack->is_live($handle); return $handle; }
sub ours { my $handle = $stack->sql('SET ROLE u', "SELECT electric_cm_create_shape('$_[0]', 'id > 0', '{id}')"); $stack->is_live($handle); return $handle; }
# not held up by anybody
sub at_once
{
	my ($what, @statements) = @_;
	my $timed_out;
	my ($rc, $out, $err) = $node->psql($db, join(";\n", @statements), timeout => 60, timed_out => \$timed_out, on_error_stop => 1);
	ok(!$timed_out && defined $rc && $rc == 0, "$what is not held up") or diag($err);
	return;
}
sub ours_replays { $stack->replays(@_, where => 'id > 0', columns => ['id']); return; }

# a transaction of u that has dropped a shape
sub open_drop
{
	my ($handle, $prepared) = @_;
	my $drop = "BEGIN; SET LOCAL ROLE u; SELECT electric_cm_drop_shape('$handle')";

	if ($prepared)
	{
		$stack->sql($drop, q{PREPARE TRANSACTION 'u'});
		return sub { $stack->sql("$_[0] PREPARED 'u'"); };
	}
	my $session = $node->background_psql($db, on_error_stop => 1);
	$session->query_safe($drop);
	return sub { $session->query_safe($_[0]); $session->quit; };
}

$stack->sql('CREATE EXTENSION electric_cm', 'CREATE ROLE u LOGIN', 'CREATE SCHEMA s', 'GRANT USAGE ON SCHEMA s TO u',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_drop_shape(text) TO u',
	'CREATE TABLE other (id int PRIMARY KEY, v text)', 'INSERT INTO other VALUES (1)');
$stack->active or BAIL_OUT('no stack');
my $other = theirs('other');

# ends a table's shapes, though nothing has changed in the end; what has no key is
# published no more
my @rekeyed = ('ALTER TABLE s.t DROP CONSTRAINT t_pkey', 'ALTER TABLE s.t ADD PRIMARY KEY (id)', "ALTER PUBLICATION $pub ADD TABLE s.t");

my $n = 0;
for my $case (
	[ 'TRUNCATE', 's.t', 'TRUNCATE s.t' ],
	[ 'a new column', 's.t', 'ALTER TABLE s.t ADD COLUMN w int' ],
	[ 'a table dropped', undef, 'DROP TABLE s.t' ],
	[ 'a schema renamed', 'renamed.t', 'ALTER SCHEMA s RENAME TO renamed' ],
	[ 'a table that leaves the publication', 's.t', "ALTER PUBLICATION $pub DROP TABLE s.t", 'INSERT INTO s.t (id) VALUES (50)', 'DELETE FROM s.t WHERE id = 3' ],
	[ 'a key dropped and made anew', 's.t', @rekeyed ],
	[ 'a key dropped', undef, 'ALTER TABLE s.t DROP CONSTRAINT t_pkey', 'UPDATE s.t SET v = NULL' ],
	[ 'all that u owns dropped', 's.t', 'BEGIN', 'DROP OWNED BY u', 'GRANT USAGE ON SCHEMA s TO u', 'GRANT SELECT ON s.t TO u',
		'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_drop_shape(text) TO u', 'COMMIT' ])
{
	my ($what, $table, @statements) = @$case;
	my $prepared = $n % 2;
	my $commit = $n++ % 3 == 0;

	$stack->sql('DROP SCHEMA IF EXISTS s, renamed CASCADE', 'CREATE SCHEMA s', 'CREATE TABLE s.t (id int PRIMARY KEY, v text)', q{INSERT INTO s.t SELECT i, 'old' FROM generate_series(1, 5) i},
		'GRANT USAGE ON SCHEMA s TO u', 'GRANT SELECT ON s.t TO u');
	my $all = theirs('s.t');
	my $some = ours('s.t');
	my $end = open_drop($some, $prepared);

	at_once($what . ($prepared ? ', with a prepared drop_shape(),' : ''), @statements);
	if ($what =~ /TRUNCATE|column|publication/)
	{
		# nobody's lock is in the way of a resync's beginning
		my $gaps = $what =~ /column/ ? 1 : 2;	# the locked one has no use for the column
		$stack->becomes("SELECT count(*) = $gaps FROM _electric_cm.shape_gap g JOIN _electric_cm.shape s ON s.id = g.shape WHERE handle IN ('$all', '$some')", '... and has shapes resynced');
		$stack->is_live($all);
		$stack->replays($all, 's.t', '... which are right');
		$end->($commit ? 'COMMIT' : 'ROLLBACK');
		if ($commit) { $stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape WHERE handle = '$some'", 'afterwards it is gone'); }
		else { $stack->is_live($some); ours_replays($some, $table, 'rolled back, it is right'); }
		next;
	}
	is($stack->exists_shape($all), 0, '... and ends the other shape') unless $what =~ /owns/;
	$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$some'", '... and the locked one');
	like(($node->psql($db, "SET ROLE u; SELECT electric_cm_shape_log('$some')"))[2], qr/shape "$some" does not exist/, '... for its readers, too');
	$end->($commit ? 'COMMIT' : 'ROLLBACK');
	$stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape WHERE handle = '$some'", $commit ? 'afterwards it is gone' : 'rolled back, it is gone nevertheless');
	next unless defined $table;
	my $again = ours($table);
	$stack->sql("INSERT INTO $table (id) VALUES (100)", "DELETE FROM $table WHERE id = 2");
	ours_replays($again, $table, 'the next one is right');
}
# ... however many commands there are
$stack->sql('CREATE TABLE s.often (id int PRIMARY KEY)', 'GRANT SELECT ON s.often TO u');
theirs('s.often');
my $often = ours('s.often');
my $open = open_drop($often);
at_once("TRUNCATE, number $_,", 'BEGIN', 'TRUNCATE s.often', 'SAVEPOINT a', 'TRUNCATE s.often', 'COMMIT') for 1 .. 3;
$stack->becomes("SELECT waiting_for ~ 'locked|drops' FROM electric_cm_shapes WHERE handle = '$often'", 'the locked one waits');
$open->('ROLLBACK');
$stack->is_live($often);
ours_replays($often, 's.often', 'and is right');

# who declares the same again before it can be deleted
$stack->sql('DROP SCHEMA IF EXISTS s, renamed CASCADE', 'CREATE SCHEMA s', 'GRANT USAGE ON SCHEMA s TO u', 'CREATE TABLE s.t (id int PRIMARY KEY, v text)', 'INSERT INTO s.t VALUES (1)', 'GRANT SELECT ON s.t TO u');
theirs('s.t');
my $some = ours('s.t');
my $end = open_drop($some);
at_once('another key', @rekeyed);
$stack->becomes("SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$some'");
$end->('ROLLBACK');
my $again = ours('s.t');
isnt($again, $some, 'declared again at once it has another handle');
$stack->sql('INSERT INTO s.t VALUES (2)');
ours_replays($again, 's.t', '... and is right');

# ... in the transaction that has ended it
$end = open_drop($again);
my $creator = $node->background_psql($db, on_error_stop => 1);
$creator->{stdin} .= "BEGIN; $rekeyed[0]; $rekeyed[1]; SET LOCAL ROLE u; SELECT 'handle=' || electric_cm_create_shape('s.t', 'id > 0', '{id}'); COMMIT;\n";
$creator->{run}->pump_nb;
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'create_shape' AND pid <> pg_backend_pid()}, 'who ends it and declares it again waits in create_shape()');
$end->('ROLLBACK');
($again) = $creator->query_safe('SELECT 1') =~ /^handle=(.*)$/m;
$creator->quit;
$stack->is_live($again, '... whose handle is good');
$stack->sql('INSERT INTO s.t VALUES (3)');
ours_replays($again, 's.t', '... and right');

# a consumer has not marked it
$stack->sql('CREATE TABLE s.unmarked (id int PRIMARY KEY)');
my $unmarked = theirs('s.unmarked');
$stack->sql("INSERT INTO _electric_cm.lost_shape SELECT id, pg_current_xact_id() FROM _electric_cm.shape WHERE handle = '$unmarked'", 'SELECT _electric_cm.delete_gone()');
is($stack->sql("SELECT count(*) FROM _electric_cm.shape WHERE handle = '$unmarked'") . $stack->sql('SELECT count(*) FROM _electric_cm.lost_shape'), '00', 'a shape that is lost is deleted, marked or not');

# an owner who was dropped in another database
my $ownerless = theirs('s.unmarked');
is($stack->sql("UPDATE _electric_cm.shape SET owner = 4294967295 WHERE handle = '$ownerless'", 'SELECT _electric_cm.invalidate_ownerless()', 'SELECT count(*) FROM _electric_cm.lost_shape'), "1\n0",
	'a shape without owner is not taken for one that somebody has locked');

# another owner
$stack->sql('CREATE ROLE heir', 'GRANT USAGE ON SCHEMA s TO heir', 'GRANT SELECT ON s.t TO heir');
$end = open_drop($again);
at_once('REASSIGN OWNED', 'REASSIGN OWNED BY u TO heir');
$end->('ROLLBACK');
$stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape WHERE handle = '$again'", '... and that shape ends');
$again = ours('s.t');
$stack->sql('CREATE ROLE stranger');
is($stack->sql('REASSIGN OWNED BY u TO stranger', 'SELECT count(*) FROM electric_cm_shapes WHERE owner IN (\'u\', \'stranger\')'), 0, "a new owner who may not read the table: the shape ends at once");
$again = ours('s.t');

# two that drop in opposite order to what others change
$stack->sql('CREATE TABLE s.a (id int PRIMARY KEY)', 'CREATE TABLE s.b (id int PRIMARY KEY)', 'GRANT SELECT ON s.a, s.b TO u');
theirs($_) for 's.a', 's.b';
my ($a, $b) = (ours('s.a'), ours('s.b'));
$end = open_drop($b);
at_once('TRUNCATE of both', 'BEGIN', 'TRUNCATE s.a', 'TRUNCATE s.b', 'COMMIT');
$end->('COMMIT');
is($stack->exists_shape($a) . $stack->exists_shape($b), '10', 'the one that was dropped is gone');

#
# The stack's own work
#

for my $prepared (0, 1)
{
	$end = open_drop($again, $prepared);
	$stack->sql('ALTER DATABASE postgres SET electric_cm.shape_workers = ' . (3 - $prepared));
	$node->reload;
	$stack->becomes(q{SELECT count(*) = } . (3 - $prepared) . q{ FROM electric_cm_stat_consumers}, 'the stack starts with another number of consumers');
	$stack->active;
	$stack->sql('INSERT INTO other SELECT max(id) + 1 FROM other', 'INSERT INTO s.t SELECT max(id) + 1 FROM s.t');
	$stack->replays($other, 'other', '... which follow the others');
	$end->('ROLLBACK');
	ours_replays($again, 's.t', '... and the one that was not dropped after all');
}

# all shapes are resynced, at a start
$end = open_drop($again, 1);
for my $with (0, 1)
{
	$node->stop;
	$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', $with ? "'electric_cm'" : "''");
	$node->start;
	$stack->sql('ALTER TABLE other ADD COLUMN w int') unless $with;
}
$stack->active;
pass('a start at which all shapes are resynced is not held up');
$stack->is_live($other);
$stack->sql('UPDATE other SET v = \'x\'');
$stack->replays($other, 'other', 'one is right');
$end->('ROLLBACK');
$stack->is_live($again);
ours_replays($again, 's.t', '... and the locked one, when it can be');
$stack->becomes('SELECT count(*) = 0 FROM _electric_cm.shape_state t WHERE NOT EXISTS (SELECT FROM _electric_cm.shape s WHERE s.id = t.shape)', '... with all that belongs to it');
$again = ours('s.t');
$stack->sql('INSERT INTO s.t SELECT max(id) + 1 FROM s.t');
ours_replays($again, 's.t', 'u goes on with another');

done_testing();
