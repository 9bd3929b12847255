// The parameters that Mezzotint writes into its pictures, read from a PNG without decoding it.

import { readJson } from "./api";

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MOST_BYTES = 64 * 1024;

export interface PictureRecord {
  seed: number | string;
  request: Record<string, unknown> & { prompt: string; width: number; height: number; seed: number | string };
}

/** The `mezzotint` chunk of a PNG, or null when it has none. */
export async function readRecord(file: Blob): Promise<PictureRecord | null> {
  const view = new DataView(await file.arrayBuffer());
  if (view.byteLength < 8 || SIGNATURE.some((byte, index) => view.getUint8(index) !== byte)) return null;
  for (let at = 8; at + 12 <= view.byteLength; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...new Uint8Array(view.buffer, at + 4, 4));
    if (kind === "IDAT" || at + 12 + length > view.byteLength) return null;
    if (kind === "iTXt" && length <= MOST_BYTES * 2) {
      const text = international(new Uint8Array(view.buffer, at + 8, length));
      if (text?.keyword === "mezzotint") return parse(text.value);
    }
    at += 12 + length;
  }
  return null;
}

function international(chunk: Uint8Array): { keyword: string; value: string } | null {
  const keyword = chunk.indexOf(0);
  if (keyword < 0 || chunk[keyword + 1] !== 0) return null; // compressed text is not written by us
  const language = chunk.indexOf(0, keyword + 3);
  const translated = chunk.indexOf(0, language + 1);
  if (language < 0 || translated < 0) return null;
  const decode = (part: Uint8Array) => new TextDecoder().decode(part);
  return { keyword: decode(chunk.subarray(0, keyword)), value: decode(chunk.subarray(translated + 1)) };
}

function parse(text: string): PictureRecord | null {
  try {
    const record = readJson(text);
    return record?.v === 1 && typeof record.request === "object" ? record : null;
  } catch {
    return null;
  }
}
