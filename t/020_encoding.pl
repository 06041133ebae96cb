# A database's name in another encoding: the views of the whole server show it
# all the same.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.wal_report_interval = 1s\n");
my $node = $stack->node;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');

my $latin = "caf\xe9";
$node->safe_psql('template1', q{CREATE DATABASE plain ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0});
$node->safe_psql('plain', "SET client_encoding = 'SQL_ASCII'; CREATE DATABASE \"$latin\" ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
$node->safe_psql($latin, 'CREATE EXTENSION electric_cm');
$stack->seen(q{EXISTS (SELECT FROM electric_cm_slots WHERE datname = 'caf?' AND ours)}, 'a database with a name in another encoding: electric_cm_slots shows it');
$stack->seen(q{EXISTS (SELECT FROM electric_cm_retained_wal_history WHERE datname = 'caf?')}, '... and electric_cm_retained_wal_history');
$node->safe_psql($latin, 'SELECT electric_cm_stop(drop_slot => true)');

$node->stop;
done_testing();
