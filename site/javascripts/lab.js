/* The image lab: one picture of a dense and a pruned model (window.lab, generated/data/lab.js), beside each other, under
   a slider, in turns, or their difference. Pictures are pieces of strips, shown by style alone: a page from disk may
   not read pixels. State: run, picture, view. */
(() => {
  const root = document.querySelector(".lab");
  if (!root || !window.lab) return;
  const form = root.querySelector("form");
  const stage = root.querySelector(".stage");
  const [dense, pruned] = root.querySelectorAll(".tile");
  const tool = root.querySelector(".tool");
  const told = root.querySelector(".told");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const TURN = 700; // ms a picture: under three flashes a second
  const runs = new Map(window.lab.map((run) => [run.id, run]));
  let timer = 0;

  form.run.append(...window.lab.map((run) => new Option(`${run.name} (${run.pictures[0].psnr.toFixed(1)} dB at worst)`, run.id)));
  const views = [...form.elements.view];

  function listPictures() {
    const run = runs.get(form.run.value);
    const before = form.picture.value;
    form.picture.replaceChildren(...run.pictures.map(({ prompt, psnr }) => new Option(`${prompt}, ${psnr.toFixed(1)} dB`, prompt)));
    if (run.pictures.some(({ prompt }) => prompt === before)) form.picture.value = before;
  }

  function place(tile, file, run, at, name) {
    tile.style.backgroundImage = `url("${file}")`;
    tile.style.backgroundSize = `${100 * run.count}% 100%`;
    tile.style.backgroundPosition = `${run.count > 1 ? (100 * at) / (run.count - 1) : 0}% 0`;
    tile.setAttribute("aria-label", name);
  }

  function swap() {
    stage.classList.toggle("dense-on-top");
    told.dataset.now = stage.classList.contains("dense-on-top") ? "dense" : "pruned";
    const label = tool.querySelector("output");
    if (label) label.textContent = told.dataset.now;
  }

  /** The control that a view has: a slider, or a button that stops and starts the flicker. */
  function tools(view) {
    clearInterval(timer);
    timer = 0;
    tool.replaceChildren();
    stage.classList.remove("dense-on-top");
    if (view === "slider") {
      const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, value: 50, ariaLabel: "Share of the width that shows the dense picture" });
      range.addEventListener("input", () => stage.style.setProperty("--cut", `${range.value}%`));
      stage.style.setProperty("--cut", "50%");
      tool.append("dense", range, "pruned");
    }
    if (view === "flicker") {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const run = (on) => {
        clearInterval(timer);
        timer = on ? setInterval(swap, TURN) : 0;
        button.textContent = on ? "Stop" : "Start";
      };
      button.addEventListener("click", () => run(!timer));
      const now = Object.assign(document.createElement("output"), { textContent: "pruned" });
      now.setAttribute("aria-live", "off");
      tool.append(button, " now: ", now);
      run(!still);
    }
    if (view === "difference") tool.append("Black: no difference. Differences are shown three times as bright.");
  }

  function show() {
    const run = runs.get(form.run.value);
    const picture = run.pictures.find(({ prompt }) => prompt === form.picture.value);
    place(dense, run.dense, run, picture.at, `${picture.prompt}, drawn by the dense model`);
    place(pruned, run.pruned, run, picture.at, `${picture.prompt}, drawn by the pruned model`);
    if (stage.dataset.view !== form.view.value) tools(form.view.value);
    stage.dataset.view = form.view.value;
    told.textContent = `${picture.prompt}: PSNR ${picture.psnr.toFixed(1)} dB, number ${run.pictures.indexOf(picture) + 1} of ${run.pictures.length} from the worst. Left or first: dense. Run ${run.id}.`;
  }

  const toAddress = (push) => address.set({ run: form.run.value, picture: form.picture.value, view: form.view.value }, push);

  function change(select, step) {
    const next = select.selectedIndex + step;
    if (next < 0 || next >= select.options.length) return;
    select.selectedIndex = next;
    if (select === form.run) listPictures();
    show();
    toAddress();
  }

  form.addEventListener("input", (event) => {
    if (event.target === form.run) listPictures();
    show();
    toAddress(true);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  stage.addEventListener("keydown", (event) => {
    const view = views[Number(event.key) - 1];
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (view) {
      view.checked = true;
      show();
      toAddress();
    } else if (step) change(event.key === "ArrowUp" || event.key === "ArrowDown" ? form.run : form.picture, step);
    else if (event.key === " " && form.view.value === "flicker") swap();
    else return;
    event.preventDefault();
  });

  function fromAddress() {
    form.run.value = runs.has(address.get("run")) ? address.get("run") : window.lab[0].id;
    listPictures();
    const { pictures } = runs.get(form.run.value);
    form.picture.value = (pictures.find(({ prompt }) => prompt === address.get("picture")) || pictures[0]).prompt;
    (views.find(({ value }) => value === address.get("view")) || views[0]).checked = true;
    show();
  }
  address.onChange(fromAddress);
  root.hidden = false;
  fromAddress();
})();
