#!/usr/bin/env python3
"""Feed a queue, and a copy, from three tables: each change exactly once, whoever kills this.

It reads by a named reader, whose position the server keeps, and writes in the same database:
what it writes and what it has read are committed together.  Transactions of the source stay
whole, in their order, so that foreign keys hold in the copy as well.
"""
import json
import os
import psycopg2

READER, PAGE = 'queue', 10000
TABLES = ('customer', 'purchase', 'item')

db = psycopg2.connect('')
cur = db.cursor()


def value(sql, *args):
    cur.execute(sql, args)
    return cur.fetchone()[0]


def set_up():
    """The shapes, in the order in which their first rows are to come; then the reader."""
    handles = {value('SELECT electric_cm_create_shape(%s)', table): table for table in TABLES}
    if not value('SELECT count(*) FROM electric_cm_stat_readers WHERE name = %s', READER):
        value('SELECT electric_cm_create_reader(%s, %s)', READER, list(handles))
    db.commit()
    return handles


def apply(handle, operation, key, row):
    """One entry: into the queue, and to the copy."""
    table = handles[handle]
    cur.execute('INSERT INTO queue (relation, operation, value) VALUES (%s, %s, %s)',
                (table, operation, json.dumps(row)))
    if operation == 'insert':
        cur.execute(f'INSERT INTO copy.{table} SELECT (electric_cm_row(NULL::copy.{table}, %s)).*',
                    (json.dumps(row),))
    elif operation == 'update':
        cur.execute(f'''UPDATE copy.{table} t SET (id, note) =
                        (SELECT r.id, r.note FROM electric_cm_row(t, %s) r) WHERE id = %s''',
                    (json.dumps(row), row['id']))
    else:
        cur.execute(f'DELETE FROM copy.{table} WHERE id = %s', (row['id'],))


def read_page():
    """Apply a page and acknowledge it; its last row, None if there was nothing."""
    last = None
    cur.execute('''SELECT handle, log_offset, operation, key, coalesce(value, old_value)
                   FROM electric_cm_read(%s, %s)''', (READER, PAGE))
    for handle, offset, operation, key, row in cur.fetchall():
        if operation == 'ended':                # the shape is gone, errored, or lost
            raise SystemExit(f'{handles.get(handle, handle)}: {row}')
        if operation in ('insert', 'update', 'delete'):
            apply(handle, operation, key, row)
        last = (handle, offset, operation)
    if last:
        cur.execute('SELECT electric_cm_ack(%s, %s, %s)', (READER, last[1], last[0]))
    return last


handles = set_up()
print('feeder', os.getpid(), flush=True)
while True:
    # Nothing is committed before all has come that there was: the first rows of one table are
    # as of another moment than those of the next one, and what follows brings them to one.
    last = read_page()
    while last and not (last[2] == 'up-to-date' and last[0] is None):
        last = read_page()
    db.commit()
    if last:
        db.autocommit = True                    # no snapshot is held while this waits
        cur.execute("CALL electric_cm_await(%s, %s::electric_cm_offset[], '20 s')",
                    (list(handles), [last[1]] * len(handles)))
        db.autocommit = False
