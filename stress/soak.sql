-- What stress/soak runs inside the server: tables of many kinds, procedures that
-- change them at random, and the comparison of a shape's log with its table.
CREATE SCHEMA soak;

--
-- Tables
--
CREATE TABLE t_int (id int PRIMARY KEY, n int NOT NULL, t text);
CREATE TABLE t_pair (a int, b text, v numeric, at timestamptz, PRIMARY KEY (b, a));
CREATE TABLE t_text (k text PRIMARY KEY, j jsonb, y bytea, d date);
CREATE TABLE t_uuid (id uuid PRIMARY KEY, f float8, arr int[], n int);
CREATE TABLE t_seq (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
CREATE TABLE t_bulk (id int PRIMARY KEY, v int, pad text);

-- values that an UPDATE of other columns leaves out of the stream
CREATE TABLE t_toast (id int PRIMARY KEY, n int, big text, large text);
ALTER TABLE t_toast ALTER big SET STORAGE EXTERNAL, ALTER large SET STORAGE EXTERNAL;

CREATE TABLE t_full (id int PRIMARY KEY, n int, t text, big text);
ALTER TABLE t_full ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;

-- the key is not the primary key, and not the first column
CREATE TABLE t_index (id int PRIMARY KEY, n int, code text NOT NULL, big text);
ALTER TABLE t_index ALTER big SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX t_index_code ON t_index (code);
ALTER TABLE t_index REPLICA IDENTITY USING INDEX t_index_code;

-- partitions, one of which has its columns in another order
CREATE TABLE t_part (id int, region int, t text, n int, PRIMARY KEY (id, region))
    PARTITION BY LIST (region);
CREATE TABLE t_part_1 PARTITION OF t_part FOR VALUES IN (1);
CREATE TABLE t_part_2 (gone int, n int, region int NOT NULL, t text, id int NOT NULL,
    PRIMARY KEY (id, region));
ALTER TABLE t_part_2 DROP COLUMN gone;
ALTER TABLE t_part ATTACH PARTITION t_part_2 FOR VALUES IN (2);
CREATE TABLE t_part_3 PARTITION OF t_part FOR VALUES IN (3);

-- more owners of shapes, so that a table can have several of different age;
-- they may publish all tables
CREATE ROLE soak_owner;
CREATE ROLE soak_reader IN ROLE soak_owner;
CREATE ROLE soak_churner IN ROLE soak_owner;
DO $$
DECLARE rel regclass;
BEGIN
    FOR rel IN SELECT oid FROM pg_class WHERE relname LIKE 't\_%' AND relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO soak_owner', rel);
    END LOOP;
END $$;

--
-- Random values
--
CREATE FUNCTION soak.rnd(lo int, hi int) RETURNS int LANGUAGE sql VOLATILE AS
    'SELECT lo + floor(random() * (hi - lo + 1))::int';

CREATE FUNCTION soak.txt() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT CASE soak.rnd(1, 8)
        WHEN 1 THEN NULL
        WHEN 2 THEN ''
        WHEN 3 THEN E'q"u''o\\te/\t\n\r{}[],'
        WHEN 4 THEN 'ü€漢字😀'
        ELSE md5(random()::text) END
$$;

-- mostly TOASTed
CREATE FUNCTION soak.big() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT CASE soak.rnd(1, 10)
        WHEN 1 THEN NULL
        WHEN 2 THEN 'small'
        WHEN 3 THEN repeat(md5(random()::text), 600)
        ELSE repeat(md5(random()::text), 80) END
$$;

--
-- soak.dml(table, n, seed): one statement that concerns up to n rows of the
-- table; returns how many it did.  Neighbours in key order, so that two
-- sessions that meet do not always meet in a deadlock.
--
CREATE FUNCTION soak.dml(tbl text, n int, seed float8) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    op text;
    lo int;
    sign int;
    sql text;
    done bigint;
BEGIN
    PERFORM setseed(seed);
    op := (ARRAY['insert', 'insert', 'insert', 'update', 'update', 'update', 'other',
        'delete', 'key'])[soak.rnd(1, 9)];
    lo := soak.rnd(1, CASE tbl WHEN 't_bulk' THEN 100000 WHEN 't_int' THEN 5000
        WHEN 't_toast' THEN 300 WHEN 't_full' THEN 300 ELSE 1500 END);
    sign := CASE WHEN random() < 0.3 THEN -1 ELSE 1 END;

    sql := CASE tbl || ' ' || op
        WHEN 't_int insert' THEN
            'INSERT INTO t_int SELECT i * $3, soak.rnd(0, 9), soak.txt() FROM generate_series($1, $1 + $2 - 1) i
             ON CONFLICT (id) DO UPDATE SET n = t_int.n + 1'
        WHEN 't_int update' THEN
            'UPDATE t_int SET n = n + 1 WHERE id BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_int other' THEN
            'UPDATE t_int SET t = soak.txt() WHERE id * $3 BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_int delete' THEN
            'DELETE FROM t_int WHERE id BETWEEN $1 * $3 AND $1 * $3 + $2 - 1'
        WHEN 't_int key' THEN
            'UPDATE t_int SET id = -id, n = n + 1 WHERE id BETWEEN $1 * $3 AND $1 * $3 + $2 - 1
             AND NOT EXISTS (SELECT FROM t_int o WHERE o.id = -t_int.id)'

        WHEN 't_pair insert' THEN
            'INSERT INTO t_pair SELECT i % 40, ''b'' || i / 40, random() * 1000, clock_timestamp()
             FROM generate_series($1, $1 + $2 - 1) i ON CONFLICT DO NOTHING'
        WHEN 't_pair update' THEN
            'UPDATE t_pair SET v = v + 1 WHERE b = ''b'' || $1 / 40 AND a < $2'
        WHEN 't_pair other' THEN
            'UPDATE t_pair SET v = NULL, at = NULL WHERE b = ''b'' || $1 / 40 AND a < $2'
        WHEN 't_pair delete' THEN
            'DELETE FROM t_pair WHERE b IN (''b'' || $1 / 40, ''c'' || $1 / 40) AND a < $2'
        WHEN 't_pair key' THEN
            'UPDATE t_pair p SET b = translate(b, ''bc'', ''cb'') WHERE b = ''b'' || $1 / 40 AND a < $2
             AND NOT EXISTS (SELECT FROM t_pair o WHERE o.a = p.a AND o.b = translate(p.b, ''bc'', ''cb''))'

        WHEN 't_text insert' THEN
            'INSERT INTO t_text SELECT CASE i % 5 WHEN 0 THEN ''a"/"'' WHEN 1 THEN E''\\'' WHEN 2 THEN ''/漢'' ELSE '''' END || i,
                jsonb_build_object(''i'', i, ''t'', soak.txt()), decode(md5(i::text), ''hex''), current_date - i
             FROM generate_series($1, $1 + $2 - 1) i ON CONFLICT (k) DO UPDATE SET j = excluded.j'
        WHEN 't_text update' THEN
            'UPDATE t_text SET j = j || ''{"u": 1}'', d = NULL WHERE (j->>''i'')::int BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_text other' THEN
            'UPDATE t_text SET y = NULL WHERE (j->>''i'')::int BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_text delete' THEN
            'DELETE FROM t_text WHERE (j->>''i'')::int BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_text key' THEN
            'UPDATE t_text SET k = k || ''+'' WHERE (j->>''i'')::int BETWEEN $1 AND $1 + $2 - 1 AND length(k) < 12'

        WHEN 't_uuid insert' THEN
            'INSERT INTO t_uuid SELECT md5(i::text)::uuid, random() / 3, ARRAY[i, NULL, $3], i
             FROM generate_series($1, $1 + $2 - 1) i ON CONFLICT (id) DO UPDATE SET f = excluded.f'
        WHEN 't_uuid update' THEN
            'UPDATE t_uuid SET f = f * 2 WHERE n BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_uuid other' THEN
            'UPDATE t_uuid SET arr = NULL, f = ''-infinity'' WHERE n BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_uuid delete' THEN
            'DELETE FROM t_uuid WHERE n BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_uuid key' THEN
            'UPDATE t_uuid SET id = gen_random_uuid() WHERE n BETWEEN $1 AND $1 + $2 - 1'

        WHEN 't_toast insert' THEN
            'INSERT INTO t_toast SELECT i, 0, soak.big(), soak.big() FROM generate_series($1, $1 + least($2, 100) - 1) i
             ON CONFLICT (id) DO UPDATE SET n = t_toast.n + 1'
        WHEN 't_toast update' THEN
            'UPDATE t_toast SET n = n + 1 WHERE id BETWEEN $1 AND $1 + least($2, 100) - 1'
        WHEN 't_toast other' THEN
            'UPDATE t_toast SET big = soak.big() WHERE id BETWEEN $1 AND $1 + least($2, 20) - 1'
        WHEN 't_toast delete' THEN
            'DELETE FROM t_toast WHERE id BETWEEN $1 * $3 AND $1 * $3 + least($2, 100) - 1'
        WHEN 't_toast key' THEN
            'UPDATE t_toast SET id = -id WHERE id BETWEEN $1 * $3 AND $1 * $3 + least($2, 100) - 1
             AND NOT EXISTS (SELECT FROM t_toast o WHERE o.id = -t_toast.id)'

        WHEN 't_full insert' THEN
            'INSERT INTO t_full SELECT i, 0, soak.txt(), soak.big() FROM generate_series($1, $1 + least($2, 100) - 1) i
             ON CONFLICT (id) DO UPDATE SET t = excluded.t'
        WHEN 't_full update' THEN
            'UPDATE t_full SET n = n + 1 WHERE id BETWEEN $1 AND $1 + least($2, 100) - 1'
        WHEN 't_full other' THEN
            'UPDATE t_full SET big = soak.big(), n = NULL WHERE id BETWEEN $1 AND $1 + least($2, 20) - 1'
        WHEN 't_full delete' THEN
            'DELETE FROM t_full WHERE id BETWEEN $1 * $3 AND $1 * $3 + least($2, 100) - 1'
        WHEN 't_full key' THEN
            'UPDATE t_full SET id = -id WHERE id BETWEEN $1 * $3 AND $1 * $3 + least($2, 100) - 1
             AND NOT EXISTS (SELECT FROM t_full o WHERE o.id = -t_full.id)'

        WHEN 't_index insert' THEN
            'INSERT INTO t_index SELECT i, 0, ''code '' || i, soak.big() FROM generate_series($1, $1 + least($2, 200) - 1) i
             ON CONFLICT (id) DO UPDATE SET n = t_index.n + 1'
        WHEN 't_index update' THEN
            'UPDATE t_index SET n = n + 1 WHERE id BETWEEN $1 AND $1 + least($2, 200) - 1'
        WHEN 't_index other' THEN
            'UPDATE t_index SET id = -id WHERE id BETWEEN $1 * $3 AND $1 * $3 + least($2, 200) - 1
             AND NOT EXISTS (SELECT FROM t_index o WHERE o.id = -t_index.id)'
        WHEN 't_index delete' THEN
            'DELETE FROM t_index WHERE id BETWEEN $1 * $3 AND $1 * $3 + least($2, 200) - 1'
        WHEN 't_index key' THEN
            'UPDATE t_index SET code = code || ''/'' WHERE id BETWEEN $1 AND $1 + least($2, 200) - 1 AND length(code) < 30'

        WHEN 't_part insert' THEN
            'INSERT INTO t_part (id, region, t, n) SELECT i, soak.rnd(1, 3), soak.txt(), i FROM generate_series($1, $1 + $2 - 1) i
             ON CONFLICT (id, region) DO UPDATE SET t = excluded.t'
        WHEN 't_part update' THEN
            'UPDATE t_part SET t = soak.txt() WHERE id BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_part other' THEN
            'UPDATE t_part_2 SET n = n + $3 WHERE id BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_part delete' THEN
            'DELETE FROM t_part WHERE id BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_part key' THEN
            'UPDATE t_part p SET region = region % 3 + 1 WHERE id BETWEEN $1 AND $1 + $2 - 1
             AND NOT EXISTS (SELECT FROM t_part o WHERE o.id = p.id AND o.region = p.region % 3 + 1)'

        WHEN 't_seq delete' THEN
            'DELETE FROM t_seq WHERE id < (SELECT max(id) FROM t_seq) - 20000'

        WHEN 't_bulk insert' THEN
            'INSERT INTO t_bulk SELECT i, $3, ''pad '' || i FROM generate_series($1, $1 + $2 - 1) i ON CONFLICT DO NOTHING'
        WHEN 't_bulk update' THEN
            'UPDATE t_bulk SET v = v + 1 WHERE id BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_bulk other' THEN
            'UPDATE t_bulk SET pad = NULL WHERE id BETWEEN $1 AND $1 + $2 - 1'
        WHEN 't_bulk delete' THEN
            'DELETE FROM t_bulk WHERE id BETWEEN $1 AND $1 + $2 - 1 OR id BETWEEN $1 + 1000000 AND $1 + 1000000 + $2 - 1'
        WHEN 't_bulk key' THEN
            'UPDATE t_bulk SET id = id + 1000000 WHERE id BETWEEN $1 AND $1 + $2 - 1
             AND NOT EXISTS (SELECT FROM t_bulk o WHERE o.id = t_bulk.id + 1000000)'
        ELSE
            'INSERT INTO t_seq (v) SELECT i + $3 FROM generate_series($1, $1 + $2 - 1) i'
        END;
    EXECUTE sql USING lo, n, sign;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $$;

--
-- soak.compare(handle, table, entries, hash and base of the last comparison):
-- replays the log (insert sets, update merges, delete removes) and compares the
-- outcome with the table, the log with itself, and its beginning, unless it has
-- been folded since, with what has been read before.  With the stack idle and
-- nobody writing.
--
\ir ../t/lib/replay.sql


-- The columns of a table, and what makes them of a row of a log.
CREATE FUNCTION soak.columns(tbl regclass, OUT columns text, OUT expressions text) LANGUAGE sql AS $$
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname),
        string_agg(format('(value->>%L)::%s AS %I', attname, format_type(atttypid, atttypmod), attname),
            ', ' ORDER BY attname)
        FROM pg_attribute WHERE attrelid = tbl AND attnum > 0 AND NOT attisdropped AND (attgenerated = '' OR (attgenerated = 's' AND current_setting('server_version_num')::int >= 180000))
$$;

CREATE FUNCTION soak.compare(handle text, tbl regclass, known_entries bigint, known_hash numeric, known_base text,
    OUT entries bigint, OUT missing bigint, OUT extra bigint, OUT odd bigint, OUT changed bool,
    OUT hash numeric, OUT base text, OUT examples text)
LANGUAGE plpgsql SET client_min_messages = warning SET work_mem = '128MB' AS $$
DECLARE
    columns text;
    expressions text;
BEGIN
    SELECT c.columns, c.expressions INTO columns, expressions FROM soak.columns(tbl) c;

    -- another one by the time the log is read does no harm: it is seen next time
    base := (SELECT b.lsn || '_' || b.op FROM _electric_cm.shape s JOIN _electric_cm.shape_base b ON b.shape = s.id
        WHERE s.handle = compare.handle);
    CREATE TEMP TABLE ecm_log ON COMMIT DROP AS
        SELECT n, log_offset, operation, key, value
        FROM electric_cm_shape_log(handle) WITH ORDINALITY
            AS l (log_offset, operation, key, value, old_value, xid, n);
    ANALYZE ecm_log;

    SELECT count(*), coalesce(sum(h), 0),
        (coalesce(sum(h) FILTER (WHERE n <= known_entries), 0) IS DISTINCT FROM known_hash OR count(*) < known_entries)
            AND coalesce(base, '') = known_base
            AND base IS NOT DISTINCT FROM (SELECT b.lsn || '_' || b.op FROM _electric_cm.shape s
                JOIN _electric_cm.shape_base b ON b.shape = s.id WHERE s.handle = compare.handle)
        INTO entries, hash, changed
        FROM (SELECT n, hashtextextended(n || log_offset::text || operation || key || coalesce(value::text, ''), 0) AS h
              FROM ecm_log) hashes;

    EXECUTE format('CREATE TEMP TABLE ecm_replayed ON COMMIT DROP AS
        SELECT r::text AS r FROM (SELECT %s FROM ecm_test.replayed($1) AS merged (value)) r', expressions) USING handle;
    EXECUTE format('CREATE TEMP TABLE ecm_table ON COMMIT DROP AS
        SELECT r::text AS r FROM (SELECT %s FROM %s) r', columns, tbl);
    CREATE TEMP TABLE ecm_missing ON COMMIT DROP AS TABLE ecm_table EXCEPT ALL TABLE ecm_replayed;
    CREATE TEMP TABLE ecm_extra ON COMMIT DROP AS TABLE ecm_replayed EXCEPT ALL TABLE ecm_table;
    CREATE TEMP TABLE ecm_checked ON COMMIT DROP AS SELECT c.odd, c.examples FROM ecm_test.check_log(handle) c;

    missing := (SELECT count(*) FROM ecm_missing);
    extra := (SELECT count(*) FROM ecm_extra);
    odd := (SELECT c.odd FROM ecm_checked c);
    examples := (SELECT string_agg(e, E'\n') FROM (
        (SELECT 'in the table only: ' || left(r, 200) FROM ecm_missing LIMIT 5)
        UNION ALL (SELECT 'in the replay only: ' || left(r, 200) FROM ecm_extra LIMIT 5)
        UNION ALL (SELECT unnest(c.examples) FROM ecm_checked c)) x (e));
    DROP TABLE ecm_log, ecm_replayed, ecm_table, ecm_missing, ecm_extra, ecm_checked;
END $$;

--
-- soak.compare_copy(table): compares a reader's copy, which is in ecm_copy (value),
-- with its table.
--
CREATE FUNCTION soak.compare_copy(tbl regclass, OUT missing bigint, OUT extra bigint, OUT examples text)
LANGUAGE plpgsql SET work_mem = '128MB' AS $$
DECLARE
    columns text;
    expressions text;
BEGIN
    SELECT c.columns, c.expressions INTO columns, expressions FROM soak.columns(tbl) c;
    EXECUTE format('CREATE TEMP TABLE ecm_rows AS SELECT r::text AS r FROM (SELECT %s FROM ecm_copy) r', expressions);
    EXECUTE format('CREATE TEMP TABLE ecm_table AS SELECT r::text AS r FROM (SELECT %s FROM %s) r', columns, tbl);
    CREATE TEMP TABLE ecm_missing AS TABLE ecm_table EXCEPT ALL TABLE ecm_rows;
    CREATE TEMP TABLE ecm_extra AS TABLE ecm_rows EXCEPT ALL TABLE ecm_table;
    missing := (SELECT count(*) FROM ecm_missing);
    extra := (SELECT count(*) FROM ecm_extra);
    examples := (SELECT string_agg(e, E'\n') FROM (
        (SELECT 'in the table only: ' || left(r, 200) FROM ecm_missing LIMIT 5)
        UNION ALL (SELECT 'in the copy only: ' || left(r, 200) FROM ecm_extra LIMIT 5)) x (e));
END $$;

--
-- soak.await_active(pid): until the stack is active without that process (0:
-- just active); returns since when, in seconds of the Unix epoch.
--
CREATE FUNCTION soak.await_active(without int) RETURNS numeric LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        EXIT WHEN electric_cm_status() = 'active' AND NOT EXISTS (
            SELECT FROM electric_cm_stat_manager WHERE datname = current_database() AND pid = without
            UNION ALL SELECT FROM electric_cm_stat_consumers WHERE datname = current_database() AND pid = without
            UNION ALL SELECT FROM electric_cm_stat_connections WHERE datname = current_database() AND backend_pid = without);
        PERFORM pg_sleep(0.002);
    END LOOP;
    RETURN (SELECT extract(epoch FROM status_since) FROM electric_cm_stat_manager WHERE datname = current_database());
END $$;
