# Configuration errors: the status says what is wrong, the hint how to mend it,
# and mending it is enough.
use strict;
use warnings;

use ElectricCM qw(new_stack server_major);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $stack = new_stack('main', start => 0);
my $node = $stack->node;
my $db = 'postgres';

sub status_becomes
{
	my ($status, $what) = @_;
	return 1 if ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', $status), $what);
	diag($stack->sql('SELECT * FROM electric_cm_stat_manager'));
	return 0;
}

sub fails
{
	my ($what, $error, $hint) = @_;
	# not the failure that was there before
	my $last = '';
	for (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		$last = $stack->sql('SELECT status, last_error FROM electric_cm_stat_manager');
		last if $last =~ /^failed\|.*$error/;
		usleep(100_000);
	}
	like($last, qr/^failed\|.*$error/, "$what: failed, and last_error says why");
	isnt($stack->sql('SELECT last_error_sqlstate FROM electric_cm_stat_manager'), '', "$what: with an SQLSTATE");
	my ($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_await_active()');
	isnt($rc, 0, "$what: waiting is an error");
	like($err, qr/has failed\nDETAIL: .*\nHINT: .*$hint/s, "$what: with the hint");
	is( $stack->sql("SELECT count(*) > 0 FROM electric_cm_events WHERE event = 'config_error' AND severity = 'error'"),
		't', "$what: an event");
	return;
}

sub set_and_reload
{
	my ($sql) = @_;
	$stack->sql($sql);
	$node->reload;
	return;
}

# wal_level.  From 19 on the server raises it by itself while there is a slot.

$node->append_conf('postgresql.conf', "wal_level = replica");
$node->start;
$stack->sql('CREATE EXTENSION electric_cm');
if (server_major($node) < 19)
{
	fails('wal_level = replica', qr/wal_level/, qr/wal_level = logical.*restart/);
	is($stack->sql('SELECT count(*) FROM pg_replication_slots'), 0, 'no slot');
	$node->append_conf('postgresql.conf', "wal_level = logical");
	$node->restart;
	ok($stack->active, 'wal_level = logical: active');
}
else
{
	my $check = q{SELECT verdict || ': ' || detail FROM electric_cm_check() WHERE name = 'wal_level'};
	ok($stack->active, 'wal_level = replica: active');
	is($stack->sql($check), 'PASS: wal_level is replica, effective_wal_level is logical', '... and electric_cm_check() knows why');
	$stack->sql('CREATE TABLE w (id int PRIMARY KEY, v text)', q{INSERT INTO w VALUES (1, 'a'), (2, 'b')});
	my $handle = $stack->live_shape('w');
	$stack->sql(q{UPDATE w SET v = 'c', id = 3 WHERE id = 1}, 'DELETE FROM w WHERE id = 2');
	$stack->replays($handle, 'w', '... and updates and deletes have what they need');
	$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
	$stack->becomes(q{SELECT current_setting('effective_wal_level') = 'replica'}, 'without the slot the WAL is as before');
	is($stack->sql($check), 'PASS: wal_level is replica, effective_wal_level is replica', '... which is right, too');
	$stack->sql('SELECT electric_cm_start()');
	ok($stack->active, 'active again');
	$handle = $stack->live_shape('w');
	$stack->sql('DELETE FROM w');
	$stack->replays($handle, 'w', '... with what deletes need');
	$stack->sql('DROP TABLE w');
}

# The connection

set_and_reload("ALTER DATABASE $db SET electric_cm.connection = 'user=nobody'");
fails('a role that does not exist', qr/nobody/, qr/(?:Create the role|electric_cm\.connection)/);
$stack->sql('CREATE ROLE nobody LOGIN');
$stack->sql('SELECT electric_cm_restart()');
fails('a role without REPLICATION', qr/\S/, qr/REPLICATION/);
$stack->sql('ALTER ROLE nobody SUPERUSER REPLICATION');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'a role that may: active after electric_cm_start()');
is( $stack->sql("SELECT usename FROM pg_stat_activity JOIN electric_cm_stat_connections ON backend_pid = pid AND role = 'replication'"),
	'nobody', '... with that role');
set_and_reload("ALTER DATABASE $db SET electric_cm.connection = 'dbname=no_such_database'");
fails('a database that does not exist', qr/no_such_database/, qr/electric_cm\.connection/);
set_and_reload("ALTER DATABASE $db SET electric_cm.connection = 'no_such_keyword=1'");
fails('a keyword that does not exist', qr/connection/, qr/electric_cm\.connection/);

# Another database, or server
$stack->sql('CREATE DATABASE elsewhere');
for my $setting ('connection', 'pooled_connection')
{
	set_and_reload("ALTER DATABASE $db SET electric_cm.$setting = 'dbname=elsewhere'");
	fails("$setting leads to another database", qr/another database/, qr/dbname.*electric_cm\.connection/);
	set_and_reload("ALTER DATABASE $db RESET electric_cm.$setting");
}
ok($stack->active, 'this database again: active');
is($stack->sql("SELECT count(*) FROM pg_replication_slots WHERE database = 'elsewhere'"), 0, 'nothing is made elsewhere');

my $other = PostgreSQL::Test::Cluster->new('other');
$other->init(allows_streaming => 'logical');
$other->start;
my $other_conninfo = 'host=' . $other->host . ' port=' . $other->port;
set_and_reload("ALTER DATABASE $db SET electric_cm.connection = '$other_conninfo'");
fails('another server', qr/another server/, qr/electric_cm\.connection/);
is($other->safe_psql($db, 'SELECT count(*) FROM pg_replication_slots'), 0, 'it is left alone');
set_and_reload("ALTER DATABASE $db RESET electric_cm.connection");
set_and_reload("ALTER DATABASE $db SET electric_cm.pooled_connection = '$other_conninfo'");
fails('another server for the pool', qr/another server/, qr/electric_cm\.pooled_connection/);
set_and_reload("ALTER DATABASE $db RESET electric_cm.pooled_connection");
set_and_reload("ALTER DATABASE $db SET electric_cm.connection = '$other_conninfo'");
fails('another server again', qr/another server/, qr/electric_cm\.connection/);
$other->stop;
# ... that isn't there: it may come
$stack->sql('SELECT electric_cm_restart()');
ok( ElectricCM::poll($node, $db,
		"SELECT status = 'starting' AND retry_count >= 2 AND next_retry_at IS NOT NULL
			AND last_error IS NOT NULL FROM electric_cm_stat_manager"),
	'a server that does not answer is tried again');
my ($rc, $out, $err) = $node->psql($db, q{SELECT electric_cm_await_active('100 ms')});
like($err, qr/timed out.*DETAIL:.*connect_replication/s, 'waiting times out and says at which step');

# Mended by a reload
set_and_reload("ALTER DATABASE $db RESET electric_cm.connection");
ok($stack->active, 'nothing configured: active after a reload');

# pg_hba.conf
my $hba = $node->data_dir . '/pg_hba.conf';
my $hba_text = slurp_file($hba);
open my $fh, '>', $hba or die;
print $fh "local all nobody trust\n";
close $fh;
$node->reload;
sub as_nobody { my ($r, $o, $e) = $node->psql($db, $_[0], extra_params => [ '-U', 'nobody' ]); return $o; }
as_nobody('SELECT electric_cm_restart()');
my $failed = 0;
for (1 .. 600)
{
	last if $failed = as_nobody('SELECT electric_cm_status()') eq 'failed';
	usleep(100_000);
}
ok($failed, 'no entry in pg_hba.conf: failed');
my $last_error = as_nobody('SELECT last_error FROM electric_cm_stat_manager');
like($last_error, qr/pg_hba\.conf/, '... and says so');
($rc, $out, $err) = $node->psql($db, 'SELECT electric_cm_await_active()', extra_params => [ '-U', 'nobody' ]);
like($err, qr/HINT:.*local\s+\S+\s+\S+/s, '... with the line to add');
open $fh, '>', $hba or die;
print $fh $hba_text;
close $fh;
$node->reload;
ok($stack->active, 'the entry is there again: active after a reload');

# The publication

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql('CREATE TABLE f (id int PRIMARY KEY, t text)');
$stack->sql($stack->publication_sql('electric_cm_publication', 'FOR TABLE f WHERE (id > 1)'));
$stack->sql('SELECT electric_cm_start()');
fails('a publication that filters rows', qr/filters rows or columns/, qr/row filters/);
$stack->sql('ALTER PUBLICATION electric_cm_publication SET TABLE f (id)');
$stack->sql('SELECT electric_cm_start()');
fails('a publication that filters columns', qr/filters rows or columns/, qr/column lists/);
$stack->sql('ALTER PUBLICATION electric_cm_publication SET TABLE f');
$stack->sql(q{ALTER PUBLICATION electric_cm_publication SET (publish = 'insert')});
$stack->sql('SELECT electric_cm_start()');
fails('a publication without updates', qr/does not publish/, qr/ALTER PUBLICATION.*publish/);
$stack->sql(q{ALTER PUBLICATION electric_cm_publication SET (publish = 'insert, update, delete, truncate')});
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'a publication that publishes everything: active');
my $handle = $stack->sql(q{SELECT electric_cm_create_shape('f')});
$stack->sql(q{INSERT INTO f VALUES (1, 'a')});
$stack->sql('SELECT electric_cm_await_flushed()');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 1, 'and it works');

my $reader = $stack->reader($handle);
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql('DROP PUBLICATION electric_cm_publication', q{INSERT INTO f VALUES (2, 'b'), (3, 'c')}, 'DELETE FROM f WHERE id = 1');
$stack->sql("ALTER DATABASE $db SET electric_cm.create_publication = off");
$stack->sql('SELECT electric_cm_start()');
fails('no publication', qr/does not exist/, qr/CREATE PUBLICATION/);
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 1, '... logs are readable');
$stack->sql(q{UPDATE f SET t = 'd' WHERE id = 3});
$stack->sql($stack->publication_sql('electric_cm_publication'));
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'made by hand: active');
$stack->resyncs($reader, 'true', 'f', '... with the shapes', often => 1);
$stack->sql(q{INSERT INTO f VALUES (4, 'd')});
$stack->goes_on($reader, 'f', '... and the stream goes on');
$stack->sql("ALTER DATABASE $db RESET electric_cm.create_publication");

# Names
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql("ALTER DATABASE $db SET electric_cm.slot_name = 'my_slot'");
$stack->sql("ALTER DATABASE $db SET electric_cm.publication_name = 'My Publication'");
$stack->sql("ALTER DATABASE $db SET electric_cm.stack_id = 'my stack'");
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'other names: active');
is($stack->sql('SELECT slot_name FROM pg_replication_slots'), 'my_slot', 'slot_name');
is($stack->sql(q{SELECT pubname FROM pg_publication WHERE pubname = 'My Publication'}), 'My Publication', 'publication_name');
is($stack->sql('SELECT stack_id FROM electric_cm_stat_manager'), 'my stack', 'stack_id');
$stack->sql('DROP TABLE f');
$stack->sql('CREATE TABLE f (id int PRIMARY KEY, t text)');
$handle = $stack->sql(q{SELECT electric_cm_create_shape('f')});
$stack->sql(q{INSERT INTO f VALUES (1, 'a')});
$stack->sql('SELECT electric_cm_await_flushed()');
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 1, 'shapes work with them');

# Settings that change while a manager starts with others: the last one counts
for my $round (1 .. 5)
{
	for my $n (1 .. 10)
	{
		set_and_reload("ALTER DATABASE $db RESET electric_cm.stack_id") if $n % 3 == 0;
		set_and_reload("ALTER DATABASE $db SET electric_cm.stack_id = 'stack $n'");
	}
	ok( ElectricCM::poll($node, $db, q{SELECT electric_cm_status() = 'active' AND stack_id = 'stack 10' FROM electric_cm_stat_manager}),
		"the last of many changes is in effect, round $round");
}
set_and_reload("ALTER DATABASE $db SET electric_cm.stack_id = 'almost my stack'");
set_and_reload("ALTER DATABASE $db SET electric_cm.stack_id = 'my stack'");
ok( ElectricCM::poll($node, $db, q{SELECT electric_cm_status() = 'active' AND stack_id = 'my stack' FROM electric_cm_stat_manager}),
	'and the one after');

# Settings that would break our own sessions
$node->safe_psql('template1', "ALTER DATABASE $db SET $_")
  for (
	"statement_timeout = '1 ms'",
	"default_transaction_read_only = on",
	"default_transaction_isolation = 'serializable'",
	"search_path = 'nowhere'",
	"idle_session_timeout = '10 ms'");
$node->restart;
# ... nor in the way of this test's
$ENV{PGOPTIONS} = join ' ', map { "-c $_" }
  ('statement_timeout=0', 'default_transaction_read_only=off',
	'default_transaction_isolation=read\\ committed', 'search_path=public', 'idle_session_timeout=0');
ok($stack->active, 'settings of the database do not get in the way');
$stack->sql("INSERT INTO f VALUES (2, 'b')");
$stack->sql("SELECT electric_cm_await_flushed(NULL, '20 s')");
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 2, 'shapes go on');
$stack->sql('CREATE TABLE g (id int PRIMARY KEY)');
$handle = $stack->sql("SELECT electric_cm_create_shape('g')");
is($stack->sql("SELECT count(*) FROM electric_cm_shape_log('$handle')"), 0, 'and are created');

$node->stop;
done_testing();
