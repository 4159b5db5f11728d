/* The part of the address behind "#" as state that several scripts of a page share, each with keys of its own:
   address.get("sort"), address.set({sort: "psnr"}), address.onChange(read). A plain "#anchor" is no state. */
window.address = (() => {
  const read = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  return {
    get: (key) => read().get(key) || "",
    /** Empty values leave the address. `push` makes a step that the browser's back button undoes. */
    set(values, push = false) {
      const state = read();
      for (const [key, value] of Object.entries(values)) value ? state.set(key, value) : state.delete(key);
      const text = String(state).replaceAll("%2C", ",").replaceAll("%3A", ":");
      if (text === String(read()).replaceAll("%2C", ",").replaceAll("%3A", ":")) return;
      history[push ? "pushState" : "replaceState"](null, "", text ? `#${text}` : location.pathname + location.search);
    },
    onChange(listener) {
      window.addEventListener("popstate", listener);
    },
  };
})();
