
# ElectricCM::Stack: a database with a stack, as the tests look at it.
package ElectricCM::Stack;

use strict;
use warnings;

use ElectricCM ();
use Test::More ();

=pod

=head1 NAME

ElectricCM::Stack - a database of a test's server, and its stack

=head1 SYNOPSIS

  use ElectricCM qw(new_stack);

  my $stack = new_stack('main', conf => "electric_cm.pool_size = 2\n");
  $stack->sql('CREATE EXTENSION electric_cm', 'CREATE TABLE t (id int PRIMARY KEY)');
  ok($stack->active, 'becomes active');
  my $handle = $stack->live_shape('t');
  $stack->sql('INSERT INTO t VALUES (1)');
  $stack->replays($handle, 't', 'an insert');

=head1 METHODS

=over

=item ElectricCM::Stack->new($node, $db)

The stack of a database of a server that exists; ElectricCM::new_stack makes both.

=item $stack->node, $stack->db

The PostgreSQL::Test::Cluster, and the name of the database.

=item $stack->beside($db)

The stack of another database of that server.

=cut

sub new
{
	my ($class, $node, $db) = @_;
	return bless { node => $node, db => $db // 'postgres' }, $class;
}

sub node { my ($self) = @_; return $self->{node}; }
sub db { my ($self) = @_; return $self->{db}; }
sub beside { my ($self, $db) = @_; return ElectricCM::Stack->new($self->{node}, $db); }

=pod

=item $stack->sql(@statements)

Run statements in one session, each in a transaction of its own, and return what
they print: fields separated by "|", a row a line. An error ends the test.

=item $stack->error_of_sql(@statements)

Run statements, one of which must fail: returns what psql says, with SQLSTATE.
The empty string if none has failed.

=cut

sub sql
{
	my ($self, @statements) = @_;
	return $self->{node}->safe_psql($self->{db}, join(";\n", @statements));
}

sub error_of_sql
{
	my ($self, @statements) = @_;
	my ($rc, $stdout, $stderr) =
	  $self->{node}->psql($self->{db}, join(";\n", "\\set VERBOSITY verbose\n" . shift @statements, @statements));
	return $rc == 0 ? '' : $stderr;
}

=pod

=item $stack->active

Wait until the stack is active: see ElectricCM::wait_active.

=item $stack->becomes($query, $what)

Wait until a query returns true: see ElectricCM::becomes.

=item $stack->seen($condition, $what)

The same for a condition: any text that can follow SELECT.

=item $stack->settle($lsn)

Wait until the shape logs have all that has been committed, or all that was
committed before a position in the WAL.

=item $stack->write_wal($mb)

Write that much WAL, for no table in particular.

=item $stack->events($event, $condition)

How many events of that name there are, of those that the condition holds for.

=cut

sub active { my ($self) = @_; return ElectricCM::wait_active($self->{node}, $self->{db}); }
sub becomes { my ($self, $query, $what) = @_; return ElectricCM::becomes($self->{node}, $self->{db}, $query, $what); }
sub seen { my ($self, $condition, $what) = @_; return $self->becomes("SELECT $condition", $what); }
sub settle { my ($self, $lsn) = @_; return ElectricCM::settle($self->{node}, $self->{db}, $lsn); }
sub write_wal { my ($self, $mb) = @_; return ElectricCM::write_wal($self->{node}, $self->{db}, $mb); }

sub events
{
	my ($self, $event, $condition) = @_;
	$condition //= 'true';
	return $self->sql("SELECT count(*) FROM electric_cm_events WHERE event = '$event' AND ($condition)");
}

=pod

=item $stack->publication_sql($name, $of, @options)

The command that makes a publication as a stack needs it: from 18 on it says
that stored generated columns are published.

=item $stack->shape($table, %opts)

Create a shape of a table, and return its handle. Options, of which none may have
a quote in it: where => 'id > 10', columns => [...].

=item $stack->live_shape($table, %opts)

Create a shape, wait until it is live, and return its handle.

=item $stack->fold($handle, $bytes)

Fold a shape's log but for so many bytes at its end, and return what is reported
of that.

=item $stack->is_live($handle, $what)

Wait until a shape is live, as a test of that name, if it has one.

=item $stack->exists_shape($handle)

1 if users see such a shape, else 0. A test must not look at the shape's row instead:
if the stack has the row locked when a command ends the shape, it stays for a while.

=item $stack->state_of($handle), $stack->error_of($handle), $stack->last_offset($handle)

What electric_cm_shapes says of it.

=item $stack->gaps($handle)

How many gaps the shape's log has had, or will have: resyncs that have been ordered.  Orders
that come while a resync runs are one with it when it ends.

=item $stack->closed_gaps($handle)

The same when all have been closed: a number to compare later ones with.

=item $stack->replays($handle, $table, $what, %opts)

Test that a shape is there, and that its log, once it has all, replays to the
table: see ElectricCM::replay_equals, whose options can be given. The key is
"id", if keys => [...] does not say otherwise.

=item $reader = $stack->reader($handle)

Somebody who has read all that a shape's log has.

=item $stack->goes_on($reader, $table, $what, %opts)

Test that the handle lives, that its log replays to the table, and that so does what
the reader has if he goes on at his offset: nothing that he has read has changed.
Afterwards he has read the rest, too.  Options as for replays().

=item $stack->resyncs($reader, $reason, $table, $what, %opts)

The same, and that since he has last read, all shapes were ordered to be compared with
their tables, once for that reason (a condition on the event's detail), and were.  With
often => 1 it may have been more than once; with command => 1 a command has ordered it, for
the shapes that it concerns.

=item $stack->replay_equals($handle, $table, ...), $stack->install_compare

See ElectricCM.

=cut

# Insert n rows of 1 kB into table t, with the next ids; an error after 30 s
sub add_rows
{
	my ($self, $n) = @_;
	return $self->sql(qq{SET statement_timeout = '30 s';
		INSERT INTO t SELECT (SELECT coalesce(max(id), 0) FROM t) + i, repeat('x', 1000) FROM generate_series(1, $n) i});
}

sub publication_sql
{
	my ($self, $name, $of, @options) = @_;
	push @options, 'publish_generated_columns = stored' if ElectricCM::server_major($self->{node}) >= 18;
	return join(' ', "CREATE PUBLICATION $name", $of // (), @options ? 'WITH (' . join(', ', @options) . ')' : ());
}

sub shape
{
	my ($self, $table, %opts) = @_;
	my @arguments = ("'$table'");
	push @arguments, "where_clause => '$opts{where}'" if defined $opts{where};
	push @arguments, "columns => '{" . join(',', @{ $opts{columns} }) . "}'" if defined $opts{columns};
	return $self->sql('SELECT electric_cm_create_shape(' . join(', ', @arguments) . ')');
}

sub live_shape
{
	my ($self, $table, %opts) = @_;
	my $handle = $self->shape($table, %opts);
	$self->is_live($handle);
	return $handle;
}

sub is_live
{
	my ($self, $handle, $what) = @_;
	return $self->becomes("SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$handle'", $what);
}

sub fold
{
	my ($self, $handle, $bytes) = @_;
	my $id = $self->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$handle'");
	my ($more, $report) = split /\|/, $self->sql("CALL _electric_cm.fold_shape($id, $bytes, NULL, NULL)");
	return $report // '';
}

# Until there is nothing to fold, nor to be deleted.
sub fold_all
{
	my ($self, $handle, $bytes) = @_;
	my $id = $self->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$handle'");
	for (1 .. 1000)
	{
		return if $self->sql("CALL _electric_cm.fold_shape($id, $bytes, NULL, NULL)") eq 'f|';
	}
	die 'folding does not come to an end';
}

sub exists_shape
{
	my ($self, $handle) = @_;
	return $self->sql("SELECT count(*) FROM electric_cm_shapes WHERE handle = '$handle'");
}

sub column_of
{
	my ($self, $column, $handle) = @_;
	return $self->sql("SELECT $column FROM electric_cm_shapes WHERE handle = '$handle'");
}

sub state_of { my ($self, $handle) = @_; return $self->column_of('state', $handle); }
sub error_of { my ($self, $handle) = @_; return $self->column_of('last_error', $handle); }
sub last_offset { my ($self, $handle) = @_; return $self->column_of('last_offset', $handle); }

sub gaps
{
	my ($self, $handle) = @_;
	return $self->sql("SELECT count(*) FROM _electric_cm.shape_gap g JOIN _electric_cm.shape s ON s.id = g.shape WHERE handle = '$handle'");
}

sub closed_gaps
{
	my ($self, $handle) = @_;
	$self->becomes("SELECT NOT EXISTS (SELECT FROM _electric_cm.shape_gap g JOIN _electric_cm.shape s ON s.id = g.shape
		WHERE handle = '$handle' AND (g.lsn IS NULL OR g.closed_at IS NULL))");
	return $self->gaps($handle);
}

sub replay_equals { my ($self, @args) = @_; return ElectricCM::replay_equals($self->{node}, $self->{db}, @args); }
sub install_compare { my ($self) = @_; return ElectricCM::install_compare($self->{node}, $self->{db}); }

sub replays
{
	my ($self, $handle, $table, $what, %opts) = @_;
	my $keys = delete $opts{keys} // ['id'];
	return Test::More::fail("$what (the shape is gone)") unless $self->exists_shape($handle);
	$self->settle;
	$self->becomes("SELECT state <> 'resyncing' FROM electric_cm_shapes WHERE handle = '$handle'");
	my ($ok, $entries) = $self->replay_equals($handle, $table, $keys, %opts);
	return Test::More::ok($ok, "$what ($entries entries)");
}

# A query for what a log has, but for some entries at the beginning: their number, and
# what they are; and the last offset
sub _entries
{
	my ($self, $handle, $after, $skip, $limit) = @_;
	$limit = defined $limit ? "LIMIT $limit" : '';
	my $entries = "SELECT *, row_number() OVER () AS n FROM electric_cm_shape_log('$handle', '$after') $limit OFFSET $skip";
	my ($n, $digest, $last) = split /\|/,
	  $self->sql("SELECT count(*), md5(string_agg(l.*::text, E'\\n' ORDER BY n)), (array_agg(log_offset ORDER BY n DESC))[1] FROM (SELECT log_offset, operation, key, value, old_value, xid, n - $skip AS n FROM ($entries) e) l");
	return { n => $n, digest => $digest // '', last => $last // '' };
}

sub reader
{
	my ($self, $handle) = @_;
	my $reader = { handle => $handle, had => { n => 0, digest => '', last => '-1' } };
	$self->_read_on($reader);
	return $reader;
}

sub _read_on
{
	my ($self, $reader) = @_;
	$reader->{since} = $self->sql('SELECT clock_timestamp()');
	my $all = $self->_entries($reader->{handle}, '-1', 0);
	$all->{last} = '-1' if $all->{n} == 0;
	$reader->{had} = $all;
	return;
}

sub goes_on
{
	my ($self, $reader, $table, $what, %opts) = @_;
	my ($handle, $had) = @{$reader}{qw(handle had)};
	Test::More::is($self->exists_shape($handle), 1, "$what: the handle lives") or return 0;
	$self->is_live($handle);
	my $ok = $self->replays($handle, $table, "$what: its log replays to the table", %opts);
	my $before = $self->_entries($handle, '-1', 0, $had->{n});
	my $rest = $self->_entries($handle, '-1', $had->{n});
	my $read = $self->_entries($handle, $had->{last}, 0);
	$ok &= Test::More::is_deeply([ $had->{n} ? $before->{digest} : '', $read ], [ $had->{n} ? $had->{digest} : '', $rest ],
		"$what: who has read $had->{n} entries goes on there, and comes to the same ($read->{n} more)");
	$self->_read_on($reader);
	return $ok;
}

sub resyncs
{
	my ($self, $reader, $reason, $table, $what, %opts) = @_;
	my $since = "occurred_at > '$reader->{since}'";
	my ($often, $command) = delete @opts{qw(often command)};
	my $which = $command ? "$since AND ($reason)" : $since;

	$self->becomes("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'shape_resynced' AND $which", "$what: shapes are compared with their tables");
	Test::More::cmp_ok($self->events('shapes_resyncing', "$since AND ($reason)"), $often ? '>=' : '==', 1, "$what: an event says why") unless $command;
	$self->is_live($reader->{handle});
	Test::More::cmp_ok($self->events('shape_resynced', "$since AND ($reason)"), '>', 0, "$what: another one says how it went");
	return $self->goes_on($reader, $table, $what, %opts);
}

=pod

=back

=cut

1;
