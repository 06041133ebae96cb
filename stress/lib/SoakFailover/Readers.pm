# SoakFailover::Readers: clients that follow a shape from one server to the next.
#
# Each is a process that is never restarted, with a handle and an offset, as
# docs/clients.md says.  Its entries are in reader.NAME, one a line as they came; what
# it was told is in reader.NAME.told; where it is, in reader.NAME.at.
package SoakFailover::Readers;

use strict;
use warnings;

use Exporter 'import';
use IPC::Open2 qw(open2);
use POSIX ();
use Soak::Failures qw(fail);
use Soak::Settings qw($tmp $seed);
use Soak::Tools qw(chance pick spawn spew slurp wait_until);
use SoakFailover::Settings qw($deadline);
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(read_at start_reader end_reader readers settle_readers silences entries_file columns told_since compact);

our $columns = 'log_offset, operation, key, value, old_value, xid';
my $told = "$tmp/readers.told";    # stamp, primary, standby
my ($stamp, $primary, $standby) = (0, '-', '-');
my %readers;                       # name => {handle, pid}
my %told_before;

sub readers { return \%readers; }
sub columns { return $columns; }
sub entries_file { my ($name) = @_; return "$tmp/reader.$name"; }

# usage: read_at(PRIMARY, STANDBY); "-": nowhere
# A new stamp: the readers' silence counts from here, and who has read everything says so.
sub read_at
{
	($primary, $standby) = @_;
	$stamp++;
	spew("$told.new", "$stamp $primary $standby");
	rename "$told.new", $told or die "$told: $!\n";
	return;
}

# ------------------------------------------------------- in the reader's process --

# A session: psql, with the SQLSTATE after each result.  Undef if it has ended.
sub ask
{
	my ($session, $node, $sql) = @_;
	unless ($session->{pid})
	{
		local $ENV{PGHOST} = "$tmp/$node";
		$session->{pid} = open2(my $out, my $in, "exec psql -XAtq -F '\t' 2>/dev/null");
		@$session{qw(in out)} = ($in, $out);
	}
	my ($in, $out) = @$session{qw(in out)};
	my (@rows, $state);
	local $SIG{PIPE} = 'IGNORE';
	local $SIG{ALRM} = sub { kill KILL => $session->{pid}; };
	alarm 60;
	print $in "$sql;\n\\echo END :SQLSTATE :LAST_ERROR_MESSAGE\n";
	$in->flush;
	while (my $line = <$out>)
	{
		if ($line =~ /^END (\S+) ?(.*)/) { $state = [ $1, $2 ]; last; }
		push @rows, $line;
	}
	alarm 0;
	return ($state, @rows) if $state;
	close $in;
	close $out;
	waitpid($session->{pid}, 0);
	%$session = ();
	return;
}

sub append
{
	my ($file, @text) = @_;
	open my $fh, '>>', $file or die "$file: $!\n";
	print $fh @text;
	close $fh or die "$file: $!\n";
	return;
}

sub follow
{
	my ($name, $handle, %opt) = @_;
	my $file = entries_file($name);
	my %sessions = (a => {}, b => {});
	my %at = (stamp => 0, offset => '-1', entries => 0, silence => 0, state => 'reads', read_all => 0);
	my $heard = time();
	my $say = sub { spew("$file.at.new", map { "$_ $at{$_}\n" } sort keys %at); rename "$file.at.new", "$file.at"; };

	while (1)
	{
		my ($stamp_now, $primary_now, $standby_now) = split / /, slurp($told);
		if (!defined $standby_now || $primary_now eq '-') { sleep 0.02; next; }
		if ($at{stamp} != $stamp_now)
		{
			$at{stamp} = $stamp_now;
			$at{silence} = 0;
			if ($opt{anew} && chance($opt{anew}))    # as somebody new would
			{
				spew($file, '');
				$at{offset} = '-1';
			}
		}
		my $from = $standby_now ne '-' && chance(0.15) ? $standby_now : $primary_now;
		my $max = pick(3, 50, 1000, 5000);
		my $log = chance(0.5) ? "electric_cm_shape_log('$handle', '$at{offset}', $max)" : "electric_cm_await_shape_log('$handle', '$at{offset}', '200 ms', $max)";
		my ($state, @rows) = ask($sessions{$from}, $from, "SELECT $columns FROM $log");
		my $now = time();
		if (!$state) { sleep 0.03; }
		elsif ($state->[0] eq '00000')
		{
			if (@rows)
			{
				append($file, @rows);
				($at{offset}) = $rows[-1] =~ /^(\S+)/;
				$at{entries} += @rows;
				$at{silence} = $now - $heard if $now - $heard > $at{silence};
				$heard = $now;
			}
			$at{read_all} = $stamp_now if @rows < $max && $from eq $primary_now;
		}
		elsif ($state->[0] eq 'EC001')
		{
			append("$file.told", "$from\t$at{offset}\t$state->[1]\n");
			spew($file, '');
			$at{offset} = '-1';
		}
		elsif ($state->[0] eq '42704' && $from eq $primary_now) { $at{state} = 'gone'; $say->(); return; }
		elsif ($state->[0] =~ /^(?:55000|57...|08...|42704|40001|25006)$/) { sleep 0.03; }
		else
		{
			append("$file.errors", "$from\t$at{offset}\t@$state\n");
			sleep 0.2;
		}
		$say->();
		sleep rand(0.1);
	}
	return;
}

# ----------------------------------------------------------- in the soak's process --

# usage: start_reader(NAME, HANDLE, anew => SHARE)
sub start_reader
{
	my ($name, $handle, %opt) = @_;
	my $file = entries_file($name);
	unlink glob("$file.*");
	spew($file, '');
	$told_before{$name} = 0;
	$readers{$name} = { handle => $handle, pid => spawn(sub { srand($seed + length $name); follow($name, $handle, %opt) }) };
	return;
}

sub end_reader
{
	my ($name) = @_;
	kill TERM => $readers{$name}{pid};
	waitpid($readers{$name}{pid}, 0);
	delete $readers{$name};
	return;
}

sub where_is
{
	my ($name) = @_;
	return { map { split / /, $_, 2 } split /\n/, slurp(entries_file($name) . '.at') };
}

# Waits until each of them has read everything that the primary has.
# Returns name => where it is.
sub settle_readers
{
	read_at($primary, '-');
	my %at;
	wait_until($deadline, sub {
		%at = map { $_ => where_is($_) } keys %readers;
		return !grep { ($_->{read_all} // 0) < $stamp && ($_->{state} // '') ne 'gone' } values %at;
	}) or fail('readers do not come to the end of their logs: '
		  . join(', ', map { "$_ is at " . ($at{$_}{offset} // 'nowhere') } grep { ($at{$_}{read_all} // 0) < $stamp } sort keys %at));
	return \%at;
}

# The longest time that each of these was without an entry since the last stamp
sub silences
{
	my (@names) = @_;
	return grep { $_ } map { where_is($_)->{silence} } @names;
}

# What it was told since this was last asked: [server, offset, message]
sub told_since
{
	my ($name) = @_;
	my @all = split /\n/, slurp(entries_file($name) . '.told');
	my @new = map { [ split /\t/ ] } @all[ $told_before{$name} .. $#all ];
	$told_before{$name} = @all;
	return @new;
}

# Forgets what later entries of the same key have replaced.
sub compact
{
	my ($name) = @_;
	my $file = entries_file($name);
	return if -s $file < 4_000_000;
	my ($n, %of_key) = (0);
	open my $fh, '<', $file or die "$file: $!\n";
	while (my $line = <$fh>)
	{
		my (undef, $operation, $key) = split /\t/, $line, 4;
		$of_key{$key} = [] if $operation ne 'update';
		push @{ $of_key{$key} }, [ $n++, $line ] if $operation ne 'delete';
	}
	close $fh;
	spew($file, map { $_->[1] } sort { $a->[0] <=> $b->[0] } map { @$_ } values %of_key);
	return;
}

1;
