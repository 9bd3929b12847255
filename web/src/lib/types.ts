// Bodies of the server's contract, as far as the page reads them.

export type State = "queued" | "running" | "paused" | "succeeded" | "failed" | "cancelled" | "expired";

export interface FaultBody {
  field: string | null;
  code: string;
  message: string;
}

export interface Picture {
  index: number;
  seed: number | string;
  url: string;
  width: number;
  height: number;
  format: string;
  bytes: number;
  sha256: string;
}

export interface Progress {
  phase: string | null;
  step: number;
  steps: number;
  fraction: number;
  eta_s: number | null;
  image_index: number;
  call?: number | null;
}

export interface Preview {
  image_index: number;
  step: number;
  format: string;
  b64_json: string;
}

export interface Session {
  id: string;
  state: State;
  type: string;
  model: string;
  device: string | null;
  attempt: number;
  priority: number;
  queue_position: number | null;
  request: Record<string, unknown> & { prompt: string; width: number; height: number; seed: number | string };
  progress: Progress;
  timing: Record<string, number | string | null>;
  usage: Record<string, unknown>;
  images: Picture[];
  error: { code: string; message: string } | null;
  warnings: { code: string; message: string }[];
  cancel_requested: boolean;
  pause_requested: boolean;
}

export interface Model {
  id: string;
  kind: string;
  state: string;
  reason: string | null;
  bytes?: number;
  resident_on?: string[];
  thumbnail?: string | null;
  family?: string;
  types?: string[];
  width?: number;
  height?: number;
  size_multiple?: number;
  min_size?: number;
  control_type?: string | null;
  trigger_words?: string[];
  fits?: string[];
  defaults?: { num_inference_steps: number; guidance_scale: number; scheduler: string };
}

export interface Estimate {
  device: string | null;
  peak_memory_bytes: number | null;
  duration_s: number | null;
  queue_s: number | null;
  basis: "measured" | "extrapolated" | "unknown";
}

export interface Validation {
  valid: boolean;
  errors: FaultBody[];
  warnings: FaultBody[];
  recommendations: FaultBody[];
  resolved: Record<string, unknown> | null;
  estimate: Estimate | null;
}

export interface Device {
  id: string;
  kind: string;
  name: string | null;
  memory: Record<string, number | null>;
  utilization: number | null;
  temperature_c: number | null;
  driver: string | null;
  sessions: string[];
  queue_depth: number | null;
  unknown?: Record<string, string>;
}

export interface Worker {
  id: string;
  pid: number | null;
  device: string;
  state: string;
  resident_models: string[];
  sessions: string[];
  restarts: number;
  uptime_s: number | null;
  last_exit: unknown;
}

export const FINAL: ReadonlySet<State> = new Set<State>(["succeeded", "failed", "cancelled", "expired"]);
