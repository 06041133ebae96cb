# SoakFailover::Load: sessions that write at whatever server they are told to, and
# one that creates shapes, each in a process of its own.
package SoakFailover::Load;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw($round);
use Soak::Settings qw($tmp $seed @relations);
use Soak::Statements qw(dml transaction);
use Soak::Tools qw(chance pick spawn spew slurp psql value);
use SoakFailover::Settings qw($writers);
use Time::HiRes qw(sleep);

our @EXPORT_OK = qw(write_at start_writers stop_writers start_creator stop_creator resolve_prepared);

my $told = "$tmp/writers.told";    # the server and the kind of load, or "-": nobody writes
my (@pids, $creator);

# usage: write_at(NODE, KIND)
# mix: of everything; slow: that, with pauses; noise: a table without a shape; cold:
# a row now and then of a table that is otherwise left alone; idle: nothing
sub write_at
{
	my ($node, $kind) = @_;
	spew("$told.new", "$node $kind");
	rename "$told.new", $told or die "$told: $!\n";
	return;
}

my %script = (
	mix => sub { my ($gid) = @_; return map { transaction("$gid.$_", 0) } 1 .. 1 + int(rand(15)); },
	slow => sub { my ($gid) = @_; return transaction($gid, 0); },
	noise => sub { return "INSERT INTO t_noise (v) SELECT md5(i::text) FROM generate_series(1, 20) i;\n" x 10; },
	cold => sub { return 'UPDATE t_cold SET v = v || \'.\' WHERE id = ' . (1 + int(rand(200))) . ";\n"; },
);

# The first one also writes transactions that take the stream a while.
sub work
{
	my ($n, $stop) = @_;
	my $number = 0;
	$ENV{PGAPPNAME} = 'soak writer';
	srand($seed * 1000 + $round * 10 + $n);
	until ($$stop)
	{
		my ($node, $kind) = split / /, slurp($told);
		if (!defined $kind || $node eq '-' || $kind eq 'idle' || ($kind eq 'cold' && $n > 1))
		{
			sleep 0.05;
			next;
		}
		my @script = $script{$kind}->("soak $round $n " . $number++);
		push @script, "BEGIN;\n", dml(2001 + int(rand(6000))), "COMMIT;\n" if $n == 1 && $kind eq 'mix' && chance(0.05);
		local $ENV{PGHOST} = "$tmp/$node";
		my ($rc) = psql("SET lock_timeout = '300ms'; SET statement_timeout = '60s';\n" . join('', @script), lenient => 1, timeout => 100);
		sleep $rc != 0 ? 0.1 : $kind =~ /slow|cold/ ? rand(0.6) : 0;
	}
	return;
}

sub start_writers
{
	for my $n (1 .. $writers)
	{
		my $stop = 0;
		push @pids, spawn(sub { work($n, \$stop) }, TERM => sub { $stop = 1; });
	}
	return;
}

sub stop_writers
{
	kill TERM => @pids;
	waitpid($_, 0) for @pids;
	@pids = ();
	return;
}

# Shapes that are in the middle of their creation when the server goes.
sub create_shapes
{
	my ($node) = @_;
	$ENV{PGHOST} = "$tmp/$node";
	srand($seed * 1000 + $round * 10);
	while (1)
	{
		my $arguments = chance(0.5) ? "'t_bulk', 'id > " . int(rand(5000)) . "', '{id,v}'" : chance(0.5) ? "'t_int', 'id > " . int(rand(3000)) . "', '{id,n}'"
		  : "'t_toast', 'id <> " . int(rand(100)) . "', '{id,n}'";
		my $handle = value("SET statement_timeout = '5s'; SELECT electric_cm_create_shape($arguments)", timeout => 20);
		psql("SET statement_timeout = '300ms'; SELECT count(*) FROM electric_cm_shape_log('$handle', '-1', 5)", timeout => 20)
		  if defined $handle && chance(0.4);
		sleep rand(0.2);
	}
	return;
}

sub start_creator { my ($node) = @_; $creator = spawn(sub { create_shapes($node) }); return; }

sub stop_creator
{
	return unless $creator;
	kill TERM => $creator;
	waitpid($creator, 0);
	$creator = undef;
	return;
}

# Ends a share of the prepared transactions, this way or that.
sub resolve_prepared
{
	my ($share) = @_;
	psql((chance(0.7) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_'", timeout => 20)
	  for grep { chance($share) } split /\n/, value('SELECT gid FROM pg_prepared_xacts', timeout => 20) // '';
	return;
}

1;
