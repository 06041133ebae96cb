# SoakFailover::Nodes: the two servers, a and b, of which one is the primary.
#
# Each has a directory $tmp/a or $tmp/b, with its data, its log and its socket, so
# PGHOST chooses the server.  Everything by which they differ is in
# postgresql.auto.conf, which is written anew at each change.
package SoakFailover::Nodes;

use strict;
use warnings;

use Exporter 'import';
use File::Path qw(make_path remove_tree);
use POSIX ();
use Soak::Failures qw(fail);
use Soak::Settings qw($tmp $db);
use Soak::Tools qw(run slurp spew must value wait_until chance);
use SoakFailover::Report qw(%total);
use SoakFailover::Settings qw($synchronized $shape_workers $deadline);
use Time::HiRes qw(sleep);

our @EXPORT_OK = qw(on other data log_file make_primary make_standby rejoin start stop kill9 configure reload set_synchronized
  promote switch_point await_streaming slot_is_synced slot_can_fail_over lose_slot cut_off stop_all);

sub other { my ($node) = @_; return $node eq 'a' ? 'b' : 'a'; }
sub data { my ($node) = @_; return "$tmp/$node/data"; }
sub log_file { my ($node) = @_; return "$tmp/$node/server.log"; }

# Runs code that talks to that server.
sub on
{
	my ($node, $code) = @_;
	local $ENV{PGHOST} = "$tmp/$node";
	return $code->();
}

sub program
{
	my ($what, @command) = @_;
	local $ENV{PGOPTIONS};
	delete local $ENV{PGDATABASE};
	my $rc = run("$tmp/program.out", "$tmp/program.err", 'timeout', '-k', 5, 200, @command);
	return ($rc, "$what: " . slurp("$tmp/program.err") . slurp("$tmp/program.out"));
}

sub pg_ctl
{
	my ($node, @args) = @_;
	my ($rc, $text) = program("pg_ctl @args of $node", 'pg_ctl', '-s', '-c', '-w', '-t', 120, '-D', data($node), '-l', log_file($node), @args);
	fail($text, fatal => 1) if $rc != 0;
	return;
}

# usage: configure(NODE, primary_conninfo => TEXT, synchronized_standby_slots => SLOT)
sub configure
{
	my ($node, %opt) = @_;
	$opt{primary_conninfo} //= "host=$tmp/" . other($node) . " user=postgres dbname=$db application_name=$node";
	$opt{synchronized_standby_slots} //= '';
	$opt{sync_replication_slots} //= 'on';
	spew(data($node) . '/postgresql.auto.conf', "unix_socket_directories = '$tmp/$node'\ncluster_name = '$node'\nprimary_slot_name = 'standby'\n",
		map { "$_ = '$opt{$_}'\n" } sort keys %opt);
	return;
}

sub start { my ($node) = @_; return pg_ctl($node, 'start'); }
sub reload { my ($node) = @_; return pg_ctl($node, 'reload'); }
sub stop { my ($node) = @_; return pg_ctl($node, '-m', 'fast', 'stop'); }

# A primary's walsender waits for the standby, or it doesn't.
sub set_synchronized
{
	my ($node, $on) = @_;
	configure($node, synchronized_standby_slots => $on && $synchronized ? 'standby' : '');
	reload($node);
	return;
}

# The processes whose working directory is the server's.
sub processes
{
	my ($node) = @_;
	my $dir = data($node);
	return grep { (readlink("/proc/$_/cwd") // '') eq $dir } map { m{(\d+)$} ? $1 : () } glob('/proc/[0-9]*');
}

# As if its machine had lost its power, but for the kernel's cache.  A process
# that was just being started may outlive those that a first look has found.  A
# postmaster that nobody waits for is still there to kill(), so the server would
# not start again beside its lock files.
sub kill9
{
	my ($node) = @_;
	my ($postmaster) = slurp(data($node) . '/postmaster.pid') =~ /^(\d+)/ or return;
	kill KILL => $postmaster, processes($node);
	wait_until($deadline, sub { my @left = processes($node); kill KILL => @left; return !@left; })
	  or return fail("processes of server $node outlive SIGKILL", fatal => 1);
	unlink data($node) . '/postmaster.pid', "$tmp/$node/.s.PGSQL.5432", "$tmp/$node/.s.PGSQL.5432.lock";
	return;
}

sub make_primary
{
	my ($node) = @_;
	remove_tree("$tmp/a", "$tmp/b");
	make_path("$tmp/$node");
	my ($rc, $text) = program('initdb', 'initdb', '--no-sync', '--auth=trust', '--username=postgres', '--pgdata=' . data($node));
	die $text if $rc != 0;
	open my $fh, '>>', data($node) . '/postgresql.conf' or die "postgresql.conf: $!\n";
	print $fh slurp($ENV{TEMP_CONFIG}) . <<"CONF";
listen_addresses = ''
wal_level = logical
shared_preload_libraries = 'electric_cm'
fsync = off
wal_log_hints = on
max_connections = 60
max_worker_processes = 24
max_prepared_transactions = 60
max_wal_senders = 20
max_replication_slots = 20
max_wal_size = 2GB
wal_keep_size = 512MB
hot_standby_feedback = on
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 200ms
deadlock_timeout = 200ms
log_min_messages = debug1
log_line_prefix = '%m [%p] %b %a '
electric_cm.shape_log_retention = -1
electric_cm.shape_workers = $shape_workers
electric_cm.wal_report_interval = 2s
CONF
	close $fh or die "postgresql.conf: $!\n";
	configure($node);
	start($node);
	on($node, sub {
		must("CREATE DATABASE $db; SELECT pg_create_physical_replication_slot('standby', true)", db => 'postgres');
		must('CREATE EXTENSION electric_cm');
		must("\\i stress/soak.sql\n\\i stress/soak-failover.sql");
		must("SELECT electric_cm_await_active('120 s')");
	});
	return;
}

# A base backup of the other one.
sub make_standby
{
	my ($node) = @_;
	make_path("$tmp/$node");
	remove_tree(data($node));
	my ($rc, $text) = program('pg_basebackup', 'pg_basebackup', '-h', "$tmp/" . other($node), '-U', 'postgres', '-D', data($node),
		'-X', 'stream', '-c', 'fast', '--no-sync');
	fail($text, fatal => 1) if $rc != 0;
	return start_as_standby($node);
}

sub start_as_standby
{
	my ($node) = @_;
	on(other($node), sub {
		must("SELECT pg_create_physical_replication_slot('standby', true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'standby')");
	});
	configure($node);
	spew(data($node) . '/standby.signal', '');
	start($node);
	return;
}

# usage: rejoin(NODE, DIVERGED)
# The old primary, which is down, becomes the standby.  One that has written
# nothing since just starts.
sub rejoin
{
	my ($node, $diverged) = @_;
	unless ($diverged)
	{
		$total{rejoined}++;
		return start_as_standby($node);
	}
	# pg_rewind asks the control file of its source which timeline it is on
	on(other($node), sub { must('CHECKPOINT'); });
	my ($rc, $text) = program('pg_rewind', 'pg_rewind', '--no-sync', '-D', data($node),
		'--source-server', "host=$tmp/" . other($node) . " user=postgres dbname=$db");
	if ($rc == 0)
	{
		$total{rewound}++;
		return start_as_standby($node);
	}
	print "         $text";
	$total{rebuilt}++;
	return make_standby($node);
}

# Returns how long it took, and how long from then until the stack was active.
# Prepared transactions hold back the creation of a slot, if it comes to that.
sub promote
{
	my ($node, $resolve) = @_;
	my ($began, $promoted, $active) = on($node, sub {
		my $now = 'SELECT extract(epoch FROM clock_timestamp())';
		my ($began, $promoted, $prepared) = split /\n/,
		  must("$now; SELECT pg_promote(true, 100) \\gset\n$now; SELECT count(*) FROM pg_prepared_xacts");
		my @times = ($began, $promoted);
		$total{prepared_survived} += $prepared;
		wait_until($deadline, sub {
			my $at = value("SELECT electric_cm_await_active('5 s'); $now", timeout => 30);
			push @times, $at =~ /([\d.]+)$/ if defined $at;
			$resolve->() unless defined $at;
			return defined $at;
		}) or fail("$node does not become active after its promotion: "
			  . value("SELECT concat_ws(', ', status, step, waiting_for, last_error) FROM electric_cm_stat_manager WHERE datname = '$db'"), fatal => 1);
		return @times;
	});
	return ($promoted - $began, $active - $promoted);
}

# Where the timeline before this one was left, as a number.
sub switch_point
{
	my ($node) = @_;
	my ($last) = (sort glob(data($node) . '/pg_wal/*.history'))[-1] // die "$node was never promoted\n";
	my @lsns = slurp($last) =~ m{^\d+\s+([0-9A-F]+/[0-9A-F]+)}mg;
	my ($high, $low) = split m{/}, $lsns[-1];
	return (hex($high) << 32) + hex($low);
}

sub await_streaming
{
	my ($primary) = @_;
	on($primary, sub {
		wait_until($deadline, sub { (value("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '"
				. other($primary) . "'") // 0) > 0; });
	}) or fail('the standby does not stream', fatal => 1);
	return;
}

my $our_slot = "slot_type = 'logical' AND slot_name LIKE 'electric\\_cm\\_%'";

sub slot_can_fail_over
{
	my ($primary) = @_;
	return on($primary, sub { (value("SELECT failover FROM pg_replication_slots WHERE $our_slot") // '') eq 't' });
}

sub slot_is_synced
{
	my ($standby) = @_;
	return on($standby, sub {
		(value("SELECT count(*) FROM pg_replication_slots WHERE $our_slot AND synced AND NOT temporary AND invalidation_reason IS NULL") // 0) > 0;
	});
}

# The standby loses its slot, and does not get it back.
sub lose_slot
{
	my ($standby) = @_;
	stop($standby);
	remove_tree(glob(data($standby) . '/pg_replslot/electric_cm_*'));
	configure($standby, sync_replication_slots => 'off');
	start($standby);
	return;
}

# The standby gets nothing from now on.
sub cut_off
{
	my ($standby) = @_;
	configure($standby, primary_conninfo => "host=$tmp/nowhere dbname=$db");
	reload($standby);
	return;
}

sub stop_all
{
	kill9($_) for qw(a b);
	return;
}

1;
