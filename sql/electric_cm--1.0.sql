/* electric_cm--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION electric_cm" to load this file. \quit

--
-- Tables.  They live in a schema of their own and belong to the extension's
-- owner; nobody else reads or writes them directly.  Nothing in them survives
-- a dump: a restored database starts afresh.
--
CREATE SCHEMA _electric_cm;

CREATE TABLE _electric_cm.stack (
	one_row bool PRIMARY KEY DEFAULT true CHECK (one_row),
	database_oid oid NOT NULL,
	system_identifier int8,
	timeline_id int4,
	stopped bool NOT NULL DEFAULT false,
	stopped_for_upgrade bool NOT NULL DEFAULT false,	-- until pg_upgrade has made another server of this
	message_key uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),	-- secret
	slot_name name,				-- the slot that we created, if any
	slot_unfinished bool NOT NULL DEFAULT false,	-- its creation has not ended
	publication_name name,		-- the publication that we created, if any
	followed_publication name,	-- the one that the stream was last read by
	publication_dropped bool NOT NULL DEFAULT false,	-- by us, since then
	clean_stop_lsn pg_lsn,		-- last acknowledged LSN of a clean stop
	seen_lsn pg_lsn				-- the library was loaded whenever WAL before it was written
);
COMMENT ON TABLE _electric_cm.stack IS
	'what the connection manager remembers about this database';

CREATE TABLE _electric_cm.shape (
	id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	handle text NOT NULL UNIQUE,
	owner oid NOT NULL,
	relation oid NOT NULL,
	relation_name text NOT NULL,	-- quoted; the first part of every key
	where_clause text,				-- deparsed, normalised
	where_names text[],				-- the columns that it refers to, with all that is needed
	where_types oid[],				-- to parse it without the table
	where_collations oid[],
	requested_columns text[],		-- NULL: all
	definition bytea NOT NULL,		-- digest of the clause and these
	column_names text[] NOT NULL,	-- in the order of the log's values
	column_types oid[] NOT NULL,
	key_positions int2[] NOT NULL,	-- 1-based positions in column_names
	generation int4 NOT NULL DEFAULT 0,	-- attempts to create it so far
	snapshot_generation int4,		-- generation whose snapshot is committed
	snapshot pg_snapshot,
	snapshot_rows int8,
	reading int8,				-- whose pieces its rows are read in, in this generation
	order_xid xid8,				-- of the transaction that has given the last order
	created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 50);			-- each is updated twice, soon
CREATE UNIQUE INDEX shape_definition ON _electric_cm.shape (relation, owner, definition);
CREATE INDEX shape_reading ON _electric_cm.shape (reading) WHERE reading IS NOT NULL;
COMMENT ON TABLE _electric_cm.shape IS 'declared shapes';

-- A large table is read in pieces, in the order of its key, each by a
-- transaction of its own: piece n has the rows whose keys are greater than
-- upto of piece n-1, and not greater than its own.  The shapes that one query
-- reads share a reading.
CREATE TABLE _electric_cm.reading (
	id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	began_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	total_rows int8 NOT NULL,	-- of the table, as was estimated
	first_rows int8 NOT NULL	-- planned size of the first piece
);
COMMENT ON TABLE _electric_cm.reading IS 'tables that are being read in pieces';

CREATE TABLE _electric_cm.reading_piece (
	reading int8,
	number int4,				-- from 1
	upto text[],				-- values of the key columns; NULL: no end, the last piece
	snapshot pg_snapshot NOT NULL,
	order_xid xid8 NOT NULL,	-- of the transaction whose message tells of it
	read_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	scanned int8 NOT NULL,		-- rows of the table, about
	next_rows int8 NOT NULL,	-- planned size of the next piece
	PRIMARY KEY (reading, number)
);
COMMENT ON TABLE _electric_cm.reading_piece IS 'the pieces that have been read';

-- Keys to be read once more: a change that was kept lacks a value which only a
-- change had that was not.  Consumers ask; a pool session writes the answer,
-- and tells them by a message.
CREATE TABLE _electric_cm.reading_again (
	shape int8,
	lsn pg_lsn,					-- offset of the entry that lacks a value
	op int8,
	generation int4 NOT NULL,
	key text[] NOT NULL,
	order_xid xid8,				-- of the answer's message; NULL: not answered yet
	snapshot pg_snapshot,		-- that it was read with
	data bytea,					-- the row, packed; NULL: the shape has none
	PRIMARY KEY (shape, lsn, op)
);
COMMENT ON TABLE _electric_cm.reading_again IS
	'keys that are read again, for entries that lack a value';

-- Tables that we have added to the publication: see unpublish.c.
CREATE TABLE _electric_cm.published_table (
	relation oid,
	publication oid,
	member oid NOT NULL,	-- in pg_publication_rel; 0: has been
	PRIMARY KEY (relation, publication)
);
COMMENT ON TABLE _electric_cm.published_table IS
	'tables that the stack has added to the publication';

-- Which consumer has a shape, since an attempt to create it has begun.  Like
-- the next one it is written by the stack only, so that no lock that a user
-- holds on a shape's row can make the stack wait.
CREATE TABLE _electric_cm.shape_worker (
	shape int8 PRIMARY KEY,
	worker int4 NOT NULL,
	skip_until pg_lsn				-- logged up to there by a former worker
) WITH (fillfactor = 50);
COMMENT ON TABLE _electric_cm.shape_worker IS 'the shapes'' consumers';

-- Shapes that a transaction would have deleted, had somebody else not locked
-- their rows.
CREATE TABLE _electric_cm.lost_shape (
	shape int8,
	xid xid8,
	PRIMARY KEY (shape, xid)
);
COMMENT ON TABLE _electric_cm.lost_shape IS
	'shapes that have been invalidated while they were locked';

-- No row, or 'capturing': being created, or resynced.  'gone': invalidated while
-- somebody else had its row locked; it is deleted as soon as that is over.
CREATE TABLE _electric_cm.shape_state (
	shape int8 PRIMARY KEY,
	state text NOT NULL CHECK (state IN ('capturing', 'live', 'errored', 'gone')),
	generation int4 NOT NULL,		-- that is captured; 0: none is
	gap_lsn pg_lsn,					-- being resynced: the log is complete up to there
	gap_xid xid8,					-- likewise: see shape_gap
	live_at timestamptz,
	live_lsn pg_lsn,				-- since when readers have it: the first time
	last_error text
) WITH (fillfactor = 50);
COMMENT ON TABLE _electric_cm.shape_state IS 'how far the shapes'' consumers have brought them';

-- One row per shape and consumer commit, split near 8 kB: see shape_chunk.h.
CREATE TABLE _electric_cm.shape_log (
	shape int8 NOT NULL,
	first_lsn pg_lsn NOT NULL,
	first_op int8 NOT NULL,
	entries int4 NOT NULL,
	captured_xid xid8,			-- only while the shape is being created
	total_entries int8 NOT NULL,	-- running totals, this chunk included: of
	total_bytes int8 NOT NULL,		-- the base's rows, or of what the stream brought
	data bytea NOT NULL,
	PRIMARY KEY (shape, first_lsn, first_op)
) WITH (toast_tuple_target = 8160);
ALTER TABLE _electric_cm.shape_log ALTER COLUMN data SET STORAGE EXTERNAL;
-- Inserts are kept out of logical decoding; without a replica identity,
-- FOR ALL TABLES publications don't send the deletes either.
ALTER TABLE _electric_cm.shape_log REPLICA IDENTITY NOTHING;
COMMENT ON TABLE _electric_cm.shape_log IS 'entries of all shape logs, in chunks';

-- A log begins with its base: rows as they stood after the entry at <lsn>_<op>,
-- at the offsets <lsn>_<n>, where n has an identity of this base in its upper
-- half.  Without a row here, these are the rows of the initial snapshot, at
-- 0_<n>.  The stream's chunks follow; origin_entries and
-- origin_bytes of their running totals are not in the log (any more).
CREATE TABLE _electric_cm.shape_base (
	shape int8 PRIMARY KEY,
	lsn pg_lsn NOT NULL,
	op int8 NOT NULL,
	origin_entries int8 NOT NULL,
	origin_bytes int8 NOT NULL
);
COMMENT ON TABLE _electric_cm.shape_base IS 'where shape logs begin';

-- A base that is being written, in many transactions: what will be its row in
-- shape_base; the op from which its rows are numbered; into how many partitions
-- their keys are divided; and how many of these are done, with what they came to.
CREATE TABLE _electric_cm.shape_fold (
	shape int8 PRIMARY KEY,
	lsn pg_lsn NOT NULL,
	op int8 NOT NULL,
	origin_entries int8 NOT NULL,
	origin_bytes int8 NOT NULL,
	first_op int8 NOT NULL,
	partitions int4 NOT NULL,
	done int4 NOT NULL,
	rows int8 NOT NULL,
	bytes int8 NOT NULL,
	abandoned bool NOT NULL		-- what was written is to be deleted
) WITH (fillfactor = 50);
COMMENT ON TABLE _electric_cm.shape_fold IS 'logs that are being folded in steps';

-- Where logs lack what happened to their tables.  A resync compares the log with
-- the table, and closes the gap by the differences, at the offsets <lsn>_<n>, where
-- n has an identity of this resync in its upper half.  They are not counted by the
-- running totals of chunks, but here.
CREATE TABLE _electric_cm.shape_gap (
	shape int8,
	order_xid xid8,				-- of the transaction that has ordered the resync
	lsn pg_lsn,					-- the log goes up to there; NULL: not begun yet
	reason text NOT NULL,
	ordered_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	compared int8 NOT NULL DEFAULT 0,	-- rows
	entries int8 NOT NULL DEFAULT 0,	-- that had to be written
	bytes int8 NOT NULL DEFAULT 0,
	closed_at timestamptz,		-- without an LSN: there was a gap already
	PRIMARY KEY (shape, order_xid)
) WITH (fillfactor = 50);
COMMENT ON TABLE _electric_cm.shape_gap IS 'gaps in shape logs, and how they were closed';

-- Written only in transactions that write entries; several rows in turn, of
-- which the largest counts, since a row that is updated while somebody has an old
-- snapshot has ever more versions to walk through.
CREATE TABLE _electric_cm.progress (
	worker int4,
	turn int4,
	lsn pg_lsn NOT NULL,		-- end of the last upstream commit applied
	PRIMARY KEY (worker, turn)
);
COMMENT ON TABLE _electric_cm.progress IS 'how far each consumer has come';

-- Failovers that the shapes have survived: transactions that committed at or after
-- began_at, until the next row's, have the epoch in the upper half of their ops.
CREATE TABLE _electric_cm.epoch (
	began_at pg_lsn PRIMARY KEY,	-- where the timeline of before was left
	-- random, so that no other server has the same; in 29 bits of an op
	epoch int4 NOT NULL CHECK (epoch BETWEEN 1 AND 536870911)
);
COMMENT ON TABLE _electric_cm.epoch IS 'timelines that the logs have gone through';

-- With whom owners share their shapes.
CREATE TABLE _electric_cm.shape_grant (
	shape int8,
	role oid,					-- 0: everybody
	PRIMARY KEY (shape, role)
);
COMMENT ON TABLE _electric_cm.shape_grant IS 'roles that may read shapes which are not theirs';

-- Named readers.  Each has a position in the order of the stream: what comes before it,
-- in all its shapes, it has acknowledged.  -1 is written as 0/0 and -1.
CREATE TABLE _electric_cm.reader (
	id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name text NOT NULL UNIQUE,
	owner oid NOT NULL,
	lsn pg_lsn NOT NULL DEFAULT '0/0',
	op int8 NOT NULL DEFAULT -1,
	created_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	acknowledged_at timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE _electric_cm.reader IS 'named readers';

-- A shape that is new to the reader has a position of its own until it has come to the
-- reader's: first the rows that its log begins with are read (it is initial), then what
-- the stream has brought since.  Rows of shapes that are gone stay, so that the reader is told.
CREATE TABLE _electric_cm.reader_shape (
	id int8 GENERATED ALWAYS AS IDENTITY,
	reader int8,
	shape int8,
	handle text NOT NULL,
	initial bool NOT NULL DEFAULT true,
	lsn pg_lsn DEFAULT '0/0',	-- NULL: the reader's
	op int8 DEFAULT -1,
	PRIMARY KEY (reader, shape)
) WITH (fillfactor = 50);
CREATE INDEX reader_shape_initial ON _electric_cm.reader_shape (reader, shape) WHERE initial;
CREATE INDEX reader_shape_own ON _electric_cm.reader_shape (reader, shape) WHERE lsn IS NOT NULL AND NOT initial;
CREATE INDEX reader_shape_of_shape ON _electric_cm.reader_shape (shape);
COMMENT ON TABLE _electric_cm.reader_shape IS 'what named readers read';

-- Written when a log is folded, which does not wait for locks that a user holds on
-- the reader's rows.  A shape that is dropped from the reader and added again is another
-- member.
CREATE TABLE _electric_cm.reader_lost (
	member int8 PRIMARY KEY		-- reader_shape.id
);
COMMENT ON TABLE _electric_cm.reader_lost IS
	'shapes of which something was folded that a named reader had not acknowledged';

-- The last 1,000 events from warnings up, which survive the server's end.
-- Written like shape_log, so that no publication sends it.
CREATE TABLE _electric_cm.event (
	made_at timestamptz,		-- of the shared memory that has numbered it
	number int8,
	occurred_at timestamptz NOT NULL,
	event text NOT NULL,
	severity text NOT NULL,
	message text NOT NULL,
	detail text,
	PRIMARY KEY (made_at, number)
);
ALTER TABLE _electric_cm.event REPLICA IDENTITY NOTHING;
COMMENT ON TABLE _electric_cm.event IS 'warnings and errors of this database''s stack';

--
-- Logs have rows of tables that their readers may not read, and the key to our
-- messages is a secret.  Roles like pg_read_all_data have SELECT on everything:
-- row-level security without a policy leaves nothing for them to see, and
-- nothing to change for pg_write_all_data.  Our own functions run as the
-- bootstrap superuser.  Samples of the values would be in pg_statistic.
--
DO $$
DECLARE
	r record;
BEGIN
	FOR r IN SELECT oid::regclass AS name FROM pg_catalog.pg_class
		WHERE relnamespace = '_electric_cm'::regnamespace AND relkind = 'r'
	LOOP
		EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', r.name);
	END LOOP;
	FOR r IN SELECT attrelid::regclass AS name, attname FROM pg_catalog.pg_attribute
		WHERE (attrelid, attname) IN (
			('_electric_cm.stack'::regclass, 'message_key'),
			('_electric_cm.shape'::regclass, 'where_clause'),
			('_electric_cm.shape_state'::regclass, 'last_error'),
			('_electric_cm.shape_log'::regclass, 'data'),
			('_electric_cm.reading_piece'::regclass, 'upto'),
			('_electric_cm.reading_again'::regclass, 'key'),
			('_electric_cm.reading_again'::regclass, 'data'),
			('_electric_cm.event'::regclass, 'message'),
			('_electric_cm.event'::regclass, 'detail'))
	LOOP
		EXECUTE pg_catalog.format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS 0',
								  r.name, r.attname);
	END LOOP;
END $$;

--
-- Offsets: positions in shape logs
--
CREATE TYPE electric_cm_offset;
CREATE FUNCTION electric_cm_offset_in(cstring) RETURNS electric_cm_offset
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_out(electric_cm_offset) RETURNS cstring
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_recv(internal) RETURNS electric_cm_offset
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_send(electric_cm_offset) RETURNS bytea
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE TYPE electric_cm_offset (
	INPUT = electric_cm_offset_in, OUTPUT = electric_cm_offset_out,
	RECEIVE = electric_cm_offset_recv, SEND = electric_cm_offset_send,
	INTERNALLENGTH = 16, ALIGNMENT = double
);
COMMENT ON TYPE electric_cm_offset IS 'a position in shape logs, in the order of the stream; -1: before everything';

CREATE FUNCTION electric_cm_offset_lt(electric_cm_offset, electric_cm_offset) RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_le(electric_cm_offset, electric_cm_offset) RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_eq(electric_cm_offset, electric_cm_offset) RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_ne(electric_cm_offset, electric_cm_offset) RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_ge(electric_cm_offset, electric_cm_offset) RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_gt(electric_cm_offset, electric_cm_offset) RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_cmp(electric_cm_offset, electric_cm_offset) RETURNS int4
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_larger(electric_cm_offset, electric_cm_offset) RETURNS electric_cm_offset
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_smaller(electric_cm_offset, electric_cm_offset) RETURNS electric_cm_offset
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_hash(electric_cm_offset) RETURNS int4
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_hash_extended(electric_cm_offset, int8) RETURNS int8
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
CREATE FUNCTION electric_cm_offset_lsn(electric_cm_offset) RETURNS pg_lsn
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;

COMMENT ON FUNCTION electric_cm_offset_in(cstring) IS 'reads an offset';
COMMENT ON FUNCTION electric_cm_offset_out(electric_cm_offset) IS 'writes an offset';
COMMENT ON FUNCTION electric_cm_offset_recv(internal) IS 'reads an offset in binary form';
COMMENT ON FUNCTION electric_cm_offset_send(electric_cm_offset) IS 'writes an offset in binary form';
COMMENT ON FUNCTION electric_cm_offset_lt(electric_cm_offset, electric_cm_offset) IS 'implementation of < operator';
COMMENT ON FUNCTION electric_cm_offset_le(electric_cm_offset, electric_cm_offset) IS 'implementation of <= operator';
COMMENT ON FUNCTION electric_cm_offset_eq(electric_cm_offset, electric_cm_offset) IS 'implementation of = operator';
COMMENT ON FUNCTION electric_cm_offset_ne(electric_cm_offset, electric_cm_offset) IS 'implementation of <> operator';
COMMENT ON FUNCTION electric_cm_offset_ge(electric_cm_offset, electric_cm_offset) IS 'implementation of >= operator';
COMMENT ON FUNCTION electric_cm_offset_gt(electric_cm_offset, electric_cm_offset) IS 'implementation of > operator';
COMMENT ON FUNCTION electric_cm_offset_cmp(electric_cm_offset, electric_cm_offset) IS 'less-equal-greater';
COMMENT ON FUNCTION electric_cm_offset_larger(electric_cm_offset, electric_cm_offset) IS 'larger of two';
COMMENT ON FUNCTION electric_cm_offset_smaller(electric_cm_offset, electric_cm_offset) IS 'smaller of two';
COMMENT ON FUNCTION electric_cm_offset_hash(electric_cm_offset) IS 'hash';
COMMENT ON FUNCTION electric_cm_offset_hash_extended(electric_cm_offset, int8) IS 'hash';
COMMENT ON FUNCTION electric_cm_offset_lsn(electric_cm_offset) IS 'the LSN of the transaction''s commit';

CREATE OPERATOR < (
	LEFTARG = electric_cm_offset, RIGHTARG = electric_cm_offset, FUNCTION = electric_cm_offset_lt,
	COMMUTATOR = >, NEGATOR = >=, RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
CREATE OPERATOR <= (
	LEFTARG = electric_cm_offset, RIGHTARG = electric_cm_offset, FUNCTION = electric_cm_offset_le,
	COMMUTATOR = >=, NEGATOR = >, RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
CREATE OPERATOR = (
	LEFTARG = electric_cm_offset, RIGHTARG = electric_cm_offset, FUNCTION = electric_cm_offset_eq,
	COMMUTATOR = =, NEGATOR = <>, RESTRICT = eqsel, JOIN = eqjoinsel, HASHES, MERGES
);
CREATE OPERATOR <> (
	LEFTARG = electric_cm_offset, RIGHTARG = electric_cm_offset, FUNCTION = electric_cm_offset_ne,
	COMMUTATOR = <>, NEGATOR = =, RESTRICT = neqsel, JOIN = neqjoinsel
);
CREATE OPERATOR >= (
	LEFTARG = electric_cm_offset, RIGHTARG = electric_cm_offset, FUNCTION = electric_cm_offset_ge,
	COMMUTATOR = <=, NEGATOR = <, RESTRICT = scalargesel, JOIN = scalargejoinsel
);
CREATE OPERATOR > (
	LEFTARG = electric_cm_offset, RIGHTARG = electric_cm_offset, FUNCTION = electric_cm_offset_gt,
	COMMUTATOR = <, NEGATOR = <=, RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
CREATE OPERATOR CLASS electric_cm_offset_ops DEFAULT FOR TYPE electric_cm_offset USING btree AS
	OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
	FUNCTION 1 electric_cm_offset_cmp(electric_cm_offset, electric_cm_offset);
CREATE OPERATOR CLASS electric_cm_offset_hash_ops DEFAULT FOR TYPE electric_cm_offset USING hash AS
	OPERATOR 1 =,
	FUNCTION 1 electric_cm_offset_hash(electric_cm_offset),
	FUNCTION 2 electric_cm_offset_hash_extended(electric_cm_offset, int8);
CREATE AGGREGATE max(electric_cm_offset) (
	SFUNC = electric_cm_offset_larger, STYPE = electric_cm_offset,
	SORTOP = >, COMBINEFUNC = electric_cm_offset_larger, PARALLEL = SAFE
);
CREATE AGGREGATE min(electric_cm_offset) (
	SFUNC = electric_cm_offset_smaller, STYPE = electric_cm_offset,
	SORTOP = <, COMBINEFUNC = electric_cm_offset_smaller, PARALLEL = SAFE
);
-- what readers have stored as text can be passed as it is
CREATE CAST (text AS electric_cm_offset) WITH INOUT AS IMPLICIT;
CREATE CAST (electric_cm_offset AS pg_lsn) WITH FUNCTION electric_cm_offset_lsn(electric_cm_offset);

--
-- Status
--
CREATE FUNCTION electric_cm_status() RETURNS text
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION electric_cm_status() IS
	'status of this database''s stack: waiting, starting, active, stopped or failed';

CREATE FUNCTION electric_cm_await_active(timeout interval DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_await_active(interval) IS
	'waits until this database''s stack is active';

CREATE FUNCTION electric_cm_pg_version() RETURNS int4
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_pg_version() IS
	'server version as the stack looked it up, like server_version_num';

CREATE FUNCTION electric_cm_pg_info(OUT server_version_num int4,
									OUT system_identifier int8,
									OUT timeline_id int4,
									OUT looked_up_at timestamptz)
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_pg_info() IS
	'server version, system identifier and timeline as the stack looked them up';

CREATE FUNCTION electric_cm_exclusive_connection_lock_acquired() RETURNS bool
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_exclusive_connection_lock_acquired() IS
	'does this database''s stack hold its exclusive lock?';

CREATE FUNCTION electric_cm_report_retained_wal_size() RETURNS int8
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_report_retained_wal_size() IS
	'WAL retained by this stack''s slot, sampled now, in bytes; NULL without a slot';

CREATE FUNCTION electric_cm_retained_wal_plot(width int DEFAULT 60,
											  height int DEFAULT 12) RETURNS SETOF text
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT ROWS 16;
COMMENT ON FUNCTION electric_cm_retained_wal_plot(int, int) IS
	'draws the WAL retained by this stack''s slot over time';

CREATE FUNCTION electric_cm_await_flushed(lsn pg_lsn DEFAULT NULL,
										  timeout interval DEFAULT NULL) RETURNS pg_lsn
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_await_flushed(pg_lsn, interval) IS
	'waits until every transaction committed before the LSN is in the shape logs';

CREATE FUNCTION electric_cm_check(OUT name text, OUT verdict text,
								  OUT detail text, OUT fix text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT ROWS 25;
COMMENT ON FUNCTION electric_cm_check() IS
	'is everything there that this database''s stack needs, and if not, what mends it?';

CREATE FUNCTION electric_cm_health() RETURNS jsonb
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_health() IS
	'all that is worth knowing of this database''s stack, and whether it is well: ok, warning or error';

--
-- Control
--
CREATE FUNCTION electric_cm_start() RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_start() IS
	'starts this database''s stack; returns when its manager runs';

CREATE FUNCTION electric_cm_stop(drop_slot bool DEFAULT false) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_stop(bool) IS
	'stops this database''s stack until electric_cm_start(); returns when it is gone';

CREATE FUNCTION electric_cm_restart() RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_restart() IS
	'restarts this database''s stack; returns when the new manager runs';

CREATE FUNCTION electric_cm_prepare_upgrade() RETURNS pg_lsn
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_prepare_upgrade() IS
	'stops this database''s stack so that pg_upgrade finds nothing left to consume; returns where its slot is';

CREATE FUNCTION electric_cm_drop_replication_slot_on_stop(enable bool DEFAULT true) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_drop_replication_slot_on_stop(bool) IS
	'lets the end of this manager drop its replication slot and publication';

--
-- Shapes
--
CREATE FUNCTION electric_cm_create_shape(relation regclass,
										 where_clause text DEFAULT NULL,
										 columns text[] DEFAULT NULL,
										 params text[] DEFAULT NULL) RETURNS text
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_create_shape(regclass, text, text[], text[]) IS
	'declares a shape and returns its handle';

CREATE FUNCTION electric_cm_drop_shape(handle text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_drop_shape(text) IS
	'drops a shape and its log';

CREATE FUNCTION electric_cm_grant_shape(handle text, role text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_grant_shape(text, text) IS
	'lets a role read a shape as its owner does';

CREATE FUNCTION electric_cm_revoke_shape(handle text, role text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT;
COMMENT ON FUNCTION electric_cm_revoke_shape(text, text) IS
	'takes back what electric_cm_grant_shape() has granted';

CREATE FUNCTION electric_cm_resync(handle text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_resync(text) IS
	'compares a shape''s log, or all logs, with the tables, and mends what differs';

-- Rows of a function in FROM are all made before the first one is used.  These are made
-- one by one: the planner puts the body in place of the call.
CREATE FUNCTION _electric_cm.shape_log(handle text, after_offset electric_cm_offset, max_entries int,
									   OUT log_offset electric_cm_offset, OUT operation text,
									   OUT key text, OUT value jsonb,
									   OUT old_value jsonb, OUT xid int8)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_shape_log' LANGUAGE C VOLATILE ROWS 1000;

CREATE FUNCTION electric_cm_shape_log(handle text,
									  after_offset electric_cm_offset DEFAULT '-1',
									  max_entries int DEFAULT NULL,
									  OUT log_offset electric_cm_offset, OUT operation text,
									  OUT key text, OUT value jsonb,
									  OUT old_value jsonb, OUT xid int8)
	RETURNS SETOF record LANGUAGE sql STABLE ROWS 1000
BEGIN ATOMIC
	SELECT (e.entry).log_offset, (e.entry).operation, (e.entry).key, (e.entry).value,
		   (e.entry).old_value, (e.entry).xid
	FROM (SELECT _electric_cm.shape_log(handle, after_offset, max_entries) AS entry) e;
END;
COMMENT ON FUNCTION electric_cm_shape_log(text, electric_cm_offset, int) IS
	'entries of a shape''s log after an offset, in order';

CREATE FUNCTION _electric_cm.shape_logs(handles text[], after_offsets electric_cm_offset[],
										max_entries int,
										OUT handle text, OUT log_offset electric_cm_offset,
										OUT operation text, OUT key text, OUT value jsonb,
										OUT old_value jsonb, OUT xid xid8)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_shape_logs' LANGUAGE C VOLATILE ROWS 1000;

CREATE FUNCTION electric_cm_shape_logs(handles text[],
									   after_offsets electric_cm_offset[],
									   max_entries int DEFAULT 10000,
									   OUT handle text, OUT log_offset electric_cm_offset,
									   OUT operation text, OUT key text, OUT value jsonb,
									   OUT old_value jsonb, OUT xid xid8)
	RETURNS SETOF record LANGUAGE sql STABLE ROWS 1000
BEGIN ATOMIC
	SELECT (e.entry).handle, (e.entry).log_offset, (e.entry).operation, (e.entry).key,
		   (e.entry).value, (e.entry).old_value, (e.entry).xid
	FROM (SELECT _electric_cm.shape_logs(handles, after_offsets, max_entries) AS entry) e;
END;
COMMENT ON FUNCTION electric_cm_shape_logs(text[], electric_cm_offset[], int) IS
	'entries of many shapes'' logs, each after an offset, in the order of the stream';

CREATE FUNCTION electric_cm_create_reader(name text, handles text[]) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_create_reader(text, text[]) IS
	'creates a named reader of shapes, whose position the server keeps';

CREATE FUNCTION electric_cm_alter_reader(name text, add_handles text[] DEFAULT NULL,
										 drop_handles text[] DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_alter_reader(text, text[], text[]) IS
	'adds shapes to a named reader, and drops others from it';

CREATE FUNCTION electric_cm_drop_reader(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_drop_reader(text) IS
	'drops a named reader';

CREATE FUNCTION _electric_cm.read(name text, max_entries int,
								  OUT handle text, OUT log_offset electric_cm_offset,
								  OUT operation text, OUT key text, OUT value jsonb,
								  OUT old_value jsonb, OUT xid xid8)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_read' LANGUAGE C VOLATILE ROWS 1000;

CREATE FUNCTION electric_cm_read(name text, max_entries int DEFAULT 10000,
								 OUT handle text, OUT log_offset electric_cm_offset,
								 OUT operation text, OUT key text, OUT value jsonb,
								 OUT old_value jsonb, OUT xid xid8)
	RETURNS SETOF record LANGUAGE sql STABLE ROWS 1000
BEGIN ATOMIC
	SELECT (e.entry).handle, (e.entry).log_offset, (e.entry).operation, (e.entry).key,
		   (e.entry).value, (e.entry).old_value, (e.entry).xid
	FROM (SELECT _electric_cm.read(name, max_entries) AS entry) e;
END;
COMMENT ON FUNCTION electric_cm_read(text, int) IS
	'entries that a named reader has not acknowledged, in the order of the stream';

CREATE FUNCTION electric_cm_ack(name text, log_offset electric_cm_offset,
								handle text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION electric_cm_ack(text, electric_cm_offset, text) IS
	'acknowledges what a named reader has read, up to a row, in this transaction';

CREATE PROCEDURE electric_cm_await(handles text[], after_offsets electric_cm_offset[],
								   timeout interval DEFAULT '20 s',
								   INOUT ready text[] DEFAULT NULL)
	AS 'MODULE_PATHNAME', 'electric_cm_await' LANGUAGE C;
COMMENT ON PROCEDURE electric_cm_await(text[], electric_cm_offset[], interval, text[]) IS
	'waits until one of the shapes has entries after its offset, or has ended';

CREATE FUNCTION electric_cm_await_shape_log(handle text,
											after_offset electric_cm_offset,
											timeout interval DEFAULT '20 s',
											max_entries int DEFAULT NULL,
											OUT log_offset electric_cm_offset, OUT operation text,
											OUT key text, OUT value jsonb,
											OUT old_value jsonb, OUT xid int8)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE ROWS 100;
COMMENT ON FUNCTION electric_cm_await_shape_log(text, electric_cm_offset, interval, int) IS
	'entries of a shape''s log after an offset, as soon as there are any';

--
-- Rows as rows
--
CREATE FUNCTION electric_cm_shape_columns(handle text)
	RETURNS TABLE (ordinal int, name text, type regtype, typmod int, key_position int, not_null bool)
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE ROWS 10;
COMMENT ON FUNCTION electric_cm_shape_columns(text) IS
	'columns that a shape''s rows have, and their types';

CREATE FUNCTION electric_cm_row(base anyelement, value jsonb) RETURNS anyelement
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE;
COMMENT ON FUNCTION electric_cm_row(anyelement, jsonb) IS
	'a row of base''s type, with the values of an entry''s value';

CREATE FUNCTION _electric_cm.merge(state jsonb, operation text, value jsonb) RETURNS jsonb
	AS 'MODULE_PATHNAME', 'electric_cm_merge' LANGUAGE C IMMUTABLE PARALLEL SAFE;
CREATE AGGREGATE _electric_cm.merged(operation text, value jsonb)
	(sfunc = _electric_cm.merge, stype = jsonb);

-- Entries come in their order.  (Of an order by offsets pg_dump does not know that the body
-- needs their operator class, and it may come after it.)
CREATE FUNCTION _electric_cm.replayed(handle text) RETURNS SETOF jsonb LANGUAGE sql STABLE
BEGIN ATOMIC
	SELECT r.value
	FROM (SELECT _electric_cm.merged(e.operation, e.value ORDER BY e.n) AS value
		  FROM (SELECT pg_catalog.row_number() OVER () AS n, e.operation, e.key, e.value
				FROM electric_cm_shape_log(handle) e) e GROUP BY e.key) r
	WHERE r.value IS NOT NULL;
END;
CREATE FUNCTION electric_cm_replay(base anyelement, handle text) RETURNS SETOF anyelement
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE ROWS 1000;
COMMENT ON FUNCTION electric_cm_replay(anyelement, text) IS
	'the rows that a shape''s log leads to';

--
-- Internal functions: called by the stack's own sessions
--
CREATE FUNCTION _electric_cm.register() RETURNS void
	AS 'MODULE_PATHNAME', 'electric_cm_register' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.tune_walsender() RETURNS void
	AS 'MODULE_PATHNAME', 'electric_cm_tune_walsender' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.own_publication(name name) RETURNS void
	AS 'MODULE_PATHNAME', 'electric_cm_own_publication' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.publish_table(relation oid, shapes int8[]) RETURNS bool
	AS 'MODULE_PATHNAME', 'electric_cm_publish_table' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.unpublish_tables() RETURNS bool
	AS 'MODULE_PATHNAME', 'electric_cm_unpublish_tables' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.capture_shapes(number int8, relation oid, shapes int8[],
											OUT shape int8, OUT generation int4,
											OUT action text, OUT shape_relation oid,
											OUT xid xid)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_capture_shapes' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.assign_shapes(workers int4) RETURNS bool
	AS 'MODULE_PATHNAME', 'electric_cm_assign_shapes' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.check_runs(slot_name name) RETURNS bool
	AS 'MODULE_PATHNAME', 'electric_cm_check_runs' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.resync_all(reason text) RETURNS int4
	AS 'MODULE_PATHNAME', 'electric_cm_resync_all' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.verify_all() RETURNS void
	AS 'MODULE_PATHNAME', 'electric_cm_verify_all' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.delete_gone() RETURNS bool
	AS 'MODULE_PATHNAME', 'electric_cm_delete_gone' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.expire_shapes(expiry int4) RETURNS int4
	AS 'MODULE_PATHNAME', 'electric_cm_expire_shapes' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.invalidate_ownerless() RETURNS int4
	AS 'MODULE_PATHNAME', 'electric_cm_invalidate_ownerless' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.purge_shapes(shapes int8[], max_chunks int4, max_wal int8,
										  OUT done int4, OUT postponed int8[])
	AS 'MODULE_PATHNAME', 'electric_cm_purge_shapes' LANGUAGE C VOLATILE STRICT;

CREATE PROCEDURE _electric_cm.fold_shape(shape int8, retention int8,
										 OUT more bool, OUT report text)
	AS 'MODULE_PATHNAME', 'electric_cm_fold_shape' LANGUAGE C;

CREATE FUNCTION _electric_cm.take_snapshot(shapes int8[], generations int4[],
										   last_attempt bool, max_bytes int8,
										   OUT done int8[], OUT reading int8,
										   OUT members int8[])
	AS 'MODULE_PATHNAME', 'electric_cm_take_snapshot' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.read_piece(reading int8, attempt int4, last_attempt bool,
										max_bytes int8, may_keep bool,
										OUT state text, OUT xid xid, OUT logs int8)
	AS 'MODULE_PATHNAME', 'electric_cm_read_piece' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.finish_reading(reading int8, attempt int4, last_attempt bool,
											OUT state text, OUT xid xid)
	AS 'MODULE_PATHNAME', 'electric_cm_finish_reading' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.delete_readings() RETURNS bool
	AS 'MODULE_PATHNAME', 'electric_cm_delete_readings' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.shape_log_stats(shape int8, gap_lsn pg_lsn,
											 OUT log_entries int8,
											 OUT log_bytes int8, OUT last_offset electric_cm_offset,
											 OUT last_read_at timestamptz)
	AS 'MODULE_PATHNAME', 'electric_cm_shape_log_stats' LANGUAGE C VOLATILE;

CREATE FUNCTION _electric_cm.reader_stats(reader int8, OUT lag_bytes int8, OUT lag interval,
										  OUT last_read_at timestamptz)
	AS 'MODULE_PATHNAME', 'electric_cm_reader_stats' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.offset(lsn pg_lsn, op int8) RETURNS electric_cm_offset
	AS 'MODULE_PATHNAME', 'electric_cm_make_offset' LANGUAGE C IMMUTABLE STRICT;

CREATE FUNCTION _electric_cm.stat_manager(
		OUT datid oid, OUT datname name, OUT stack_id text, OUT pid int4,
		OUT status text, OUT phase text, OUT step text,
		OUT status_since timestamptz, OUT waiting_for text,
		OUT last_error text, OUT last_error_sqlstate text,
		OUT last_error_at timestamptz, OUT retry_count int4,
		OUT next_retry_at timestamptz, OUT total_retry_time interval,
		OUT restarts int4)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_stat_manager' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.stat_connections(
		OUT datname name, OUT role text, OUT ordinal int4, OUT state text,
		OUT backend_pid int4, OUT ssl bool, OUT address text,
		OUT connected_since timestamptz, OUT last_error text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_stat_connections' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.stat_replication(
		OUT datname name, OUT slot_name name, OUT publication_name name,
		OUT active bool, OUT active_pid int4, OUT wal_status text,
		OUT restart_lsn pg_lsn, OUT confirmed_flush_lsn pg_lsn,
		OUT received_lsn pg_lsn, OUT flushed_lsn pg_lsn,
		OUT current_lsn pg_lsn, OUT retained_wal_bytes int8,
		OUT flush_lag_bytes int8, OUT safe_wal_size int8,
		OUT wal_bytes_per_second int8, OUT wal_free_bytes int8,
		OUT time_to_limit interval, OUT catalog_xmin_age int4,
		OUT last_commit_at timestamptz, OUT flush_lag interval,
		OUT pinned_by text, OUT pinned_since timestamptz,
		OUT sampled_at timestamptz, OUT stats_reset timestamptz,
		OUT spill_txns int8, OUT spill_bytes int8,
		OUT stream_txns int8, OUT stream_bytes int8,
		OUT total_txns int8, OUT total_bytes int8,
		OUT shape_log_bytes int8, OUT data_free_bytes int8)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_stat_replication' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.retained_wal_history(
		OUT datname name, OUT sampled_at timestamptz,
		OUT retained_wal_bytes int8, OUT flush_lag_bytes int8,
		OUT wal_status text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_retained_wal_history' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.slots(
		OUT slot_name name, OUT slot_type text, OUT plugin name,
		OUT datname name, OUT ours bool, OUT temporary bool,
		OUT active bool, OUT active_pid int4, OUT inactive_since timestamptz,
		OUT wal_status text, OUT invalidation_reason text, OUT restart_lsn pg_lsn,
		OUT confirmed_flush_lsn pg_lsn, OUT retained_wal_bytes int8,
		OUT safe_wal_size int8, OUT xmin_age int4, OUT catalog_xmin_age int4,
		OUT verdict text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_slots' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.stat_consumers(
		OUT datname name, OUT worker int4, OUT pid int4, OUT shapes int4,
		OUT received_lsn pg_lsn, OUT flushed_lsn pg_lsn,
		OUT transactions int8, OUT changes int8, OUT matched_changes int8,
		OUT last_progress_at timestamptz, OUT restarts int4)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_stat_consumers' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.stat_waiters(
		OUT datname name, OUT sessions int4, OUT shapes int4)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_stat_waiters' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.deliver_events() RETURNS void
	AS 'MODULE_PATHNAME', 'electric_cm_deliver_events' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.events(
		OUT datname name, OUT occurred_at timestamptz, OUT event text,
		OUT severity text, OUT message text, OUT detail text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_events' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.options(
		OUT datname name, OUT name text, OUT setting text, OUT source text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'electric_cm_options' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.shape_error(shape int8, last_error text) RETURNS text
	AS 'MODULE_PATHNAME', 'electric_cm_shape_error' LANGUAGE C VOLATILE STRICT;

CREATE FUNCTION _electric_cm.shape_waiting_for(shape int8, relation oid) RETURNS text
	AS 'MODULE_PATHNAME', 'electric_cm_shape_waiting_for' LANGUAGE C VOLATILE STRICT;

--
-- Views
--
CREATE VIEW electric_cm_stat_manager AS SELECT * FROM _electric_cm.stat_manager();
CREATE VIEW electric_cm_stat_connections AS SELECT * FROM _electric_cm.stat_connections();
CREATE VIEW electric_cm_stat_replication AS SELECT * FROM _electric_cm.stat_replication();
CREATE VIEW electric_cm_retained_wal_history AS SELECT * FROM _electric_cm.retained_wal_history();
CREATE VIEW electric_cm_slots AS SELECT * FROM _electric_cm.slots();

-- A standby says what it has replayed; a receiver of WAL for an archive does not.
-- No column of the server's views is named that not all versions have, nor are all
-- of them: pg_upgrade would bring along those of the old version.
CREATE VIEW electric_cm_stat_standby AS
	SELECT s.standby, s.slot_name, s.state, s.connected, s.since,
		   greatest(pg_catalog.pg_wal_lsn_diff(e.lsn, coalesce(s.flush_lsn, s.restart_lsn)), 0)::int8 AS flush_lag_bytes,
		   s.synchronized,
		   s.synchronized AND coalesce(s.restart_lsn < e.lsn, true)
				AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
							WHERE a.pid = o.active_pid AND a.wait_event = 'WaitForStandbyConfirmation') AS waited_for,
		   r.reason IS NULL AS failover_ready,
		   r.reason
	FROM (SELECT w.application_name AS standby, s.slot_name, w.state, coalesce(w.follows, false) AS connected,
				 CASE WHEN w.pid IS NULL THEN s.inactive_since ELSE w.backend_start END AS since,
				 coalesce(s.named, false) AS synchronized, s.found, s.restart_lsn, w.flush_lsn,
				 coalesce(s.xmin, w.backend_xmin) IS NOT NULL AS feedback,
				 s.catalog_xmin IS NOT NULL AS keeps_slots
		  FROM (SELECT coalesce(p.slot_name, n.slot_name) AS slot_name, n.slot_name IS NOT NULL AS named,
					   p.slot_name IS NOT NULL AS found, p.active_pid, p.restart_lsn, p.xmin, p.catalog_xmin,
					   p.inactive_since
				FROM (SELECT r.slot_name, r.active_pid, r.restart_lsn, r.xmin, r.catalog_xmin,
							 (pg_catalog.to_jsonb(r) ->> 'inactive_since')::timestamptz AS inactive_since
					  FROM pg_catalog.pg_replication_slots r
					  WHERE r.slot_type = 'physical' AND NOT r.temporary) p
					 FULL JOIN (SELECT DISTINCT pg_catalog.btrim(n, ' "')::name AS slot_name
								FROM pg_catalog.unnest(pg_catalog.string_to_array(
										pg_catalog.current_setting('synchronized_standby_slots', true), ',')) n
								WHERE pg_catalog.btrim(n, ' "') <> '') n
						ON n.slot_name = p.slot_name) s
			   FULL JOIN (SELECT w.pid, w.application_name, w.state, w.flush_lsn, w.backend_start, w.backend_xmin,
								 w.state IN ('streaming', 'catchup') AND w.replay_lsn IS NOT NULL AS follows
						  FROM pg_catalog.pg_stat_replication w
						  WHERE w.application_name <> 'electric_cm replication'
							AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots l
											WHERE l.active_pid = w.pid AND l.slot_type = 'logical')) w
				ON w.pid = s.active_pid
		  WHERE s.named OR w.follows OR (s.active_pid IS NULL AND s.xmin IS NOT NULL)) s
		 LEFT JOIN (SELECT l.confirmed_flush_lsn, l.active_pid, l.wal_status,
						   (pg_catalog.to_jsonb(l) ->> 'failover')::bool AS failover
					FROM _electric_cm.stat_replication() t
						 JOIN pg_catalog.pg_replication_slots l ON l.slot_name = t.slot_name
					WHERE t.datname = pg_catalog.current_database()) o ON true
		 CROSS JOIN LATERAL (SELECT CASE WHEN pg_catalog.pg_is_in_recovery()
										 THEN pg_catalog.pg_last_wal_receive_lsn()
										 ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn) e
		 CROSS JOIN LATERAL (SELECT CASE
				WHEN pg_catalog.current_setting('server_version_num')::int < 170000
				THEN 'slots are kept in step from PostgreSQL 17 on'
				WHEN pg_catalog.pg_is_in_recovery() THEN 'a standby of a standby keeps no slot in step'
				WHEN o.wal_status IS NULL THEN 'the stack has no replication slot yet'
				WHEN o.wal_status = 'lost' THEN 'the stack''s replication slot is lost'
				WHEN NOT o.failover THEN 'the stack''s replication slot is not one that standbys keep in step'
				WHEN s.slot_name IS NULL THEN 'it has no replication slot on this server: primary_slot_name is empty there'
				WHEN NOT s.found THEN pg_catalog.format('replication slot "%s" does not exist', s.slot_name)
				WHEN NOT s.connected THEN 'it is not connected'
				WHEN NOT s.feedback THEN 'hot_standby_feedback is off there'
				WHEN NOT s.keeps_slots THEN 'it keeps no slot in step: sync_replication_slots is off there, or it has just come'
				WHEN s.flush_lsn < o.confirmed_flush_lsn
				THEN pg_catalog.format('it has flushed WAL up to %s, and the stack''s replication slot is at %s',
									   s.flush_lsn, o.confirmed_flush_lsn)
				END AS reason) r;

CREATE VIEW electric_cm_stat_consumers AS SELECT * FROM _electric_cm.stat_consumers();
CREATE VIEW electric_cm_stat_waiters AS SELECT * FROM _electric_cm.stat_waiters();
CREATE VIEW electric_cm_events AS SELECT * FROM _electric_cm.events();
CREATE VIEW electric_cm_options AS SELECT * FROM _electric_cm.options();

-- Each sees his own, and what is shared with him; who watches the server sees all.
CREATE VIEW electric_cm_shapes AS
	SELECT s.handle,
		   pg_catalog.pg_get_userbyid(s.owner) AS owner,
		   s.relation::regclass AS relation,
		   s.where_clause,
		   s.requested_columns AS columns,
		   CASE WHEN t.state IN ('live', 'errored') THEN t.state
				WHEN t.gap_lsn IS NOT NULL THEN 'resyncing'
				ELSE 'creating' END AS state,
		   CASE WHEN t.state IN ('live', 'errored') THEN NULL
				ELSE coalesce(_electric_cm.shape_waiting_for(s.id, s.relation),
							  CASE WHEN s.snapshot_generation = s.generation AND t.generation = s.generation
								   THEN 'the consumer, to come to the snapshot in the stream'
								   WHEN t.gap_lsn IS NOT NULL
								   THEN 'its turn to be compared with the table'
								   ELSE 'the manager, to come to the shape''s creation in the stream' END)
				END AS waiting_for,
		   s.created_at,
		   s.snapshot_rows,
		   l.log_entries,
		   l.log_bytes,
		   -- before that, not all of what is stored will stay
		   CASE WHEN t.state IN ('live', 'errored') OR t.gap_lsn IS NOT NULL
				THEN l.last_offset END AS last_offset,
		   l.last_read_at,
		   _electric_cm.shape_error(s.id, t.last_error) AS last_error
	FROM _electric_cm.shape s
		 LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id,
		 LATERAL _electric_cm.shape_log_stats(s.id, t.gap_lsn) l
	WHERE t.state IS DISTINCT FROM 'gone'
		AND NOT EXISTS (SELECT FROM _electric_cm.lost_shape x WHERE x.shape = s.id)
		AND (pg_catalog.pg_has_role('pg_monitor', 'USAGE') OR pg_catalog.pg_has_role(s.owner, 'USAGE')
			 OR EXISTS (SELECT FROM _electric_cm.shape_grant g
						WHERE g.shape = s.id AND (g.role = 0 OR pg_catalog.pg_has_role(g.role, 'USAGE'))));
ALTER VIEW electric_cm_shapes SET (security_barrier = true);

-- Each sees his own; who watches the server sees all.
CREATE VIEW electric_cm_stat_progress AS
	SELECT pg_catalog.current_database() AS datname,
		   s.handle,
		   s.relation::regclass AS relation,
		   CASE WHEN t.gap_lsn IS NULL THEN 'create' ELSE 'resync' END AS command,
		   CASE WHEN (s.snapshot_generation = s.generation AND t.generation = s.generation) OR p.complete THEN 'settling'
				WHEN r.id IS NOT NULL THEN 'reading'
				ELSE 'preparing' END AS phase,
		   p.scanned AS rows_done,
		   greatest(r.total_rows, p.scanned) AS rows_total,
		   (SELECT l.total_bytes FROM _electric_cm.shape_log l
			WHERE l.shape = s.id AND l.first_lsn = '0/0'
			ORDER BY l.first_lsn DESC, l.first_op DESC LIMIT 1) AS bytes_done,
		   p.pieces,
		   r.began_at AS started_at,
		   CASE WHEN NOT p.complete AND p.scanned > 0
				THEN pg_catalog.date_trunc('milliseconds', (pg_catalog.clock_timestamp() - r.began_at)
					* (greatest(r.total_rows - p.scanned, 0)::float8 / p.scanned::float8)) END AS remaining
	FROM _electric_cm.shape s
		 LEFT JOIN _electric_cm.shape_state t ON t.shape = s.id
		 LEFT JOIN _electric_cm.reading r ON r.id = s.reading
		 LEFT JOIN LATERAL (SELECT pg_catalog.count(*) AS pieces,
								   coalesce(pg_catalog.sum(scanned), 0)::int8 AS scanned,
								   coalesce(pg_catalog.bool_or(upto IS NULL), false) AS complete
							FROM _electric_cm.reading_piece WHERE reading = r.id) p ON r.id IS NOT NULL
	WHERE coalesce(t.state, 'capturing') = 'capturing'
		AND NOT EXISTS (SELECT FROM _electric_cm.lost_shape x WHERE x.shape = s.id)
		AND (pg_catalog.pg_has_role(s.owner, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'));
ALTER VIEW electric_cm_stat_progress SET (security_barrier = true);

-- Likewise.
CREATE VIEW electric_cm_stat_readers AS
	SELECT r.name,
		   pg_catalog.pg_get_userbyid(r.owner) AS owner,
		   s.shapes,
		   _electric_cm.offset(r.lsn, r.op) AS acknowledged,
		   l.lag_bytes,
		   l.lag,
		   l.last_read_at,
		   CASE WHEN s.lost > 0 THEN 'lost'
				WHEN s.ended > 0 THEN 'ended'
				WHEN s.initial > 0 THEN 'initial'
				WHEN l.lag_bytes > 0 THEN 'behind'
				ELSE 'current' END AS state
	FROM _electric_cm.reader r
		 CROSS JOIN LATERAL (SELECT pg_catalog.count(*) AS shapes,
									pg_catalog.count(x.member) AS lost,
									pg_catalog.count(*) FILTER (WHERE d.id IS NULL OR t.state IN ('errored', 'gone')) AS ended,
									pg_catalog.count(*) FILTER (WHERE m.initial) AS initial
							 FROM _electric_cm.reader_shape m
								  LEFT JOIN _electric_cm.shape d ON d.id = m.shape
								  LEFT JOIN _electric_cm.shape_state t ON t.shape = m.shape
								  LEFT JOIN _electric_cm.reader_lost x ON x.member = m.id
							 WHERE m.reader = r.id) s
		 CROSS JOIN LATERAL _electric_cm.reader_stats(r.id) l
	WHERE pg_catalog.pg_has_role(r.owner, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
ALTER VIEW electric_cm_stat_readers SET (security_barrier = true);

--
-- Privileges: control is the superuser's until granted, watching is
-- pg_monitor's, reading a shape is open because each read checks the owner.
--
REVOKE ALL ON ALL ROUTINES IN SCHEMA _electric_cm FROM PUBLIC;
REVOKE ALL ON FUNCTION
	electric_cm_status(), electric_cm_await_active(interval),
	electric_cm_pg_version(), electric_cm_pg_info(),
	electric_cm_exclusive_connection_lock_acquired(),
	electric_cm_report_retained_wal_size(),
	electric_cm_retained_wal_plot(int, int),
	electric_cm_await_flushed(pg_lsn, interval), electric_cm_check(),
	electric_cm_health(),
	electric_cm_start(), electric_cm_stop(bool), electric_cm_restart(),
	electric_cm_prepare_upgrade(),
	electric_cm_drop_replication_slot_on_stop(bool),
	electric_cm_create_shape(regclass, text, text[], text[]),
	electric_cm_drop_shape(text), electric_cm_resync(text),
	electric_cm_create_reader(text, text[])
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
	electric_cm_status(), electric_cm_await_active(interval),
	electric_cm_pg_version(), electric_cm_pg_info(),
	electric_cm_exclusive_connection_lock_acquired(),
	electric_cm_report_retained_wal_size(),
	electric_cm_retained_wal_plot(int, int),
	electric_cm_await_flushed(pg_lsn, interval), electric_cm_check(),
	electric_cm_health(),
	_electric_cm.stat_manager(), _electric_cm.stat_connections(),
	_electric_cm.stat_replication(), _electric_cm.stat_consumers(), _electric_cm.stat_waiters(),
	_electric_cm.retained_wal_history(), _electric_cm.slots(),
	_electric_cm.events(), _electric_cm.options()
	TO pg_monitor;
GRANT SELECT ON
	electric_cm_stat_manager, electric_cm_stat_connections,
	electric_cm_stat_replication, electric_cm_stat_consumers, electric_cm_stat_waiters,
	electric_cm_retained_wal_history, electric_cm_slots,
	electric_cm_stat_standby, electric_cm_events, electric_cm_options
	TO pg_monitor;
GRANT SELECT ON electric_cm_shapes, electric_cm_stat_progress, electric_cm_stat_readers TO PUBLIC;
GRANT EXECUTE ON FUNCTION
	_electric_cm.read(text, int), _electric_cm.reader_stats(int8),
	_electric_cm.offset(pg_lsn, int8),
	_electric_cm.shape_log(text, electric_cm_offset, int),
	_electric_cm.shape_logs(text[], electric_cm_offset[], int),
	_electric_cm.shape_waiting_for(int8, oid), _electric_cm.shape_log_stats(int8, pg_lsn),
	_electric_cm.shape_error(int8, text)
	TO PUBLIC;

--
-- Nobody's slot is to send what happens in our tables: a subscriber to a
-- publication FOR ALL TABLES does not have them, and could not go on.  Output
-- plugins are not shown the changes of a heap that is somebody's rewrite,
-- unless they ask for them, so each table is called its own.
--
CREATE FUNCTION _electric_cm.hide_from_decoding() RETURNS void
	LANGUAGE sql SET search_path = pg_catalog, pg_temp
	AS $$ UPDATE pg_class c SET relrewrite = c.oid
		WHERE relrewrite = 0 AND relkind IN ('r', 't') AND
			(relnamespace = '_electric_cm'::regnamespace OR c.oid IN (SELECT reltoastrelid
				FROM pg_class WHERE relnamespace = '_electric_cm'::regnamespace)) $$;
REVOKE ALL ON FUNCTION _electric_cm.hide_from_decoding() FROM PUBLIC;
SELECT _electric_cm.hide_from_decoding();

--
-- What pg_upgrade does not take along: that our tables are hidden from decoding;
-- that the publication belongs to the extension; and OIDs.  It keeps those of
-- tables, roles, and users' types, but publications, their members and
-- collations get others, and so do types of the information schema (what the
-- server gives an OID of its own has one from 12000 on, below 16384).
--
CREATE FUNCTION _electric_cm.restore_after_upgrade() RETURNS void
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	added oid[];
	agreed oid[];
BEGIN
	PERFORM _electric_cm.hide_from_decoding();

	PERFORM _electric_cm.own_publication(p.pubname)
		FROM pg_publication p JOIN _electric_cm.stack s ON p.pubname = s.publication_name;
	added := ARRAY(SELECT relation FROM _electric_cm.published_table WHERE member <> 0);
	agreed := ARRAY(SELECT DISTINCT relation FROM _electric_cm.published_table);
	DELETE FROM _electric_cm.published_table;
	INSERT INTO _electric_cm.published_table
		SELECT t.relation, p.oid, coalesce(r.oid, 0)
		FROM unnest(agreed) t (relation)
			JOIN pg_class c ON c.oid = t.relation
			JOIN _electric_cm.stack s ON true
			JOIN pg_publication p ON p.pubname = s.followed_publication
			LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = t.relation AND t.relation = ANY (added);

	UPDATE _electric_cm.shape s SET where_collations = w.collations
	FROM (SELECT c.id, array_agg(CASE WHEN c.was >= 12000 THEN coalesce(a.attcollation, c.was)
									  ELSE c.was END ORDER BY c.n) AS collations
		  FROM (SELECT id, relation, n, name, was
				FROM _electric_cm.shape, unnest(where_names, where_collations) WITH ORDINALITY w (name, was, n)) c
			   LEFT JOIN pg_attribute a ON a.attrelid = c.relation AND a.attname = c.name AND NOT a.attisdropped
		  GROUP BY c.id) w
	WHERE s.id = w.id AND s.where_collations <> w.collations;

	UPDATE _electric_cm.shape s SET column_types = w.types
	FROM (SELECT c.id, array_agg(CASE WHEN c.was BETWEEN 12000 AND 16383 THEN coalesce(a.atttypid, c.was)
									  ELSE c.was END ORDER BY c.n) AS types
		  FROM (SELECT id, relation, n, name, was
				FROM _electric_cm.shape, unnest(column_names, column_types) WITH ORDINALITY w (name, was, n)) c
			   LEFT JOIN pg_attribute a ON a.attrelid = c.relation AND a.attname = c.name AND NOT a.attisdropped
		  GROUP BY c.id) w
	WHERE s.id = w.id AND s.column_types <> w.types;
END $$;
REVOKE ALL ON FUNCTION _electric_cm.restore_after_upgrade() FROM PUBLIC;

--
-- This database has a stack from now on: the launcher is woken at commit, or
-- at the session's end if this is a restore.
--
INSERT INTO _electric_cm.stack (database_oid)
	SELECT oid FROM pg_catalog.pg_database
	WHERE datname = pg_catalog.current_database();
SELECT _electric_cm.register();
