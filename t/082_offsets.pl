# An offset is good for one log: whoever goes on from one that the log has not
# given him would miss entries and never know, so he is told, whichever way he
# came to it.  Whoever reads gets a log from its beginning, and whole.
use strict;
use warnings;

use ElectricCM qw(new_stack wait_active becomes fails_with);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', conf => q{
electric_cm.shape_workers = 2
electric_cm.shape_log_retention = -1
hot_standby_feedback = on
});
my $node = $stack->node;

sub fails { my $server = shift; return fails_with($server, $db, @_); }
sub id { return $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$_[0]'"); }
sub log_after
{
	my ($server, $handle, $offset) = @_;
	return $server->safe_psql($db, "SELECT l FROM electric_cm_shape_log('$handle', '$offset') l");
}

$stack->sql('CREATE EXTENSION electric_cm',
	(map { ("CREATE TABLE $_ (id int PRIMARY KEY, v text)", "INSERT INTO $_ SELECT i, 'first' FROM generate_series(1, 20) i") } qw(t u w)),
	'CREATE TABLE nothing (id int PRIMARY KEY)');
$stack->active or BAIL_OUT('no stack');
my ($t, $u, $w, $nothing) = map { $stack->live_shape($_) } qw(t u w nothing);
is($stack->sql('SELECT count(DISTINCT worker) FROM _electric_cm.shape_worker'), 2, 'shapes of two consumers');
$stack->sql(q{UPDATE t SET v = 'second'}, q{INSERT INTO u VALUES (21, 'second')}, q{INSERT INTO w VALUES (21, 'second')}, q{UPDATE t SET v = 'third' WHERE id = 1},
	q{DELETE FROM t WHERE id = 20});
$stack->settle;

#
# Offsets that are not this log's
#
my $end = $stack->last_offset($t);
my ($lsn, $op) = split /_/, $end;
is(log_after($node, $t, $end), '', 'after its last offset a log has nothing');
is( $stack->sql("SELECT bool_and((SELECT count(*) FROM electric_cm_shape_log('$t', l.log_offset)) = 42 - l.n)
		FROM electric_cm_shape_log('$t') WITH ORDINALITY AS l (log_offset, operation, key, value, old_value, xid, n)"),
	't', 'from each of its own offsets, a log goes on with the next entry');
my %foreign = (
	'beyond the end, and the end of WAL' => '999999999999_0',
	'beyond the end of its transaction' => $lsn . '_' . ($op + 1),
	'of a transaction before the first one' => '1_0',
	'of a snapshot row too many' => '0_21',
	'of a snapshot row too few' => '0_9223372036854775807',
	'just after an entry' => ($lsn + 1) . '_0',
	'just before one' => ($lsn - 1) . '_0',
	'of a shape of the same table\'s neighbour' => $stack->last_offset($u),
	'of another shape' => $stack->last_offset($w),
	'of base rows that it does not have' => $lsn . '_' . ((1 << 62) + 1));
for my $what (sort keys %foreign)
{
	fails($node, qr/EC001.*offset $foreign{$what} is not in the log of shape "$t".*DETAIL.*HINT:.*-1/s, "an offset $what is an error",
		"SELECT FROM electric_cm_shape_log('$t', '$foreign{$what}')");
	fails($node, qr/EC001/, '... and nobody waits for what comes after it',
		"SELECT FROM electric_cm_await_shape_log('$t', '$foreign{$what}', '5 s')");
}
fails($node, qr/EC001/, 'also under an older snapshot', 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'SELECT 1',
	"SELECT FROM electric_cm_shape_log('$t', '999999999999_0')");
fails($node, qr/EC001/, 'an offset of another shape, in a log without entries', "SELECT FROM electric_cm_shape_log('$nothing', '$end')");
is(log_after($node, $nothing, '0_0'), '', 'a log without entries has the offset 0_0');
$stack->sql('INSERT INTO nothing VALUES (1)');
$stack->settle;
is($stack->sql("SELECT operation, value->>'id' FROM electric_cm_shape_log('$nothing', '0_0')"), 'insert|1', '... and goes on from there');

# What the stack has not come to may be an entry or not.
$stack->sql('SELECT electric_cm_stop()');
my $unknown = $stack->sql('INSERT INTO t VALUES (100)', "SELECT pg_current_wal_insert_lsn() - '0/0'", 'SELECT pg_switch_wal() IS NULL');
$unknown = (split /\n/, $unknown)[0] . '_0';
fails($node, qr/55000/, 'an offset that the stack, which is stopped, has not come to is not called wrong',
	"SELECT FROM electric_cm_shape_log('$t', '$unknown')");
$stack->sql('SELECT electric_cm_start()');
$stack->settle;
fails($node, qr/EC001/, '... before it has', "SELECT FROM electric_cm_shape_log('$t', '$unknown')");
is($stack->sql("SELECT operation, value->>'id' FROM electric_cm_shape_log('$t', '$end')"), 'insert|100', '... and a right one is right all the time');

#
# One statement sees one moment
#
sub background
{
	my ($sql) = @_;
	my %run = (out => '', err => '');
	$run{run} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', $node->connstr($db), '-c', $sql ],
		'<', \undef, '>', \$run{out}, '2>', \$run{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	return sub { $run{run}->finish; return $run{out} . $run{err}; };
}
my $holder = $node->background_psql($db);
sub while_one_reads
{
	my ($sql, @meanwhile) = @_;
	$holder->query_safe('SELECT pg_advisory_lock(1)');
	my $reader = background($sql);
	$stack->becomes(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'advisory'});
	$_->() for @meanwhile;
	$holder->query_safe('SELECT pg_advisory_unlock(1)');
	return $reader->();
}
my $count = $stack->sql("SELECT count(*) FROM electric_cm_shape_log('$u')");
is( while_one_reads("SELECT (SELECT count(*) FROM electric_cm_shape_log('$u')), pg_advisory_xact_lock(1)::text, (SELECT count(*) FROM electric_cm_shape_log('$u'))",
		sub { $stack->sql(q{INSERT INTO u VALUES (22, 'meanwhile')}); $stack->settle; }),
	"$count||$count\n", 'two logs in one statement are of one moment');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$u')"), $count + 1, '... the next one sees what has come');

# Also if the log is deleted meanwhile, in part or as a whole.
my $dropped = id($u);
is( while_one_reads("SELECT pg_advisory_xact_lock(1)::text, (SELECT count(*) FROM electric_cm_shape_log('$u'))",
		sub {
			$stack->sql("SELECT electric_cm_drop_shape('$u')");
			$stack->becomes("SELECT count(*) = 0 FROM _electric_cm.shape_log WHERE shape = $dropped");
		}),
	'|' . ($count + 1) . "\n", 'a log that is deleted while one reads is read to its end');
fails($node, qr/42704/, '... the next one is told', "SELECT FROM electric_cm_shape_log('$u')");
$holder->quit;

#
# Folding
#
sub entries_in_pages
{
	my ($size, @servers) = @_;
	my ($after, @all) = ('-1');
	for (my $i = 0;; $i++)
	{
		my @page = split /\n/, $servers[ $i % @servers ]->safe_psql($db, "SELECT * FROM electric_cm_shape_log('$t', '$after', $size)");
		return @all if !@page;
		push @all, @page;
		($after) = $page[-1] =~ /^([^|]+)/;
	}
	return;
}
$stack->sql(q{INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1000, 1999) i}, q{UPDATE t SET v = v || 'y' WHERE id < 1100});
$stack->settle;

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is(join("\n", entries_in_pages(300, $node, $standby)), $stack->sql("SELECT * FROM electric_cm_shape_log('$t')"),
	'a log can be read in pages, of two servers in turn');

$standby->safe_psql($db, 'SELECT pg_wal_replay_pause()');
becomes($standby, $db, q{SELECT pg_get_wal_replay_pause_state() = 'paused'});
like($stack->fold($t, 1000), qr/folded/, 'a log is folded');
my @page = split /\n/, $stack->sql("SELECT log_offset FROM electric_cm_shape_log('$t', '-1', 10)");
my $rest = log_after($node, $t, $page[-1]);
my $await = "SELECT l FROM electric_cm_await_shape_log('$t', '$page[-1]', '%s') l";
fails($standby, qr/55000.*offset $page[-1] is not in the log of shape "$t" yet.*DETAIL:.*replayed.*HINT/s,
	'who has begun with the new base is told by a standby that does not have it yet', sprintf $await, '1 s');
fails($standby, qr/55000.* yet/s, '... also who would not wait, after a moment', "SELECT FROM electric_cm_shape_log('$t', '$page[-1]')");
$stack->sql(q{INSERT INTO t VALUES (3000, 'later')});
$stack->settle;
my $later = $stack->last_offset($t);
fails($standby, qr/55000.*$later.* yet/s, 'who is ahead of a standby is told as well', "SELECT FROM electric_cm_await_shape_log('$t', '$later', '1 s')");
fails($standby, qr/EC001/, 'a standby tells an offset that is wrong from one that is to come',
	"SELECT FROM electric_cm_await_shape_log('$t', '" . ($lsn + 1) . "_0', '5 s')");
my %waiter = (out => '', err => '');
$waiter{run} = IPC::Run::start([ 'psql', '-XAtq', '-d', $standby->connstr($db), '-c', sprintf $await, '1 hour' ], '<', \undef,
	'>', \$waiter{out}, '2>', \$waiter{err}, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
becomes($standby, $db, q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%await_shape_log%' AND pid <> pg_backend_pid() AND wait_event_type = 'Extension'});
$standby->safe_psql($db, 'SELECT pg_wal_replay_resume()');
$waiter{run}->finish;
is($waiter{err}, '', 'who waits at the standby for the new base to come');
ok(index("$rest\n" . log_after($node, $t, $stack->last_offset($t)), substr($waiter{out}, 0, length $rest)) == 0, '... goes on in it');
$node->wait_for_catchup($standby);
is(log_after($standby, $t, $later), '', '... and so does who was ahead');
is(join("\n", entries_in_pages(300, $node, $standby)), $stack->sql("SELECT * FROM electric_cm_shape_log('$t')"),
	'the folded log can be read in pages, of two servers in turn');

# A log without entries has nothing of what its consumer has come past.
my ($past, @empty) = ($later, map { $stack->sql("CREATE TABLE empty$_ (id int PRIMARY KEY)"); $stack->live_shape("empty$_") } 1 .. 2);
$stack->sql("INSERT INTO t VALUES ($_, 'past')", "INSERT INTO w VALUES ($_, 'past')", q{SELECT electric_cm_await_flushed(timeout => '60 s')}) for 4000 .. 4003;
$node->wait_for_catchup($standby);
fails($standby, qr/EC001/, 'a standby knows how far each consumer has come', "SELECT FROM electric_cm_await_shape_log('$_', '$past', '3 s')") for @empty;

# Another server would have made another base of the same entries.
my ($base_lsn, $base_op) = split /_/, $page[-1];
my $other = $base_lsn . '_' . ($base_op ^ (1 << 40));
for ($node, $standby)
{
	fails($_, qr/EC001.*offset $other is not in the log/, 'half of a base that another server has made is not continued (' . $_->name . ')',
		"SELECT FROM electric_cm_await_shape_log('$t', '$other', '1 s')");
}

# The next fold.
$stack->sql((map { "UPDATE t SET v = repeat('$_', 300)" } 1 .. 5), q{UPDATE t SET v = v || 'z' WHERE id < 1050});
$stack->settle;
$stack->fold($t, 1000) for 1 .. 3;
isnt($stack->sql("SELECT log_offset FROM electric_cm_shape_log('$t', '-1', 1)"), $page[0], 'a log is folded again');
fails($node, qr/EC001.*not in the log.*any more.*DETAIL:.*folded/s, '... half of the former base is not continued',
	"SELECT FROM electric_cm_shape_log('$t', '$page[-1]')");
$node->wait_for_catchup($standby);
fails($standby, qr/EC001.*any more/s, '... neither at the standby', "SELECT FROM electric_cm_shape_log('$t', '$page[-1]')");

#
# After a promotion, snapshots have an identity too
#
$node->stop;
$standby->promote;
wait_active($standby, $db);
$standby->safe_psql($db, "SELECT electric_cm_drop_shape(handle) FROM electric_cm_shapes WHERE relation = 't'::regclass");
my $new = $standby->safe_psql($db, q{SELECT electric_cm_create_shape('t')});
becomes($standby, $db, "SELECT state = 'live' FROM electric_cm_shapes WHERE handle = '$new'");
is( $standby->safe_psql($db, "SELECT count(*) = (SELECT count(*) FROM t), bool_and(log_offset::text ~ '^0_[0-9]{19}\$'), count(DISTINCT split_part(log_offset::text, '_', 2)::int8 >> 32)
		FROM electric_cm_shape_log('$new')"),
	't|t|1', 'on a new timeline, the rows of a snapshot have an identity');
fails($standby, qr/EC001/, '... so that half of another one is not continued', "SELECT FROM electric_cm_shape_log('$new', '0_5')");
$standby->stop;

done_testing();
