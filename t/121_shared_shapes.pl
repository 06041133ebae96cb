
# Owners share shapes; application roles see what is theirs, or shared with them, and no more.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack fails_with);
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main');
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql((map { "CREATE ROLE $_ LOGIN" } qw(joe bob stranger)), 'CREATE ROLE carol LOGIN IN ROLE bob', 'CREATE ROLE "public " LOGIN', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_create_reader(text, text[]) TO joe, bob',
	'CREATE TABLE t (id int PRIMARY KEY, secret text)', 'ALTER TABLE t OWNER TO joe', q{INSERT INTO t VALUES (1, 'x'), (2, 'y')}, 'CREATE TABLE other (id int PRIMARY KEY)');
my $shape = $stack->sql(q{SET ROLE joe; SELECT electric_cm_create_shape('t')});
$stack->is_live($shape);
my $others = $stack->live_shape('other');

sub as { my ($role, @sql) = @_; return $stack->sql("SET ROLE \"$role\"", @sql); }
sub denied { my ($role, $what, $sql) = @_; return fails_with($node, $db, qr/42501/, $what, "SET ROLE \"$role\"; $sql"); }
my $read = "SELECT count(*) FROM electric_cm_shape_log('$shape')";
my $seen = 'SELECT handle, state, log_entries, last_offset FROM electric_cm_shapes';
my $await = "CALL electric_cm_await('{$shape}', '{-1}')";

is(as('joe', $seen), "$shape|live|2|0_2", 'an application role sees its own shapes, and positions');
is(as('watcher', 'SELECT count(*) FROM electric_cm_shapes'), 2, '... who watches the server all');
is(as($_, $seen), '', "... $_ none") for qw(bob stranger);
fails_with($node, $db, qr/42501.*electric_cm_grant_shape/s, 'nobody else reads a shape, but is told how', "SET ROLE bob; $read");

as('joe', "SELECT electric_cm_grant_shape('$shape', 'bob')") for 1 .. 2;
is(as($_, $read, $await, $seen, "SELECT count(*) FROM electric_cm_shape_logs('{$shape}', '{-1}') WHERE operation = 'insert'", "SELECT count(*) FROM electric_cm_shape_columns('$shape')"),
	"2\n{$shape}\n$shape|live|2|0_2\n2\n2", "it is shared with bob: $_ reads it") for qw(bob carol);
is(as('bob', "SELECT electric_cm_create_reader('b', '{$shape}')", q{SELECT count(*) FROM electric_cm_read('b') WHERE operation = 'insert'}), "\n2", '... also by a named reader');
denied($_, "... not $_", $read) for qw(stranger watcher);
denied('bob', "... bob may not $_", "SELECT electric_cm_$_") for "drop_shape('$shape')", "resync('$shape')", "grant_shape('$shape', 'stranger')", "revoke_shape('$shape', 'bob')";
denied('bob', '... nor read the table', 'SELECT * FROM t');

$stack->sql('REVOKE SELECT ON t FROM joe');
denied('bob', 'who is shared with has no more rights than the owner', $read);
$stack->sql('GRANT SELECT ON t TO joe');
is(as('bob', $read), 2, '... and as many');

as('joe', "SELECT electric_cm_revoke_shape('$shape', 'bob')") for 1 .. 2;
denied($_, "it is not shared any more: $_", $read) for qw(bob carol);
denied('bob', '... also by the named reader', q{SELECT * FROM electric_cm_read('b')});
is(as('bob', $seen), '', '... nor seen');

as('joe', "SELECT electric_cm_grant_shape('$shape', 'public')");
is(as($_, $read), 2, "everybody reads it: $_") for qw(stranger bob watcher);
is(as('stranger', $seen), "$shape|live|2|0_2", '... and sees it');
as('joe', "SELECT electric_cm_revoke_shape('$shape', 'public')", "SELECT electric_cm_grant_shape('$shape', 'public ')");
denied('stranger', 'not any more', $read);
is(as('public ', $read), 2, 'a role of a strange name');

fails_with($node, $db, qr/$_->[1]/, "$_->[0] fails", "SELECT electric_cm_$_->[0]")
  for ([ "grant_shape('$shape', 'nobody')", '42704' ], [ q{grant_shape('none', 'bob')}, '42704' ], [ q{revoke_shape('none', 'bob')}, '42704' ], [ "revoke_shape('$shape', 'nobody')", '42704' ]);

# Policies apply to members of the owner's role, if not to that.
$stack->sql('CREATE ROLE able LOGIN BYPASSRLS', 'CREATE ROLE member LOGIN IN ROLE able', 'CREATE TABLE hidden (id int PRIMARY KEY)', 'INSERT INTO hidden VALUES (1), (2)', 'ALTER TABLE hidden ENABLE ROW LEVEL SECURITY',
	'CREATE POLICY one ON hidden USING (id = 1)', 'GRANT SELECT ON hidden TO able, member', 'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) TO able', 'ALTER PUBLICATION electric_cm_publication ADD TABLE hidden');
my $hidden = $stack->sql(q{SET ROLE able; SELECT electric_cm_create_shape('hidden')});
$stack->is_live($hidden);
fails_with($node, $db, qr/0A000.*row-level security/, "a member $_->[0]", "SET ROLE member; SELECT electric_cm_$_->[1]")
  for [ 'does not read what policies hide from him', "shape_log('$hidden')" ], [ 'does not share it with himself', "grant_shape('$hidden', 'member')" ], [ '... nor with everybody', "grant_shape('$hidden', 'public')" ];
as('able', "SELECT electric_cm_grant_shape('$hidden', 'member')");
is(as('member', "SELECT count(*) FROM electric_cm_shape_log('$hidden')"), 2, '... but the owner does');
$stack->sql("SELECT electric_cm_drop_shape('$hidden')", 'SELECT _electric_cm.invalidate_ownerless()', 'DROP TABLE hidden');

# An error's text may quote a row.
as('joe', "SELECT electric_cm_grant_shape('$shape', 'bob')");
$stack->sql("UPDATE _electric_cm.shape_state t SET last_error = '22P02: invalid \"a secret\"' FROM _electric_cm.shape s WHERE s.id = t.shape AND s.handle = '$shape'");
like(as('bob', 'SELECT last_error FROM electric_cm_shapes'), qr/secret/, 'who may read a shape knows its error');
unlike(as('watcher', "SELECT last_error FROM electric_cm_shapes WHERE handle = '$shape'"), qr/secret/, '... who watches knows its name');

# ---------------------------------------------------- roles and shapes go --

is($stack->sql('SELECT count(*) FROM _electric_cm.shape_grant'), 2, 'shared with two');
$stack->sql(q{SELECT electric_cm_drop_reader('b')}, 'DROP OWNED BY "public "', 'DROP ROLE "public "');
is($stack->sql('SELECT count(*) FROM _electric_cm.shape_grant'), 1, 'one of the roles is dropped');
$stack->sql("SELECT electric_cm_drop_shape('$shape')", 'SELECT _electric_cm.invalidate_ownerless()');
is($stack->sql('SELECT count(*) FROM _electric_cm.shape_grant'), 0, 'the shape is dropped');
fails_with($node, $db, qr/42704/, '... for all', "SET ROLE bob; $read");

unlike(slurp_file($node->logfile), qr/(?:still referenced|leak|TRAP|PANIC|signal \d+ *:)/, 'no leaks, no crash');
$node->stop;
done_testing();
