--
-- Creating shapes: what is refused, and what two of the same have in common
--
SET client_min_messages = warning;
CREATE TABLE good (id int PRIMARY KEY, t text);
INSERT INTO good SELECT i, 'row ' || i FROM generate_series(1, 3) i;

-- the handle comes at once, the shape later
BEGIN;
SELECT electric_cm_create_shape('good') AS good \gset
SELECT :'good' ~ '^\d+-\d+$' AS handle;
-- waiting for it in this transaction would never end
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'good'));
COMMIT;
SELECT * FROM entries(:'good');
SELECT relation, where_clause, columns, state, waiting_for, snapshot_rows, log_entries,
	log_bytes > 0 AS has_bytes, last_offset, last_error
FROM electric_cm_shapes;
SELECT prrelid::regclass FROM pg_publication_rel;

-- the same definition gives the same handle
SELECT electric_cm_create_shape('good') = :'good' AS same;
SELECT electric_cm_create_shape('public.good', NULL, NULL) = :'good' AS same;
BEGIN;
SELECT electric_cm_create_shape('good') = :'good' AS same;
ROLLBACK;
SELECT count(*) FROM electric_cm_shapes;

-- a declaration that is rolled back has not happened
CREATE TABLE rolled_back (id int PRIMARY KEY);
BEGIN;
SELECT electric_cm_create_shape('rolled_back') AS gone \gset
ROLLBACK;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'gone'));
BEGIN;
SAVEPOINT s;
SELECT electric_cm_create_shape('rolled_back') AS gone \gset
ROLLBACK TO s;
COMMIT;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'gone'));
-- one in a subtransaction that is kept has
BEGIN;
SAVEPOINT s;
SELECT electric_cm_create_shape('rolled_back') AS kept \gset
RELEASE s;
COMMIT;
SELECT * FROM entries(:'kept');
SELECT electric_cm_drop_shape(:'kept');

-- table, declaration and rows in one transaction
BEGIN;
CREATE TABLE at_once (id int PRIMARY KEY, t text);
SELECT electric_cm_create_shape('at_once') AS at_once \gset
INSERT INTO at_once VALUES (1, 'one');
COMMIT;
SELECT * FROM entries(:'at_once');

-- dropped before it could be created
BEGIN;
SELECT electric_cm_create_shape('rolled_back') AS gone \gset
SELECT electric_cm_drop_shape(:'gone');
COMMIT;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'gone'));
SELECT error(format('SELECT electric_cm_drop_shape(%L)', :'gone'));

-- dropping
SELECT electric_cm_create_shape('rolled_back') AS dropped \gset
SELECT * FROM entries(:'dropped');
SELECT electric_cm_drop_shape(:'dropped');
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'dropped'));
SELECT error(format('SELECT electric_cm_drop_shape(%L)', :'dropped'));
SELECT electric_cm_create_shape('rolled_back') AS again \gset
SELECT :'again' <> :'dropped' AS another;
BEGIN;
SELECT electric_cm_drop_shape(:'again');
ROLLBACK;
SELECT * FROM entries(:'again');
SELECT electric_cm_drop_shape(:'again');
SELECT electric_cm_drop_shape(NULL) IS NULL AS nothing;

-- arguments
SELECT error('SELECT electric_cm_create_shape(NULL)');
SELECT error($$SELECT electric_cm_create_shape('no_such_table')$$);
SELECT error('SELECT electric_cm_create_shape(0)');
SELECT error('SELECT electric_cm_create_shape(4294967295)');
SELECT error($$SELECT electric_cm_create_shape('good', 'id > 1')$$);
SELECT error($$SELECT electric_cm_create_shape('good', NULL, '{id}')$$);
SELECT error($$SELECT electric_cm_create_shape('good', columns => '{}')$$);

-- what is not a table
CREATE VIEW a_view AS SELECT * FROM good;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM good;
CREATE SEQUENCE a_sequence;
CREATE TYPE a_type AS (a int);
SELECT error($$SELECT electric_cm_create_shape('a_view')$$);
SELECT error($$SELECT electric_cm_create_shape('a_matview')$$);
SELECT error($$SELECT electric_cm_create_shape('a_sequence')$$);
SELECT error($$SELECT electric_cm_create_shape('good_pkey')$$);
SELECT error($$SELECT electric_cm_create_shape('a_type')$$);
CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER nowhere FOREIGN DATA WRAPPER dummy;
CREATE FOREIGN TABLE a_foreign_table (id int) SERVER nowhere;
SELECT error($$SELECT electric_cm_create_shape('a_foreign_table')$$);
DROP FOREIGN DATA WRAPPER dummy CASCADE;

-- what is not replicated
CREATE TEMP TABLE a_temp (id int PRIMARY KEY);
CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY);
SELECT error($$SELECT electric_cm_create_shape('a_temp')$$);
SELECT error($$SELECT electric_cm_create_shape('an_unlogged')$$);
SELECT error($$SELECT electric_cm_create_shape('pg_catalog.pg_class')$$);
SELECT error($$SELECT electric_cm_create_shape('information_schema.sql_features')$$);
SELECT error($$SELECT electric_cm_create_shape('_electric_cm.shape')$$);

-- what would make the application's own writes fail
CREATE TABLE no_key (id int, t text);
CREATE TABLE unique_only (id int UNIQUE NOT NULL);
CREATE TABLE no_identity (id int PRIMARY KEY);
ALTER TABLE no_identity REPLICA IDENTITY NOTHING;
CREATE TABLE full_without_key (id int, t text);
ALTER TABLE full_without_key REPLICA IDENTITY FULL;
CREATE TABLE deferrable_key (id int PRIMARY KEY DEFERRABLE);
SELECT error($$SELECT electric_cm_create_shape('no_key')$$);
SELECT error($$SELECT electric_cm_create_shape('unique_only')$$);
SELECT error($$SELECT electric_cm_create_shape('no_identity')$$);
SELECT error($$SELECT electric_cm_create_shape('full_without_key')$$);
SELECT error($$SELECT electric_cm_create_shape('deferrable_key')$$);
SELECT prrelid::regclass FROM pg_publication_rel
WHERE prrelid IN ('no_key'::regclass, 'unique_only'::regclass, 'full_without_key'::regclass);
-- so they don't
UPDATE no_key SET id = 1;
DELETE FROM unique_only;

-- inheritance: the stream says nothing of what a parent's query would show
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
SELECT error($$SELECT electric_cm_create_shape('parent')$$);
INSERT INTO child VALUES (1);
SELECT electric_cm_create_shape('child') AS child \gset
SELECT * FROM entries(:'child');
-- a former parent
DROP TABLE child;
SELECT electric_cm_create_shape('parent') AS parent \gset
INSERT INTO parent VALUES (7);
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'parent');

-- a replica identity index serves as a key, and is what the log's keys are made of
CREATE TABLE by_index (id int, code text NOT NULL, t text);
CREATE UNIQUE INDEX by_index_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
SELECT electric_cm_create_shape('by_index') AS by_index \gset
SELECT * FROM entries(:'by_index');
INSERT INTO by_index VALUES (1, 'a', 'x');
UPDATE by_index SET t = 'y';
UPDATE by_index SET code = 'b';
DELETE FROM by_index;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'by_index');

-- a limit to the number of shapes
SELECT count(*) AS shapes FROM electric_cm_shapes \gset
SET electric_cm.max_shapes = :shapes;
CREATE TABLE one_more (id int PRIMARY KEY);
SELECT error($$SELECT electric_cm_create_shape('one_more')$$);
SELECT electric_cm_create_shape('good') = :'good' AS same;
SET electric_cm.max_shapes = 0;
SELECT error($$SELECT electric_cm_create_shape('one_more')$$);
RESET electric_cm.max_shapes;

-- nothing is published behind an administrator's back
SET electric_cm.manual_table_publishing = on;
SELECT error($$SELECT electric_cm_create_shape('one_more')$$);
SELECT electric_cm_create_shape('good') = :'good' AS same;
RESET electric_cm.manual_table_publishing;

-- a shape of a table that is published already
ALTER PUBLICATION electric_cm_publication ADD TABLE one_more;
SELECT electric_cm_create_shape('one_more') AS one_more \gset
INSERT INTO one_more VALUES (1);
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'one_more');

-- many at a time
DO $$
BEGIN
	FOR i IN 1..40 LOOP
		EXECUTE format('CREATE TABLE many_%s (id int PRIMARY KEY)', i);
		EXECUTE format('INSERT INTO many_%s VALUES (%1$s)', i);
	END LOOP;
END $$;
BEGIN;
SELECT count(electric_cm_create_shape(format('many_%s', i)::regclass)) FROM generate_series(1, 40) i;
COMMIT;
SELECT count(*) FROM electric_cm_shapes s, LATERAL electric_cm_shape_log(s.handle) l
WHERE s.relation::text LIKE 'many%' AND l.value->>'id' = substr(s.relation::text, 6);
UPDATE many_7 SET id = 107;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT l.operation, l.key FROM electric_cm_shapes s, LATERAL entries(s.handle) l
WHERE s.relation = 'many_7'::regclass;
DO $$
BEGIN
	FOR i IN 1..40 LOOP
		EXECUTE format('DROP TABLE many_%s', i);
	END LOOP;
END $$;

DROP VIEW a_view;
DROP MATERIALIZED VIEW a_matview;
DROP SEQUENCE a_sequence;
DROP TYPE a_type;
DROP TABLE good, rolled_back, at_once, an_unlogged, no_key, unique_only, no_identity,
	full_without_key, deferrable_key, parent, by_index, one_more;
SELECT count(*) FROM electric_cm_shapes;
