/* Sorts and filters a table (.sheet, written by scripts/sheet.py): a button in every head, a select a facet, a search.
   The state stands in the address. Without this script the table is whole, in its own order. */
(() => {
  const root = document.querySelector(".sheet");
  if (!root) return;
  const form = root.querySelector("form");
  const body = root.querySelector("tbody");
  const selects = [...form.querySelectorAll("select")];
  const heads = [...root.querySelectorAll("th[data-key]")];
  const rows = [...body.rows].map((node, place) => ({ node, place, text: node.textContent.toLowerCase() }));
  const counter = form.querySelector("output");
  let sort = "";

  heads.forEach((head) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
    button.addEventListener("click", () => {
      const { key } = head.dataset;
      // Numbers start with the largest, words with A; a third click gives the first order back.
      const turns = "number" in head.dataset ? [`-${key}`, key, ""] : [key, `-${key}`, ""];
      sort = turns[(turns.indexOf(sort) + 1) % 3];
      order();
      address.set({ sort }, true);
    });
    head.replaceChildren(button);
  });

  function order() {
    const down = sort.startsWith("-");
    const at = heads.findIndex((head) => head.dataset.key === sort.replace(/^-/, ""));
    const column = heads[at]?.cellIndex;
    const numbers = at >= 0 && "number" in heads[at].dataset;
    heads.forEach((head, i) => {
      if (i === at) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const value = ({ node }) => {
      const cell = node.cells[column];
      return numbers ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent;
    };
    const compare = (a, b) => {
      if (at < 0) return a.place - b.place;
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place; // what is not measured is last
      return (numbers ? x - y : x.localeCompare(y)) * (down ? -1 : 1) || a.place - b.place;
    };
    body.append(...[...rows].sort(compare).map(({ node }) => node));
  }

  function filter() {
    const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { node, text } of rows) {
      const fits = words.every((word) => text.includes(word)) && selects.every((s) => !s.value || node.dataset[s.name] === s.value);
      node.hidden = !fits;
      shown += fits;
    }
    counter.textContent = `${shown} of ${rows.length} shown`;
    root.dispatchEvent(new CustomEvent("filtered"));
  }

  function fromAddress() {
    form.q.value = address.get("q");
    for (const select of selects) {
      select.value = address.get(select.name);
      if (select.selectedIndex < 0) select.value = "";
    }
    sort = heads.some((head) => head.dataset.key === address.get("sort").replace(/^-/, "")) ? address.get("sort") : "";
    order();
    filter();
  }

  const toAddress = (push) =>
    address.set(Object.fromEntries([["q", form.q.value.trim()], ["sort", sort], ...selects.map((s) => [s.name, s.value])]), push);
  form.addEventListener("input", (event) => {
    filter();
    toAddress(event.target !== form.q);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () =>
    setTimeout(() => {
      sort = "";
      order();
      filter();
      toAddress(true);
    }),
  );
  address.onChange(fromAddress);
  form.hidden = false;
  fromAddress();
})();
