
# ElectricCM::Proxy: a network between a server and itself, that can fail.
package ElectricCM::Proxy;

use strict;
use warnings;

use ElectricCM::Process qw(child);
use IO::Handle;
use IO::Select;
use IO::Socket::UNIX;
use Socket qw(AF_UNIX MSG_DONTWAIT MSG_PEEK PF_UNSPEC SOCK_STREAM);
use Time::HiRes qw(time);

=pod

=head1 NAME

ElectricCM::Proxy - what comes by way of it may stay away

=head1 SYNOPSIS

  my $proxy = ElectricCM::Proxy->new("$dir/.s.PGSQL.$port", $node->host . "/.s.PGSQL.$port");
  $stack->sql("ALTER DATABASE $db SET electric_cm.connection = 'host=$dir'");
  $proxy->lose;
  ...
  $proxy->end;

=head1 METHODS

=over

=item ElectricCM::Proxy->new($listen, $server, %opts)

A process that listens at the one Unix socket, and forwards to the other. Options:

  forget => seconds    close what is lost after that time, or when its client
                       has gone; if not given, it stays open

=item $proxy->lose($kind)

Sessions that are open, those of "replication" or all "other", or all of both,
become black holes: nothing is forwarded, and nobody is told.

=item $proxy->refuse, $proxy->answer

New connections are not answered; they are again, and work.

=item $proxy->stall

Each stream, also one that begins later, gets no farther than its beginning.

=item $proxy->end

=cut

sub new
{
	my ($class, $listen, $server, %opts) = @_;
	unlink $listen;
	my $listener = IO::Socket::UNIX->new(Local => $listen, Listen => 50) or die "$listen: $!\n";
	socketpair(my $ours, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!\n";
	my $pid = child(sub {
		close $ours;
		local $SIG{PIPE} = 'IGNORE';
		_serve({ listener => $listener, server => $server, orders => $its, accepts => 1, session => {}, %opts });
	});
	close $its;
	$ours->autoflush(1);
	return bless { pid => $pid, orders => $ours }, $class;
}

sub lose { my ($self, $kind) = @_; return $self->_order('lose ' . ($kind // 'all')); }
sub refuse { my ($self) = @_; return $self->_order('refuse'); }
sub answer { my ($self) = @_; return $self->_order('answer'); }
sub stall { my ($self) = @_; return $self->_order('stall'); }

sub end
{
	my ($self) = @_;
	kill KILL => $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

sub _order
{
	my ($self, $order) = @_;
	local $SIG{PIPE} = 'IGNORE';
	return syswrite $self->{orders}, "$order\n";
}

# What follows runs in the proxy's process. A session is {sockets: the client's
# and the server's; kind; beginning: 1 from the order to stream, 2 from its first
# answer; lost_until}, and is found by either socket.

sub _serve
{
	my ($proxy) = @_;
	my $tidy_at = 0;

	# without the one that has started it, there is no more to do
	while (_obey($proxy))
	{
		my @sockets = map { @{ $_->{sockets} } } grep { !$_->{lost_until} } values %{ $proxy->{session} };
		my $select = IO::Select->new($proxy->{orders}, @sockets, $proxy->{accepts} ? $proxy->{listener} : ());
		for my $socket ($select->can_read(1))
		{
			last if IO::Select->new($proxy->{orders})->can_read(0);
			if ($socket == $proxy->{listener}) { _connect($proxy); }
			else { _forward($proxy, $socket); }
		}
		next unless $proxy->{forget} && time() >= $tidy_at;
		_tidy($proxy);
		$tidy_at = time() + 1;
	}
	return;
}

# False if whoever gives orders has gone.
sub _obey
{
	my ($proxy) = @_;

	while (IO::Select->new($proxy->{orders})->can_read(0))
	{
		sysread $proxy->{orders}, my $orders, 4096 or return 0;
		for my $order (split /\n/, $orders)
		{
			if ($order eq 'refuse') { $proxy->{accepts} = 0; }
			elsif ($order eq 'answer') { $proxy->{accepts} = 1; }
			elsif ($order eq 'stall') { $proxy->{stalls} = 1; }
			elsif ($order =~ /^lose (\w+)$/)
			{
				for my $session (values %{ $proxy->{session} })
				{
					_lose($proxy, $session) if $1 eq 'all' || $1 eq $session->{kind};
				}
			}
			else { die "proxy: $order?\n"; }
		}
	}
	return 1;
}

sub _connect
{
	my ($proxy) = @_;
	my $client = $proxy->{listener}->accept or return;
	my $server = IO::Socket::UNIX->new(Peer => $proxy->{server}) or return;
	my $session = { sockets => [ $client, $server ], kind => 'unknown', beginning => 0 };
	$proxy->{session}{$_} = $session for $client, $server;
	return;
}

sub _forward
{
	my ($proxy, $socket) = @_;
	my $session = $proxy->{session}{$socket} or return;
	return if $session->{lost_until};
	my ($client, $server) = @{ $session->{sockets} };
	my $n = sysread $socket, my $data, 65536 or return _end($proxy, $session);

	return _lose($proxy, $session) if $proxy->{stalls} && $session->{beginning} > 1;
	# the startup packet, unless it asks for TLS first
	$session->{kind} = $data =~ /\0replication\0/ ? 'replication' : 'other'
	  if $session->{kind} eq 'unknown' && $data =~ /user\0/;
	if ($data =~ /START_REPLICATION/) { $session->{beginning} = 1; }
	elsif ($session->{beginning}) { $session->{beginning} = 2; }

	my $peer = $socket == $client ? $server : $client;
	for (my $at = 0; $at < $n;)
	{
		my $written = syswrite $peer, $data, $n - $at, $at;
		return _end($proxy, $session) unless $written;
		$at += $written;
	}
	return;
}

sub _lose
{
	my ($proxy, $session) = @_;
	$session->{lost_until} //= time() + ($proxy->{forget} // 0);
	return;
}

sub _end
{
	my ($proxy, $session) = @_;
	for my $socket (@{ $session->{sockets} })
	{
		delete $proxy->{session}{$socket};
		close $socket;
	}
	return;
}

# Who has given up is let go; the server's side, too, for its walsender does so
# by itself, but its backends would wait for ever.  A session is found twice among
# the values, and what is deleted may not be in a list that is being gone through.
sub _tidy
{
	my ($proxy) = @_;
	my %lost = map { $_ => $_ } grep { $_->{lost_until} } values %{ $proxy->{session} };
	for my $session (values %lost)
	{
		my $there = recv $session->{sockets}[0], my $byte, 1, MSG_PEEK | MSG_DONTWAIT;
		_end($proxy, $session) if (defined $there && $byte eq '') || time() > $session->{lost_until};
	}
	return;
}

=pod

=back

=cut

1;
