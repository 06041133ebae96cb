
# Named readers: the server keeps what a reader has acknowledged, in the reader's own
# transaction. So what is read and written in this database happens exactly once, however often
# that is rolled back, however pages are cut, whatever shapes come and go. Folding leaves alone
# what readers have not acknowledged, up to a limit; beyond it they are told.
use strict;
use warnings;

use lib 't/lib';

use ElectricCM qw(new_stack fails_with);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $stack = new_stack('main', conf => "electric_cm.shape_workers = 2\n");
my $node = $stack->node;
my $db = $stack->db;

$stack->sql('CREATE EXTENSION electric_cm');
ok($stack->active, 'active');
$stack->sql(
	map { ("CREATE TABLE $_ (id int PRIMARY KEY, n int NOT NULL, t text)", "CREATE TABLE m_$_ (LIKE $_ INCLUDING ALL)") } qw(a b c d));
$stack->sql(
	'INSERT INTO a SELECT i, 0, $$a$$ FROM generate_series(1, 25) i',
	'INSERT INTO b SELECT i, 0, $$b$$ FROM generate_series(1, 7) i',
	'CREATE TABLE mirrored (handle text PRIMARY KEY, name text)');
my %shape;

sub declare
{
	my ($name) = @_;
	$shape{$name} = $stack->live_shape($name);
	$stack->sql("INSERT INTO mirrored VALUES ('$shape{$name}', '$name')");
	return;
}

sub array { return "'{" . join(',', @_) . "}'"; }

# Reads a page, and does the same to the mirrors, and acknowledges it. A row that was there
# already, or is not there, is an error.
$stack->sql(<<'SQL');
CREATE FUNCTION consume(reader text, max int, break bool DEFAULT false) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	e record; last record; m text; n int; mark text := 'nothing';
BEGIN
	FOR e IN SELECT * FROM electric_cm_read(reader, max) LOOP
		IF e.operation = 'ended' THEN mark := 'ended ' || e.handle || ' ' || (e.value ->> 'sqlstate'); CONTINUE; END IF;
		last := e;
		mark := e.operation || coalesce(' of ' || (SELECT name FROM mirrored x WHERE x.handle = e.handle), '');
		CONTINUE WHEN e.operation IN ('snapshot-end', 'up-to-date');
		SELECT 'm_' || name INTO STRICT m FROM mirrored x WHERE x.handle = e.handle;
		IF e.operation = 'insert' THEN
			EXECUTE format('INSERT INTO %I SELECT * FROM jsonb_populate_record(NULL::%1$I, $1)', m) USING e.value;
		ELSIF e.operation = 'update' THEN
			EXECUTE format('UPDATE %I SET n = coalesce(($1 ->> ''n'')::int, n), t = coalesce($1 ->> ''t'', t) WHERE id = ($1 ->> ''id'')::int', m) USING e.value;
			GET DIAGNOSTICS n = ROW_COUNT;
			ASSERT n = 1, format('update of %s', e.key);
		ELSE
			EXECUTE format('DELETE FROM %I WHERE id = (coalesce($2, $1) ->> ''id'')::int', m) USING e.value, e.old_value;
			GET DIAGNOSTICS n = ROW_COUNT;
			ASSERT n = 1, format('delete of %s', e.key);
		END IF;
	END LOOP;
	IF last IS DISTINCT FROM NULL THEN
		PERFORM electric_cm_ack(reader, last.log_offset, last.handle);
	END IF;
	IF break THEN RAISE EXCEPTION 'broken'; END IF;
	RETURN mark;
END $$
SQL

# Pages until there is no more; what each ended with.
sub consume
{
	my ($reader, $max, $breaks) = @_;
	my @marks;
	$stack->settle;
	for my $page (1 .. 3000)
	{
		my $break = $breaks && rand() < $breaks ? 'true' : 'false';
		my ($rc, $out, $err) = $node->psql($db, "SELECT consume('$reader', $max, $break)");
		die $err if $rc != 0 and $err !~ /broken/;
		next if $rc != 0;
		push @marks, $out;
		last if $out eq 'up-to-date' or $out eq 'nothing' or $out =~ /^ended/;
	}
	return @marks;
}

sub same
{
	my ($what, @tables) = @_;
	my $differences = join ' UNION ALL ', map { "(SELECT '$_', x.* FROM (TABLE $_ EXCEPT TABLE m_$_) x) UNION ALL (SELECT 'm_$_', x.* FROM (TABLE m_$_ EXCEPT TABLE $_) x)" } @tables;
	return is($stack->sql("$differences LIMIT 5"), '', $what);
}

sub stat_of
{
	my ($reader, $columns) = @_;
	return $stack->sql("SELECT $columns FROM electric_cm_stat_readers WHERE name = '$reader'");
}

# ---------------------------------------------------------- the first rows --

declare($_) for qw(a b c);
$stack->sql("SELECT electric_cm_create_reader('r', " . array(@shape{qw(a b c)}) . ')');
is(stat_of('r', 'owner = current_user, shapes, acknowledged, lag_bytes > 0, state'), 't|3|-1|t|initial', 'a reader is created');
is(join(', ', consume('r', 10)), 'insert of a, insert of a, snapshot-end of a, snapshot-end of b, snapshot-end of c, up-to-date',
	'first it reads the rows that are there, shape by shape');
same('... all of them, once', qw(a b c));
is(stat_of('r', q{acknowledged <> '-1', lag_bytes, lag, last_read_at > now() - interval '1 minute', state}), 't|0|00:00:00|t|current', '... and is current');
is(join(', ', consume('r', 10)), 'up-to-date', 'then there is nothing');

# ------------------------------------------------------------- the stream --

$stack->sql('BEGIN; INSERT INTO a VALUES (100, 1); INSERT INTO b VALUES (100, 1); INSERT INTO c VALUES (100, 1); UPDATE a SET n = 2 WHERE id = 100; COMMIT');
$stack->settle;
my $read = q{SELECT string_agg(operation || ' ' || coalesce(key, ''), ', ') FROM electric_cm_read('r', 10)};
my $entries = 'insert "public"."a"/"100", insert "public"."b"/"100", insert "public"."c"/"100", update "public"."a"/"100", up-to-date ';
is($stack->sql($read), $entries, 'a transaction comes in its order');
is($stack->sql($read), $entries, '... again, unless it is acknowledged');
$stack->sql(q{BEGIN; SELECT consume('r', 10); ROLLBACK});
is($stack->sql($read), $entries, '... and that is committed');
is(stat_of('r', 'lag_bytes > 0, lag > interval \'0\', state'), 't|t|behind', '... the reader is behind');
is($stack->sql(q{BEGIN; SELECT consume('r', 10); SELECT operation FROM electric_cm_read('r'); COMMIT}), "up-to-date\nup-to-date",
	'in its own transaction it goes on at once');
same('... once', qw(a b c));

# A page that ends inside a transaction: the offset is one of another shape's entries.
$stack->sql('BEGIN; INSERT INTO a SELECT i, 0 FROM generate_series(200, 205) i; INSERT INTO b SELECT i, 0 FROM generate_series(200, 205) i; INSERT INTO c VALUES (200, 0); COMMIT');
is(join(', ', consume('r', 4)), 'insert of a, insert of b, insert of b, up-to-date', 'a large transaction comes in parts');
same('... once', qw(a b c));

# ---------------------------------------------------- shapes come and go --

$stack->sql('INSERT INTO d SELECT i, 0, $$d$$ FROM generate_series(1, 12) i', 'UPDATE a SET n = 3 WHERE id < 5');
declare('d');
$stack->sql('UPDATE d SET n = n + 1 WHERE id < 4', 'INSERT INTO d VALUES (50, 0)', 'UPDATE b SET n = 9 WHERE id = 1');
$stack->settle;
my $late = $stack->sql(q{SELECT log_offset FROM electric_cm_read('r') WHERE operation = 'up-to-date'});
$stack->sql(q{SELECT consume('r', 10000)});
$stack->sql('UPDATE d SET n = n + 1 WHERE id = 5', 'INSERT INTO c VALUES (300, 0)');
$stack->settle;
$late = $stack->sql(q{SELECT log_offset FROM electric_cm_read('r') WHERE operation = 'up-to-date'});
$stack->sql("SELECT electric_cm_alter_reader('r', " . array($shape{d}) . ')');
is(stat_of('r', 'shapes, state'), '4|initial', 'a shape is added');
$stack->sql('INSERT INTO m_c VALUES (300, 0)', "SELECT electric_cm_ack('r', '$late')");
is(join(', ', consume('r', 10)), 'insert of d, snapshot-end of d, up-to-date of d, up-to-date',
	'... though something that was read before is acknowledged later: its first rows, then what the others have had, then with them');
same('... once', qw(a b c d));
$stack->sql('BEGIN; UPDATE a SET n = 4 WHERE id = 1; UPDATE d SET n = 4 WHERE id = 1; COMMIT');
consume('r', 10000);
same('... and goes on with them', qw(a b c d));

$stack->sql("SELECT electric_cm_alter_reader('r', drop_handles => " . array($shape{d}) . ')');
$stack->sql('INSERT INTO d VALUES (60, 0)', 'INSERT INTO a VALUES (60, 0)');
is(join(', ', consume('r', 10000)), 'up-to-date', 'it is dropped from the reader');
same('... the others go on', qw(a b c));
$stack->sql('TRUNCATE m_d', "SELECT electric_cm_alter_reader('r', " . array($shape{d}) . ')');
like(join(', ', consume('r', 7)), qr/snapshot-end of d, (?:\w+ of d, )*up-to-date of d, up-to-date$/, '... and added again');
same('... it begins again', qw(a b c d));

# --------------------------------------------------------- exactly once --

sub write_in_background
{
	my ($transactions) = @_;
	my $sql = <<"SQL";
DO \$\$
DECLARE i int; t text;
BEGIN
	FOR k IN 1..$transactions LOOP
		FOREACH t IN ARRAY ARRAY['a', 'b', 'c', 'd'] LOOP
			i := 1000 + (random() * 30)::int;
			IF random() < 0.5 THEN
				EXECUTE format('INSERT INTO %I VALUES (\$1, \$2, \$3) ON CONFLICT (id) DO UPDATE SET n = excluded.n', t) USING i, k, md5(k::text);
			ELSIF random() < 0.5 THEN
				EXECUTE format('DELETE FROM %I WHERE id = \$1', t) USING i;
			ELSE
				EXECUTE format('UPDATE %I SET n = \$2, t = t || \$3 WHERE id = \$1', t) USING i, k, 'x';
			END IF;
		END LOOP;
		COMMIT;
	END LOOP;
END \$\$
SQL
	return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db), '-c', $sql ], '<', \undef);
}

srand(17);
my $writer = write_in_background(3000);
my $pages = 0;
while ($writer->pumpable)
{
	$writer->pump_nb;
	$pages += consume('r', 1 + int rand 40, 0.2);
	$stack->fold($shape{ (qw(a b c d))[ rand 4 ] }, 2000) if rand() < 0.3;
	if (rand() < 0.1)
	{
		$stack->sql("BEGIN; TRUNCATE m_d; SELECT electric_cm_alter_reader('r', " . array($shape{d}) . ', ' . array($shape{d}) . '); COMMIT');
	}
	$stack->sql("SELECT electric_cm_resync('$shape{a}')", "SELECT electric_cm_resync('$shape{b}')") if rand() < 0.1;
}
ok($writer->finish, 'a writer');
cmp_ok($pages, '>', 20, 'transactions over four tables, read in pages, a fifth of which is rolled back, while logs are folded and compared');
for my $i (1 .. 20)
{
	last if (consume('r', 10000))[-1] eq 'up-to-date' and stat_of('r', 'state') eq 'current';
}
same('... once', qw(a b c d));
is(stat_of('r', 'state'), 'current', '... and the reader is current');

# ------------------------------------------------------------- folding --

my $rows = 'INSERT INTO a SELECT i, 0, repeat($$x$$, 100) FROM generate_series(10001, 10400) i';
sub forget { return $stack->sql('DELETE FROM a WHERE id > 10000', $rows) }
consume('r', 10000);
$stack->fold_all($shape{a}, 1000);
$stack->sql($rows);
forget() for 1 .. 3;
$stack->settle;
$stack->fold_all($shape{a}, 1000);
is(stat_of('r', 'state, lag_bytes > 100000'), 'behind|t', 'what the reader has not acknowledged is not folded');
consume('r', 10000);
same('... and there to be read', qw(a b c d));
like($stack->fold($shape{a}, 1000), qr/folded the oldest 2[0-9]{3} /, '... then it is');
forget();
consume('r', 10000);
same('... which the reader does not notice', qw(a b c d));

# A reader in the middle of a transaction.
$stack->sql('BEGIN; INSERT INTO a SELECT i, 0, repeat($$y$$, 600) FROM generate_series(20001, 20400) i; DELETE FROM a WHERE id BETWEEN 20001 AND 20398;'
	  . ' INSERT INTO b SELECT i, 0 FROM generate_series(20001, 20040) i; COMMIT',
	'UPDATE a SET t = repeat(md5(id::text), 20) WHERE id > 20000');
$stack->settle;
$stack->sql(q{SELECT consume('r', 808)});
$stack->fold_all($shape{a}, 1000);
consume('r', 10000);
same('nor does one who is in the middle of a transaction', qw(a b c d));

$stack->sql('TRUNCATE m_a', "SELECT electric_cm_alter_reader('r', " . array($shape{a}) . ', ' . array($shape{a}) . ')');
$stack->sql(q{SELECT consume('r', 10)});
forget() for 1 .. 3;
$stack->settle;
is($stack->fold($shape{a}, 1000), '', 'nothing is folded while the first rows are read');
consume('r', 100);
same('... which come as they were', qw(a b c d));

my $open = $node->background_psql($db, on_error_stop => 0);
my $id = $stack->sql("SELECT id FROM _electric_cm.shape WHERE handle = '$shape{a}'");
forget() for 1 .. 3;
consume('r', 10000);
$stack->sql("SELECT electric_cm_create_reader('open', " . array($shape{a}) . ')');
$open->query_safe(q{BEGIN; SELECT electric_cm_ack('open', log_offset, handle) FROM (SELECT * FROM electric_cm_read('open', 5) OFFSET 4) x});
fails_with($node, $db, qr/55P03.*reading the rows that the log begins with/s, 'nor while they are about to be acknowledged', "CALL _electric_cm.fold_shape($id, 1000, NULL, NULL)");
$open->query_safe('ROLLBACK');
like($stack->fold($shape{a}, 1000), qr/folded the oldest/, 'who has had nothing keeps nothing');
fails_with($node, $db, qr/EC001/, '... and is told, if that was on its way', q{SELECT electric_cm_ack('open', '0_5', } . "'$shape{a}')");
is($stack->sql(q{SELECT bool_and(xid IS NULL AND log_offset > '1_0') FROM electric_cm_read('open')}), 't', '... and begins with the rows that there are then');
$stack->sql(q{SELECT electric_cm_drop_reader('open')});
$open->quit;

# Beyond the limit.
forget() for 1 .. 6;
$stack->settle;
$stack->sql(q{ALTER SYSTEM SET electric_cm.reader_retention = '100kB'}, 'SELECT pg_reload_conf()');
$stack->becomes(q{SELECT current_setting('electric_cm.reader_retention') = '100kB'}, 'a reader may keep 100 kB');
$stack->sql("SELECT electric_cm_create_reader('other', " . array($shape{b}) . ')');
$stack->fold_all($shape{a}, 1000);
is(stat_of('r', 'state'), 'lost', 'what it has not acknowledged is folded if it is more: the reader has lost the shape');
isnt(stat_of('other', 'state'), 'lost', '... others have not');
is($stack->sql(q{SELECT count(*), min(severity) FROM electric_cm_events WHERE event = 'reader_lost'}), '1|warning', '... an event tells');
is($stack->sql(q{SELECT handle = } . "'$shape{a}'" . q{, value ->> 'sqlstate' FROM electric_cm_read('r') WHERE operation = 'ended'}), 't|EC001', '... and the reader is told');
$stack->sql('INSERT INTO b VALUES (70, 0)');
consume('r', 10000);
same('... the other shapes go on', qw(b c d));
$stack->sql('TRUNCATE m_a', "SELECT electric_cm_alter_reader('r', " . array($shape{a}) . ', ' . array($shape{a}) . ')');
consume('r', 10000);
same('... until it begins again', qw(a b c d));
is(stat_of('r', 'state'), 'current', '... and is current');

# ----------------------------------------------------------- health --

sub health { return $stack->sql(q{SELECT h #>> '{readers,total}', h #>> '{readers,lost}', h ->> 'severity', h ->> 'reason' FROM electric_cm_health() h}); }
is(health(), '2|0|ok|', 'health knows readers');
$stack->sql("INSERT INTO _electric_cm.reader_lost SELECT m.id FROM _electric_cm.reader_shape m JOIN _electric_cm.reader r ON r.id = m.reader WHERE name = 'other'");
like(health(), qr/^2\|1\|warning\|named readers have lost shapes, as "other" has/, '... and who has lost something');
$stack->sql('DELETE FROM _electric_cm.reader_lost',
	q{UPDATE _electric_cm.reader SET created_at = now() - interval '2 hours', acknowledged_at = now() - interval '61 minutes' WHERE name = 'other'});
like(health(), qr/^2\|0\|warning\|named readers are more than 1 hour behind, as "other"/, '... and who is late');
is(stat_of('other', q{lag BETWEEN '61 minutes' AND '65 minutes'}), 't', '... by how much, says the view');
$stack->sql(q{SELECT electric_cm_ack('other', log_offset, handle) FROM (SELECT * FROM electric_cm_read('other')) x}) for 1 .. 2;
is(stat_of('other', q{lag, lag_bytes, state}), '00:00:00|0|current', '... until it has all');
$stack->sql(q{UPDATE _electric_cm.reader SET acknowledged_at = now() - interval '61 minutes' WHERE name = 'other'},
	'INSERT INTO b VALUES (69, 0)');
$stack->settle;
is(stat_of('other', q{lag < '5 minutes', state}), 't|behind', 'something new is not as old as what came before');
consume('r', 10000);

# ------------------------------------------------------------- shapes end --

$stack->sql("SELECT electric_cm_drop_shape('$shape{c}')");
$stack->sql('INSERT INTO b VALUES (71, 0)');
$stack->settle;
is($stack->sql(q{SELECT string_agg(operation || coalesce(' ' || (value ->> 'sqlstate'), ''), ', ') FROM electric_cm_read('r')}), 'ended 42704, insert, up-to-date',
	'a shape that is dropped is told of');
is(stat_of('r', 'state'), 'ended', '... also by the view');
$stack->sql("SELECT electric_cm_alter_reader('r', NULL, " . array($shape{c}) . ')');
is(join(', ', consume('r', 10000)), 'up-to-date', '... until it is dropped from the reader');

# ------------------------------------------ the example in docs/clients.md --

my ($procedure) = slurp_file('docs/clients.md') =~ /^(CREATE PROCEDURE feed\(.*?^END \$\$;)/ms;
$stack->sql('CREATE TABLE queue (n serial, handle text, operation text, value jsonb)', $procedure,
	"SELECT electric_cm_create_reader('feed', " . array(@shape{qw(a b)}) . ')', 'CALL feed()');
is($stack->sql('SELECT count(*) FILTER (WHERE operation = $$insert$$) - count(*) FILTER (WHERE operation = $$delete$$) - (SELECT count(*) FROM a) - (SELECT count(*) FROM b) FROM queue'), 0, 'an example reads all rows');
$stack->sql('BEGIN; INSERT INTO a VALUES (5000, 1); UPDATE b SET n = 5 WHERE id = 1; DELETE FROM a WHERE id = 5000; COMMIT');
$stack->settle;
$stack->sql('CALL feed()') for 1 .. 2;
is($stack->sql(q{SELECT string_agg(operation, ' ' ORDER BY n) FROM (SELECT * FROM queue ORDER BY n DESC LIMIT 3) x}), 'insert update delete', '... and goes on');
$stack->sql(q{SELECT electric_cm_drop_reader('feed')});

# ------------------------------------------------------- offsets, errors --

$stack->sql("SELECT electric_cm_create_reader('two', " . array(@shape{qw(a b)}) . ')');
fails_with($node, $db, qr/42P08.*HINT:  Pass the row's handle/s, 'an offset that two shapes may have', q{SELECT electric_cm_ack('two', '0_3')});
fails_with($node, $db, qr/$_->[1]/s, "$_->[0] fails", "SELECT electric_cm_$_->[0]")
  for (
	[ q{ack('two', NULL)}, '22004' ],
	[ q{ack('two', '-1')}, '22023' ],
	[ q{ack('two', 'x')}, '22P02' ],
	[ q{ack('none', '0_1')}, '42704.*reader "none" does not exist' ],
	[ q{ack('two', '9999999999999999_1')}, 'EC001.*beyond the end' ],
	[ "ack('two', '5_4611686018427387905', '$shape{a}')", 'EC001' ],
	[ "ack('two', '0_1', 'x')", '42704.*does not have shape' ],
	[ q{read('none')}, '42704' ],
	[ q{read('two', 0)}, '22023' ],
	[ q{create_reader('two', '{}')}, '42710' ],
	[ q{create_reader('', '{}')}, '42602' ],
	[ q{create_reader(repeat('x', 64), '{}')}, '42602' ],
	[ q{create_reader(NULL, '{}')}, '22004' ],
	[ q{create_reader('x', NULL)}, '22004' ],
	[ q{create_reader('x', '{y}')}, '42704' ],
	[ "create_reader('x', '{$shape{a},$shape{a}}')", '22023' ],
	[ "alter_reader('two', '{$shape{a}}')", '42710' ],
	[ "alter_reader('two', NULL, '{$shape{d}}')", '42704' ],
	[ q{drop_reader('none')}, '42704' ]);
is(stat_of('two', 'acknowledged'), '-1', '... none of which has changed anything');
is($stack->sql("SELECT electric_cm_create_reader('empty', '{}'); SELECT count(*) FROM electric_cm_read('empty')"), "\n0", 'a reader of none has nothing to read');

# ------------------------------------------------------------- rights --

$stack->sql('CREATE ROLE owner LOGIN', 'CREATE ROLE member LOGIN IN ROLE owner', 'CREATE ROLE stranger LOGIN', 'CREATE ROLE watcher LOGIN IN ROLE pg_monitor');
$stack->sql('CREATE TABLE theirs (id int PRIMARY KEY)', 'ALTER TABLE theirs OWNER TO owner', 'INSERT INTO theirs VALUES (1)',
	'GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_create_reader(text, text[]) TO owner');
my $theirs = $stack->sql(q{SET ROLE owner; SELECT electric_cm_create_shape('theirs')});
$stack->is_live($theirs);
$stack->sql("SET ROLE owner; SELECT electric_cm_create_reader('t', " . array($theirs) . ')');
my $names = q{SELECT string_agg(name || ' ' || (lag_bytes IS NOT NULL), ', ' ORDER BY name) FROM electric_cm_stat_readers};
is($stack->sql("SET ROLE member; $names"), 't true', 'members of its owner see a reader');
is($stack->sql("SET ROLE watcher; $names"), 'empty true, other true, r true, t true, two true', '... who watches the server sees all');
is($stack->sql("SET ROLE stranger; $names"), '', '... others see none');
is($stack->sql(q{SET ROLE member; SELECT count(*) FROM electric_cm_read('t'); SELECT electric_cm_ack('t', '0_1')}), "2\n", 'members read and acknowledge');
fails_with($node, $db, qr/42501/s, "a stranger may not: $_", "SET ROLE stranger; SELECT $_")
  for q{electric_cm_read('t')}, q{electric_cm_ack('t', '0_1')}, q{electric_cm_drop_reader('t')}, q{electric_cm_alter_reader('t')},
  "electric_cm_create_reader('s', '{$theirs}')", 'x.lag_bytes FROM _electric_cm.reader_stats(1) x';
fails_with($node, $db, qr/42501/s, 'nor look into our tables', 'SET ROLE stranger; TABLE _electric_cm.reader');
$stack->sql('REVOKE ALL ON theirs FROM owner');
fails_with($node, $db, qr/42501/s, 'who may not read the table any more is told', q{SET ROLE owner; SELECT electric_cm_read('t')});
$stack->sql('CREATE ROLE heir', 'GRANT SELECT ON theirs TO heir', 'REASSIGN OWNED BY owner TO heir');
is(stat_of('t', 'owner'), 'heir', 'readers are given to others as shapes are');
$stack->sql('REASSIGN OWNED BY heir TO owner', 'DROP OWNED BY heir', 'DROP ROLE heir');
$stack->sql('DROP TABLE theirs', 'REVOKE ALL ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]), electric_cm_create_reader(text, text[]) FROM owner', 'DROP ROLE member', 'DROP ROLE owner');
$stack->sql('SELECT _electric_cm.invalidate_ownerless()');
is($stack->sql(q{SELECT count(*) FROM electric_cm_stat_readers WHERE name = 't'}), 0, 'a reader whose owner is gone goes');

# ------------------------------------------------------------ restarts --

$stack->sql(q{SELECT electric_cm_drop_reader('two')}, q{SELECT electric_cm_drop_reader('empty')});
$stack->sql('UPDATE a SET n = 77 WHERE id < 9');
$stack->settle;
$node->stop('immediate');
$node->start;
ok($stack->active, 'the server crashes');
consume('r', 3);
same('... the reader goes on, once', qw(a b d));

my $log = slurp_file($node->logfile);
unlike($log, qr/(?:still referenced|leak|TRAP|PANIC|signal \d+ *:)/, 'no leaks, no crash');

$node->stop;
done_testing();
