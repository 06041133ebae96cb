--
-- Where clauses and columns: what is accepted, in its normal form, and what
-- is refused
--
SET client_min_messages = warning;
CREATE SCHEMA clauses;
SET search_path = clauses, public;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN small AS int CHECK (VALUE < 100);
CREATE TABLE t (
	id int PRIMARY KEY, a int8, b text, "Mixed Case" varchar(10), c char(5),
	n numeric, f float8, flag bool, at timestamptz, d date, i interval, u uuid,
	j jsonb, arr int[], bin bytea, m mood, s small, r regclass, ra regclass[], acl aclitem, cl pg_class,
	gone int);
ALTER TABLE t DROP COLUMN gone;
ALTER TABLE t REPLICA IDENTITY FULL;
CREATE FUNCTION mine(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR === (leftarg = int8, rightarg = int8, procedure = int8eq);

-- the normal form, or the error with its position in the clause
CREATE FUNCTION where_clause(clause text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	new_handle text;
	result text;
	state text;
	msg text;
	det text;
BEGIN
	new_handle := electric_cm_create_shape('clauses.t', clause);
	SELECT s.where_clause INTO result FROM electric_cm_shapes AS s WHERE s.handle = new_handle;
	PERFORM electric_cm_drop_shape(new_handle);
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, msg = MESSAGE_TEXT, det = PG_EXCEPTION_DETAIL;
	RETURN state || ': ' || msg || CASE WHEN det <> '' THEN ' - ' || det ELSE '' END;
END $$;

-- accepted
SELECT clause, where_clause(clause) FROM unnest(ARRAY[
	'a = 5', '5 = a', 'clauses.t.a=5', 't.a  =  5 -- comment', 'a = 5 and b like ''x%''', 'a in (1,2,3)',
	'a not in (1, 2)', 'a between 1 and 10', 'b ilike ''%foo%''', 'b ~ ''^a''', '"Mixed Case" = ''q''''uote''',
	'"Mixed Case" in (''x'', ''y'')', '"Mixed Case" <> all (array[''x'', b])',
	'c = ''ab''', 'n = 1.50', 'f < 1e10', 'flag', 'not flag', 'flag is not true', 'a is null', 'a is distinct from 3',
	'at > ''2020-01-01 00:00:00+02''', 'd = date ''2020-02-29''', 'i > interval ''1 day''',
	'u = ''A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11''', 'j ->> ''k'' = ''v''', 'j @> ''{"a": 1}''', '1 = any(arr)', 'arr[1] = 1',
	'bin = ''\x00ff''', 'lower(b) = ''x''', 'coalesce(a, 0) > 1', 'case when a > 1 then flag else false end',
	'(a, n) > (1, 2)', 'true', 'b collate "C" < ''x''', 'length(b) * 2 > abs(a)', 'nullif(a, 1) = 2', 'greatest(a, id) > 5'
	]) WITH ORDINALITY AS c (clause, n) ORDER BY n;

-- refused
SELECT clause, where_clause(clause) FROM unnest(ARRAY[
	'', ' ', 'a =', 'a = 1 b', 'a = 1; DROP TABLE clauses.t', 'a = 1) OR (true', 'a = 1 FROM clauses.t', 'a = 1 WHERE true', 'a = 1 AS x',
	'true, false', 'DISTINCT true', 'true ORDER BY 1', 'true LIMIT 1', 'true UNION SELECT true', '*', 't.*', 't IS NULL', '$1 = 1',
	'nothing = 1', 'gone = 1', 'other.a = 1', 'a', 'a + 1', 'b = 1', 'a = ''x''', 'a = 1/0',
	'ctid = ''(0,1)''', 'xmin = ''1''', 'tableoid = 1', 'm = ''ok''', 's = 1', 'r = ''pg_class''::regclass', 'ra is null', 'acl is null', 'cl is null',
	'mine(id)', 'a === 5', 'a = (SELECT 1)', 'exists (SELECT FROM pg_class)', 'random() < 0.5', 'at > now()', 'd = current_date', 'b = current_user',
	'pg_sleep(1) IS NULL', 'at::date = d', 'to_char(at, ''YYYY'') = ''2020''', 'count(*) > 1', 'row_number() over () = 1', 'generate_series(1, 2) = 1',
	'pg_read_file(''postgresql.conf'') = b', 'a::text::mood = ''ok''', '''{ok}''::text[]::mood[] = array[m]', 'array[a]::text[] = array[b]', 'current_setting(''x'') = b', 'nextval(''s'') = 1'
	]) WITH ORDINALITY AS c (clause, n) ORDER BY n;

-- with the position, as psql shows it
\set VERBOSITY default
SELECT electric_cm_create_shape('t', 'a = 5 AND nothing > 1');
SELECT electric_cm_create_shape('t', 'a = 5 AND (b = ');
SELECT electric_cm_create_shape('t', 'a = 5 AND random() < 1');

-- one definition, one shape; it does not depend on the session's settings
SET datestyle = 'SQL, DMY';
SELECT electric_cm_create_shape('t', 'd = ''03.02.2021''') AS one \gset
SET datestyle = 'German';
SELECT electric_cm_create_shape('t', '(d=''03.02.2021'')') = :'one' AS same;
RESET datestyle;
SELECT electric_cm_create_shape('t', 'd = ''2021-02-03''') = :'one' AS same;
SELECT electric_cm_create_shape('t', 'd = ''2021-02-04''') = :'one' AS same;
SELECT electric_cm_create_shape('t', 'd = ''2021-02-03''', '{id}') = :'one' AS same;
SELECT electric_cm_create_shape('t', 'd = ''2021-02-03''', '{id,b}') = electric_cm_create_shape('t', 'd = ''2021-02-03''', '{b,id}') AS same;
SELECT electric_cm_create_shape('t', 'd = ''2021-02-03''', '{id,a,b,"Mixed Case",c,n,f,flag,at,d,i,u,j,arr,bin,m,s,r,ra,acl,cl}') = :'one' AS same;
SELECT where_clause, columns FROM electric_cm_shapes WHERE relation = 't'::regclass ORDER BY 1, 2;

-- columns
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{a,b}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{id,nothing}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{id,"mixed case"}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{id,gone}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{id,ctid}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{id,id}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{id,NULL}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{}')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.t', columns => '{{id},{a}}')$$);

-- the replica identity
CREATE TABLE plain (id int PRIMARY KEY, n int8, f float8);
SELECT error($$SELECT electric_cm_create_shape('clauses.plain', 'id > 10')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.plain', 'n > 10')$$);
CREATE TABLE parted (id int, k int, t text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE "Parted 2" (t text, k int NOT NULL, id int NOT NULL);
ALTER TABLE parted ATTACH PARTITION "Parted 2" FOR VALUES IN (2);
SELECT error($$SELECT electric_cm_create_shape('clauses.parted', 'id > 10')$$);
ALTER TABLE parted_1 REPLICA IDENTITY FULL;
SELECT error($$SELECT electric_cm_create_shape('clauses.parted', 'id > 10')$$);
SELECT error($$SELECT electric_cm_create_shape('clauses.parted', 'id > 10', '{id,k}')$$);

-- a name is no key
CREATE TABLE named (r regclass PRIMARY KEY, id int NOT NULL UNIQUE);
SELECT error($$SELECT electric_cm_create_shape('clauses.named')$$);
ALTER TABLE named REPLICA IDENTITY USING INDEX named_id_key;
SELECT electric_cm_drop_shape(electric_cm_create_shape('clauses.named'));

-- longer than an index entry can be, and still the same shape
SELECT 'id IN (' || string_agg((i * 7919 % 1000003)::text, ',') || ')' AS long FROM generate_series(1, 3000) i \gset
SELECT length(:'long') > 8191 AS is_long,
	electric_cm_create_shape('clauses.plain', :'long') = electric_cm_create_shape('clauses.plain', :'long') AS same,
	electric_cm_create_shape('clauses.plain', :'long') = electric_cm_create_shape('clauses.plain', :'long', '{id}') AS other;

SET client_min_messages = error;
DROP SCHEMA clauses CASCADE;
SELECT count(*) FROM electric_cm_shapes WHERE where_clause IS NOT NULL;
