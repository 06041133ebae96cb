// The live page in headless Chromium: node --test page.test.mjs
//
// As for test.mjs; CHROMIUM is the browser (/usr/bin/chromium), SCREENSHOT where a picture
// of the page is to be put.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { after, before, test } from 'node:test'
import pg from 'pg'
import { chromium } from 'playwright-core'

const db = new pg.Client()
let gateway, browser, url

before(async () => {
  await db.connect()
  gateway = spawn(process.execPath, ['gateway.mjs'], { env: { ...process.env, PORT: 0 }, stdio: ['ignore', 'pipe', 'inherit'] })
  const said = await new Promise((done) => gateway.stdout.once('data', (data) => done(String(data))))
  url = `http://127.0.0.1:${/port (\d+)/.exec(said)[1]}/`
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] })
})
after(async () => {
  await browser?.close()
  gateway.kill()
  await db.end()
})

const cells = (page) => page.$$eval('tbody tr', (lines) => lines.map((line) => [...line.cells].map((cell) => cell.textContent).join(' ')))

for (const way of ['', '&sse'])
  test(`the page follows the table${way && ', by a stream of events'}`, { timeout: 60_000 }, async () => {
    await db.query(`DROP TABLE IF EXISTS stock; CREATE TABLE stock (id int PRIMARY KEY, name text, price int, sold boolean NOT NULL DEFAULT false);
      INSERT INTO stock VALUES (1, 'desk', 350), (2, 'lamp', 40)`)
    const page = await browser.newPage({ viewport: { width: 800, height: 420 } })
    const problems = []
    page.on('pageerror', (error) => problems.push(error.message))
    await page.goto(`${url}?table=stock${way}`)
    await page.waitForFunction(() => document.querySelectorAll('tbody tr').length === 2)
    assert.deepEqual(await cells(page), ['1 desk false 350', '2 lamp false 40'])
    for (let i = 3; i <= 8; i++) await db.query('INSERT INTO stock VALUES ($1, $2, $3)', [i, `thing ${i}`, i * 10])
    for (let price = 351; price <= 400; price++) await db.query('UPDATE stock SET price = $1 WHERE id = 1', [price])
    await db.query('UPDATE stock SET sold = true WHERE id = 4; DELETE FROM stock WHERE id = 2')
    await page.waitForFunction(() => {
      const lines = [...document.querySelectorAll('tbody tr')].map((line) => line.textContent)
      return lines.length === 7 && lines[0] === '1deskfalse400' && lines[2] === '4thing 4true40'
    })
    assert.match(await page.textContent('#status'), /^7 rows, 60 changes so far$/)
    if (process.env.SCREENSHOT && !way) await page.screenshot({ path: process.env.SCREENSHOT })
    await page.close()
    assert.deepEqual(problems, [])
  })
