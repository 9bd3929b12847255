import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// The built page lies in the package: a wheel carries it, the server gives it out at / and /page/.
export default defineConfig({
  plugins: [svelte()],
  base: "/page/",
  build: { outDir: "../src/mezzotint/page", emptyOutDir: true, modulePreload: { polyfill: false }, assetsInlineLimit: 0 },
});
