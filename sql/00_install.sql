--
-- CREATE EXTENSION starts the stack; helpers for the other tests
--
SET client_min_messages = warning;
CREATE EXTENSION electric_cm;
SELECT electric_cm_await_active('60 s');
SELECT electric_cm_status();
SELECT electric_cm_exclusive_connection_lock_acquired();
SELECT electric_cm_pg_version() = current_setting('server_version_num')::int AS same_version;
SELECT i.server_version_num = electric_cm_pg_version() AS same_version,
	i.system_identifier = s.system_identifier AS same_system,
	i.timeline_id, i.looked_up_at <= now() AS looked_up
FROM electric_cm_pg_info() i, pg_control_system() s;
SELECT electric_cm_report_retained_wal_size() >= 0 AS has_slot;

SELECT pubname, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
FROM pg_publication;
SELECT slot_name, plugin, slot_type, temporary, active, two_phase
FROM pg_replication_slots;

-- The error that a statement ends with, and what its writer is told to do.
-- Shapes' handles differ from run to run.
CREATE FUNCTION error(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	code text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'no error';
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE,
		message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN regexp_replace(code || ': ' || message ||
		CASE WHEN detail <> '' THEN E'\nDETAIL: ' || detail ELSE '' END ||
		CASE WHEN hint <> '' THEN E'\nHINT: ' || hint ELSE '' END,
		'\d{3,}-\d{10,}', '<handle>', 'g');
END $$;

-- A log without what differs from run to run: offsets and transactions.
CREATE FUNCTION entries(handle text, after_offset text DEFAULT '-1')
RETURNS TABLE (operation text, key text, value jsonb, old_value jsonb)
LANGUAGE sql AS $$
	SELECT operation, key, value, old_value
	FROM electric_cm_shape_log(handle, after_offset)
		WITH ORDINALITY AS l (o, operation, key, value, old_value, x, n)
	ORDER BY n
$$;

CREATE FUNCTION last_offset(handle text) RETURNS text
LANGUAGE sql AS $$
	SELECT coalesce((SELECT last_offset FROM electric_cm_shapes s
		WHERE s.handle = last_offset.handle), '-1')
$$;

-- Replays a log (insert sets, update merges, delete removes) and compares the
-- outcome with the table, column by column in the types' own text form.
CREATE AGGREGATE merge(jsonb) (sfunc = jsonb_concat, stype = jsonb, initcond = '{}');
CREATE FUNCTION replay(handle text, relation regclass) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	columns text;
	values text;
	result text;
BEGIN
	SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum),
		string_agg(format('(value->>%L)::%s AS %I', attname,
			format_type(atttypid, atttypmod), attname), ', ' ORDER BY attnum)
	INTO columns, values
	FROM pg_attribute
	WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
		AND (attgenerated = '' OR (attgenerated = 's' AND current_setting('server_version_num')::int >= 180000));
	EXECUTE format($sql$
		WITH log AS MATERIALIZED (
			SELECT * FROM electric_cm_shape_log(%L) WITH ORDINALITY
				AS l (log_offset, operation, key, value, old_value, xid, n)),
		reset AS (
			SELECT key,
				coalesce(max(n) FILTER (WHERE operation = 'insert'), 0) AS inserted,
				coalesce(max(n) FILTER (WHERE operation = 'delete'), 0) AS deleted
			FROM log GROUP BY key),
		merged AS (
			SELECT merge(value ORDER BY n) AS value
			FROM log JOIN reset USING (key)
			WHERE n >= inserted AND n > deleted
			GROUP BY key),
		replayed AS (SELECT %s FROM merged),
		current AS (SELECT %s FROM %s),
		missing AS (SELECT c::text AS r FROM current c EXCEPT ALL SELECT r::text FROM replayed r),
		extra AS (SELECT r::text AS r FROM replayed r EXCEPT ALL SELECT c::text FROM current c),
		odd AS (
			SELECT operation FROM (
				SELECT *, lag(operation) OVER (PARTITION BY key ORDER BY n) AS prior,
					coalesce(offs > lag(offs) OVER (ORDER BY n), true) AS ascending
				FROM (SELECT *, log_offset AS offs FROM log) a) b
			WHERE NOT ascending OR
				(operation = 'insert') = (coalesce(prior, 'delete') <> 'delete'))
		SELECT CASE WHEN m = 0 AND e = 0 AND o = 0 THEN format('equal, %%s rows', t)
			ELSE format('NOT EQUAL: %%s rows missing (%%s), %%s extra (%%s), %%s entries out of place',
				m, left(mr, 100), e, left(er, 100), o) END
		FROM (SELECT count(*), min(r) FROM missing) AS missing (m, mr),
			(SELECT count(*), min(r) FROM extra) AS extra (e, er),
			(SELECT count(*) FROM odd) AS odd (o),
			(SELECT count(*) FROM current) AS current (t)
	$sql$, handle, values, columns, relation) INTO result;
	RETURN result;
END $$;
