// What the devices and the queue were over the last minutes, gathered while the page is open.

import { get } from "./api";
import { live } from "./live.svelte";
import type { Device } from "./types";

const EVERY_MS = 2000;
const KEPT = 150; // five minutes

export interface Analytics {
  window_s: number;
  groups: { model: string; type: string; sessions: number; total_s: { p50: number | null; p95: number | null; p99: number | null } | null }[];
  all: { errors: Record<string, number> };
}

export interface DeviceHistory {
  now: Device;
  times: number[];
  use: (number | null)[];
  memory: (number | null)[];
  running: (number | null)[];
}

const grown = <T>(values: T[], value: T) => [...values, value].slice(-KEPT);

class History {
  devices = $state.raw<DeviceHistory[]>([]);
  times = $state.raw<number[]>([]);
  queued = $state.raw<(number | null)[]>([]);
  ended = $state.raw<(number | null)[]>([]);
  #ends: number[] = [];
  #known = new Set<string>();

  constructor() {
    setInterval(() => void this.#look(), EVERY_MS);
    void this.#look();
  }

  async #look() {
    if (document.hidden) return;
    const now = Date.now() / 1000;
    const { devices } = await get<{ devices: Device[] }>("/api/devices").catch(() => ({ devices: null }));
    if (!devices) return;
    this.devices = devices.map((device) => {
      const before = this.devices.find((one) => one.now.id === device.id);
      return {
        now: device,
        times: grown(before?.times ?? [], now),
        use: grown(before?.use ?? [], device.utilization),
        memory: grown(before?.memory ?? [], device.memory.used_by_mezzotint_bytes ?? null),
        running: grown(before?.running ?? [], device.sessions.length),
      };
    });
    const active = new Set(live.active.map((one) => one.id));
    for (const id of this.#known) if (!active.has(id)) this.#ends.push(now);
    this.#known = active;
    this.#ends = this.#ends.filter((time) => now - time < 60);
    this.times = grown(this.times, now);
    this.queued = grown(this.queued, live.active.filter((one) => one.state === "queued").length);
    this.ended = grown(this.ended, this.#ends.length);
  }
}

export const history = new History();
