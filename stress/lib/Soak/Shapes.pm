
# Soak::Shapes: the shapes that come and go, and what may happen to them.
package Soak::Shapes;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw($round);
use Soak::Report qw(%total);
use Soak::Settings qw(@relations @leaves @owners);
use Soak::Statements qw(dml size);
use Soak::Tools qw(chance pick psql value);

our @EXPORT_OK = qw(%shapes disturb_shapes drop_shape renew_shapes resolve_prepared allow family);

# handle => {rel, owner, round, may_go, must_go, and entries and hash: what the
# log had when it was last compared}
our %shapes;
my $new_handles = 0;    # counts, for names

# Ends prepared transactions, this way or that.
sub resolve_prepared
{
	my ($share) = @_;
	for my $gid (split /\n/, value('SELECT gid FROM pg_prepared_xacts', timeout => 20) // '')
	{
		next unless chance($share);
		psql((chance(0.7) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid'", timeout => 20);
		$shapes{$1}{may_go} = 1 if $gid =~ /^drop (.*)/ && $shapes{$1};
	}
}

sub create_shape
{
	my $rel = pick(@relations);
	my $owner = pick(@owners);
	my $set = $owner eq 'postgres' ? '' : "SET ROLE $owner;";
	my $before = "SET statement_timeout = '10s';\nBEGIN;\n" . (chance(0.3) ? dml(size()) : '');
	my $after = (chance(0.2) ? dml(size()) : '')
	  . pick(('COMMIT') x 8, 'ROLLBACK', "PREPARE TRANSACTION 'create $round " . ++$new_handles . "'") . ';';
	my ($rc, $out, $err) = psql("$before$set SELECT 'handle ' || electric_cm_create_shape('$rel'); RESET ROLE;\n$after",
		timeout => 30);
	my $handle = $out =~ /^handle (\S+)/m ? $1 : undef;
	# one whose creation is in doubt is taken up when it turns out to be there
	return if $rc != 0 || $after !~ /COMMIT/ || !defined $handle || $shapes{$handle};
	$shapes{$handle} = { rel => $rel, owner => $owner, entries => 0, hash => 0, base => '', round => $round };
	$total{created}++;
}

sub drop_shape
{
	my ($handle) = @_;
	my $prepare = chance(0.1);
	my $drop = "SELECT electric_cm_drop_shape('$handle')";
	$drop = "BEGIN; $drop; PREPARE TRANSACTION 'drop $handle'" if $prepare;
	my ($rc, $out, $err) = psql("SET statement_timeout = '10s'; $drop", timeout => 30);
	if ($rc == 0 && !$prepare)
	{
		$shapes{$handle}{must_go} = $shapes{$handle}{dropped} = 1;
		$total{dropped}++;
	}
	elsif ($rc != 0 && $err !~ /does not exist|statement timeout/)
	{
		$shapes{$handle}{may_go} = 1;    # the connection was lost: who knows
	}
}

# A reader meanwhile; the outcome is judged at the end of the round only.
sub read_shape
{
	my ($handle) = @_;
	my $log = chance(0.5) ? "shape_log('$handle', '-1'" : "await_shape_log('$handle', '-1', '1 s'";
	psql("SET statement_timeout = '5s';
		SELECT count(*) FROM electric_cm_$log, max_entries => 1000)", timeout => 30);
}

sub disturb_shapes
{
	my @live = grep { !$shapes{$_}{must_go} } keys %shapes;
	my $what = rand();
	if (@live < 4 || $what < 0.3 && @live < 16) { create_shape(); }
	elsif ($what < 0.4) { drop_shape(pick(sort @live)); }
	elsif ($what < 0.6) { read_shape(pick(sort @live)); }
	elsif ($what < 0.7) { resolve_prepared(0.5); }
}

# What a fault allows to happen to the shapes of these relations.
sub allow
{
	my ($how, @rels) = @_;
	my %in = map { $_ => 1 } @rels;
	for (values %shapes) { $_->{$how} = 1 if $in{ $_->{rel} }; }
}

# A partition's shapes go with its parent's, and the other way round.
sub family
{
	my ($rel) = @_;
	return $rel eq 't_part' ? ('t_part', @leaves) : $rel =~ /^t_part_/ ? ($rel, 't_part') : $rel;
}

# Long logs make long rounds.
sub renew_shapes
{
	for my $handle (sort keys %shapes)
	{
		my $size = $shapes{$handle}{entries};
		drop_shape($handle) if chance($size > 200000 ? 0.7 : $size > 50000 ? 0.3 : 0.02);
	}
}

1;
