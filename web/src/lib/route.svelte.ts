// Which view is shown: the part of the address after `#`. Links are plain links, so back and forward work.

export const VIEWS = ["make", "watch", "gallery", "machine"] as const;
export type View = (typeof VIEWS)[number];

const parse = (): View => {
  const name = location.hash.replace(/^#\/?/, "").split("?")[0] as View;
  return VIEWS.includes(name) ? name : "make";
};

class Route {
  view = $state<View>(parse());
  constructor() {
    addEventListener("hashchange", () => (this.view = parse()));
  }
  go(view: View) {
    location.hash = `#/${view}`;
  }
}

export const route = new Route();
