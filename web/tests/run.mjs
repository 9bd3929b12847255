// Runs one scenario of scenarios.mjs in Debian's chromium against a server: node run.mjs URL SCENARIO FOLDER.
// Fails also on an error in the page, a dialog, a refusal by its Content-Security-Policy, or a request to elsewhere.

import { mkdir } from "node:fs/promises";
import path from "node:path";
import { chromium } from "playwright-core";
import * as scenarios from "./scenarios.mjs";

const [url, name, folder] = process.argv.slice(2);
await mkdir(folder, { recursive: true });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 860 }, colorScheme: name.endsWith("Dark") ? "dark" : "light" });
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
await browser.close();
if (wrong.length) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
