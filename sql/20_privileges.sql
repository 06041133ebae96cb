--
-- Who may do what
--
CREATE ROLE regress_plain;
CREATE ROLE regress_watcher IN ROLE pg_monitor;
CREATE ROLE regress_user;
CREATE ROLE regress_member IN ROLE regress_user;
GRANT EXECUTE ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]),
	electric_cm_drop_shape(text) TO regress_user;

SELECT p.oid::regprocedure AS function,
	has_function_privilege('regress_plain', p.oid, 'EXECUTE') AS plain,
	has_function_privilege('regress_watcher', p.oid, 'EXECUTE') AS pg_monitor
FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
		AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid
WHERE e.extname = 'electric_cm' AND p.pronamespace <> '_electric_cm'::regnamespace
ORDER BY p.proname COLLATE "C";

SELECT c.oid::regclass AS relation,
	has_table_privilege('regress_plain', c.oid, 'SELECT') AS plain,
	has_table_privilege('regress_watcher', c.oid, 'SELECT') AS pg_monitor,
	has_table_privilege('regress_watcher', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') AS writes
FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
		AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
WHERE c.relkind IN ('r', 'v')
ORDER BY c.relname COLLATE "C";

-- nobody else gets at the internals
SELECT p.oid::regprocedure AS open_to_everybody
FROM pg_proc p
WHERE p.pronamespace = '_electric_cm'::regnamespace
	AND has_function_privilege('regress_plain', p.oid, 'EXECUTE')
ORDER BY 1;
SELECT has_schema_privilege('regress_plain', '_electric_cm', 'USAGE, CREATE') AS plain,
	has_schema_privilege('regress_watcher', '_electric_cm', 'CREATE') AS pg_monitor;
-- ... nor do roles that may read everything
SELECT oid::regclass AS open_to_pg_read_all_data FROM pg_class
WHERE relnamespace = '_electric_cm'::regnamespace AND relkind = 'r'
	AND NOT relrowsecurity;
SELECT polname FROM pg_policy WHERE polrelid IN (SELECT oid FROM pg_class
	WHERE relnamespace = '_electric_cm'::regnamespace);

CREATE TABLE guarded (id int PRIMARY KEY, secret text);
INSERT INTO guarded VALUES (1, 'first');

-- a role without any rights
SET ROLE regress_plain;
SELECT error('SELECT electric_cm_status()');
SELECT error('SELECT electric_cm_await_active()');
SELECT error('SELECT electric_cm_stop()');
SELECT error('SELECT electric_cm_start()');
SELECT error('SELECT electric_cm_restart()');
SELECT error('SELECT electric_cm_drop_replication_slot_on_stop()');
SELECT error('SELECT * FROM electric_cm_check()');
SELECT error('SELECT * FROM electric_cm_stat_manager');
SELECT error('SELECT * FROM electric_cm_events');
SELECT error('SELECT * FROM electric_cm_stat_replication');
SELECT error('SELECT * FROM electric_cm_retained_wal_history');
SELECT error('SELECT electric_cm_retained_wal_plot()');
SELECT error('SELECT * FROM electric_cm_slots');
SELECT error('SELECT electric_cm_report_retained_wal_size()');
SELECT count(*) AS of_others FROM electric_cm_shapes;
SELECT error($$SELECT electric_cm_create_shape('guarded')$$);
SELECT error($$SELECT electric_cm_drop_shape('x')$$);
SELECT error('SELECT * FROM _electric_cm.shape_log');
SELECT error($$SELECT * FROM electric_cm_shape_log('x')$$);
SELECT error($$SELECT * FROM electric_cm_await_shape_log('x', '-1')$$);
RESET ROLE;

-- a role that watches
SET ROLE regress_watcher;
SELECT electric_cm_status();
SELECT electric_cm_await_active();
SELECT electric_cm_report_retained_wal_size() >= 0 AS has_slot;
SELECT datname, status FROM electric_cm_stat_manager;
SELECT count(*) > 0 AS has_rows FROM electric_cm_stat_connections;
SELECT slot_name FROM electric_cm_stat_replication;
SELECT slot_name, ours, active, verdict FROM electric_cm_slots;
SELECT count(*) > 0 AS has_rows FROM electric_cm_retained_wal_history;
SELECT count(*) > 0 AS has_rows FROM electric_cm_retained_wal_plot();
SELECT worker FROM electric_cm_stat_consumers;
SELECT count(*) > 0 AS has_rows FROM electric_cm_events;
SELECT count(*) > 0 AS has_rows FROM electric_cm_options;
SELECT count(*) FROM electric_cm_shapes;
SELECT count(*) > 0 AS has_rows FROM electric_cm_check() WHERE verdict = 'PASS';
SELECT count(*) AS unchecked FROM electric_cm_check() WHERE detail LIKE 'could not%';
SELECT error('SELECT electric_cm_stop()');
SELECT error('SELECT * FROM _electric_cm.shape_log');
SELECT error($$SELECT electric_cm_create_shape('guarded')$$);
RESET ROLE;

-- a role that may create shapes, but has no right on the table
SET ROLE regress_user;
SELECT error($$SELECT electric_cm_create_shape('guarded')$$);
RESET ROLE;
-- ... may read it, but doesn't own it, and it is not published yet
GRANT SELECT ON guarded TO regress_user;
SET ROLE regress_user;
SELECT error($$SELECT electric_cm_create_shape('guarded')$$);
RESET ROLE;
-- ... and it is published
SELECT electric_cm_create_shape('guarded') AS admins_shape \gset
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT * FROM entries(:'admins_shape');
SET ROLE regress_user;
SELECT electric_cm_create_shape('guarded') AS users_shape \gset
SELECT :'users_shape' <> :'admins_shape' AS shape_of_its_own;
SELECT operation, key, value FROM electric_cm_shape_log(:'users_shape');
-- somebody else's shape
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'admins_shape'));
SELECT error(format('SELECT * FROM electric_cm_await_shape_log(%L, ''-1'')', :'admins_shape'));
SELECT error(format('SELECT electric_cm_drop_shape(%L)', :'admins_shape'));
RESET ROLE;

-- members of the owner's role may read and drop it, others not
SET ROLE regress_member;
SELECT operation, key, value FROM electric_cm_shape_log(:'users_shape');
RESET ROLE;
SET ROLE regress_plain;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'users_shape'));
RESET ROLE;

-- rights are checked at every read, those of the shape's owner
REVOKE SELECT ON guarded FROM regress_user;
SET ROLE regress_user;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'users_shape'));
RESET ROLE;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'users_shape'));
GRANT SELECT ON guarded TO regress_user;
SET ROLE regress_user;
SELECT count(*) FROM electric_cm_shape_log(:'users_shape');
RESET ROLE;

-- a right on some of the columns is not enough
REVOKE SELECT ON guarded FROM regress_user;
GRANT SELECT (id) ON guarded TO regress_user;
SET ROLE regress_user;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'users_shape'));
RESET ROLE;
GRANT SELECT ON guarded TO regress_user;

-- row-level security ends the shape, and prevents another one
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON guarded FOR SELECT TO PUBLIC USING (id > 100);
SET ROLE regress_user;
SELECT error(format('SELECT * FROM electric_cm_shape_log(%L)', :'users_shape'));
SELECT error($$SELECT electric_cm_create_shape('guarded')$$);
RESET ROLE;
-- it does not apply to the superuser
SELECT key FROM electric_cm_shape_log(:'admins_shape');
ALTER TABLE guarded DISABLE ROW LEVEL SECURITY;

-- a view shows what belongs to whom
SET ROLE regress_user;
SELECT electric_cm_create_shape('guarded') AS users_shape \gset
RESET ROLE;
SELECT relation, owner = current_user AS mine, where_clause, columns
FROM electric_cm_shapes ORDER BY created_at;

SELECT electric_cm_drop_shape(:'admins_shape');
SET ROLE regress_member;
SELECT error(format('SELECT electric_cm_drop_shape(%L)', :'users_shape'));
RESET ROLE;
DROP TABLE guarded;
SELECT count(*) FROM electric_cm_shapes;
REVOKE ALL ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]),
	electric_cm_drop_shape(text) FROM regress_user;
DROP ROLE regress_plain, regress_watcher, regress_member, regress_user;
