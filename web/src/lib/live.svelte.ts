// Sessions that have not ended, kept current for every view by one stream of all events and, now and then, the list.

import { get, Problem, readJson, SESSIONS } from "./api";
import type { Picture, Preview, Progress, Session } from "./types";

const LIST_MS = 5000; // places in the queue are told by the list only
const AGAIN_MS = 1500;
const SHOW_MS = 200; // between two times that what came is shown

/** What keeps the whole page from its work, by the code of the error. */
const TROUBLE: Record<string, string> = {
  unreachable: "The server does not answer. What was accepted is safe on its disk; this page goes on by itself when it is back.",
  invalid_api_key: "The API key that this page was opened with is not in force any more. Load the page again to give another.",
};

const STATES = ["running", "paused", "queued"]; // of each a page where one does not hold all: the newest would be the queue
const PAGE = 200;

class Live {
  active = $state<Session[]>([]);
  /** States of which there are more than `active` has. */
  cut = $state<ReadonlySet<string>>(new Set());
  /** Why the page is not current; empty while it is. */
  trouble = $state("");
  /** The last picture on its way of each active session, as a data URL. */
  previews = $state<Record<string, string>>({});
  #stream: EventSource | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #ended = new Set<(session: Session) => void>();
  #progressed = new Set<(session: Session, call: number) => void>();
  #progress = new Map<string, Progress>();
  #pictures = new Map<string, string>();
  #show: ReturnType<typeof setTimeout> | undefined;

  constructor() {
    document.addEventListener("visibilitychange", () => this.#wake());
    this.#wake();
  }

  /** Called with every session that has ended. Returns how to stop that. */
  onEnded(callback: (session: Session) => void): () => void {
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
      const page = (of: string) => get<{ sessions: Session[]; next_cursor: string | null }>(`${SESSIONS}?${of}&limit=${PAGE}`);
      let pages = [await page("active=true")];
      if (pages[0]?.next_cursor) pages = await Promise.all(STATES.map((state) => page(`state=${state}`)));
      const found = new Map(pages.flatMap((page) => page.sessions).map((one) => [one.id, one])); // one may move meanwhile
      this.active = [...found.values()].toSorted((a, b) => (a.id < b.id ? 1 : -1));
      this.cut = new Set(STATES.filter((_, at) => pages[at]?.next_cursor));
      this.trouble = "";
      if (!this.#stream && !document.hidden) this.#listen();
    } catch (error) {
      if (this.lost(error)) return;
      this.trouble = error instanceof Error ? error.message : String(error);
    }
    this.#again(LIST_MS);
  }

  /** Whether an error keeps the whole page from its work, which is then said above all views until it is over. */
  lost(error: unknown): boolean {
    if (!(error instanceof Problem) || !(error.code in TROUBLE)) return false;
    this.trouble = TROUBLE[error.code]!;
    if (error.code === "unreachable") {
      this.#hangUp(); // it may be dead without a word
      this.#again(AGAIN_MS);
    } else clearTimeout(this.#timer); // no key opens again
    return true;
  }

  #again(after: number) {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => void this.look(), after);
  }

  #wake() {
    if (document.hidden) {
      clearTimeout(this.#timer);
      this.#hangUp();
    } else void this.look();
  }

  #hangUp() {
    this.#stream?.close();
    this.#stream = undefined;
  }

  #listen() {
    const stream = (this.#stream = new EventSource("/api/inference/events"));
    const on = <T>(kind: string, take: (body: T & { session_id: string }) => void) =>
      stream.addEventListener(kind, (event) => take(readJson((event as MessageEvent<string>).data)));
    on<Session>("state", (session) => this.#state(session));
    on<Progress>("progress", ({ session_id, ...progress }) => this.#took(session_id, progress));
    on<Preview>("preview", (preview) => {
      this.#pictures.set(preview.session_id, `data:image/${preview.format};base64,${preview.b64_json}`);
      this.#soon();
    });
    on<Picture>("image", ({ session_id, ...picture }) => {
      const session = this.#find(session_id);
      if (!session || session.images.some((one) => one.index === picture.index)) return;
      // the end comes with the last one, and who still shows the session then has it from there
      if (session.images.length + 1 < session.request.num_images) session.images.push(picture);
    });
    stream.onerror = () => {
      stream.close();
      if (this.#stream === stream) this.#stream = undefined;
      this.#again(AGAIN_MS);
    };
  }

  #find(id: string): Session | undefined {
    return this.active.find((one) => one.id === id);
  }

  /** How many there are in a state, or all in all: "200+" where there are more than the page has. */
  count(state?: string): string {
    const known = this.active.filter((one) => !state || one.state === state).length;
    return `${known}${(state ? this.cut.has(state) : this.cut.size) ? "+" : ""}`;
  }

  #state(session: Session & { session_id?: string }) {
    this.#progress.delete(session.id); // older than this
    const at = this.active.findIndex((one) => one.id === session.id);
    if (["succeeded", "failed", "cancelled", "expired"].includes(session.state)) {
      if (at >= 0) this.active.splice(at, 1);
      delete this.previews[session.id];
      this.#pictures.delete(session.id);
      this.#ended.forEach((callback) => callback(session));
    } else if (at >= 0) this.active[at] = session;
    else this.active.unshift(session);
  }

  #took(id: string, progress: Progress) {
    const before = this.#progress.get(id) ?? this.#find(id)?.progress;
    this.#progress.set(id, progress);
    this.#soon();
    const session = this.#find(id);
    if (session && progress.call && progress.call !== before?.call) this.#progressed.forEach((callback) => callback(session, progress.call!));
  }

  /** Steps and pictures come faster than anybody looks. */
  #soon() {
    this.#show ??= setTimeout(() => {
      this.#show = undefined;
      for (const session of this.active) {
        const progress = this.#progress.get(session.id);
        const picture = this.#pictures.get(session.id);
        if (progress) session.progress = progress;
        if (picture) this.previews[session.id] = picture;
      }
      this.#progress.clear();
      this.#pictures.clear();
    }, SHOW_MS);
  }
}

export const live = new Live();
