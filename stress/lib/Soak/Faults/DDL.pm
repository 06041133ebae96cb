
# Soak::Faults::DDL: commands on the tables that shapes are of.
package Soak::Faults::DDL;

use strict;
use warnings;

use Exporter 'import';
use Soak::Settings qw(@tables @leaves);
use Soak::Shapes qw(allow family resolve_prepared);
use Soak::Stack qw(await_active);
use Soak::Tools qw(chance note_line pick psql value);

our @EXPORT_OK = qw(unpublish truncate_table change_columns detach_partition change_identity
  publication_round_trip identity_round_trip unlogged_leaf);

# DDL that no shape ends with; nothing has happened if it could not have its lock.
sub ddl
{
	my ($sql) = @_;
	my ($rc, $out, $err);
	for (1 .. 4)
	{
		# prepared transactions have locks, and nobody else ends them
		($rc, $out, $err) = psql("SET lock_timeout = '1s';\n$sql", timeout => 60);
		last if $rc == 0 || $err !~ /lock timeout|deadlock/;
		resolve_prepared(1);
	}
	note_line("$sql: $err") if $rc != 0;
	return undef if $rc != 0 && $err =~ /^ERROR:/m;
	return await_active(0, $sql);
}

# It comes back for its shapes.
sub unpublish
{
	my @members = split /\n/, value("SELECT prrelid::regclass FROM pg_publication_rel
		WHERE prrelid::regclass::text LIKE 't\\_%'", timeout => 20) // '';
	return undef unless @members;
	return ddl('ALTER PUBLICATION electric_cm_publication DROP TABLE ONLY ' . pick(@members));
}

sub truncate_table
{
	my $table = pick(@tables, @leaves);
	my $sql = "TRUNCATE $table";
	my $kind = rand();
	$sql = "BEGIN; $sql; SELECT soak.dml('$table', 10, 0.5); COMMIT" if $kind < 0.3 && $table !~ /part_/;
	$sql = "BEGIN; SAVEPOINT a; $sql; ROLLBACK TO a; SELECT soak.dml('t_int', 10, 0.5); COMMIT" if $kind > 0.9;
	return ddl($sql);
}

my $columns = 0;

sub change_columns
{
	my $table = pick(@tables);
	my @extra = split /\n/, value("SELECT attname FROM pg_attribute WHERE attrelid = '$table'::regclass
		AND attname LIKE 'extra%'", timeout => 20) // '';
	my $sql = @extra && chance(0.6) ? "DROP COLUMN $extra[0]"
	  : 'ADD COLUMN extra' . ++$columns . pick(' int', " text DEFAULT 'x'", ' float8 DEFAULT random()');
	return ddl("ALTER TABLE $table $sql");
}

sub detach_partition
{
	my $leaf = pick(@leaves);
	my ($n) = $leaf =~ /(\d)$/;
	return ddl("BEGIN; ALTER TABLE t_part DETACH PARTITION $leaf;
		ALTER TABLE t_part ATTACH PARTITION $leaf FOR VALUES IN ($n); COMMIT");
}

# Old rows come with other columns from now on; the key is the same.
sub change_identity
{
	my $table = pick(qw(t_int t_full t_toast t_uuid));
	return ddl("ALTER TABLE $table REPLICA IDENTITY " . pick('FULL', 'DEFAULT'));
}

# What a table's changes were not published, or not complete, for, must not be
# missing in a shape; shapes of these relations may well be gone.
sub round_trip
{
	my ($table, $there, $back, $separate, @ends) = @_;
	my $change = "SELECT soak.dml('$table', 20, " . sprintf('%.9f', rand()) . ');';
	my ($begin, $commit) = $separate ? ('', '') : ('BEGIN;', 'COMMIT;');
	my ($rc, $out, $err);

	allow('may_go', @ends);
	for (1 .. 4)
	{
		($rc, $out, $err) = psql("SET lock_timeout = '1s';\n$begin $there; $change $back; $change $commit", timeout => 60);
		last if $rc == 0 || $err !~ /lock timeout|deadlock/;
		resolve_prepared(1);
	}
	# it must not stay like that
	for (1 .. 20)
	{
		last if !$separate || $rc == 0 || $err =~ /^ERROR:.*already|is not part of/m;
		resolve_prepared(1);
		($rc, $out, $err) = psql("SET lock_timeout = '2s'; $back", timeout => 60);
	}
	note_line("$there; $back: $err") if $rc != 0;
	allow('may_go', @ends);
	return undef if $rc != 0;
	return await_active(0, "$there; $back");
}

sub publication_round_trip
{
	my ($table) = split /\n/, value("SELECT tablename FROM pg_publication_tables t WHERE tablename LIKE 't\\_%'
		AND EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = tablename::regclass)
		ORDER BY random() LIMIT 1", timeout => 20) // return undef;
	return undef unless $table;
	my $only = $table eq 't_part' ? '' : 'ONLY ';
	return round_trip($table, "ALTER PUBLICATION electric_cm_publication DROP TABLE $only$table",
		"ALTER PUBLICATION electric_cm_publication ADD TABLE $only$table", chance(0.3));
}

sub identity_round_trip
{
	my $table = pick(qw(t_int t_uuid t_toast t_full));
	my @way = ('FULL', 'DEFAULT');
	@way = reverse @way if $table eq 't_full';
	return round_trip($table, "ALTER TABLE $table REPLICA IDENTITY $way[0]", "ALTER TABLE $table REPLICA IDENTITY $way[1]", chance(0.3), $table);
}

# What is written to an unlogged leaf is in no stream.  Refused for a leaf that is
# published by itself.
sub unlogged_leaf
{
	my $leaf = pick(@leaves);
	return round_trip($leaf, "ALTER TABLE $leaf SET UNLOGGED", "ALTER TABLE $leaf SET LOGGED", 0, family($leaf));
}

1;
