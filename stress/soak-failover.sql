-- What stress/soak-failover needs inside the server, beside stress/soak.sql: more
-- tables, and the comparison of a shape's log, or of what a reader has of it, with
-- the shape's query.

-- one row of it is changed now and then
CREATE TABLE t_cold (id int PRIMARY KEY, v text);
INSERT INTO t_cold SELECT i, 'row ' || i FROM generate_series(1, 200) i;

-- has no shape
CREATE TABLE t_noise (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);

-- what a reader has, as it came: see SoakFailover::Checks
CREATE UNLOGGED TABLE soak.reader_log (n bigint GENERATED ALWAYS AS IDENTITY, log_offset text, operation text,
    key text, value jsonb, old_value jsonb, xid int8);

-- A shape's rows as its log should lead to, as the text that the types' output
-- functions make.  No value is as good as null.
CREATE FUNCTION soak.expected(relation text, clause text, columns text[]) RETURNS SETOF jsonb
LANGUAGE plpgsql AS $$
DECLARE
    list text;
BEGIN
    SELECT string_agg(format('%L, CASE WHEN num_nonnulls(%2$I) = 1 THEN format(''%%s'', %2$I) END', attname, attname), ', ')
        INTO list
        FROM pg_attribute
        WHERE attrelid = relation::regclass AND attnum > 0 AND NOT attisdropped AND (columns IS NULL OR attname = ANY (columns));
    RETURN QUERY EXECUTE format('SELECT jsonb_strip_nulls(jsonb_build_object(%s)) FROM %s', list, relation)
        || coalesce(' WHERE ' || clause, '');
END $$;

-- The rows that soak.reader_log replays to, by the rules of ecm_test.replayed().
CREATE FUNCTION soak.replayed_by_reader() RETURNS SETOF jsonb LANGUAGE sql AS $$
    WITH reset AS (
        SELECT key,
            coalesce(max(n) FILTER (WHERE operation = 'insert'), 0) AS inserted,
            coalesce(max(n) FILTER (WHERE operation = 'delete'), 0) AS deleted
        FROM soak.reader_log GROUP BY key)
    SELECT ecm_test.merge(value ORDER BY n)
    FROM soak.reader_log JOIN reset USING (key)
    WHERE n >= inserted AND n > deleted
    GROUP BY key
$$;

-- soak.differences(handle, whose): what is wrong with a shape's log, or with what
-- the reader has whose entries are in soak.reader_log; NULL if nothing is.  With
-- nobody writing, and all of it in the log.
CREATE FUNCTION soak.differences(the_handle text, whose text, OUT entries bigint, OUT rows bigint, OUT wrong text)
LANGUAGE plpgsql SET work_mem = '64MB' AS $$
DECLARE
    shape record;
BEGIN
    SELECT s.relation::text, s.where_clause, s.columns::text[] INTO STRICT shape FROM electric_cm_shapes s WHERE s.handle = the_handle;
    IF shape.columns IS NOT NULL THEN
        -- the log has the key as well
        shape.columns := shape.columns || ARRAY(SELECT attname::text FROM pg_attribute JOIN pg_index i
            ON i.indrelid = attrelid AND attnum = ANY (i.indkey) WHERE attrelid = shape.relation::regclass AND indisprimary);
    END IF;
    IF whose = 'log' THEN
        CREATE TEMP TABLE replayed AS SELECT jsonb_strip_nulls(r) AS r FROM ecm_test.replayed(the_handle) r;
        CREATE TEMP TABLE checked AS SELECT c.entries, c.examples FROM ecm_test.check_log(the_handle) c;
    ELSE
        CREATE TEMP TABLE replayed AS SELECT jsonb_strip_nulls(r) AS r FROM soak.replayed_by_reader() r;
        CREATE TEMP TABLE checked AS SELECT count(*) AS entries, NULL::text[] AS examples FROM soak.reader_log;
    END IF;
    CREATE TEMP TABLE expected AS SELECT r FROM soak.expected(shape.relation, shape.where_clause, shape.columns) r;
    entries := (SELECT c.entries FROM checked c);
    rows := (SELECT count(*) FROM expected);
    wrong := (SELECT string_agg(w, E'\n') FROM (
        (SELECT 'in the table only: ' || left(r::text, 300) FROM (TABLE expected EXCEPT ALL TABLE replayed) x LIMIT 5)
        UNION ALL (SELECT 'in the replay only: ' || left(r::text, 300) FROM (TABLE replayed EXCEPT ALL TABLE expected) x LIMIT 5)
        UNION ALL (SELECT 'out of place in the log: ' || unnest(examples) FROM checked)) x (w));
    DROP TABLE replayed, checked, expected;
END $$;
