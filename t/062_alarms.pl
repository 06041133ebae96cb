# What is wrong is shown by health and by the exporter's queries, also after a
# restart: too little free space, WAL that a stopped stack's slot retains, a slot
# that was lost.
use strict;
use warnings;

use CPAN::Meta::YAML;
use ElectricCM qw(new_stack);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
electric_cm.wal_report_interval = 1s
electric_cm.reconnect_initial_delay = 50ms
max_slot_wal_keep_size = 64MB
min_wal_size = 32MB
max_wal_size = 64MB
});
my $node = $stack->node;

sub health { return decode_json($stack->sql('SELECT electric_cm_health()')); }
sub problems { return join ' | ', map { "$_->{severity}: $_->{problem}" } @{ health()->{problems} }; }
sub set
{
	my ($name, $value) = @_;
	$stack->sql("ALTER SYSTEM SET $name = $value");
	$stack->sql('SELECT pg_reload_conf()');
	return;
}

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');

# Free space

my $slot = health()->{slot};
like($slot->{$_}, qr/^\d+$/, "health shows $_") for qw(wal_free_bytes data_free_bytes);
ok(exists $slot->{time_to_limit}, '... and time_to_limit');
set('electric_cm.min_wal_free_space', 2147483647);
$stack->seen(q{electric_cm_health() ->> 'severity' = 'warning'}, 'too little is free: no longer well');
like(problems(), qr/^warning: only \d+ \w+ are free under pg_wal$/, '... and that is why');
set('electric_cm.min_wal_free_space', 'DEFAULT');

# A stopped stack, after a restart

set('electric_cm.retained_wal_warning', q{'2MB'});
$stack->sql('SELECT electric_cm_stop()');
$node->restart;
$stack->write_wal(4);
$stack->seen(q{electric_cm_status() = 'stopped'});
$stack->seen(q{EXISTS (SELECT FROM jsonb_to_recordset(electric_cm_health() -> 'problems') AS p (severity text, problem text)
	WHERE severity = 'warning' AND problem ~ '^replication slot "electric_cm_postgres" retains \d+ MB of WAL')}, 'stopped, restarted: what the slot retains is a problem');

# Lost, and the server has been restarted: alarms see it

my $other = q{SELECT pg_create_logical_replication_slot('other', 'test_decoding')};
$stack->sql($other);
for (1 .. 3) { $stack->write_wal(40); $stack->sql('SELECT pg_switch_wal()'); $stack->sql('CHECKPOINT'); }
is($stack->sql(q{SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'}), 2, 'two slots are lost');
$node->restart;
$stack->seen(q{(SELECT wal_status = 'lost' AND retained_wal_bytes IS NULL FROM electric_cm_stat_replication)}, '... and after a restart nobody knows what they held');
my $queries = CPAN::Meta::YAML->read_string(slurp_file('monitoring/queries.yml'))->[0];
is($stack->sql("SELECT lost FROM ($queries->{electric_cm_replication}{query}) q"), 1, '... the exporter shows it all the same');
is($stack->sql("SELECT count(*) FROM ($queries->{electric_cm_wal}{query}) q"), 1, '... and what else is known');
is($stack->sql("SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM ($queries->{electric_cm_slot}{query}) q WHERE lost = 1"),
	'electric_cm_postgres other', '... and the one that is not ours');
$stack->sql(q{SELECT pg_drop_replication_slot('other')});
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'started: active');

$node->stop;
done_testing();
