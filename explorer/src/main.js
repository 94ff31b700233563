import { App } from "./app.js";
import { find } from "./dom.js";
import { readPayload } from "./payload.js";

async function start() {
  try {
    if (!window.DecompressionStream) {
      throw new Error("This browser is too old for the page: Chrome 80, Firefox 113 and Safari 16.4 are enough.");
    }
    const { header, arrays } = await readPayload();
    const app = new App(header, arrays);
    await app.begin();
    find("cover").remove();
    return app;
  } catch (error) {
    find("cover").textContent = `The page could not be shown. ${error.message}`;
    throw error;
  }
}

/** For scripts: resolves to the page's parts once all is shown. */
window.explorer = start();
