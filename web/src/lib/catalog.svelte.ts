// What this server can do now, as its capabilities say.

import { get } from "./api";
import { live } from "./live.svelte";
import type { Model } from "./types";

export interface Capabilities {
  models: Model[];
  default_model: string | null;
  schedulers: (string | { name: string })[];
  preprocessors: (string | { name: string })[];
  limits: Record<string, number | null>;
  version: string;
}

const name = (one: string | { name: string }) => (typeof one === "string" ? one : one.name);

class Catalog {
  models = $state<Model[]>([]);
  defaultModel = $state<string | null>(null);
  schedulers = $state<string[]>([]);
  preprocessors = $state<string[]>(["none"]);
  version = $state("");
  error = $state("");

  async refresh() {
    try {
      const [{ models }, capabilities] = await Promise.all([
        get<{ models: Model[] }>("/api/models"),
        get<Capabilities>("/api/inference/capabilities"),
      ]);
      this.models = models;
      this.defaultModel = capabilities.default_model;
      this.schedulers = capabilities.schedulers.map(name);
      this.preprocessors = capabilities.preprocessors.map(name);
      this.version = capabilities.version;
      this.error = "";
    } catch (error) {
      this.error = live.lost(error) ? "" : error instanceof Error ? error.message : String(error);
    }
  }

  of(kind: string, checkpoint?: string): Model[] {
    return this.models.filter(
      (one) => one.kind === kind && one.state !== "invalid" && (!checkpoint || !one.fits || one.fits.includes(checkpoint)),
    );
  }
}

export const catalog = new Catalog();
