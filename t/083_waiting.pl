# What waiting costs others: nothing.  A change wakes those who wait for its
# shape and nobody else, and whoever waits is gone when his client is.
use strict;
use warnings;

use ElectricCM qw(new_stack becomes);
use IPC::Run ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $db = 'postgres';
my $stack = new_stack('main', conf => q{
max_connections = 200
electric_cm.max_managers = 4
});
my $node = $stack->node;
my $timeout = $PostgreSQL::Test::Utils::timeout_default;

my $number = 0;
sub waiter
{
	my ($sql, %opts) = @_;
	my %waiter = (out => '', err => '', name => 'waiter' . ++$number);
	my $connstr = $opts{connstr} // $node->connstr($opts{db} // $db);

	$waiter{run} = IPC::Run::start([ 'psql', '-XAtq', '-v', 'VERBOSITY=verbose', '-d', "$connstr application_name=$waiter{name}", '-c', $sql ],
		'<', \undef, '>', \$waiter{out}, '2>', \$waiter{err}, IPC::Run::timeout($timeout));
	$stack->becomes("SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = '$waiter{name}' AND wait_event_type = 'Extension'")
	  or diag("$sql does not wait: $waiter{err}");
	$waiter{pid} = $stack->sql("SELECT pid FROM pg_stat_activity WHERE application_name = '$waiter{name}'");
	return \%waiter;
}

sub finish
{
	my ($waiter) = @_;
	$waiter->{run}->finish;
	return $waiter->{out} . $waiter->{err};
}

# How often a session that waits has slept.
sub times_slept
{
	my ($waiter) = @_;
	return slurp_file("/proc/$waiter->{pid}/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : die 'no such process';
}

$stack->sql('CREATE EXTENSION electric_cm',
	'CREATE TABLE hot (id int PRIMARY KEY, v int)', 'INSERT INTO hot SELECT i, 0 FROM generate_series(1, 200) i',
	'CREATE TABLE quiet (id int PRIMARY KEY, v int)', 'INSERT INTO quiet SELECT i, 0 FROM generate_series(1, 10) i');
$stack->active or BAIL_OUT('no stack');

#
# Changes of other shapes
#
# Of the same table, of others; so many that some have much in common with one.
$stack->sql(q{SELECT electric_cm_create_shape('hot', 'id = ' || i) FROM generate_series(1, 150) i},
	q{SELECT electric_cm_create_shape('quiet', 'id = ' || i) FROM generate_series(1, 10) i});
$stack->becomes(q{SELECT count(*) = 160 FROM electric_cm_shapes WHERE state = 'live'});
my %quiet = map { split /\|/ } split /\n/, $stack->sql(q{SELECT value->>'id', handle FROM electric_cm_shapes s, electric_cm_shape_log(s.handle) WHERE relation = 'quiet'::regclass});
my %hot = map { split /\|/ } split /\n/,
  $stack->sql(q{SELECT value->>'id', handle FROM electric_cm_shapes s, electric_cm_shape_log(s.handle) WHERE relation = 'hot'::regclass});
my @idle = map { waiter("SELECT value FROM electric_cm_await_shape_log('$quiet{$_}', '0_1', '1 hour')") } 1 .. 5;
my $idle_hot = waiter("SELECT value FROM electric_cm_await_shape_log('$hot{150}', '0_1', '1 hour')");
my $concerned = waiter("SELECT count(*) FROM electric_cm_await_shape_log('$hot{149}', '0_1', '1 hour')");
my %slept = map { $_->{name} => times_slept($_) } @idle, $idle_hot;
for my $id (1 .. 149)
{
	$stack->sql("UPDATE hot SET v = v + 1 WHERE id = $id", q{UPDATE hot SET v = v + 1 WHERE id > 150});
}
$stack->settle;
is(finish($concerned), "1\n", 'who waits for a shape is woken by its change');
is_deeply({ map { $_->{name} => times_slept($_) } @idle, $idle_hot }, \%slept, 'the changes of 149 other shapes wake nobody else');

# ... and a wake-up that was for somebody is not lost.
$stack->sql('UPDATE quiet SET v = v + 1');
like(finish($_), qr/^\{.*\}$/, 'one that has not been woken gets its change when it comes') for @idle;
$stack->sql('UPDATE hot SET v = v + 1 WHERE id = 150');
like(finish($idle_hot), qr/^\{.*\}$/, '... so does the other');

# Several who wait for the same, and again and again.
my $procedure = q{DO $$
DECLARE after text := '-1'; n int := 0;
BEGIN
	WHILE n < 51 LOOP
		SELECT log_offset INTO STRICT after FROM electric_cm_await_shape_log('%s', after, '1 minute', 1);
		COMMIT;
		n := n + 1;
	END LOOP;
END $$};
my @followers = map { waiter(sprintf $procedure, $quiet{ 6 + $_ % 3 }) } 1 .. 30;
$stack->sql('UPDATE quiet SET v = v + 1 WHERE id IN (6, 7, 8)') for 1 .. 50;
is(join('', map { finish($_) } @followers), '', '30 readers of three shapes get 50 changes each');

#
# Clients that go away
#
my ($tls_port, $tls);
sub make_certificate
{
	my $dir = $node->data_dir;
	return 0 unless check_pg_config('#define USE_OPENSSL 1') && system('command -v openssl >/dev/null 2>&1') == 0;
	system("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout '$dir/tls.key' -out '$dir/tls.crt' -days 10 -subj /CN=test >/dev/null 2>&1") == 0
	  or die 'openssl failed';
	chmod 0600, "$dir/tls.key";
	$node->append_conf('postgresql.conf', "ssl = on\nssl_cert_file = 'tls.crt'\nssl_key_file = 'tls.key'\nlisten_addresses = '127.0.0.1'\n");
	append_to_file($node->data_dir . '/pg_hba.conf', "hostssl all all 127.0.0.1/32 trust\n");
	return 1;
}
$tls = make_certificate();
$node->restart;
$stack->active;

# The client is killed, so that it can't say good-bye.
sub goes_with_client
{
	my ($what, $sql, %opts) = @_;
	my $waiter = waiter($sql, %opts);

	$waiter->{run}->kill_kill(grace => 0);
	$stack->becomes("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $waiter->{pid}", "$what: gone when its client is");
	return;
}

my $last = $stack->sql("SELECT last_offset FROM electric_cm_shapes WHERE handle = '$quiet{1}'");
my $await = "SELECT FROM electric_cm_await_shape_log('$quiet{1}', '$last', '1 hour')";
goes_with_client('electric_cm_await_shape_log()', $await);
goes_with_client('... in a procedure', "DO 'BEGIN PERFORM FROM electric_cm_await_shape_log(''$quiet{1}'', ''$last'', ''1 hour''); END'");
SKIP:
{
	skip 'the server has been built without TLS, or there is no openssl program', 1 unless $tls;
	goes_with_client('... by TLS', $await, connstr => 'host=127.0.0.1 sslmode=require port=' . $node->port . ' dbname=postgres');
}

my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN');
$writer->query_safe('INSERT INTO quiet VALUES (100)');
my $creating = $stack->sql(q{SELECT electric_cm_create_shape('quiet')});
goes_with_client('electric_cm_await_shape_log() of a shape that is being created', "SELECT FROM electric_cm_await_shape_log('$creating', '-1', '1 hour')");
goes_with_client('electric_cm_shape_log() of one', "SELECT FROM electric_cm_shape_log('$creating')");
$writer->query_safe('COMMIT');
$writer->quit;

# A stack that can't become active: somebody has its lock.
$stack->sql('CREATE DATABASE second');
my $locker = $node->background_psql('second');
$locker->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_second'))});
$node->safe_psql('second', 'CREATE EXTENSION electric_cm');
ElectricCM::poll($node, 'second', 'SELECT electric_cm_status()', 'waiting');
for my $function ('electric_cm_await_active()', 'electric_cm_await_flushed()', 'electric_cm_drop_replication_slot_on_stop()')
{
	goes_with_client($function, "SELECT $function", db => 'second');
}
# ... and one whose manager does not answer.
my $manager = $stack->sql(q{SELECT pid FROM electric_cm_stat_manager WHERE datname = 'second'});
for my $function ('electric_cm_restart()', 'electric_cm_stop()')
{
	kill 'STOP', $manager;
	goes_with_client($function, "SELECT $function", db => 'second');
	kill 'CONT', $manager;
	becomes($node, 'second', "SELECT count(*) = 1 FROM electric_cm_stat_manager WHERE datname = 'second' AND status = 'waiting' AND pid <> $manager");
	$manager = $stack->sql(q{SELECT pid FROM electric_cm_stat_manager WHERE datname = 'second'});
}
$locker->quit;

# A log can be read without a stack, but not be waited for.
my $quiet = $stack->sql(q{SELECT handle FROM electric_cm_shapes WHERE state = 'live' LIMIT 1});
$node->stop;
my ($out, $err) = ('', '');
IPC::Run::run([ 'postgres', '--single', '-D', $node->data_dir, $db ], '<',
	\"SELECT 'read', count(*) FROM electric_cm_shape_log('$quiet')\nSELECT FROM electric_cm_await_shape_log('$quiet', '-1')\n",
	'>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
like($out, qr/"read"/, 'single-user mode: a log is read');
like($err, qr/cannot wait for a shape in single-user mode/, '... but nobody waits there');
done_testing();
