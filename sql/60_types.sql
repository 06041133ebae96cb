--
-- Values of all kinds, by snapshot and by stream
--
SET client_min_messages = warning;
CREATE TYPE mood AS ENUM ('sad', 'it''s "so so"', '');
CREATE TYPE point3 AS (x float8, y numeric(10,2), label text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN labels AS text[];
CREATE TYPE float_range AS RANGE (subtype = float8);
CREATE TABLE types (
	id bigint PRIMARY KEY,
	c_bool bool, c_int2 int2, c_int4 int4, c_int8 int8, c_float4 float4, c_float8 float8,
	c_numeric numeric, c_numeric_n numeric(12,4), c_money money, c_oid oid,
	c_text text, c_varchar varchar(20), c_char char(5), c_single "char", c_name name, c_bytea bytea,
	c_date date, c_time time, c_timetz timetz, c_timestamp timestamp, c_timestamptz timestamptz, c_interval interval,
	c_uuid uuid, c_json json, c_jsonb jsonb, c_jsonpath jsonpath,
	c_inet inet, c_cidr cidr, c_macaddr macaddr, c_macaddr8 macaddr8, c_bit bit(3), c_varbit varbit,
	c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_polygon polygon, c_circle circle,
	c_tsvector tsvector, c_tsquery tsquery, c_lsn pg_lsn, c_xid8 xid8, c_snapshot pg_snapshot, c_regclass regclass,
	c_int4range int4range, c_tstzrange tstzrange, c_multirange nummultirange, c_float_range float_range,
	c_int_array int[], c_text_array text[], c_array2 int[][], c_ts_array timestamptz[], c_enum_array mood[],
	c_enum mood, c_composite point3, c_composite_array point3[], c_domain positive, c_labels labels
);
CREATE TABLE values_of_types (LIKE types);
INSERT INTO values_of_types VALUES (1,
	true, -32768, -2147483648, -9223372036854775808, 1.1, 0.1::float8 + 0.2,
	'123456789012345678901234567890.123456789', 3.1415, '$1,234.50', 4294967295,
	E'tab\there\nnewline \\ "quotes" ''single'' äöü €  🐘', 'varchar', 'ab', 'x', 'a name', '\x00ff5c27',
	'2024-02-29', '23:59:59.999999', '12:00:00+05:30', '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789+02', '1 year 2 mons -3 days 04:05:06.7',
	'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b": 1, "a" : [1,2,  null]}', '{"b": 1, "a": [1, 2, null, "x\"y"]}', '$.a[*] ? (@ > 1)',
	'192.168.0.1/24', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', B'101', B'110011',
	'(1.5,-2)', '{1,2,3}', '[(0,0),(1,1)]', '(2,2),(1,1)', '((0,0),(1,1))', '((0,0),(1,1),(1,0))', '<(1,1),2>',
	'a:1A cat:2,3 ''it''''s'':4', 'fat & (rat | !cat)', '16/B374D848', '12345678901', '10:20:10,14,15', 'types',
	'[1,10)', '["2024-01-01 00:00:00+00",)', '{[1.5,2.5),[3,4]}', '[1.1,2.2)',
	'{1,NULL,3}', ARRAY['a', NULL, '', 'NULL', 'with "quotes", commas', E'back\\slash'], '{{1,2},{3,4}}', '{"2024-02-29 12:34:56.789+02"}', ARRAY['it''s "so so"', '']::mood[],
	'it''s "so so"', ROW(1e300, 2.5, 'la,"bel'), ARRAY[ROW(1, 2, NULL), NULL, ROW('NaN', 3, '')]::point3[], 7, '{x,y}');
-- special values, and empty ones
INSERT INTO values_of_types (id, c_float4, c_float8, c_numeric, c_text, c_varchar, c_char, c_bytea,
	c_date, c_timestamp, c_timestamptz, c_json, c_jsonb, c_int4range, c_tstzrange, c_multirange,
	c_int_array, c_text_array, c_enum, c_composite, c_varbit, c_tsvector)
VALUES (2, 'NaN', '-Infinity', 'NaN', '', '', '', '', 'infinity', '-infinity', 'infinity', 'null', 'null',
	'empty', '(,)', '{}', '{}', '{}', '', ROW(NULL, NULL, NULL), '', ''),
	(3, '-0', '-0', 'Infinity', ' ', ' x ', ' ', '\x', '4713-01-01 BC', '0001-01-01 00:00:00 BC', '2024-10-27 02:30:00+02',
	'"string"', '"string"', '[,5)', 'empty', '{(,)}', '[2:3]={1,2}', '{NULL}', 'sad', ROW('Infinity', -0.01, E'\\'), '0', NULL);
INSERT INTO values_of_types (id) VALUES (4);

-- in the snapshot ...
INSERT INTO types SELECT * FROM values_of_types;
SELECT electric_cm_create_shape('types') AS h \gset
SELECT replay(:'h', 'types');
-- ... and in the stream; the log has the same text in both
INSERT INTO types SELECT (jsonb_populate_record(v, jsonb_build_object('id', id + 10))).* FROM values_of_types v;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'h', 'types');
SELECT count(*) FILTER (WHERE a.value - 'id' = b.value - 'id') AS same, count(*)
FROM electric_cm_shape_log(:'h') a JOIN electric_cm_shape_log(:'h') b
	ON (a.value->>'id')::int = (b.value->>'id')::int - 10;
SELECT e.key, e.value #>> '{}' AS value
FROM electric_cm_shape_log(:'h') l, jsonb_each(l.value) WITH ORDINALITY e
WHERE l.value->>'id' = '11' ORDER BY e.key COLLATE "C";
SELECT operation, jsonb_object_agg(e.key, e.value) FILTER (WHERE e.value <> 'null') AS without_nulls
FROM electric_cm_shape_log(:'h') l, jsonb_each(l.value) e
WHERE l.value->>'id' IN ('12', '13', '14') GROUP BY log_offset, operation ORDER BY (max(l.value->>'id'));

-- values are strings or null: what a client does with them is up to it
SELECT DISTINCT jsonb_typeof(e.value) FROM electric_cm_shape_log(:'h') l, jsonb_each(l.value) e ORDER BY 1;
-- jsonb_populate_record gives a row back but for JSON, which it takes for a string
SELECT count(*) FILTER (WHERE (jsonb_populate_record(NULL::types, l.value - 'c_json' - 'c_jsonb'))::text =
	(jsonb_populate_record(t, '{"c_json": null, "c_jsonb": null}'))::text) AS same, count(*)
FROM electric_cm_shape_log(:'h') l JOIN types t ON t.id = (l.value->>'id')::bigint;

-- the database's and the session's display settings change nothing
SELECT md5(string_agg(value::text, ' ' ORDER BY log_offset)) AS before FROM electric_cm_shape_log(:'h') \gset
SET datestyle = 'German';
SET intervalstyle = 'iso_8601';
SET timezone = 'Asia/Kolkata';
SET bytea_output = 'escape';
SET extra_float_digits = -3;
SELECT md5(string_agg(value::text, ' ' ORDER BY log_offset)) = :'before' AS same FROM electric_cm_shape_log(:'h');
RESET ALL;
SET client_min_messages = warning;
ALTER DATABASE regression SET datestyle = 'German';
ALTER DATABASE regression SET intervalstyle = 'iso_8601';
ALTER DATABASE regression SET timezone = 'Asia/Kolkata';
ALTER DATABASE regression SET bytea_output = 'escape';
ALTER DATABASE regression SET extra_float_digits = -3;
ALTER DATABASE regression SET lc_monetary = 'C';
SELECT electric_cm_restart();
SELECT electric_cm_await_active();
SELECT electric_cm_drop_shape(:'h');
SELECT electric_cm_create_shape('types') AS h2 \gset
SELECT count(*) FROM electric_cm_shape_log(:'h2');
UPDATE types SET id = id + 100;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT count(DISTINCT value - 'id') FROM electric_cm_shape_log(:'h2') WHERE value->>'id' IN ('11', '111');
SELECT value->>'c_date', value->>'c_interval', value->>'c_timestamptz', value->>'c_bytea', value->>'c_float8', value->>'c_float4'
FROM electric_cm_shape_log(:'h2') WHERE value->>'id' IN ('11', '111');
SELECT replay(:'h2', 'types');
ALTER DATABASE regression RESET datestyle;
ALTER DATABASE regression RESET intervalstyle;
ALTER DATABASE regression RESET timezone;
ALTER DATABASE regression RESET bytea_output;
ALTER DATABASE regression RESET extra_float_digits;
ALTER DATABASE regression RESET lc_monetary;
SELECT electric_cm_restart();
SELECT electric_cm_await_active();
DROP TABLE types;

-- large values: in line, compressed, out of line, beyond a chunk
CREATE FUNCTION noise(n int, seed int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT left(string_agg(md5(seed || '-' || i), '' ORDER BY i), n) FROM generate_series(1, n / 32 + 1) i
$$;
CREATE TABLE large (id int PRIMARY KEY, big text, small int, bytes bytea);
INSERT INTO large VALUES (1, noise(1000000, 1), 1, decode(noise(20000, 2), 'hex'));
SELECT electric_cm_create_shape('large') AS l \gset
SELECT replay(:'l', 'large');
INSERT INTO large SELECT n, noise(n, n), n, NULL FROM unnest(ARRAY[2, 1999, 2000, 2001, 8000, 8060, 8064, 8065, 8066, 8067, 8068, 8069, 8070, 8092, 8093, 9000, 100000]) n;
INSERT INTO large VALUES (3, repeat('compresses well ', 65536), 3, NULL), (4, NULL, 4, ''), (5, '', 5, NULL);
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'l', 'large');
SELECT operation, key, length(value->>'big'), value->>'big' = big AS same
FROM electric_cm_shape_log(:'l') l JOIN large t ON t.id = (value->>'id')::int WHERE id IN (1, 3) ORDER BY id;

-- an unchanged large value is left out of an update ...
SELECT last_offset(:'l') AS before \gset
UPDATE large SET small = 100 WHERE id = 1;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT operation, key, value FROM electric_cm_shape_log(:'l', :'before');
-- ... but not of the insert that a changed key is
SELECT last_offset(:'l') AS before \gset
UPDATE large SET id = 1001 WHERE id = 1;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT operation, key, length(value->>'big'), value->>'big' = noise(1000000, 1) AS same, length(value->>'bytes'), value->>'small', old_value
FROM electric_cm_shape_log(:'l', :'before');
-- from one key to the next, in one transaction and in several
BEGIN;
UPDATE large SET small = 101 WHERE id = 1001;
UPDATE large SET id = 1002 WHERE id = 1001;
UPDATE large SET id = 1003, bytes = '\x01' WHERE id = 1002;
UPDATE large SET small = 102 WHERE id = 1003;
UPDATE large SET id = 1001 WHERE id = 1003;
COMMIT;
UPDATE large SET id = 1004 WHERE id = 1001;
UPDATE large SET big = noise(300000, 9) WHERE id = 1004;
UPDATE large SET id = 1001 WHERE id = 1004;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT operation, key, length(value->>'big') AS big, length(value->>'bytes') AS bytes, value->>'small' AS small
FROM electric_cm_shape_log(:'l', :'before');
SELECT replay(:'l', 'large');

-- another row takes the old key
UPDATE large SET id = 3000 WHERE id = 2000;
UPDATE large SET id = 2000 WHERE id = 2001;
UPDATE large SET small = -1 WHERE id IN (2000, 3000);
DELETE FROM large WHERE id = 2000;
INSERT INTO large VALUES (2000, noise(4000, 11), 0, NULL);
UPDATE large SET id = 2002 WHERE id = 2000;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'l', 'large');
DROP TABLE large;

-- with REPLICA IDENTITY FULL the stream has everything
CREATE TABLE large_full (id int PRIMARY KEY, big text, small int);
ALTER TABLE large_full REPLICA IDENTITY FULL;
INSERT INTO large_full VALUES (1, noise(50000, 1), 1);
SELECT electric_cm_create_shape('large_full') AS f \gset
SELECT replay(:'f', 'large_full');
UPDATE large_full SET small = 2;
UPDATE large_full SET id = 2;
DELETE FROM large_full;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT operation, key, length(value->>'big') AS big, value->>'small' AS small, jsonb_object_keys(old_value) AS old
FROM electric_cm_shape_log(:'f', '0_1');
DROP TABLE large_full;

-- a key that is itself stored out of line
CREATE TABLE large_key (id text PRIMARY KEY, n int);
ALTER TABLE large_key ALTER COLUMN id SET STORAGE EXTERNAL;
INSERT INTO large_key VALUES (noise(2400, 1), 1);
SELECT electric_cm_create_shape('large_key') AS k \gset
SELECT replay(:'k', 'large_key');
UPDATE large_key SET n = 2;
UPDATE large_key SET n = 3, id = noise(2400, 2);
UPDATE large_key SET n = 4;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT operation, length(key) AS key, length(value->>'id') AS id, value->>'n' AS n, length(old_value->>'id') AS old_id
FROM entries(:'k');
SELECT replay(:'k', 'large_key');
DELETE FROM large_key;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'k', 'large_key');
DROP TABLE large_key;

-- many columns
DO $$
BEGIN
	EXECUTE (SELECT format('CREATE TABLE wide (id int PRIMARY KEY, %s)', string_agg(format('c%s int', i), ', '))
		FROM generate_series(1, 1500) i);
END $$;
INSERT INTO wide (id, c1, c1500) VALUES (1, 2, 3);
SELECT electric_cm_create_shape('wide') AS w \gset
SELECT replay(:'w', 'wide');
INSERT INTO wide (id, c1500) SELECT i, i FROM generate_series(2, 20) i;
UPDATE wide SET c700 = 9 WHERE id > 10;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;
SELECT replay(:'w', 'wide');
DROP TABLE wide;

DROP TABLE values_of_types;
DROP FUNCTION noise;
DROP DOMAIN labels, positive;
DROP TYPE mood, point3, float_range;
