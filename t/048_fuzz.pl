# Random tables, shapes, DML and DDL, from a seed: every shape's log replays to what
# its query returns. t/lib/Fuzz.pm makes them. No command ends a shape: TRUNCATE, other
# columns, partitions that come and go, and what is done to the publication.
#
# FUZZ_SECONDS says for how long, ROUND plays one round only; "make fuzz
# MINUTES=10 SEED=1" is the way to set them. The same seed makes the same
# statements, round by round; it does not decide how the sessions interleave.
use strict;
use warnings;

use ElectricCM qw(new_stack has_xml);
use Fuzz;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{SEED} || 1;
my $seconds = $ENV{FUZZ_SECONDS} || 30;
my $only = $ENV{ROUND};
my $writers = 3;

my $stack = new_stack('main', conf => q{
log_min_messages = warning
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
log_statement = none
deadlock_timeout = '50 ms'
logical_decoding_work_mem = '64 kB'
max_prepared_transactions = 20
electric_cm.reconnect_initial_delay = '50 ms'
electric_cm.reconnect_max_delay = '200 ms'
});
my $node = $stack->node;
my %total = map { $_ => 0 } qw(rounds tables shapes filtered listed refused errored entries rows statements failed resyncs);
my %refused;

# Clauses, and messages that quote them, have letters of all kinds.  What is
# printed must be bytes: a test that prints others dies of the warning.
sub bytes { my ($text) = @_; utf8::encode($text) if utf8::is_utf8($text); return $text; }

note("SEED=$seed");
$stack->sql('CREATE EXTENSION electric_cm');
$stack->sql($Fuzz::types_sql);
Fuzz::forget_type('xml') unless has_xml($node, $stack->db);
$stack->install_compare;
$stack->sql(q{
-- what was asked for, and what became of it
CREATE TABLE "fuzz Types".shape (n int, relation text, clause text, columns text[], may_raise bool, handle text, state text, message text);

CREATE FUNCTION "fuzz Types".shape(n int, relation text, clause text, columns text[], may_raise bool) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	handle text;
	state text := '';
	message text := '';
	detail text;
BEGIN
	BEGIN
		handle := electric_cm_create_shape(relation::regclass, clause, columns);
	EXCEPTION WHEN others THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
		message := concat_ws(' - ', message, detail, clause);
	END;
	IF state NOT IN ('', '55000', '0A000') THEN
		BEGIN
			EXECUTE format('EXPLAIN SELECT FROM %s WHERE %s', relation, clause);
		EXCEPTION WHEN others THEN
			may_raise := may_raise OR SQLSTATE = state;	-- the query is refused as well
		END;
	END IF;
	INSERT INTO "fuzz Types".shape VALUES (n, relation, clause, columns, may_raise, handle, state, message);
	RETURN state;
END $$;
});
ok($stack->active, 'active') or BAIL_OUT('no stack');

sub write_script
{
	my ($name, $text) = @_;
	my $file = $node->basedir . "/$name.sql";
	open my $fh, '>:encoding(UTF-8)', $file or die "$file: $!";
	print $fh "SET client_encoding = 'UTF8';\n$text";
	close $fh;
	return $file;
}

# A script of any size and in any encoding; statements may fail, if asked.
sub start
{
	my ($file, @more) = @_;
	my %session = (file => $file, out => '', err => '', in => '');
	$session{handle} = IPC::Run::start(
		[ 'psql', '-XqAt', '-F', "\x1F", '-d', $node->connstr($stack->db), '-v', 'VERBOSITY=terse', @more, '-f', $file ],
		'<', \$session{in}, '>', \$session{out}, '2>', \$session{err}, IPC::Run::timer($PostgreSQL::Test::Utils::timeout_default));
	return \%session;
}

sub finish
{
	my ($session) = @_;
	$session->{handle}->finish;
	utf8::decode($session->{$_}) for qw(out err);
	return $session;
}

sub run_script
{
	my ($name, $text) = @_;
	my $session = finish(start(write_script($name, $text), '-v', 'ON_ERROR_STOP=1'));
	die bytes("$name: $session->{err}") if $session->{err} =~ /ERROR|FATAL/;
	return $session->{out};
}

# What one session does: transactions; and how many statements that is.
sub script
{
	my ($fuzz, $tables, $round, $n) = @_;
	my $text = "\\set ON_ERROR_ROLLBACK on\nSET lock_timeout = '2 s';\n";
	$text .= $fuzz->transaction($tables, "fuzz $round $n $_") for 1 .. 40;
	$text .= $fuzz->large_transaction($fuzz->pick(@$tables)) if $n == 1;
	return $text;
}

sub shape_sql
{
	my ($n, $relation, $clause, $columns, $raises) = @_;
	return sprintf "SELECT \"fuzz Types\".shape(%d, %s, %s, %s, %s);\n", $n, Fuzz::literal($relation),
	  defined $clause ? Fuzz::literal($clause) : 'NULL', $columns, $raises ? 'true' : 'false';
}

sub random_shape_sql
{
	my ($fuzz, $tables, $n) = @_;
	my $table = $fuzz->pick(@$tables);
	my ($clause, $raises) = $fuzz->chance(85) ? $fuzz->clause($table) : (undef, 0);
	return shape_sql($n, $fuzz->pick(@{ $table->{shapes_of} }), $clause, $fuzz->column_list($table, defined $clause), $raises);
}

# For somebody who was not there.
sub describe
{
	my ($round, $tables, $shape, $what) = @_;
	my ($n, $relation, $clause, $columns) = @$shape;
	my ($table) = grep { grep { $_ eq $relation } @{ $_->{shapes_of} } } @$tables;
	diag(bytes("SEED=$seed ROUND=$round: $what"));
	diag(bytes("shape $n of $relation, columns " . ($columns || 'all') . ", where $clause"));
	diag(bytes($table->{sql})) if $table;
	diag('all statements are in ' . $node->basedir . "/*.sql while ECM_KEEP=1 is set");
	return;
}

my $corrupted = 0;

sub compare
{
	my ($round, $tables) = @_;
	my $wrong = 0;

	for my $line (split /\x{1E}\n?/, run_script('compare', q{
		\pset recordsep '\x1e'
		SELECT s.n, s.relation, coalesce(s.clause, ''), coalesce(s.columns::text, ''), s.may_raise, s.state, s.message,
			coalesce(t.state, 'gone'), coalesce(t.last_error, ''), c.entries, c.rows, c.wrong
		FROM "fuzz Types".shape s LEFT JOIN electric_cm_shapes t USING (handle)
			LEFT JOIN LATERAL ecm_test.compare(handle, s.relation, s.clause, s.columns) c ON t.state = 'live'
		ORDER BY s.n}))
	{
		my ($n, $relation, $clause, $columns, $may_raise, $sqlstate, $message, $state, $error, $entries, $rows, $differs) = split /\x1F/, $line, 12;
		my $what;
		$total{shapes}++;
		if ($sqlstate ne '')
		{
			$total{refused}++;
			$refused{"$sqlstate $message"}++ unless $corrupted;
			$what = "refused: $message" unless $sqlstate eq '55000' || $may_raise eq 't' || $sqlstate eq '0A000';
		}
		elsif ($state eq 'errored' && $may_raise eq 't') { $total{errored}++; }
		elsif ($state ne 'live') { $what = "is $state: $error"; }
		elsif ($differs =~ /\S/ && !($may_raise eq 't' && $differs =~ /^could not be compared/)) { $what = $differs; }
		$total{filtered}++ if $clause ne '' && $state eq 'live';
		$total{listed}++ if $columns ne '' && $state eq 'live';
		$total{entries} += $entries || 0;
		$total{rows} += $rows || 0;
		next unless defined $what;
		$wrong++;
		describe($round, $tables, [ $n, $relation, $clause, $columns ], $what) unless $corrupted || $wrong > 10;
	}
	return $wrong;
}

sub settle
{
	my ($round) = @_;
	$stack->sql(q{SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts \gexec});
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state IN ('creating', 'resyncing')})
	  or fail("SEED=$seed ROUND=$round: shapes become live");
	$stack->settle;
	# those that the last commands have had resynced
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state IN ('creating', 'resyncing')});
	return;
}

# Every type and every construct once, each of which must be possible.
sub play_everything
{
	my $fuzz = Fuzz->new($seed * 1000, generated => $node->pg_version >= 18);
	my ($table, @clauses) = $fuzz->everything;
	my $n = 0;

	run_script('tables', $table->{sql} . $fuzz->rows($table, 0, 40));
	run_script('shapes', join '', map { shape_sql(++$n, $table->{ident}, $_, 'NULL', 0) } @clauses);
	$stack->becomes(q{SELECT count(*) = 0 FROM electric_cm_shapes WHERE state = 'creating'});
	run_script('dml', $fuzz->rows($table, 41, 100) . ";\n"
		  . join('', map { "UPDATE $table->{ident} SET " . join(', ', $fuzz->plain_assignments($table)) . ' WHERE ' . $fuzz->which($table) . ";\n" } 1 .. 40)
		  . "DELETE FROM $table->{ident} WHERE $table->{keys}[0]{ident} % 4 = 0;\n");
	settle(0);
	ok(compare(0, [$table]) == 0, "$n where clauses: one for each construct");
	is($total{refused}, 0, 'all of them are possible');
	return;
}

sub play
{
	my ($round) = @_;
	my $fuzz = Fuzz->new($seed * 1000 + $round, generated => $node->pg_version >= 18);
	my @tables = map { $fuzz->table } 1 .. 3;
	my $n = 0;

	# tables are read whole, or in pieces
	$stack->sql('ALTER SYSTEM SET electric_cm.debug_piece_rows = ' . (1, 0, 3, 10)[$round % 4], 'SELECT pg_reload_conf()');
	run_script('tables', join '', map { $_->{sql} . $fuzz->rows($_, 0, 60) . ";\n" } @tables);
	run_script('shapes', join '', map { random_shape_sql($fuzz, \@tables, ++$n) } 1 .. 14);

	my @sessions;
	push @sessions, start(write_script("writer$_", script($fuzz, \@tables, $round, $_))) for 1 .. $writers;
	my $more = "\\set ON_ERROR_ROLLBACK on\n";
	$more .= $fuzz->transaction(\@tables, "fuzz $round more $_") . random_shape_sql($fuzz, \@tables, ++$n) for 1 .. 10;
	push @sessions, start(write_script('more', $more));
	my $publication = { name => 'electric_cm_publication', sql => $stack->publication_sql('electric_cm_publication', "FOR TABLE $tables[0]{ident}") };
	push @sessions, start(write_script('ddl', "SET lock_timeout = '2 s';\n" . join '', map { $fuzz->ddl(\@tables, $publication) } 1 .. 12));
	for my $session (map { finish($_) } @sessions)
	{
		my $text = slurp_file($session->{file});
		$total{statements} += () = $text =~ /;$/mg;
		$total{failed} += () = $session->{err} =~ /ERROR:(?!  current transaction is aborted)/g;
		my @unexpected = grep { /ERROR:/ && !/duplicate key|deadlock|lock timeout|no partition of relation|partition constraint|another partition|column "extra|already exists|is already member of publication|is not part of the publication|current transaction is aborted/ } split /\n/, $session->{err};
		note(bytes(join "\n", @unexpected)) if @unexpected;
		diag(bytes($session->{err})) if $session->{err} =~ /FATAL|PANIC|server closed/;
	}
	settle($round);
	$total{resyncs} += $stack->sql(q{SELECT count(*) FROM _electric_cm.shape_gap WHERE closed_at IS NOT NULL});
	ok(compare($round, \@tables) == 0, "round $round");
	$total{rounds}++;
	$total{tables} += @tables;
	return;
}

# Away with it all: the shapes go with their tables.
sub clean
{
	$stack->sql(q{
		SELECT format('DROP TABLE IF EXISTS %s CASCADE', oid::regclass) FROM pg_class
		WHERE relnamespace IN ('public'::regnamespace, to_regnamespace('"fuzz Schema"')) AND relkind IN ('r', 'p') AND NOT relispartition \gexec
		DROP SCHEMA IF EXISTS "fuzz Schema" CASCADE;
		TRUNCATE "fuzz Types".shape;});
	return;
}

my $end = time() + $seconds;
if (!$only)
{
	play_everything();
	clean() unless defined $only;
}
for (my $round = $only // 1; $round > 0; $round++)
{
	play($round);
	last if defined $only || time() >= $end || !Test::More->builder->is_passing;
	clean();
}

cmp_ok($total{resyncs}, '>', 0, 'shapes were resynced');

# Can it fail?
$corrupted = 1;
my %before = %total;
$stack->sql(q{DELETE FROM _electric_cm.shape_log WHERE (shape, first_lsn, first_op) IN
	(SELECT DISTINCT ON (shape) shape, first_lsn, first_op FROM _electric_cm.shape_log ORDER BY shape, first_lsn, first_op)});
cmp_ok(compare(0, []), '>', 0, 'a log that lacks something is found out');
%total = %before;
clean();
$stack->becomes('SELECT count(*) = 0 FROM electric_cm_shapes', 'the shapes go with their tables');
is($stack->sql('SELECT electric_cm_status()'), 'active', 'and the stack goes on');
cmp_ok($total{failed}, '<=', $total{statements} / 4, 'most statements are valid');
cmp_ok($total{refused}, '<=', $total{shapes} / 4, 'most shapes are possible');
unlike(slurp_file($node->logfile), qr/TRAP:|PANIC:|terminated by signal/, 'nothing has crashed');

note("$total{rounds} rounds, $total{tables} tables, $total{statements} statements, of which $total{failed} failed, $total{resyncs} resyncs; $total{shapes} shapes, "
	  . "of which $total{refused} refused, $total{errored} errored, $total{filtered} with a where clause, $total{listed} with columns; "
	  . "$total{entries} entries, $total{rows} rows compared");
note(bytes("refused $refused{$_} times: $_")) for sort { $refused{$b} <=> $refused{$a} } keys %refused;
$node->stop;
done_testing();
