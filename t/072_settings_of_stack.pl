# Settings that a session still has as they were when it began, or that somebody
# has set for it, do not decide what happens to shapes: what counts is what the
# stack goes by.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => "log_min_messages = warning\n");
my $node = $stack->node;

sub set_for_database
{
	my ($assignment) = @_;
	$stack->sql("ALTER DATABASE $db SET $assignment", 'SELECT pg_reload_conf()');
	my ($name, $value) = $assignment =~ /^(\S+) = '?([^']*)'?$/;
	$stack->becomes("SELECT setting = '$value' FROM electric_cm_options WHERE datname = '$db' AND name = '$name'");
	return $stack->active;
}
$stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY, v text)', q{INSERT INTO t VALUES (1, 'old')}, 'CREATE TABLE u (id int PRIMARY KEY, v text)');
$stack->active or BAIL_OUT('no stack');
my $before = $stack->live_shape('t');
my $reader = $stack->reader($before);
my $session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');

# the publication
$stack->sql($stack->publication_sql('pub2', 'FOR TABLE u'));
set_for_database(q{electric_cm.publication_name = 'pub2'});
$stack->resyncs($reader, q{detail = 'another publication is followed'}, 't', 'another publication');
my $t = $before;
is($stack->sql(q{SELECT count(*) FROM pg_publication_tables WHERE pubname = 'pub2' AND tablename = 't'}), 1, 'its tables are published by the new one');
$session->query('ALTER PUBLICATION electric_cm_publication DROP TABLE t');
is($stack->exists_shape($t), 1, 'an older session changes the former publication: nothing happens');
$session->query('DROP PUBLICATION electric_cm_publication');
is($stack->exists_shape($t), 1, '... drops it');
$session->query('ALTER PUBLICATION pub2 DROP TABLE t');
is($stack->exists_shape($t), 0, '... takes a table out of the one that is followed: its shape ends');
my $handle = $session->query(q{SELECT electric_cm_create_shape('t')});
$stack->is_live($handle, '... creates a shape');
is($stack->sql(q{SELECT count(*) FROM pg_publication_tables WHERE pubname = 'pub2' AND tablename = 't'}), 1, '... whose table the stack has published');
$session->query(q{SET electric_cm.publication_name = 'no_such'; ALTER PUBLICATION pub2 SET (publish = 'insert')});
is($stack->exists_shape($handle), 0, 'not even a superuser has another one followed by SET');
$stack->sql(q{ALTER PUBLICATION pub2 SET (publish = 'insert, update, delete, truncate')}, 'SELECT electric_cm_start()');
$stack->active;
$stack->sql('CREATE ROLE plain LOGIN');
my ($rc, $out, $err) = $node->psql($db, q{SET ROLE plain; SET electric_cm.publication_name = 'x'});
like($err, qr/permission denied to set parameter/, 'others may not even try');

# a stack that does not run: its shapes will go on with the slot
$handle = $stack->live_shape('t');
$stack->sql('SELECT electric_cm_stop()');
$node->restart;
$stack->becomes(q{SELECT electric_cm_status() = 'stopped'}, 'stopped, also after a restart');
$session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub3'");	# not followed yet
$session->query('ALTER PUBLICATION pub2 DROP TABLE u');
is($stack->exists_shape($handle), 1, 'another table leaves the publication that it followed: nothing happens');
$stack->sql('ALTER PUBLICATION pub2 DROP TABLE t');
is($stack->exists_shape($handle), 0, 'its own does: the shape ends');
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub2'", 'SELECT electric_cm_start()');
$stack->active;
$handle = $stack->live_shape('t');
$stack->sql(q{UPDATE t SET v = 'new'});
$stack->replays($handle, 't', 'and it goes on');

# what may be created
$session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');
$stack->sql('CREATE TABLE late (id int PRIMARY KEY, a int)', 'CREATE TABLE late2 (id int PRIMARY KEY, a int)');
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

ok($stack->active, 'and the stack is active');
$node->stop;
done_testing();
