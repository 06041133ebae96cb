
# Soak::Faults: all that can happen, and how often.
#
# A fault is a function that returns
#   undef                   nothing could be done: there is no such process, say
#   a number                milliseconds until active again, or 0 where it never stopped
#   what hold() returns     it lasts, and ends by itself
package Soak::Faults;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(sum0);
use POSIX ();
use Soak::Faults::DDL qw(unpublish truncate_table change_columns detach_partition change_identity
  publication_round_trip identity_round_trip unlogged_leaf);
use Soak::Faults::Processes qw(terminate terminate_launcher suspend kill_process restart_server stop_and_start restart_stack);
use Soak::Faults::Resources qw(hold_lock drop_slot drop_publication fill_connections old_transaction lock_own_table
  vacuum_full_own change_setting change_workers odd_settings in_passing);
use Soak::Faults::Silent qw(hang_walsender hang_manager black_hole jump_clock);
use Soak::Report qw(note_back note_idle note_injected);
use Soak::Settings qw(@tables);
use Soak::Stack qw(await_active);
use Soak::Tools qw(note_line pick);

our @EXPORT_OK = qw(inject held_fault poll_held end_held);

my @held;    # faults that last

# Those that are over: is everything back?
sub poll_held
{
	my ($wait) = @_;
	my @left;
	for my $held (@held)
	{
		if (waitpid($held->{pid}, $wait ? 0 : POSIX::WNOHANG()) == 0)
		{
			push @left, $held;
			next;
		}
		my $ms = await_active(0, $held->{fault});
		note_back($held->{fault}, $ms);
	}
	@held = @left;
	return;
}

sub held_fault { return scalar @held; }
sub end_held { waitpid($_->{pid}, 0) for @held; return; }

# [name, weight, function]; what lasts is held one at a time
my @faults = (
	[ 'terminate walsender', 6, sub { terminate('walsender') } ],
	[ 'terminate manager', 3, sub { terminate('manager') } ],
	[ 'terminate consumer', 4, sub { terminate('consumer') } ],
	[ 'terminate launcher', 1, \&terminate_launcher ],
	[ 'terminate pool session', 3, sub { terminate('pool') } ],
	[ 'SIGSTOP consumer', 3, sub { suspend('consumer') } ],
	[ 'SIGSTOP manager', 2, sub { suspend('manager') } ],
	[ 'SIGSTOP walsender', 2, sub { suspend('walsender') } ],
	[ 'SIGKILL worker', 1, sub { kill_process(pick(qw(manager consumer walsender launcher))) } ],
	[ 'SIGKILL backend', 1, sub { kill_process('backend') } ],
	[ 'restart -m fast', 2, sub { restart_server('fast') } ],
	[ 'restart -m immediate', 2, sub { restart_server('immediate') } ],
	[ 'stop and start', 2, \&stop_and_start ],
	[ 'electric_cm_restart', 2, \&restart_stack ],
	[ 'lock held by another', 2, \&hold_lock ],
	[ 'slot dropped', 0.5, \&drop_slot ],
	[ 'publication dropped', 0.5, \&drop_publication ],
	[ 'table unpublished', 2, \&unpublish ],
	[ 'TRUNCATE', 3, \&truncate_table ],
	[ 'columns changed', 3, \&change_columns ],
	[ 'partition detached', 2, \&detach_partition ],
	[ 'connection slots full', 2, \&fill_connections ],
	[ 'old transaction', 2, \&old_transaction ],
	[ 'own table locked', 3, \&lock_own_table ],
	[ 'own table VACUUM FULL', 2, \&vacuum_full_own ],
	[ 'pool_size changed', 2, sub { change_setting('electric_cm.pool_size', 1 .. 4) } ],
	[ 'shape_workers changed', 2, \&change_workers ],
	[ 'retention changed', 2, sub { change_setting('electric_cm.shape_log_retention', -1, 0, 64, 128, 1024) } ],
	[ 'CHECKPOINT', 2, sub { in_passing('CHECKPOINT') } ],
	[ 'table VACUUM FULL', 1, sub { in_passing("SET lock_timeout = '2s'; VACUUM FULL " . pick(@tables)) } ],
	[ 'replica identity', 1, \&change_identity ],
	[ 'VACUUM', 1, sub { in_passing('VACUUM') } ],
	[ 'walsender hangs', 1, \&hang_walsender ],
	[ 'manager hangs', 1, \&hang_manager ],
	[ 'stream black-holed', 1, sub { black_hole('stream') } ],
	[ 'pool black-holed', 1, sub { black_hole('pool') } ],
	[ 'clock jumps', 1, \&jump_clock ],
	[ 'publication round trip', 2, \&publication_round_trip ],
	[ 'identity round trip', 2, \&identity_round_trip ],
	[ 'unlogged leaf', 1, \&unlogged_leaf ],
	[ 'role and database settings', 2, \&odd_settings ],
);
if ($ENV{FAULTS})
{
	my @patterns = split /\s*,\s*/, $ENV{FAULTS};
	my @wanted = grep { !/^-/ } @patterns;
	my @unwanted = map { /^-(.*)/ ? $1 : () } @patterns;
	@faults = grep { my $name = $_->[0]; (!@wanted || grep { $name =~ /$_/ } @wanted) && !grep { $name =~ /$_/ } @unwanted } @faults;
	die "no such fault\n" unless @faults;
}

sub choose_fault
{
	my $at = rand(sum0(map { $_->[1] } @faults));
	for (@faults)
	{
		return $_ if ($at -= $_->[1]) < 0;
	}
	return $faults[0];
}

sub inject
{
	my ($name, undef, $code) = @{ choose_fault() };
	note_line("fault: $name");
	my $result = $code->();
	return note_idle($name) unless defined $result;
	note_injected($name);
	return note_back($name, $result) unless ref $result;
	push @held, { fault => $name, %$result };
	return;
}

1;
