
# Soak::Server: the server that suffers, its clock, and the proxy that the
# stack's own sessions go by way of.
package Soak::Server;

use strict;
use warnings;

use ElectricCM::Proxy;
use Exporter 'import';
use File::Path qw(make_path);
use Soak::Failures qw(fail);
use Soak::Settings qw($tmp $db $dir $data $log $deadline $max_connections $sender_timeout @tables);
use Soak::Tools qw(run slurp value must wait_until);

our @EXPORT_OK = qw($kills start_server stop_server pg_ctl set_clock ready_at await_server pids lose_sessions);

my $proxy_dir = "$tmp/proxy";
my $proxy;
my $clock = "$tmp/clock";    # by how many seconds the server's clock is off
our $kills = 0;    # in this round, by SIGKILL

sub pg_ctl
{
	my (@args) = @_;
	local @ENV{qw(LD_PRELOAD SOAK_CLOCK)} = ("$tmp/soak_clock.so", $clock);
	local $ENV{PGOPTIONS};
	my $rc = run("$tmp/pg_ctl.out", "$tmp/pg_ctl.err",
		'timeout', '-k', 5, 150, 'pg_ctl', '-s', '-c', '-w', '-t', 120, '-D', $data, '-l', $log, @args);
	fail("pg_ctl @args: " . slurp("$tmp/pg_ctl.err") . slurp("$tmp/pg_ctl.out"), fatal => 1) if $rc != 0;
	return;
}

sub start_server
{
	make_path($dir);
	run("$dir/initdb.log", "$dir/initdb.err", 'initdb', '--no-sync', '--auth=trust', '--username=postgres',
		"--pgdata=$data") == 0
	  or die slurp("$dir/initdb.err");
	my $conf = slurp($ENV{TEMP_CONFIG}) . <<"CONF";
listen_addresses = ''
unix_socket_directories = '$dir'
wal_level = logical
shared_preload_libraries = 'electric_cm'
fsync = off
max_connections = $max_connections
superuser_reserved_connections = 0
max_worker_processes = 24
max_prepared_transactions = 30
max_wal_size = 2GB
deadlock_timeout = 200ms
restart_after_crash = on
log_min_messages = debug1
log_line_prefix = '%m %n [%p] %b %a '
log_lock_waits = on
track_io_timing = on
electric_cm.shape_log_retention = 128kB
electric_cm.wal_report_interval = 2s
wal_sender_timeout = ${sender_timeout}s
CONF
	open my $fh, '>>', "$data/postgresql.conf" or die "$data/postgresql.conf: $!\n";
	print $fh $conf;
	close $fh or die "$data/postgresql.conf: $!\n";
	set_clock(0);
	run("$tmp/cc.out", "$tmp/cc.err", 'cc', '-shared', '-fPIC', '-O2', '-o', "$tmp/soak_clock.so", 'stress/soak_clock.c') == 0
	  or die slurp("$tmp/cc.err");
	make_path($proxy_dir);
	$proxy = ElectricCM::Proxy->new("$proxy_dir/.s.PGSQL.5432", "$dir/.s.PGSQL.5432", forget => 120);
	pg_ctl('start');
	must("CREATE DATABASE $db", db => 'postgres');
	must("ALTER DATABASE $db SET electric_cm.connection = 'host=$proxy_dir port=5432 user=postgres'", db => 'postgres');
	must('CREATE EXTENSION electric_cm');
	must("\\i stress/soak.sql");
	must('GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_drop_shape(text)
		TO soak_reader, soak_churner');
	must(join '', map { "SELECT soak.dml('$_', 300, 0.5);" } @tables);
	must("SELECT electric_cm_await_active('60 s')");
	return;
}

sub stop_server
{
	run('/dev/null', '/dev/null', 'pg_ctl', '-s', '-D', $data, '-m', 'immediate', 'stop');
	$proxy->end;
	return;
}

# Sessions that are open, those of 'replication' or all 'other', become black holes.
sub lose_sessions
{
	my ($kind) = @_;
	$proxy->lose($kind) or fail('the proxy has gone', fatal => 1);
	return;
}

# In place, for the server has the file mapped.
sub set_clock
{
	my ($seconds) = @_;
	open my $fh, (-e $clock ? '+<' : '>'), $clock or die "$clock: $!\n";
	print $fh pack 'q', $seconds;
	close $fh or die "$clock: $!\n";
	return;
}

# When the server was ready again after its last start; recovery may take long.
sub ready_at
{
	my @at = slurp($log) =~ /^\S+ \S+ \S+ ([\d.]+) .*database system is ready to accept connections/mg;
	return $at[-1];
}

# A server that is down, or in recovery, is waited for.
sub await_server
{
	return if wait_until($deadline, sub { defined value('SELECT 1', timeout => 20) });
	return fail('the server does not answer', fatal => 1);
}

# Processes of the stack: (pid, ...).
sub pids
{
	my ($what) = @_;
	my %sql = (
		walsender => "SELECT backend_pid FROM electric_cm_stat_connections WHERE datname = '$db' AND role = 'replication' AND backend_pid IS NOT NULL",
		stream => "SELECT backend_pid FROM electric_cm_stat_connections WHERE datname = '$db' AND role = 'replication' AND state = 'streaming'",
		manager => "SELECT pid FROM electric_cm_stat_manager WHERE datname = '$db' AND pid IS NOT NULL",
		consumer => "SELECT pid FROM electric_cm_stat_consumers WHERE datname = '$db' AND pid IS NOT NULL",
		launcher => "SELECT pid FROM pg_stat_activity WHERE backend_type = 'electric_cm launcher'",
		pool => "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'electric_cm pool%'",
		backend => "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name = 'soak worker'",
	);
	return grep { /^[1-9]/ } split /\n/, value($sql{$what}, timeout => 20) // '';
}

1;
