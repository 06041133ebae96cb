
# Soak::Readers: clients that have read the log of a shape for as long as it lives, page
# by page, through all that happens, and have a copy of the table by it.
package Soak::Readers;

use strict;
use warnings;

use Exporter 'import';
use Soak::Failures qw($round fail);
use Soak::Report qw(%total);
use Soak::Shapes qw(%shapes);
use Soak::Tools qw(chance pick psql);

our @EXPORT_OK = qw(read_some check_readers);

my $nreaders = 8;
my $page = 5000;    # entries at a time, when nothing else is going on

# {handle, rel, since, offset, copy, read, odd}: copy is key => {column => value}, where
# values are JSON; odd says what was out of place
my @readers = map { {} } 1 .. $nreaders;

# From the beginning, in place of what has been read so far.
sub begin
{
	my ($reader) = @_;
	@$reader{qw(offset copy odd)} = ('-1', {}, []);
	return;
}

# A reader whose shape has ended gets another one.
sub take_shape
{
	my ($reader) = @_;
	my %taken = map { ($_->{handle} // '') => 1 } @readers;
	my @may = grep { !$shapes{$_}{must_go} && $shapes{$_}{owner} ne 'soak_churner' } sort keys %shapes;
	my @free = grep { !$taken{$_} } @may;
	my $handle = pick(@free ? @free : @may) // return 0;
	@$reader{qw(handle rel since read)} = ($handle, $shapes{$handle}{rel}, $round, 0);
	begin($reader);
	return 1;
}

sub has_shape
{
	my ($reader) = @_;
	my $shape = defined $reader->{handle} ? $shapes{ $reader->{handle} } : undef;
	return $shape && !$shape->{must_go};
}

sub name_of
{
	my ($reader) = @_;
	return "the reader of shape $reader->{handle} of $reader->{rel} since round $reader->{since}, $reader->{read} entries, at $reader->{offset}";
}

sub is_after
{
	my ($offset, $other) = @_;
	return 1 if $other eq '-1';
	my ($lsn, $op) = split /_/, $offset;
	my ($other_lsn, $other_op) = split /_/, $other;
	return $lsn > $other_lsn || ($lsn == $other_lsn && $op > $other_op);
}

# An insert sets a row, an update merges into it, a delete removes it.
sub apply
{
	my ($reader, $line) = @_;
	$line =~ s/\\\\/\\/g;
	my ($offset, $operation, $key, $columns) = split /\t/, $line, 4;
	my %value = map { split /\x01/, $_, 2 } split /\x02/, $columns;
	my $copy = $reader->{copy};

	push @{ $reader->{odd} }, "$offset comes after $reader->{offset}" unless is_after($offset, $reader->{offset});
	push @{ $reader->{odd} }, "$offset: $operation of $key, which is " . ($copy->{$key} ? 'there' : 'not there')
	  if $operation eq 'insert' ? $copy->{$key} : !$copy->{$key};
	if ($operation eq 'insert') { $copy->{$key} = \%value; }
	elsif ($operation eq 'update') { $copy->{$key}{$_} = $value{$_} for keys %value; }
	else { delete $copy->{$key}; }
	$reader->{offset} = $offset;
	return;
}

# The log does not go on from there. A part may have been folded that was yet to be read;
# nothing else may happen to a shape that lives.
sub refused
{
	my ($reader, $err) = @_;
	if ($err =~ /\bEC001: .*has been folded/s)
	{
		$total{overtaken}++;
		return begin($reader);
	}
	my $shape = $shapes{ $reader->{handle} };
	my $lives = $shape && !$shape->{must_go} && !$shape->{may_go};
	if ($err =~ /\b42704:/ && !$lives)
	{
		delete $reader->{handle};
		return;
	}
	$total{anew}++;
	my $name = name_of($reader);
	if ($err =~ /\b42704:/) { delete $reader->{handle}; }
	else { begin($reader); }
	return fail("$name had to start from -1: $err");
}

# usage: read_page(READER, ENTRIES, SECONDS)
# Returns the number of entries; undef if the page could not be had.  The values come
# as they are in the log, after each column's name.
sub read_page
{
	my ($reader, $max, $seconds) = @_;
	my ($rc, $out, $err) = psql("\\set VERBOSITY verbose
SET statement_timeout = '${seconds}s';
COPY (SELECT log_offset, operation, key::text,
		coalesce((SELECT string_agg(k || E'\\x01' || v::text, E'\\x02') FROM jsonb_each(value::jsonb) AS e (k, v)), '')
	FROM electric_cm_shape_log('$reader->{handle}', '$reader->{offset}', $max)) TO STDOUT;", timeout => 2 * $seconds);
	if ($rc != 0)
	{
		$reader->{error} = $err;
		refused($reader, $err) if $err =~ /\b(?:EC001|42704):/;
		return undef;
	}
	my @lines = split /\n/, $out;
	apply($reader, $_) for @lines;
	$reader->{read} += @lines;
	$total{read} += @lines;
	return scalar @lines;
}

# One of them reads a page, or some.
sub read_some
{
	my $reader = pick(@readers);
	return unless has_shape($reader) || take_shape($reader);
	do { read_page($reader, pick(10, 100, 1000), 3) } while (defined $reader->{handle} && chance(0.5));
	return;
}

# Nobody writes any more. Retention may have it that a part is folded just now.
sub read_to_end
{
	my ($reader) = @_;
	for (1 .. 5)
	{
		my $n = 1;
		while ($n) { $n = read_page($reader, $page, 100); last unless defined $n && defined $reader->{handle}; }
		return 1 if defined $n;
		return 0 unless defined $reader->{handle};
	}
	fail(name_of($reader) . " can't read it to its end: $reader->{error}");
	return 0;
}

sub compare_copy
{
	my ($reader) = @_;
	my $rows = '';
	for my $row (values %{ $reader->{copy} })
	{
		my $json = '{' . join(',', map { "\"$_\":$row->{$_}" } sort keys %$row) . '}';
		$json =~ s/\\/\\\\/g;
		$rows .= "$json\n";
	}
	my ($rc, $out, $err) = psql("CREATE TEMP TABLE ecm_copy (value jsonb);\nCOPY ecm_copy FROM STDIN;\n$rows\\.\n
SELECT missing, extra, examples FROM soak.compare_copy('$reader->{rel}');", timeout => 600);
	return fail(name_of($reader) . ": the copy could not be compared: $err") if $rc != 0;
	my ($missing, $extra, $examples) = split /\|/, $out, 3;
	my @odd = @{ $reader->{odd} };
	$total{copies}++;
	return unless $missing || $extra || @odd;
	$total{differences}++;
	my $name = name_of($reader);
	begin($reader);
	splice @odd, 5 if @odd > 5;
	return fail(join "\n", "$name: $missing rows only in the table, $extra only in the copy", $examples, @odd);
}

# Can it fail?  CORRUPT=reader takes a row out of a copy; CORRUPT=offset gives a reader an
# offset that no log has had.
sub corrupt
{
	my ($how) = @_;
	my ($reader) = grep { $_->{handle} && %{ $_->{copy} } } @readers;
	return unless $reader;
	delete $reader->{copy}{ (sort keys %{ $reader->{copy} })[0] } if $how eq 'reader';
	return unless $how eq 'offset';
	$reader->{offset} =~ s/(\d+)$/$1 + 1/e;
	read_page($reader, $page, 100);
	read_to_end($reader);
	return;
}

# At the end of a round, when it has been looked which shapes there are.
sub check_readers
{
	my @reading = grep { (has_shape($_) || take_shape($_)) && read_to_end($_) } @readers;
	corrupt($ENV{CORRUPT}) if $ENV{CORRUPT};
	compare_copy($_) for grep { $_->{handle} } @reading;
	return;
}

1;
