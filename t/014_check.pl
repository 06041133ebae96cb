# electric_cm_check(): names what is amiss before anything runs, and its fix,
# executed as given, mends it.
use strict;
use warnings;

use ElectricCM qw(new_stack server_major wait_active);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = 'postgres';
my $stack = new_stack('main', preload => 0, start => 0);
my $node = $stack->node;

sub row
{
	my ($name, $column, $database) = @_;
	return $stack->beside($database // $db)->sql("SELECT $column FROM electric_cm_check() WHERE name = '$name'");
}

# A whole row: verdict, detail, fix
sub whole_row
{
	my ($name, $database) = @_;
	return split /\x01/, row($name, "concat_ws(E'\\x01', verdict, detail, fix)", $database);
}

# Runs a fix as given, and does what its comment says.
sub apply
{
	my ($fix, $database) = @_;
	my ($rc, $out, $err) = $node->psql($database // $db, $fix);
	is($err, '', "... runs: $fix");
	$node->restart if $fix =~ /-- (?:then )?restart the server$/;
	$node->reload if $fix =~ /-- then SELECT pg_reload_conf\(\)$/;
	return;
}

# A check complains, and has no fix, since that would destroy something.
sub unspoiled
{
	my ($name, $verdict, $detail, $database) = @_;
	my ($given_verdict, $given) = whole_row($name, $database);

	is($given_verdict, $verdict, "$name: $verdict");
	like($given, $detail, '... with the reason and what to do');
	is(row($name, 'fix', $database), '', '... but no fix to run as it is');
	return;
}

# A check complains, its fix is run, and it is content.
sub mended
{
	my ($name, $verdict, $detail, $fix, $database) = @_;
	my ($found, $why, $given) = whole_row($name, $database);
	is($found, $verdict, "$name: $verdict");
	like($why, $detail, '... and says why');
	like($given, $fix, '... with a fix');
	apply($given, $database);
	ok( ElectricCM::poll($node, $database // $db,
			"SELECT verdict = 'PASS' FROM electric_cm_check() WHERE name = '$name'"),
		"$name: PASS after that")
	  or diag(row($name, 'detail', $database));
	return;
}

sub complaints
{
	return $stack->sql(q{SELECT coalesce(string_agg(name || ' ' || verdict, ', '), '')
		FROM electric_cm_check() WHERE verdict <> 'PASS'});
}

sub write_hba
{
	my ($text) = @_;
	open my $fh, '>', $node->data_dir . '/pg_hba.conf' or die;
	print $fh $text;
	close $fh;
	$node->reload;
	return;
}

# Nothing is right: not preloaded, wal_level, and no room for anything

$node->append_conf('postgresql.conf', q{
wal_level = minimal
max_replication_slots = 0
max_wal_senders = 0
max_worker_processes = 1
max_slot_wal_keep_size = -1
electric_cm.max_managers = 1
electric_cm.databases = 'other'
});
$node->start;
$stack->sql("SET client_min_messages = error; CREATE EXTENSION electric_cm");
$stack->sql("ALTER DATABASE $db SET electric_cm.enabled = off");
my $failures = $stack->sql(q{SELECT string_agg(name, ' ') FROM electric_cm_check() WHERE verdict = 'FAIL'});
is( $failures,
	'preload wal_level replication_slots wal_senders worker_processes enabled databases',
	'each missing prerequisite is a FAIL, without the library being preloaded');
is($stack->sql('SELECT count(*) FROM electric_cm_check() WHERE detail LIKE \'could not%\''), 0, 'all can be checked');

# ALTER SYSTEM's remedies all at once, as somebody would who reads the list
for my $name (split / /, $failures)
{
	my $fix = row($name, 'fix');
	($fix) = split / -- /, $fix;
	my ($rc, $out, $err) = $node->psql($db, $fix);
	is($err, '', "$name: $fix");
}
like(row($_, 'fix'), qr/^-- restart the server$/, "$_: only the restart is missing")
  for qw(preload wal_level replication_slots wal_senders worker_processes);
$node->restart;
ok($stack->active, 'after all fixes and one restart: active');
is(complaints(), 'slot_wal_limit WARN', 'and no complaint but one')
  or diag($stack->sql(q{SELECT * FROM electric_cm_check() WHERE verdict <> 'PASS'}));
mended('slot_wal_limit', 'WARN', qr/unlimited/, qr/^ALTER SYSTEM SET max_slot_wal_keep_size = '\d+[MG]B'/);
$stack->sql(q{ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'});
$node->reload;
mended('slot_wal_limit', 'FAIL', qr/any checkpoint/, qr/max_slot_wal_keep_size/);
is(complaints(), '', 'no complaint at all');

# Minor releases of 2026 load only the output plugins that are listed
SKIP:
{
	skip 'this server loads any output plugin', 8
	  if !$stack->sql(q{SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'});
	$node->append_conf('postgresql.conf', "output_plugin_libraries = 'test_decoding'");
	$node->reload;
	$stack->sql('SELECT electric_cm_restart()');
	ok(ElectricCM::poll($node, $db, q{SELECT electric_cm_status() = 'failed'}), 'pgoutput is not listed: failed');
	like($stack->sql('SELECT electric_cm_health()'), qr/[Aa]dd .*to \W*output_plugin_libraries/, '... and health says what is to be done');
	mended('output_plugin', 'FAIL', qr/lacks pgoutput/, qr/^ALTER SYSTEM SET output_plugin_libraries = 'pgoutput', 'test_decoding';/);
	is($stack->sql('SHOW output_plugin_libraries') =~ s/"//gr, 'pgoutput, test_decoding', '... the others are still listed');
	ok(wait_active($node, $db), 'active again');
}

# All stacks are taken
$stack->sql('CREATE DATABASE second');
$stack->sql('ALTER SYSTEM SET electric_cm.databases = "*"');
$node->reload;
$stack->beside('second')->sql('SET client_min_messages = error; CREATE EXTENSION electric_cm');
mended('stacks', 'FAIL', qr/all 1 stacks/, qr/electric_cm.max_managers = /, 'second');
is(row('worker_processes', 'verdict', 'second'), 'PASS', 'the budget has room for a second database');
$stack->beside('second')->sql('ALTER SYSTEM SET max_worker_processes = 5');
$node->restart;
my $hungry = ElectricCM::poll($node, $db,
	q{SELECT count(*) >= 1 FROM electric_cm_stat_manager WHERE status = 'active'});
ok($hungry, 'with too few workers, one database of two is active');
my $short = $stack->sql(q{SELECT CASE WHEN electric_cm_status() = 'active' THEN 'second' ELSE 'postgres' END});
mended('worker_processes', 'FAIL', qr/max_worker_processes is 5/, qr/max_worker_processes = \d+/, $short);
ok($stack->beside('second')->active, 'the second database is active, too');
ok($stack->active, 'and the first');
$stack->beside('second')->sql('DROP EXTENSION electric_cm');
ok(ElectricCM::poll($node, $db, 'SELECT count(*) = 1 FROM pg_replication_slots'), 'second is gone');

# Stopped, and what can happen meanwhile

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
like(complaints(), qr/^stopped FAIL, stack WARN$/, 'stopped: says so');

# ... a slot of that name that is not ours
$stack->sql(q{SELECT pg_create_physical_replication_slot('electric_cm_postgres')});
mended('slot', 'FAIL', qr/another database or plugin/, qr/SET electric_cm.slot_name = 'electric_cm_postgres_2'/);
$stack->sql(q{SELECT pg_drop_replication_slot('electric_cm_postgres')});
$stack->sql("ALTER DATABASE $db RESET electric_cm.slot_name");

# ... one that was left behind, by us or by an Electric service
$stack->sql(q{SELECT pg_create_logical_replication_slot(n, 'pgoutput') FROM unnest('{electric_cm_old,electric_slot_default}'::text[]) n});
unspoiled('other_slots', 'WARN', qr/"electric_cm_old".*"electric_slot_default".*drop one with pg_drop_replication_slot\(\) if/);
$stack->sql(qq{SELECT pg_drop_replication_slot('$_')}) for qw(electric_cm_old electric_slot_default);
$stack->sql(q{SELECT pg_create_logical_replication_slot('electric_cm_postgres', 'pgoutput')});
mended('slot', 'WARN', qr/retains WAL.*if it is dropped instead, all shapes have to be compared/, qr/^SELECT public.electric_cm_start\(\)$/);
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');

# ... somebody else who uses the slot
$stack->sql(q{SELECT pg_create_logical_replication_slot('electric_cm_postgres', 'pgoutput')});
$stack->sql('CREATE PUBLICATION p');
my $receiver = IPC::Run::start(
	[
		'pg_recvlogical', '-d', $node->connstr($db), '-S', 'electric_cm_postgres', '--start', '--no-loop',
		'-f', '/dev/null', '-o', 'proto_version=1', '-o', 'publication_names=p'
	],
	'>', \my $receiver_out, '2>', \my $receiver_err);
ok(ElectricCM::poll($node, $db, 'SELECT active FROM pg_replication_slots'), 'somebody else uses the slot');
is(row('slot', 'verdict'), 'FAIL', 'slot: FAIL');
like(row('slot', 'detail'), qr/active for PID \d+ \(application "[^"]+"\)/, '... by whom');
is(row('slot', 'fix'), '', '... and nothing that ends him, since the stack would take his changes');
$receiver->kill_kill;
ok(ElectricCM::poll($node, $db, 'SELECT NOT active FROM pg_replication_slots'), 'not any more');
isnt(row('slot', 'verdict'), 'FAIL', 'slot: no FAIL any more');
$stack->sql('DROP PUBLICATION p');
$stack->sql(q{SELECT pg_drop_replication_slot('electric_cm_postgres')});

# ... the lock
my $holder = $node->background_psql($db);
$holder->query_safe(q{SELECT pg_advisory_lock(hashtext('electric_cm_postgres'))});
is(row('lock', 'verdict'), 'FAIL', 'lock: FAIL');
my $holder_pid = $holder->query_safe('SELECT pg_backend_pid()');
like(row('lock', 'detail'), qr/held by PID $holder_pid/, '... by whom');
apply(row('lock', 'fix'));
ok(ElectricCM::poll($node, $db, q{SELECT verdict = 'PASS' FROM electric_cm_check() WHERE name = 'lock'}),
	'lock: PASS after that');
eval { $holder->quit };
$holder = $node->background_psql($db);
$holder->query_safe(q{BEGIN; SELECT pg_advisory_lock(hashtext('electric_cm_postgres')), pg_current_xact_id()});
unspoiled('lock', 'FAIL', qr/held by PID \d+ .*in a transaction/);
$holder->query_safe('COMMIT');
like(row('lock', 'fix'), qr/^SELECT pg_terminate_backend/, '... when it has committed, it can be ended');
$holder->quit;
$stack->sql(q{BEGIN; SELECT pg_advisory_xact_lock(hashtext('electric_cm_postgres')); PREPARE TRANSACTION 'keeper'});
unspoiled('lock', 'FAIL', qr/prepared transaction 'keeper': COMMIT PREPARED/);
$stack->sql(q{COMMIT PREPARED 'keeper'});

# ... transactions that creating a slot waits for
$stack->sql('CREATE TABLE t (id int PRIMARY KEY, x text)');
my $writer = $node->background_psql($db);
$writer->query_safe('BEGIN; INSERT INTO t VALUES (1)');
my $writer_pid = $writer->query_safe('SELECT pg_backend_pid()');
ok( ElectricCM::poll($node, $db,
		q{SELECT verdict = 'WARN' FROM electric_cm_check() WHERE name = 'old_transactions'}),
	'old_transactions: WARN');
like(row('old_transactions', 'detail'), qr/1 transactions.*PID $writer_pid\b/, '... whose');
is(row('old_transactions', 'fix'), '', '... and nothing that costs its work');
$writer->query_safe('COMMIT');
ok( ElectricCM::poll($node, $db, q{SELECT verdict = 'PASS' FROM electric_cm_check() WHERE name = 'old_transactions'}),
	'old_transactions: PASS after that');
$writer->quit;
$stack->sql(q{BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'it''s old'});
unspoiled('old_transactions', 'WARN', qr/prepared transaction 'it''s old'.*COMMIT PREPARED/);
$stack->sql(q{COMMIT PREPARED 'it''s old'});

# ... the publication
$stack->sql('CREATE SCHEMA s; CREATE TABLE s.u (id int)');
$stack->sql($stack->publication_sql('electric_cm_publication', 'FOR TABLE t WHERE (id > 1), TABLES IN SCHEMA s', q{publish = 'insert'}));
my $fix = row('publication', 'fix');
like(row('publication', 'detail'), qr/does not publish insert/, 'publication: does not publish everything');
apply($fix);
mended('publication', 'FAIL', qr/filters/, qr/^ALTER PUBLICATION electric_cm_publication SET TABLE public.t, TABLES IN SCHEMA s$/);
$stack->sql('ALTER PUBLICATION electric_cm_publication SET TABLE t (id)');
mended('publication', 'FAIL', qr/filters/, qr/SET TABLE public.t$/);
is($stack->sql(q{SELECT count(*) FROM pg_publication_tables WHERE attnames = '{id,x}'}), 1, 'the table stays in it, whole');
$stack->sql('ALTER PUBLICATION electric_cm_publication SET (publish_via_partition_root)');
mended('publication', 'FAIL', qr/changes of their root/, qr/publish_via_partition_root = false/);
$stack->sql('DROP PUBLICATION electric_cm_publication');
$stack->sql("ALTER DATABASE $db SET electric_cm.create_publication = off");
mended('publication', 'FAIL', qr/does not exist/, qr/^\Q${\$stack->publication_sql('electric_cm_publication')}\E$/);
$stack->sql("ALTER DATABASE $db RESET electric_cm.create_publication");
$stack->sql('DROP PUBLICATION electric_cm_publication', $stack->publication_sql('electric_cm_publication', 'FOR ALL TABLES'));
is(row('publication', 'verdict'), 'WARN', 'publication FOR ALL TABLES: WARN');
mended('publication', 'WARN', qr/FOR ALL TABLES/, qr/SET electric_cm.publication_name = 'electric_cm_publication_2'/);
# now it is somebody else's
unspoiled('other_publications', 'WARN', qr/FOR ALL TABLES: "electric_cm_publication"/);
$stack->sql('DROP PUBLICATION electric_cm_publication');
$stack->sql("ALTER DATABASE $db RESET electric_cm.publication_name");

# ... the role
$stack->sql("ALTER DATABASE $db SET electric_cm.connection = 'user=somebody'");
$stack->sql('CREATE ROLE somebody NOLOGIN');
mended('role', 'FAIL', qr/not permitted to log in/, qr/^ALTER ROLE somebody LOGIN SUPERUSER/);
$stack->sql('DROP ROLE somebody');
mended('role', 'FAIL', qr/does not exist/, qr/^CREATE ROLE somebody LOGIN SUPERUSER/);
$stack->sql("ALTER DATABASE $db RESET electric_cm.connection");

# ... pg_hba.conf; the test itself logs in as somebody else
my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
my $superuser = $stack->sql('SELECT rolname FROM pg_roles WHERE oid = 10');
my $me = "local all somebody trust\n";
$ENV{PGUSER} = 'somebody';
for my $case (
	[ 'no line', '', 'FAIL', qr/no line of pg_hba.conf/ ],
	[ 'only the keyword replication', "local replication all trust\n", 'FAIL', qr/no line of pg_hba.conf/ ],
	[ 'another database', "local other all trust\n", 'FAIL', qr/no line/ ],
	[ 'only TCP', "host all all 127.0.0.1/32 trust\n", 'FAIL', qr/no line/ ],
	[ 'reject', "local all all reject\nlocal all all trust\n", 'FAIL', qr/line 2 .*rejects/ ],
	[ 'a password, and none is configured', "local all all scram-sha-256\n", 'FAIL', qr/line 2 .*none is configured/ ])
{
	my ($name, $line, $verdict, $detail) = @$case;
	write_hba($me . $line);
	my ($found, $why, $new) = whole_row('pg_hba');
	is($found, $verdict, "pg_hba.conf, $name: $verdict");
	like($why, $detail, '... and says why');
	like($new, qr/^local "postgres" "\Q$superuser\E" peer/, '... the fix is the line');
	write_hba("$new\n$me$line");
	is(row('pg_hba', 'verdict'), 'PASS', '... with it: PASS') or diag(row('pg_hba', 'detail'));
}
for my $line ("local all all trust\n", "local sameuser,samerole,$db +$superuser trust\n", "local all $superuser peer\n")
{
	write_hba($me . $line);
	is(row('pg_hba', 'verdict'), 'PASS', 'pg_hba.conf, ' . $line =~ s/\n//r . ': PASS');
}
write_hba("${me}local all all trust\n");
append_to_file($node->data_dir . '/pg_hba.conf', "local all nonsense\n");
like(row('pg_hba', 'detail'), qr/line 3 of pg_hba.conf is wrong/, 'pg_hba.conf, a line with an error: says so');
# what the check says is what the stack does
write_hba("${me}local $db $superuser peer\n");
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'the stack thinks so, too');
$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
write_hba("$me");
$stack->sql('SELECT electric_cm_start()');
ok(ElectricCM::poll($node, $db, 'SELECT electric_cm_status()', 'failed'), '... also when it is FAIL');
like(complaints(), qr/^pg_hba FAIL, stack FAIL$/, 'a stack that has failed is a FAIL of its own');
like(row('stack', 'detail'), qr/no pg_hba.conf entry.*top of pg_hba.conf/, '... with its last error and hint');
write_hba($hba);
delete $ENV{PGUSER};
ok($stack->active, 'mended: active');
is(complaints(), '', 'no complaint');

$stack->sql('SELECT electric_cm_stop(drop_slot => true)');
mended('stopped', 'FAIL', qr/electric_cm_stop/, qr/^SELECT public.electric_cm_start\(\)$/);
ok($stack->active, 'the fix has started it');

# Something is locked: one row less is known, and nothing waits
my $locker = $node->background_psql($db);
$locker->query_safe('BEGIN; LOCK pg_publication IN ACCESS EXCLUSIVE MODE');
is( $stack->sql(q{SELECT string_agg(name || ': ' || detail, '; ') FROM electric_cm_check() WHERE detail LIKE 'could not%'}),
	join('; ', map { "$_: could not be checked: canceling statement due to lock timeout" } qw(publication other_publications)),
	'what cannot be read costs its own rows only');
$locker->query_safe('ROLLBACK');
$locker->quit;

# A copy, and other ways of not being meant
my $copied = $stack->sql(q{SELECT electric_cm_create_shape('t')});
$stack->sql("SELECT count(*) FROM electric_cm_shape_log('$copied')");
$stack->sql('SELECT electric_cm_stop()');
$stack->beside('template1')->sql("CREATE DATABASE copy TEMPLATE $db");
my $reader = $stack->beside('copy')->reader($copied);
$stack->beside('copy')->sql('INSERT INTO t SELECT 4711');
like(row('copied', 'fix', 'copy'), qr/electric_cm_start/, 'copied: a fix');
mended('copied', 'FAIL', qr/copy of another one.*compares the shapes that were copied with their tables/, qr/electric_cm_start/, 'copy');
is(row('stopped', 'verdict', 'copy'), 'PASS', '... which mends that it was stopped as well');
ok($stack->beside('copy')->active, 'the copy is active');
$stack->beside('copy')->resyncs($reader, q{detail = 'the replication slot is a new one'}, 't', 'the copy');
$stack->sql('ALTER DATABASE copy IS_TEMPLATE true');
mended('databases', 'FAIL', qr/template/, qr/^ALTER DATABASE copy IS_TEMPLATE false$/, 'copy');
$stack->sql('ALTER SYSTEM SET electric_cm.databases = postgres');
$node->reload;
mended('databases', 'FAIL', qr/not listed/, qr/electric_cm.databases = 'postgres, copy'/, 'copy');
ok($stack->beside('copy')->active, 'the copy is active again');
$stack->beside('copy')->sql('SELECT electric_cm_stop(drop_slot => true)');
$stack->sql('SELECT electric_cm_start()');
ok($stack->active, 'the original is active');

# A pg_monitor sees all of it
$stack->sql(q{CREATE ROLE watcher LOGIN IN ROLE pg_monitor});
my $all = $stack->sql('SELECT count(*) FROM electric_cm_check()');
is($node->safe_psql($db, q{SELECT count(*) FROM electric_cm_check() WHERE detail NOT LIKE 'could not%'}, extra_params => [ '-U', 'watcher' ]),
	$all, 'pg_monitor may use it');

# On a standby, which keeps no slot in step as it is; before 17 none does

$node->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'b', has_streaming => 1);
$standby->start;
is( $standby->safe_psql($db,
		q{SELECT string_agg(name || ' ' || verdict, ', ') FROM electric_cm_check() WHERE verdict <> 'PASS'}),
	server_major($standby) >= 17 ? 'recovery WARN, failover WARN, stack WARN' : 'recovery WARN, stack WARN',
	'on a standby it says that this is one');
$standby->promote;
ok(wait_active($standby, $db), 'promoted: active');
$standby->stop;

$node->stop;
done_testing();
