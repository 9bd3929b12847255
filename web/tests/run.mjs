// Runs scenarios of scenarios.mjs in Debian's chromium: node run.mjs FOLDER, then a line SCENARIO URL each on its input, with
// an API key behind it where the server asks for one, which is answered by a line of JSON, what was wrong with it. Wrong is also an error in the page, a dialog, a refusal by
// its Content-Security-Policy, or a request to elsewhere. Each has a browser context, hence a storage, of its own.

import { mkdir } from "node:fs/promises";
import path from "node:path";
import readline from "node:readline";
import { chromium } from "playwright-core";
import * as scenarios from "./scenarios.mjs";

const [folder] = process.argv.slice(2);
await mkdir(folder, { recursive: true });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });

for await (const line of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await play(...line.split(" "))));
}
await browser.close();

async function play(name, url, key) {
  const page = await browser.newPage({
    viewport: { width: 1280, height: 860 }, colorScheme: name.endsWith("Dark") ? "dark" : "light",
    ...(key ? { httpCredentials: { username: "anyone", password: key } } : {}),
  });
  page.setDefaultTimeout(30_000);
  const wrong = [];
  page.on("dialog", (dialog) => {
    wrong.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("pageerror", (error) => wrong.push(`error: ${error.stack}`));
  page.on("console", (message) => {
    if (message.type() === "error" && /Content Security|Uncaught/.test(message.text())) wrong.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) wrong.push(`asked elsewhere: ${request.url()}`);
  });
  try {
    await scenarios[name]({ page, url, shot: (title) => page.screenshot({ path: path.join(folder, `${title}.png`) }) });
  } catch (error) {
    await page.screenshot({ path: path.join(folder, `${name}-failed.png`) });
    wrong.push(String(error.stack ?? error));
  }
  await page.close();
  return wrong;
}
