--
-- Settings: defaults, bounds, and what the stack says of them
--
SELECT name, setting, unit, context, min_val, max_val
FROM pg_settings WHERE name LIKE 'electric\_cm.%'
ORDER BY name COLLATE "C";
SELECT name AS undocumented FROM pg_settings
WHERE name LIKE 'electric\_cm.%' AND coalesce(short_desc, '') = '';

-- bounds
SET electric_cm.pool_size = 0;
SET electric_cm.pool_size = 33;
SET electric_cm.pool_idle_timeout = -1;
SET electric_cm.connect_timeout = 99;
SET electric_cm.reconnect_initial_delay = 0;
SET electric_cm.reconnect_max_delay = 0;
SET electric_cm.status_check_interval = '999 ms';
SET electric_cm.consumer_stall_timeout = '999 ms';
SET electric_cm.shape_stall_timeout = '999 ms';
SET electric_cm.wal_report_interval = '999 ms';
SET electric_cm.shape_workers = 0;
SET electric_cm.shape_workers = 17;
SET electric_cm.max_shapes = -1;
SET electric_cm.max_managers = 4;
SET electric_cm.databases = 'a, b';
SET electric_cm.publication_name = '';
SET electric_cm.slot_name = 'Upper';
SET electric_cm.slot_name = 'with-hyphen';
SET electric_cm.no_such_setting = 1;

-- a password must not get where everybody can read it; nor into the log
SET electric_cm.connection = 'host=localhost password=secret';
SET electric_cm.connection = 'postgresql://user:secret@localhost/db';
SET electric_cm.connection = 'postgresql://localhost/db?password=secret';
SET electric_cm.pooled_connection = 'passw';
SET electric_cm.connection = 'host=localhost passfile=/some/file';
RESET electric_cm.connection;

-- ordinary users can't set them
CREATE ROLE regress_plain;
SET electric_cm.retained_wal_limit = 0;
SET electric_cm.retained_wal_warning = 0;
SET electric_cm.retained_wal_warning = '1kB';
SET electric_cm.retained_wal_limit = -1;
SET ROLE regress_plain;
SET electric_cm.retained_wal_limit = '1GB';
SET electric_cm.enabled = off;
SET electric_cm.connection = '';
SHOW electric_cm.connection;
RESET ROLE;
DROP ROLE regress_plain;

-- the effective values
SELECT name, setting, source FROM electric_cm_options
WHERE datname = current_database() AND name <> 'electric_cm.max_managers'
ORDER BY name COLLATE "C";

-- a setting of the database applies after a reload, which restarts the manager
SELECT pid AS pid FROM electric_cm_stat_manager WHERE datname = current_database() \gset
ALTER DATABASE regression SET electric_cm.pool_size = 2;
SELECT pg_reload_conf();
DO $$
BEGIN
	FOR i IN 1..600 LOOP
		IF EXISTS (SELECT FROM electric_cm_options WHERE datname = current_database()
				AND name = 'electric_cm.pool_size' AND setting = '2') THEN
			RETURN;
		END IF;
		PERFORM pg_sleep(0.1);
	END LOOP;
	RAISE 'the manager does not take over a changed setting of its database';
END $$;
SELECT electric_cm_await_active();
SELECT setting, source FROM electric_cm_options
WHERE datname = current_database() AND name = 'electric_cm.pool_size';
SELECT pid <> :pid AS another FROM electric_cm_stat_manager WHERE datname = current_database();
ALTER DATABASE regression RESET electric_cm.pool_size;
SELECT pg_reload_conf();
DO $$
BEGIN
	FOR i IN 1..600 LOOP
		IF EXISTS (SELECT FROM electric_cm_options WHERE datname = current_database()
				AND name = 'electric_cm.pool_size' AND setting = '4') THEN
			RETURN;
		END IF;
		PERFORM pg_sleep(0.1);
	END LOOP;
	RAISE 'the manager does not take over a changed setting of its database';
END $$;
SELECT electric_cm_await_active();
