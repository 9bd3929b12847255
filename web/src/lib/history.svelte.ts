// What the devices and the queue were over the last minutes, gathered while the page is open.

import { get } from "./api";
import { live } from "./live.svelte";
import { route } from "./route.svelte";
import type { Analytics, Device } from "./types";

export const KEPT_S = 300;
const EVERY_MS = 2000;
const ELSEWHERE_MS = 10_000; // while another view is shown
const LATELY_S = 60; // what ended since then counts

interface Look {
  at: number;
  devices: Device[];
  queued: number | null; // null: more than the page knows of
  lately: Analytics["all"];
}

type Values = (number | null)[];

class History {
  #looks = $state.raw<Look[]>([]);
  #timer: ReturnType<typeof setTimeout> | undefined;
  times = $derived(this.#looks.map((look) => look.at));
  devices = $derived(this.#looks.at(-1)?.devices ?? []);
  queued = $derived(this.#looks.map((look) => look.queued));
  ended = $derived(this.#looks.map((look) => look.lately.sessions));
  /** Error codes seen. */
  codes = $derived([...new Set(this.#looks.flatMap((look) => Object.keys(look.lately.errors)))].toSorted());

  constructor() {
    addEventListener("hashchange", () => route.view === "machine" && void this.#look());
    void this.#look();
  }

  of(device: string, measure: (device: Device) => number | null | undefined): Values {
    return this.#looks.map((look) => {
      const found = look.devices.find((one) => one.id === device);
      return (found && measure(found)) ?? null;
    });
  }

  /** Seconds within which so many of the sessions were done that ended in the minute before: p50, p95, p99. */
  took(percentile: string): Values {
    return this.#looks.map((look) => look.lately.total_s?.[percentile] ?? null);
  }

  failed(code: string): Values {
    return this.#looks.map((look) => look.lately.errors[code] ?? 0);
  }

  async #look() {
    clearTimeout(this.#timer);
    if (!document.hidden && !live.trouble) await this.#keep();
    clearTimeout(this.#timer); // of a look that began meanwhile
    this.#timer = setTimeout(() => void this.#look(), route.view === "machine" ? EVERY_MS : ELSEWHERE_MS);
  }

  async #keep() {
    try {
      const [{ devices }, { all }] = await Promise.all([
        get<{ devices: Device[] }>("/api/devices"),
        get<Analytics>(`/api/analytics?window_s=${LATELY_S}`),
      ]);
      const at = Date.now() / 1000;
      const queued = live.cut.has("queued") ? null : live.active.filter((one) => one.state === "queued").length;
      this.#looks = [...this.#looks.filter((look) => at - look.at < KEPT_S), { at, devices, queued, lately: all }];
    } catch {
      // the server is away, which the page says elsewhere
    }
  }
}

export const history = new History();
