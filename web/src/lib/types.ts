// Bodies of the server's contract as the page holds them: seeds that JavaScript would round are text, see api.ts.

import type * as contract from "./contract";

export type { Analytics, Device, Model, Progress, Validation, Worker } from "./contract";

type Seed = number | string;

export type FaultBody = contract.Note;
export type Picture = Omit<contract.Image, "seed"> & { seed: Seed };
export type Session = Omit<contract.Session, "request" | "images"> & {
  request: Omit<contract.Request, "seed"> & { seed: Seed | null };
  images: Picture[];
};

/** Comes with the events of a session, which the OpenAPI document does not describe. */
export interface Preview {
  image_index: number;
  step: number;
  format: string;
  b64_json: string;
}

export const FINAL: ReadonlySet<Session["state"]> = new Set(["succeeded", "failed", "cancelled", "expired"] as const);
