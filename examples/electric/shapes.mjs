// The gateway's side of the database: shapes, their columns, reading their logs, and one
// connection that waits for all of them.
import { createHash } from 'node:crypto'
import pg from 'pg'

const PAGE = 10_000 // entries that are read at once
const WATCHED = 60_000 // how long a shape is waited for that nobody asks for any more, in ms
const REMEMBERED = 600_000 // how long its columns are remembered

const sleep = (ms) => new Promise((done) => setTimeout(done, ms))
export const log = (...what) => console.error(new Date().toISOString(), ...what)

// What returns at once, and what waits until a shape has been created
const makePool = (max, options) =>
  new pg.Pool({ max, options, application_name: 'electric gateway' }).on('error', (e) => log('connection lost:', e.message))
export const db = makePool(5)
const creations = makePool(10, '-c statement_timeout=60s')

// ------------------------------------------------------------- offsets --

const parts = (offset) => (offset === '-1' ? [-1n, 0n] : offset.split('_').map(BigInt))
export const isAfter = (a, b) => {
  const [[lsnA, opA], [lsnB, opB]] = [parts(a), parts(b)]
  return lsnA === lsnB ? opA > opB : lsnA > lsnB
}
const latest = (a, b) => (isAfter(a, b) ? a : b)

// -------------------------------------------------------------- shapes --

const definitions = new Map() // what clients ask for -> promise of a Shape
const shapes = new Map() // handle -> Shape

// Clients remember the columns' types for as long as they have a handle.  So what they are
// given as a handle, publicHandle, has to be another one after ALTER TABLE, though the
// shape's own is for life.
class Columns {
  constructor(handle, columns) {
    this.key = columns.filter((column) => column.pk_index !== null).map((column) => column.name)
    this.schema = JSON.stringify(Object.fromEntries(columns.map(describeColumn)))
    this.publicHandle = `${handle}-${createHash('sha256').update(this.schema).digest('hex').slice(0, 8)}`
  }
}

class Shape {
  listeners = new Set() // with take(page) and fail({ sqlstate, message })
  definitions = new Set()
  columns = null
  offset = null // entries after this one are waited for; null: none are
  used = Date.now()

  constructor(handle) {
    this.handle = handle
  }

  // It is gone, or not asked for any more.
  forget() {
    for (const definition of this.definitions) definitions.delete(definition)
    shapes.delete(this.handle)
  }

  fail(error) {
    if (error.sqlstate === '42704') this.forget()
    this.offset = null
    for (const listener of [...this.listeners]) listener.fail(error)
  }
}

const COLUMNS = `
  SELECT h.handle, c.name, coalesce(e.typname, t.typname) AS type, e.oid IS NOT NULL AS is_array, c.typmod, c.not_null,
    c.key_position - 1 AS pk_index
  FROM unnest($1::text[]) AS h (handle)
    CROSS JOIN electric_cm_shape_columns(h.handle) AS c
    JOIN pg_type AS d ON d.oid = c.type
    JOIN pg_type AS t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
    LEFT JOIN pg_type AS e ON e.oid = t.typelem AND t.typcategory = 'A'
  ORDER BY h.handle, c.ordinal`

function describeColumn({ name, type, is_array, typmod, not_null, pk_index }) {
  const column = { type }
  if (is_array) column.dims = 1
  if (not_null) column.not_null = true
  if (pk_index !== null) column.pk_index = pk_index
  if (typmod >= 0) {
    if (type === 'varchar') column.max_length = typmod - 4
    else if (type === 'bpchar') column.length = typmod - 4
    else if (type === 'bit' || type === 'varbit') column.length = typmod
    else if (type.startsWith('time')) column.precision = typmod
    else if (type === 'numeric') Object.assign(column, { precision: (typmod - 4) >> 16, scale: (typmod - 4) & 0x7ff })
  }
  return [name, column]
}

async function describe(client, handles) {
  const columns = new Map(handles.map((handle) => [handle, []]))
  for (const row of (await client.query(COLUMNS, [handles])).rows) columns.get(row.handle).push(row)
  for (const [handle, list] of columns) shapes.get(handle).columns = new Columns(handle, list)
}

async function createShape(definition) {
  const { table, where, columns, params } = JSON.parse(definition)
  const { rows } = await db
    .query('SELECT electric_cm_create_shape($1::regclass, $2, $3, $4) AS handle', [table, where, columns, params])
    .catch((e) => Promise.reject(Object.assign(e, { definition })))
  const [{ handle }] = rows
  await creations.query('SELECT FROM electric_cm_shape_log($1, max_entries => 1)', [handle])
  // (the same shape in other words has the same handle)
  const shape = shapes.get(handle) ?? new Shape(handle)
  shapes.set(handle, shape)
  shape.definitions.add(definition)
  await describe(db, [handle])
  return shape
}

// The shape of a definition, { table, where, columns, params } as JSON.  It is live.
export async function findShape(definition) {
  for (;;) {
    if (!definitions.has(definition)) {
      const promise = createShape(definition)
      promise.catch(() => definitions.delete(definition))
      definitions.set(definition, promise)
    }
    const shape = await definitions.get(definition)
    if (shapes.get(shape.handle) === shape) {
      shape.used = Date.now()
      return shape
    }
    definitions.delete(definition) // forgotten meanwhile
  }
}

// ------------------------------------------------------------- reading --

const ENTRIES = `
  SELECT handle, log_offset AS "offset", operation, key, value::text, old_value::text, xid
  FROM electric_cm_shape_logs($1, $2::electric_cm_offset[], $3)`

// Reads what shapes have after the offsets: a Map of shape -> page, which is { rows, columns,
// upToDate } or { ended }.  upToDate is the offset that all are complete to, or null if
// there is more; columns are as of the rows, or later.
async function readPages(client, list, offsets) {
  const pages = new Map(list.map((shape) => [shape.handle, { rows: [], upToDate: null }]))
  const { rows } = await client.query(ENTRIES, [[...pages.keys()], offsets, PAGE])
  for (const row of rows) {
    if (row.operation === 'up-to-date') for (const page of pages.values()) page.upToDate = row.offset
    else if (row.operation === 'ended') pages.get(row.handle).ended = JSON.parse(row.value)
    else pages.get(row.handle).rows.push(row)
  }
  const changed = list.filter((shape) => pages.get(shape.handle).rows.length && shapes.has(shape.handle))
  if (changed.length)
    await describe(client, changed.map((shape) => shape.handle)).catch(async () => {
      // one of them may be gone
      for (const { handle } of changed)
        await describe(client, [handle]).catch((e) => {
          if (!/^\w{5}$/.test(e.code)) throw e // not the server's
          pages.get(handle).ended = { sqlstate: e.code, message: e.message }
        })
    })
  return new Map(list.map((shape) => [shape, { ...pages.get(shape.handle), columns: shape.columns }]))
}

// Reads a page of one shape.  Those who ask for the same share it.
const looks = new Map()
export async function readPage(shape, offset) {
  const place = `${shape.handle} ${offset}`
  if (!looks.has(place)) looks.set(place, readPages(db, [shape], [offset]).finally(() => looks.delete(place)))
  const page = (await looks.get(place)).get(shape)
  if (page.ended?.sqlstate === '42704') shape.forget()
  if (page.ended) throw Object.assign(new Error(), page.ended)
  return page
}

// Where a shape's log ends
export async function endOf(shape) {
  const { rows } = await db.query("SELECT coalesce(last_offset, '-1') AS last FROM electric_cm_shapes WHERE handle = $1", [shape.handle])
  const page = await readPage(shape, rows[0]?.last ?? '-1')
  return page.upToDate ?? page.rows[page.rows.length - 1].offset
}

// ------------------------------------------------------------- waiting --

let call = null // what the connection waits for now: { handles, cancelled }
let pid = null
let wakeUp = () => {}

// A cancellation that comes before the server has begun with the call is lost.
async function cancel(which) {
  which.cancelled = true
  for (; call === which; await sleep(20)) await db.query('SELECT pg_cancel_backend($1)', [pid]).catch((e) => log(e.message))
}

// The listener is told of entries that come after the offset, once take() has taken those
// that are there already.
export async function listen(shape, offset, listener) {
  while (offset !== shape.offset) {
    const page = await readPage(shape, offset)
    const { rows, upToDate } = page
    if (rows.length) {
      offset = rows[rows.length - 1].offset
      if (!listener.take(page)) return
    }
    // Others may have been told of more than this page has.
    if (upToDate !== null && (shape.offset === null || !isAfter(shape.offset, latest(offset, upToDate)))) break
  }
  if (shapes.get(shape.handle) !== shape) throw Object.assign(new Error('the shape is gone'), { sqlstate: '42704' })
  shape.offset ??= offset
  shape.used = Date.now()
  shape.listeners.add(listener)
  if (call === null) wakeUp()
  else if (!call.cancelled && !call.handles.has(shape.handle)) cancel(call)
}

export function leave(shape, listener) {
  shape.listeners.delete(listener)
  shape.used = Date.now()
}

function watched() {
  const now = Date.now()
  for (const shape of shapes.values()) {
    if (shape.listeners.size) continue
    if (shape.used < now - WATCHED) shape.offset = null
    if (shape.used < now - REMEMBERED) shape.forget()
  }
  return [...shapes.values()].filter((shape) => shape.offset !== null)
}

async function deliver(client, ready) {
  const list = ready.map((handle) => shapes.get(handle)).filter((shape) => shape && shape.offset !== null)
  const pages = await readPages(client, list, list.map((shape) => shape.offset))
  for (const [shape, page] of pages) {
    if (page.ended) shape.fail(page.ended)
    else if (page.rows.length) {
      shape.offset = page.rows[page.rows.length - 1].offset
      for (const listener of [...shape.listeners]) listener.take(page)
    }
  }
}

async function waitOnce(client) {
  const list = watched()
  if (!list.length) return new Promise((done) => (wakeUp = done))
  const handles = list.map((shape) => shape.handle)
  const offsets = list.map((shape) => shape.offset)
  call = { handles: new Set(handles), cancelled: false }
  try {
    const { rows } = await client.query("CALL electric_cm_await($1, $2::electric_cm_offset[], '20 s', NULL)", [handles, offsets])
    call = null
    if (rows[0].ready.length) await deliver(client, rows[0].ready)
  } catch (e) {
    if (e.code !== '57014') throw e // there is one more shape to wait for
  } finally {
    call = null
  }
}

export async function waitForAll() {
  for (;;) {
    const client = new pg.Client({ application_name: 'electric gateway, waiting' })
    client.on('error', () => {}) // a query fails, too
    try {
      await client.connect()
      pid = (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid
      for (;;) await waitOnce(client)
    } catch (e) {
      log('cannot wait:', e.code, e.message)
      for (const shape of [...shapes.values()]) shape.fail({ sqlstate: e.code ?? '08006', message: e.message })
      client.end().catch(() => {})
    }
    await sleep(1000)
  }
}
