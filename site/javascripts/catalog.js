/* Search, filters, order and BibTeX of a list page. Everything shown is in the page already; this script only hides and
   reorders it. The whole state stands in the address, after the #: #q=head+pruning&granularity=head&sort=title */
(() => {
  const root = document.querySelector(".catalogue");
  if (!root) return;
  const form = root.querySelector("form");
  const list = root.querySelector(".entries");
  const counter = form.querySelector("output");
  const bibtex = root.querySelector(".bibtex");
  const items = [...list.children].map((node, place) => ({
    node,
    place,
    text: [node.id, node.textContent, ...Object.values(node.dataset)].join(" ").toLowerCase(), // short names and models too
    title: node.querySelector("h2").textContent.toLowerCase(),
  }));
  const facets = [...form.querySelectorAll("fieldset")].map((fieldset) => {
    const name = fieldset.dataset.facet;
    for (const item of items) item[name] = item.node.dataset[name].split(" ").filter(Boolean);
    const boxes = [...fieldset.querySelectorAll("input")];
    return { name, boxes, counts: boxes.map((box) => box.parentNode.querySelector("span")) };
  });
  const orders = {
    "": (a, b) => a.place - b.place,
    title: (a, b) => a.title.localeCompare(b.title),
    newest: (a, b) => b.node.dataset.date.localeCompare(a.node.dataset.date) || a.place - b.place,
    oldest: (a, b) => (a.node.dataset.date || "9").localeCompare(b.node.dataset.date || "9") || a.place - b.place,
    added: (a, b) => b.node.dataset.added.localeCompare(a.node.dataset.added) || a.place - b.place,
    claims: (a, b) => b.node.dataset.claims - a.node.dataset.claims || a.place - b.place,
  };
  let shown = items;
  let order = "";

  /** Apply the form to the list. Within a facet one of the ticked values must match, and every facet must. */
  function update() {
    const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const ticked = facets.map(({ boxes }) => new Set(boxes.filter((box) => box.checked).map((box) => box.value)));
    const counts = facets.map(() => new Map());
    shown = [];
    for (const item of items) {
      const found = words.every((word) => item.text.includes(word));
      const failing = found ? facets.flatMap(({ name }, f) => (ticked[f].size && !item[name].some((v) => ticked[f].has(v)) ? f : [])) : [];
      const hidden = !found || failing.length > 0;
      if (item.node.hidden !== hidden) item.node.hidden = hidden;
      if (!hidden) shown.push(item);
      // A value counts what ticking it would show: items that fail no other facet.
      if (found && failing.length < 2)
        facets.forEach(({ name }, f) => {
          if (failing.length === 0 || failing[0] === f)
            for (const value of item[name]) counts[f].set(value, (counts[f].get(value) || 0) + 1);
        });
    }
    facets.forEach(({ boxes, counts: spans }, f) =>
      boxes.forEach((box, i) => {
        const count = counts[f].get(box.value) || 0;
        spans[i].textContent = count;
        box.parentNode.classList.toggle("none", count === 0 && !box.checked);
      }),
    );
    if (form.sort.value !== order) {
      order = form.sort.value;
      list.append(...[...items].sort(orders[order]).map((item) => item.node));
    }
    shown.sort(orders[order]);
    const ticks = ticked.reduce((sum, values) => sum + values.size, 0);
    counter.textContent = `${shown.length} of ${items.length} ${root.dataset.kind}${ticks ? `, ${ticks} filter${ticks > 1 ? "s" : ""}` : ""}`;
    if (bibtex && !bibtex.hidden) showBibtex();
  }

  function toAddress(push) {
    const state = new URLSearchParams();
    if (form.q.value.trim()) state.set("q", form.q.value.trim());
    for (const { name, boxes } of facets) {
      const values = boxes.filter((box) => box.checked).map((box) => box.value);
      if (values.length) state.set(name, values.join(","));
    }
    if (form.sort.value) state.set("sort", form.sort.value);
    const address = String(state).replaceAll("%2C", ",").replaceAll("%3A", ":");
    if (address === location.hash.slice(1)) return;
    // "#" alone would jump to the top, and without it the address would keep an old state.
    history[push ? "pushState" : "replaceState"](null, "", address ? `#${address}` : location.pathname + location.search);
  }

  function fromAddress() {
    const plain = location.hash && !location.hash.includes("=");
    const state = new URLSearchParams(plain ? "" : location.hash.slice(1));
    form.q.value = state.get("q") || "";
    form.sort.value = Object.hasOwn(orders, state.get("sort") || "") ? state.get("sort") || "" : "";
    if (form.sort.selectedIndex < 0) form.sort.value = "";
    for (const { name, boxes } of facets) {
      const values = (state.get(name) || "").split(",");
      for (const box of boxes) box.checked = values.includes(box.value);
      if (boxes.some((box) => box.checked)) form.querySelector(".facets").open = true;
    }
    update();
    if (plain) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  }

  /** The entries of the view as BibTeX. They come in a script of their own, loaded when first asked for. */
  async function showBibtex() {
    if (!window.bibtex)
      await new Promise((resolve, reject) => {
        const script = document.createElement("script");
        Object.assign(script, { src: "data/bibtex.js", onload: resolve, onerror: reject });
        document.head.append(script);
      });
    bibtex.querySelector("textarea").value = shown.map(({ node }) => window.bibtex[node.id]).join("\n\n");
  }

  form.addEventListener("input", (event) => {
    update();
    toAddress(event.target !== form.q); // a step back in the browser undoes a filter, not a letter
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () =>
    setTimeout(() => {
      update();
      toAddress(true);
      form.q.focus();
    }),
  );
  form.querySelector(".bib")?.addEventListener("click", async () => {
    bibtex.hidden = !bibtex.hidden;
    if (bibtex.hidden) return;
    await showBibtex();
    bibtex.querySelector("textarea").select();
  });
  window.addEventListener("popstate", fromAddress);

  // Arrow keys walk from the search field through the results.
  root.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const item = event.target.closest(".entries > li");
    if (!step || !(item || event.target === form.q)) return;
    const next = (item ? shown.findIndex(({ node }) => node === item) : -1) + step;
    if (next >= shown.length || (!item && step < 0)) return;
    event.preventDefault();
    (next < 0 ? form.q : shown[next].node.querySelector("h2 a")).focus();
  });

  form.hidden = false;
  form.querySelector(".facets").open = matchMedia("(min-width: 60em)").matches;
  fromAddress();
})();
