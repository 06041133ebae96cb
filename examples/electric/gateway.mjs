#!/usr/bin/env node
// A gateway for Electric's clients: their HTTP API, GET /v1/shape, on the functions of
// electric_cm.  README.md says what of that API is covered.
//
//   PGHOST=/var/run/postgresql node gateway.mjs
//
// HOST, PORT: where it listens (127.0.0.1, 3000); SECRET: what the parameter secret has to
// be; LIVE_TIMEOUT: how long a live request waits, in ms (20000).  The database is that of
// libpq's environment variables.
import { createReadStream } from 'node:fs'
import http from 'node:http'
import { fileURLToPath } from 'node:url'
import { db, endOf, findShape, isAfter, leave, listen, log, readPage, waitForAll } from './shapes.mjs'

const { HOST = '127.0.0.1', PORT = 3000, SECRET, LIVE_TIMEOUT = 20_000 } = process.env
const UNREAD = 16 << 20 // bytes that may wait for a client of a stream that does not read

class HttpError extends Error {
  constructor(status, message, handle) {
    super(message)
    Object.assign(this, { status, handle })
  }
}

// ------------------------------------------------------------ requests --

// "a","b c" or a,b
function parseColumns(text) {
  const columns = []
  const pattern = /\s*(?:"((?:[^"]|"")+)"|([^",]+?))\s*(?:,|$)/gy
  while (pattern.lastIndex < text.length) {
    const match = pattern.exec(text)
    if (!match) throw new HttpError(400, 'columns is not a list of names')
    columns.push(match[1] !== undefined ? match[1].replaceAll('""', '"') : match[2])
  }
  return columns
}

function parseParams(query) {
  const params = []
  for (const [name, value] of query) {
    const match = /^params\[([1-9]\d{0,3})\]$/.exec(name)
    if (match) params[match[1] - 1] = value
  }
  for (let i = 0; i < params.length; i++) if (params[i] === undefined) throw new HttpError(400, `params[${i + 1}] is missing`)
  return params.length ? params : null
}

// A client of a stream of events makes its offset of the LSN that it was told last.  Entries
// are at commits, and those at multiples of 8.
function fromStream(offset) {
  const lsn = /^(\d+)_0$/.exec(offset)?.[1]
  return lsn && BigInt(lsn) % 8n ? `${lsn}_4294967295` : offset
}

function parseRequest(query) {
  const [table, offset, handle] = ['table', 'offset', 'handle'].map((name) => query.get(name))
  const live = query.get('live') === 'true'
  if (SECRET && query.get('secret') !== SECRET) throw new HttpError(401, 'secret is missing or wrong')
  if (!table) throw new HttpError(400, 'table is missing')
  if (!/^(-1|now|\d{1,20}_\d{1,20})$/.test(offset)) throw new HttpError(400, 'offset is missing, or is not one')
  if (handle && !/^[\w-]+$/.test(handle)) throw new HttpError(400, 'handle is not one')
  if (live && (!handle || offset === '-1' || offset === 'now')) throw new HttpError(400, 'live needs a handle and an offset')
  if ([...query.keys()].some((name) => name.startsWith('subset__'))) throw new HttpError(400, 'subsets of a shape are not supported')
  const columns = query.get('columns')
  return {
    definition: JSON.stringify({ table, where: query.get('where'), columns: columns && parseColumns(columns), params: parseParams(query) }),
    // without the rows that are there: from now on
    offset: offset === '-1' && query.get('log') === 'changes_only' ? 'now' : fromStream(offset),
    handle,
    expired: query.get('expired_handle'),
    live,
    sse: live && ['live_sse', 'experimental_live_sse'].some((name) => query.get(name) === 'true'),
    full: query.get('replica') === 'full',
  }
}

// ------------------------------------------------------------ messages --

const pick = (object, wanted) => Object.fromEntries(Object.entries(object).filter(([name]) => wanted(name)))

// Electric sends the key and those columns of an update that changed, and of a delete the
// key, unless the client wants all (replica=full).
function toMessage(columns, full, { offset, operation, key, value, old_value, xid }) {
  let old = null
  if (operation === 'delete') {
    value = full ? old_value : JSON.stringify(pick(JSON.parse(old_value), (name) => columns.key.includes(name)))
  } else if (operation === 'update' && old_value !== null) {
    if (full) old = old_value
    else {
      const changed = JSON.parse(old_value)
      value = JSON.stringify(pick(JSON.parse(value), (name) => name in changed || columns.key.includes(name)))
    }
  }
  const [lsn, op] = offset.split('_')
  const headers = { operation, lsn, op_position: Number(op) }
  if (xid) headers.txids = [Number(BigInt(xid) & 0xffffffffn)] // of 32 bits, as Electric's are
  return `{"key":${JSON.stringify(key)},"value":${value}${old ? `,"old_value":${old}` : ''},"headers":${JSON.stringify(headers)}}`
}

const toMessages = (columns, full, rows) => rows.map((row) => toMessage(columns, full, row))
const upToDateMessage = (offset) => `{"headers":{"control":"up-to-date","global_last_seen_lsn":"${offset.split('_')[0]}"}}`

// ------------------------------------------------------------- answers --

const CORS = {
  'access-control-allow-origin': '*',
  'access-control-allow-methods': 'GET, HEAD, OPTIONS',
  'access-control-allow-headers': '*',
  'access-control-expose-headers': '*',
}
const JSON_TYPE = { ...CORS, 'content-type': 'application/json', 'cache-control': 'no-store' }

// (they begin with two numbers and what says of which types the columns are)
const anotherOf = (handle) => `${handle.split('-').slice(0, 3).join('-')}-${Date.now().toString(36)}`
const cursor = () => ({ 'electric-cursor': String(Date.now()) })
// (of a header, all is ASCII)
const escape = (json) => json.replace(/[^\x20-\x7e]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`)

// The handle that the client knows the shape by has the columns' types in it, and what
// follows them is only there to differ.
function checkHandle(columns, handle) {
  const known = columns.publicHandle
  if (handle !== known && !handle.startsWith(`${known}-`)) throw new HttpError(409, 'another shape, or other columns', known)
}

function answerWith(response, headers, messages, upToDate) {
  if (upToDate !== null) {
    headers['electric-up-to-date'] = ''
    messages = [...messages, upToDateMessage(upToDate)]
  }
  response.writeHead(200, { ...JSON_TYPE, ...headers }).end(`[${messages.join(',\n')}]`)
}

// What there is after the offset
async function answerAtOnce(response, shape, handle, { offset, full }) {
  let page
  if (offset === 'now') {
    offset = await endOf(shape)
    page = { rows: [], upToDate: offset, columns: shape.columns }
  } else page = await readPage(shape, offset)
  const { rows, upToDate, columns } = page
  checkHandle(columns, handle)
  if (rows.length) offset = rows[rows.length - 1].offset
  else if (offset === '-1') offset = upToDate
  const headers = { 'electric-handle': handle, 'electric-offset': offset, 'electric-schema': escape(columns.schema) }
  answerWith(response, headers, toMessages(columns, full, rows), upToDate)
}

// What there is after the offset, or else what comes next
async function answerLive(response, shape, handle, { offset, full, definition }) {
  const headers = () => ({ 'electric-handle': handle, 'electric-offset': offset, ...cursor() })
  const listener = {
    take({ rows, columns, upToDate }) {
      rows = rows.filter((row) => isAfter(row.offset, offset))
      if (!rows.length) return true
      end()
      try {
        checkHandle(columns, handle)
        offset = rows[rows.length - 1].offset
        answerWith(response, headers(), toMessages(columns, full, rows), upToDate)
      } catch (e) {
        answerError(response, e, shape, definition)
      }
      return false
    },
    fail(error) {
      end()
      answerError(response, error, shape, definition)
    },
  }
  const timer = setTimeout(() => {
    end()
    answerWith(response, headers(), [], offset)
  }, LIVE_TIMEOUT)
  const end = () => {
    clearTimeout(timer)
    leave(shape, listener)
  }
  await listenUntilClosed(response, shape, offset, listener, end)
}

// The same as a stream of events that does not end (server-sent events)
async function answerStream(response, shape, handle, { offset, full, definition }) {
  let alive
  const begin = () => {
    if (response.headersSent) return
    const headers = { 'electric-handle': handle, 'electric-offset': offset, 'electric-schema': escape(shape.columns.schema), ...cursor() }
    response.writeHead(200, { ...CORS, 'content-type': 'text/event-stream', 'cache-control': 'no-store', ...headers }).write(': \n\n')
    alive = setInterval(() => response.write(': \n\n'), LIVE_TIMEOUT)
  }
  const listener = {
    take({ rows, columns, upToDate }) {
      rows = rows.filter((row) => isAfter(row.offset, offset))
      try {
        checkHandle(columns, handle)
      } catch (e) {
        this.fail(e)
        return false
      }
      begin()
      const messages = toMessages(columns, full, rows)
      // the client keeps what it has been told until it is up to date
      if (upToDate !== null) messages.push(upToDateMessage(upToDate))
      for (const message of messages) response.write(`data: ${message}\n\n`)
      if (rows.length) offset = rows[rows.length - 1].offset
      if (response.writableLength > UNREAD) response.destroy()
      return !response.destroyed
    },
    fail(error) {
      end()
      // once it has begun, the client has to ask again to be told why it has ended
      if (response.headersSent) response.end()
      else answerError(response, error, shape, definition)
    },
  }
  const end = () => {
    clearInterval(alive)
    leave(shape, listener)
  }
  await listenUntilClosed(response, shape, offset, listener, end)
  if (!response.writableEnded && !response.destroyed) begin()
}

async function listenUntilClosed(response, shape, offset, listener, end) {
  response.on('close', end)
  try {
    await listen(shape, offset, listener)
  } catch (e) {
    listener.fail(e)
  }
  if (response.destroyed || response.writableEnded) end()
}

// error: an HttpError, one of the database, or what the shape has ended with
function answerError(response, error, shape, definition) {
  const code = error.sqlstate ?? error.code
  if (response.headersSent) response.destroy()
  else if (error instanceof HttpError) answerFailure(response, error.status, error.message, error.handle)
  else if (shape && code === 'EC001') answerFailure(response, 409, error.message, anotherOf(shape.columns.publicHandle))
  else if (shape && code === '42704')
    // gone: the client begins again, with the shape that takes its place
    findShape(definition).then((next) => answerFailure(response, 409, error.message, next.columns.publicHandle), (e) => answerError(response, e))
  else if (code === '42501') answerFailure(response, 403, error.message)
  else if (/^(0A|22|42|54|ERR_INVALID_URL)/.test(code) || (error.definition && code === '55000'))
    answerFailure(response, 400, error.hint ? `${error.message}. ${error.hint}` : error.message)
  else {
    if (code === undefined) log(error.stack)
    answerFailure(response, 503, error.message) // not now
  }
}

function answerFailure(response, status, message, handle) {
  const headers = { ...JSON_TYPE, ...(handle && { 'electric-handle': handle }), ...(status === 503 && { 'retry-after': '1' }) }
  const body = status === 409 ? [{ headers: { control: 'must-refetch' } }] : { message }
  response.writeHead(status, headers).end(JSON.stringify(body))
}

async function answerShape(response, query) {
  const wanted = parseRequest(query)
  const shape = await findShape(wanted.definition)
  let handle = wanted.handle ?? shape.columns.publicHandle
  // Clients in one browser tell each other which handles they must not be given any more.
  if (handle === wanted.expired) handle = anotherOf(handle)
  try {
    checkHandle(shape.columns, handle)
    if (wanted.sse) await answerStream(response, shape, handle, wanted)
    else if (wanted.live) await answerLive(response, shape, handle, wanted)
    else await answerAtOnce(response, shape, handle, wanted)
  } catch (e) {
    answerError(response, e, shape, wanted.definition)
  }
}

async function answerHealth(response) {
  const { rows } = await db.query('SELECT electric_cm_status() AS status')
  response.writeHead(rows[0].status === 'active' ? 200 : 202, JSON_TYPE).end(JSON.stringify(rows[0]))
}

function answerFile(response, path, type) {
  createReadStream(fileURLToPath(new URL(path, import.meta.url)))
    .on('open', () => response.writeHead(200, { 'content-type': type }))
    .on('error', () => response.writeHead(404).end())
    .pipe(response)
}

async function answer({ method, url }, response) {
  const { pathname, searchParams } = new URL(url, 'http://gateway')
  const script = /^\/client\/([\w.-]+\.mjs)$/.exec(pathname)
  if (method === 'OPTIONS') response.writeHead(204, CORS).end()
  else if (method !== 'GET' && method !== 'HEAD') throw new HttpError(405, 'not supported')
  else if (pathname === '/v1/shape') await answerShape(response, searchParams)
  else if (pathname === '/v1/health') await answerHealth(response)
  else if (pathname === '/') answerFile(response, 'page.html', 'text/html; charset=utf-8')
  else if (script) answerFile(response, `node_modules/@electric-sql/client/dist/${script[1]}`, 'text/javascript')
  else throw new HttpError(404, 'there is nothing here')
}

const server = http.createServer((request, response) => {
  response.on('error', (e) => log(e.message)) // what was still being written to a client that is gone
  answer(request, response).catch((e) => answerError(response, e))
})
server.listen(PORT, HOST, () => console.log(`listening on port ${server.address().port}`))
waitForAll()
