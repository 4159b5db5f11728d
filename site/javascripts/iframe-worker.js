/* Search without a server. Browsers refuse workers on file://, so there the search script runs in a hidden frame that
   offers it what a worker has: postMessage, messages, importScripts. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = "<!doctype html><title>Search</title>";
      this.ready = new Promise((resolve) => this.frame.addEventListener("load", resolve, { once: true })).then(() => {
        const inner = this.frame.contentWindow;
        inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        inner.importScripts = async (...urls) => {
          for (const src of urls)
            await new Promise((resolve, reject) => {
              const script = inner.document.createElement("script");
              Object.assign(script, { src, onload: resolve, onerror: reject });
              inner.document.head.append(script);
            });
        };
        return inner.importScripts(String(url));
      });
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
