
# Soak::Faults::Silent: processes that hang, sessions whose bytes stay away,
# clocks that jump.
#
# Nobody is told of these.  So they are timed twice: until something is said of
# them, and until all is well.
package Soak::Faults::Silent;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw(fail);
use Soak::Report qw(note_noticed);
use Soak::Server qw(lose_sessions pids set_clock);
use Soak::Settings qw($db $deadline $sender_timeout);
use Soak::Stack qw(await_active write_arrives);
use Soak::Tools qw(pick psql value wait_until);
use Time::HiRes qw(time);

our @EXPORT_OK = qw(hang_walsender hang_manager black_hole jump_clock);

# Is something said of it in time?
sub await_notice
{
	my ($fault, $seconds, $sql) = @_;
	my $began = time();
	if (wait_until($seconds, sub { (value("SELECT $sql", timeout => 20) // 'f') eq 't' }))
	{
		note_noticed($fault, (time() - $began) * 1000);
		return 1;
	}
	fail("$fault: not noticed within $seconds s: " . (value("SELECT concat_ws(', ', status, step, waiting_for, last_error)
		FROM electric_cm_stat_manager WHERE datname = '$db'", timeout => 20) // ''));
	return 0;
}

# It does not stream from there any more.  That it is not active says less: a
# stream that has just been lost, and does not get beyond where that was, is
# doubtful, but may go on.
sub stream_is_given_up
{
	my ($pid) = @_;
	return "NOT EXISTS (SELECT FROM electric_cm_stat_connections
		WHERE datname = '$db' AND role = 'replication' AND state = 'streaming' AND backend_pid = $pid)";
}

# There must be something to miss: a quiet stream is not suspected as soon.
sub hang_walsender
{
	my ($pid) = pids('stream') or return undef;
	my $fault = 'the walsender hangs';
	return undef unless kill STOP => $pid;
	await_notice($fault, 2 * $sender_timeout + 15, stream_is_given_up($pid));
	kill CONT => $pid;
	return await_active($pid, $fault);
}

# Existing connections are black holes; new ones are well.
sub black_hole
{
	my ($kind) = @_;
	my ($pid) = pids('stream') or return undef;
	my $fault = "the $kind is a black hole";
	return undef if $kind eq 'pool' && !pids('pool');
	lose_sessions($kind eq 'stream' ? 'replication' : 'other');
	return await_active(0, $fault) if $kind eq 'pool';
	await_notice($fault, 2 * $sender_timeout + 15, stream_is_given_up($pid));
	return await_active($pid, $fault);
}

sub hang_manager
{
	my ($pid) = pids('manager') or return undef;
	my $fault = 'the manager hangs';
	return undef unless kill STOP => $pid;
	await_notice($fault, 30, "electric_cm_health()->>'severity' IS DISTINCT FROM 'ok'");
	kill CONT => $pid;
	return await_active(0, $fault);
}

# PostgreSQL's timeouts go by the wall clock.  Set back by an hour, it puts off
# by an hour every lock_timeout, statement_timeout and deadlock check that runs.
# The stack has to do with that.  Our own sessions must not: they wait for
# prepared transactions, which nobody ends before they have come to an end.
sub end_our_statements
{
	psql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity
		WHERE application_name LIKE 'soak%' AND pid <> pg_backend_pid()", timeout => 20);
}

# There and back again; both ways, what is written arrives.
sub jump_clock
{
	my $seconds = pick(1, -1) * pick(5, 90, 3600, 86400);
	my $before = 0;
	for my $off ($seconds, 0)
	{
		my $fault = "the clock jumps by " . ($off || -$seconds) . ' s';
		set_clock($off);
		end_our_statements() if $off < $before;
		$before = $off;
		my $arrived = wait_until($deadline, sub { write_arrives('t_int') });
		fail("$fault: what is written does not arrive within $deadline s") unless $arrived;
		await_active(0, $fault);
	}
	return 0;
}

1;
