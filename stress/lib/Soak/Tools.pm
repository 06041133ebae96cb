
# Soak::Tools: files, processes, psql, chance.
package Soak::Tools;

use strict;
use warnings;

use ElectricCM::Process qw(child);
use Exporter 'import';
use POSIX ();
use Soak::Settings qw($tmp $db $dir);
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(say_line stamp note_line chance pick slurp spew run spawn hold psql value must wait_until);

@ENV{qw(PGHOST PGUSER PGDATABASE PGCONNECT_TIMEOUT)} = ($dir, 'postgres', $db, 10);
$ENV{PGAPPNAME} = 'soak';

# whatever is set for database and role is meant for the stack, not for us
$ENV{PGOPTIONS} = '-c default_transaction_isolation=read\ committed ' . join ' ', map { "-c $_" } qw(
	role=none search_path=public datestyle=ISO timezone=UTC intervalstyle=postgres bytea_output=hex extra_float_digits=1
	default_transaction_read_only=off statement_timeout=0 lock_timeout=0 idle_in_transaction_session_timeout=0
	session_replication_role=origin row_security=on standard_conforming_strings=on quote_all_identifiers=off work_mem=4MB
	array_nulls=on synchronous_commit=on enable_indexscan=on enable_seqscan=on log_statement=none xmloption=content);
$| = 1;

my $psql_count = 0;

sub say_line { print join(' ', @_), "\n"; return; }
sub stamp { return POSIX::strftime('%H:%M:%S', localtime); }
sub note_line { print '# ', stamp(), ' ', join(' ', @_), "\n" if $ENV{VERBOSE}; return; }
sub chance { return rand() < $_[0]; }
sub pick { return $_[int(rand(@_))]; }

sub slurp
{
	my ($file) = @_;
	local $/;
	open my $fh, '<', $file or return '';
	my $text = <$fh>;
	return $text // '';
}

sub spew
{
	my ($file, @text) = @_;
	open my $fh, '>', $file or die "$file: $!\n";
	print $fh @text;
	close $fh or die "$file: $!\n";
	return;
}

# usage: spawn(CODE, TERM => HANDLER)
# A process that chooses for itself; without a handler, SIGTERM ends it.
sub spawn
{
	my ($code, %handlers) = @_;
	return child(sub { srand(int(rand(1 << 30)) ^ $$); $code->(); }, %handlers);
}

# Something that lasts, in a process of its own so that it ends in any case.
sub hold
{
	my ($code) = @_;
	return { pid => spawn($code) };
}

# Runs a command with its output in files; returns its exit code, -1 if it was
# killed.
sub run
{
	my ($out, $err, @command) = @_;
	my $pid = child(sub {
		open STDIN, '<', '/dev/null' or POSIX::_exit(99);
		open STDOUT, '>', $out or POSIX::_exit(99);
		open STDERR, '>', $err or POSIX::_exit(99);
		exec @command or POSIX::_exit(99);
	});
	while (waitpid($pid, 0) < 0) { die "wait: $!\n" unless $!{EINTR}; }
	return $? & 127 ? -1 : $? >> 8;
}

# usage: psql(SCRIPT, timeout => SECONDS, lenient => 1, db => NAME)
# Returns (exit code, output, errors).  A server that does not answer at all
# costs the timeout, not more.
sub psql
{
	my ($script, %opt) = @_;
	my $file = "$tmp/psql." . $$ . '.' . $psql_count++ % 8;
	my $timeout = $opt{timeout} // 120;
	spew("$file.sql", $script);
	my $rc = run("$file.out", "$file.err", 'timeout', '-k', 5, $timeout,
		'psql', '-XAt', ($opt{lenient} ? () : ('-q', '-v', 'ON_ERROR_STOP=1')),
		'-d', $opt{db} // $db, '-f', "$file.sql");
	my ($out, $err) = (slurp("$file.out"), slurp("$file.err"));
	chomp $out;
	$err =~ s/^psql:\S*?:\d+: //gm;
	$err = "no answer within $timeout s" if $rc == 124 || $rc == -1;
	chomp $err;
	return ($rc, $out, $err);
}

# One value or more; undef if it could not be had.
sub value
{
	my ($rc, $out) = psql(@_);
	return $rc == 0 ? $out : undef;
}

# The same, where there is no excuse.
sub must
{
	my ($rc, $out, $err) = psql(@_);
	die "$_[0]: $err\n" if $rc != 0;
	return $out;
}

sub wait_until
{
	my ($seconds, $condition) = @_;
	my $end = time() + $seconds;
	until ($condition->())
	{
		return 0 if time() > $end;
		sleep 0.1;
	}
	return 1;
}

1;
