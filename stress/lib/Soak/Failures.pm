
# Soak::Failures: what has gone wrong, with what a person needs of it who was not there.
package Soak::Failures;

use strict;
use warnings;

use Exporter 'import';
use File::Path qw(make_path);
use Soak::Settings qw($seed);
use Soak::Tools qw(say_line stamp spew);

our @EXPORT_OK = qw($round keep_failures fail is_over failures say_failures);

our $round = 0;
my %keep;
my @failures;
my $over = 0;

# usage: keep_failures(dir => DIRECTORY, dump => CODE, most => N)
# The code gets a name, and dumps the state to files in the directory that begin so.
sub keep_failures { %keep = @_; return; }

# usage: fail(TEXT, fatal => 1)
# Nothing goes on after a fatal one, or after too many.
sub fail
{
	my ($text, %opt) = @_;
	push @failures, "round $round: $text";
	say_line(stamp(), 'FAILURE', $text);
	make_path($keep{dir});
	my $name = "round$round.failure" . @failures;
	eval { $keep{dump}->($name); 1 } or print STDERR $@;
	spew("$keep{dir}/$name.what", "$text\nseed $seed\n");
	say_line("         kept: $keep{dir}/$name.*");
	return unless $opt{fatal} || @failures >= $keep{most};
	$over = 1;
	die "it is over\n";
}

sub is_over { return $over; }
sub failures { return scalar @failures; }

sub say_failures
{
	say_line("FAILURE $_") for @failures;
	say_line("logs: $keep{dir}") if @failures;
	return;
}

1;
