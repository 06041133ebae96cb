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

# what a stream without them would miss
sub changes
{
	my ($n) = $stack->sql('SELECT max(id) FROM t');
	return ("INSERT INTO t SELECT $n + i, 'new' FROM generate_series(1, 5) i", "UPDATE t SET v = v || '.' WHERE id < $n", "DELETE FROM t WHERE id = $n");
}

# the publication
$stack->sql($stack->publication_sql('pub2', 'FOR TABLE u'));
set_for_database(q{electric_cm.publication_name = 'pub2'});
$stack->resyncs($reader, q{detail = 'another publication is followed'}, 't', 'another publication');
my $handle = $before;
is($stack->sql(q{SELECT count(*) FROM pg_publication_tables WHERE pubname = 'pub2' AND tablename = 't'}), 1, 'its tables are published by the new one');
$session->query($_) for 'ALTER PUBLICATION electric_cm_publication DROP TABLE t', changes();
$stack->goes_on($reader, 't', 'an older session changes the former publication');
$session->query($_) for 'DROP PUBLICATION electric_cm_publication', changes();
$stack->goes_on($reader, 't', '... drops it');
is($stack->events('shape_resynced'), 1, '... which nothing happens for');
$session->query(join '; ', 'BEGIN', 'ALTER PUBLICATION pub2 DROP TABLE t', changes(), 'COMMIT');
$stack->resyncs($reader, q{detail = 'the table has left the publication'}, 't', '... takes a table out of the one that is followed', command => 1);
is($stack->sql(q{SELECT count(*) FROM pg_publication_tables WHERE pubname = 'pub2' AND tablename = 't'}), 1, '... and the stack has published it again');
$session->query($_) for q{SET electric_cm.publication_name = 'no_such'}, q{ALTER PUBLICATION pub2 SET (publish = 'insert')}, changes();
$stack->becomes(q{SELECT electric_cm_status() = 'failed'});
$stack->sql(changes());
$stack->sql(q{ALTER PUBLICATION pub2 SET (publish = 'insert, update, delete, truncate')}, 'SELECT electric_cm_start()');
$stack->active;
$stack->resyncs($reader, q{detail = 'the publication does not publish everything any more'}, 't', 'not even a superuser has another one followed by SET', command => 1);
$stack->sql('CREATE ROLE plain LOGIN');
my ($rc, $out, $err) = $node->psql($db, q{SET ROLE plain; SET electric_cm.publication_name = 'x'});
like($err, qr/permission denied to set parameter/, 'others may not even try');

# a stack that does not run: its shapes will go on with the slot
$stack->sql('SELECT electric_cm_stop()');
$node->restart;
$stack->becomes(q{SELECT electric_cm_status() = 'stopped'}, 'stopped, also after a restart');
$session = $node->background_psql($db, on_error_stop => 0);
$session->query('SELECT 1');
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub3'");	# not followed yet
$session->query($_) for 'ALTER PUBLICATION pub2 DROP TABLE u', changes();
is($stack->sql('SELECT count(*) FROM _electric_cm.shape_gap WHERE closed_at IS NULL'), 0, 'another table leaves the publication that it followed: nothing is ordered');
$session->quit;
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub2'", 'SELECT electric_cm_start()');
$stack->active;
$stack->goes_on($reader, 't', '... the shape goes on');
$stack->sql('SELECT electric_cm_stop()', "ALTER DATABASE $db SET electric_cm.publication_name = 'pub3'");
$stack->sql('ALTER PUBLICATION pub2 DROP TABLE t');
$stack->sql(changes());
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'pub2'", 'SELECT electric_cm_start()');
$stack->active;
$stack->resyncs($reader, q{detail = 'the table has left the publication'}, 't', 'its own does', command => 1);
$stack->sql(changes());
$stack->goes_on($reader, 't', 'and it goes on');

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
