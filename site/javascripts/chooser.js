/* The chooser on the home page: of the published runs (window.measured, generated/data/runs.js) those that meet the
   asked limits and that no other run beats in fidelity, speed and size at once. No run, no answer: it says which is
   missing. */
(() => {
  const form = document.querySelector(".chooser form");
  if (!form || !window.measured) return;
  const { models, runs, timed, claims, subjects } = window.measured;
  const out = document.querySelector(".chooser .answer");
  const SHOWN = 6; // rows before the others are folded
  const measured = [...new Set(runs.map((run) => run.model))];
  const devices = [...new Set(runs.map((run) => run.device))];

  const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);
  const option = (value, text) => new Option(text, value);
  const group = (label, options) => {
    const node = Object.assign(document.createElement("optgroup"), { label });
    node.append(...options);
    return node;
  };
  form.model.append(
    group("measured", measured.map((model) => option(model, model))),
    group("in the catalogue, not measured", Object.entries(models).filter(([id]) => !measured.includes(id)).map(([id, label]) => option(id, label))),
  );
  form.device.append(
    group("measured", devices.map((device) => option(device, device))),
    group("not measured", ["NVIDIA H100", "another GPU", "another CPU"].map((device) => option(device, device))),
  );
  form.floor.append(
    option("0", "anything: show every trade"),
    option("12", "much: PSNR to the dense picture of 12 dB or more"),
    option("15", "some: 15 dB or more"),
    option("noise", "no more than another noise changes a picture"),
  );
  form.budget.append(
    option("0", "none"),
    option("60", "one minute on that device"),
    option("3600", "one hour on that device"),
    option("Infinity", "any"),
  );
  form.budget.value = "Infinity";

  const percent = (share) => `${Math.round(100 * share)} %`;
  const spread = ([value, low, high], digits, unit = "") => `${value.toFixed(digits)}${unit} (${low.toFixed(digits)} to ${high.toFixed(digits)})`;
  const gains = (run) => [run.psnr[0], run.speed ? run.speed[0] : 0, run.file];
  const kind = (run) => (run.unit.includes(":") ? `weights, ${run.unit}` : `${run.unit}s`);
  const units = (run) => `${percent(run.amount)} of the ${kind(run)}`;
  const beats = (a, b) => {
    const [x, y] = [gains(a), gains(b)];
    return x.every((gain, i) => gain >= y[i]) && x.some((gain, i) => gain > y[i]);
  };
  const enough = (run, floor) => run.psnr[0] >= (floor === "noise" ? run.noise : Number(floor));

  /** What a run is best at among those of the front. */
  function bests(run, front) {
    const best = (i) => gains(run)[i] === Math.max(...front.map((one) => gains(one)[i]));
    const found = [];
    if (best(0)) found.push("closest to the dense pictures");
    if (best(1) && run.speed?.[1] > 1) found.push("fastest");
    if (best(2) && run.file > 0) found.push("smallest file");
    return found;
  }

  /** Why a run is in the answer. */
  function reason(run, front) {
    const reasons = bests(run, front);
    if (!reasons.length) reasons.push("nothing here is closer, faster and smaller at once");
    if (run.speed && run.speed[1] <= 1) reasons.push("its interval of speed holds 1.00: no gain shown");
    else if (run.phantom) reasons.push("phantom: less than half of the nominal gain arrives");
    return reasons.join("; ");
  }

  /** What the recovery costs, and after how many pictures the time is earned back. */
  function cost(run) {
    const data = run.data ? "prompts to calibrate on; " : "";
    if (!run.seconds) return `${data}no training`;
    const training = `${data}${run.recovery}, ${run.rounds} round${run.rounds > 1 ? "s" : ""}, ${run.seconds.toFixed(0)} s`;
    if (!run.speed) return `${training}; not timed after it`;
    if (run.speed[1] <= 1) return `${training}; no time is earned back`;
    return `${training}; earned back after ${Math.ceil(run.seconds / run.saved).toLocaleString("en")} pictures`;
  }

  /** A table of some runs of the front. */
  function table(those, front) {
    const node = element("table", "", { className: "data stack" });
    const pictures = those.find((run) => run.pictures)?.pictures;
    const heads = ["Remove", "Scored by", "Speed-up" + (pictures ? `, ${pictures} pictures` : ""), "PSNR, dB", "Parameters gone", "File", "Recovery", "Why it is here", "Run"];
    const row = node.createTHead().insertRow();
    for (const head of heads) row.append(element("th", head, { scope: "col" }));
    const body = node.createTBody();
    for (const run of those) {
      const line = body.insertRow();
      const size = run.file > 0 ? `-${percent(run.file)}` : "same";
      const speed = run.speed ? spread(run.speed, 2, "x") : "not timed";
      for (const text of [units(run), run.criterion, speed, spread(run.psnr, 1), percent(run.parameters), size, cost(run), reason(run, front)])
        line.insertCell().textContent = text;
      line.cells[0].className = "tag-cell";
      line.cells[0].dataset.unit = run.unit.includes(":") ? "N:M" : run.unit;
      line.cells[1].replaceChildren(element("a", run.criterion, { href: `generated/methods/${run.criterion}.html` }));
      const cell = line.insertCell();
      heads.forEach((head, i) => (line.cells[i].dataset.label = head));
      cell.append(element("a", run.id.split("-").pop(), { href: `generated/runs.html#${run.id}`, title: run.id }));
    }
    const wrap = element("div", "", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Measured runs" });
    wrap.append(node);
    return wrap;
  }

  /** Up to SHOWN runs, each that is best at something among them, and the others; both in the order of the front. */
  function extremesFirst(front) {
    if (front.length <= SHOWN + 2) return [front, []]; // folding one or two would save no room
    const first = new Set(front.filter((run) => bests(run, front).length));
    for (const run of front) if (first.size < SHOWN) first.add(run);
    return [front.filter((run) => first.has(run)), front.filter((run) => !first.has(run))];
  }

  /** Some runs of the front as a table, and the commands that measure them again or do the same. */
  function rows(those, front, where) {
    where.append(table(those, front), element("p", "Measure them again, or do the same to a model of your own:"));
    const entries = [...new Set(those.map((run) => run.entry))].map((entry) => ` --method ${entry}`).join("");
    command([`${python} reference.bench ${suite(those[0])}${entries}`, ...new Set(those.map(cut))].join("\n"), where);
  }

  const paragraph = (text, properties) => out.append(element("p", text, properties));
  const link = (text, href) => {
    const node = document.createElement("p");
    node.append(element("a", text, { href }));
    out.append(node);
  };
  const command = (text, where = out) => {
    const pre = document.createElement("pre");
    pre.tabIndex = 0;
    pre.append(element("code", text));
    where.append(pre);
  };
  const python = ".venv/bin/python -m";

  /** The quality suite has several protocols, each with entries of its own. */
  const suite = (run) => `--suite ${run.suite}${run.suite === "quality" ? ` --protocol ${run.protocol.replace(/-\d+$/, "")}` : ""}`;

  /** The command that does to a model of one's own what a run did. */
  function cut(run) {
    const rate = run.unit.includes(":") ? "" : ` --amount ${run.amount}`;
    const scored = run.criterion === "magnitude" ? "" : ` --criterion ${run.criterion}` + (run.data ? " --prompts prompts.txt" : "");
    const loss = run.recovery.split(" by ")[1] || "output";
    const rounds = run.rounds > 1 ? `  # the run trained in ${run.rounds} rounds` : "";
    const trained = `\n${python} reference recover FOLDER --data PICTURES --loss ${loss}${loss === "task" ? "" : " --dense SOURCE"}${rounds}`;
    const after = run.seconds ? trained : "";
    return `${python} reference prune SOURCE --granularity ${run.unit}${rate}${scored} --out FOLDER${after}`;
  }

  function answer() {
    const [model, device, floor, budget] = ["model", "device", "floor", "budget"].map((name) => form[name].value);
    const named = models[model] || model;
    const here = runs.filter((run) => run.model === model && run.device === device && run.psnr);
    const fit = here.filter((run) => enough(run, floor) && run.seconds <= Number(budget));
    out.replaceChildren();
    if (fit.length) measuredAnswer(here, fit);
    else if (here.length) nearestAnswer(here, named, device, floor, Number(budget));
    else unmeasuredAnswer(model, named, device);
  }

  /** Pictures of two protocols are other pictures, so each protocol has a table of its own. */
  function measuredAnswer(here, fit) {
    for (const protocol of new Set(fit.map((run) => run.protocol))) {
      const [all, those] = [here, fit].map((list) => list.filter((run) => run.protocol === protocol));
      const front = those.filter((run) => !those.some((one) => beats(one, run))).sort((a, b) => b.psnr[0] - a.psnr[0]);
      paragraph(`${front.length} of ${all.length} measured runs (protocol ${protocol}, ${front[0].prompts} prompts): those that meet both limits and that no other beats in fidelity, speed and file at once. Intervals are 95 %.`);
      const [first, rest] = extremesFirst(front);
      rows(first, front, out);
      if (rest.length) {
        const more = document.createElement("details");
        more.append(element("summary", `${rest.length} more runs that lie between these`));
        rows(rest, front, more);
        out.append(more);
      }
    }
    paragraph(subjects);
  }

  function nearestAnswer(here, named, device, floor, budget) {
    paragraph(`No measured answer: none of the ${here.length} runs of ${named} on ${device} meets both limits.`, { className: "none" });
    const kept = here.filter((run) => run.seconds <= budget).sort((a, b) => b.psnr[0] - a.psnr[0])[0];
    const asked = floor === "noise" ? kept.noise : Number(floor);
    paragraph(`The nearest within the budget keeps ${kept.psnr[0].toFixed(1)} dB of the ${asked.toFixed(1)} asked for (${units(kept)}, ${kept.criterion}). The missing run is a gentler rate, a better criterion or a longer recovery:`);
    const missing = kept.seconds ? "quality-recovery" : `quality --method ${kept.entry}`;
    command(`${python} reference.bench --suite quality --protocol ${missing} --resume`);
    link("Which criterion loses least, measured", "generated/methods/index.html");
  }

  function unmeasuredAnswer(model, named, device) {
    const known = measured.includes(model);
    const gpu = !device.includes("CPU") && !devices.includes(device);
    paragraph(`No measured answer: there is no published run of ${named} on ${device}.`, { className: "none" });
    if (known && gpu) {
      paragraph("The embedded suite times on a CPU only. On a GPU these time full-size models with random weights, and 2:4 products:");
      command(`${python} reference.bench --suite latency --resume\n${python} reference.bench --suite kernels --resume`);
      link("What was measured of it on a CPU", `#${new URLSearchParams([["model", model], ["device", devices[0]]])}`);
      return;
    }
    if (known) {
      paragraph(`The missing run is the embedded suite on ${device}. Its files, sent in, appear here:`);
      command("make bench");
      return;
    }
    const suite = timed[model] && gpu;
    paragraph(
      suite
        ? `The missing runs are its time, which the latency suite takes on ${device} with random weights, and its pictures, which need the real ones:`
        : `The missing run is any rate of any unit of ${named} on ${device}. Until it is there, prune it and look at both:`,
    );
    const look = `${python} reference prune SOURCE --granularity head --amount 0.3 --out FOLDER\n${python} reference compare SOURCE FOLDER`;
    command(suite ? `${python} reference.bench --suite latency --model ${timed[model]}\n${look}` : look);
    const said = claims[model];
    if (said?.printed.length) {
      paragraph(`What papers print for ${named}; claimed by them, not measured by us:`);
      const list = document.createElement("ul");
      for (const claim of said.printed) {
        const item = document.createElement("li");
        const [dense, pruned] = claim.numbers.map((number) => (number === null ? "" : `${number} ${claim.unit}`));
        item.append(
          element("a", claim.title, { href: `generated/papers/${claim.paper}.html` }),
          ` (${claim.venue}): ${claim.metric} ${dense ? `${dense} -> ` : ""}${pruned}, ${claim.setting}; ${claim.hardware || "hardware not stated"}`,
        );
        list.append(item);
      }
      out.append(list);
    }
    const count = said ? `All ${said.papers} papers on pruning it` : "Papers on it";
    link(count, `generated/papers.html#${said ? "family=pruning&" : ""}target=${encodeURIComponent(model)}`);
    link("What was measured on a small trained model, criterion by criterion", "generated/methods/index.html");
  }

  function toAddress() {
    const state = new URLSearchParams(["model", "device", "floor", "budget"].map((name) => [name, form[name].value]));
    history.replaceState(null, "", `#${state}`);
  }
  function fromAddress() {
    if (!location.hash.includes("=")) return;
    for (const [name, value] of new URLSearchParams(location.hash.slice(1)))
      if (form[name]?.options && [...form[name].options].some((o) => o.value === value)) form[name].value = value;
  }
  form.addEventListener("input", () => {
    answer();
    toAddress();
  });
  window.addEventListener("popstate", () => {
    fromAddress();
    answer();
  });
  form.hidden = false;
  fromAddress();
  answer();
})();
