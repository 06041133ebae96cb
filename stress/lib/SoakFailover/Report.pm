# SoakFailover::Report: what has happened so far, and the state for a person who was not
# there.
package SoakFailover::Report;

use strict;
use warnings;

use Exporter 'import';
use File::Copy ();
use Soak::Failures qw(failures say_failures);
use Soak::Settings qw($tmp $seed);
use Soak::Tools qw(say_line psql slurp spew);
use SoakFailover::Settings qw($keep_dir $synchronized $shape_workers);

our @EXPORT_OK = qw(%total %times dump_state note_reason note_kind report);

our %total = map { $_ => 0 } qw(rounds kept resynced resynced_on_purpose lost_shapes kept_shapes compared entries differences old_compared old_entries
	lost_entries reader_entries reader_checks ahead told_ahead told wrongly_continued rebuilt rewound rejoined prepared_survived
	in_creation resyncs_under_way folds);
our %times = map { $_ => [] } qw(promote active silence);
my %kinds;
my %reasons = (awaited => {}, purpose => {});

sub note_kind { my ($kind) = @_; $kinds{$kind}++; return; }
sub note_reason { my ($when, $reason) = @_; $reasons{$when}{$reason}++; return; }

# What both servers say of themselves, their logs, and what the readers have.
sub dump_state
{
	my ($name) = @_;
	my %queries = (
		shapes => 'SELECT * FROM electric_cm_shapes',
		catalog => 'SELECT * FROM _electric_cm.shape s LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id',
		stack => 'SELECT s.*, p.* FROM _electric_cm.stack s, _electric_cm.progress p',
		epochs => 'SELECT * FROM _electric_cm.epoch',
		manager => 'SELECT * FROM electric_cm_stat_manager',
		replication => 'SELECT * FROM electric_cm_stat_replication',
		events => 'SELECT * FROM electric_cm_events ORDER BY occurred_at',
		activity => 'SELECT *, pg_blocking_pids(pid) FROM pg_stat_activity ORDER BY backend_start',
		slots => 'SELECT * FROM pg_replication_slots',
		prepared => 'SELECT * FROM pg_prepared_xacts',
	);
	for my $node (qw(a b))
	{
		local $ENV{PGHOST} = "$tmp/$node";
		for my $query (sort keys %queries)
		{
			my ($rc, $out, $err) = psql("\\x\n\\pset footer off\n$queries{$query};", lenient => 1, timeout => 20);
			spew("$keep_dir/$name.$node.$query", "$out\n", $err ne '' ? "$err\n" : '');
			last if $err =~ /connection to server/;
		}
		File::Copy::copy("$tmp/$node/server.log", "$keep_dir/$name.$node.log");
	}
	File::Copy::copy($_, "$keep_dir/$name." . (split m{/})[-1]) for glob("$tmp/reader.* $tmp/dump.*");
	return;
}

sub median_and_max
{
	my ($what) = @_;
	my @sorted = sort { $a <=> $b } @{ $times{$what} };
	return 'none' unless @sorted;
	return sprintf 'median %.2f s, max %.2f s', $sorted[ $#sorted / 2 ], $sorted[-1];
}

sub list
{
	my ($counts) = @_;
	return join(', ', map { "$counts->{$_} x $_" } sort keys %$counts) || 'none';
}

sub report
{
	say_line('');
	say_line("seed $seed, synchronized_standby_slots " . ($synchronized ? 'set' : 'empty') . ", $shape_workers consumers");
	say_line("rounds: $total{rounds} (" . list(\%kinds) . ')');
	say_line("kept: $total{kept} of $total{rounds}, resynced $total{resynced} (" . list($reasons{awaited})
		  . "); of those that did not wait for the slot, on purpose: $total{resynced_on_purpose} (" . list($reasons{purpose}) . ')');
	say_line("shapes compared with their tables: $total{compared}, $total{entries} entries; made for a failover $total{in_creation},"
		  . " resyncs under way $total{resyncs_under_way}, folds $total{folds}");
	say_line("logs of old and new primary compared: $total{old_compared}, $total{old_entries} entries; entries of lost transactions $total{lost_entries}");
	say_line("prepared transactions that came over a failover: $total{prepared_survived}");
	say_line("old primary: rewound $total{rewound}, just started as a standby $total{rejoined}, made anew $total{rebuilt}");
	say_line("differences: $total{differences}");
	say_line("readers: $total{reader_entries} entries read, compared $total{reader_checks} times; told to begin again $total{told} times,"
		  . " ahead and told $total{told_ahead}, wrongly continued $total{wrongly_continued}");
	say_line('promotion: ' . median_and_max('promote'));
	say_line('active after promotion: ' . median_and_max('active'));
	say_line('longest silence of a reader: ' . median_and_max('silence'));
	say_line('failures: ' . failures());
	say_failures();
	return;
}

1;
