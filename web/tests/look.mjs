// What somebody looks at: what is under way, what was made, how the machine does.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { api, drawn, dropped, open, PNG, SESSIONS } from "./tools.mjs";

export async function watch({ page, url, shot }) {
  await open(page, url, "watch");
  const body = { steps: 400, guidance_scale: 1, preview: { every_steps: 5 } }; // a row each: calls of two are always worth it
  const first = await api(page, "POST", url + SESSIONS, { ...body, prompt: "a slow boat" });
  const second = await api(page, "POST", url + SESSIONS, { ...body, prompt: "another boat" });
  const card = page.getByRole("article", { name: "Session: a slow boat" });
  await card.getByText(/step \d+ of 400/).waitFor();
  await page.getByText("2 in the newest call").waitFor();
  await card.getByAltText("On its way: a slow boat").waitFor();
  await shot("watch");
  await card.getByRole("button", { name: "Pause" }).click();
  await card.getByText("paused").waitFor();
  await card.getByRole("button", { name: "Resume" }).click();
  await card.getByText(/step \d+ of 400/).waitFor();
  await card.getByRole("button", { name: "Cancel" }).click();
  await card.waitFor({ state: "detached" });
  assert.equal((await api(page, "GET", `${url}${SESSIONS}/${first.id}`)).state, "cancelled");
  await api(page, "POST", `${url}${SESSIONS}/${second.id}/cancel`, {});
  await page.getByText("Nothing is under way").waitFor();
}

/** Who only watches fetches no picture of a session that is gone with it. */
export async function thrifty({ page, url }) {
  await open(page, url, "watch");
  const fetched = [];
  page.on("request", (request) => request.url().includes("/images/") && fetched.push(request.url()));
  await drawn(page, url, Array.from({ length: 6 }, (_, number) => ({ prompt: `dinghy ${number}`, steps: 10 })));
  await page.getByText("Nothing is under way").waitFor();
  await page.waitForTimeout(500);
  assert.deepEqual(fetched, []);
}

/** More sessions than run at once: each has its card and its buttons, who is in the calls a row, who waits its place. */
export async function crowd({ page, url, shot }) {
  await open(page, url, "watch");
  const requests = Array.from({ length: 24 }, (_, number) => ({ prompt: `boat ${number}`, steps: 600, guidance_scale: 1, preview: { every_steps: 5 } }));
  const { id, items } = await api(page, "POST", `${url}/api/inference/batches`, { requests });
  const card = (number) => page.getByRole("article", { name: `Session: boat ${number}`, exact: true });
  try {
    await sharing({ page, card });
    await shot("crowd");
    await card(16).getByRole("button", { name: "Cancel" }).click();
    await card(23).getByText("place 7 in the queue").waitFor();
    await card(1).getByRole("button", { name: "Pause" }).click();
    await card(1).getByText("paused").waitFor();
    await card(17).getByText("place 1 in the queue").waitFor({ state: "detached" }); // in the room of the paused one
    const state = async (number) => (await api(page, "GET", `${url}${SESSIONS}/${items[number].session_id}`)).state;
    assert.deepEqual([await state(1), await state(0), await state(16)], ["paused", "running", "cancelled"]);
  } finally {
    await api(page, "POST", `${url}/api/inference/batches/${id}/cancel`, {}); // or whoever comes next waits for them
  }
  await page.getByText("Nothing is under way").waitFor();
}

/** As many of 24 share a call as the server has learned to be worth it, at least two; that may change meanwhile. */
async function sharing({ page, card }) {
  for (const number of [16, 23]) await card(number).getByText(`place ${number - 15} in the queue`).waitFor();
  assert.equal(await page.getByRole("article").count(), 24);
  await page.getByText("16 running, 8 queued, 0 paused").waitFor();
  await page.getByText(/([2-9]|1\d) in the newest call/).waitFor();
  for (const number of [0, 1]) {
    await card(number).getByText(/step [1-9]\d* of 600/).waitFor();
    await card(number).getByAltText(`On its way: boat ${number}`).waitFor();
  }
  assert.ok((await page.locator("figure svg text").count()) >= 2); // a row for each
}

/** A tab that nobody sees asks for nothing, and is current again once it is seen. */
export async function unseen({ page, url }) {
  await open(page, url, "machine");
  await page.getByRole("heading", { name: /cpu:0/ }).waitFor();
  const see = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await see(true);
  await page.waitForTimeout(500);
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  await page.waitForTimeout(11_000); // longer than anything waits between two times that it asks
  assert.deepEqual(asked, []);
  const again = page.waitForRequest((request) => request.url().endsWith("/api/inference/events"));
  await see(false);
  await again;
}

export async function gallery({ page, url, shot }) {
  const ids = await drawn(page, url, [
    { prompt: "a yellow banana", seed: 1, steps: 8 },
    { prompt: "a blue car", seed: 2, steps: 8 },
    { prompt: "a green tree", seed: 3, steps: 8 },
  ]);
  await open(page, url, "gallery");
  const tile = (name) => page.getByRole("list", { name: "Pictures" }).getByRole("button", { name });
  await tile("a blue car").first().waitFor();
  await page.waitForFunction(() => [...document.querySelectorAll(".tile img")].every((image) => image.naturalWidth > 0));
  await shot("gallery");
  await page.getByLabel("Words in the prompt").fill("BANANA");
  await tile("a blue car").first().waitFor({ state: "detached" });
  await tile("a yellow banana").first().waitFor();
  await page.getByLabel("Words in the prompt").fill("");
  await tile("a green tree").first().click();
  const full = page.getByRole("dialog", { name: "Picture and its parameters" });
  await full.getByText("a green tree").waitFor();
  await page.waitForFunction(() => document.querySelector("dialog img, [role=dialog] img")?.naturalWidth === 128);
  await shot("full");
  await page.keyboard.press("ArrowRight");
  await full.getByText("a blue car").waitFor();
  await full.getByRole("button", { name: "Compare" }).click();
  await tile("a yellow banana").first().click();
  const both = page.getByRole("dialog", { name: "Two pictures compared" });
  await both.getByRole("slider").fill("30");
  await shot("compare");
  await both.getByRole("button", { name: "Close" }).click();
  await tile("a green tree").first().click();
  const download = page.waitForEvent("download");
  await full.getByRole("link", { name: "Download" }).click();
  assert.deepEqual(await readFile(await (await download).path()), await PNG(page, url, ids[2]));
  await full.getByRole("button", { name: "Delete" }).click();
  await full.getByRole("button", { name: "Really delete" }).click();
  await full.waitFor({ state: "detached" });
  assert.equal((await page.request.get(`${url}${SESSIONS}/${ids[2]}`)).status(), 404);
  await tile("a blue car").first().click();
  await full.getByRole("button", { name: "Use again" }).click();
  await page.waitForFunction(() => document.querySelector("textarea").value === "a blue car");
  assert.equal(await page.getByLabel("Seed").inputValue(), "2");
}

export async function filters({ page, url }) {
  await open(page, url, "machine");
  const requests = Array.from({ length: 70 }, (_, number) => ({ prompt: `one of many ${number}`, steps: 1, width: 64, height: 64 }));
  const { id } = await api(page, "POST", `${url}/api/inference/batches`, { requests });
  for (let state = "running"; state === "running"; await page.waitForTimeout(200)) {
    ({ state } = await api(page, "GET", `${url}/api/inference/batches/${id}`));
  }
  await open(page, url, "gallery");
  await page.getByLabel("Words in the prompt").fill("one of many");
  const tile = (name) => page.getByRole("list", { name: "Pictures" }).getByRole("button", { name, exact: true });
  await tile("one of many 69").waitFor();
  for (let turn = 0; turn < 60 && !(await tile("one of many 0").count()); turn += 1) {
    await page.mouse.move(640, 500);
    await page.mouse.wheel(0, 800);
    await page.waitForTimeout(100);
  }
  await tile("one of many 0").waitFor(); // beyond the first page of sixty
  await page.getByLabel("Type").selectOption("inpainting");
  await page.getByText("Nothing here fits").waitFor();
  await page.getByLabel("Type").selectOption("text2img");
  await tile("one of many 69").waitFor();
  await page.getByLabel("State").selectOption("cancelled");
  await page.getByText("Nothing here fits").waitFor();
  await page.getByLabel("State").selectOption("succeeded");
  await page.getByRole("search").getByLabel("Model").selectOption({ index: 1 });
  await tile("one of many 69").waitFor();
}

export async function machine({ page, url, shot }) {
  await drawn(page, url, [{ prompt: "a cat", steps: 4 }, { prompt: "too slow", steps: 1000, timeout_s: 0.5 }]);
  await page.reload(); // the figures of a day are asked for twice a minute
  await page.getByRole("heading", { name: /cpu:0/ }).waitFor();
  const row = page.getByRole("row").nth(1);
  await row.getByText("cpu:0", { exact: true }).waitFor();
  for (const label of ["Use", "Memory of Mezzotint", "Sessions under way", "Waiting in the queue"]) await page.getByRole("img", { name: `${label}: ` }).waitFor();
  await page.getByRole("img", { name: /^Sessions ended a minute: [1-9]/ }).waitFor();
  await page.getByRole("img", { name: /^Done within: half [\d.]+ s, 95 % [\d.]+ s, 99 % [\d.]+ s/ }).waitFor();
  await page.getByRole("img", { name: /^Errors a minute: .*timeout [1-9]/ }).waitFor();
  await page.getByRole("listitem").filter({ hasText: "timeout" }).waitFor();
  const restarts = async () => Number(await row.getByRole("cell").nth(5).innerText());
  const before = await restarts();
  const { workers } = await api(page, "GET", `${url}/api/workers`);
  process.kill(workers[0].pid, "SIGKILL");
  await page.waitForFunction((before) => Number(document.querySelector("tbody tr").cells[5].textContent) === before + 1, before);
  await row.getByText("ready").waitFor();
  assert.match(await row.getByRole("cell").nth(8).innerText(), /killed|SIGKILL|-9/);
  await drawn(page, url, [{ prompt: "a cat", steps: 4 }]);
  await page.waitForTimeout(2500);
  await shot("machine");
}

/** While the server is away the page says so in sight, in words of its own, and all is right again as soon as it is back. */
export async function lost({ page, url, shot }) {
  const [id] = await drawn(page, url, [{ steps: 1 }]);
  const file = { name: "apple.png", type: "image/png", bytes: await PNG(page, url, id) };
  await open(page, url, "make");
  for (const title of ["Start from a picture", "ControlNet", "LoRA", "A second, larger pass", "More"]) await page.locator("summary", { hasText: title }).click();
  const estimate = page.getByText(/about .* at most|not measured yet/);
  await estimate.waitFor();
  await page.context().setOffline(true);
  const place = page.getByRole("group", { name: "Picture to start from" });
  await dropped(place, file);
  await place.getByText("the server does not answer; is it still running?").waitFor();
  await page.getByLabel("Steps").fill("7");
  const notice = page.getByRole("alert").filter({ hasText: "What was accepted is safe" });
  await notice.waitFor();
  await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
  assert.ok((await page.evaluate(() => scrollY)) > 200, "there is something to scroll");
  await page.waitForTimeout(200);
  const { y, height } = await notice.boundingBox();
  assert.ok(y >= 0 && y + height < 200, `the notice stands at ${y}`);
  await shot("lost");
  await page.waitForTimeout(12_000); // by then everything that asks now and then has asked in vain
  assert.equal(await page.locator(".notice.bad").count(), 1);
  await page.context().setOffline(false);
  await notice.waitFor({ state: "detached" });
  await page.waitForTimeout(1500);
  assert.equal(await page.locator(".notice.bad").count(), 0);
  await estimate.waitFor({ timeout: 100 });
}

/** A server that is gone without a word, as with its machine or the way to it, is missed all the same. */
export async function silent({ page, url }) {
  await open(page, url, "make");
  const notice = page.getByRole("alert").filter({ hasText: "What was accepted is safe" });
  await page.route("**/api/**", () => {}); // nobody answers, and nobody hangs up
  await notice.waitFor();
  const listens = page.waitForRequest((request) => request.url().endsWith("/api/inference/events"));
  await page.unroute("**/api/**");
  await notice.waitFor({ state: "detached" });
  await listens; // the old line may be as dead
}

/** Whose key opens nothing any more is told so, once, and no more is asked with it. */
export async function expired({ page, url, shot }) {
  await open(page, url, "machine");
  await page.getByRole("heading", { name: /cpu:0/ }).waitFor();
  const notice = page.getByRole("alert").filter({ hasText: "The API key that this page was opened with" });
  await notice.waitFor();
  await page.waitForTimeout(3000);
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  await page.waitForTimeout(11_000);
  assert.deepEqual(asked, []);
  for (const view of ["gallery", "make", "machine"]) {
    await page.getByRole("navigation", { name: "Views" }).getByRole("link", { name: new RegExp(view, "i") }).click();
    await page.waitForTimeout(400);
    assert.equal(await page.locator(".notice.bad").count(), 1, view);
  }
  await shot("expired");
}
