-- Parameters of where clauses: a value in the place of $1 is what the same constant is.
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10,2), at timestamptz, code varchar(5) COLLATE "C", tags text[], note jsonb);
ALTER TABLE item REPLICA IDENTITY FULL;

SELECT electric_cm_create_shape('item', 'id = 5') = electric_cm_create_shape('item', 'id = $1', params => '{5}') AS same;
SELECT electric_cm_create_shape('item', 'name = $1', params => ARRAY['it''s \ "x" $2']) =
	electric_cm_create_shape('item', $$name = 'it''s \ "x" $2'$$) AS same;

CREATE TEMP TABLE declared AS SELECT n, c, p, electric_cm_create_shape('item', c, params => p) AS handle FROM (VALUES
	(1, 'id = $1', '{7}'::text[]),
	(2, 'id > $1 AND id < $2 AND price >= $1', '{7,9}'),
	(3, 'name ILIKE $1', ARRAY['%a''b%']),
	(4, 'code = $1', '{xy}'),
	(5, 'id = ANY ($1)', '{"{1,2,3}"}'),
	(6, 'tags && $1', '{"{a,\"b c\"}"}'),
	(7, 'at < $1', '{2026-01-01 12:00+02}'),
	(8, 'note @> $1', '{"{\"a\": 1}"}'),
	(9, 'name = $2 OR name = $1', '{one,two}'),
	(10, 'id IN ($1, $2)', '{1,2}'),
	(11, 'name IS NOT DISTINCT FROM $1', '{NULL}'),
	(12, '$1', '{t}'),
	(13, 'id = $1::int8', '{8}'),
	(14, 'name = $1::varchar(3)', '{abcdef}')) v (n, c, p);
SELECT n, c, p, where_clause FROM declared LEFT JOIN _electric_cm.shape USING (handle) ORDER BY n;

-- what is wrong
SELECT electric_cm_create_shape('item', 'id = $1');
SELECT electric_cm_create_shape('item', 'id = $2', params => '{1}');
SELECT electric_cm_create_shape('item', 'id = $1', params => '{1,2}');
SELECT electric_cm_create_shape('item', 'id = $1', params => '{x}');
\set VERBOSITY sqlstate
SELECT electric_cm_create_shape('item', 'id = $1 AND name = $1', params => '{1}');
\set VERBOSITY default
SELECT electric_cm_create_shape('item', '$1 IS NULL', params => '{1}');
SELECT electric_cm_create_shape('item', 'id = $0', params => '{1}');
SELECT electric_cm_create_shape('item', 'id = $300000000', params => '{1}');
SELECT electric_cm_create_shape('item', 'EXISTS (SELECT $1)', params => '{1}');
SELECT electric_cm_create_shape('item', 'name = $1::information_schema.yes_or_no', params => '{YES}');
SELECT electric_cm_create_shape('item', 'id = $1', params => '{{1}}');
SELECT electric_cm_create_shape('item', params => '{1}');
SELECT electric_cm_create_shape('item', 'id = $1', params => '{1 OR true}');
SELECT electric_cm_create_shape('item', 'name::regclass = $1', params => '{item}');
SELECT electric_cm_create_shape('item', 'at < $1', params => '{now}') IS NOT NULL AS "a constant: the moment of the call";

DROP TABLE item;
