// Many of Electric's clients in one process, for bench/electric.
//
//   node load.mjs URL poll|sse CLIENTS SHAPES FIRST
//
// Client n follows the row 1 + n % SHAPES of table room, whose column at is the server's
// clock when it was changed.  Says "ready" when all have their row; after SIGUSR2 "result"
// with the number of changes that they have been told of, the median and the 99th percentile
// of the milliseconds that it took, and how many do not have the row as it is.
import { ShapeStream } from '@electric-sql/client'
import pg from 'pg'

const [url, way, clients, shapes, first] = process.argv.slice(2).map((arg, i) => (i < 2 ? arg : Number(arg)))
const latencies = []
const rows = new Map() // client -> [row, at]
let ready = 0
let since = Infinity

const now = () => performance.timeOrigin + performance.now()
const milliseconds = (at) => Date.parse(`${at.slice(0, 19).replace(' ', 'T')}Z`) + Number(`0${/\.\d+/.exec(at)?.[0] ?? ''}`) * 1000

for (let i = 0; i < clients; i++) {
  const id = 1 + ((first + i) % shapes)
  const stream = new ShapeStream({ url, params: { table: 'room', where: `id = ${id}` }, liveSse: way === 'sse' })
  stream.subscribe((messages) => {
    const here = now()
    for (const { headers, value } of messages) {
      if (headers.operation === 'update' && milliseconds(value.at) > since) latencies.push(here - milliseconds(value.at))
      if (value) rows.set(i, [id, value.at])
      else if (headers.control === 'up-to-date' && rows.has(i) && !stream.told) {
        stream.told = true
        if (++ready < clients) continue
        since = here // what came before was in the logs already
        console.log('ready')
      }
    }
  }, (e) => console.error(e.message))
}

process.on('SIGUSR2', async () => {
  const db = new pg.Client()
  await db.connect()
  const table = new Map((await db.query("SELECT id, (at AT TIME ZONE 'UTC')::text AS at FROM room")).rows.map(({ id, at }) => [id, at]))
  const missed = [...rows.values()].filter(([id, at]) => milliseconds(table.get(id)) !== milliseconds(at)).length + clients - rows.size
  latencies.sort((a, b) => a - b)
  const at = (share) => (latencies[Math.floor(latencies.length * share)] ?? 0).toFixed(1)
  console.log(`result ${latencies.length} ${at(0.5)} ${at(0.99)} ${missed}`)
  process.exit()
})
