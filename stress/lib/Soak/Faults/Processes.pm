
# Soak::Faults::Processes: processes that are ended, suspended or killed, and
# whole servers and stacks.
package Soak::Faults::Processes;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw(fail);
use Soak::Server qw($kills await_server pg_ctl pids ready_at);
use Soak::Settings qw($deadline);
use Soak::Stack qw(await_active manager_is_new);
use Soak::Tools qw(hold pick psql value wait_until);
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(terminate terminate_launcher suspend kill_process restart_server stop_and_start restart_stack);

sub terminate
{
	my ($what) = @_;
	my @pids = pids($what) or return undef;
	my $pid = pick(@pids);
	manager_is_new() if $what eq 'manager';
	my $began = time();
	return undef if (value("SELECT pg_terminate_backend($pid)", timeout => 20) // 'f') ne 't';
	return await_active($pid, "terminating $what", $began);
}

sub terminate_launcher
{
	my ($pid) = pids('launcher') or return undef;
	my $began = time();
	psql("SELECT pg_terminate_backend($pid)", timeout => 20);
	wait_until($deadline, sub { my ($new) = pids('launcher'); $new && $new != $pid })
	  or fail('the launcher does not come back', fatal => 1);
	return (time() - $began) * 1000;
}

sub suspend
{
	my ($what) = @_;
	my @pids = pids($what) or return undef;
	my $pid = pick(@pids);
	my $seconds = 1 + rand(4);
	return hold(sub { kill STOP => $pid; sleep $seconds; kill CONT => $pid; });
}

sub kill_process
{
	my ($what) = @_;
	my @pids = pids($what) or return undef;
	my $pid = pick(@pids);
	$kills++;
	manager_is_new();
	kill KILL => $pid;
	sleep 0.05;
	await_server();
	return await_active($pid, "SIGKILL of $what", ready_at());
}

sub restart_server
{
	my ($mode) = @_;
	manager_is_new();
	pg_ctl('restart', '-m', $mode);
	return await_active(0, "restart -m $mode", ready_at());
}

sub stop_and_start
{
	psql('SELECT electric_cm_stop()', timeout => 60);
	my $status = value('SELECT electric_cm_status()') // '';
	fail("stopped, but $status") if $status ne 'stopped';
	manager_is_new();
	sleep rand(2);
	psql('SELECT electric_cm_start()', timeout => 60);
	return await_active(0, 'electric_cm_start()');
}

sub restart_stack
{
	my ($pid) = pids('manager');
	my $began = time();
	psql('SELECT electric_cm_restart()', timeout => 60);
	manager_is_new();
	return await_active($pid // 0, 'electric_cm_restart()', $began);
}

1;
