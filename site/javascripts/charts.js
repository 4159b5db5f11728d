/* Draws the page's charts (window.charts, Vega-Lite, from generated/charts/) in the place of their pictures, so that
   they answer to pointer, legend and choices. The choices stand in the address as CHART.CHOICE. */
(() => {
  const NARROW = 600;
  const ERRORS = 1; // in the words of Vega: no warnings

  /** A copy that fits: a single view takes the width there is, panels stand below each other where it is narrow. */
  function fitted(spec, width) {
    const copy = structuredClone(spec);
    if (copy.vconcat) {
      for (const panel of copy.vconcat) panel.width = Math.min(panel.width, Math.max(120, width - 200));
      return copy;
    }
    // Rows of a fixed height cannot be fitted without a warning: their names take what is left here.
    if (copy.height?.step) return Object.assign(copy, { width: Math.max(110, Math.min(1.25 * copy.width, width) - 230) });
    if (!copy.facet) return Object.assign(copy, { width: Math.min(1.25 * copy.width, width), autosize: { type: "fit-x", contains: "padding" } });
    if (width < NARROW) copy.columns = 1;
    copy.spec.width = Math.min(copy.spec.width, Math.max(120, width - 60));
    return copy;
  }

  async function draw(figure) {
    const spec = window.charts?.[figure.id];
    const plot = figure.querySelector(".plot");
    const form = figure.querySelector("form");
    if (!spec || !window.vegaEmbed) return;
    const holder = document.createElement("div");
    const { view } = await vegaEmbed(holder, fitted(spec, plot.clientWidth), { actions: false, renderer: "svg", logLevel: ERRORS });
    plot.replaceChildren(holder);
    const svg = holder.querySelector("svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", spec.description);
    figure.dataset.drawn = "";

    view.addEventListener("click", (event, item) => {
      if (item?.datum?.run && item.mark.marktype === "symbol") location.href = `runs.html#${item.datum.run}`;
    });
    if (!form) return;
    const apply = () => {
      for (const select of form.elements) view.signal(select.name, select.value);
      return view.runAsync();
    };
    const fromAddress = () => {
      for (const select of form.elements) {
        const asked = address.get(`${figure.id}.${select.name}`);
        select.value = [...select.options].some((option) => option.value === asked) ? asked : [...select.options].find((option) => option.defaultSelected).value;
      }
      return apply();
    };
    form.addEventListener("input", (event) => {
      apply();
      const start = [...event.target.options].find((option) => option.defaultSelected);
      address.set({ [`${figure.id}.${event.target.name}`]: event.target.value === start.value ? "" : event.target.value }, true);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    address.onChange(fromAddress);
    form.hidden = false;
    await fromAddress();
  }

  document.querySelectorAll("figure.chart").forEach(draw);
})();
