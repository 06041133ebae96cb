--
-- What the extension consists of, and what its functions say when they refuse
--

-- functions
SELECT p.oid::regprocedure AS function, pg_get_function_result(p.oid) AS result,
	pg_get_function_arguments(p.oid) AS arguments
FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
		AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid
WHERE e.extname = 'electric_cm' AND p.pronamespace <> '_electric_cm'::regnamespace
ORDER BY p.proname COLLATE "C";

-- views
SELECT c.relname AS view, string_agg(a.attname, ', ' ORDER BY a.attnum) AS columns
FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
		AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relkind = 'v'
GROUP BY c.relname
ORDER BY c.relname COLLATE "C";

-- every table has a primary key, and nothing else is left in user schemas
SELECT c.oid::regclass AS table_without_key
FROM pg_class c
WHERE c.relnamespace = '_electric_cm'::regnamespace AND c.relkind = 'r'
	AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary);

-- every user-visible function and view has a name that says whose it is
SELECT pg_describe_object(d.classid, d.objid, 0) AS misnamed
FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'electric_cm'
	AND pg_describe_object(d.classid, d.objid, 0) !~ '(electric_cm_|_electric_cm)'
ORDER BY 1;

-- every function has a comment
SELECT p.oid::regprocedure AS undocumented
FROM pg_proc p
WHERE p.proname LIKE 'electric\_cm\_%' AND p.pronamespace = 'public'::regnamespace
	AND obj_description(p.oid, 'pg_proc') IS NULL
ORDER BY 1;

-- waiting in a transaction that has written something would never end
BEGIN;
CREATE TABLE written (id int PRIMARY KEY);
SELECT error('SELECT electric_cm_await_active()');
SELECT error('SELECT electric_cm_await_flushed()');
SELECT error('SELECT electric_cm_start()');
SELECT error('SELECT electric_cm_stop()');
SELECT error('SELECT electric_cm_restart()');
SELECT error('SELECT electric_cm_drop_replication_slot_on_stop()');
-- these don't wait
SELECT electric_cm_status();
SELECT electric_cm_pg_version() > 0 AS version;
SELECT electric_cm_report_retained_wal_size() >= 0 AS has_slot;
SELECT retained_wal_bytes >= 0 AND flush_lag_bytes >= 0 AND current_lsn >= restart_lsn
	AND catalog_xmin_age >= 0 AND wal_free_bytes > 0 AND wal_status = 'reserved' AS plausible
FROM electric_cm_stat_replication;

-- the plot: a title, its rows, a time axis and the times
SELECT count(*) >= 15 AS whole FROM electric_cm_retained_wal_plot();
SELECT count(*) FROM electric_cm_retained_wal_plot(width => 20, height => 4) l
WHERE l ~ '^[ 0-9a-zA-Z]{10} [+|].{20}';
SELECT count(*) FROM electric_cm_retained_wal_plot(500, 200) l
WHERE l ~ '^[ 0-9a-zA-Z]{10} [+|].{255}.{245}';
SELECT error('SELECT electric_cm_retained_wal_plot(19)');
SELECT error('SELECT electric_cm_retained_wal_plot(501, 12)');
SELECT error('SELECT electric_cm_retained_wal_plot(60, 3)');
SELECT error('SELECT electric_cm_retained_wal_plot(60, -2147483648)');
SELECT count(*) FROM electric_cm_retained_wal_plot(NULL);
ROLLBACK;

-- ... and above READ COMMITTED its end could not be seen
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT error('SELECT electric_cm_await_active()');
SELECT error('SELECT electric_cm_await_flushed()');
SELECT error('SELECT electric_cm_stop()');
SELECT electric_cm_status();
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT error('SELECT electric_cm_await_active()');
ROLLBACK;

-- control is for those who may write
BEGIN READ ONLY;
SELECT error('SELECT electric_cm_start()');
SELECT error('SELECT electric_cm_stop()');
SELECT electric_cm_await_active();
ROLLBACK;

-- several statements sent together are one transaction
CREATE DATABASE electric_cm_one_transaction;
\c electric_cm_one_transaction
CREATE EXTENSION electric_cm \; SELECT electric_cm_await_active();
\echo :LAST_ERROR_SQLSTATE
SELECT count(*) FROM pg_extension WHERE extname = 'electric_cm';
\c regression
DROP DATABASE electric_cm_one_transaction;

-- timeouts
SELECT error($$SELECT electric_cm_await_active('-1 s')$$);
SELECT electric_cm_await_active('0 s');
SELECT error($$SELECT electric_cm_await_flushed(NULL, '-1 s')$$);
SELECT electric_cm_await_flushed() >= '0/1' AS flushed;
SELECT electric_cm_await_flushed('0/1') >= '0/1' AS flushed;
SELECT electric_cm_await_flushed(NULL, NULL) >= '0/1' AS flushed;
\set VERBOSITY sqlstate
SELECT electric_cm_await_flushed(pg_current_wal_lsn() + 1000000000, '200 ms');
SET statement_timeout = '200 ms';
SELECT electric_cm_await_flushed(pg_current_wal_lsn() + 1000000000);
RESET statement_timeout;
\set VERBOSITY default

-- dropping the slot at the end is a promise that can be taken back
SELECT electric_cm_drop_replication_slot_on_stop();
SELECT electric_cm_drop_replication_slot_on_stop(false);

-- a restart gives another manager
SELECT pid AS pid FROM electric_cm_stat_manager WHERE datname = current_database() \gset
SELECT electric_cm_restart();
SELECT electric_cm_await_active();
SELECT pid <> :pid AS another, status, step FROM electric_cm_stat_manager
WHERE datname = current_database();

-- stopping: the slot stays behind unless it is asked for
SELECT electric_cm_stop();
SELECT electric_cm_status();
SELECT status, pid, waiting_for FROM electric_cm_stat_manager WHERE datname = current_database();
SELECT slot_name, active FROM pg_replication_slots;
SELECT error('SELECT electric_cm_await_active()');
SELECT error('SELECT electric_cm_await_flushed()');
SELECT error('SELECT electric_cm_restart()');
SELECT electric_cm_exclusive_connection_lock_acquired();
SELECT electric_cm_report_retained_wal_size() >= 0 AS has_slot;
SELECT electric_cm_stop();		-- once more does no harm
SELECT electric_cm_stop(drop_slot => true);
SELECT count(*) AS slots FROM pg_replication_slots;
SELECT count(*) AS publications FROM pg_publication;
SELECT electric_cm_report_retained_wal_size() IS NULL AS no_slot;
SELECT electric_cm_start();
SELECT electric_cm_await_active();
SELECT electric_cm_start();		-- it runs already
SELECT electric_cm_status();

-- a stop that is rolled back has not happened
BEGIN;
SELECT electric_cm_stop();
ROLLBACK;
SELECT electric_cm_await_active('60 s');
SELECT electric_cm_status();
