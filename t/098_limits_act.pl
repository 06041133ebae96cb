# A limit on retained WAL waits for a stream that comes back, but not for one
# that does not get on.
use strict;
use warnings;

use ElectricCM qw(new_stack);
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => q{
wal_sender_timeout = '3 s'
electric_cm.status_check_interval = '1 s'
electric_cm.wal_report_interval = '1 s'
electric_cm.reconnect_initial_delay = '200 ms'
electric_cm.reconnect_max_delay = '500 ms'
electric_cm.min_wal_free_space = -1
electric_cm.retained_wal_limit = '48MB'
});
my $node = $stack->node;
my $db = 'postgres';

# A proxy between the server and itself.  After USR1, each stream, also one that
# begins later, gets no farther than its beginning, and is not closed.
my $proxy_dir = PostgreSQL::Test::Utils::tempdir_short();

sub start_proxy
{
	my $from = "$proxy_dir/.s.PGSQL." . $node->port;
	my $to = $node->host . '/.s.PGSQL.' . $node->port;
	my $listener = IO::Socket::UNIX->new(Local => $from, Listen => 50) or die "$from: $!";
	my $pid = fork;

	die $! unless defined $pid;
	return $pid if $pid;

	my (%other, %streams, @kept);
	my $hole = 0;
	my $parent = getppid;
	$SIG{USR1} = sub { $hole = 1; };
	while (getppid == $parent)
	{
		my $select = IO::Select->new($listener, map { $_->[0] } values %other);
		for my $socket ($select->can_read(0.1))
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				my $server = IO::Socket::UNIX->new(Peer => $to) or next;
				$other{ $client->fileno } = [ $client, $server ];
				$other{ $server->fileno } = [ $server, $client ];
				next;
			}
			my $pair = $other{ $socket->fileno } or next;
			my $n = sysread $socket, my $data, 65536;
			if ($n && $hole && ($streams{ $socket->fileno } // 0) > 1)
			{
				push @kept, @$pair;
				delete $other{ $_->fileno } for @$pair;
				next;
			}
			if ($n)
			{
				# its beginning is the first answer to that
				$streams{ $_->fileno } = 1 for $data =~ /START_REPLICATION/ ? @$pair : ();
				my $answers = $streams{ $socket->fileno } && $data !~ /START_REPLICATION/;
				while (length $data)
				{
					my $written = syswrite $pair->[1], $data;
					last unless $written;
					substr($data, 0, $written, '');
				}
				if ($answers) { $streams{ $_->fileno } = 2 for @$pair; }
				next;
			}
			delete $streams{ $_->fileno } for @$pair;
			delete $other{ $_->fileno } for @$pair;
			$_->close for @$pair;
		}
	}
	POSIX::_exit(0);
}

my $proxy = start_proxy();
$stack->sql("ALTER DATABASE $db SET electric_cm.connection = 'host=$proxy_dir'");
$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql('CREATE TABLE t (id int PRIMARY KEY)');
$stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->seen(q{count(*) = 1 FROM electric_cm_shapes WHERE state = 'live'}, 'a shape is live');

sub write_wal { return $stack->sql(q{SELECT count(pg_logical_emit_message(false, 'x', repeat('x', 1000000))), pg_current_xact_id() FROM generate_series(1, 80)}); }

# Each new stream is cut off, too

kill 'USR1', $proxy;
write_wal();
$stack->seen(q{count(*) >= 1 FROM electric_cm_events WHERE event = 'connection_error' AND message ~ 'walsender PID'}, 'streams are cut off: that is noticed');
$stack->seen(q{count(*) = 1 FROM electric_cm_events WHERE event = 'retained_wal_limit'}, 'no stream gets on: the limit acts');
$stack->seen(q{coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0) < 48 * 1024 * 1024 FROM pg_replication_slots}, '... and the WAL is free');
$stack->sql("ALTER DATABASE $db RESET electric_cm.connection");
$node->reload;
$stack->seen(q{setting = '' AND electric_cm_status() = 'active' FROM electric_cm_options WHERE name = 'electric_cm.connection'}, 'a direct connection: active');

# Beyond a limit when the server starts, and about to catch up

my $handle = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->seen(q{count(*) = 1 FROM electric_cm_shapes WHERE state = 'live'}, 'a shape is live');
$stack->sql(q{ALTER SYSTEM SET electric_cm.retained_wal_limit = -1});
$node->reload;
$stack->seen(q{setting = '-1' FROM electric_cm_options WHERE name = 'electric_cm.retained_wal_limit'}, 'no limit for a while');
my $consumer = $stack->sql('SELECT pid FROM electric_cm_stat_consumers');
kill 'STOP', $consumer or die 'no consumer';
$stack->sql('INSERT INTO t VALUES (1)');
write_wal();
$stack->sql(q{ALTER SYSTEM RESET electric_cm.retained_wal_limit});
$node->stop('immediate');
$node->start;
ok($stack->active, 'a server that starts with a slot beyond its limit: active');
$stack->sql(q{SELECT electric_cm_await_flushed(NULL, '60 s')});
is($stack->sql(q{SELECT count(*) FROM electric_cm_events WHERE event = 'retained_wal_limit' AND occurred_at > pg_postmaster_start_time()}), 0, '... the limit waits for the stream');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle') WHERE operation = 'insert'"), 1, '... and the shape goes on');

$node->stop;
kill 'KILL', $proxy;
waitpid $proxy, 0;
done_testing();
