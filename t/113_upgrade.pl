# pg_upgrade from one version to another one (make check-upgrade): shapes go on in the
# new cluster where pg_upgrade takes the slot along, which it does from 17 on, and the
# stack was stopped in good order; else they are resynced.  Handles and offsets stay.
use strict;
use warnings;

use Cwd qw(getcwd);
use File::Basename qw(dirname);
use Time::HiRes qw(time);

use ElectricCM qw(new_node server_major);
use ElectricCM::Kinds qw(make_kinds start_changes stop_changes);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $old_config = $ENV{ECM_OLD_PG_CONFIG}
  or plan skip_all => 'there is one server only; make check-upgrade has two';
my $old_path = dirname(dirname($old_config));
my $dir = PostgreSQL::Test::Utils::tempdir;

my $settings = q{
wal_level = logical
autovacuum = off
max_replication_slots = 10
electric_cm.reconnect_initial_delay = 50ms
};

sub old_node
{
	my ($name) = @_;
	local $ENV{TEMP_CONFIG} = $ENV{ECM_OLD_TEMP_CONFIG};
	my $node = PostgreSQL::Test::Cluster->new($name, install_path => $old_path);
	$node->init(allows_streaming => 'logical');

	# what the newer Cluster.pm has set and the older server does not know
	my $conf = slurp_file($node->data_dir . '/postgresql.conf');
	$conf =~ s/^autovacuum_worker_slots\b.*\n//mg if $node->pg_version < 18;
	unlink $node->data_dir . '/postgresql.conf';
	append_to_file($node->data_dir . '/postgresql.conf', $conf);
	$node->append_conf('postgresql.conf',
		"max_connections = 50\nmax_worker_processes = 16\nshared_preload_libraries = 'electric_cm'\n$settings");
	$node->start;
	return $node;
}

# 18 and later have checksums unless told otherwise
sub new_cluster
{
	my ($name, $old) = @_;
	my @extra = server_major_of_new() >= 18 && $old->pg_version < 18 ? ('--no-data-checksums') : ();
	return new_node($name, start => 0, conf => $settings, init => { extra => \@extra });
}

sub server_major_of_new
{
	my ($stdout) = run_command([ 'pg_config', '--version' ]);
	return $stdout =~ /(\d+)/ ? $1 : die "pg_config says $stdout";
}

# Returns how long it has taken.
sub upgrade
{
	my ($old, $new, $what) = @_;
	my $cwd = getcwd;
	my $text = '';
	my $began = time;
	my $sockets = PostgreSQL::Test::Utils::tempdir_short;
	chdir $dir or die "could not change to $dir: $!";
	my $ok = IPC::Run::run(
		[   'pg_upgrade', '-b', "$old_path/bin", '-B', $new->config_data('--bindir'), '-d', $old->data_dir, '-D', $new->data_dir,
			'-s', $sockets, '-p', $old->port, '-P', $new->port ],
		'>', \$text, '2>&1');
	chdir $cwd or die "could not change to $cwd: $!";
	ok($ok, "$what: pg_upgrade") or diag($text);
	if (!$ok)
	{
		diag(slurp_file($_)) for glob($new->data_dir . '/pg_upgrade_output.d/*/log/*');
		die 'without it there is nothing to test';
	}
	return time - $began;
}

# What a fresh extension's tables are like, in an order of their names.
sub properties
{
	my ($stack) = @_;
	return $stack->sql(q{SET search_path = pg_catalog;
SELECT c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relreplident, c.relacl, c.relrewrite = c.oid,
	c.relispartition, pg_get_userbyid(c.relowner) = current_user,
	(SELECT string_agg(o, ',' ORDER BY o) FROM unnest(c.reloptions) o),
	(SELECT string_agg(concat_ws(' ', a.attname, a.atttypid::regtype, a.attnotnull, a.attstorage, nullif(coalesce(a.attstattarget, -1), -1), a.attidentity, a.atthasdef), ', ' ORDER BY a.attnum)
		FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
	FROM pg_class c WHERE c.relnamespace = '_electric_cm'::regnamespace AND c.relkind IN ('r', 'i', 'S') ORDER BY 1;
SELECT p.oid::regprocedure, p.prokind, p.provolatile, p.proparallel, p.proisstrict, p.prosrc, p.probin, p.prorows,
	(SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(p.proacl) a), p.proconfig
	FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
		JOIN pg_extension e ON d.refobjid = e.oid AND e.extname = 'electric_cm'
	ORDER BY p.oid::regprocedure::text;
SELECT c.oid::regclass, c.reloptions, (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(c.relacl) a), pg_get_viewdef(c.oid)
	FROM pg_class c WHERE c.relname LIKE 'electric_cm%' AND c.relkind = 'v' ORDER BY c.relname;
SELECT d.classid::regclass, d.deptype, count(*) FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid AND e.extname = 'electric_cm'
	WHERE d.deptype = 'e' GROUP BY 1, 2 ORDER BY 1, 2;
SELECT count(*) FROM pg_init_privs i WHERE i.objoid IN (SELECT d.objid FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid WHERE e.extname = 'electric_cm')});
}

my %shapes = (
	number => {}, word => {}, many => { keys => [ 'c', 'a', 'b' ] }, enumerated => { keys => [ 'id', 'at' ] },
	wholly => {}, parted => {});

# The minor releases of November 2026 write this option into columns, which older ones of
# another version refuse: not what is tested here.
sub strip_options
{
	my ($stack) = @_;
	$stack->sql(q{UPDATE pg_attribute SET attoptions = (SELECT array_agg(o) FROM unnest(attoptions) o WHERE o NOT LIKE 'pg_attver=%')
		WHERE EXISTS (SELECT FROM unnest(attoptions) o WHERE o LIKE 'pg_attver=%')});
	$stack->settle;
	return;
}

my $keeps;

# A stack with shapes of all kinds, changes, and readers.
sub begin
{
	my ($name) = @_;
	my $old = ElectricCM::Stack->new(old_node($name));
	make_kinds($old);
	ok($old->active, "$name: active");
	# a collation that initdb gives an OID which another version need not give it
	$old->sql(q{CREATE TABLE collated (id text COLLATE "und-x-icu" PRIMARY KEY, n int DEFAULT 0)},
		q{INSERT INTO collated SELECT 'row ' || i FROM generate_series(1, 100) i});
	my %s = (old => $old);
	for my $table (sort keys %shapes)
	{
		$s{$table} = $old->live_shape($table);
	}
	$s{where} = $old->live_shape('wholly', where => 'n > 2');
	$s{collated} = $old->live_shape('collated', where => q{id > ''row 5''}, columns => [ 'id', 'n' ]);
	$s{bad} = $old->live_shape('wholly', where => '1000 / (n - 100000) < 5');
	my $load = start_changes($old);
	$old->becomes("SELECT count(*) > 300 FROM electric_cm_shape_log('$s{number}')", "$name: changes");
	stop_changes($old, $load);
	$old->sql('INSERT INTO wholly (id, n) VALUES (md5($$bad$$)::uuid, 100000)');
	$old->becomes("SELECT state = 'errored' FROM electric_cm_shapes WHERE handle = '$s{bad}'", "$name: an errored shape");
	$old->sql('DELETE FROM wholly WHERE n = 100000');
	$old->settle;
	$old->fold($s{many}, 0);
	$s{readers}{$_} = $old->reader($s{$_}) for sort keys %shapes;
	$s{readers}{where} = $old->reader($s{where});
	$s{readers}{collated} = $old->reader($s{collated});
	$s{offset} = $old->last_offset($s{number});
	$old->sql('UPDATE number SET n = n + 1', 'UPDATE wholly SET n = n + 1', 'UPDATE many SET n = n + 1', 'UPDATE collated SET n = n + 1');
	$old->settle;
	return \%s;
}

sub check
{
	my ($s, $new, $what) = @_;
	$new->sql('UPDATE number SET n = n + 1', 'DELETE FROM number WHERE id < 20', 'INSERT INTO parted (id) VALUES (1001)',
		'UPDATE wholly SET big = big() WHERE n > 1', 'UPDATE many SET n = n + 1', 'UPDATE word SET n = n + 1', 'UPDATE collated SET n = n + 1',
		"UPDATE enumerated SET n = n + 1");
	$new->settle;
	$new->goes_on($s->{readers}{$_}, $_, "$what: $_", %{ $shapes{$_} }) for sort keys %shapes;
	$new->goes_on($s->{readers}{where}, 'wholly', "$what: where clause", where => 'n > 2');
	$new->goes_on($s->{readers}{collated}, 'collated', "$what: where clause with a collation", where => 'id > $$row 5$$', columns => [ 'id', 'n' ]);
	is($new->state_of($s->{bad}), 'errored', "$what: an errored shape is as it was");
	is($new->sql("SELECT count(*) FROM electric_cm_shape_log('$s->{number}', '$s->{offset}') WHERE log_offset::text IS NULL"), 0, "$what: offsets");
	is( $new->sql("SELECT bool_and(lsn > before) FROM (SELECT split_part(log_offset::text, '_', 1)::numeric AS lsn,
		lag(split_part(log_offset::text, '_', 1)::numeric, 1, 0::numeric) OVER (ORDER BY n) - 1 AS before
		FROM (SELECT log_offset, row_number() OVER () AS n FROM electric_cm_shape_log('$s->{number}')) l) o"),
		't', "$what: offsets go on increasing");
	return;
}

my $old_major;

#
# Prepared
#
my $s = begin('prepared');
my $old = $s->{old};
$old_major = $old->node->pg_version->major;
$keeps = $old_major >= 17;
my $handle = $s->{number};
$old->sql('CREATE TABLE dropped (id int PRIMARY KEY)');
my $dropped = $old->live_shape('dropped');
strip_options($old);
$old->sql('SELECT electric_cm_prepare_upgrade()');
$old->node->stop;
my $node = new_cluster('prepared_new', $old->node);
upgrade($old->node, $node, 'prepared');
$node->start;
my $new = ElectricCM::Stack->new($node);
ok($new->active, 'prepared: active, by itself');
my $resyncs = q{SELECT count(*) FROM electric_cm_events WHERE event = 'shapes_resyncing'};
is($new->sql($resyncs), $keeps ? 0 : 1, 'prepared: ' . ($keeps ? 'no shape has a gap' : 'shapes are resynced'));
check($s, $new, 'prepared');
is($new->sql('SELECT count(*) FROM _electric_cm.shape_gap'), 0, 'prepared: nor has any been compared') if $keeps;
is($new->sql('SELECT count(*) FROM _electric_cm.epoch'), 1, 'prepared: an epoch begins') if $keeps;
is($new->sql('SELECT stopped_for_upgrade OR stopped OR clean_stop_lsn IS NOT NULL FROM _electric_cm.stack'), 'f', 'prepared: the row says that it runs');
is($new->sql(q{SELECT count(*) FROM _electric_cm.published_table t WHERE member <> 0
	AND NOT EXISTS (SELECT FROM pg_publication_rel r WHERE r.oid = t.member AND r.prpubid = t.publication)}), 0, 'prepared: members of the publication');
is($new->sql(q{SELECT count(*) > 0 FROM _electric_cm.published_table WHERE member <> 0}), 't', 'prepared: ... are known');
my $beside = $new->beside('fresh');
$new->sql('CREATE DATABASE fresh');
$beside->sql('CREATE EXTENSION electric_cm');
is(properties($new), properties($beside), 'prepared: tables, functions and views are like those of a fresh extension');
$beside->sql('DROP EXTENSION electric_cm');
$new->sql('DROP TABLE dropped');
is($new->exists_shape($dropped), 0, 'prepared: a table that is dropped takes its shape along');
$new->sql('ALTER TABLE number ADD COLUMN late int DEFAULT 7');
$new->goes_on($s->{readers}{number}, 'number', 'prepared: a column is added');
is($new->sql(q{SELECT electric_cm_create_shape('wholly', 'n > 2')}), $s->{where}, 'prepared: the same shape has the same handle');
is($new->sql(q{SELECT electric_cm_create_shape('collated', 'id > ''row 5''', '{id,n}')}), $s->{collated}, 'prepared: ... also with a collation');
$new->replays($new->live_shape('many', columns => [ 'c', 'a', 'b', 'n' ]), 'many', 'prepared: a new shape', keys => [ 'c', 'a', 'b' ], columns => [ 'c', 'a', 'b', 'n' ]);
$node->restart;
ok($new->active, 'prepared: active after a restart');
is($new->sql($resyncs), $keeps ? 0 : 1, 'prepared: ... nothing new');
is($new->sql('SELECT electric_cm_stop(drop_slot => true); SELECT count(*) FROM pg_replication_slots'), "\n0", 'prepared: the slot is the stack\'s own');
$node->stop;

#
# The slot has consumed nothing of what was written in the new cluster before the
# stack came; but somebody else has.
#
if ($keeps)
{
	$s = begin('consumed');
	strip_options($s->{old});
	$s->{old}->sql('SELECT electric_cm_prepare_upgrade()');
	$s->{old}->node->stop;
	$node = new_cluster('consumed_new', $s->{old}->node);
	upgrade($s->{old}->node, $node, 'consumed');
	$node->append_conf('postgresql.conf', 'electric_cm.enabled = off');
	$node->start;
	$new = ElectricCM::Stack->new($node);
	$new->sql('UPDATE number SET n = n + 1');
	$new->sql('SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots');
	$node->append_conf('postgresql.conf', 'electric_cm.enabled = on');
	$node->restart;
	ok($new->active, 'consumed: active');
	is($new->sql($resyncs), 1, 'consumed: a slot that somebody has moved in the new cluster is none to go on with');
	check($s, $new, 'consumed');
	$node->stop;
}

#
# Not prepared: the slot is dropped, or pg_upgrade would refuse
#
$s = begin('unprepared');
strip_options($s->{old});
$s->{old}->sql('SELECT electric_cm_stop(drop_slot => true)');
$s->{old}->sql('UPDATE number SET n = n + 1');
$s->{old}->node->stop;
$node = new_cluster('unprepared_new', $s->{old}->node);
upgrade($s->{old}->node, $node, 'unprepared');
$node->start;
$new = ElectricCM::Stack->new($node);
$new->sql('SELECT electric_cm_start()');
ok($new->active, 'unprepared: active');
is($new->sql($resyncs), 1, 'unprepared: shapes are resynced');
check($s, $new, 'unprepared');
$node->stop;

#
# How long it takes
#
if (my $n = $ENV{SHAPES})
{
	my $stack = ElectricCM::Stack->new(old_node('large'));
	$stack->sql('CREATE EXTENSION electric_cm');
	ok($stack->active, 'large: active');
	$stack->sql('CREATE TABLE t (id int PRIMARY KEY, of int, n int DEFAULT 0)', 'ALTER TABLE t REPLICA IDENTITY FULL',
		"INSERT INTO t SELECT i, i % $n FROM generate_series(1, 100000) i",
		"SELECT count(electric_cm_create_shape('t', 'of = ' || i)) FROM generate_series(0, $n - 1) i");
	my $live = "SELECT count(*) = $n FROM electric_cm_shapes WHERE state = 'live'";
	$stack->becomes($live, 'large: live');
	my $one = $stack->sql(q{SELECT handle FROM electric_cm_shapes WHERE where_clause LIKE '%= 7%' ORDER BY where_clause LIMIT 1});
	my $reader = $stack->reader($one);
	strip_options($stack);
	my $stopped = time;
	$stack->sql('SELECT electric_cm_prepare_upgrade()');
	my $prepared = time;
	$stack->node->stop;
	my $cluster = new_cluster('large_new', $stack->node);
	my $took = upgrade($stack->node, $cluster, 'large');
	my $started = time;
	$cluster->start;
	$stack = ElectricCM::Stack->new($cluster);
	$stack->active;
	my $active = time;
	$stack->becomes($live, 'large: live again');
	my $all_live = time;
	$stack->sql('UPDATE t SET n = n + 1');
	$stack->settle;
	diag(sprintf('%s shapes, %s to %s: prepare %.1f s, pg_upgrade %.1f s, start to active %.1f s, all live %.1f s, UPDATE of all rows logged %.1f s',
			$n, $old_major, server_major($cluster), $prepared - $stopped, $took, $active - $started, $all_live - $started, time - $all_live));
	$stack->goes_on($reader, 't', 'large', where => 'of = 7');
	is($stack->sql(q{SELECT count(*) FROM electric_cm_shapes s WHERE (SELECT count(*) FILTER (WHERE operation = 'update')
		FROM electric_cm_shape_log(s.handle)) = (SELECT count(*) FROM electric_cm_shape_log(s.handle)) / 2}),
		$n, 'large: each log has its rows, and the update of each');
	$cluster->stop;
}
done_testing();
