# SoakFailover::Checks: after a failover all must be well.
#
# CORRUPT shows that a check can fail: quiet lets the standby lose its slot in a round
# that has waited for it, told lets a reader have an entry that the new primary never
# got, failover takes entries out of one of the old primary's logs, reader takes an entry
# from a reader, chunk takes some out of a log.
package SoakFailover::Checks;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(max);
use Soak::Failures qw(fail);
use Soak::Settings qw($tmp $db);
use Soak::Tools qw(must psql slurp spew value wait_until);
use SoakFailover::Load qw(resolve_prepared);
use SoakFailover::Nodes qw(on log_file data);
use SoakFailover::Readers qw(readers settle_readers entries_file columns told_since compact);
use SoakFailover::Report qw(%total);
use SoakFailover::Settings qw($synchronized $deadline $corrupt);

our @EXPORT_OK = qw(settle compare_shapes dump_logs compare_with_old check_readers check_log_files);

my %compared_to;     # name of a shape => LSN up to which all has been compared
my %entries_read;    # name of a reader => entries, as of the last look
my %log_seen;        # node => how far its log was looked at

sub lsn_of { my ($line) = @_; return $line =~ /^(\d+)_/ ? $1 : 0; }

# Everything that was committed is in the logs, and all shapes are live.
sub settle
{
	my ($node) = @_;
	return on($node, sub {
		my ($rc, undef, $err) = psql("SELECT electric_cm_await_flushed(timeout => '$deadline s')", timeout => $deadline + 30);
		fail("electric_cm_await_flushed() on $node: $err", fatal => 1) if $rc != 0;
		my $tries = 0;
		wait_until($deadline, sub {
			my $left = value("SELECT count(*) FROM electric_cm_shapes WHERE state IN ('creating', 'resyncing')");
			resolve_prepared(1) if ++$tries > 20;
			return defined $left && $left == 0;
		}) or fail("shapes do not become live on $node: " . value("SELECT string_agg(concat_ws(' ', handle, relation, state, waiting_for), '; ')
			FROM electric_cm_shapes WHERE state <> 'live'"));
		my $errored = value("SELECT string_agg(concat_ws(' ', handle, relation, state, last_error), '; ') FROM electric_cm_shapes WHERE state <> 'live'");
		fail("shapes are not live on $node: $errored") if $errored;
	});
}

sub compare_shapes
{
	my ($node, $handles) = @_;
	my %there = map { $_ => 1 } split /\n/, must('SELECT handle FROM electric_cm_shapes');
	must('DELETE FROM _electric_cm.shape_log WHERE (shape, first_lsn, first_op) IN
		(SELECT shape, first_lsn, first_op FROM _electric_cm.shape_log ORDER BY random() LIMIT 1)') if $corrupt eq 'chunk';
	for my $name (sort keys %$handles)
	{
		if ($there{ $handles->{$name} }) { $total{kept_shapes}++; next; }
		$total{lost_shapes}++;
		fail("the shape $name has gone");
	}
	for my $handle (sort keys %there)
	{
		my ($rc, $out, $err) = psql("SELECT entries, wrong FROM soak.differences('$handle', 'log')", timeout => 300);
		my ($entries, $wrong) = $rc == 0 ? split /\|/, $out, 2 : (0, $err);
		$total{compared}++;
		$total{entries} += $entries;
		next if ($wrong // '') eq '';
		$total{differences}++;
		my $what = value("SELECT concat_ws(' ', relation, where_clause, columns) FROM electric_cm_shapes WHERE handle = '$handle'") // '';
		fail("the log of shape $handle ($what) differs from the table on $node:\n$wrong");
	}
	return;
}

# Into files dump.NODE.NAME, in a reader's format; returns name => where the base is, of
# which later dumps may have another one.
sub dump_logs
{
	my ($node, $handles) = @_;
	my %base;
	on($node, sub {
		for my $name (sort keys %$handles)
		{
			my $handle = $handles->{$name};
			# another fold meanwhile would be another base
			$base{$name} = value("SELECT coalesce(max(b.lsn - '0/0'), 0) FROM _electric_cm.shape s JOIN _electric_cm.shape_base b ON b.shape = s.id
				WHERE handle = '$handle'") // next;
			my ($rc, $out, $err) = psql("\\pset fieldsep '\\t'\n\\o $tmp/dump.$node.$name\nSELECT " . columns() . " FROM electric_cm_shape_log('$handle')", timeout => 300);
			fail("the log of $name on $node cannot be read: $err") if $rc != 0;
		}
	});
	return \%base;
}

# Lines of a file whose LSN is beyond one, and below another one if that is given
sub lines
{
	my ($file, $after, $below, $only) = @_;
	my @lines;
	open my $fh, '<', $file or return;
	while (my $line = <$fh>)
	{
		my $lsn = lsn_of($line);
		push @lines, $line if $lsn > $after && (!defined $below || $lsn < $below) && (!$only || $line =~ $only);
	}
	return @lines;
}

# usage: first_difference(EXPECTED, GOT): undef, or a text
sub first_difference
{
	my ($expected, $got) = @_;
	my %expected = map { $_ => 1 } @$expected;
	my %got = map { $_ => 1 } @$got;
	my @extra = grep { !$expected{$_} } @$got;
	my @missing = grep { !$got{$_} } @$expected;
	return if !@extra && !@missing && @$expected == @$got && join('', @$expected) eq join('', @$got);
	return (scalar @extra, scalar @missing, sprintf '%d too many%s, %d missing%s%s', scalar @extra, @extra ? ' (' . substr($extra[0], 0, 200) =~ s/\n//r . ')' : '',
		scalar @missing, @missing ? ' (' . substr($missing[0], 0, 200) =~ s/\n//r . ')' : '', @extra || @missing ? '' : ', the order differs or some are double');
}

# Below the switch point, both servers' logs have the same entries.  What a resync has
# found has no xid; a resync that was under way goes on elsewhere on the new primary.
sub compare_with_old
{
	my ($old, $new, $handles, $base, $switch_point, $resyncing) = @_;
	if ($corrupt eq 'failover')
	{
		my $w = sprintf '%X/%X', $switch_point >> 32, $switch_point & 0xFFFFFFFF;
		on($old, sub { must("DELETE FROM _electric_cm.shape_log WHERE (shape, first_lsn, first_op) IN (SELECT shape, first_lsn, first_op
			FROM _electric_cm.shape_log JOIN _electric_cm.shape s ON s.id = shape WHERE handle = '$handles->{int}' AND first_lsn < '$w'
			ORDER BY first_lsn DESC LIMIT 1)"); });
	}
	my $base_old = dump_logs($old, $handles);
	for my $name (sort keys %$handles)
	{
		my $from = max($compared_to{$name} // 0, $base->{$name}, $base_old->{$name} // 0);
		my $only = $resyncing->{$name} ? qr/\t\d+$/ : undef;
		my @old = lines("$tmp/dump.$old.$name", $from, $switch_point, $only);
		my @new = lines("$tmp/dump.$new.$name", $from, $switch_point, $only);
		my @lost = lines("$tmp/dump.$old.$name", max($from, $switch_point - 1));
		$total{old_compared}++;
		$total{old_entries} += @old;
		$total{lost_entries} += @lost;
		my (undef, undef, $text) = first_difference(\@old, \@new) or next;
		$total{differences}++;
		fail("below the switch point $switch_point, the new primary's log of $name differs from the old one's ($old): $text");
	}
	return;
}

# What a reader was told; one that was told is ahead, or its part of the log has been folded.
sub judge_told
{
	my ($name, $switch_point, $awaited) = @_;
	my $ahead = 0;
	for (told_since($name))
	{
		my ($from, $offset, $message) = @$_;
		$total{told}++;
		print "         reader $name at $offset was told by $from: $message\n";
		next if $message =~ /any more/ || lsn_of($offset) < $switch_point;
		$ahead++;
	}
	$total{told_ahead} += $ahead;
	$total{ahead} += $ahead;
	fail("reader $name was ahead, although synchronized_standby_slots is set") if $ahead && $synchronized;
	return;
}

# A reader that has read on has exactly the entries that the log has, since it was
# last looked at; all that it has leads to the table.
sub check_readers
{
	my ($node, $handles, $base, $switch_point) = @_;
	my $at = settle_readers();
	my %of = (%$handles, map { $_ => readers()->{$_}{handle} } keys %{ readers() });
	if ($corrupt =~ /^(?:told|reader)$/)
	{
		my @lines = lines(entries_file('int'), -1);
		splice @lines, $#lines / 2, 1 if $corrupt eq 'reader';
		push @lines, ($switch_point + 8) . "_0\tinsert\t\"public\".\"t_int\"/\"0\"\t{\"id\": \"0\"}\t\t1\n" if $corrupt eq 'told';
		spew(entries_file('int'), @lines);
	}
	for my $name (sort keys %{ readers() })
	{
		my $reader = readers()->{$name};
		my $errors = slurp(entries_file($name) . '.errors');
		fail("reader $name has got errors:\n$errors") if $errors;
		unlink entries_file($name) . '.errors';
		judge_told($name, $switch_point);
		$total{reader_entries} += $at->{$name}{entries} - ($entries_read{$name} // 0);
		$entries_read{$name} = $at->{$name}{entries};
		if (($at->{$name}{state} // '') eq 'gone')
		{
			fail("reader $name was told that its shape is gone") unless $reader->{may_go};
			next;
		}
		$total{reader_checks}++;
		my $from = max($compared_to{$name} // 0, $base->{$name} // 0);
		my @log = lines("$tmp/dump.$node.$name", $from);
		my @got = lines(entries_file($name), $from);
		if (my ($extra, $missing, $text) = first_difference(\@log, \@got))
		{
			$total{wrongly_continued}++;
			fail("reader $name has wrongly continued (switch point $switch_point, log compared from $from): $text");
		}
		else
		{
			replay_reader($name, $of{$name});
		}
		compact($name);
	}
	$compared_to{$_} = max(map { lsn_of($_) } lines("$tmp/dump.$node.$_", 0)) // 0 for keys %$handles;
	return;
}

sub replay_reader
{
	my ($name, $handle) = @_;
	my $file = entries_file($name);
	my ($rc, $out, $err) = psql("BEGIN; TRUNCATE soak.reader_log;\n"
		  . "\\copy soak.reader_log (" . columns() . ") FROM '$file' WITH (FORMAT csv, DELIMITER E'\\t', QUOTE E'\\x01')\n"
		  . "SELECT wrong FROM soak.differences('$handle', 'reader'); COMMIT", timeout => 300);
	return if $rc == 0 && $out eq '';
	$total{differences}++;
	fail("what reader $name has differs from the table: " . ($rc == 0 ? $out : $err));
	return;
}

# Nothing has crashed.
sub check_log_files
{
	for my $node (qw(a b))
	{
		my $text = slurp(log_file($node));
		my $new = substr $text, $log_seen{$node} // 0;
		$log_seen{$node} = length $text;
		my @bad = $new =~ /^(.*(?:was terminated by signal|TRAP: |PANIC: ).*)$/mg;
		fail("server $node has crashed: " . join("\n", @bad)) if @bad;
		my @cores = glob(data($node) . '/core*');
		fail("there is @cores") if @cores;
	}
	return;
}

1;
