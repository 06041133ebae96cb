
# Soak::Faults::Resources: what the stack needs is held by somebody else, is
# missing, or is another one now.
package Soak::Faults::Resources;

use strict;
use warnings;

use ElectricCM::Process qw(child);
use Exporter 'import';
use POSIX ();
use Soak::Failures qw(fail);
use Soak::Server qw(pids);
use Soak::Settings qw($db $deadline $max_connections @tables);
use Soak::Stack qw(await_active manager_is_new slot_is_recreated write_arrives);
use Soak::Tools qw(chance hold pick psql value wait_until);
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw(hold_lock drop_slot drop_publication fill_connections old_transaction lock_own_table
  vacuum_full_own change_setting change_workers odd_settings in_passing);

# Somebody else has the lock when the stack starts.
sub hold_lock
{
	my $seconds = 1 + rand(2);
	psql('SELECT electric_cm_stop()', timeout => 60);
	manager_is_new();
	my $result = hold(sub {
		psql("SELECT pg_advisory_lock(hashtext('electric_cm_$db')); SELECT pg_sleep($seconds)", timeout => 60);
	});
	wait_until(10, sub { value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted") });
	psql('SELECT electric_cm_start()', timeout => 60);
	return $result;
}

# No shape is gone with it.
sub drop_slot
{
	my ($rc, $out, $err) = psql("DO \$\$
		DECLARE slot pg_replication_slots;
		BEGIN
			FOR i IN 1 .. 1000 LOOP
				SELECT * INTO slot FROM pg_replication_slots WHERE slot_name = 'electric_cm_$db';
				EXIT WHEN NOT FOUND;
				PERFORM pg_terminate_backend(slot.active_pid);
				BEGIN
					PERFORM pg_drop_replication_slot('electric_cm_$db');
					RETURN;
				EXCEPTION WHEN object_in_use THEN PERFORM pg_sleep(0.001);
				END;
			END LOOP;
		END \$\$", timeout => 60);
	return undef if $rc != 0;
	slot_is_recreated();
	return await_active(0, 'dropping the slot');
}

sub drop_publication
{
	my ($rc) = psql("SET lock_timeout = '2s'; DROP PUBLICATION electric_cm_publication", timeout => 30);
	return undef if $rc != 0;
	slot_is_recreated();
	# noticed when something is decoded
	my $gone = wait_until($deadline, sub { value('SELECT count(*) FROM pg_publication') });
	fail('the publication does not come back') unless $gone;
	return await_active(0, 'DROP PUBLICATION');
}

# No place for another session; those of the stack have to wait, too.
sub fill_connections
{
	my $seconds = 2 + rand(2);
	return hold(sub {
		local $ENV{PGAPPNAME} = 'soak filler';
		my @pids = map {
			child(sub {
				exec 'psql', '-Xqc', "SELECT pg_sleep($seconds)" if open(STDOUT, '>', '/dev/null') && open(STDERR, '>', '/dev/null');
				POSIX::_exit(1);
			})
		} 1 .. $max_connections;
		waitpid($_, 0) for @pids;
	});
}

sub old_transaction
{
	my $seconds = 2 + rand(4);
	my $table = pick(@tables);
	my $what = chance(0.5) ? "SELECT count(*) FROM $table" : "SELECT soak.dml('$table', 3, 0.3)";
	return hold(sub {
		psql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT txid_current(); $what; SELECT pg_sleep($seconds); COMMIT", timeout => 60);
	});
}

sub lock_own_table
{
	my $table = pick(qw(stack shape shape_state shape_base shape_log progress));
	my $seconds = 0.5 + rand(3);
	return hold(sub {
		psql("SET lock_timeout = '2s'; BEGIN; LOCK TABLE _electric_cm.$table IN ACCESS EXCLUSIVE MODE;
			SELECT pg_sleep($seconds); COMMIT", timeout => 60);
	});
}

sub vacuum_full_own
{
	my $table = pick(qw(stack shape shape_state shape_base shape_log progress));
	psql("SET lock_timeout = '2s'; VACUUM FULL _electric_cm.$table", timeout => 120);
	return await_active(0, "VACUUM FULL _electric_cm.$table");
}

sub change_setting
{
	my ($name, @values) = @_;
	my $value = pick(@values);
	my $began = time();
	psql("ALTER SYSTEM SET $name = $value; SELECT pg_reload_conf()", timeout => 20);
	sleep 0.5;
	return await_active(0, "$name = $value", $began);
}

sub change_workers
{
	my $n = 1 + int(rand(3));
	my $began = time();
	psql("ALTER DATABASE $db SET electric_cm.shape_workers = $n; SELECT pg_reload_conf()", timeout => 20);
	manager_is_new() if wait_until(5, sub { (value("SELECT count(*) FROM electric_cm_stat_consumers WHERE pid IS NOT NULL") // 0) == $n });
	return await_active(0, "shape_workers = $n", $began);
}

my @odd_settings = (
	"role = soak_reader", "search_path = soak, pg_temp", "datestyle = 'SQL, DMY'", "timezone = 'Asia/Kathmandu'",
	"intervalstyle = sql_standard", "bytea_output = escape", "extra_float_digits = -5",
	"default_transaction_isolation = serializable", "default_transaction_read_only = on", "statement_timeout = '50ms'",
	"lock_timeout = '5ms'", "idle_in_transaction_session_timeout = '50ms'", "session_replication_role = replica",
	"row_security = off", "standard_conforming_strings = off", "quote_all_identifiers = on", "work_mem = '64kB'",
	"array_nulls = off", "synchronous_commit = remote_apply", "enable_indexscan = off", "log_statement = 'all'",
	"xmloption = document", "client_min_messages = error", "track_activities = off", "wal_sender_timeout = '2s'");

# The stack must not mind what is set for its database or for its role.
sub odd_settings
{
	my $for = pick("DATABASE $db", 'ROLE postgres', "ROLE postgres IN DATABASE $db");
	my %chosen = map { pick(@odd_settings) => 1 } 1 .. 4;
	my @chosen = sort keys %chosen;
	my ($pid) = pids('manager');
	my $began = time();

	psql(join('', map { "ALTER $for SET $_;\n" } @chosen) . 'SELECT electric_cm_restart()', timeout => 60, lenient => 1);
	manager_is_new();
	my $ms = await_active($pid // 0, "$for: " . join(', ', @chosen), $began);
	my $arrived = wait_until($deadline, sub { write_arrives('t_uuid', 't_text') });
	fail("$for SET " . join(', ', @chosen) . ": what is written does not arrive within $deadline s") unless $arrived;
	for my $setting (map { /^(\w+)/ } @chosen)
	{
		wait_until(30, sub { (psql("ALTER $for RESET $setting", timeout => 20))[0] == 0 }) or fail("$setting could not be reset");
	}
	psql('SELECT electric_cm_restart()', timeout => 60);
	await_active(0, 'settings reset');
	return $ms;
}

sub in_passing
{
	my ($sql) = @_;
	psql($sql, timeout => 120);
	return await_active(0, $sql);
}

1;
