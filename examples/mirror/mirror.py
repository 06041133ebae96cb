#!/usr/bin/env python3
"""Keep a copy of table item in a local SQLite file.  May be killed at any time."""
import json, sqlite3, time
import psycopg2
from psycopg2 import errors

TABLE, PAGE = 'item', 10000
copy = sqlite3.connect('copy.db', isolation_level=None)
copy.executescript('''CREATE TABLE IF NOT EXISTS position (handle TEXT, log_offset TEXT);
                      CREATE TABLE IF NOT EXISTS row (key TEXT PRIMARY KEY, value TEXT);''')
pg = psycopg2.connect('')
pg.autocommit = True                    # one transaction per statement: needed to wait
cur = pg.cursor()

def start_over(handle):
    copy.executescript('BEGIN; DELETE FROM row; DELETE FROM position;')
    copy.execute('INSERT INTO position VALUES (?, ?)', (handle, '-1'))
    copy.execute('COMMIT')
    return handle, '-1'

def create():
    cur.execute('SELECT electric_cm_create_shape(%s)', (TABLE,))
    return cur.fetchone()[0]

handle, offset = copy.execute('SELECT * FROM position').fetchone() or start_over(create())
while True:
    try:
        cur.execute('''SELECT log_offset, operation, key, value FROM
                       electric_cm_await_shape_log(%s, %s, '20 s', %s)''', (handle, offset, PAGE))
        page = cur.fetchall()
    except errors.UndefinedObject:      # 42704: the shape is gone
        handle, offset = start_over(create())
        continue
    except psycopg2.Error as e:
        if e.pgcode == 'EC001':         # the offset is not in this log: read it again
            handle, offset = start_over(handle)
        elif e.pgcode in ('55000', '57014'):    # not now: the stack restarts, say
            print('waiting:', str(e).splitlines()[0]); time.sleep(1)
        else:
            raise
        continue
    if not page:
        continue                        # 20 s without a change
    copy.execute('BEGIN')               # rows and position together: exactly once
    for offset, operation, key, value in page:
        if operation == 'delete':
            copy.execute('DELETE FROM row WHERE key = ?', (key,))
        else:                           # an update may lack large values: merge
            old = copy.execute('SELECT value FROM row WHERE key = ?', (key,)).fetchone()
            if operation == 'update' and old:
                value = {**json.loads(old[0]), **value}
            copy.execute('INSERT OR REPLACE INTO row VALUES (?, ?)', (key, json.dumps(value)))
    copy.execute('UPDATE position SET log_offset = ?', (offset,))
    copy.execute('COMMIT')
    print(len(page), 'entries, up to', offset, flush=True)
