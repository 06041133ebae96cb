
# ElectricCM::Process: processes of our own.
package ElectricCM::Process;

use strict;
use warnings;

use Exporter 'import';
use POSIX ();

our @EXPORT_OK = qw(child);

=pod

=head1 NAME

ElectricCM::Process - processes of our own

=head1 FUNCTIONS

=over

=item child($code, %handlers)

Run code in a process of its own, and return its PID. SIGINT and SIGTERM end it,
unless it is given a handler for them. They wait until it has its handlers: one
that comes right after fork() would else be lost, or be handled as ours.

=back

=cut

sub child
{
	my ($code, %handlers) = @_;
	my $signals = POSIX::SigSet->new(POSIX::SIGINT(), POSIX::SIGTERM());
	my $before = POSIX::SigSet->new;

	POSIX::sigprocmask(POSIX::SIG_BLOCK(), $signals, $before) or die "sigprocmask: $!\n";
	my $pid = fork();
	if (defined $pid && $pid == 0)
	{
		@SIG{qw(INT TERM)} = ('DEFAULT', 'DEFAULT');
		$SIG{$_} = $handlers{$_} for keys %handlers;
		POSIX::sigprocmask(POSIX::SIG_SETMASK(), $before);
		eval { $code->(); 1 } or print STDERR $@;
		# what we have registered for our own end is not for its
		POSIX::_exit(0);
	}
	my $error = $!;
	POSIX::sigprocmask(POSIX::SIG_SETMASK(), $before) or die "sigprocmask: $!\n";
	die "fork: $error\n" unless defined $pid;
	return $pid;
}

1;
