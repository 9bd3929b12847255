// The server's native API. Errors come as `Problem`, with the server's own words.

import type { FaultBody } from "./types";

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly errors: FaultBody[] = [],
  ) {
    super(message);
  }
}

const ANSWER_MS = 10_000; // no question takes as long: nobody is there any more, and no word of it reached the browser
const UNREACHABLE = "the server does not answer; is it still running?";

// Seeds go up to 2^63-1, beyond what a JSON number keeps here: they are strings inside the page, numbers outside.
export const readJson = (text: string) => JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));
export const writeJson = (value: unknown) => JSON.stringify(value).replace(/"seed":"(\d+)"/g, '"seed":$1');

/** What is no JSON, as a proxy's own words, is undefined. */
function parsed(text: string) {
  try {
    return text ? readJson(text) : null;
  } catch {
    return undefined;
  }
}

async function ask<T>(path: string, init: RequestInit): Promise<T> {
  let response: Response;
  let text: string;
  try {
    response = await fetch(path, init);
    text = await response.text();
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", UNREACHABLE);
  }
  const answer = parsed(text);
  if (!answer?.code && [502, 503, 504].includes(response.status)) throw new Problem(response.status, "unreachable", UNREACHABLE); // a proxy's
  if (!response.ok || answer === undefined) {
    throw new Problem(
      response.status,
      answer?.code ?? "unknown",
      answer?.detail ?? `the server answered ${response.status}, in words that this page cannot read`,
      answer?.errors ?? [],
    );
  }
  return answer as T;
}

export const call = <T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> =>
  ask(path, {
    method,
    signal: signal ?? null,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? null : writeJson(body),
  });

export const get = <T>(path: string, signal?: AbortSignal) =>
  call<T>("GET", path, undefined, AbortSignal.any([AbortSignal.timeout(ANSWER_MS), ...(signal ? [signal] : [])]));
export const post = <T>(path: string, body?: unknown, signal?: AbortSignal) => call<T>("POST", path, body ?? {}, signal);

/** Store a picture under an id; a request then names it as `asset:ID`. */
export const upload = (picture: Blob): Promise<{ id: string; width: number; height: number }> =>
  ask("/api/assets", { method: "POST", headers: { "Content-Type": picture.type || "image/png" }, body: picture });

export const SESSIONS = "/api/inference/sessions";
