-- The rules by which a reader applies a shape's log, and what the log itself must
-- be like.  Whoever compares a log with something goes by these two functions:
-- ElectricCM.pm, the soak, and bench/lib.sh.

CREATE SCHEMA ecm_test;
CREATE AGGREGATE ecm_test.merge(jsonb) (sfunc = jsonb_concat, stype = jsonb, initcond = '{}');

-- The rows that a log replays to: an insert sets a row, an update merges into it,
-- a delete removes it.  So a row is what has been merged since its last insert;
-- nothing if a delete came after that.
CREATE FUNCTION ecm_test.replayed(handle text) RETURNS SETOF jsonb LANGUAGE sql AS $$
	WITH log AS MATERIALIZED (
		SELECT n, operation, key, value
		FROM electric_cm_shape_log(handle) WITH ORDINALITY
			AS l (log_offset, operation, key, value, old_value, xid, n)),
	reset AS (
		SELECT key,
			coalesce(max(n) FILTER (WHERE operation = 'insert'), 0) AS inserted,
			coalesce(max(n) FILTER (WHERE operation = 'delete'), 0) AS deleted
		FROM log GROUP BY key)
	SELECT ecm_test.merge(value ORDER BY n)
	FROM log JOIN reset USING (key)
	WHERE n >= inserted AND n > deleted
	GROUP BY key
$$;

-- How many entries a log has, and how many are out of place: an insert of a row
-- that is there, an update or delete of one that isn't, an offset that does not
-- ascend.  The rows alone would not always show what was delivered twice.
CREATE FUNCTION ecm_test.check_log(handle text, OUT entries bigint, OUT odd bigint, OUT examples text[])
LANGUAGE sql AS $$
	WITH entry AS (
		SELECT log_offset, operation, key,
			lag(operation, 1, 'delete') OVER (PARTITION BY key ORDER BY n) AS prior,
			coalesce(log_offset > lag(log_offset) OVER (ORDER BY n), true) AS ascending
		FROM electric_cm_shape_log(handle) WITH ORDINALITY
			AS l (log_offset, operation, key, value, old_value, xid, n)),
	judged AS (
		SELECT CASE
			WHEN NOT ascending THEN log_offset || ': not after the offset before it'
			WHEN operation = 'insert' AND prior <> 'delete' THEN log_offset || ': insert of a row that is there, ' || key
			WHEN operation <> 'insert' AND prior = 'delete' THEN log_offset || ': ' || operation || ' of a row that is not there, ' || key
			END AS odd
		FROM entry)
	SELECT count(*), count(odd), (array_agg(odd) FILTER (WHERE odd IS NOT NULL))[1:5] FROM judged
$$;
