# Whoever can't select from a table with SQL any more, does not read its shapes:
# schema, table, columns, policies, for the owner and for members of that role.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main');
my $node = $stack->node;

# What a role's statement ends with: an SQLSTATE and a message, or nothing
sub error_as
{
	my $role = shift;
	my ($rc, $out, $err) = $node->psql($db, join(";\n", @_), extra_params => [ '-U', $role, '-v', 'VERBOSITY=verbose' ]);
	return $rc == 0 ? '' : $err =~ /ERROR:  (\w{5}: .*)/ ? $1 : $err;
}

sub handle_as { my ($role, $args) = @_; return $node->safe_psql($db, "SELECT electric_cm_create_shape($args)", extra_params => [ '-U', $role ]); }

$stack->sql(
	'CREATE EXTENSION electric_cm',
	'CREATE ROLE alice LOGIN', 'CREATE ROLE member LOGIN IN ROLE alice', 'CREATE ROLE outsider LOGIN NOINHERIT IN ROLE alice', 'CREATE ROLE mallory LOGIN',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_drop_shape(text) TO PUBLIC',
	'CREATE SCHEMA sec',
	'CREATE TABLE sec.t (id int PRIMARY KEY, v text, hidden text)', q{INSERT INTO sec.t VALUES (1, 'a', 'x')},
	'CREATE TABLE sec.root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', 'CREATE TABLE sec.leaf PARTITION OF sec.root DEFAULT',
	q{INSERT INTO sec.root VALUES (1, 'a')},
	'GRANT USAGE ON SCHEMA sec TO alice', 'GRANT SELECT ON sec.root TO alice', 'GRANT SELECT (id, v) ON sec.t TO alice');
$stack->active or BAIL_OUT('no stack');
$stack->sql(q{SELECT electric_cm_create_shape('sec.t')}, q{SELECT electric_cm_create_shape('sec.root')});
$stack->becomes(q{SELECT bool_and(state = 'live') FROM electric_cm_shapes}, 'the tables are published');

my $columns = handle_as('alice', q{'sec.t', NULL, '{id,v}'});
my $root = handle_as('alice', q{'sec.root'});
my $oid = $stack->sql(q{SELECT 'sec.t'::regclass::oid});
my %select = ($columns => 'SELECT id, v FROM sec.t', $root => 'SELECT * FROM sec.root');

# Both ways, or neither
sub reads
{
	my ($role, $handle, $expected, $what) = @_;
	my $sql = error_as($role, $select{$handle});
	my $log = error_as($role, "SELECT * FROM electric_cm_shape_log('$handle')");
	my $await = error_as($role, "SELECT * FROM electric_cm_await_shape_log('$handle', '-1', '10 s')");

	if ($expected)
	{
		is("$sql$log$await", '', "$role reads: $what");
		return;
	}
	like($_, qr/^(?:42501|0A000|42704): /, "$role does not read: $what") for $log, $await;
	return $log;
}

for my $handle ($columns, $root)
{
	reads($_, $handle, 1, 'all is granted') for qw(alice member);
	reads('outsider', $handle, 0, 'membership that is not inherited');
	reads('mallory', $handle, 0, 'no membership');
}
is(error_as('mallory', "SELECT electric_cm_drop_shape('$root')"), error_as('mallory', "SELECT * FROM electric_cm_shape_log('$root')"),
	'strangers are told the same by every function');

# The schema
$stack->sql('REVOKE USAGE ON SCHEMA sec FROM alice', q{INSERT INTO sec.t VALUES (2, 'after', 'x')}, 'SELECT electric_cm_await_flushed()');
for my $handle ($columns, $root)
{
	is(reads($_, $handle, 0, 'USAGE of the schema revoked'), '42501: permission denied for schema sec', '... and is told why') for qw(alice member);
}
like(error_as('alice', "SELECT electric_cm_create_shape($oid, NULL, '{id}')"), qr/^42501: permission denied for schema/, 'nor does anybody create a shape so, by OID');
$stack->sql('GRANT USAGE ON SCHEMA sec TO member');
reads('alice', $root, 0, 'USAGE granted to a member only');
$stack->sql('REVOKE USAGE ON SCHEMA sec FROM member', 'GRANT USAGE ON SCHEMA sec TO alice');
reads($_, $columns, 1, 'USAGE granted again') for qw(alice member);

# Columns and tables; a root's rights are the root's alone
$stack->sql('REVOKE SELECT (v) ON sec.t FROM alice');
reads('alice', $columns, 0, 'SELECT on a column revoked');
$stack->sql('GRANT SELECT (v) ON sec.t TO alice', 'REVOKE SELECT ON sec.root FROM alice', 'GRANT SELECT ON sec.leaf TO alice');
reads('alice', $root, 0, 'SELECT on the root revoked, though granted on a partition');
$stack->sql('GRANT SELECT ON sec.root TO alice', 'REVOKE SELECT ON sec.leaf FROM alice');
reads('alice', $root, 1, 'SELECT on the root alone');

# Policies, also with row_security = off, and for owners
$stack->sql('ALTER TABLE sec.t ENABLE ROW LEVEL SECURITY', 'CREATE POLICY one ON sec.t USING (id = 1)');
reads('alice', $columns, 0, 'row-level security enabled');
like(error_as('alice', 'SET row_security = off', "SELECT * FROM electric_cm_shape_log('$columns')"), qr/^(?:42501|0A000|42704)/, '... with row_security = off');
$stack->sql('ALTER ROLE alice BYPASSRLS');
$stack->sql('ALTER TABLE sec.t DISABLE ROW LEVEL SECURITY', 'DROP POLICY one ON sec.t');
my ($rc) = $node->psql($db, "SELECT * FROM electric_cm_shape_log('$columns')", extra_params => [ '-U', 'alice' ]);
my $bypass = $rc == 0 ? $columns : handle_as('alice', q{'sec.t', NULL, '{id,v}'});
$select{$bypass} = 'SELECT id, v FROM sec.t';
reads($_, $bypass, 1, 'no policies, BYPASSRLS') for qw(alice member);
$stack->sql('ALTER TABLE sec.t ENABLE ROW LEVEL SECURITY', 'CREATE POLICY one ON sec.t USING (id = 1)');
reads('alice', $bypass, 1, 'policies, BYPASSRLS');
reads('member', $bypass, 0, 'BYPASSRLS is not inherited');
$stack->sql('ALTER ROLE alice NOBYPASSRLS');
reads('alice', $bypass, 0, 'BYPASSRLS lost');

# What a shape's reader is told of the stack
$stack->sql('ALTER TABLE sec.t DISABLE ROW LEVEL SECURITY', q{ALTER SYSTEM SET electric_cm.connection = 'user=nobody_at_all'});
$node->reload;
$stack->becomes(q{SELECT electric_cm_status() = 'failed'}, 'the stack has failed');
my ($alices, $root_of_it) = map { ($node->psql($db, "SELECT * FROM electric_cm_await_shape_log('$root', '-1', '5 s'), pg_sleep(0); SELECT * FROM electric_cm_await_shape_log('$root', (SELECT max(log_offset) FROM electric_cm_shape_log('$root')), '5 s')",
	extra_params => [ '-U', $_ ]))[2] } 'alice', $node->connstr =~ /user=(\w+)/ ? $1 : $stack->sql('SELECT current_user');
like($alices, qr/has failed/, 'a reader is told that the stack has failed');
unlike($alices, qr/nobody_at_all/, '... and not why');
like($root_of_it, qr/nobody_at_all/, 'a superuser is told why');

$node->stop;
done_testing();
