# The stack's own connections: without a socket, with a password, with and
# without TLS, and with too few slots for sessions.
use strict;
use warnings;

use IO::Socket::IP;
use IO::Socket::UNIX;
use IPC::Run ();
use ElectricCM qw(new_node wait_active replay_equals);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $db = 'postgres';
my $delays = "electric_cm.reconnect_initial_delay = '100 ms'\nelectric_cm.reconnect_max_delay = '500 ms'\n";
my $node;
my $stack = "FROM electric_cm_stat_manager WHERE datname = '$db'";
my $replication = "FROM electric_cm_stat_connections WHERE datname = '$db' AND role = 'replication'";

sub value { return $node->safe_psql($db, $_[0]); }

sub poll
{
	my ($what, $sql) = @_;
	return 1 if ok(ElectricCM::poll($node, $db, $sql), $what);
	diag(value("SELECT * $stack"));
	return 0;
}

sub write_file
{
	my ($file, $text, $mode) = @_;
	open my $fh, '>', $file or die "$file: $!";
	print $fh $text;
	close $fh;
	chmod $mode // oct('600'), $file;
	return;
}

sub end_walsender
{
	my ($what) = @_;
	my $old = value("SELECT backend_pid $replication");
	value("SELECT pg_terminate_backend($old)");
	return poll($what, "SELECT backend_pid <> $old AND electric_cm_status() = 'active' $replication");
}

# "failed", for this and no earlier reason
sub fails
{
	my ($what, $error, $hint) = @_;
	poll("$what: failed", "SELECT status = 'failed' AND last_error ~ '$error' $stack");
	my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_await_active()');
	like($err, qr/HINT:  .*$hint/, "$what: the hint");
	return;
}

# A setting of the database; returns when the stack has been restarted by it
sub set_and_restart
{
	my ($setting) = @_;
	my $old = value("SELECT pid $stack");
	value("ALTER DATABASE $db $setting");
	$node->reload;
	ElectricCM::poll($node, $db, "SELECT pid <> $old $stack") or die "no restart after $setting";
	return;
}

# conninfo for the stack
sub connect_by { return set_and_restart("SET electric_cm.connection = '$_[0]'"); }

# What was wrong is mended, and the settings are the same.
sub mended
{
	my ($what) = @_;
	$node->reload;
	return ok(wait_active($node, $db), "$what: active after a reload");
}

# Loopback without a socket.  psql's socket is in another directory.

my $socket_dir = PostgreSQL::Test::Utils::tempdir_short();
$node = new_node('main', start => 0, conf => $delays);
my $port = $node->port;
my $socket = "$socket_dir/.s.PGSQL.$port";
my $both_dirs = "unix_socket_directories = '$socket_dir, " . $node->host . "'\n";

$node->append_conf('postgresql.conf', "${both_dirs}listen_addresses = '127.0.0.1'\n");
$node->start;
unlink $socket or die "$socket: $!";
value('CREATE EXTENSION electric_cm');
ok(wait_active($node, $db), 'no socket: active');
is(value("SELECT address $replication"), "127.0.0.1:$port", '... by way of 127.0.0.1');
is(value("SELECT string_agg(DISTINCT address, ' ') FROM electric_cm_stat_connections WHERE role = 'pool'"),
	"127.0.0.1:$port", '... and so the pool');

# Whoever asks at the socket now would hang there.
my $trap = IO::Socket::UNIX->new(Local => $socket, Listen => 5) or die "$socket: $!";
$trap->blocking(0);
end_walsender('reconnects');
is(value("SELECT address $replication"), "127.0.0.1:$port", 'the address is remembered');
ok(!defined $trap->accept, '... the socket was not tried again');
close $trap;
unlink $socket;

SKIP:
{
	my $ipv6 = IO::Socket::IP->new(LocalHost => '::1', Listen => 1);
	skip 'no IPv6 loopback address here', 2 unless $ipv6;
	close $ipv6;
	$node->append_conf('postgresql.conf', "listen_addresses = '127.0.0.1, ::1'\n");
	$node->restart;
	unlink $socket or die "$socket: $!";
	value('SELECT electric_cm_restart()');
	ok(wait_active($node, $db), 'no socket, IPv6: active');
	is(value("SELECT address $replication"), "[::1]:$port", '... by way of ::1');
}

$node->append_conf('postgresql.conf', "unix_socket_directories = ''\nlisten_addresses = '127.0.0.1'\n");
$node->restart;
my $connstr = "host=127.0.0.1 port=$port dbname=$db";
is($node->safe_psql($db, "SELECT electric_cm_await_active('60 s')", connstr => $connstr),
	'', 'a server without any socket: active');
is($node->safe_psql($db, "SELECT address $replication", connstr => $connstr),
	"127.0.0.1:$port", '... by way of 127.0.0.1');
$node->append_conf('postgresql.conf', $both_dirs);
$node->restart;
ok(wait_active($node, $db), 'with a socket: active');
is(value("SELECT address $replication"), "socket $socket_dir:$port", '... by way of it');

# A password

my $hba = $node->data_dir . '/pg_hba.conf';
my $hba_text = slurp_file($hba);
my $passfile = $node->basedir . '/passfile';
value(q{CREATE ROLE app LOGIN SUPERUSER REPLICATION PASSWORD 'right'});
write_file($hba, "host all app 127.0.0.1/32 scram-sha-256\n$hba_text");
$node->reload;
connect_by('host=127.0.0.1 user=app');
fails('no password', 'no password supplied', qr/passfile.*127\.0\.0\.1:$port:$db:app:/);
is(value("SELECT last_error_sqlstate $stack"), '28P01', '... 28P01');
write_file($passfile, "*:*:*:app:wrong\n");
connect_by("host=127.0.0.1 user=app passfile=$passfile");
fails('a wrong password', 'password authentication failed', qr/passfile/);
write_file($passfile, "*:*:*:app:right\n");
mended('the right password');
is(value("SELECT usename FROM pg_stat_activity JOIN electric_cm_stat_connections ON backend_pid = pid AND role = 'replication'"),
	'app', '... as that role');

# The pool's own connection string
set_and_restart("SET electric_cm.pooled_connection = 'user=nobody_at_all'");
fails('a role for the pool that does not exist', 'nobody_at_all', qr/Create the role/);
is( value("SELECT count(*) > 0 FROM electric_cm_stat_connections WHERE role = 'pool' AND last_error ~ 'nobody_at_all'"),
	't', '... its connection shows the error');
set_and_restart('RESET electric_cm.pooled_connection');
ok(wait_active($node, $db), 'the same role for the pool: active');

# TLS

my $tls = check_pg_config('#define USE_OPENSSL 1')
  && system('command -v openssl >/dev/null 2>&1') == 0;

SKIP:
{
	skip 'the server has been built without TLS, or there is no openssl program', 1 unless $tls;
	test_tls();
}

sub openssl
{
	my (@args) = @_;
	my ($out, $err);
	IPC::Run::run([ 'openssl', @args ], '>', \$out, '2>', \$err) or die "openssl @args: $err";
	return;
}

# Certificate authority, and certificates by it
sub make_ca
{
	my ($dir, $ca) = @_;
	openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', "$dir/$ca.key", '-out', "$dir/$ca.crt",
		'-days', 10, '-subj', "/CN=$ca");
	return;
}

sub make_cert
{
	my ($dir, $ca, $file, $name, @validity) = @_;
	@validity = ('-days', 10) unless @validity;
	openssl('req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', "$dir/$file.key", '-out', "$dir/$file.csr",
		'-subj', "/CN=$name");
	openssl('x509', '-req', '-in', "$dir/$file.csr", '-CA', "$dir/$ca.crt", '-CAkey', "$dir/$ca.key",
		'-CAcreateserial', @validity, '-out', "$dir/$file.crt");
	chmod 0600, "$dir/$file.key";
	return;
}

# Newer versions of openssl know no negative -days, older ones no other way.
sub expired
{
	my ($help);
	IPC::Run::run([ 'openssl', 'x509', '-help' ], '>&', \$help);
	return $help =~ /-not_before/ ? ('-not_before', '20200101000000Z', '-not_after', '20200102000000Z') : ('-days', -1);
}

sub copy_file
{
	my ($from, $to) = @_;
	write_file($to, slurp_file($from));
	return;
}

sub unencrypted
{
	return value("SELECT count(*) FROM electric_cm_events WHERE event = 'warning' AND message LIKE '%is not encrypted'");
}

sub test_tls
{
	my $dir = $node->basedir . '/tls';
	my $host = 'host=localhost hostaddr=127.0.0.1';

	mkdir $dir or die;
	make_ca($dir, $_) for qw(ca other_ca);
	make_cert($dir, 'ca', 'server', 'localhost');
	make_cert($dir, 'ca', 'expired_server', 'localhost', expired());
	make_cert($dir, 'ca', 'client', 'app');
	make_cert($dir, 'ca', 'expired_client', 'app', expired());
	write_file($hba, $hba_text);
	$node->reload;

	# a server without TLS
	connect_by("$host sslmode=require");
	fails('sslmode=require, a server without TLS', 'server does not support SSL', qr/ssl = on/);
	connect_by("$host sslmode=prefer");
	poll('sslmode=prefer, a server without TLS: active, and not encrypted',
		"SELECT electric_cm_status() = 'active' AND NOT ssl AND address = '127.0.0.1:$port' $replication");
	is(unencrypted(), 1, '... a warning says so');
	end_walsender('reconnects');
	is(unencrypted(), 1, '... which is not repeated');

	# with TLS
	copy_file("$dir/server.$_", "$dir/used.$_") for qw(crt key);
	copy_file("$dir/ca.crt", "$dir/client_ca.crt");
	$node->append_conf('postgresql.conf',
		"ssl = on\nssl_cert_file = '$dir/used.crt'\nssl_key_file = '$dir/used.key'\nssl_ca_file = '$dir/client_ca.crt'\n");
	$node->reload;
	end_walsender('reconnects');
	is(value("SELECT ssl $replication"), 'f', 'that the server had no TLS is remembered');
	write_file($hba, "hostnossl all all 127.0.0.1/32 reject\n$hba_text");
	$node->reload;
	end_walsender('reconnects');
	is(value("SELECT ssl $replication"), 't', '... until it refuses us for the want of it');
	write_file($hba, $hba_text);
	connect_by($host);
	poll('by default TLS is used where there is some',
		"SELECT electric_cm_status() = 'active' AND ssl $replication");
	is(value("SELECT bool_and(ssl) FROM electric_cm_stat_connections WHERE role = 'pool'"),
		't', '... and by the pool');
	write_file($hba, "hostnossl all all 127.0.0.1/32 reject\n$hba_text");
	connect_by("$host sslmode=disable");
	fails('sslmode=disable, and the server insists on TLS', 'pg_hba\.conf rejects', qr/pg_hba\.conf/);
	connect_by("$host sslmode=require");
	poll('sslmode=require: active, encrypted', "SELECT electric_cm_status() = 'active' AND ssl $replication");

	# the server's certificate
	my $root = "$dir/root.crt";
	connect_by("$host sslmode=verify-full sslrootcert=$root");
	fails('no root certificate', 'root certificate file .* does not exist', qr/sslrootcert/);
	copy_file("$dir/other_ca.crt", $root);
	$node->reload;
	fails('a wrong root certificate', 'certificate verify failed', qr/sslrootcert/);
	is(value("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'config_error' AND message LIKE '%certificate verify failed%'"),
		't', '... and an event');
	copy_file("$dir/ca.crt", $root);
	mended('the right root certificate');
	connect_by("host=db.example.com hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=$root");
	fails('another host name', 'does not match host name', qr/Set host in/);
	connect_by("host=db.example.com hostaddr=127.0.0.1 sslmode=verify-ca sslrootcert=$root");
	poll('... with sslmode=verify-ca: active', "SELECT electric_cm_status() = 'active' AND ssl $replication");
	copy_file("$dir/expired_server.$_", "$dir/used.$_") for qw(crt key);
	$node->reload;
	value('SELECT electric_cm_restart()');
	fails('an expired server certificate', 'certificate verify failed', qr/expired/);
	copy_file("$dir/server.$_", "$dir/used.$_") for qw(crt key);
	mended('a new server certificate');

	# ours
	write_file($hba, "hostssl all app 127.0.0.1/32 cert\n$hba_text");
	my $ours = "$host user=app sslmode=require sslcert=$dir/our.crt sslkey=$dir/our.key";
	connect_by($ours);
	fails('no client certificate', 'valid client certificate', qr/sslcert/);
	copy_file("$dir/expired_client.crt", "$dir/our.crt");
	$node->reload;
	fails('no client key', 'but not private key file', qr/sslkey/);
	copy_file("$dir/expired_client.key", "$dir/our.key");
	$node->reload;
	fails('an expired client certificate', 'alert certificate expired', qr/expired/);
	copy_file("$dir/client.$_", "$dir/our.$_") for qw(crt key);
	mended('a good client certificate');
	chmod 0644, "$dir/our.key";
	value('SELECT electric_cm_restart()');
	fails('a client key that everybody can read', 'group or world access', qr/0600/);
	chmod 0600, "$dir/our.key";
	mended('a client key of our own');
	return;
}

$node->stop;

# Too few slots for sessions

$node = new_node('small', conf => $delays
	  . "max_connections = 8\nmax_wal_senders = 1\nelectric_cm.pool_size = 3\n"
	  . "electric_cm.pool_idle_timeout = '100 ms'\n");
my $no_pool = q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'electric_cm pool%'};
value('CREATE EXTENSION electric_cm');
value("CREATE TABLE t$_ (id int PRIMARY KEY); INSERT INTO t$_ SELECT generate_series(1, 10)") for 1 .. 6;
ok(wait_active($node, $db), 'active');

# A walsender's place
value('SELECT electric_cm_stop()');
my $walsender = $node->background_psql($db, replication => 'database');
value('SELECT electric_cm_start()');
poll('no place for a walsender: tried again',
	"SELECT status = 'starting' AND step = 'connect_replication' AND retry_count >= 2
		AND next_retry_at IS NOT NULL AND last_error ~ 'max_wal_senders' AND last_error_sqlstate = '53300' $stack");
is(value("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'connection_error' AND detail ~ 'Raise max_wal_senders'"),
	't', '... an event has the hint');
is(value("SELECT last_error ~ 'max_wal_senders' $replication"), 't', '... and the connection its error');
$walsender->quit;
ok(wait_active($node, $db), 'active when there is a place');

# All sessions are others', from when the stack is stopped: its pool may take one at any
# time.  From here on, questions go by way of one of them.
poll('the pool is closed when idle', $no_pool);
value('SELECT electric_cm_stop()');
my @others = map { $node->background_psql($db, on_error_stop => 0) } 1 .. 8;
my $session = $others[0];

sub ask_until
{
	my ($what, $sql) = @_;
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return pass($what) if $session->query($sql) eq 't';
		usleep(100_000);
	}
	diag($session->query("SELECT * $stack"));
	diag($session->query('SELECT * FROM electric_cm_stat_connections'));
	return fail($what);
}

$session->query('SELECT electric_cm_start()');
ask_until('no session for the pool: tried again',
	"SELECT status = 'starting' AND step = 'start_pool' AND retry_count >= 2
		AND next_retry_at IS NOT NULL AND last_error ~ 'too many clients' $stack");
is($session->query("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'connection_error'
		AND message ~ 'start_pool.*too many clients' AND detail ~ 'Raise max_connections'"),
	't', '... an event has the hint');
my $pool_error = "SELECT count(*) > 0 FROM electric_cm_stat_connections WHERE role = 'pool' AND last_error ~ 'too many clients'";
is($session->query($pool_error), 't', '... and the connection its error');
(pop @others)->quit;
ask_until('active when there is one', "SELECT electric_cm_status() = 'active'");

# One session for the pool where it would have three.  Publishing a table
# needs a lock that another session has.
my $locker = $others[1];
my $busy = "SELECT count(*) FROM electric_cm_stat_connections WHERE role = 'pool' AND state = 'busy'";

sub create_shapes
{
	my (@tables) = @_;
	my %handles;
	$locker->query('BEGIN');
	$locker->query("LOCK TABLE $_ IN SHARE UPDATE EXCLUSIVE MODE") for @tables;
	$handles{$_} = $session->query("SELECT electric_cm_create_shape('$_')") for @tables;
	return %handles;
}

ask_until('the pool is closed when idle', $no_pool);
my %handles = create_shapes(qw(t1 t2 t3));
ask_until('one session for three jobs: the pool makes do with it',
	"SELECT ($busy) = 1 AND count(*) > 0 FROM electric_cm_events
		WHERE event = 'connection_error' AND message ~ 'another pool session.*too many clients'");
is($session->query($pool_error), 't', '... the connections show the error');
is($session->query('SELECT electric_cm_status()'), 'active', '... and the stack is active');
$locker->query('COMMIT');
ask_until('... and all the work gets done', "SELECT count(*) = 3 FROM electric_cm_shapes WHERE state = 'live'");

%handles = (%handles, create_shapes(qw(t4 t5 t6)));
ask_until('one session again', "SELECT ($busy) = 1");
(pop @others)->quit for 1 .. 2;
ask_until('the pool grows when there is room', "SELECT ($busy) = 3");
$locker->query('COMMIT');
ask_until('all the work gets done', "SELECT count(*) = 6 FROM electric_cm_shapes WHERE state = 'live'");
(pop @others)->quit while @others > 2;
for my $table (sort keys %handles)
{
	my ($ok, $entries) = replay_equals($node, $db, $handles{$table}, $table, ['id']);
	ok($ok, "replay equals table $table ($entries entries)");
}

# A session that ends in the middle of a snapshot.  The locker's place in the
# queue is behind a writer, for whose end the creation waits, so the lock is
# had before the snapshot asks for its own.
value('CREATE TABLE s (id int PRIMARY KEY); INSERT INTO s SELECT generate_series(1, 100)');
my $writer = $session;
$writer->query('BEGIN');
$writer->query('INSERT INTO s VALUES (101)');
my $handle = value(q{SELECT electric_cm_create_shape('s')});
poll('the creation waits for the writer', "SELECT waiting_for ~ 'writing' FROM electric_cm_shapes WHERE handle = '$handle'");
$locker->query('BEGIN');
$locker->query_until(qr/^$/, "LOCK TABLE s;\n");
poll('somebody locks the table', q{SELECT count(*) = 1 FROM pg_locks WHERE relation = 's'::regclass AND NOT granted});
$writer->query('COMMIT');
poll('the snapshot waits for the lock',
	q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query ~ 'take_snapshot' AND wait_event_type = 'Lock'
		AND application_name LIKE 'electric_cm pool%'});
value(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
	WHERE query ~ 'take_snapshot' AND application_name LIKE 'electric_cm pool%'});
# (the pool's last_error goes with the next session, which may be open at once)
poll('its session ends: an event says so',
	"SELECT count(*) = 1 FROM electric_cm_events WHERE event = 'shape_creation_failed' AND message ~ '$handle.*terminating connection'");
$locker->query('COMMIT');
is(value("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 101, 'the snapshot is taken all over: the shape is live');
value('INSERT INTO s VALUES (102)');
value("SELECT electric_cm_await_flushed(timeout => '30 s')");
my ($ok, $entries) = replay_equals($node, $db, $handle, 's', ['id']);
ok($ok, "replay equals table ($entries entries)");
$_->quit for @others;

# The server's wal_sender_timeout is ours.  Where nothing happens, the
# connection must still be kept up; where the manager hangs, it must not.
$node->append_conf('postgresql.conf', "wal_sender_timeout = '2 s'\n");
$node->reload;
end_walsender('reconnects');
my $pid = value("SELECT backend_pid $replication");
value('SELECT pg_sleep(5)');
is(value("SELECT backend_pid $replication"), $pid, 'nothing happens for longer than wal_sender_timeout: still connected');

my $manager = value("SELECT pid $stack");
poll('the manager sleeps', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $manager");
my $stopped = time;
kill 'STOP', $manager;
my $slot = value(q{SELECT slot_name FROM pg_replication_slots});
my $ended = ElectricCM::poll($node, $db, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = '$slot'");
my $hung_for = time - $stopped;
kill 'CONT', $manager;
ok($ended, 'a manager that hangs for longer: the walsender gives up');
cmp_ok($hung_for, '<', 20, "... after about wal_sender_timeout ($hung_for s)");
ok(wait_active($node, $db), 'active when it goes on');

$node->stop;
done_testing();
