// The gateway, tried by Electric's own client, and by a browser: node --test test.mjs
//
// It needs a server with an active stack, by libpq's environment variables, that it may do
// anything with; RESTART is a command that restarts it.
import assert from 'node:assert/strict'
import { execSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createServer } from 'node:net'
import { after, before, test } from 'node:test'
import { FetchError, Shape, ShapeStream } from '@electric-sql/client'
import pg from 'pg'

const sleep = (ms) => new Promise((done) => setTimeout(done, ms))
async function until(what, condition, seconds = 30) {
  for (const end = Date.now() + seconds * 1000; !(await condition()); await sleep(20))
    if (Date.now() > end) assert.fail(`gave up waiting for ${what}`)
}

// ----------------------------------------------------------- what is run --

const pool = new pg.Pool({ max: 4 }).on('error', () => {})
const sql = async (text, values) => (await pool.query(text, values)).rows
const flushed = () => sql('SELECT electric_cm_await_flushed()')

let gateway, url, port
const freePort = () =>
  new Promise((done) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address()
      server.close(() => done(port))
    })
  })

async function startGateway() {
  gateway = spawn(process.execPath, ['gateway.mjs'], { env: { ...process.env, PORT: port, LIVE_TIMEOUT: 2000 }, stdio: ['ignore', 'pipe', 'inherit'] })
  await new Promise((done, fail) => gateway.stdout.once('data', done).once('end', () => fail(new Error('the gateway has ended'))))
}
async function killGateway() {
  gateway.kill('SIGKILL')
  await new Promise((done) => gateway.once('close', done))
}

before(async () => {
  port = await freePort()
  url = `http://127.0.0.1:${port}/v1/shape`
  await startGateway()
})
const clients = []
after(async () => {
  for (const client of clients) client.stop()
  if (gateway) await killGateway()
  await pool.end()
})

// A client of Electric's that keeps a copy, and all the messages that it has been given
function follow(params, options = {}) {
  const aborter = new AbortController()
  const backoffOptions = { initialDelay: 50, maxDelay: 500, multiplier: 2 }
  const stream = new ShapeStream({ url, params, signal: aborter.signal, backoffOptions, ...options })
  const client = { stream, messages: [], errors: [], stop: () => aborter.abort() }
  stream.subscribe((messages) => client.messages.push(...messages), (e) => client.errors.push(e))
  client.shape = new Shape(stream)
  client.operations = () => client.messages.filter((m) => m.headers.operation).map((m) => m.headers.operation)
  client.refetches = () => client.messages.filter((m) => m.headers.control === 'must-refetch').length
  client.rows = () => client.shape.currentRows
  clients.push(client)
  return client
}
const byId = (a, b) => Number(a.id) - Number(b.id)
const ids = (client) => client.rows().map((row) => Number(row.id)).sort((a, b) => a - b)

// ------------------------------------------------------------------ tests --

test('rows, and changes of them, have the types of the table', async () => {
  await sql(`CREATE TABLE item (id int8 PRIMARY KEY, name varchar(20), price numeric(10,2), n int, f float8, ok bool NOT NULL,
    tags text[], grid int[], doc jsonb, plain json, at timestamptz, raw bytea, "Odd ""name"", é" text)`)
  await sql(`INSERT INTO item VALUES (9007199254740993, 'desk', 99.50, 3, 0.5, false, '{a,NULL,"b c"}', '{{1,2},{3,4}}', '{"a": [1]}',
    '{"b":  "1"}', '2026-01-01 00:00:00+00', '\\x00ff', 'x')`)
  const client = follow({ table: 'item' })
  const [row] = await client.shape.rows
  assert.deepEqual(row, {
    id: 9007199254740993n, name: 'desk', price: '99.50', n: 3, f: 0.5, ok: false, tags: ['a', null, 'b c'], grid: [[1, 2], [3, 4]],
    doc: { a: [1] }, plain: { b: '1' }, at: '2026-01-01 00:00:00+00', raw: '\\x00ff', 'Odd "name", é': 'x',
  })
  await sql(`INSERT INTO item (id, ok) VALUES (1, true)`)
  await until('the insert', () => client.rows().length === 2)
  await sql(`UPDATE item SET n = 4, ok = true WHERE name = 'desk'`)
  await until('the update', () => client.rows().find((r) => r.name === 'desk').n === 4)
  assert.equal(client.rows().find((r) => r.name === 'desk').ok, true)
  await sql('UPDATE item SET id = 2 WHERE id = 1')
  await until('the key to change', () => client.rows().some((r) => r.id === 2n))
  assert.deepEqual(client.rows().map((r) => r.id).sort(), [2n, 9007199254740993n].sort())
  const [{ xid }] = await sql(`WITH gone AS (DELETE FROM item WHERE id = 2) SELECT pg_current_xact_id()::xid::text AS xid`)
  await until('the delete', () => client.rows().length === 1)
  assert.deepEqual(client.operations(), ['insert', 'insert', 'update', 'delete', 'insert', 'delete'])
  const last = client.messages.filter((m) => m.headers.operation).pop()
  assert.deepEqual(last.headers.txids, [Number(xid)])
  assert.deepEqual(last.value, { id: 2n })
  assert.equal(client.refetches(), 0)
})

test('where clauses with parameters, columns, and whole rows', async () => {
  await sql('CREATE TABLE task (id int PRIMARY KEY, owner text, note text, big text); ALTER TABLE task REPLICA IDENTITY FULL')
  await sql(`INSERT INTO task SELECT i, CASE WHEN i % 2 = 0 THEN 'it''s me' ELSE 'you' END, 'n' FROM generate_series(1, 10) i`)
  const changed = follow({ table: 'task', where: 'owner = $1 AND id > $2', params: ["it's me", '2'], columns: ['id', 'owner', 'note'] })
  const whole = follow({ table: 'public.task', where: `owner = 'you'`, replica: 'full' })
  await Promise.all([changed.shape.rows, whole.shape.rows])
  assert.deepEqual(ids(changed), [4, 6, 8, 10])
  assert.deepEqual(changed.rows().sort(byId)[0], { id: 4, owner: "it's me", note: 'n' })
  await sql(`UPDATE task SET note = 'm' WHERE id IN (4, 5)`)
  await until('the updates', () => changed.operations().includes('update') && whole.operations().includes('update'))
  assert.deepEqual(changed.messages.find((m) => m.headers.operation === 'update').value, { id: 4, note: 'm' })
  const update = whole.messages.find((m) => m.headers.operation === 'update')
  assert.deepEqual([update.value, update.old_value], [{ id: 5, owner: 'you', note: 'm', big: null }, { note: 'n' }])
  await sql(`UPDATE task SET owner = 'you' WHERE id = 4`)
  await until('the row to move', () => ids(whole).includes(4) && !ids(changed).includes(4))
  await sql('DELETE FROM task WHERE id = 5')
  await until('the delete', () => !ids(whole).includes(5))
  assert.deepEqual(whole.messages.find((m) => m.headers.operation === 'delete').value, { id: 5, owner: 'you', note: 'm', big: null })
})

test('a stream of events', async () => {
  await sql('CREATE TABLE event (id int PRIMARY KEY, note text)')
  const client = follow({ table: 'event' }, { liveSse: true })
  await client.shape.rows
  for (let i = 1; i <= 30; i++) await sql('INSERT INTO event VALUES ($1)', [i])
  await until('the rows', () => client.rows().length === 30)
  // longer than the time after which the gateway shows that it is alive
  await sleep(2500)
  await sql('DELETE FROM event WHERE id = 7')
  await until('the delete', () => client.rows().length === 29)
  await killGateway()
  await sql('INSERT INTO event VALUES (31)')
  await startGateway()
  await until('the row that came meanwhile', () => client.rows().length === 30)
  assert.equal(client.operations().length, 32)
  assert.equal(client.refetches(), 0)
})

test('a client that comes back goes on', async () => {
  await sql('CREATE TABLE page (id int PRIMARY KEY, note text)')
  await sql('INSERT INTO page SELECT i FROM generate_series(1, 25000) i')
  const first = follow({ table: 'page' })
  await first.shape.rows
  assert.equal(first.rows().length, 25000)
  const place = { handle: first.stream.shapeHandle, offset: first.stream.lastOffset }
  first.stop()
  await sql(`UPDATE page SET note = 'new' WHERE id <= 12000`)
  await flushed()
  const second = follow({ table: 'page' }, place)
  await until('the updates', () => second.messages.length >= 12000)
  await until('it to be up to date', () => second.stream.isUpToDate)
  assert.deepEqual([...new Set(second.operations())], ['update'])
  // a log that has been folded does not have the place any more
  const away = { handle: second.stream.shapeHandle, offset: second.stream.lastOffset }
  second.stop()
  const [{ handle }] = await sql(`SELECT handle FROM electric_cm_shapes WHERE relation = 'page'::regclass`)
  const code = () => sql('SELECT FROM electric_cm_shape_log($1, $2, 1)', [handle, away.offset]).then(() => '', (e) => e.code)
  let n = 0
  await sql(`ALTER SYSTEM SET electric_cm.shape_log_retention = '1MB'`)
  await sql('SELECT pg_reload_conf()')
  await until('the log to be folded', async () => {
    await sql('UPDATE page SET note = $1', [n++])
    await flushed()
    return (await code()) === 'EC001'
  })
  const third = follow({ table: 'page' }, away)
  const other = follow({ table: 'page' }, { liveSse: true }) // that shares with it what handles have expired
  await until('the rows', () => [third, other].every((client) => client.rows().length === 25000 && client.rows().every((row) => row.note === String(n - 1))))
  await sql("UPDATE page SET note = 'last' WHERE id = 1")
  await until('the update', () => [third, other].every((client) => client.rows().some((row) => row.note === 'last')))
  assert.ok(third.refetches() > 0)
  await sql('ALTER SYSTEM RESET electric_cm.shape_log_retention')
  await sql('SELECT pg_reload_conf()')
})

test('TRUNCATE, ALTER TABLE, and a shape that is dropped', async () => {
  await sql('CREATE TABLE thing (id int PRIMARY KEY, note text); INSERT INTO thing VALUES (1), (2)')
  const polling = follow({ table: 'thing' })
  const streaming = follow({ table: 'thing' }, { liveSse: true })
  const both = [polling, streaming]
  await Promise.all(both.map((client) => client.shape.rows))
  await sql('TRUNCATE thing; INSERT INTO thing VALUES (3)')
  await until('the row after TRUNCATE', () => both.every((client) => ids(client).join() === '3'))
  assert.equal(polling.refetches() + streaming.refetches(), 0)
  await sql('ALTER TABLE thing ADD n int8 DEFAULT 5; UPDATE thing SET n = 6; INSERT INTO thing VALUES (4)')
  // with its type, for which the client has to begin again
  await until('the new column', () => both.every((client) => client.rows().sort(byId).map((row) => row.n).join() === '6,5'))
  for (const client of both) assert.deepEqual(client.rows().map((row) => typeof row.n), ['bigint', 'bigint'])
  for (const client of both) assert.equal(client.refetches(), 1)
  const [{ handle }] = await sql(`SELECT handle FROM electric_cm_shapes WHERE relation = 'thing'::regclass`)
  await sql('SELECT electric_cm_drop_shape($1)', [handle])
  await sql('INSERT INTO thing VALUES (5)')
  await until('the row of the new shape', () => both.every((client) => ids(client).join() === '3,4,5'))
  for (const client of both) assert.deepEqual([client.refetches(), client.errors], [2, []])
})

test('from now on only', async () => {
  await sql('CREATE TABLE news (id int PRIMARY KEY); INSERT INTO news VALUES (1)')
  const now = follow({ table: 'news' }, { offset: 'now' })
  const changes = follow({ table: 'news' }, { log: 'changes_only' })
  await Promise.all([now, changes].map((client) => until('the end', () => client.stream.isUpToDate)))
  await sql('INSERT INTO news VALUES (2)')
  await until('the row', () => [now, changes].every((client) => client.operations().length === 1))
  assert.deepEqual([now, changes].map((client) => client.messages.filter((m) => m.value).map((m) => m.value)), [[{ id: 2 }], [{ id: 2 }]])
})

test('what is wrong is said', async () => {
  await sql(`CREATE TABLE secret (id int PRIMARY KEY)`)
  const fail = async (query) => {
    const response = await fetch(`${url}?${query}`)
    return [response.status, (await response.json()).message]
  }
  for (const [query, status, message] of [
    ['offset=-1', 400, /table is missing/],
    ['table=item', 400, /offset/],
    ['table=item&offset=1', 400, /offset/],
    ['table=nothing&offset=-1', 400, /relation "nothing" does not exist/],
    ['table=item&offset=-1&where=nothing', 400, /column "nothing" does not exist/],
    ['table=item&offset=-1&where=n=$1&params[2]=1', 400, /params\[1\] is missing/],
    ['table=item&offset=-1&where=n%3D1)%20OR%20(true', 400, /syntax error/],
    ['table=item&offset=-1&columns=id,"', 400, /columns/],
    ['table=item&offset=-1&where=n%3D1', 400, /replica identity/],
    ['table=item&offset=0_1&live=true', 400, /handle/],
    ['table=item&offset=-1&subset__limit=1', 400, /not supported/],
  ]) {
    const [got, text] = await fail(query)
    assert.equal(got, status, `${query}: ${text}`)
    assert.match(text, message)
  }
  assert.equal((await fetch(`${url}?table=item&offset=-1&handle=another`)).status, 409)
  const client = follow({ table: 'item', where: 'nothing' })
  await until('the error', () => client.errors.length === 1)
  assert.ok(client.errors[0] instanceof FetchError)
  assert.equal(client.errors[0].status, 400)
  assert.match(client.errors[0].message, /nothing.* does not exist/)
})

test('one connection waits for all clients, without a snapshot', async () => {
  await sql('CREATE TABLE room (id int PRIMARY KEY, n int); INSERT INTO room SELECT i, 0 FROM generate_series(1, 50) i')
  const many = []
  for (let i = 1; i <= 50; i++) for (let k = 0; k < 4; k++) many.push(follow({ table: 'room', where: `id = ${i}` }))
  await Promise.all(many.map((client) => client.shape.rows))
  const [{ waiting, others, snapshots }] = await sql(`SELECT count(*) FILTER (WHERE application_name LIKE '%waiting')::int AS waiting,
    count(*) FILTER (WHERE application_name = 'electric gateway')::int AS others,
    count(*) FILTER (WHERE application_name LIKE '%waiting' AND wait_event_type = 'Extension' AND backend_xmin IS NOT NULL)::int AS snapshots
    FROM pg_stat_activity`)
  assert.equal(waiting, 1)
  assert.ok(others <= 15, `${others} other connections`)
  assert.equal(snapshots, 0)
  await sql('UPDATE room SET n = n + 1')
  await until('all to be told', () => many.every((client) => client.rows()[0].n === 1))
  for (const client of many) client.stop()
})

test('gateway, stack and server are killed while rows are written', { timeout: 180_000 }, async () => {
  await sql('CREATE TABLE hot (id int PRIMARY KEY, n int NOT NULL, big text); ALTER TABLE hot ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL')
  await sql(`INSERT INTO hot SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 500) i`)
  const followers = [follow({ table: 'hot' }), follow({ table: 'hot' }, { liveSse: true }), follow({ table: 'hot', where: 'id % 2 = 0' }),
    follow({ table: 'hot', columns: ['id', 'n'] })]
  await Promise.all(followers.map((client) => client.shape.rows))
  let writing = true
  let written = 0
  const writer = (async () => {
    while (writing) {
      const id = Math.ceil(Math.random() * 600)
      const statement = Math.random() < 0.2 ? 'DELETE FROM hot WHERE id = $1'
        : `INSERT INTO hot SELECT i, 1, repeat(md5(i::text), 100) FROM (SELECT $1::int) AS i (i) ON CONFLICT (id) DO UPDATE SET n = hot.n + 1`
      await sql(statement, [id]).then(
        () => written++,
        (e) => {
          if (/^(22|42)/.test(e.code)) throw e
          return sleep(100) // no server
        }
      )
    }
  })()
  for (let round = 0; round < 3; round++) {
    await sleep(1000)
    await killGateway()
    await sleep(300)
    await startGateway()
    await sleep(1000)
    await sql(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'electric gateway%'`).catch(() => {})
    await sleep(1000)
    execSync(process.env.RESTART, { stdio: 'inherit' })
    await until('the stack', () => sql(`SELECT electric_cm_await_active('20 s')`).then(() => true, () => false))
  }
  await sleep(1000)
  writing = false
  await writer
  assert.ok(written > 300, `${written} written`)
  const wanted = await sql('SELECT id, n, md5(big) AS big FROM hot ORDER BY id')
  const md5 = (text) => (text === undefined ? '' : createHash('md5').update(text).digest('hex'))
  const seen = (client) => client.rows().sort(byId).map(({ id, n, big }) => `${id} ${n} ${md5(big)}`)
  const is = (client, filter, withBig = true) =>
    seen(client).join() === wanted.filter(filter).map(({ id, n, big }) => `${id} ${n} ${withBig ? big : ''}`).join()
  await until('the copies to be those of the table', () => is(followers[0], () => true) && is(followers[1], () => true) &&
    is(followers[2], (row) => row.id % 2 === 0) && is(followers[3], () => true, false))
  for (const client of followers) assert.deepEqual([client.refetches(), client.errors], [0, []])
})
