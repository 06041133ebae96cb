# monitoring/: what the exporter asks can be answered, and what rules and
# dashboard show is asked for.  (make monitoring-check is about the rest.)
use strict;
use warnings;

use CPAN::Meta::YAML;
use ElectricCM qw(new_node wait_active);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $db = 'postgres';

sub watch
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql($db, "SET ROLE watcher;\n$sql", extra_params => ['--pset=footer=off'], on_error_stop => 1);
	return ($rc, $out, $err);
}

$node->safe_psql($db, 'CREATE EXTENSION electric_cm; CREATE ROLE watcher IN ROLE pg_monitor; CREATE TABLE t (id int PRIMARY KEY)');
ok(wait_active($node, $db), 'active');
my $handle = $node->safe_psql($db, q{SELECT electric_cm_create_shape('t')});
$node->safe_psql($db, "SELECT count(*) FROM electric_cm_shape_log('$handle')");
$node->safe_psql($db, "SELECT electric_cm_create_reader('r', ARRAY['$handle'])");
$node->safe_psql($db, 'SELECT electric_cm_report_retained_wal_size()');

my $queries = CPAN::Meta::YAML->read_string(slurp_file('monitoring/queries.yml'))->[0];
my %metrics;

for my $name (sort keys %$queries)
{
	my (@declared, @values);

	for my $metric (@{ $queries->{$name}{metrics} })
	{
		my ($column, $about) = %$metric;

		push @declared, $column;
		next if $about->{usage} eq 'LABEL';
		like($about->{usage}, qr/^(?:GAUGE|COUNTER)$/, "${name}_$column has a type");
		is($about->{usage} eq 'COUNTER', scalar($column =~ /_total$/), '... and a name that fits it');
		push @values, $column;
		$metrics{"${name}_$column"} = 1;
	}

	my $sql = $queries->{$name}{query};
	my ($rc, $out, $err) = watch("SELECT string_agg(k, ' ' ORDER BY n), count(DISTINCT r) > 0 FROM (SELECT r FROM ($sql) r LIMIT 1) q, LATERAL json_object_keys(to_json(r)) WITH ORDINALITY AS o (k, n)");
	is($err, '', "pg_monitor may run the query of $name");
	my ($columns, $rows) = split /\|/, $out;
	is($columns, join(' ', @declared), '... and it has the columns declared');

	# NULL would be exported as NaN
	($rc, $out, $err) = watch("SELECT count(*) FROM ($sql) r WHERE " . join(' OR ', map { "$_ IS NULL OR ${_}::float8 = 'NaN'" } @values));
	is($out, 0, '... with values');
}

my $rules = CPAN::Meta::YAML->read_string(slurp_file('monitoring/rules.yml'))->[0];
my $dashboard = decode_json(slurp_file('monitoring/dashboard.json'));
my @expressions = map { $_->{expr} } @{ $rules->{groups}[0]{rules} };
cmp_ok(scalar @expressions, '>', 10, 'there are rules');
for my $panel (@{ $dashboard->{panels} })
{
	push @expressions, map { $_->{expr} } @{ $panel->{targets} };
}
my %used;
$used{$_}++ for map { /\b(electric_cm_\w+)/g } @expressions;
is_deeply([ grep { !$metrics{$_} } sort keys %used ], [], 'rules and dashboard use only metrics that are there');

done_testing();
