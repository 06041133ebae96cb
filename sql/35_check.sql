--
-- electric_cm_check(): what is amiss, and what mends it.  What depends on the
-- machine is masked.
--
CREATE FUNCTION checks(unless text DEFAULT 'PASS')
RETURNS TABLE (name text, verdict text, fix text)
LANGUAGE sql AS $$
	SELECT name, verdict, regexp_replace(regexp_replace(fix,
		'keep_size = ''\d+[MG]B''', 'keep_size = ''<size>'''), '\(\d+\)', '(<pid>)')
	FROM electric_cm_check() WHERE verdict <> unless
$$;
SELECT name, verdict, fix FROM checks('');
SELECT count(*) AS without_detail FROM electric_cm_check() WHERE coalesce(detail, '') = '';
SELECT count(*) AS without_fix FROM electric_cm_check() WHERE verdict = 'FAIL' AND fix IS NULL;
SELECT count(*) AS fix_of_nothing FROM electric_cm_check() WHERE verdict = 'PASS' AND fix IS NOT NULL;

-- it looks at the database's settings, not at the session's
SET electric_cm.enabled = off;
SELECT * FROM checks() WHERE name = 'enabled';
RESET electric_cm.enabled;
ALTER DATABASE regression SET electric_cm.enabled = off;
SELECT * FROM checks() WHERE name = 'enabled';
ALTER DATABASE regression SET electric_cm.slot_name = 'another';
ALTER DATABASE regression SET electric_cm.publication_name = 'My Publication';
SELECT name, verdict, detail FROM electric_cm_check() WHERE name IN ('slot', 'publication');
ALTER DATABASE regression SET electric_cm.create_publication = off;
SELECT name, verdict, detail, replace(fix, ' WITH (publish_generated_columns = stored)', '') AS fix
FROM electric_cm_check() WHERE name = 'publication';
ALTER DATABASE regression RESET electric_cm.enabled;
ALTER DATABASE regression RESET electric_cm.slot_name;
ALTER DATABASE regression RESET electric_cm.publication_name;
ALTER DATABASE regression RESET electric_cm.create_publication;

-- what is seen of a connection string
ALTER DATABASE regression SET electric_cm.connection = 'user=regress_nobody port=1 sslcert=/some/file';
SELECT name, verdict, regexp_replace(detail, '\d{2,}', '<port>') AS detail, fix
FROM electric_cm_check() WHERE name IN ('connection', 'role');
ALTER DATABASE regression SET electric_cm.connection = 'postgresql://regress_nobody@localhost/other';
SELECT name, verdict, detail, fix
FROM electric_cm_check() WHERE name IN ('connection', 'role', 'pg_hba');
ALTER DATABASE regression SET electric_cm.connection = 'nonsense=secret';
SELECT name, verdict, detail, fix FROM electric_cm_check() WHERE name = 'connection';
ALTER DATABASE regression SET electric_cm.connection = 'service=here passfile=/some/file';
SELECT name, verdict, detail, fix
FROM electric_cm_check() WHERE name IN ('connection', 'role', 'pg_hba');
ALTER DATABASE regression RESET electric_cm.connection;

-- publications
CREATE SCHEMA "Regress check";
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'insert', publish_via_partition_root);
SELECT name, verdict, detail, fix FROM electric_cm_check() WHERE name = 'other_publications';
DROP PUBLICATION everything;
DROP SCHEMA "Regress check";

-- it can be used in any transaction, and leaves no trace in it
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT * FROM checks() WHERE name <> 'slot_wal_limit';
SELECT pg_current_xact_id_if_assigned() IS NULL AS has_written_nothing;
SHOW lock_timeout;
COMMIT;
DROP FUNCTION checks;
