// Which sessions were in which of the last model calls, from the number of the call that their progress names.

import { live } from "./live.svelte";

const CALLS = 60;
const GONE_MS = 5000;

export interface Row {
  id: string;
  prompt: string;
  calls: Set<number>;
  seen: number;
}

class Loom {
  device = $state("");
  rows = $state.raw<Row[]>([]);
  calls = $state.raw<number[]>([]);
  sharing = $state(0);
  #rows = new Map<string, Row>();

  constructor() {
    live.onProgress((session, call) => this.#take(session.id, session.request.prompt, session.device ?? "", call));
    setInterval(() => document.hidden || this.#show(), 1000);
  }

  #take(id: string, prompt: string, device: string, call: number) {
    const row = this.#rows.get(id) ?? { id, prompt, calls: new Set<number>(), seen: 0 };
    row.calls.add(call);
    row.seen = Date.now();
    this.#rows.set(id, row);
    this.device = device;
  }

  #show() {
    for (const [id, row] of this.#rows) if (Date.now() - row.seen > GONE_MS) this.#rows.delete(id);
    const newest = Math.max(0, ...[...this.#rows.values()].flatMap((row) => [...row.calls]));
    for (const row of this.#rows.values()) for (const call of row.calls) if (call <= newest - CALLS) row.calls.delete(call);
    const used = [...new Set([...this.#rows.values()].flatMap((row) => [...row.calls]))].toSorted((a, b) => a - b);
    this.calls = used;
    this.rows = [...this.#rows.values()];
    this.sharing = this.rows.filter((row) => row.calls.has(newest)).length;
  }
}

export const loom = new Loom();
