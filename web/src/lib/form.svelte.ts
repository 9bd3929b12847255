// What the form holds, and the request it stands for. Fields left at the model's own are not sent.

import { upload } from "./api";
import type { HiresInput } from "./contract";

export interface Held {
  id: string;
  url: string;
  width: number;
  height: number;
}

export interface Control {
  key: number;
  model: string;
  image: Held | null;
  preprocessor: string;
  scale: number;
  start: number;
  end: number;
}

export interface Lora {
  key: number;
  name: string;
  scale: number;
}

let keys = 0;
export const newKey = () => ++keys;

export async function hold(picture: Blob): Promise<Held> {
  const { id, width, height } = await upload(picture);
  return { id, width, height, url: `/api/assets/${id}` };
}

/** Its size is 0 until it was looked at. */
const held = (reference: unknown): Held | null => {
  const id = typeof reference === "string" && reference.startsWith("asset:") ? reference.slice(6) : null;
  return id ? { id, url: `/api/assets/${id}`, width: 0, height: 0 } : null;
};

function measure(held: Held | null) {
  if (!held) return;
  const image = new Image();
  image.onload = () => Object.assign(held, { width: image.naturalWidth, height: image.naturalHeight });
  image.src = held.url;
}

const ONLY_MASKED_PX = 32; // around the painted area
const MULTIPLE_PX = 8; // of which a model's sides are

/** What changes a picture and has no place in the form, by its field. */
function homeless(request: Readonly<Record<string, any>>): string[] {
  const { eta, variation, resize_mode, scheduler_options, padding_mask_crop, hires, controlnets, type } = request;
  const found: Record<string, unknown> = {
    image: ["img2img", "inpainting"].includes(type) && !held(request.image),
    mask: type === "inpainting" && !held(request.mask),
    eta,
    variation,
    resize_mode: resize_mode && resize_mode !== "stretch",
    padding_mask_crop: padding_mask_crop && padding_mask_crop !== ONLY_MASKED_PX,
    "hires.height": hires && Math.abs((request.height * hires.width) / request.width - hires.height) >= MULTIPLE_PX / 2,
    "hires.steps": hires?.steps && hires.steps !== request.num_inference_steps,
  };
  for (const [name, value] of Object.entries(scheduler_options ?? {})) if (name !== "karras_sigmas") found[`scheduler_options.${name}`] = value;
  for (const [place, one] of (controlnets ?? []).entries()) {
    found[`controlnets[${place}].image`] = !held(one.image);
    found[`controlnets[${place}].options`] = Object.keys(one.options ?? {}).length;
    found[`controlnets[${place}].resize_mode`] = one.resize_mode && one.resize_mode !== "stretch";
    found[`controlnets[${place}].control_mode`] = one.control_mode && one.control_mode !== "balanced";
  }
  return Object.keys(found).filter((name) => found[name]);
}

export class Form {
  prompt = $state("");
  negative_prompt = $state("");
  weighted = $state(false);
  model = $state("");
  width = $state<number | null>(null);
  height = $state<number | null>(null);
  num_inference_steps = $state<number | null>(null);
  guidance_scale = $state<number | null>(null);
  scheduler = $state("");
  karras_sigmas = $state(false);
  seed = $state("");
  seedLocked = $state(false);
  num_images = $state(1);
  clip_skip = $state<number | null>(null);
  priority = $state(5);
  format = $state("png");
  image = $state<Held | null>(null);
  mask = $state<Held | null>(null);
  strength = $state(0.8);
  mask_blur = $state(0);
  mask_fill = $state("original");
  only_masked = $state(false);
  controlnets = $state<Control[]>([]);
  loras = $state<Lora[]>([]);
  hires = $state(1); // how much larger the second pass is; 1: there is none
  hires_strength = $state(0.7);
  upscaler = $state<NonNullable<HiresInput["upscaler"]>>("latent");
  /** Fields of the request last taken over that are not drawn again. */
  left = $state<string[]>([]);

  body(): Record<string, unknown> {
    const set: Record<string, unknown> = { prompt: this.prompt, preview: { every_steps: 1 } };
    const put = (name: string, value: unknown, unless: unknown = null) => {
      if (value !== unless && value !== null && value !== "" && !Number.isNaN(value)) set[name] = value;
    };
    put("negative_prompt", this.negative_prompt);
    put("prompt_syntax", this.weighted ? "weighted" : null);
    put("model", this.model);
    put("width", this.width);
    put("height", this.height);
    put("num_inference_steps", this.num_inference_steps);
    put("guidance_scale", this.guidance_scale);
    put("scheduler", this.scheduler);
    if (this.karras_sigmas) set.scheduler_options = { karras_sigmas: true };
    if (this.seedLocked) put("seed", this.seed.trim()); // also one that is none: the server says so
    put("num_images", this.num_images, 1);
    put("clip_skip", this.clip_skip);
    put("priority", this.priority, 5);
    if (this.format !== "png") set.output = { format: this.format };
    if (this.image) {
      set.image = `asset:${this.image.id}`;
      set.strength = this.strength;
      if (this.mask) {
        set.mask = `asset:${this.mask.id}`;
        put("mask_blur", this.mask_blur, 0);
        put("mask_fill", this.mask_fill, "original");
        if (this.only_masked) set.padding_mask_crop = ONLY_MASKED_PX;
      }
    }
    if (this.hires > 1 && !this.image) set.hires = { scale: this.hires, strength: this.hires_strength, upscaler: this.upscaler };
    // also those that lack their picture: the server says so, and nothing is drawn without what was chosen
    if (this.controlnets.length) {
      set.controlnets = this.controlnets.map(({ model, image, preprocessor, scale, start, end }) => ({
        model, ...(image ? { image: `asset:${image.id}` } : {}), preprocessor, scale, start, end,
      }));
    }
    const loras = this.loras.filter((one) => one.name);
    if (loras.length) set.loras = loras.map(({ name, scale }) => ({ name, scale }));
    return set;
  }

  /** Take over a request as the server resolved it, or as a picture's metadata keeps it. */
  fill(request: Readonly<Record<string, unknown>>, seed: number | string | null) {
    const text = (name: string, or: string) => (typeof request[name] === "string" ? (request[name] as string) : or);
    const number = (name: string) => (typeof request[name] === "number" ? (request[name] as number) : null);
    this.prompt = text("prompt", "");
    this.negative_prompt = text("negative_prompt", "");
    this.weighted = request.prompt_syntax === "weighted";
    this.model = text("model", "");
    this.width = number("width");
    this.height = number("height");
    this.num_inference_steps = number("num_inference_steps");
    this.guidance_scale = number("guidance_scale");
    this.scheduler = text("scheduler", "");
    this.karras_sigmas = (request.scheduler_options as { karras_sigmas?: boolean } | undefined)?.karras_sigmas === true;
    this.clip_skip = number("clip_skip");
    this.num_images = 1;
    this.seed = seed === null ? "" : String(seed);
    this.seedLocked = seed !== null;
    this.image = held(request.image);
    this.mask = held(request.mask);
    this.strength = number("strength") ?? 0.8;
    this.mask_blur = number("mask_blur") ?? 0;
    this.mask_fill = text("mask_fill", "original");
    this.only_masked = number("padding_mask_crop") !== null;
    const list = (name: string) => (Array.isArray(request[name]) ? (request[name] as Record<string, unknown>[]) : []);
    this.controlnets = list("controlnets").map((one) => ({
      key: newKey(), model: String(one.model ?? ""), image: held(one.image), preprocessor: String(one.preprocessor ?? "none"),
      scale: Number(one.scale ?? 1), start: Number(one.start ?? 0), end: Number(one.end ?? 1),
    }));
    const hires = request.hires as { width: number; strength: number; upscaler: NonNullable<HiresInput["upscaler"]> } | null | undefined;
    this.hires = hires && this.width ? hires.width / this.width : 1;
    this.hires_strength = hires?.strength ?? 0.7;
    this.upscaler = hires?.upscaler ?? "latent";
    this.loras = list("loras").map((one) => ({ key: newKey(), name: String(one.name ?? ""), scale: Number(one.scale ?? 1) }));
    for (const one of [this.image, ...this.controlnets.map((control) => control.image)]) measure(one);
    this.left = homeless(request);
  }

  /** A mask stays with a picture of its size. */
  begin(picture: Held | null) {
    if (picture?.width !== this.image?.width || picture?.height !== this.image?.height) this.mask = null;
    this.image = picture;
  }
}

export const form = new Form();
