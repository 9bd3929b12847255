// What the page must hold against, and for whom it must be usable.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { barriers, drawn, dropped, open } from "./tools.mjs";

const HOSTILE = JSON.parse(await readFile(new URL("hostile.json", import.meta.url), "utf8"));

export async function hostile({ page, url, shot }) {
  const [evil] = HOSTILE;
  await drawn(page, url, HOSTILE.toReversed().map((text) => ({ prompt: text, negative_prompt: text, steps: 1 })));
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

/** Models, LoRAs and ControlNets are named by who sends a picture, and LoRAs tell words of their own. */
export async function hostileNames({ page, url, shot }) {
  await open(page, url, "make");
  await page.getByLabel("Model", { exact: true }).selectOption("icons");
  await page.getByText("LoRA", { exact: true }).click();
  await page.getByRole("button", { name: "hostile", exact: true }).click();
  await page.getByText(HOSTILE.join(", "), { exact: true }).waitFor();
  await page.getByRole("button", { name: "Remove hostile" }).click();
  for (const name of HOSTILE) {
    const one = { scale: 1, start: 0, end: 1, preprocessor: name };
    const request = { prompt: name, width: 64, height: 64, seed: 1, model: name, scheduler: name, loras: [{ name, scale: 1 }], controlnets: [{ ...one, model: name }] };
    await dropped(page.locator(".make"), { name: `${name}.png`, type: "image/png", bytes: recorded({ v: 1, seed: 1, request }) });
    await page.waitForFunction((name) => document.querySelector("textarea").value === name, name);
    assert.deepEqual(await page.locator(".adapter .spread strong").allInnerTexts(), [name, name]);
    assert.equal(await page.getByLabel("Model", { exact: true }).inputValue(), name);
    await page.locator(".fault", { hasText: `model '${name.slice(0, 12)}` }).or(page.locator(".fault", { hasText: `model "${name.slice(0, 12)}` })).waitFor();
  }
  await shot("hostile-names");
  for (const view of ["watch", "gallery", "machine"]) {
    await open(page, url, view);
    await page.waitForTimeout(400);
  }
}

/** A PNG as far as its parameters are read. */
function recorded(record) {
  const text = Buffer.from(`mezzotint\0\0\0\0\0${JSON.stringify(record)}`);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(text.length);
  return Buffer.concat([Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]), length, Buffer.from("iTXt"), text, Buffer.alloc(4)]);
}

async function accessible({ page, url, shot }, theme) {
  await drawn(page, url, [{ prompt: "a dog", steps: 4 }, { prompt: "a cat", steps: 4 }]);
  const fits = async (what) => {
    assert.deepEqual(await barriers(page), [], what);
    await page.setViewportSize({ width: 390, height: 800 });
    const wide = await page.evaluate(() => Math.max(...[document.documentElement, ...document.querySelectorAll("dialog")].map((one) => one.scrollWidth)));
    assert.ok(wide <= 390, `${what} is ${wide} px wide on a phone`);
    await shot(`phone-${what}-${theme}`);
    await page.setViewportSize({ width: 1280, height: 860 });
  };
  for (const view of ["make", "watch", "machine", "gallery"]) {
    await open(page, url, view);
    await page.waitForTimeout(700);
    await fits(view);
  }
  const tile = (name) => page.getByRole("list", { name: "Pictures" }).getByRole("button", { name }).first();
  await tile("a cat").click();
  await page.getByRole("dialog", { name: "Picture and its parameters" }).waitFor();
  await fits("full");
  await page.getByRole("button", { name: "Compare" }).click();
  await tile("a dog").click();
  await page.getByRole("dialog", { name: "Two pictures compared" }).waitFor();
  await fits("compare");
}

export const accessibleLight = (tools) => accessible(tools, "light");
export const accessibleDark = (tools) => accessible(tools, "dark");
