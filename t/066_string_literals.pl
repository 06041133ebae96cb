# A server that reads string literals as of old: nothing of ours complains.
use strict;
use warnings;

use ElectricCM qw(new_stack server_major);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', start => 0);
my $node = $stack->node;

plan skip_all => 'from PostgreSQL 19 on, no server reads them so' if server_major($node) >= 19;
$node->start;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');

$stack->sql('ALTER SYSTEM SET standard_conforming_strings = off');
$stack->sql('SELECT pg_reload_conf()');
my $offset = -s $node->logfile;
$stack->sql('SELECT electric_cm_restart()');
ok($stack->active, 'standard_conforming_strings = off: active');
my ($rc, $out, $err) = $node->psql($stack->db, 'SELECT count(*) > 0 FROM electric_cm_check()');
is("$out $err", 't ', '... electric_cm_check() does not complain');
unlike(slurp_file($node->logfile, $offset), qr/nonstandard use/, '... nor does the stack');

$node->stop;
done_testing();
