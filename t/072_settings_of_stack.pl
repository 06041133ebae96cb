# Settings that a session still has as they were when it began, or that somebody
# has set for it, do not decide what happens to shapes: what counts is what the
# stack goes by.
use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use ElectricCM qw(new_node wait_active becomes replay_equals);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $node = new_node('main', conf => "log_min_messages = warning\n");

sub run_sql { return $node->safe_psql($db, join(";\n", @_)); }
sub exists_shape { return run_sql("SELECT count(*) FROM _electric_cm.shape WHERE handle = '$_[0]'"); }
sub is_live { return becomes($node, $db, "SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$_[0]'", $_[1]); }
sub live_shape { my $handle = run_sql("SELECT electric_cm_create_shape('$_[0]')"); is_live($handle); return $handle; }
sub set_for_database
{
	my ($assignment) = @_;
	run_sql("ALTER DATABASE $db SET $assignment", 'SELECT pg_reload_conf()');
	my ($name, $value) = $assignment =~ /^(\S+) = '?([^']*)'?$/;
	becomes($node, $db, "SELECT setting = '$value' FROM electric_cm_options WHERE datname = '$db' AND name = '$name'");
	return wait_active($node, $db);
}
sub replays
{
	my ($handle, $table, $what) = @_;
	if (!exists_shape($handle)) { fail("$what (the shape is gone)"); return; }
	run_sql('SELECT electric_cm_await_flushed()');
	my ($ok, $entries) = replay_equals($node, $db, $handle, $table, ['id']);
	ok($ok, "$what ($entries entries)");
	return;
}

run_sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, v text)', q{INSERT INTO t VALUES (1, 'old')}, 'CREATE TABLE u (id int PRIMARY KEY, v text)');
wait_active($node, $db) or BAIL_OUT('no stack');
my $before = live_shape('t');
my $session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');

# the publication
run_sql('CREATE PUBLICATION pub2 FOR TABLE u');
set_for_database(q{electric_cm.publication_name = 'pub2'});
becomes($node, $db, "SELECT count(*) = 0 FROM electric_cm_shapes WHERE handle = '$before'", 'another publication: what was made by the former one ends');
becomes($node, $db, q{SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'shapes_invalidated' AND detail = 'another publication is followed'}, '... and an event says why');
my $t = live_shape('t');
is(run_sql(q{SELECT count(*) FROM pg_publication_tables WHERE pubname = 'pub2' AND tablename = 't'}), 1, 'its tables are published by the new one');
$session->query('ALTER PUBLICATION electric_cm_publication DROP TABLE t');
is(exists_shape($t), 1, 'an older session changes the former publication: nothing happens');
$session->query('DROP PUBLICATION electric_cm_publication');
is(exists_shape($t), 1, '... drops it');
$session->query('ALTER PUBLICATION pub2 DROP TABLE t');
is(exists_shape($t), 0, '... takes a table out of the one that is followed: its shape ends');
my $handle = $session->query(q{SELECT electric_cm_create_shape('t')});
is_live($handle, '... creates a shape');
is(run_sql(q{SELECT count(*) FROM pg_publication_tables WHERE pubname = 'pub2' AND tablename = 't'}), 1, '... whose table the stack has published');
$session->query(q{SET electric_cm.publication_name = 'no_such'; ALTER PUBLICATION pub2 SET (publish = 'insert')});
is(exists_shape($handle), 0, 'not even a superuser has another one followed by SET');
run_sql(q{ALTER PUBLICATION pub2 SET (publish = 'insert, update, delete, truncate')}, 'SELECT electric_cm_start()');
wait_active($node, $db);
run_sql('CREATE ROLE plain LOGIN');
my ($rc, $out, $err) = $node->psql($db, q{SET ROLE plain; SET electric_cm.publication_name = 'x'});
like($err, qr/permission denied to set parameter/, 'others may not even try');

# a stack that does not run: its shapes will go on with the slot
$handle = live_shape('t');
run_sql('SELECT electric_cm_stop()');
$node->restart;
becomes($node, $db, q{SELECT electric_cm_status() = 'stopped'}, 'stopped, also after a restart');
$session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');
run_sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub3'");	# not followed yet
$session->query('ALTER PUBLICATION pub2 DROP TABLE u');
is(exists_shape($handle), 1, 'another table leaves the publication that it followed: nothing happens');
run_sql('ALTER PUBLICATION pub2 DROP TABLE t');
is(exists_shape($handle), 0, 'its own does: the shape ends');
run_sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub2'", 'SELECT electric_cm_start()');
wait_active($node, $db);
$handle = live_shape('t');
run_sql(q{UPDATE t SET v = 'new'});
replays($handle, 't', 'and it goes on');

# what may be created
$session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');
run_sql('CREATE TABLE late (id int PRIMARY KEY, a int)', 'CREATE TABLE late2 (id int PRIMARY KEY, a int)');
sub error_of { my ($sql) = @_; $session->query($sql); my $text = $session->{stderr}; $session->{stderr} = ''; return $text; }
set_for_database(q{electric_cm.manual_table_publishing = on});
like(error_of(q{SELECT electric_cm_create_shape('late')}), qr/is not in publication "pub2"/, 'an older session heeds electric_cm.manual_table_publishing');
set_for_database(q{electric_cm.manual_table_publishing = off});
like(error_of(q{SELECT electric_cm_create_shape('late', 'a > 1')}), qr/needs replica identity FULL/, 'a replica identity is needed');
set_for_database(q{electric_cm.set_replica_identity = on});
is(error_of(q{SELECT electric_cm_create_shape('late', 'a > 1')}), '', '... and set, which an older session knows');
set_for_database(q{electric_cm.max_shapes = 2});
like(error_of(q{SELECT electric_cm_create_shape('late2')}), qr/there are already 2 shapes/, '... and electric_cm.max_shapes');
is(error_of(q{SET electric_cm.max_shapes = 10; SELECT electric_cm_create_shape('late2')}), '', 'a superuser may set another value for his session');
$session->quit;

ok(wait_active($node, $db), 'and the stack is active');
$node->stop;
done_testing();
