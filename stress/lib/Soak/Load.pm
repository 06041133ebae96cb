
# Soak::Load: sessions that write, and one that creates and drops shapes, each in
# a process of its own.
package Soak::Load;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw($round);
use Soak::Report qw(%total);
use Soak::Settings qw($tmp $seed $nworkers @relations);
use Soak::Shapes qw(%shapes);
use Soak::Statements qw(transaction);
use Soak::Tools qw(chance pick spawn spew slurp psql value);
use Time::HiRes qw(sleep);

our @EXPORT_OK = qw(start_workers stop_workers kill_workers);

my @workers;

# Reads psql's command tags and numbers.
sub count_output
{
	my ($out, $stats) = @_;
	my ($rows, $undo, @saved) = (0, 0);
	for (split /\n/, $out)
	{
		if (/^\d+$/) { $rows += $_; }
		elsif ($_ eq 'BEGIN') { ($rows, @saved) = (0); }
		elsif ($_ eq 'SAVEPOINT') { push @saved, $rows; }
		elsif ($_ eq 'RELEASE') { pop @saved; }
		elsif ($_ eq 'undo to') { $undo = 1; }
		elsif ($_ eq 'ROLLBACK' && $undo) { $rows = $saved[-1] // 0; $undo = 0; }
		elsif ($_ eq 'ROLLBACK') { $stats->{rolled_back}++; }
		elsif ($_ eq 'COMMIT') { $stats->{transactions}++; $stats->{rows} += $rows; }
		elsif ($_ eq 'PREPARE TRANSACTION') { $stats->{prepared}++; }
	}
}

# A session that is lost is opened again, as an application would.
sub work
{
	my ($n, $stats_file, $stop) = @_;
	my %stats = map { $_ => 0 } qw(transactions rows rolled_back prepared);
	my $number = 0;

	$ENV{PGAPPNAME} = 'soak worker';
	srand($seed * 1000 + $round * 10 + $n);
	until ($$stop)
	{
		my $script = "SET lock_timeout = '300ms'; SET statement_timeout = '60s';\n";
		my $large = $n == 1 && chance(0.05);
		$script .= transaction("soak $round $n " . $number++, $large)
		  for 1 .. ($large ? 1 : 1 + int(rand(60)));
		my ($rc, $out) = psql($script, lenient => 1, timeout => 100);
		count_output($out, \%stats);
		sleep 0.2 if $rc != 0;      # no server, or no place in it
	}
	spew($stats_file, join ' ', %stats);
	return;
}

# Creates shapes and drops them again, in whatever state they are, while the
# faults hit.  What is left at the end of the round is then looked after like
# all others.
sub churn
{
	my ($stats_file, $stop) = @_;
	my %stats = map { $_ => 0 } qw(created dropped);
	my $as = "SET statement_timeout = '5s'; SET ROLE soak_churner;";

	srand($seed * 1000 + $round * 10);
	until ($$stop)
	{
		my $rel = pick(@relations);
		my $handle = value("$as SELECT electric_cm_create_shape('$rel')", timeout => 30);
		sleep rand(0.5);
		next unless $handle;
		$stats{created}++;
		next if chance(0.2);
		psql("$as SELECT count(*) FROM electric_cm_shape_log('$handle')", timeout => 30) if chance(0.5);
		$stats{dropped}++ if defined value("$as SELECT electric_cm_drop_shape('$handle')", timeout => 30);
	}
	spew($stats_file, join ' ', %stats);
	return;
}

# A worker goes on until SIGTERM, and leaves its counts in a file.
sub start_worker
{
	my ($file, $code) = @_;
	my $stop = 0;
	unlink $file;
	push @workers, { pid => spawn(sub { $code->($file, \$stop) }, TERM => sub { $stop = 1; }), file => $file };
	return;
}

sub start_workers
{
	for my $n (1 .. $nworkers)
	{
		start_worker("$tmp/worker.$n", sub { work($n, @_) });
	}
	# the churner is given those that it has made before, and may drop them
	$_->{may_go} = 1 for grep { $_->{owner} eq 'soak_churner' } values %shapes;
	start_worker("$tmp/churner", \&churn);
	return;
}

sub stop_workers
{
	kill TERM => map { $_->{pid} } @workers;
	for my $worker (@workers)
	{
		waitpid($worker->{pid}, 0);
		my %stats = split / /, slurp($worker->{file});
		$total{$_} += $stats{$_} for keys %stats;
	}
	@workers = ();
	return;
}

sub kill_workers
{
	kill KILL => map { $_->{pid} } @workers;
	return;
}

1;
