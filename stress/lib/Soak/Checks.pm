
# Soak::Checks: at the end of a round all must be well.
package Soak::Checks;

use strict;
use warnings;

use Exporter 'import';
use File::Path qw(make_path);
use Soak::Failures qw($round fail failures);
use Soak::Faults qw(poll_held);
use Soak::Load qw(stop_workers);
use Soak::Report qw(%total dump_state note_error note_live_time);
use Soak::Server qw($kills await_server);
use Soak::Settings qw($deadline $keep_dir $log);
use Soak::Shapes qw(%shapes drop_shape resolve_prepared);
use Soak::Stack qw(await_active);
use Soak::Tools qw(chance must psql say_line slurp spawn stamp value wait_until);
use Time::HiRes qw(time);

our @EXPORT_OK = qw(settle slow_steps corrupt check_shapes compare_shapes check_log);

my $slow_step = 20;    # seconds that none of what settles should take
my @slow_steps;        # in this round

sub slow_steps { return @slow_steps; }

# Says what is waited for, if that lasts, and keeps what there is to see of it.
# The watch ends when its pipe does: a signal could come before it is ready.
sub step
{
	my ($what, $code) = @_;
	my $began = time();
	pipe(my $over, my $lasting) or die "pipe: $!\n";
	my $watch = spawn(sub {
		close $lasting;
		my $ready = '';
		vec($ready, fileno($over), 1) = 1;
		return if select($ready, undef, undef, $slow_step);
		# those who began to wait before the clock was set back have yet to begin
		my $locks = value("SELECT string_agg(concat_ws(' ', pid, application_name,
				'for', date_trunc('second', clock_timestamp() - waitstart), 'blocked by', pg_blocking_pids(pid)), '; ')
			FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted", timeout => 20);
		say_line(stamp(), "round $round: $what takes more than $slow_step s; who waits for locks: " . ($locks || 'nobody'));
		make_path($keep_dir);
		dump_state("round$round.slow");
		say_line("         kept: $keep_dir/round$round.slow.*");
	});
	close $over;
	my $done = eval { $code->(); 1 };
	my $err = $@;
	my $seconds = time() - $began;
	close $lasting;
	waitpid($watch, 0);
	die $err unless $done;
	push @slow_steps, sprintf('%s %.1f s (and %.1f s to keep that)', $what, $seconds, time() - $began - $seconds)
	  if $seconds > $slow_step;
	return;
}

sub await_live
{
	my $began = time();
	my $live = wait_until($deadline, sub {
		my $creating = value("SELECT count(*) FROM electric_cm_shapes WHERE state IN ('creating', 'resyncing')");
		resolve_prepared(1) if time() - $began > 3;
		return defined $creating && $creating == 0;
	});
	fail('shapes do not become live: ' . (value("SELECT string_agg(handle || ' of ' || relation || ': ' ||
		coalesce(waiting_for, 'waits for nothing'), '; ') FROM electric_cm_shapes WHERE state IN ('creating', 'resyncing')") // '')) unless $live;
	return;
}

# Nobody writes, so all logs are equal to their tables.  What is prepared would be
# waited for, so await_live() would commit it behind the gaps: it would be found.
sub doubt
{
	resolve_prepared(1);
	must("SELECT electric_cm_await_flushed(timeout => '120 s')");
	my $xid = must("BEGIN; SELECT electric_cm_resync(); SELECT 'xid ' || pg_current_xact_id(); COMMIT") =~ /xid (\d+)/ ? $1 : die "no xid\n";
	must("SELECT electric_cm_await_flushed(timeout => '120 s')");
	await_live();
	my ($shapes, $compared, $differing) = split /\|/, must("SELECT count(*), coalesce(sum(compared), 0), coalesce(sum(entries), 0)
		FROM _electric_cm.shape_gap WHERE order_xid = '$xid' AND closed_at IS NOT NULL");
	$total{doubted} += $shapes;
	return unless $differing;
	$total{differences}++;
	return fail("electric_cm_resync() has found $differing differences in $compared rows of $shapes shapes: "
		  . must("SELECT string_agg(s.handle || ' of ' || s.relation::regclass || ': ' || g.entries, '; ')
			FROM _electric_cm.shape_gap g JOIN _electric_cm.shape s ON s.id = g.shape WHERE g.order_xid = '$xid' AND entries > 0"));
}

# The stack is idle at last, or somebody has to know why it isn't.
sub settle
{
	my ($last) = @_;
	@slow_steps = ();
	step('the end of what is held', sub { poll_held(1) });
	step('the end of the workers', \&stop_workers);
	step('the server', \&await_server);
	step('the stack', sub { await_active(0, 'the round') });
	resolve_prepared(1) if chance(0.5) || $last;
	step('electric_cm_await_flushed()', sub {
		my ($rc, $out, $err) = psql("SELECT electric_cm_await_flushed(timeout => '120 s')", timeout => 150);
		fail("electric_cm_await_flushed(): $err", fatal => 1) if $rc != 0;
	});
	my $began = time();
	step('the creation of shapes', \&await_live);
	note_live_time((time() - $began) * 1000);
	step('electric_cm_resync()', \&doubt) if chance(0.3);
	return;
}

# Nothing is gone without a reason, and nothing is there that should be gone.
sub check_shapes
{
	my %there;
	for (split /\n/, must("SELECT handle, state, relation, owner, log_entries, last_error FROM electric_cm_shapes"))
	{
		my ($handle, $state, $rel, $owner, $entries, $error) = split /\|/;
		$there{$handle} = $state;
		my $shape = $shapes{$handle} //= { rel => $rel, owner => $owner, entries => 0, hash => 0, base => '', round => $round };
		$shape->{size} = $entries;
		fail("shape $handle of $rel is $state: " . ($error // '')) if $state eq 'errored' && !$shape->{may_go} && !$shape->{must_go};
		fail("shape $handle of $rel should be gone") if $shape->{must_go};
	}
	for my $handle (sort keys %shapes)
	{
		my $shape = $shapes{$handle};
		my $allowed = $shape->{must_go} || delete $shape->{may_go};
		next if $there{$handle} && $there{$handle} eq 'live' && !$shape->{must_go};
		fail("shape $handle of $shape->{rel}, created in round $shape->{round}, is gone")
		  unless $there{$handle} || $allowed;
		$total{invalidated}++ unless $there{$handle} || $shape->{dropped};
		delete $shapes{$handle};
	}
	return;
}

sub compare_shape
{
	my ($handle) = @_;
	my $shape = $shapes{$handle};
	my ($rc, $out, $err) = psql("SELECT entries, missing, extra, odd, changed, hash, base, examples
		FROM soak.compare('$handle', '$shape->{rel}', $shape->{entries}, $shape->{hash}, '$shape->{base}')", timeout => 600);
	return fail("the log of $shape->{rel} could not be replayed: $err") if $rc != 0;
	my ($entries, $missing, $extra, $odd, $changed, $hash, $base, $examples) = split /\|/, $out, 8;
	$total{entries} += $entries;
	$total{compared}++;
	@$shape{qw(entries hash base)} = ($entries, $hash, $base);
	my @wrong;
	push @wrong, "$missing rows only in the table" if $missing;
	push @wrong, "$extra rows only in the replay" if $extra;
	push @wrong, "$odd entries out of place" if $odd;
	push @wrong, 'what was read before has changed' if $changed eq 't';
	return unless @wrong;
	$total{differences}++;
	fail("shape $handle of $shape->{rel} (created in round $shape->{round}, $entries entries): "
		  . join(', ', @wrong) . "\n$examples");
	return drop_shape($handle);
}

sub compare_shapes
{
	compare_shape($_) for sort keys %shapes;
	return scalar keys %shapes;
}

# Can the comparison fail?  CORRUPT=chunk takes a chunk out of each log,
# CORRUPT=double repeats one, CORRUPT=shape takes a whole shape away.
sub corrupt
{
	my ($how) = @_;
	my %sql = (
		chunk => 'DELETE FROM _electric_cm.shape_log WHERE (shape, first_lsn, first_op) IN
			(SELECT DISTINCT ON (shape) shape, first_lsn, first_op FROM _electric_cm.shape_log ORDER BY shape, random())',
		double => "INSERT INTO _electric_cm.shape_log SELECT DISTINCT ON (shape) shape, pg_current_wal_lsn(), 0, entries,
			captured_xid, total_entries, total_bytes, data FROM _electric_cm.shape_log ORDER BY shape, random()",
		shape => 'DELETE FROM _electric_cm.shape WHERE id = (SELECT min(id) FROM _electric_cm.shape)',
	);
	return if $how eq 'reader' || $how eq 'offset';    # see Soak::Readers
	return must($sql{$how} // die "CORRUPT=chunk, double, shape, reader or offset\n");
}

# A crash that nobody has asked for.
sub check_log
{
	my $text = slurp($log);
	my @killed = $text =~ /was terminated by signal (\d+)/g;
	fail('a process crashed: ' . join(', ', $text =~ /^(.*(?:was terminated by signal (?!9)|TRAP: |PANIC: ).*)$/mg))
	  if $text =~ /was terminated by signal (?!9\b)|TRAP: |PANIC: /;
	fail(scalar(@killed) . " processes killed, $kills by us") if @killed > $kills && $text !~ /signal (?!9\b)/;
	$kills = 0;

	# they mend themselves, but should not have to
	while ($text =~ /\] (electric_cm \w+) .*?(?:ERROR|FATAL|PANIC): +(.*)$/mg)
	{
		my ($who, $what) = ($1, $2);
		next if $what =~ /administrator command|shutting down|the database system is/;
		$what =~ s/\d+/N/g;
		note_error("$who: $what");
	}
	truncate $log, 0 unless failures() || $ENV{KEEP_LOG};
	return;
}

1;
