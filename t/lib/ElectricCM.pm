
# ElectricCM: what the TAP tests share, on top of PostgreSQL::Test::Cluster.
package ElectricCM;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

use ElectricCM::Stack ();

our @EXPORT_OK = qw(new_stack new_impatient_stack new_node poll wait_active becomes settle replay_equals install_compare has_xml
  server_major source_constant measures_memory memory_mb fails_with);

=pod

=head1 NAME

ElectricCM - helpers for electric_cm's TAP tests

=head1 SYNOPSIS

  use ElectricCM qw(new_stack);

  my $stack = new_stack('main', conf => "electric_cm.pool_size = 2\n");
  $stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY)');
  ok($stack->active, 'becomes active');
  $stack->replays($stack->live_shape('t'), 't', 'an empty table');

What a stack can do is in ElectricCM::Stack. Functions that take a server and
a database are for tests of several of them.

=head1 FUNCTIONS

=over

=item new_node($name, %opts)

A started server that has electric_cm preloaded. Options:

  preload => 0     leave shared_preload_libraries alone
  conf    => text  lines for the end of postgresql.conf
  init    => {}    further arguments for PostgreSQL::Test::Cluster's init()
  start   => 0     don't start it

Cluster.pm sets fsync = off, and restart_after_crash = off. A test that kills a
worker must turn the latter on again, or the server stays down.

=cut

sub new_node
{
	my ($name, %opts) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => 'logical', %{ $opts{init} // {} });

	# max_connections is 10 in a streaming node, too few for the walsender,
	# the pool and a test's own sessions together
	$node->append_conf(
		'postgresql.conf', q{
max_connections = 50
max_worker_processes = 16
max_prepared_transactions = 10
});
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'electric_cm'\n")
	  if $opts{preload} // 1;
	$node->append_conf('postgresql.conf', $opts{conf}) if defined $opts{conf};
	$node->start if $opts{start} // 1;
	return $node;
}

=pod

=item new_stack($name, %opts)

A server as by new_node(), whose options it takes, too. Returns the
ElectricCM::Stack of its database "postgres", or of another one:

  db      => name

The extension is not created: the test does that.

=cut

sub new_stack
{
	my ($name, %opts) = @_;
	my $db = delete $opts{db};
	return ElectricCM::Stack->new(new_node($name, %opts), $db);
}

=pod

=item new_impatient_stack()

A server whose wal_sender_timeout is 2 s, so that a stream that hangs is noticed
soon. The stack is active, and has a shape of table t that has been read once.
Returns the stack and the shape's handle.

=cut

sub new_impatient_stack
{
	my $stack = new_stack('main', conf => q{
wal_sender_timeout = '2 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
});
	$stack->sql('CREATE EXTENSION electric_cm');
	Test::More::ok($stack->active, 'active');
	$stack->sql('CREATE TABLE t (id int PRIMARY KEY, t text)');
	my $handle = $stack->shape('t');
	$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')");
	return ($stack, $handle);
}

=pod

=item poll($node, $db, $query, $expected)

Wait until a query, a single SELECT, returns that: "t", if it is not said. As PostgreSQL::Test::Cluster's
poll_query_until(), which starts a psql for each look; but that costs far more than the look. Here one looks a
hundred times, unless it loses its connection.

=cut

sub poll
{
	my ($node, $db, $query, $expected) = @_;
	my $looks = 100;
	my $left = 10 * $PostgreSQL::Test::Utils::timeout_default;
	my $script = join "\n", 'SELECT format(\'%s\', (', $query =~ s/;\s*\z//r,
	  ')) = ' . _quote($expected // 't') . ' AS seen \gset',
	  '\if :seen', '\echo seen', '\q', '\endif', "SELECT pg_sleep(0.1) \\g /dev/null\n";
	my ($rc, $stdout, $stderr);

	while ($left > 0)
	{
		($rc, $stdout, $stderr) = $node->psql($db, $script x $looks);
		return 1 if $stdout eq 'seen';
		usleep(100_000) if $rc;
		$left -= $rc ? 1 : $looks;
	}
	($rc, $stdout) = $node->psql($db, $query);
	diag("waited in vain for this query:\n$query\nto return: " . ($expected // 't') . "\nit returns: $stdout\n$stderr");
	return 0;
}

=pod

=item wait_active($node, $db)

Wait until the stack of a database is active. False, with a diagnosis, if it
isn't within the tests' usual timeout.

=cut

sub wait_active
{
	my ($node, $db) = @_;

	return 1
	  if poll($node, $db, 'SELECT electric_cm_status()', 'active');

	my ($rc, $stdout, $stderr) = $node->psql(
		$db,
		'SELECT * FROM electric_cm_stat_manager',
		extra_params => ['--expanded']);
	diag("database $db does not become active:\n$stdout$stderr");
	return 0;
}

=pod

=item becomes($node, $db, $query, $what)

Wait until a query returns true, as a test of that name; without a name, just
wait. If it doesn't, say what the stack is doing and what has happened to it.

=cut

sub becomes
{
	my ($node, $db, $query, $what) = @_;
	my $ok = poll($node, $db, $query);

	ok($ok, $what) if defined $what;
	return 1 if $ok;
	for my $view (qw(electric_cm_stat_manager electric_cm_events))
	{
		my ($rc, $stdout, $stderr) = $node->psql($db, "SELECT * FROM $view");
		diag("$view:\n$stdout$stderr");
	}
	return 0;
}

=pod

=item settle($node, $db, $lsn)

Wait until the shapes' logs have all that has been committed, or what has been
until a position in the WAL. An error, which ends the test, if that takes longer
than the tests' usual timeout.

=cut

sub settle
{
	my ($node, $db, $lsn) = @_;
	$lsn = defined $lsn ? "'$lsn'" : 'NULL';
	return $node->safe_psql($db,
		"SELECT electric_cm_await_flushed($lsn, '$PostgreSQL::Test::Utils::timeout_default s')");
}

=pod

=item fails_with($node, $db, $regex, $what, @sql)

A test: the last statement fails, with an error like that, SQLSTATE, DETAIL and HINT included.

=cut

sub fails_with
{
	my ($node, $db, $regex, $what, @sql) = @_;
	my ($rc, $out, $err) = $node->psql($db, "\\set VERBOSITY verbose\n" . join(";\n", @sql));
	return like($err, $regex, $what);
}

=pod

=item write_wal($node, $db, $mb)

Write that much WAL, for no table in particular.

=cut

sub write_wal
{
	my ($node, $db, $mb) = @_;

	# with a transaction ID, so that its commit flushes the WAL: what is not
	# written yet is not retained
	$node->safe_psql($db,
		"SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1024 * 1024))), pg_current_xact_id() FROM generate_series(1, $mb)");
	return;
}

=pod

=item replay_equals($node, $db, $handle, $table, \@keycols, %opts)

Replay a shape's log (insert sets, update merges, delete removes) and compare
the outcome with the table. The log must also agree with itself: no insert of a
row that is there, no update or delete of a row that isn't, offsets strictly
ascending. The rows alone would not do: a log with an entry twice, or with one
missing in the middle, may well replay to the right rows.

The log must be up to date already: see settle() in ElectricCM::Stack. The key
columns are used only to name the rows that differ. Options that say how the
shape was declared: where => 'id > 10', columns => [...].

Returns (ok, number of entries in the log); says what is wrong by diag().

=cut

sub replay_equals
{
	my ($node, $db, $handle, $table, $keycols, %opts) = @_;
	my $where = defined $opts{where} ? "WHERE $opts{where}" : '';
	my $log = _quote($handle);
	my ($columns, $values) = _columns($node, $db, $table, $opts{columns});
	my $key = join ', ', @{ $keycols // [] };
	$key = $key eq '' ? $columns : $key;

	# the functions of the oracle, for this session only
	my $replay = _replay_sql() =~ s/^CREATE SCHEMA.*$//mr =~ s/\becm_test\b/pg_temp/gr;

	# Both sides are compared in their types' own text form, so that types
	# without an equality operator can be compared too.  On the side of the
	# log, that goes by a cast for each column, for jsonb_populate_record
	# makes a json column of a string a JSON string.
	my $result = $node->safe_psql(
		$db, qq{
SET log_statement = none;
SET client_min_messages = warning;
SET work_mem = '256MB';
$replay
CREATE TEMP TABLE ecm_replayed AS
	SELECT $values FROM pg_temp.replayed($log) AS merged (value);
CREATE TEMP VIEW ecm_table AS SELECT $columns FROM $table $where;

CREATE TEMP TABLE ecm_missing AS
	SELECT r::text AS r, ROW($key)::text AS k FROM ecm_table r
	EXCEPT ALL SELECT r::text, ROW($key)::text FROM ecm_replayed r;
CREATE TEMP TABLE ecm_extra AS
	SELECT r::text AS r, ROW($key)::text AS k FROM ecm_replayed r
	EXCEPT ALL SELECT r::text, ROW($key)::text FROM ecm_table r;

CREATE TEMP TABLE ecm_checked AS SELECT * FROM pg_temp.check_log($log);

SELECT entries, (SELECT count(*) FROM ecm_missing), (SELECT count(*) FROM ecm_extra), odd FROM ecm_checked;
(SELECT 'in the table only: ' || k || ': ' || left(r, 200) FROM ecm_missing LIMIT 5)
UNION ALL
(SELECT 'in the replay only: ' || k || ': ' || left(r, 200) FROM ecm_extra LIMIT 5)
UNION ALL
(SELECT unnest(examples) FROM ecm_checked);
});

	my ($counts, @examples) = split /\n/, $result;
	my ($entries, $missing, $extra, $odd) = split /\|/, $counts;
	my $ok = $missing == 0 && $extra == 0 && $odd == 0;

	diag( "replay of shape $handle, $entries entries: $missing rows only in "
		  . "$table, $extra only in the replay, $odd entries out of place")
	  unless $ok;
	diag("    $_") for @examples;
	return ($ok, $entries);
}

=pod

=item has_xml($node, $db)

Was the server built with libxml?

=cut

sub has_xml
{
	my ($node, $db) = @_;
	my ($rc) = $node->psql($db, q{SELECT '<a/>'::xml});
	return $rc == 0;
}

=pod

=item measures_memory

Is a process's memory what the server needs? On Linux, without a sanitizer, which
needs more. Skip what follows if not.

=item memory_mb($pid, $what)

A process's memory in MB: VmHWM, its peak, or RssAnon, what it has of its own now.
0 if there is no such process.

=cut

sub measures_memory { return -r '/proc/self/status' && !$ENV{ASAN_OPTIONS}; }

sub memory_mb
{
	my ($pid, $what) = @_;
	my ($kb) = -r "/proc/$pid/status" ? slurp_file("/proc/$pid/status") =~ /^$what:\s+(\d+) kB/m : ();
	return int(($kb // 0) / 1024);
}

=pod

=item server_major($node)

The server's major version, as a number.  A release candidate has it already:
pg_version compares as less.

=cut

sub server_major
{
	my ($node) = @_;
	my ($major) = $node->pg_version =~ /^(\d+)/;
	return $major;
}

=pod

=item source_constant($name)

The value of a #define of a number, or of a product of numbers, in src/: for a
test of what happens at a border, which must know when the border is moved.

=cut

sub source_constant
{
	my ($name) = @_;
	my $src = dirname(__FILE__) . '/../../src';

	for my $file (glob "$src/*/*.[ch]")
	{
		my ($value) = slurp_file($file) =~ /^#define[ \t]+\Q$name\E[ \t]+\(?([\d *]+)\)?[ \t]*(?:\/\*.*)?$/m
		  or next;
		my $product = 1;
		$product *= $_ for $value =~ /\d+/g;
		return $product;
	}
	die "src/ defines no number $name\n";
}

=pod

=item install_compare($node, $db)

For tests that compare many shapes with their tables in one query: create the
function ecm_test.compare(handle, relation, clause, columns), which does the same
as replay_equals(). Clause and columns are NULL if the shape has none. It returns
the number of entries, the number of rows, and a text that says what is wrong,
NULL if nothing is. No value is as good as null: of a column that was added without
values, there are no entries; nor are there of one that was dropped, so of a shape of
all columns, those that the table has not any more don't count.

=cut

sub install_compare
{
	my ($node, $db) = @_;

	$node->safe_psql($db, _replay_sql() . q{
-- Replays a log and compares the outcome with the query, and the log with
-- itself. Both as the text that the types' output functions make.
CREATE FUNCTION ecm_test.compare(handle text, relation text, clause text, columns text[],
	OUT entries bigint, OUT rows bigint, OUT wrong text)
LANGUAGE plpgsql AS $$
DECLARE
	query text;
	names text[];
BEGIN
	SELECT string_agg(format('%L, CASE WHEN num_nonnulls(%2$I) = 1 THEN format(''%%s'', %2$I) END', attname, attname), ', '), array_agg(attname)
		INTO query, names
		FROM pg_attribute
		WHERE attrelid = relation::regclass AND attnum > 0 AND NOT attisdropped AND (attgenerated = '' OR (attgenerated = 's' AND current_setting('server_version_num')::int >= 180000))
			AND (columns IS NULL OR attname = ANY (columns));
	query := format('SELECT jsonb_strip_nulls(jsonb_build_object(VARIADIC ARRAY[%s]::text[])) AS r FROM %s', query, relation) || coalesce(' WHERE ' || clause, '');
	EXECUTE format($sql$
		WITH replayed AS MATERIALIZED (
			SELECT jsonb_strip_nulls(r - ARRAY(SELECT name FROM jsonb_object_keys(r) name WHERE name <> ALL ($1))) AS r
			FROM ecm_test.replayed(%1$L) r),
		checked AS MATERIALIZED (SELECT * FROM ecm_test.check_log(%1$L)),
		expected AS MATERIALIZED (%2$s),
		missing AS (SELECT r FROM expected EXCEPT ALL SELECT r FROM replayed),
		extra AS (SELECT r FROM replayed EXCEPT ALL SELECT r FROM expected),
		wrong AS (
			(SELECT 'in the query only: ' || left(r::text, 1000) AS r FROM missing LIMIT 5)
			UNION ALL (SELECT 'in the replay only: ' || left(r::text, 1000) FROM extra LIMIT 5)
			UNION ALL (SELECT 'out of place in the log: ' || unnest(examples) FROM checked))
		SELECT (SELECT entries FROM checked), (SELECT count(*) FROM expected), (SELECT string_agg(r, E'\n') FROM wrong)
	$sql$, handle, query) INTO entries, rows, wrong USING CASE WHEN columns IS NULL THEN names END;
EXCEPTION WHEN others THEN
	wrong := 'could not be compared: ' || SQLERRM;
END $$;
});
	return;
}

# The functions that replay a log and check it; see replay.sql
sub _replay_sql { return slurp_file(dirname(__FILE__) . '/replay.sql'); }

# The columns that a log has: (a list of names, a list of expressions that take
# them out of a jsonb "value"), each as SQL.
sub _columns
{
	my ($node, $db, $table, $wanted) = @_;
	my $regclass = _quote($table) . '::regclass';
	my $filter =
	  defined $wanted
	  ? 'AND attname IN (' . join(', ', map { _quote($_) } @$wanted) . ')'
	  : '';
	my $lists = $node->safe_psql(
		$db, qq{
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) || E'\\n' ||
	string_agg(format('(value->>%L)::%s AS %I', attname,
		format_type(atttypid, atttypmod), attname), ', ' ORDER BY attnum)
FROM pg_attribute
WHERE attrelid = $regclass AND attnum > 0 AND NOT attisdropped
	AND (attgenerated = '' OR (attgenerated = 's' AND current_setting('server_version_num')::int >= 180000)) $filter});
	return split /\n/, $lists;
}

sub _quote
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return "'$text'";
}

=pod

=back

=cut

1;
