--
-- ILIKE: shapes have the rows that a query with the same clause finds
--
SET client_min_messages = warning;
CREATE TABLE word (id int PRIMARY KEY, t text, v varchar(40), b char(12), n name, c text COLLATE "C");
ALTER TABLE word REPLICA IDENTITY FULL;

CREATE TABLE pattern (p text);
INSERT INTO pattern VALUES ('%STRASSE%'), ('straße'), ('İ%'), ('i%'), ('_stanbul'), ('%Σ'), ('%σ%'), ('%ς'),
	('ﬁ%'), ('%K%'), ('100\%'), ('a\_b'), ('A_B'), (''), ('%'), ('%%_'), ('Ω_'), ('é%'), ('e%'), ('%ǅ%');

-- each pattern with each column, and in other company
CREATE TABLE clause AS
	SELECT format(f, p) AS clause FROM pattern, unnest(ARRAY['t ILIKE %L', 't NOT ILIKE %L', 'v ILIKE %L', 'b ILIKE %L',
		'n ILIKE %L', 'c ILIKE %L', 't ILIKE %L AND id %% 2 = 0', 'NOT (t ILIKE %1$L OR v ILIKE %1$L)',
		'(t ILIKE %L) IS NULL', 'CASE WHEN id > 10 THEN t ILIKE %1$L ELSE t LIKE %1$L END', 'id IN (1, 5, 9) AND t ILIKE %L',
		'lower(t) ILIKE %L', 'coalesce(t, v) ILIKE %L', '%L ILIKE t', 't ILIKE v']) AS f
	UNION
	SELECT format('t COLLATE %I ILIKE %L', collname, p) FROM pattern, pg_collation
	WHERE collname IN ('C', 'POSIX', 'und-x-icu', 'tr-x-icu', 'lt-x-icu', 'pg_c_utf8', 'pg_unicode_fast', 'C.utf8')
		AND collnamespace = 'pg_catalog'::regnamespace AND collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()));
SELECT count(*) >= 340 AS many FROM clause;

CREATE TABLE declared AS SELECT clause, electric_cm_create_shape('word', clause) AS handle FROM clause;
SELECT count(*) FROM declared, LATERAL (SELECT electric_cm_shape_log(handle) OFFSET 0) AS live;

-- by the stream, several rows to a transaction, with changes
INSERT INTO word SELECT row_number() OVER (), w, w, left(w, 12), left(w, 40), w FROM unnest(ARRAY['Straße', 'STRASSE', 'İstanbul',
	'istanbul', 'ISTANBUL', 'ıstanbul', 'ΣΊΣΥΦΟΣ', 'σίσυφος', 'ﬁnal', 'Final', 'Kelvin', 'kelvin', '100%', 'a_b', 'AXB', '', NULL,
	'ΩΣ', 'Éé', 'E' || U&'\0301', 'ǅ', 'Ǆ']) AS w;
INSERT INTO word SELECT 100 + id, upper(t), lower(v), upper(b), n, upper(c) FROM word;
UPDATE word SET t = lower(t), c = lower(c) WHERE id % 3 = 0;
-- too large to be put into lower case for all clauses together
INSERT INTO word (id, t) VALUES (500, repeat('Straße ', 20000)), (501, 'İ' || repeat('ς', 70000));
UPDATE word SET t = NULL WHERE id = 5;
DELETE FROM word WHERE id % 7 = 0;
SELECT electric_cm_await_flushed() IS NOT NULL AS flushed;

CREATE FUNCTION found(clause text) RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE
	ids int[];
BEGIN
	EXECUTE 'SELECT array_agg(id ORDER BY id) FROM word WHERE ' || clause INTO ids;
	RETURN ids;
END $$;
CREATE FUNCTION logged(handle text) RETURNS int[] LANGUAGE sql AS $$
	SELECT array_agg(id ORDER BY id) FILTER (WHERE operation <> 'delete')
	FROM (SELECT DISTINCT ON (key) coalesce(value, old_value) ->> 'id', operation
		  FROM electric_cm_shape_log($1) WITH ORDINALITY AS l (log_offset, operation, key, value, old_value, xid, n)
		  ORDER BY key, n DESC) AS last (id_text, operation), LATERAL (SELECT id_text::int AS id) AS i
$$;
SELECT clause, found(clause), logged(handle) FROM declared
WHERE found(clause) IS DISTINCT FROM logged(handle) ORDER BY clause COLLATE "C";
SELECT count(found(clause)) > 100 AS most_have_rows FROM declared;
SELECT count(*) FROM electric_cm_shapes WHERE state <> 'live';

DROP TABLE word;
DROP TABLE pattern, clause, declared;
DROP FUNCTION found, logged;
