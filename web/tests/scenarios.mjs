// What somebody does with the page, one function each: it acts as they would and throws when the page does not follow.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const SESSIONS = "/api/inference/sessions";

async function api(page, method, path, data) {
  const response = await page.request.fetch(path, { method, ...(data ? { data } : {}), headers: { Origin: new URL(page.url()).origin } });
  assert.ok(response.ok(), `${method} ${path}: ${response.status()} ${await response.text()}`);
  return response.status() === 204 ? null : response.json();
}

const open = async (page, url, view) => {
  await page.goto(`${url}/#/${view}`);
  await page.getByRole("navigation", { name: "Views" }).waitFor();
};

/** Sessions that have ended, without the page. */
async function drawn(page, url, bodies) {
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

const PNG = async (page, url, id) => Buffer.from(await (await page.request.get(`${url}${SESSIONS}/${id}/images/0`)).body());

export async function make({ page, url, shot }) {
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).fill("a slice of pizza");
  await page.getByLabel("Steps").fill("8");
  await page.getByLabel("Seed").fill("7");
  await page.keyboard.press("Control+Enter");
  const picture = page.getByRole("img", { name: "a slice of pizza" });
  await picture.waitFor();
  await page.waitForFunction(() => document.querySelector("article img")?.naturalWidth === 64);
  await shot("make");
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1`);
  assert.equal(sessions[0].request.seed, 7);
  assert.equal(sessions[0].request.num_inference_steps, 8);
}

export async function validation({ page, url, shot }) {
  await open(page, url, "make");
  const draw = page.getByRole("button", { name: "Draw it" });
  await page.getByLabel("Width").fill("63");
  await page.getByText(/width/i).filter({ hasText: "64" }).first().waitFor();
  await page.waitForFunction(() => [...document.querySelectorAll("button")].find((one) => one.textContent === "Draw it").disabled);
  assert.equal(await page.getByLabel("Width").getAttribute("aria-invalid"), "true");
  await shot("validation");
  await page.getByLabel("Width").fill("64");
  await page.waitForFunction(() => ![...document.querySelectorAll("button")].find((one) => one.textContent === "Draw it").disabled);
  assert.ok(await draw.isEnabled());
}

export async function several({ page, url, shot }) {
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).fill("three boats");
  await page.getByLabel("Steps").fill("4");
  await page.getByLabel("Pictures", { exact: true }).fill("3");
  await page.getByText(/about .* at most|not measured yet/).waitFor(); // before anything was pressed
  const drawIt = async () => {
    const answer = page.waitForResponse((one) => one.url().endsWith(SESSIONS) && one.request().method() === "POST");
    await page.getByRole("button", { name: "Draw it" }).click();
    return (await (await answer).json()).request.seed;
  };
  const seed = await drawIt();
  await page.waitForFunction(() => document.querySelectorAll("article img[alt='three boats']").length === 3);
  await shot("several");
  assert.notEqual(await drawIt(), seed);
  await page.getByRole("button", { name: "New", exact: true }).click();
  const kept = await drawIt();
  assert.equal(await drawIt(), kept);
}

export async function paint({ page, url, shot }) {
  const [id] = await drawn(page, url, [{ prompt: "a red apple", seed: 3, steps: 8 }]);
  const file = await PNG(page, url, id);
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).fill("a green apple");
  await page.getByText("Start from a picture").click();
  await page.locator("input[type=file]").first().setInputFiles({ name: "apple.png", mimeType: "image/png", buffer: file });
  const canvas = page.getByLabel(/^Mask/);
  await canvas.waitFor();
  const whole = await canvas.boundingBox();
  await page.getByLabel("Zoom").fill("2");
  assert.ok((await canvas.boundingBox()).width > 1.9 * whole.width);
  await page.getByLabel("Zoom").fill("1");
  await canvas.scrollIntoViewIfNeeded();
  const box = await canvas.boundingBox();
  await page.mouse.move(box.x + box.width * 0.3, box.y + box.height * 0.3);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.7, box.y + box.height * 0.3, { steps: 5 });
  const kept = page.waitForResponse((response) => response.url().endsWith("/api/assets") && response.ok());
  await page.mouse.up();
  await kept;
  await shot("paint");
  await page.getByLabel("Steps").fill("6");
  await page.getByRole("button", { name: "Draw it" }).click();
  await page.getByRole("img", { name: "a green apple" }).waitFor();
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1&type=inpainting`);
  const mask = sessions[0].request.mask.slice("asset:".length);
  const rows = await page.evaluate(async (path) => {
    const bitmap = await createImageBitmap(await (await fetch(path)).blob());
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const at = (x, y) => context.getImageData(Math.floor(x * bitmap.width), Math.floor(y * bitmap.height), 1, 1).data[0];
    return { size: [bitmap.width, bitmap.height], painted: at(0.5, 0.3), kept: at(0.5, 0.9) };
  }, `/api/assets/${mask}`);
  assert.deepEqual(rows, { size: [64, 64], painted: 255, kept: 0 });
}

export async function adapters({ page, url, shot }) {
  const [id] = await drawn(page, url, [{ prompt: "a red apple", seed: 3, steps: 8 }]);
  const file = await PNG(page, url, id);
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).fill("a red tomato");
  await page.getByLabel("Steps").fill("6");
  await page.getByText("ControlNet", { exact: true }).click();
  await page.getByRole("button", { name: "icons-canny" }).click();
  await page.getByLabel("Picture to follow").last().setInputFiles({ name: "apple.png", mimeType: "image/png", buffer: file });
  await page.getByRole("img", { name: "Picture to follow" }).waitFor();
  await page.getByText("LoRA", { exact: true }).click();
  for (const name of ["blob", "monochrome", "blob"]) await page.getByRole("button", { name, exact: true }).click();
  await page.waitForFunction(() => [...document.querySelectorAll(".tiles img")].filter((one) => one.naturalWidth === 128).length === 3);
  assert.equal(await page.getByRole("button", { name: "monochrome", exact: true }).getAttribute("aria-pressed"), "true");
  assert.equal(await page.getByRole("button", { name: "blob", exact: true }).getAttribute("aria-pressed"), "false");
  await page.getByRole("group", { name: "LoRAs" }).scrollIntoViewIfNeeded();
  await shot("adapters");
  await page.getByRole("button", { name: "Draw it" }).click();
  await page.getByRole("img", { name: "a red tomato" }).waitFor();
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1`);
  const { controlnets, loras } = sessions[0].request;
  assert.deepEqual(controlnets.map(({ model, preprocessor }) => [model, preprocessor]), [["icons-canny", "canny"]]);
  assert.deepEqual(loras, [{ name: "monochrome", scale: 1 }]);
}

export async function restore({ page, url, shot }) {
  const hires = { scale: 1.5, strength: 0.6 };
  const [id] = await drawn(page, url, [{ prompt: "a purple teapot", seed: 99, steps: 5, scheduler: "euler", hires }]);
  const file = (await PNG(page, url, id)).toString("base64");
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).waitFor();
  await page.evaluate((encoded) => {
    const bytes = Uint8Array.from(atob(encoded), (one) => one.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
    document.querySelector(".make").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
  }, file);
  await page.waitForFunction(() => document.querySelector("textarea").value === "a purple teapot");
  assert.equal(await page.getByLabel("Seed").inputValue(), "99");
  assert.equal(await page.getByLabel("Steps").inputValue(), "5");
  assert.equal(await page.getByLabel("Sampler").inputValue(), "euler");
  assert.equal(await page.getByLabel("Enlarged 1.50 times").inputValue(), "1.5");
  await page.getByLabel("Enlarged 1.50 times").scrollIntoViewIfNeeded();
  await shot("restore");
  await page.getByRole("button", { name: "Draw it" }).click();
  await page.waitForFunction(() => document.querySelector("article img")?.naturalWidth === 96);
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1`);
  assert.equal((await PNG(page, url, sessions[0].id)).toString("base64"), file);
}

export async function watch({ page, url, shot }) {
  await open(page, url, "watch");
  const body = { steps: 400, preview: { every_steps: 5 } };
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
  await page.waitForFunction(() => document.querySelector("dialog img, [role=dialog] img")?.naturalWidth === 64);
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
  const requests = Array.from({ length: 70 }, (_, number) => ({ prompt: `one of many ${number}`, steps: 1 }));
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

export async function machine({ page, url, shot }) {
  await drawn(page, url, [{ prompt: "a cat", steps: 4 }]);
  await open(page, url, "machine");
  await page.getByRole("heading", { name: /cpu:0/ }).waitFor();
  await page.getByRole("row").nth(1).getByText("cpu:0", { exact: true }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll("figure canvas").length >= 5);
  await page.waitForTimeout(2500);
  await shot("machine");
}

export async function hostile({ page, url, shot }) {
  const evil = `"><img src=x onerror=alert(1)><script>alert(2)</script>{@html 3}<svg onload=alert(4)>`;
  await drawn(page, url, [{ prompt: evil, negative_prompt: evil, steps: 2 }]);
  for (const view of ["gallery", "watch", "machine", "make"]) {
    await open(page, url, view);
    await page.waitForTimeout(400);
  }
  await open(page, url, "gallery");
  await page.getByRole("list", { name: "Pictures" }).getByRole("button").first().click();
  const full = page.getByRole("dialog");
  assert.equal(await full.locator(".prompt").innerText(), evil);
  await full.getByRole("button", { name: "Use again" }).click();
  await page.getByText("Start from a picture").click();
  const input = page.locator("input[type=file]").first();
  await input.setInputFiles({ name: `${evil}.png`, mimeType: "image/png", buffer: Buffer.from(evil) });
  await page.getByRole("group", { name: "Picture to start from" }).getByRole("alert").waitFor();
  await page.getByRole("button", { name: "Draw it" }).click();
  await page.locator("article img").first().waitFor();
  await shot("hostile");
}

async function accessible({ page, url, shot }, theme) {
  await drawn(page, url, [{ prompt: "a dog", steps: 4 }]);
  for (const view of ["make", "watch", "gallery", "machine"]) {
    await open(page, url, view);
    await page.waitForTimeout(700);
    await page.evaluate(await readFile(AXE, "utf8"));
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const serious = violations.filter((one) => ["serious", "critical"].includes(one.impact));
    assert.deepEqual(serious.map((one) => `${view}: ${one.id}: ${one.nodes.map((node) => node.html).join(" | ")}`), []);
    await page.setViewportSize({ width: 390, height: 800 });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 390, `${view} is ${wide} px wide on a phone`);
    await shot(`phone-${view}-${theme}`);
    await page.setViewportSize({ width: 1280, height: 860 });
  }
}

export const accessibleLight = (tools) => accessible(tools, "light");
export const accessibleDark = (tools) => accessible(tools, "dark");
