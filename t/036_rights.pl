# Rights: who may create a shape, who may read it, and when not any more; what a
# where clause may not do; and what becomes of shapes when their owners go.
use strict;
use warnings;

use ElectricCM qw(new_stack wait_active replay_equals);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "log_min_messages = warning\n");
my $node = $stack->node;

sub run_as { my $role = shift; return $stack->sql("SET ROLE $role", @_); }

# The SQLSTATE that statements of a role end with.
sub state_as
{
	my $role = shift;
	my ($rc, $stdout, $stderr) =
	  $node->psql($db, "\\set VERBOSITY sqlstate\n" . join(";\n", "SET ROLE $role", @_));

	return $rc == 0 ? 'none' : $stderr =~ /ERROR:  (\w{5})/ ? $1 : $stderr;
}
sub handle_of { my ($role, $args) = @_; return run_as($role, "SELECT electric_cm_create_shape($args)"); }
sub log_of { my ($handle) = @_; return "SELECT count(*) FROM electric_cm_shape_log('$handle')"; }
sub owner_of { return $stack->sql("SELECT owner FROM electric_cm_shapes WHERE handle = '$_[0]'"); }

my $create = 'electric_cm_create_shape(regclass, text, text[], text[])';
$stack->sql(
	'CREATE EXTENSION electric_cm',
	'CREATE ROLE alice', 'CREATE ROLE bob', 'CREATE ROLE carol', 'CREATE ROLE member IN ROLE alice', 'CREATE ROLE nobody',
	"GRANT EXECUTE ON FUNCTION $create, electric_cm_drop_shape(text) TO alice, bob, carol",
	'CREATE SCHEMA app AUTHORIZATION alice',
	'CREATE TABLE app.t (id int PRIMARY KEY, a int, secret text)',
	'ALTER TABLE app.t REPLICA IDENTITY FULL',
	'ALTER TABLE app.t OWNER TO alice',
	q{INSERT INTO app.t SELECT i, i % 3, 'secret' || i FROM generate_series(1, 30) i},
	'GRANT USAGE ON SCHEMA app TO PUBLIC');
$stack->active or BAIL_OUT('no stack');

# creating
is(state_as('nobody', q{SELECT electric_cm_create_shape('app.t')}), '42501', 'creating needs EXECUTE');
is(state_as('bob', q{SELECT electric_cm_create_shape('app.t')}), '42501', '... and SELECT');
is(state_as('bob', q{SELECT electric_cm_create_shape('app.t', 'a = 1', '{id}')}), '42501', '... also with columns');
$stack->sql('GRANT SELECT ON app.t TO bob');
is(state_as('bob', q{SELECT electric_cm_create_shape('app.t')}), '42501', '... and ownership, as long as the table is not published');
my $alices = handle_of('alice', q{'app.t'});
is(run_as('alice', log_of($alices)), '30', 'the owner of the table may');
my $bobs = handle_of('bob', q{'app.t'});
is(run_as('bob', log_of($bobs)), '30', 'and others, now that it is published');

# sharing
isnt($alices, $bobs, 'another owner has another shape');
is(handle_of('bob', q{'app.t'}), $bobs, 'the same owner has the same');
is(handle_of('bob', q{'app.t', NULL, '{a,id}'}), handle_of('bob', q{'app.t', NULL, '{id,a}'}), '... whatever way the columns are named');
is(handle_of('alice', q{'app.t', 'a = 1 AND true'}), handle_of('alice', q{'app.t', '((a) =1) and TRUE'}), '... and the where clause is written');

# reading
is(state_as('bob', log_of($alices)), '42501', 'nobody else reads a shape, though he may read the table');
is(state_as('member', log_of($alices)), 'none', 'a member of the role does');
is(state_as('alice', log_of($bobs)), '42501', 'not even the owner of the table');
is(state_as('bob', "SELECT electric_cm_drop_shape('$alices')"), '42501', 'nobody else drops it');
$stack->sql('GRANT alice TO bob');
is(state_as('bob', log_of($alices)), 'none', 'whoever becomes a member reads it');
$stack->sql('REVOKE alice FROM bob');
is(state_as('bob', log_of($alices)), '42501', 'and not after that');
$stack->sql('REVOKE SELECT ON app.t FROM bob');
is(state_as('bob', log_of($bobs)), '42501', 'SELECT revoked: 42501 at the next read');
is($stack->sql("SELECT count(*) FROM electric_cm_events WHERE message LIKE 'shape $bobs%'"), '0', 'but the shape stays');
$stack->sql(q{INSERT INTO app.t VALUES (31, 1, 'x')}, 'SELECT electric_cm_await_flushed()', 'GRANT SELECT ON app.t TO bob');
is(run_as('bob', log_of($bobs)), '31', 'SELECT granted again: everything is there');
$stack->sql('REVOKE SELECT ON app.t FROM bob');

# rights on columns
$stack->sql('GRANT SELECT (id, a) ON app.t TO carol');
is(state_as('carol', q{SELECT electric_cm_create_shape('app.t')}), '42501', 'rights on some columns: not for the whole table');
is(state_as('carol', q{SELECT electric_cm_create_shape('app.t', columns => '{id,secret}')}), '42501', '... nor for another column');
is(state_as('carol', q{SELECT electric_cm_create_shape('app.t', $$secret LIKE 'secret1%'$$, '{id}')}), '42501',
	'... nor in a where clause');
my $carols = handle_of('carol', q{'app.t', 'a > 0', '{id,a}'});
is(run_as('carol', log_of($carols)), '21', '... but for those columns');
$stack->sql('REVOKE SELECT (a) ON app.t FROM carol');
is(state_as('carol', log_of($carols)), '42501', '... as long as they last');
$stack->sql('GRANT SELECT (a) ON app.t TO carol');
is(state_as('carol', log_of($carols)), 'none', '... or again');
$stack->sql('REVOKE SELECT (id, a) ON app.t FROM carol', 'GRANT SELECT (id) ON app.t TO carol');
my $id_only = handle_of('carol', q{'app.t', NULL, '{id}'});
is(run_as('carol', "SELECT DISTINCT value - 'id' FROM electric_cm_shape_log('$id_only')"), '{}', 'a shape shows no other column');
$stack->sql(q{UPDATE app.t SET secret = 'changed' WHERE id = 1}, 'DELETE FROM app.t WHERE id = 2', 'SELECT electric_cm_await_flushed()');
is(run_as('carol', "SELECT count(*) FROM electric_cm_shape_log('$id_only') WHERE coalesce(value, '{}') - 'id' <> '{}' OR coalesce(old_value, '{}') - 'id' <> '{}'"),
	'0', '... nor does an old row');
$stack->sql('REVOKE SELECT ON app.t FROM carol');

# row-level security, checked at each read, too: its owner loses BYPASSRLS
$stack->sql('CREATE ROLE dora BYPASSRLS', "GRANT EXECUTE ON FUNCTION $create TO dora", 'GRANT SELECT ON app.t TO dora',
	'ALTER TABLE app.t ENABLE ROW LEVEL SECURITY');
my $doras = handle_of('dora', q{'app.t'});
is(state_as('dora', log_of($doras)), 'none', 'row-level security does not apply to a role with BYPASSRLS');
$stack->sql('ALTER ROLE dora NOBYPASSRLS');
is(state_as('dora', log_of($doras)), '0A000', '... but does at the next read, once it has lost that');
is(state_as('dora', q{SELECT electric_cm_create_shape('app.t', 'a = 2')}), '0A000', '... and prevents another shape');
$stack->sql('ALTER TABLE app.t DISABLE ROW LEVEL SECURITY');
is(state_as('dora', log_of($doras)), 'none', '... until it is disabled');

# A where clause does nothing that its author has prepared.  Everything in
# search_path that could be taken for a built-in thing is not.
$stack->sql('CREATE TABLE witness (what text)', 'GRANT INSERT ON witness TO PUBLIC', 'CREATE SCHEMA trap AUTHORIZATION alice');
run_as('alice',
	q{CREATE FUNCTION trap.f(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
		$$BEGIN INSERT INTO public.witness VALUES ('f'); RETURN true; END$$},
	q{CREATE FUNCTION trap.abs(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
		$$BEGIN INSERT INTO public.witness VALUES ('abs'); RETURN 1; END$$},
	q{CREATE FUNCTION trap.eq(int, int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS
		$$BEGIN INSERT INTO public.witness VALUES ('eq'); RETURN true; END$$},
	'CREATE OPERATOR trap.= (leftarg = int, rightarg = int, procedure = trap.eq)',
	q{CREATE FUNCTION trap.check(text) RETURNS bool LANGUAGE plpgsql AS
		$$BEGIN INSERT INTO public.witness VALUES ('check'); RETURN true; END$$},
	'CREATE DOMAIN trap.d AS text CHECK (trap.check(VALUE))',
	'CREATE TYPE trap.c AS (x int)',
	'CREATE SEQUENCE trap.seq',
	q{CREATE FUNCTION trap.to_c(int) RETURNS trap.c LANGUAGE plpgsql IMMUTABLE AS
		$$BEGIN INSERT INTO public.witness VALUES ('cast'); RETURN ROW($1)::trap.c; END$$},
	'CREATE CAST (int AS trap.c) WITH FUNCTION trap.to_c(int) AS IMPLICIT',
	q{CREATE TEXT SEARCH CONFIGURATION trap.config (COPY = pg_catalog.simple)},
	q{CREATE COLLATION trap.coll FROM "C"},
	'CREATE TABLE trap.t (id int PRIMARY KEY, a int, b trap.d, c trap.c, s text)',
	'ALTER TABLE trap.t REPLICA IDENTITY FULL',
	q{INSERT INTO trap.t VALUES (1, 1, 'x', ROW(1)::trap.c, 'y')});
$stack->sql('DELETE FROM witness');
my $path = 'SET search_path = trap, pg_catalog, public';
for my $clause (
	'f(a)', 'abs(a) = 1', 'a = 1', 'a OPERATOR(trap.=) 1', q{b = 'x'}, q{s::trap.d = 'x'}, q{b::text = 'x'}, 'c = ROW(1)::trap.c',
	'a::trap.c = c', '(c).x = 1', q{to_tsvector('trap.config', s) @@ 'y'}, q{to_tsvector(a::oid::regconfig, s) @@ 'y'},
	's = \'y\' COLLATE trap.coll', q{s::regclass = 'pg_class'::regclass}, '(SELECT true)', q{pg_read_file('PG_VERSION') = s},
	q{lo_import('/etc/passwd') = 1}, q{set_config('role', 'postgres', false) = s}, q{nextval('trap.seq') = 1}, q{pg_sleep(1) IS NULL},
	q{query_to_xml('SELECT 1', true, true, '') IS NULL}, q{has_table_privilege('witness', 'SELECT')}, q{current_user = 'alice'})
{
	is(state_as('alice', $path, "SELECT electric_cm_create_shape('trap.t', \$c\$$clause\$c\$)"), '0A000', "refused: $clause");
}
is($stack->sql('SELECT count(*) FROM witness'), '0', 'and nothing was run');

# What is built in is so in each process, whatever search_path says where the
# clause was written.
my $trapped = run_as('alice', 'SET search_path = pg_catalog, trap, public', q{SELECT electric_cm_create_shape('trap.t', 'abs(a) = 1 AND length(s) = 1', '{id,a,s}')});
is(run_as('alice', log_of($trapped)), '1', 'a clause of built-in things is evaluated');
run_as('alice', q{UPDATE trap.t SET a = -a}, q{INSERT INTO trap.t VALUES (2, 2, 'x', NULL, 'z'), (3, -1, 'x', NULL, 'z')});
$stack->sql(q{DELETE FROM witness}, 'SELECT electric_cm_await_flushed()');
is(run_as('alice', "SELECT string_agg(operation || (coalesce(value, old_value)->>'id'), ' ') FROM electric_cm_shape_log('$trapped')"),
	'insert1 update1 insert3', '... by the consumer, too');
is($stack->sql('SELECT count(*) FROM witness'), '0', '... and nothing else is run');

# in the name of its owner: without the right to execute a function, it can't be
$stack->sql('CREATE ROLE eve', "GRANT EXECUTE ON FUNCTION $create TO eve", 'GRANT SELECT ON app.t TO eve');
$stack->sql('REVOKE EXECUTE ON FUNCTION pg_catalog.sqrt(float8) FROM PUBLIC', 'GRANT EXECUTE ON FUNCTION pg_catalog.sqrt(float8) TO alice, eve');
my $eves = handle_of('eve', q{'app.t', 'sqrt(a) > 1', '{id,a}'});
is(run_as('eve', log_of($eves)), '9', 'a shape that needs a right on a function');
$stack->sql('REVOKE EXECUTE ON FUNCTION pg_catalog.sqrt(float8) FROM eve');
$stack->sql('SELECT pg_terminate_backend(pid) FROM electric_cm_stat_consumers');	# or it remembers
$stack->becomes(q{SELECT status = 'active' FROM electric_cm_stat_manager});
$stack->sql(q{UPDATE app.t SET a = 2 WHERE id = 3}, 'SELECT electric_cm_await_flushed()');
$stack->becomes("SELECT state = 'errored' AND last_error LIKE 'permission denied%' FROM electric_cm_shapes WHERE handle = '$eves'",
	'is evaluated in the name of its owner');
is(state_as('eve', log_of($eves)), '55000', '... who is told so');
$stack->sql('REVOKE SELECT ON app.t FROM eve');
my ($rc, $stdout, $stderr) = $node->psql($db, "SET ROLE eve;" . log_of($eves));
unlike($stderr, qr/sqrt/, '... as long as he may read the table');

# ------------------------------------------------------------- owners that go

sub new_owner
{
	my ($role) = @_;

	$stack->sql("CREATE ROLE $role", "GRANT EXECUTE ON FUNCTION $create TO $role", "GRANT SELECT ON app.t TO $role");
	return;
}

# DROP OWNED
new_owner('frank');
my $franks = handle_of('frank', q{'app.t'});
$stack->sql('BEGIN', 'DROP OWNED BY frank', 'ROLLBACK');
is(run_as('frank', log_of($franks)), $stack->sql('SELECT count(*) FROM app.t') + 0, 'DROP OWNED, rolled back: nothing has happened');
is(state_as('bob', 'DROP OWNED BY frank'), '42501', q{another's DROP OWNED fails});
is($stack->exists_shape($franks), '1', '... and does nothing');
$stack->sql('DROP OWNED BY frank');
is($stack->exists_shape($franks), '0', 'DROP OWNED drops the shapes of the role');
$stack->sql('DROP ROLE frank');

# DROP ROLE; a right that PUBLIC has does not hold it up
$stack->sql('GRANT SELECT ON app.t TO PUBLIC', "GRANT EXECUTE ON FUNCTION $create TO PUBLIC", 'CREATE ROLE greg', 'CREATE ROLE hank');
my $gregs = handle_of('greg', q{'app.t', 'a = 1', '{id,a}'});
run_as('greg', log_of($gregs));
$stack->sql('BEGIN', 'DROP ROLE greg', 'ROLLBACK');
is($stack->exists_shape($gregs), '1', 'DROP ROLE, rolled back: nothing has happened');
$stack->sql('DROP ROLE greg');
is($stack->exists_shape($gregs), '0', 'DROP ROLE drops the shapes of the role');
$stack->becomes(q{SELECT count(*) > 0 FROM electric_cm_events WHERE message LIKE '%its owner was dropped'}, 'an event says why');

# ... against somebody who is creating one at that moment
my $creating = $node->background_psql($db);
$creating->query_safe('SET ROLE hank; BEGIN');
my $hanks = $creating->query_safe(q{SELECT electric_cm_create_shape('app.t')});
my $dropping = $node->background_psql($db);
$dropping->query_until(qr/dropping/, "\\echo dropping\nDROP ROLE hank;\n\\echo dropped\n");
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'DROP ROLE hank;' AND wait_event_type = 'Lock'},
	'DROP ROLE waits for a shape that is being declared');
$creating->query_safe('COMMIT');
$creating->quit;
$dropping->query_until(qr/dropped/, '');
$dropping->quit;
is($stack->exists_shape($hanks), '0', '... and drops it');

# ... while the stack itself has locked one, which it begins to create
$stack->sql('CREATE ROLE hugo');
my $holder = $node->background_psql($db);
$holder->query_safe('BEGIN; LOCK TABLE _electric_cm.shape_worker IN SHARE MODE');
my $hugos = handle_of('hugo', q{'app.t'});
$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%capture_shapes%' AND wait_event_type = 'Lock' AND application_name LIKE 'electric_cm pool%'},
	'the stack has locked a shape');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql('DROP ROLE hugo');
is($stack->exists_shape($hugos), '0', 'DROP ROLE ends it all the same');
is($stack->sql(q{SELECT (electric_cm_health() #>> '{shapes,total}')::int - (SELECT count(*) FROM electric_cm_shapes)}), '0', '... and health does not count it, either');
kill 'CONT', $consumer;
$holder->query_safe('COMMIT');
$holder->quit;
$stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape WHERE handle = '$hugos'", '... and its row goes after that lock');

# ... of a role with shapes in another database
$node->safe_psql($db, 'CREATE DATABASE other');
$node->safe_psql('other', join ';', 'CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, a int)', 'ALTER TABLE t REPLICA IDENTITY FULL', 'INSERT INTO t VALUES (1, 1)',
	'GRANT SELECT ON t TO PUBLIC', "GRANT EXECUTE ON FUNCTION $create TO PUBLIC", 'CREATE ROLE iris');
wait_active($node, 'other') or BAIL_OUT('no stack in the other database');
# published by then: somebody else may have a shape of it
my $admins = $stack->beside('other')->live_shape('t');
my $iriss = $node->safe_psql('other', q{SET ROLE iris; SELECT electric_cm_create_shape('t', 'abs(a) > 0')});
$node->safe_psql('other', "SET ROLE iris; " . log_of($iriss));
$stack->sql('DROP ROLE iris');
$node->safe_psql('other', 'INSERT INTO t VALUES (2, 2); UPDATE t SET a = 0 WHERE id = 1; SELECT electric_cm_await_flushed()');
is($node->safe_psql('other', "SELECT state, owner LIKE 'unknown%' FROM electric_cm_shapes WHERE handle = '$iriss'"), 'live|t',
	'a shape in another database outlives its owner for a while');
($rc, $stdout, $stderr) = $node->psql('other', "\\set VERBOSITY sqlstate\n" . log_of($iriss));
like($stderr, qr/42704/, '... and can not be read');
is($node->safe_psql('other', log_of($admins)), '3', '... nor does it harm others');
$node->safe_psql('other', q{SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = 'other'});
ok(ElectricCM::poll($node, 'other', "SELECT count(*) = 0 FROM _electric_cm.shape WHERE handle = '$iriss'"), '... and is removed when the next stream starts');
ok(wait_active($node, 'other'), '... and the stack is active');
my ($ok, $entries) = replay_equals($node, 'other', $admins, 't', ['id']);
ok($ok, "... and the others go on ($entries entries)");

# REASSIGN OWNED
$stack->sql('REVOKE SELECT ON app.t FROM PUBLIC', 'REVOKE SELECT ON app.t FROM bob, dora');
new_owner($_) for qw(jack kate);
$stack->sql('CREATE ROLE lars');
my $moved = handle_of('jack', q{'app.t', 'a = 1'});
my $doubled = handle_of('jack', q{'app.t', 'a = 2'});
my $kates = handle_of('kate', q{'app.t', 'a = 2'});
run_as('jack', log_of($moved), log_of($doubled));
$stack->sql('BEGIN', 'REASSIGN OWNED BY jack TO kate', 'ROLLBACK');
is(owner_of($moved), 'jack', 'REASSIGN OWNED, rolled back: nothing has happened');
is(state_as('jack', 'REASSIGN OWNED BY jack TO kate'), '42501', 'one that is not allowed');
is(owner_of($moved), 'jack', '... does nothing');
$stack->sql('REASSIGN OWNED BY jack TO kate');
is(owner_of($moved), 'kate', 'REASSIGN OWNED: the shape has another owner');
is($stack->exists_shape($doubled), '0', '... unless that has the same already');
is($stack->exists_shape($kates), '1', '... which stays');
is(state_as('jack', log_of($moved)), '42501', 'the former owner does not read it any more');
$stack->sql('DROP OWNED BY jack', 'DROP ROLE jack');
$stack->sql(q{UPDATE app.t SET a = 1 WHERE id > 20}, 'SELECT electric_cm_await_flushed()');
is(run_as('kate', "SELECT sum(CASE operation WHEN 'insert' THEN 1 WHEN 'delete' THEN -1 ELSE 0 END) FROM electric_cm_shape_log('$moved')"),
	$stack->sql('SELECT count(*) FROM app.t WHERE a = 1'), 'it goes on, with its log');
$stack->sql('REASSIGN OWNED BY kate TO lars');
is($stack->exists_shape($moved), '0', 'a new owner without rights on the table gets none');
$stack->becomes(q{SELECT count(*) > 0 FROM electric_cm_events WHERE message LIKE '%new owner may not read the table'}, 'an event says why');
ok($stack->active, 'and the stack is active');

$node->stop;
done_testing();
