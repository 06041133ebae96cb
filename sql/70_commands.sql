--
-- What commands do to a shape: end it, have it resynced, or leave it alone
--
SET client_min_messages = warning;
CREATE TABLE t (id int PRIMARY KEY, a text, b int);
INSERT INTO t VALUES (1, 'a', 1);

-- What has become of a shape: live, resynced (since this was asked last), or what a
-- reader is told.
CREATE TEMP TABLE seen (handle text PRIMARY KEY, gaps bigint);
CREATE FUNCTION fate(which text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	until timestamptz := clock_timestamp() + '60 s';
	had bigint := coalesce((SELECT gaps FROM seen WHERE handle = which), 0);
	has bigint;
BEGIN
	PERFORM electric_cm_await_flushed();
	WHILE EXISTS (SELECT FROM electric_cm_shapes WHERE handle = which AND state IN ('creating', 'resyncing'))
		AND clock_timestamp() < until
	LOOP
		PERFORM pg_sleep(0.01);
	END LOOP;
	IF EXISTS (SELECT FROM electric_cm_shapes WHERE handle = which AND state = 'live') THEN
		SELECT count(*) INTO has FROM _electric_cm.shape_gap g JOIN _electric_cm.shape s ON s.id = g.shape
			WHERE s.handle = which AND closed_at IS NOT NULL;
		INSERT INTO seen VALUES (which, has) ON CONFLICT (handle) DO UPDATE SET gaps = has;
		RETURN CASE WHEN has > had THEN 'resynced' ELSE 'live' END;
	END IF;
	RETURN error(format('SELECT count(*) FROM electric_cm_shape_log(%L)', which));
END $$;

SELECT electric_cm_create_shape('t') AS h \gset
SELECT fate(:'h');
TRUNCATE t;
SELECT fate(:'h');

SELECT electric_cm_create_shape('t') AS h2 \gset
SELECT :'h' = :'h2' AS same;
SELECT operation, key, xid FROM electric_cm_shape_log(:'h') ORDER BY 1;
INSERT INTO t VALUES (2, 'b', 2);
ALTER TABLE t ADD COLUMN later int DEFAULT 7;
SELECT fate(:'h');
SELECT replay(:'h', 't');
ALTER TABLE t DROP COLUMN later;
SELECT fate(:'h');
ALTER TABLE t ALTER COLUMN b TYPE bigint;
SELECT fate(:'h');
ALTER TABLE t RENAME COLUMN b TO bb;
SELECT fate(:'h');
SELECT replay(:'h', 't');
DROP TABLE t;
SELECT fate(:'h');
SELECT count(*) FROM electric_cm_shapes;

-- by CASCADE, too
CREATE SCHEMA doomed;
CREATE TABLE doomed.t (id int PRIMARY KEY, a text);
SELECT electric_cm_create_shape('doomed.t') AS h \gset
SELECT fate(:'h');
DROP SCHEMA doomed CASCADE;
SELECT fate(:'h');
CREATE TABLE referenced (id int PRIMARY KEY);
CREATE TABLE referencing (id int PRIMARY KEY REFERENCES referenced);
INSERT INTO referenced VALUES (1);
INSERT INTO referencing VALUES (1);
SELECT electric_cm_create_shape('referenced') AS h \gset
SELECT electric_cm_create_shape('referencing') AS h2 \gset
SELECT fate(:'h');
SELECT fate(:'h2');
TRUNCATE referenced CASCADE;
SELECT fate(:'h');
SELECT fate(:'h2');
DROP TABLE referenced, referencing;

-- in the transaction that does it, and after its commit for others
CREATE TABLE t (id int PRIMARY KEY, a text, b int);
INSERT INTO t VALUES (1, 'a', 1);
SELECT electric_cm_create_shape('t') AS h \gset
SELECT replay(:'h', 't');

-- rolled back: nothing has happened
BEGIN;
TRUNCATE t;
INSERT INTO t VALUES (2, 'b', 2);
ROLLBACK;
SELECT fate(:'h');
BEGIN;
ALTER TABLE t ADD COLUMN c int;
ROLLBACK;
SELECT fate(:'h');
BEGIN;
DROP TABLE t;
ROLLBACK;
SELECT fate(:'h');
BEGIN;
SAVEPOINT s;
TRUNCATE t;
ROLLBACK TO s;
INSERT INTO t VALUES (2, 'b', 2);
COMMIT;
SELECT fate(:'h');
BEGIN;
SAVEPOINT s1;
SAVEPOINT s2;
TRUNCATE t;
RELEASE s2;
ROLLBACK TO s1;
COMMIT;
SELECT fate(:'h');
DO $$
BEGIN
	TRUNCATE t;
	RAISE 'back';
EXCEPTION WHEN raise_exception THEN
	INSERT INTO t VALUES (3, 'c', 3);
END $$;
SELECT fate(:'h');
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'h', 't');

-- what does not concern it
CREATE INDEX t_a ON t (a);
CREATE UNIQUE INDEX t_b ON t (b);
DROP INDEX t_a, t_b;
CREATE TABLE unrelated (id int PRIMARY KEY, t_id int REFERENCES t);
ALTER TABLE unrelated ADD COLUMN x int;
TRUNCATE unrelated;
DROP TABLE unrelated;
CREATE TEMP TABLE temporary (id int) ON COMMIT DELETE ROWS;
INSERT INTO temporary VALUES (1);
DROP TABLE temporary;
ANALYZE t;
VACUUM t;
GRANT SELECT ON t TO PUBLIC;
COMMENT ON COLUMN t.a IS 'x';
CREATE VIEW v AS SELECT * FROM t;
DROP VIEW v;
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER nothing BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION nothing();
SELECT fate(:'h');
-- nor does a rewrite that changes nothing
VACUUM FULL t;
CLUSTER t USING t_pkey;
INSERT INTO t VALUES (4, 'd', 4);
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT fate(:'h');
SELECT replay(:'h', 't');

-- released and committed subtransactions count
BEGIN;
SAVEPOINT s;
TRUNCATE t;
RELEASE s;
COMMIT;
SELECT fate(:'h');

-- so does a prepared transaction, at its commit
BEGIN;
ALTER TABLE t ADD COLUMN c int;
PREPARE TRANSACTION 'regress_ddl';
ROLLBACK PREPARED 'regress_ddl';
SELECT fate(:'h');
BEGIN;
TRUNCATE t;
PREPARE TRANSACTION 'regress_truncate';
COMMIT PREPARED 'regress_truncate';
SELECT fate(:'h');

-- an ordinary user's command does, who has no rights on the shapes
CREATE ROLE regress_plain;
CREATE SCHEMA owned AUTHORIZATION regress_plain;
SET ROLE regress_plain;
CREATE TABLE owned.t (id int PRIMARY KEY);
RESET ROLE;
SELECT electric_cm_create_shape('owned.t') AS h \gset
SELECT fate(:'h');
SET ROLE regress_plain;
TRUNCATE owned.t;
RESET ROLE;
SELECT fate(:'h');
DROP OWNED BY regress_plain;
SELECT fate(:'h');
DROP ROLE regress_plain;

-- partitions: what is done to one of them is done to the whole
CREATE TABLE parts (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
INSERT INTO parts VALUES (1, 'a'), (101, 'b');
SELECT electric_cm_create_shape('parts') AS h \gset
SELECT fate(:'h');
TRUNCATE parts_1;
SELECT fate(:'h');
DROP TABLE parts_2;
SELECT fate(:'h');
ALTER TABLE parts ADD COLUMN b int;
SELECT fate(:'h');
DROP TABLE parts;

-- types of columns that change by themselves
CREATE TYPE color AS ENUM ('red');
CREATE TABLE painted (id int PRIMARY KEY, c color);
SELECT electric_cm_create_shape('painted') AS h \gset
SELECT fate(:'h');
ALTER TYPE color ADD VALUE 'blue';
INSERT INTO painted VALUES (1, 'blue');
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'h');

-- an event says why
SELECT count(*) > 0 AS has_event FROM electric_cm_events
WHERE datname = current_database() AND (message || coalesce(detail, '')) LIKE '%the table was truncated%';
SELECT count(*) > 0 AS has_event FROM electric_cm_events
WHERE datname = current_database() AND (message || coalesce(detail, '')) LIKE '%the table was dropped%';
SELECT count(*) > 0 AS has_event FROM electric_cm_events
WHERE datname = current_database() AND (message || coalesce(detail, '')) LIKE '%columns were changed%';
SELECT count(*) > 0 AS has_event FROM electric_cm_events
WHERE datname = current_database() AND event = 'shape_resynced' AND detail = 'the table was truncated';

DROP TABLE painted;
DROP TYPE color;
DROP TABLE t;
DROP FUNCTION nothing;
SELECT count(*) FROM electric_cm_shapes;

-- Partitions that come and go, another replica identity, a publication that
-- leaves something out
CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (100);
CREATE TABLE newcomer (id int PRIMARY KEY);
CREATE TABLE ident (id int PRIMARY KEY, u int NOT NULL CONSTRAINT ident_u UNIQUE);
CREATE TABLE plain (id int PRIMARY KEY);
INSERT INTO newcomer VALUES (101);
INSERT INTO ident VALUES (1, 1), (2, 2);
SELECT electric_cm_create_shape('root') AS root, electric_cm_create_shape('ident') AS ident,
	electric_cm_create_shape('plain') AS plain \gset
SELECT key FROM electric_cm_shape_log(:'root');
SELECT key FROM electric_cm_shape_log(:'ident');
SELECT key FROM electric_cm_shape_log(:'plain');
ALTER TABLE root ATTACH PARTITION newcomer FOR VALUES FROM (100) TO (200);
SELECT fate(:'root');
ALTER TABLE ident REPLICA IDENTITY USING INDEX ident_u;
DELETE FROM ident WHERE id = 1;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT fate(:'ident');
BEGIN;
ALTER PUBLICATION electric_cm_publication SET (publish = 'insert');
INSERT INTO plain VALUES (1);
DELETE FROM plain;
ALTER PUBLICATION electric_cm_publication SET (publish = 'insert, update, delete, truncate');
COMMIT;
SELECT fate(:'plain');
SELECT replay(:'plain', 'plain');
DROP TABLE root, ident, plain;
DROP FUNCTION fate;
DROP TABLE seen;
