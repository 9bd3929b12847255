// Sessions that have not ended, kept current for every view by one stream of all events and, now and then, the list.

import { get, readJson, SESSIONS } from "./api";
import type { Picture, Preview, Progress, Session } from "./types";

const LIST_MS = 5000; // places in the queue are told by the list only
const AGAIN_MS = 1500;

class Live {
  active = $state<Session[]>([]);
  reachable = $state(true);
  /** The last picture on its way of each active session, as a data URL. */
  previews = $state<Record<string, string>>({});
  #stream: EventSource | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #ended = new Set<() => void>();
  #progressed = new Set<(session: Session, call: number) => void>();

  constructor() {
    document.addEventListener("visibilitychange", () => this.#wake());
    this.#wake();
  }

  /** Called whenever a session has ended. Returns how to stop that. */
  onEnded(callback: () => void): () => void {
    this.#ended.add(callback);
    return () => this.#ended.delete(callback);
  }

  /** Called after every model call that a session was in, with the number of the call. */
  onProgress(callback: (session: Session, call: number) => void) {
    this.#progressed.add(callback);
  }

  /** Read the list now, as after something was asked for. */
  async look() {
    clearTimeout(this.#timer);
    try {
      this.active = (await get<{ sessions: Session[] }>(`${SESSIONS}?active=true&limit=200`)).sessions;
      this.reachable = true;
      if (!this.#stream && !document.hidden) this.#listen();
    } catch {
      this.reachable = false;
    }
    if (!document.hidden) this.#timer = setTimeout(() => void this.look(), this.reachable ? LIST_MS : AGAIN_MS);
  }

  #wake() {
    if (document.hidden) {
      clearTimeout(this.#timer);
      this.#stream?.close();
      this.#stream = undefined;
    } else void this.look();
  }

  #listen() {
    const stream = (this.#stream = new EventSource("/api/inference/events"));
    const on = <T>(kind: string, take: (body: T & { session_id: string }) => void) =>
      stream.addEventListener(kind, (event) => take(readJson((event as MessageEvent<string>).data)));
    on<Session>("state", (session) => this.#state(session));
    on<Progress>("progress", ({ session_id, ...progress }) => this.#progress(session_id, progress));
    on<Preview>("preview", (preview) => {
      if (this.#find(preview.session_id)) this.previews[preview.session_id] = `data:image/${preview.format};base64,${preview.b64_json}`;
    });
    on<Picture>("image", ({ session_id, ...picture }) => {
      const session = this.#find(session_id);
      if (session && !session.images.some((one) => one.index === picture.index)) session.images.push(picture);
    });
    stream.onerror = () => {
      stream.close();
      if (this.#stream === stream) this.#stream = undefined;
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => void this.look(), AGAIN_MS);
    };
  }

  #find(id: string): Session | undefined {
    return this.active.find((one) => one.id === id);
  }

  #state(session: Session & { session_id?: string }) {
    const at = this.active.findIndex((one) => one.id === session.id);
    if (["succeeded", "failed", "cancelled", "expired"].includes(session.state)) {
      if (at >= 0) this.active.splice(at, 1);
      delete this.previews[session.id];
      this.#ended.forEach((callback) => callback());
    } else if (at >= 0) this.active[at] = session;
    else this.active.unshift(session);
  }

  #progress(id: string, progress: Progress) {
    const session = this.#find(id);
    if (!session) return;
    const before = session.progress.call;
    session.progress = progress;
    if (progress.call && progress.call !== before) this.#progressed.forEach((callback) => callback(session, progress.call!));
  }
}

export const live = new Live();
