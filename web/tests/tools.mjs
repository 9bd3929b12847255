// What every scenario uses: the API without the page, a view that is open, sessions that have ended.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
export const SESSIONS = "/api/inference/sessions";

export async function api(page, method, path, data) {
  const response = await page.request.fetch(path, { method, ...(data ? { data } : {}), headers: { Origin: new URL(page.url()).origin } });
  assert.ok(response.ok(), `${method} ${path}: ${response.status()} ${await response.text()}`);
  return response.status() === 204 ? null : response.json();
}

export const open = async (page, url, view) => {
  await page.goto(`${url}/#/${view}`);
  await page.getByRole("navigation", { name: "Views" }).waitFor();
};

/** Until nothing runs: a picture is the same to the bit only in the same company, and others may have left some. */
export async function idle(page, url) {
  while ((await api(page, "GET", `${url}${SESSIONS}?active=true&limit=1`)).sessions.length) await page.waitForTimeout(100);
}

/** Sessions that have ended, without the page. */
export async function drawn(page, url, bodies) {
  if (page.url() === "about:blank") await open(page, url, "machine");
  const made = [];
  for (const body of bodies) made.push(await api(page, "POST", url + SESSIONS, body));
  for (const session of made) {
    for (let state = ""; !["succeeded", "failed"].includes(state); ) {
      ({ state } = await api(page, "GET", `${url}${SESSIONS}/${session.id}`));
      await page.waitForTimeout(100);
    }
  }
  return made.map((session) => session.id);
}

export async function PNG(page, url, id) {
  const response = await page.request.get(`${url}${SESSIONS}/${id}/images/0`);
  assert.ok(response.ok(), await response.text());
  return response.body();
}

/** Let go of a file over an element, as somebody who dragged it there. */
export async function dropped(target, { name, type, bytes }) {
  await target.evaluate((element, { name, type, encoded }) => {
    const content = Uint8Array.from(atob(encoded), (one) => one.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([content], name, { type }));
    for (const kind of ["dragover", "drop"]) element.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  }, { name, type, encoded: bytes.toString("base64") });
}

/** What axe finds serious or critical in the page as it stands. */
export async function barriers(page) {
  await page.evaluate(await readFile(AXE, "utf8"));
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const serious = violations.filter((one) => ["serious", "critical"].includes(one.impact));
  return serious.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" | ")}`);
}

/** Tab until that has the focus; how many times it took. */
export async function tabTo(page, target, most = 80) {
  for (let turn = 1; turn <= most; turn += 1) {
    await page.keyboard.press("Tab");
    if (await target.evaluate((element) => element === document.activeElement)) return turn;
  }
  throw new Error(`${most} times Tab did not reach ${target}`);
}
