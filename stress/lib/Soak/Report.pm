
# Soak::Report: what has happened so far, and the state for a person who was not there.
package Soak::Report;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(basename);
use File::Copy ();
use List::Util qw(sum0);
use Soak::Failures qw(failures say_failures);
use Soak::Settings qw($seed $keep_dir $data $log);
use Soak::Tools qw(say_line chance psql slurp spew);

our @EXPORT_OK = qw(%total dump_state note_error note_live_time note_back note_noticed
  note_injected note_idle injected report);

our %total = (map { $_ => 0 } qw(rounds transactions rows rolled_back prepared
	created dropped invalidated entries compared doubted read copies anew overtaken
	differences));
my %errors;                             # of the stack's own processes, unasked for
my (%injected, %idle_faults, %back);    # by fault
my %noticed;                            # by fault: milliseconds
my @live_times;                         # until all shapes were live, per round

# What the report is made of.
sub note_error { my ($error) = @_; $errors{$error}++; return; }
sub note_live_time { my ($ms) = @_; push @live_times, $ms; return; }
sub note_injected { my ($fault) = @_; $injected{$fault}++; return; }
sub note_idle { my ($fault) = @_; $idle_faults{$fault}++; return; }
sub note_back { my ($fault, $ms) = @_; push @{ $back{$fault} }, $ms; return; }
sub note_noticed { my ($fault, $ms) = @_; push @{ $noticed{$fault} }, $ms; return; }
sub injected { return sum0(values %injected); }

# What a person needs who was not there.
sub dump_state
{
	my ($name) = @_;
	my %queries = (
		shapes => 'SELECT * FROM electric_cm_shapes',
		catalog => 'SELECT * FROM _electric_cm.shape s LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id',
		stack => 'SELECT s.*, p.* FROM _electric_cm.stack s, _electric_cm.progress p',
		manager => 'SELECT * FROM electric_cm_stat_manager',
		connections => 'SELECT * FROM electric_cm_stat_connections',
		replication => 'SELECT * FROM electric_cm_stat_replication',
		consumers => 'SELECT * FROM electric_cm_stat_consumers',
		events => "SELECT * FROM electric_cm_events ORDER BY occurred_at",
		activity => 'SELECT *, pg_blocking_pids(pid) FROM pg_stat_activity ORDER BY backend_start',
		locks => 'SELECT * FROM pg_locks ORDER BY pid',
		slots => 'SELECT *, pg_current_wal_lsn() FROM pg_replication_slots',
		prepared => 'SELECT * FROM pg_prepared_xacts',
	);
	for my $query (sort keys %queries)
	{
		my ($rc, $out, $err) = psql("\\x\n\\pset footer off\n$queries{$query};", lenient => 1, timeout => 20);
		spew("$keep_dir/$name.$query", "$out\n", $err ne '' ? "$err\n" : '');
	}
	my $postmaster = (split /\n/, slurp("$data/postmaster.pid"))[0] // 0;
	my $traces = '';
	for (split /\n/, `ps -o pid=,args= --ppid $postmaster 2>/dev/null`)
	{
		my ($pid, $args) = /^\s*(\d+)\s+(.*)/ or next;
		next unless $args =~ /electric_cm|walsender|pool|logical/ || chance(0.2);
		$traces .= "===== $pid $args\n" . `timeout 30 gdb -p $pid -batch -ex bt 2>&1 | grep '^#'` . "\n";
	}
	spew("$keep_dir/$name.backtraces", $traces);
	for my $core (glob("$data/core*"))
	{
		my $program = `$ENV{PG_CONFIG} --bindir`;
		chomp $program;
		spew("$keep_dir/$name." . basename($core) . '.bt',
			`timeout 60 gdb $program/postgres $core -batch -ex 'bt full' 2>&1`);
	}
	File::Copy::copy($log, "$keep_dir/$name.log");
	return;
}

sub report
{
	say_line('');
	printf "seed %d: %d rounds, %d transactions of %d rows (and %d rolled back, %d prepared),\n", $seed,
	  @total{qw(rounds transactions rows rolled_back prepared)};
	printf "%d shapes created, %d dropped, %d invalidated; %d logs with %d entries compared, %d by electric_cm_resync()\n\n",
	  @total{qw(created dropped invalidated compared entries doubted)};
	printf "readers: %d entries read, %d copies compared, overtaken by a fold: %d, readers that had to start from -1: %d\n",
	  @total{qw(read copies overtaken anew)};
	printf "from the end of the load to all shapes live, ms: %s\n\n", join ' ', map { int } @live_times;
	printf "%-24s %8s %8s   until active again, ms\n", 'fault', 'injected', 'not';
	printf "%-24s %8s %8s   %9s %9s\n", '', '', 'possible', 'median', 'maximum';
	my %names = map { $_ => 1 } (keys %injected, keys %idle_faults, keys %back);
	for my $name (sort keys %names)
	{
		my @times = sort { $a <=> $b } @{ $back{$name} // [] };
		printf "%-24s %8s %8d", $name, $injected{$name} // '', $idle_faults{$name} // 0;
		printf "   %9.0f %9.0f", $times[ $#times / 2 ], $times[-1] if @times;
		say_line('');
	}
	for my $name (sort keys %noticed)
	{
		my @times = sort { $a <=> $b } @{ $noticed{$name} };
		printf "%s: noticed after %.1f s, at most %.1f s\n", $name, $times[ $#times / 2 ] / 1000, $times[-1] / 1000;
	}
	say_line('');
	say_line("$errors{$_} times $_") for sort keys %errors;
	say_line('faults injected: ' . injected() . ", differences: $total{differences}, failures: " . failures());
	say_failures();
	return;
}

1;
