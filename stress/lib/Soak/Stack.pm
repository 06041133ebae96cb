
# Soak::Stack: is it active, does what is written arrive?
package Soak::Stack;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw(fail);
use Soak::Settings qw($db $deadline);
use Soak::Shapes qw(resolve_prepared);
use Soak::Tools qw(psql value);
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(await_active write_arrives manager_is_new slot_is_recreated);

my $recreations = 0;    # of the slot, since the manager began

# Until the stack is active, and without that process: milliseconds from the end
# of the fault, or from whenever it began; 0 if nothing was seen of it.
sub await_active
{
	my ($without, $fault, $began) = @_;
	my $end = time() + $deadline;
	my $err = '';

	$began //= time();
	while (time() < $end)
	{
		my ($rc, $out);
		($rc, $out, $err) = psql("SET statement_timeout = '2s'; SELECT soak.await_active($without)", timeout => 20);
		return $out > $began ? ($out - $began) * 1000 : 0 if $rc == 0;
		sleep 0.05 if $err =~ /connect/;
		mend_stack();
	}
	return fail("after $fault: not active within $deadline s: " . (value("SELECT concat_ws(', ', status, step, waiting_for, last_error)
		FROM electric_cm_stat_manager WHERE datname = '$db'", timeout => 20) // $err), fatal => 1);
}

sub manager_is_new { $recreations = 0; return; }
sub slot_is_recreated { $recreations++; return; }

# What an administrator would do, where the stack is right to wait for one: a
# slot is created only when the prepared transactions are over, and is
# recreated only so many times in an hour.
sub mend_stack
{
	my $state = value("SELECT status, step, waiting_for, last_error FROM electric_cm_stat_manager WHERE datname = '$db'",
		timeout => 20) // return;
	my ($status, $step) = split /\|/, $state;
	resolve_prepared(1) if ($step // '') eq 'create_slot';
	if ($status eq 'failed')
	{
		fail("the stack has failed: $state") if $recreations < 3;
		psql('SELECT electric_cm_start()', timeout => 30);
		$recreations = 0;
	}
}

# Prepared transactions have locks, and nobody else ends them.
sub write_arrives
{
	my @written = map { "SELECT soak.dml('$_', 3, " . sprintf('%.9f', rand()) . ");\n" } @_;
	return 1 if defined value("SET statement_timeout = '20s'; SET lock_timeout = '2s';\n@written
		SELECT electric_cm_await_flushed(NULL, '15 s')", timeout => 30);
	resolve_prepared(1);
	return 0;
}

1;
