// Measures the page in Debian's chromium against a server: node measure.mjs URL first|scroll, or `stay`, which keeps it open
// until its input ends. Prints one line of JSON.

import { chromium } from "playwright-core";

const [url, what] = process.argv.slice(2);
const SCREENS = 0.12; // of the window's height by which one turn of the wheel scrolls
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 860 } });
page.setDefaultTimeout(60_000);

const measures = {
  /** Milliseconds until the form can be seen, by a browser that has nothing of it. */
  async first() {
    const started = performance.now();
    await page.goto(`${url}/#/make`, { waitUntil: "commit" });
    await page.getByLabel("Prompt", { exact: true }).waitFor();
    await page.evaluate(() => new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(painted))));
    return { seen_ms: performance.now() - started };
  },

  /** Frames a second while the gallery is scrolled from its newest picture to its oldest. */
  async scroll() {
    await page.goto(`${url}/#/gallery`);
    await page.locator(".tile img").first().waitFor();
    await page.evaluate(() => {
      window.frames_at = [];
      const tick = (now) => { window.frames_at.push(now); requestAnimationFrame(tick); };
      requestAnimationFrame(tick);
    });
    await page.mouse.move(640, 500);
    const began = await page.evaluate(() => performance.now());
    for (let still = 0, before = -1; still < 20; ) {
      await page.mouse.wheel(0, 860 * SCREENS);
      await page.waitForTimeout(16);
      const now = await page.evaluate(() => scrollY);
      still = now === before ? still + 1 : 0;
      before = now;
    }
    return page.evaluate((began) => {
      const at = window.frames_at.filter((one) => one >= began);
      const gaps = at.slice(1).map((one, index) => one - at[index]).toSorted((a, b) => a - b);
      return {
        pictures: document.querySelectorAll(".tile").length,
        frames_per_s: (gaps.length * 1000) / (at.at(-1) - at[0]),
        p95_frame_ms: gaps[Math.floor(gaps.length * 0.95)],
        worst_frame_ms: gaps.at(-1),
        seconds: (at.at(-1) - at[0]) / 1000,
      };
    }, began);
  },

  async stay() {
    await page.goto(`${url}/#/watch`);
    await page.getByRole("navigation", { name: "Views" }).waitFor();
    await page.waitForTimeout(3000); // opening it is not what an open page costs
    console.log("{}");
    for await (const _ of process.stdin);
    return {};
  },
};

console.log(JSON.stringify(await measures[what]()));
await browser.close();
