"use strict";
// The tab of time series: the values that follow a table, with the band that they should stay in.

// A chart of the last part of a series and its forecast. `colours` are those of the page, or of a picture to save.
function forecastChart({ series, past, past_times: pastTimes, times, quantiles }, width, colours) {
  const height = Math.round(Math.max(220, Math.min(420, width * 0.45))), left = 62, right = 12, top = 14, bottom = 30;
  const shown = past.slice(-Math.max(3 * times.length, 24)), shownTimes = [...pastTimes.slice(-shown.length), ...times];
  const all = [...shown, ...quantiles["q0.1"], ...quantiles["q0.9"]], step = roundStep(Math.min(...all), Math.max(...all));
  const low = step * Math.floor(Math.min(...all) / step), high = Math.max(step * Math.ceil(Math.max(...all) / step), low + step);
  const x = (index) => left + ((width - left - right) * index) / Math.max(1, shownTimes.length - 1);
  const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
  const points = (values, start) => values.map((value, index) => `${x(start + index).toFixed(1)},${y(value).toFixed(1)}`);
  const line = (values, start, colour, more = {}) => svg("polyline", { points: points(values, start).join(" "), fill: "none", stroke: colour, "stroke-width": 2, ...more });
  const band = (lower, upper, opacity) => svg("polygon", { fill: colours.accent, "fill-opacity": opacity,
    points: [...points([last, ...quantiles[upper]], start), ...points([last, ...quantiles[lower]], start).reverse()].join(" ") });
  const words = (text, x, y, anchor) => svg("text", { x, y, fill: colours.soft, "text-anchor": anchor }, text);
  const start = shown.length - 1, last = shown[start], grid = [];
  for (let index = 0; low + index * step <= high + step / 2; index++) {
    const value = low + index * step, at = y(value);
    grid.push(svg("line", { x1: left, x2: width - right, y1: at, y2: at, stroke: colours.line }), words(formatNumber(Number(value.toPrecision(6))), left - 8, at + 4, "end"));
  }
  const name = `${shortName(series)}: ${shown.length} known values, and a forecast of ${times.length} from ${times[0]} to ${times.at(-1)}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": name, "font-size": 12, "font-family": "system-ui, sans-serif" },
    svg("title", {}, name), svg("rect", { width, height, fill: colours.paper }), ...grid,
    band("q0.1", "q0.9", 0.22), band("q0.3", "q0.7", 0.25),
    line(shown, 0, colours.ink), line([last, ...quantiles["q0.5"]], start, colours.accent, { "stroke-dasharray": "6 3" }),
    svg("line", { x1: x(start), x2: x(start), y1: top, y2: height - bottom, stroke: colours.soft, "stroke-dasharray": "2 3" }),
    words(shownTimes[0], left, height - 10, "start"), ...(Math.min(x(start) - left, width - right - x(start)) > 110 ? [words(pastTimes.at(-1), x(start), height - 10, "middle")] : []), words(times.at(-1), width - right, height - 10, "end"));
}

// The distance of about five lines between two values: 1, 2 or 5 times a power of ten.
function roundStep(low, high) {
  const rough = (high - low || Math.abs(high) || 1) / 5, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

page.addTab({
  id: "series",
  title: "Forecasts",
  types: { csv: "text/csv", tsv: "text/tab-separated-values", jsonl: "application/jsonl", xlsx: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet" },
  colours: {
    page: { ink: "var(--ink)", soft: "var(--soft)", line: "var(--line)", paper: "var(--paper)", accent: "var(--accent)" },
    picture: { ink: "#1c2127", soft: "#57616c", line: "#d5dbe0", paper: "#ffffff", accent: "#1f57b5" },
  },
  serves: (model) => model.verbs.includes("forecast"),

  show(panel) {
    this.place = element("div");
    this.source = element("p", { className: "soft", "aria-live": "polite" });
    this.text = keepDraft(element("textarea", { rows: 8, spellcheck: false, placeholder: "date,value\n2024-01,112\n2024-02,118" }), "series:text");
    this.text.addEventListener("input", () => this.use(null));
    this.steps = keepDraft(element("input", { type: "number", min: 1, max: 10000, step: 1 }), "series:steps");
    this.results = element("div", { "aria-live": "polite" });
    this.choice = modelChoice("series", this.serves, () => this.refresh());
    this.command = commandView(() => this.commandLines());
    this.form = workForm([this.choice.field, element("p", {}, "The model continues each series of a table: the first column is the time, in equal steps, and each other column is a series."),
      this.place, labelled("Or paste or type a table here", this.text, "Rows copied from a spreadsheet work, too. The first row has the names of the columns."), this.source,
      labelled("Number of steps", this.steps, "Leave it empty for as many as the model was trained to predict.")], (signal) => this.work(signal), "Forecast");
    this.form.addEventListener("input", () => this.command.update());
    new ResizeObserver(() => this.chart && this.chart.clientWidth !== this.width && this.draw()).observe(this.results);
    panel.append(element("h2", {}, "Forecasts"), this.form, this.results, this.command);
    this.refresh();
  },

  refresh() {
    if (!this.form) return;
    this.choice.refresh();
    if (this.limit !== server.fileBytes) {
      this.limit = server.fileBytes;
      this.input = fileInput({ label: "Table", accept: Object.keys(this.types).map((kind) => `.${kind}`).join(","), limit: this.limit, changed: ([file]) => file && this.use(file) });
      this.place.replaceChildren(this.input.zone);
    }
    const { model } = this.choice;
    if (model && model.id !== this.exampleModel && !this.file && (!this.text.value || this.text.value === this.example)) this.takeExample(model);
    this.command.update();
  },

  // The example is the end of the data that the model was trained on, if the server still has them.
  async takeExample(model) {
    this.exampleModel = model.id;
    this.source.textContent = "Loading an example …";
    try {
      const forecasts = (await server.json("/v1/forecast", { body: { model: model.id } })).result.slice(0, 5);
      const [first] = forecasts, names = forecasts.length === 1 ? ["time", first.series] : ["time", "series", "value"];
      const rows = forecasts.flatMap(({ series, past, past_times: times }) => past.map((value, index) => (names.length === 2 ? [times[index], value] : [times[index], series, value])));
      if (this.file || (this.text.value && this.text.value !== this.example)) return;
      this.text.value = this.example = csvText([names, ...rows]);
      this.steps.placeholder = first.times.length;
      this.use(null, "Example: the last values that this model was trained on.");
      this.showForecasts(forecasts);
    } catch (error) {
      if (error.status === 401) this.exampleModel = null;
      this.use(null, error.status === 400 ? "The data that this model was trained on are not here; choose or paste a table." : sentence(error.message));
    }
  },

  use(file, remark) {
    if (file && !Object.keys(this.types).includes(file.name.toLowerCase().split(".").at(-1))) {
      page.fail(new ServerError(`${shortName(file.name)} is not a table; save it as .csv, .tsv, .jsonl or .xlsx`, 0));
      return;
    }
    this.file = file;
    this.source.textContent = file ? `The forecast uses the file ${shortName(file.name)}. Type into the field above to use its table instead.` : remark ?? (this.text.value ? "The forecast uses the table above." : "");
    this.command.update();
  },

  async work(signal) {
    this.results.replaceChildren();
    if (!this.file && !this.text.value.trim()) throw new ServerError("there is no table; choose a file, or paste a table", 400);
    const kind = this.file?.name.toLowerCase().split(".").at(-1), data = this.file ? await dataUrl(new Blob([this.file], { type: this.types[kind] })) : this.text.value;
    try {
      const body = { model: this.choice.model.id, data, steps: this.steps.value ? Number(this.steps.value) : null };
      this.showForecasts((await server.json("/v1/forecast", { body, signal })).result);
    } catch (error) {
      if (this.file && error instanceof ServerError) error.message = error.message.replaceAll("the table", shortName(this.file.name));
      throw error;
    }
  },

  showForecasts(forecasts) {
    this.forecasts = forecasts;
    this.shown = forecasts[0];
    this.chart = element("div", { className: "chart" });
    this.numbers = element("div");
    const names = forecasts.map(({ series }, index) => new Option(shortName(series), index));
    const select = element("select", { onchange: () => { this.shown = forecasts[select.value]; this.draw(); } }, ...names);
    const choice = labelled("Series", select);
    choice.hidden = forecasts.length < 2;
    this.results.replaceChildren(element("h3", {}, "Forecast"), choice, this.chart,
      element("p", { className: "soft" }, "Solid: known values. Dashed: the forecast. Eight of ten future values should fall into the wide band, four of ten into the narrow one."),
      element("div", { className: "row" }, ...[["svg", "Save as picture (.svg)"], ["png", "Save as picture (.png)"], ["csv", "Save as table (.csv)"]].map(([kind, label]) =>
        element("button", { type: "button", onclick: () => this.save(kind).catch((error) => page.fail(error)) }, label))),
      element("details", {}, element("summary", {}, "The same as numbers"),
        element("p", { className: "soft" }, "One of ten values should be lower than low, and one of ten higher than high."), this.numbers));
    this.draw();
  },

  draw() {
    this.width = this.chart.clientWidth;
    if (!this.width) return; // the tab is hidden; the observer draws when it is shown
    this.chart.replaceChildren(forecastChart(this.shown, this.width, this.colours.page));
    const { times, quantiles } = this.shown;
    const rows = times.map((time, index) => [element("span", { className: "number" }, time), quantiles["q0.1"][index], quantiles["q0.5"][index], quantiles["q0.9"][index]]);
    this.numbers.replaceChildren(table(["time", "low", "middle", "high"], rows, "Forecast"));
  },

  async save(kind) {
    const name = `forecast-${this.shown.series.replace(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 60)}`;
    if (kind === "csv") {
      const levels = Object.keys(this.shown.quantiles);
      const rows = this.forecasts.flatMap(({ series, times, quantiles }) => times.map((time, index) => [series, time, ...levels.map((level) => quantiles[level][index])]));
      return saveFile("forecast.csv", csvText([["series", "time", ...levels], ...rows]), "text/csv;charset=utf-8");
    }
    const chart = forecastChart(this.shown, 960, this.colours.picture);
    const picture = new Blob([new XMLSerializer().serializeToString(chart)], { type: "image/svg+xml" });
    if (kind === "svg") return saveFile(`${name}.svg`, picture);
    const image = new Image(), url = URL.createObjectURL(picture), canvas = element("canvas", { width: 1920, height: 2 * Number(chart.getAttribute("height")) });
    image.src = url;
    await image.decode();
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(url);
    return saveFile(`${name}.png`, await new Promise((resolve) => canvas.toBlob(resolve)));
  },

  commandLines() {
    const name = this.file?.name ?? "table.csv", steps = Number(this.steps.value);
    return modelCommand(this.choice.model, "forecast", `--data ${shellWord(name)}${steps ? ` --steps ${steps}` : ""} --out forecast.csv`,
      `for forecast in model.forecast(${pythonString(name)}${steps ? `, steps=${steps}` : ""}):\n    print(forecast.series, forecast.times, forecast.quantiles["q0.5"])`);
  },
});
