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

// Seeds go up to 2^63-1, beyond what a JSON number keeps here: they are strings inside the page, numbers outside.
export const readJson = (text: string) => JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));
export const writeJson = (value: unknown) => JSON.stringify(value).replace(/"seed":"(\d+)"/g, '"seed":$1');

async function read(response: Response) {
  try {
    return readJson(await response.text());
  } catch {
    return null;
  }
}

export async function call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      signal: signal ?? null,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? null : writeJson(body),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, "unreachable", "the server does not answer; is it still running?");
  }
  if (response.status === 204) return undefined as T;
  const answer = await read(response);
  if (!response.ok) {
    throw new Problem(
      response.status,
      answer?.code ?? "unknown",
      answer?.detail ?? `the server answered ${response.status}`,
      answer?.errors ?? [],
    );
  }
  return answer as T;
}

export const get = <T>(path: string, signal?: AbortSignal) => call<T>("GET", path, undefined, signal);
export const post = <T>(path: string, body?: unknown, signal?: AbortSignal) => call<T>("POST", path, body ?? {}, signal);

/** Store a picture under an id; a request then names it as `asset:ID`. */
export async function upload(picture: Blob): Promise<{ id: string; width: number; height: number }> {
  const response = await fetch("/api/assets", {
    method: "POST",
    headers: { "Content-Type": picture.type || "image/png" },
    body: picture,
  });
  const answer = await read(response);
  if (!response.ok) {
    throw new Problem(response.status, answer?.code ?? "unknown", answer?.detail ?? "the picture was refused", answer?.errors ?? []);
  }
  return answer;
}

export const SESSIONS = "/api/inference/sessions";
