/* Search, filters, order and BibTeX of a list page. Everything shown is in the page already; this script only takes
   entries out and puts them back: the first LIMIT of the view, and all of it when asked (a browser styles thousands of
   entries in seconds, and hiding them is slower still). The whole state stands in the address, after the #: #q=head+pruning&granularity=head&sort=title */
(() => {
  const root = document.querySelector(".catalogue");
  if (!root) return;
  const form = root.querySelector("form");
  const list = root.querySelector(".entries");
  const counter = form.querySelector("output");
  const bibtex = root.querySelector(".bibtex");
  const LIMIT = 60;
  const more = Object.assign(document.createElement("button"), { type: "button", className: "md-button more" });
  list.after(more);
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
  let whole = false; // all of the view, not its first LIMIT entries

  /** Apply the form to the list. Within a facet one of the ticked values must match, and every facet must. */
  function update() {
    const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const ticked = facets.map(({ boxes }) => new Set(boxes.filter((box) => box.checked).map((box) => box.value)));
    const counts = facets.map(() => new Map());
    shown = [];
    for (const item of items) {
      const found = words.every((word) => item.text.includes(word));
      const failing = found ? facets.flatMap(({ name }, f) => (ticked[f].size && !item[name].some((v) => ticked[f].has(v)) ? f : [])) : [];
      if (found && !failing.length) shown.push(item);
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
    shown.sort(orders[form.sort.value]);
    whole = false;
    draw();
    const ticks = ticked.reduce((sum, values) => sum + values.size, 0);
    counter.textContent = `${shown.length} of ${items.length} ${root.dataset.kind}${ticks ? `, ${ticks} filter${ticks > 1 ? "s" : ""}` : ""}`;
    if (bibtex && !bibtex.hidden) showBibtex();
  }

  /** Put the view into the list. */
  function draw() {
    whole ||= shown.length <= LIMIT;
    list.replaceChildren(...(whole ? shown : shown.slice(0, LIMIT)).map(({ node }) => node));
    more.hidden = whole;
    more.textContent = `Show all ${shown.length}`;
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
    if (!plain) return;
    const id = decodeURIComponent(location.hash.slice(1));
    if (!document.getElementById(id) && shown.some(({ node }) => node.id === id)) {
      whole = true;
      draw();
    }
    document.getElementById(id)?.scrollIntoView();
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
  more.addEventListener("click", () => {
    const next = shown[LIMIT];
    whole = true;
    draw();
    next.node.querySelector("h2 a").focus();
  });
  window.addEventListener("popstate", fromAddress);

  // Arrow keys walk from the search field through the results.
  root.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const item = event.target.closest(".entries > li");
    if (!step || !(item || event.target === form.q)) return;
    const next = item ? item[step > 0 ? "nextElementSibling" : "previousElementSibling"] : step > 0 && list.firstElementChild;
    if (!next && !(item && step < 0)) return;
    event.preventDefault();
    (next ? next.querySelector("h2 a") : form.q).focus();
  });

  form.hidden = false;
  form.querySelector(".facets").open = matchMedia("(min-width: 60em)").matches;
  fromAddress();
})();
