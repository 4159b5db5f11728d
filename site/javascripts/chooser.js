/* The chooser on the home page: of the published runs (window.measured, generated/data/runs.js) those that meet the
   asked limits and that no other run beats in fidelity, speed and size at once. No run, no answer: it says which is
   missing. */
(() => {
  const form = document.querySelector(".chooser form");
  if (!form || !window.measured) return;
  const { models, runs } = window.measured;
  const out = document.querySelector(".chooser .answer");
  const other = runs.find((run) => run.other)?.other;
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
    option("0", "anything"),
    option("12", "much: PSNR to the dense picture of 12 dB or more"),
    option("15", "some: 15 dB or more"),
    ...(other ? [option(other.toFixed(2), `no more than another noise changes: ${other.toFixed(1)} dB or more`)] : []),
  );
  form.budget.append(option("0", "none"), option("60", "one minute on that device"), option("Infinity", "any"));
  form.budget.value = "Infinity";

  const percent = (share) => `${Math.round(100 * share)} %`;
  const spread = ([value, low, high], digits, unit = "") => `${value.toFixed(digits)}${unit} (${low.toFixed(digits)}-${high.toFixed(digits)})`;
  const gains = (run) => [run.psnr[0], run.speed[0], run.file];
  const units = (run) => `${percent(run.amount)} of the ${run.unit.includes(":") ? `weights, ${run.unit}` : `${run.unit}s`}`;
  const beats = (a, b) => {
    const [x, y] = [gains(a), gains(b)];
    return x.every((gain, i) => gain >= y[i]) && x.some((gain, i) => gain > y[i]);
  };

  /** Why a run is in the answer. */
  function reason(run, front) {
    const best = (i) => gains(run)[i] === Math.max(...front.map((one) => gains(one)[i]));
    const reasons = [];
    if (best(0)) reasons.push("closest to the dense pictures");
    if (best(1) && run.speed[1] > 1) reasons.push("fastest");
    if (best(2) && run.file > 0) reasons.push("smallest file");
    if (!reasons.length) reasons.push("nothing here is closer, faster and smaller at once");
    if (run.speed[1] <= 1) reasons.push("its interval of speed holds 1.00: no gain shown");
    else if (run.phantom) reasons.push("phantom: less than half of the nominal gain arrives");
    return reasons.join("; ");
  }

  function table(front) {
    const node = document.createElement("table");
    const heads = ["Remove", "Recovery", `Speed-up, ${front[0].pictures} pictures`, "PSNR, dB", "Parameters gone", "File", "Why it is here", "Run"];
    const row = node.createTHead().insertRow();
    for (const head of heads) row.append(element("th", head, { scope: "col" }));
    const body = node.createTBody();
    for (const run of front) {
      const line = body.insertRow();
      const recovery = run.recovery === "none" ? "none" : `${run.recovery}, ${run.rounds} rounds, ${run.seconds.toFixed(0)} s`;
      const size = run.file > 0 ? `-${percent(run.file)}` : "same";
      for (const text of [units(run), recovery, spread(run.speed, 2, "x"), spread(run.psnr, 1), percent(run.parameters), size, reason(run, front)])
        line.insertCell().textContent = text;
      const cell = line.insertCell();
      cell.append(element("a", run.id, { href: run.repo ? `${run.repo}/blob/main/${run.path}` : "generated/results.html#runs", title: run.path }));
    }
    const wrap = element("div", "", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Measured runs" });
    wrap.append(node);
    return wrap;
  }

  const command = (text) => {
    const pre = document.createElement("pre");
    pre.tabIndex = 0;
    pre.append(element("code", text));
    return pre;
  };

  function answer() {
    const [model, device, floor, budget] = ["model", "device", "floor", "budget"].map((name) => form[name].value);
    const named = models[model] || model;
    const here = runs.filter((run) => run.model === model && run.device === device && run.psnr && run.speed);
    const fit = here.filter((run) => run.psnr[0] >= Number(floor) && run.seconds <= Number(budget));
    const front = fit.filter((run) => !fit.some((one) => beats(one, run))).sort((a, b) => b.psnr[0] - a.psnr[0]);
    out.replaceChildren();
    if (front.length) {
      out.append(element("p", `${front.length} of ${here.length} measured runs: those that meet both limits and that no other beats in fidelity, speed and file at once. Intervals are 95 %.`));
      out.append(table(front));
      const first = front[0];
      out.append(element("p", "Measure them again, or do the first one to a model of your own:"));
      const rounds = first.rounds > 1 ? "  # one round; the run above took " + first.rounds + " with recovery" : "";
      out.append(command(`make bench\n.venv/bin/python -m reference prune SOURCE --granularity ${first.unit} --amount ${first.amount} --out FOLDER${rounds}`));
    } else if (here.length) {
      const kept = here.filter((run) => run.seconds <= Number(budget)).sort((a, b) => b.psnr[0] - a.psnr[0])[0];
      out.append(element("p", `No measured answer: none of the ${here.length} runs of ${named} on ${device} meets both limits.`, { className: "none" }));
      out.append(element("p", `The nearest within the budget keeps ${kept.psnr[0].toFixed(1)} dB (${units(kept)}). The missing run is a gentler rate, a better criterion or a longer recovery:`));
      out.append(command(".venv/bin/python -m reference.bench --suite quality"));
    } else {
      out.append(element("p", `No measured answer: there is no published run of ${named} on ${device}.`, { className: "none" }));
      const known = measured.includes(model);
      out.append(element("p", known ? `The missing run is the embedded suite on ${device}:` : `The missing run is any rate of any unit of ${named} on ${device}. Until it is there, prune it and look at both:`));
      out.append(command(known ? "make bench" : ".venv/bin/python -m reference prune SOURCE --granularity head --amount 0.3 --out FOLDER\n.venv/bin/python -m reference compare SOURCE FOLDER"));
      if (!known) out.append(Object.assign(document.createElement("p"), { innerHTML: `<a href="generated/papers.html#target=${encodeURIComponent(model)}">What papers claim for this model</a>` }));
    }
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
