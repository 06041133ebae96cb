# A commit that others can see already, but whose changes of the catalogs they
# have not been told of yet: what a session of the stack has in its caches is
# then older than the shapes that it sees.
use strict;
use warnings;

use lib 't/lib';
use ElectricCM qw(new_stack);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $dir = PostgreSQL::Test::Utils::tempdir;
my $held = "$dir/hold";

# Holds a backend in that moment for as long as there is a file
append_to_file("$dir/hold.c", <<"C");
#include "postgres.h"
#include <unistd.h>
#include "access/xact.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
extern PGDLLEXPORT void _PG_init(void);
static void hold(XactEvent event, void *arg)
{
	while (event == XACT_EVENT_COMMIT && access("$held", F_OK) == 0)
		pg_usleep(10000);
}
void _PG_init(void) { RegisterXactCallback(hold, NULL); }
C
chomp(my $include = `$ENV{PG_CONFIG} --includedir-server`);
system_or_bail('cc', '-shared', '-fPIC', '-w', "-I$include", '-o', "$dir/hold.so", "$dir/hold.c");

my $stack = new_stack('main');
my $node = $stack->node;
$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')});
$stack->active or BAIL_OUT('no stack');
my $before = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT FROM electric_cm_shape_log('$before')");

my $session = $node->background_psql($db, on_error_stop => 1);
$session->query_safe("LOAD '$dir/hold.so'");
append_to_file($held, '');
$session->query_safe('BEGIN; ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (id)');
my $handle = $session->query_safe(q{SELECT electric_cm_create_shape('t')});
$session->{stdin} .= "COMMIT;\n\\echo committed\n";
$session->{run}->pump_nb;
$stack->becomes("SELECT EXISTS (SELECT FROM _electric_cm.shape WHERE handle = '$handle')", 'the shape can be seen');
$stack->becomes(qq{SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 't'::regclass AND NOT granted)
	OR EXISTS (SELECT FROM _electric_cm.shape WHERE handle = '$handle' AND generation > 0)}, 'the stack has gone to work');
unlink $held or die "$held: $!";
$stack->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'", 'it is live');
is($stack->sql(q{SELECT count(*) FROM pg_publication_tables WHERE tablename = 't'}), 1, 'its table is published');
$stack->sql(q{INSERT INTO t VALUES (2, 'b'); UPDATE t SET v = 'c'});
$stack->sql('SELECT electric_cm_await_flushed()');
my ($ok, $entries) = $stack->replay_equals($handle, 't', ['id']);
ok($ok, "its log has what came afterwards ($entries entries)");

$session->quit;
$node->stop;
done_testing();
