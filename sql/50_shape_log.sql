--
-- Reading a shape's log
--
SET client_min_messages = warning;
CREATE TABLE items (id int PRIMARY KEY, name text, n int);
INSERT INTO items SELECT i, 'item ' || i, i * 10 FROM generate_series(1, 3) i;
SELECT electric_cm_create_shape('items') AS h \gset
SELECT * FROM electric_cm_shape_log(:'h');	-- rows of the snapshot: offsets 0_n, no xid

-- one entry per change, as the values are
INSERT INTO items VALUES (4, 'item 4', NULL);
UPDATE items SET n = n + 1 WHERE id = 1;
UPDATE items SET name = NULL WHERE id = 2;
UPDATE items SET n = n WHERE id = 3;
DELETE FROM items WHERE id = 3;
-- a changed key is another row
UPDATE items SET id = 40, n = 7 WHERE id = 4;
-- several changes of one row in one transaction
BEGIN;
INSERT INTO items VALUES (5, 'a', 1);
UPDATE items SET name = 'b' WHERE id = 5;
UPDATE items SET id = 6 WHERE id = 5;
DELETE FROM items WHERE id = 6;
INSERT INTO items VALUES (5, 'c', 2);
COMMIT;
-- nothing of this happens
BEGIN;
INSERT INTO items VALUES (100, 'rolled back', 1);
ROLLBACK;
BEGIN;
INSERT INTO items VALUES (7, 'kept', 1);
SAVEPOINT s;
INSERT INTO items VALUES (101, 'rolled back', 1);
UPDATE items SET name = 'rolled back';
ROLLBACK TO s;
UPDATE items SET n = 2 WHERE id = 7;
COMMIT;
UPDATE items SET n = 0 WHERE id = 12345;
-- prepared
BEGIN;
INSERT INTO items VALUES (8, 'prepared', 1);
PREPARE TRANSACTION 'regress_items';
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT count(*) FROM electric_cm_shape_log(:'h') WHERE value->>'id' = '8';
COMMIT PREPARED 'regress_items';
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'h', '0_3');
SELECT replay(:'h', 'items');

-- other statements
INSERT INTO items VALUES (1, 'conflict', 1) ON CONFLICT (id) DO UPDATE SET name = excluded.name;
MERGE INTO items t USING (VALUES (1, 'merged'), (50, 'merged')) s (id, name) ON t.id = s.id
	WHEN MATCHED THEN UPDATE SET name = s.name
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.name, 0);
COPY items FROM stdin;
60	copied	1
61	\N	\N
\.
WITH d AS (DELETE FROM items WHERE id = 60 RETURNING *)
	INSERT INTO items SELECT id + 100, name, n FROM d;
SELECT last_offset(:'h') AS before \gset
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'h', 'items');

-- offsets: pages of any size are the whole
SELECT count(*) AS entries FROM electric_cm_shape_log(:'h') \gset
CREATE FUNCTION pages(handle text, size int) RETURNS TABLE (entries bigint, pages int)
LANGUAGE plpgsql AS $$
DECLARE
	after text := '-1';
	n int;
	upto text;
BEGIN
	entries := 0; pages := 0;
	LOOP
		SELECT count(*), (array_agg(log_offset ORDER BY o DESC))[1] INTO n, upto
		FROM electric_cm_shape_log(handle, after, size)
			WITH ORDINALITY AS l (log_offset, op, k, v, ov, x, o);
		EXIT WHEN n = 0;
		IF n > size THEN
			RAISE 'page of % entries', n;
		END IF;
		entries := entries + n; pages := pages + 1;
		after := upto;
	END LOOP;
	RETURN NEXT;
END $$;
SELECT p.entries = :entries AS all_entries, p.pages = ceil(:entries::numeric / size) AS full_pages
FROM unnest(ARRAY[1, 2, 3, 7, 1000]) size, pages(:'h', size) p;
-- an offset in the middle; what one may say who has found the log empty; and
-- some that the log has not, and never will
SELECT operation, key FROM electric_cm_shape_log(:'h', '0_2', 2);
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(:'h', '0_0');
SELECT error(format($$SELECT * FROM electric_cm_shape_log(%L, %L)$$, :'h', a))
FROM unnest(ARRAY['0_4', '0_9223372036854775807', '1_0', '18446744073709551615_0']) a;
SELECT count(*) AS empty FROM electric_cm_shape_log(:'h', last_offset(:'h'));
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(handle => :'h', after_offset => '-1', max_entries => NULL);

-- arguments
SELECT error('SELECT * FROM electric_cm_shape_log(NULL)');
SELECT error($$SELECT * FROM electric_cm_shape_log('no such handle')$$);
SELECT error(format($$SELECT * FROM electric_cm_shape_log(%L, %s)$$, :'h', a))
FROM unnest(ARRAY['NULL', '''''', '''x''', '''-2''', '''-1_0''', '''1''', '''1_''', '''_1''', '''1_2_3''',
	''' 1_1''', '''1_1 ''', '''+1_1''', '''1_-1''', '''18446744073709551616_0''', '''0_18446744073709551616''']) a;
SELECT error(format($$SELECT * FROM electric_cm_shape_log(%L, '-1', %s)$$, :'h', a))
FROM unnest(ARRAY['0', '-1']) a;

-- reading is possible anywhere once the shape is live
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(:'h');
ROLLBACK;
BEGIN READ ONLY;
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(:'h');
ROLLBACK;
BEGIN;
INSERT INTO items VALUES (200, 'not committed', 0);
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(:'h');
ROLLBACK;
-- ... under one snapshot
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(:'h');
\! psql -X -q -d regression -c "INSERT INTO items VALUES (201, 'meanwhile', 0)" -c "DO 'BEGIN PERFORM electric_cm_await_flushed(); END'"
SELECT count(*) = :entries AS all_entries FROM electric_cm_shape_log(:'h');
COMMIT;
SELECT count(*) - :entries AS more FROM electric_cm_shape_log(:'h');

-- a shape that is not live yet can't be waited for in any transaction
CREATE TABLE waits (id int PRIMARY KEY);
BEGIN;
INSERT INTO waits VALUES (1);
\! psql -X -q -A -t -d regression -c "SELECT electric_cm_create_shape('waits') IS NOT NULL"
SELECT handle AS waits FROM electric_cm_shapes WHERE relation = 'waits'::regclass \gset
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'waits'));
COMMIT;
SELECT * FROM entries(:'waits');
-- ... and can be waited for in one that only reads the table
SELECT electric_cm_drop_shape(:'waits');
BEGIN;
SELECT * FROM waits;
\! psql -X -q -A -t -d regression -c "SELECT electric_cm_create_shape('waits') IS NOT NULL"
SELECT handle AS waits FROM electric_cm_shapes WHERE relation = 'waits'::regclass \gset
SELECT * FROM entries(:'waits');
COMMIT;
DROP TABLE waits;

-- REPLICA IDENTITY FULL: old values
CREATE TABLE full_identity (id int PRIMARY KEY, a text, b text);
ALTER TABLE full_identity REPLICA IDENTITY FULL;
INSERT INTO full_identity VALUES (1, 'a', 'b');
SELECT electric_cm_create_shape('full_identity') AS f \gset
SELECT * FROM entries(:'f');
UPDATE full_identity SET a = 'A';
UPDATE full_identity SET a = NULL;
UPDATE full_identity SET a = a;
UPDATE full_identity SET id = 2, b = 'B';
DELETE FROM full_identity;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'f', '0_1');
DROP TABLE full_identity;

-- the key need not be the first column, and may be several
CREATE TABLE composite (a text, z text, b int, PRIMARY KEY (b, z));
INSERT INTO composite VALUES ('v', 'x"y/z', 1);
SELECT electric_cm_create_shape('composite') AS c \gset
SELECT * FROM entries(:'c');
UPDATE composite SET a = 'w';
UPDATE composite SET z = '';
UPDATE composite SET b = 2;
DELETE FROM composite;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'c', '0_1');
DROP TABLE composite;

-- only a key
CREATE TABLE only_key (id uuid PRIMARY KEY);
SELECT electric_cm_create_shape('only_key') AS k \gset
SELECT * FROM entries(:'k');
INSERT INTO only_key VALUES ('00000000-0000-0000-0000-000000000001');
UPDATE only_key SET id = '00000000-0000-0000-0000-000000000002';
DELETE FROM only_key;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'k');
DROP TABLE only_key;

-- names that need quotes, in a schema that does too
CREATE SCHEMA "My ""Schema";
CREATE TABLE "My ""Schema"."Täble 1/2" ("ID" int PRIMARY KEY, "select" text, "a.b" text, """" text);
INSERT INTO "My ""Schema"."Täble 1/2" VALUES (1, 'a', 'b', 'c');
SELECT electric_cm_create_shape('"My ""Schema"."Täble 1/2"') AS q \gset
SELECT * FROM entries(:'q');
UPDATE "My ""Schema"."Täble 1/2" SET "select" = 'x';
DELETE FROM "My ""Schema"."Täble 1/2";
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'q', '0_1');
SELECT prrelid::regclass FROM pg_publication_rel WHERE prrelid = '"My ""Schema"."Täble 1/2"'::regclass;
DROP SCHEMA "My ""Schema" CASCADE;

-- generated columns that are not replicated are left out, identity and default
-- values are not
SELECT CASE WHEN current_setting('server_version_num')::int >= 180000 THEN 'VIRTUAL' ELSE 'STORED' END AS kind \gset
CREATE TABLE generated (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	a int DEFAULT 5,
	twice int GENERATED ALWAYS AS (a * 2) :kind,
	b text DEFAULT 'x');
INSERT INTO generated DEFAULT VALUES;
SELECT electric_cm_create_shape('generated') AS g \gset
SELECT * FROM entries(:'g');
INSERT INTO generated (a) VALUES (6);
UPDATE generated SET a = 7 WHERE id = 1;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'g', '0_1');
DROP TABLE generated;

-- columns that were dropped before
CREATE TABLE holes (x int, id int PRIMARY KEY, y text, z text);
ALTER TABLE holes DROP COLUMN x;
ALTER TABLE holes DROP COLUMN y;
INSERT INTO holes VALUES (1, 'a');
SELECT electric_cm_create_shape('holes') AS d \gset
SELECT * FROM entries(:'d');
UPDATE holes SET z = 'b';
UPDATE holes SET id = 2;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'d', '0_1');
DROP TABLE holes;

-- a partitioned table: one shape of all, also where a partition's columns
-- are in another order
CREATE TABLE parts (id int, t text, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_2 (gone int, n int, t text, id int NOT NULL);
ALTER TABLE parts_2 DROP COLUMN gone;
ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (100) TO (200);
CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (200) TO (300) PARTITION BY RANGE (id);
CREATE TABLE parts_3a PARTITION OF parts_3 FOR VALUES FROM (200) TO (250);
INSERT INTO parts VALUES (1, 'one', 1), (101, 'hundred and one', 2), (201, 'two hundred and one', 3);
SELECT electric_cm_create_shape('parts') AS p \gset
SELECT operation, key, value FROM entries(:'p') ORDER BY key COLLATE "C";
INSERT INTO parts VALUES (2, 'two', 4), (102, 'hundred and two', 5), (202, 'two hundred and two', 6);
UPDATE parts SET t = upper(t) WHERE id IN (1, 101);
UPDATE parts SET id = 103 WHERE id = 2;		-- to another partition
UPDATE parts SET id = 203 WHERE id = 201;	-- within one
INSERT INTO parts_2 (id, t, n) VALUES (150, 'directly', 7);
DELETE FROM parts_3a WHERE id = 202;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'p', '0_3');
SELECT replay(:'p', 'parts');
-- a partition can have a shape of its own
SELECT electric_cm_create_shape('parts_2') AS p2 \gset
SELECT key, value FROM entries(:'p2') ORDER BY key COLLATE "C";
UPDATE parts SET n = n + 1 WHERE id = 150;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT key, value FROM entries(:'p2', '0_4');
SELECT replay(:'p', 'parts'), replay(:'p2', 'parts_2');
DROP TABLE parts;

SELECT replay(:'h', 'items');
DROP FUNCTION pages;
DROP TABLE items;
