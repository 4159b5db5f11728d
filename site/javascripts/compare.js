/* Two runs side by side: a tick in a row of the table picks it, the third pushes out the first. Fields that differ come
   first. All fields come in a script of their own, loaded when two runs are picked. State: compare=RUN,RUN. */
(() => {
  const out = document.querySelector("#compare");
  const table = document.querySelector(".sheet table");
  if (!out || !table) return;
  const ids = new Set([...table.tBodies[0].rows].map((row) => row.id));
  const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text, ...properties });
  let picked = [];

  table.tHead.rows[0].prepend(element("th", "Compare", { scope: "col" }));
  for (const row of table.tBodies[0].rows) {
    const box = element("input", "", { type: "checkbox", ariaLabel: `compare ${row.id}` });
    box.addEventListener("change", () => {
      picked = box.checked ? [...picked, row.id].slice(-2) : picked.filter((id) => id !== row.id);
      address.set({ compare: picked.join(",") }, true);
      show();
    });
    row.insertCell(0).append(box);
  }

  async function load() {
    if (window.runFields) return;
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      Object.assign(script, { src: "data/run-fields.js", onload: resolve, onerror: reject });
      document.head.append(script);
    });
  }

  const isNumber = (value) => Array.isArray(value);
  const short = (number) => Number(number.toPrecision(4));
  const shown = (value) => (value === undefined ? "-" : isNumber(value) ? `${short(value[0])} (${short(value[1])} to ${short(value[2])})` : value);

  /** What two intervals allow to say; nothing where one has none. */
  function apart(a, b) {
    if (!isNumber(a) || !isNumber(b)) return "";
    return a[1] > b[2] || b[1] > a[2] ? "differs: the intervals are apart" : "the intervals overlap";
  }

  function part(names, [a, b], caption) {
    const node = element("table", "", { className: "data" });
    node.createCaption().textContent = caption;
    const head = node.createTHead().insertRow();
    for (const text of ["Field", "First", "Second", ""]) head.append(element("th", text, { scope: "col" }));
    const body = node.createTBody();
    for (const name of names) {
      const row = body.insertRow();
      row.append(element("th", name, { scope: "row" }));
      for (const text of [shown(a.fields[name]), shown(b.fields[name]), apart(a.fields[name], b.fields[name])]) row.insertCell().textContent = text;
    }
    return node;
  }

  async function show() {
    for (const box of table.querySelectorAll("input[type=checkbox]")) box.checked = picked.includes(box.closest("tr").id);
    if (picked.length < 2) {
      out.replaceChildren(...(picked.length ? [element("p", `First run: ${picked[0]}. Tick a second one.`)] : []));
      return;
    }
    await load();
    const two = picked.map((id) => window.runFields[id]);
    const names = [...new Set(two.flatMap((run) => Object.keys(run.fields)))];
    const differs = names.filter((name) => JSON.stringify(two[0].fields[name]) !== JSON.stringify(two[1].fields[name]));
    const results = (name) => /^(quality|speed-up|nominal|achieved)/.test(name);
    const title = element("h2", "Two runs beside each other");
    const who = element("ul", "");
    two.forEach((run, i) => who.append(element("li", `${["First", "Second"][i]}: ${run.name} (${picked[i]})`)));
    const equal = element("details", "");
    equal.append(element("summary", `${names.length - differs.length} fields that are equal`), part(names.filter((name) => !differs.includes(name)), two, "Equal"));
    const close = element("button", "Close the comparison", { type: "button" });
    close.addEventListener("click", () => {
      picked = [];
      address.set({ compare: "" }, true);
      show();
    });
    out.replaceChildren(title, who, part(differs.filter((name) => !results(name)), two, "Made or asked differently"), part(differs.filter(results), two, "Measured"), equal, close);
  }

  function fromAddress() {
    picked = address.get("compare").split(",").filter((id) => ids.has(id)).slice(0, 2);
    show();
  }
  address.onChange(fromAddress);
  fromAddress();
})();
