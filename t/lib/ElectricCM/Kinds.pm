# ElectricCM::Kinds: tables of every kind that a shape can have, and random changes.
package ElectricCM::Kinds;

use strict;
use warnings;

use Exporter 'import';
use IPC::Run ();
use PostgreSQL::Test::Utils;

our @EXPORT_OK = qw(make_kinds start_changes stop_changes);

=pod

=head1 NAME

ElectricCM::Kinds - tables with keys of every kind, and random changes of them

=head1 FUNCTIONS

=over

=item make_kinds($stack)

Creates the extension and L<ElectricCM>'s compare(), and makes a table of each kind, with 100 rows, the table C<kind>, which has a row for each, and the
function C<change()>, which changes, moves, deletes or adds a row of one.

=item my $load = start_changes($stack); stop_changes($stack, $load)

Starts, and ends, five sessions that do so all the time.

=back

=cut

sub make_kinds
{
	my ($stack) = @_;
	$stack->sql('CREATE EXTENSION electric_cm');
	$stack->install_compare;
	return $stack->sql(q{
CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy', 'glad', 'mad');
CREATE DOMAIN name_of_row AS text CHECK (value <> '');
DO $$
BEGIN
	CREATE COLLATION numerically (provider = icu, locale = 'en-u-kn-true');
EXCEPTION WHEN feature_not_supported THEN
	CREATE COLLATION numerically FROM "C";	-- a server without ICU
END $$;
CREATE TABLE number (id int PRIMARY KEY, n int DEFAULT 0, big text);
CREATE TABLE word (id text COLLATE numerically PRIMARY KEY, n int DEFAULT 0, big text);
CREATE TABLE many (a numeric, b "char", c name_of_row COLLATE "C", n int DEFAULT 0, big text, PRIMARY KEY (c, a, b));
CREATE TABLE enumerated (id mood[] NOT NULL, at timestamptz NOT NULL, n int DEFAULT 0, big text, UNIQUE (at, id));
ALTER TABLE enumerated REPLICA IDENTITY USING INDEX enumerated_at_id_key;
CREATE TABLE wholly (id uuid PRIMARY KEY, n int DEFAULT 0, big text);
ALTER TABLE wholly REPLICA IDENTITY FULL;
CREATE TABLE parted (id int PRIMARY KEY, n int DEFAULT 0, big text) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (100);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (MAXVALUE);

-- which key the row with a number has
CREATE TABLE kind (relation text, columns text, key text);
INSERT INTO kind VALUES
	('number', 'id', '%1$s'),
	('word', 'id', '''row '' || %1$s'),
	('many', 'c, a, b', '''row '' || %1$s / 50, round(%1$s %% 50 / 7.0, 3), CASE %1$s %% 2 WHEN 0 THEN ''x'' ELSE ''y'' END::"char"'),
	('enumerated', 'id, at', '(enum_range(NULL::mood))[%1$s %% 3 + 1 : %1$s %% 5 + 1], ''2026-01-01 UTC''::timestamptz + %1$s * interval ''1 hour'''),
	('wholly', 'id', 'md5(''row '' || %1$s)::uuid'),
	('parted', 'id', '%1$s');

-- TOASTed, though it is short
CREATE FUNCTION big() RETURNS text LANGUAGE sql AS
	$$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 80) $$;
DO $$
DECLARE
	k kind;
BEGIN
	FOR k IN SELECT * FROM kind LOOP
		EXECUTE format('ALTER TABLE %s ALTER big SET STORAGE EXTERNAL', k.relation);
		EXECUTE format('INSERT INTO %s (%s, big) SELECT %s, big() FROM generate_series(1, 200, 2) i', k.relation, k.columns, format(k.key, 'i'));
	END LOOP;
END $$;

-- A change, or some, in a subtransaction that may fail.  Most of them move a row.
CREATE FUNCTION change() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k kind;
	source text;
	target text;
	x int := 1 + floor(random() * 200);
	y int := 1 + floor(random() * 200);
BEGIN
	SELECT * INTO k FROM kind ORDER BY random() LIMIT 1;
	source := format('(%s) = (%s)', k.columns, format(k.key, x));
	target := format('(%s) = (%s)', k.columns, format(k.key, y));
	EXECUTE format('UPDATE %s SET n = n + 1 WHERE %s', k.relation, source);
	CASE floor(random() * 10)::int
	WHEN 1 THEN
		EXECUTE format('INSERT INTO %s (%s, big) VALUES (%s, big())', k.relation, k.columns, format(k.key, y));
	WHEN 2 THEN
		EXECUTE format('DELETE FROM %s WHERE %s', k.relation, source);
	WHEN 3 THEN
		EXECUTE format('UPDATE %s SET big = big() WHERE %s', k.relation, source);
	WHEN 4 THEN
		EXECUTE format('DELETE FROM %s WHERE %s', k.relation, target);
		EXECUTE format('INSERT INTO %s (%s, big) VALUES (%s, big())', k.relation, k.columns, format(k.key, y));
		EXECUTE format('DELETE FROM %s WHERE %s', k.relation, target);
		EXECUTE format('INSERT INTO %s (%s, big) VALUES (%s, big())', k.relation, k.columns, format(k.key, y));
	ELSE
		EXECUTE format('UPDATE %s SET (%s) = ROW(%s), n = n + 1 WHERE %s', k.relation, k.columns, format(k.key, y), source);
	END CASE;
EXCEPTION WHEN unique_violation OR deadlock_detected OR serialization_failure THEN
	NULL;
END $$;
});
}

sub start_changes
{
	my ($stack) = @_;
	my $script = $stack->node->basedir . '/load.sql';
	PostgreSQL::Test::Utils::append_to_file($script, q{
\set pause random(0, 20)
BEGIN;
SELECT change();
\sleep :pause ms
SELECT change(), change();
COMMIT;
}) unless -e $script;
	my ($out, $err) = ('', '');
	return IPC::Run::start(
		[ 'pgbench', '-n', '-c', 5, '-T', 600, '-f', $script, $stack->node->connstr($stack->db) ],
		'<', \undef, '>', \$out, '2>', \$err);
}

sub stop_changes
{
	my ($stack, $load) = @_;
	$load->signal('TERM');
	$load->finish;
	return $stack->becomes(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'});
}

1;
