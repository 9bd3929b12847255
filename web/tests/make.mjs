// What somebody does to have pictures made.

import assert from "node:assert/strict";
import { api, drawn, dropped, idle, open, PNG, SESSIONS, tabTo } from "./tools.mjs";

export async function make({ page, url, shot }) {
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).fill("a slice of pizza");
  await page.getByLabel("Steps").fill("8");
  await page.getByLabel("Seed").fill("7");
  await page.keyboard.press("Control+Enter");
  const picture = page.getByRole("img", { name: "a slice of pizza" });
  await picture.waitFor();
  await page.waitForFunction(() => document.querySelector("article img")?.naturalWidth === 128);
  await shot("make");
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1`);
  assert.equal(sessions[0].request.seed, 7);
  assert.equal(sessions[0].request.num_inference_steps, 8);
}

export async function validation({ page, url, shot }) {
  await open(page, url, "make");
  const draw = page.getByRole("button", { name: "Draw it" });
  await page.getByLabel("Width").fill("63");
  await page.getByText(/width/i).filter({ hasText: "128" }).first().waitFor();
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
  assert.deepEqual(await shades(page, `/api/assets/${mask}`, [[0.5, 0.3], [0.5, 0.9]]), { size: [128, 128], shades: [255, 0] });
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
  await page.waitForFunction(() => [...document.querySelectorAll(".tiles img")].filter((one) => one.naturalWidth === 256).length === 4);
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
  await open(page, url, "make");
  await idle(page, url);
  const [id] = await drawn(page, url, [{ prompt: "a purple teapot", seed: 99, steps: 5, scheduler: "euler", hires }]);
  const file = await PNG(page, url, id);
  await page.getByLabel("Prompt", { exact: true }).waitFor();
  await dropped(page.locator(".make"), { name: "x.png", type: "image/png", bytes: file });
  await page.waitForFunction(() => document.querySelector("textarea").value === "a purple teapot");
  assert.equal(await page.getByLabel("Seed").inputValue(), "99");
  assert.equal(await page.getByLabel("Steps").inputValue(), "5");
  assert.equal(await page.getByLabel("Sampler").inputValue(), "euler");
  assert.equal(await page.getByLabel("Enlarged 1.50 times").inputValue(), "1.5");
  await page.getByLabel("Enlarged 1.50 times").scrollIntoViewIfNeeded();
  await shot("restore");
  await page.getByRole("button", { name: "Draw it" }).click();
  await page.locator("article").getByRole("img", { name: "a purple teapot", exact: true }).waitFor(); // done: a preview has another name
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1`);
  assert.deepEqual(await PNG(page, url, sessions[0].id), file);
}

/** How bright a picture is at points of it, given as shares of its width and height. */
const shades = (page, path, points) => page.evaluate(async ({ path, points }) => {
  const bitmap = await createImageBitmap(await (await fetch(path)).blob());
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const at = ([x, y]) => context.getImageData(Math.floor(x * bitmap.width), Math.floor(y * bitmap.height), 1, 1).data[0];
  return { size: [bitmap.width, bitmap.height], shades: points.map(at) };
}, { path, points });

/** What cannot be meant is said where it stands, and nothing is drawn without what was chosen. */
export async function misled({ page, url, shot }) {
  await open(page, url, "make");
  await page.getByText("ControlNet", { exact: true }).click();
  await page.getByRole("button", { name: "icons-canny" }).click();
  await page.getByRole("group", { name: "Picture to follow" }).getByText(/image is missing/).waitFor();
  await page.getByRole("button", { name: "Remove icons-canny" }).click();
  await page.getByRole("group", { name: "Picture to follow" }).waitFor({ state: "detached" });
  await page.getByLabel("Seed").fill("abc");
  await page.getByText(/seed must be a whole number/).waitFor();
  assert.equal(await page.getByLabel("Seed").getAttribute("aria-invalid"), "true");
  assert.ok(await page.getByRole("button", { name: "Draw it" }).isDisabled());
  await shot("misled");
}

/** A request is taken over whole: pictures by their own size, and what the form has no place for by name. */
export async function takenOver({ page, url, shot }) {
  const [id] = await drawn(page, url, [{ prompt: "a red apple", steps: 2, width: 64, height: 64 }]);
  const image = `data:image/png;base64,${(await PNG(page, url, id)).toString("base64")}`;
  await drawn(page, url, [{ prompt: "a taken pear", steps: 2, image, width: 128, height: 128, eta: 0.5 }]);
  await open(page, url, "gallery");
  await page.getByRole("button", { name: "a taken pear" }).first().click();
  await page.getByRole("button", { name: "Use again" }).click();
  const place = page.getByRole("group", { name: "Picture to start from" });
  await place.getByText("64 × 64").waitFor();
  await page.getByText("what is drawn will differ: eta.").waitFor();
  assert.equal(await page.getByLabel(/^Mask/).evaluate((canvas) => canvas.width), 64);
  await page.getByLabel(/^Mask/).click();
  await page.getByText("Begins as").waitFor();
  await shot("taken-over");
  const validated = page.waitForRequest((request) => request.url().endsWith("/validate") && !request.postDataJSON().mask);
  await dropped(place, { name: "other.png", type: "image/png", bytes: await PNG(page, url, (await drawn(page, url, [{ steps: 1 }]))[0]) });
  await place.getByText("128 × 128").waitFor();
  await validated; // the mask was one of another size
  await drawn(page, url, [{ prompt: "a tall pear", steps: 1, width: 64, height: 64, hires: { width: 96, height: 128 } }]);
  await open(page, url, "gallery");
  await page.getByRole("button", { name: "a tall pear" }).first().click();
  await page.getByRole("button", { name: "Use again" }).click();
  await page.getByText("what is drawn will differ: hires.height.").waitFor();
}

/** On a narrow screen what was just accepted is in sight, though the form stands above it. */
export async function narrow({ page, url, shot }) {
  await page.setViewportSize({ width: 390, height: 844 });
  await open(page, url, "make");
  await page.getByLabel("Prompt", { exact: true }).fill("a narrow boat");
  await page.getByLabel("Steps").fill("4");
  await page.getByRole("button", { name: "Draw it" }).click();
  const card = page.getByRole("article", { name: "Session: a narrow boat" });
  await card.waitFor();
  await page.waitForFunction(() => document.querySelector("article").getBoundingClientRect().top < innerHeight / 2);
  await shot("narrow");
  await card.getByRole("img", { name: "a narrow boat", exact: true }).waitFor();
}

/** What a model cannot do is not offered; what was chosen before can still be taken back. */
export async function lacking({ page, url, shot }) {
  await open(page, url, "make");
  const model = page.getByLabel("Model", { exact: true });
  const offered = async () => (await page.locator("form summary").allInnerTexts()).slice(0, -1); // all have the last
  const asked = page.waitForRequest((request) => request.url().endsWith("/validate") && request.postDataJSON().model === "patcher");
  await page.waitForFunction(() => document.querySelector("select").value === "patcher"); // the server's default
  await asked; // what is shown is what is meant
  await model.selectOption("icons");
  await page.getByText("ControlNet", { exact: true }).waitFor();
  assert.deepEqual(await offered(), ["Start from a picture", "ControlNet", "LoRA", "Embeddings", "A second, larger pass"]);
  await page.getByText("LoRA", { exact: true }).click();
  await page.getByRole("button", { name: "blob", exact: true }).click();
  await model.selectOption("large");
  await page.getByText(/blob/).filter({ hasText: "large" }).first().waitFor();
  assert.deepEqual(await offered(), ["Start from a picture", "LoRA", "A second, larger pass"]);
  await page.getByRole("button", { name: "Remove blob" }).click();
  await page.getByText("LoRA", { exact: true }).waitFor({ state: "detached" });
  await shot("lacking");
  await model.selectOption("patcher");
  await page.getByText("A second, larger pass").waitFor({ state: "detached" });
  assert.ok((await offered()).includes("Start from a picture")); // and nothing else, but a mask goes with it
}

/** An embedding goes into the prompt that was written in last, and out of it again. */
export async function naming({ page, url, shot }) {
  await open(page, url, "make");
  await page.getByLabel("Model", { exact: true }).selectOption("icons");
  const prompt = page.getByLabel("Prompt", { exact: true }), negative = page.getByLabel("What to keep out");
  await prompt.fill("a red apple");
  await negative.fill("blue");
  await page.getByText("Embeddings", { exact: true }).click();
  const quiet = page.getByRole("button", { name: "quiet.v2", exact: true });
  await quiet.click();
  await page.waitForFunction(() => document.querySelector('[title="quiet.v2"]').ariaPressed === "true"); // as the server reads it
  assert.deepEqual([await prompt.inputValue(), await negative.inputValue()], ["a red apple", "blue, quiet.v2"]);
  await quiet.scrollIntoViewIfNeeded();
  await shot("naming");
  await quiet.click();
  await page.waitForFunction(() => document.querySelector('[title="quiet.v2"]').ariaPressed === "false");
  assert.equal(await negative.inputValue(), "blue");
  await prompt.fill("");
  await quiet.click();
  assert.equal(await prompt.inputValue(), "quiet.v2");
}

/** A picture that is dropped is what one starts from; elsewhere it is asked for its parameters. */
export async function dragged({ page, url, shot }) {
  const [id] = await drawn(page, url, [{ prompt: "a red apple", seed: 3, steps: 4, output: { embed_metadata: false } }]);
  const file = { name: "apple.png", type: "image/png", bytes: await PNG(page, url, id) };
  await open(page, url, "make");
  await page.getByText("Start from a picture").click();
  const place = page.getByRole("group", { name: "Picture to start from" });
  await dropped(page.locator(".results"), file);
  await page.getByText(/carries no parameters/).waitFor();
  assert.equal(await place.getByRole("img").count(), 0);
  await dropped(place, file);
  await page.waitForFunction(() => !document.querySelector(".over")); // nothing says any more that one may let go
  await place.getByRole("img", { name: "Picture to start from" }).waitFor();
  await page.getByLabel(/^Mask/).waitFor();
  await shot("dragged");
  await dropped(place, { name: "words.png", type: "image/png", bytes: Buffer.from("no picture") });
  await place.getByRole("alert").waitFor();
  await place.getByRole("button", { name: "Remove picture" }).click();
  await page.getByLabel(/^Mask/).waitFor({ state: "detached" });
}

/** Nothing but keys, from the top of the page to a picture and what can be done with it. */
export async function keyboard({ page, url, shot }) {
  await open(page, url, "make");
  const prompt = page.getByLabel("Prompt", { exact: true });
  await prompt.waitFor();
  assert.equal(await tabTo(page, page.getByRole("link", { name: "Skip to the content" })), 1);
  await page.keyboard.press("Enter");
  assert.equal(await tabTo(page, prompt), 1);
  await page.keyboard.type("a red apple");
  await tabTo(page, page.getByLabel("Steps"));
  await page.keyboard.type("6");
  for (const title of ["Start from a picture", "ControlNet", "LoRA", "A second, larger pass", "More"]) {
    await tabTo(page, page.locator("summary", { hasText: title }));
    await page.keyboard.press("Enter");
  }
  await tabTo(page, page.getByLabel("Weights in the prompt"));
  await page.keyboard.press("Space");
  await page.waitForTimeout(400);
  await tabTo(page, page.getByRole("button", { name: "Draw it" }));
  await shot("keyboard");
  await page.keyboard.press("Enter");
  await page.getByRole("img", { name: "a red apple" }).waitFor();
  await tabTo(page, page.getByRole("link", { name: "Open picture 1: a red apple" }));
  const opened = page.context().waitForEvent("page");
  await page.keyboard.press("Enter");
  assert.match((await opened).url(), /images\/0$|about:blank/);
  const { sessions } = await api(page, "GET", `${url}${SESSIONS}?limit=1`);
  const { prompt: text, num_inference_steps, prompt_syntax } = sessions[0].request;
  assert.deepEqual([text, num_inference_steps, prompt_syntax], ["a red apple", 6, "weighted"]);
}

export async function paintByKeys({ page, url, shot }) {
  const [id] = await drawn(page, url, [{ prompt: "a red apple", seed: 3, steps: 4 }]);
  await open(page, url, "make");
  await page.getByText("Start from a picture").click();
  await page.locator("input[type=file]").first().setInputFiles({ name: "apple.png", mimeType: "image/png", buffer: await PNG(page, url, id) });
  const canvas = page.getByLabel(/^Mask/);
  await canvas.waitFor();
  const press = async (...keys) => {
    for (const key of keys) await page.keyboard.press(key);
  };
  const paint = async () => {
    const kept = page.waitForResponse((response) => response.url().endsWith("/api/assets") && response.ok());
    await page.keyboard.press("Space");
    return `/api/assets/${(await (await kept).json()).id}`;
  };
  const points = [[0.5, 0.5], [0.8, 0.2], [0.2, 0.8]];
  await tabTo(page, canvas);
  await paint();
  await press(...Array(3).fill("Shift+ArrowRight"), ...Array(3).fill("Shift+ArrowUp"));
  assert.deepEqual((await shades(page, await paint(), points)).shades, [255, 255, 0]);
  await shot("paint-by-keys");
  const asked = []; // for a picture, which no tool of the mask does
  page.on("request", (request) => request.url().endsWith(SESSIONS) && asked.push(request.url()));
  await tabTo(page, page.getByRole("button", { name: "Eraser" }));
  await press("Enter", "Shift+Tab", "Shift+Tab");
  assert.deepEqual((await shades(page, await paint(), points)).shades, [255, 0, 0]);
  assert.deepEqual(asked, []);
}

/** Why nothing is drawn stands by the button, and the rest of the page works. */
export async function readOnly({ page, url, shot }) {
  await open(page, url, "make");
  await page.setViewportSize({ width: 1280, height: 600 });
  const draw = page.getByRole("button", { name: "Draw it" });
  await draw.click();
  const { y, height } = await page.getByRole("alert").filter({ hasText: "this API key lacks the scope submit" }).boundingBox();
  assert.ok(y > 0 && y + height <= (await draw.boundingBox()).y, `the reason ends at ${y + height}`);
  await shot("read-only");
  for (const view of ["watch", "gallery", "machine"]) {
    await open(page, url, view);
    await page.waitForTimeout(700);
    assert.equal(await page.locator(".notice.bad:visible").count(), 0, view);
  }
}
