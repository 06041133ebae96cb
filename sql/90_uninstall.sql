--
-- Uninstalling leaves nothing behind
--
SELECT electric_cm_stop(drop_slot => true);
DROP FUNCTION error, entries, last_offset, replay;
DROP AGGREGATE merge(jsonb);
DROP EXTENSION electric_cm;
SELECT count(*) FROM pg_replication_slots;
SELECT count(*) FROM pg_publication;
SELECT nspname FROM pg_namespace WHERE nspname LIKE '%electric%';
SELECT proname FROM pg_proc WHERE proname LIKE '%electric%';

-- and it can be installed again
CREATE EXTENSION electric_cm;
SELECT electric_cm_await_active('60 s');
CREATE TABLE t (id int PRIMARY KEY);
SELECT electric_cm_create_shape('t') AS h \gset
INSERT INTO t VALUES (1);
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT operation, key, value FROM electric_cm_shape_log(:'h');

-- in a schema of the user's choice
SELECT electric_cm_stop(drop_slot => true);
DROP EXTENSION electric_cm;
CREATE SCHEMA "Tools";
CREATE EXTENSION electric_cm SCHEMA "Tools";
SELECT "Tools".electric_cm_await_active('60 s');
SELECT "Tools".electric_cm_create_shape('t') AS h \gset
INSERT INTO t VALUES (2);
SELECT "Tools".electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT count(*) FROM "Tools".electric_cm_shape_log(:'h');
SELECT "Tools".electric_cm_stop(drop_slot => true);
DROP EXTENSION electric_cm;
DROP SCHEMA "Tools";
DROP TABLE t;
SELECT count(*) FROM pg_replication_slots;
