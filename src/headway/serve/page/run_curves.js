"use strict";
// The curves of several runs together: metric, axis, smoothing and range are chosen, and values are read by pointer or keyboard.

const MAX_CURVES = 8; // runs that are shown together; each has a colour and a dash of its own
const CURVE_DASHES = ["none", "8 4", "3 3", "12 3 3 3", "none", "8 4", "3 3", "12 3 3 3"];
const NOT_METRICS = new Set(["step", "seconds", "evaluation_seconds", "tokens", "split", "samples", "positions"]);
const METRIC_NAMES = { loss: "loss", lr: "learning rate", grad_norm: "gradient norm", tokens_per_second: "tokens per second", bits_per_byte: "bits per byte" };

// A piece of line in the colour and dash of a run's curve.
const seriesSwatch = (index) => svg("svg", { viewBox: "0 0 30 10", width: 30, height: 10, "aria-hidden": "true" },
  svg("line", { x1: 1, x2: 29, y1: 5, y2: 5, class: `series-${index % MAX_CURVES}`, "stroke-dasharray": CURVE_DASHES[index % MAX_CURVES] }));

// Parts of a chart: a text, lines at `ticks` with their numbers at the left, and the points of a curve.
const chartText = (content, x, y, anchor) => svg("text", { x, y, "text-anchor": anchor }, content);
const chartGrid = (ticks, y, left, right) => ticks.flatMap((value) => [svg("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" }), chartText(formatNumber(Number(value.toPrecision(6))), left - 8, y(value) + 4, "end")]);
const curvePoints = (points, x, y) => points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");

// The lines of one run, as they arrive from /v1/runs.
class RunLines {
  constructor(name, index) {
    this.name = name;
    this.index = index;
    this.clear();
  }

  clear() {
    this.after = "";
    this.every = 1;
    this.parts = { training: [], validation: [] };
  }

  // Take new lines; whether there were any.
  take(answer) {
    if (answer.is_restart) this.clear();
    for (const line of answer.lines) this.parts[line.split ? "validation" : "training"].push(line);
    this.after = answer.after;
    this.every = Math.max(this.every, answer.every);
    return answer.is_restart || answer.lines.length > 0;
  }

  // Steps and values of a metric such as "training:loss", smoothed by a moving average, which `weight` of the past enters.
  points(metric, weight) {
    const [part, name] = metric.split(":");
    let mean = 0, share = 0;
    return this.parts[part].filter((line) => Number.isFinite(line[name])).map((line) => {
      mean = weight * mean + (1 - weight) * line[name];
      share = weight * share + (1 - weight);
      return [line.step, mean / share];
    });
  }
}

class RunCurves {
  constructor() {
    this.runs = [];
    const choice = (name, options, label) => {
      const select = element("select", { onchange: () => { drafts.set(`curves:${name}`, select.value); this.draw(); } }, ...options.map(([value, text]) => new Option(text, value)));
      select.value = drafts.get(`curves:${name}`, options[0]?.[0] ?? "");
      if (!select.value && options.length) select.value = options[0][0];
      return [select, labelled(label, select)];
    };
    const [metric, metricField] = choice("metric", [], "Curve of");
    const [axis, axisField] = choice("axis", [["linear", "linear"], ["log", "logarithmic"]], "Scale");
    const [smoothing, smoothingField] = choice("smoothing", [["0", "none"], ["0.6", "little"], ["0.9", "much"], ["0.97", "very much"]], "Smoothing");
    Object.assign(this, { metric, axis, smoothing });
    [this.from, this.to] = ["from", "to"].map(() => element("input", { type: "number", min: 0, step: 1, onchange: () => this.draw() }));
    this.whole = element("button", { type: "button", onclick: () => { this.from.value = this.to.value = ""; this.draw(); } }, "All steps");
    this.legend = element("ul", { className: "legend" });
    this.chart = element("div", { className: "chart" });
    this.at = element("input", { type: "range", min: 0, step: 1, oninput: () => { this.pointed = Number(this.at.value) < this.last ? Number(this.at.value) : null; this.readOut(Number(this.at.value)); } });
    this.values = element("div", { className: "values" }); // a screen reader reads it as the slider's value, not at each new point
    this.note = element("p", { className: "soft" });
    this.numbers = element("div");
    this.details = element("details", { ontoggle: () => this.drawNumbers() }, element("summary", {}, "The same as numbers"), this.numbers);
    this.view = element("section", { "aria-label": "Curves" }, element("h3", {}, "Curves"),
      element("div", { className: "row" }, metricField, axisField, smoothingField, labelled("From step", this.from), labelled("To step", this.to), this.whole),
      this.legend, this.chart, labelled("Read the values at a step (or point at the chart; drag over it to enlarge a part)", this.at), this.values, this.note, this.details);
    this.width = 0;
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width !== this.width) Object.assign(this, { width }).draw();
    }).observe(this.chart);
  }

  // Show these runs; each keeps its lines, its colour and its dash as long as it is shown.
  choose(names) {
    const kept = this.runs.filter((run) => names.includes(run.name)), used = new Set(kept.map((run) => run.index));
    for (const name of names.filter((entry) => !kept.some((run) => run.name === entry))) {
      const index = [...Array(MAX_CURVES).keys()].find((number) => !used.has(number));
      used.add(index);
      kept.push(new RunLines(name, index));
    }
    this.runs = names.map((name) => kept.find((run) => run.name === name));
    this.legend.replaceChildren(...this.runs.map((run) => element("li", {}, seriesSwatch(run.index), element("span", {}, shortName(run.name)))));
    this.view.hidden = !names.length;
    this.draw();
  }

  indexOf(name) {
    return this.runs.find((run) => run.name === name)?.index ?? 0;
  }

  // Where the known part of each run's curve ends.
  positions() {
    return Object.fromEntries(this.runs.map((run) => [run.name, run.after]));
  }

  // Take new lines of runs by their names.
  take(points) {
    const changed = this.runs.filter((run) => points[run.name]).map((run) => run.take(points[run.name]));
    if (changed.some(Boolean)) this.draw();
  }

  // The metrics of these runs: those of training steps, then those of evaluations.
  updateMetrics() {
    const names = new Set();
    for (const run of this.runs) for (const [part, lines] of Object.entries(run.parts)) {
      for (const line of [lines[0], lines.at(-1)]) for (const [name, value] of Object.entries(line ?? {})) {
        if (typeof value === "number" && !NOT_METRICS.has(name)) names.add(`${part}:${name}`);
      }
    }
    const shown = [...names].sort((one, other) => (other.endsWith(":loss") - one.endsWith(":loss")) || one.localeCompare(other));
    if (shown.join() === [...this.metric.options].map((option) => option.value).join()) return;
    const before = drafts.get("curves:metric", "training:loss");
    this.metric.replaceChildren(...shown.map((name) => {
      const [part, metric] = name.split(":");
      return new Option(`${METRIC_NAMES[metric] ?? metric.replaceAll("_", " ")}, ${part}`, name);
    }));
    this.metric.value = shown.includes(before) ? before : shown[0] ?? "";
  }

  draw() {
    this.updateMetrics();
    const isLog = this.axis.value === "log", limit = (field, otherwise) => field.value === "" ? otherwise : Number(field.value);
    const from = limit(this.from, 0), to = limit(this.to, Infinity);
    this.lines = this.runs.map((run) => [run, this.metric.value ? run.points(this.metric.value, Number(this.smoothing.value)).filter(([step, value]) => step >= from && step <= to && (!isLog || value > 0)) : []]);
    const all = this.lines.flatMap(([, points]) => points), text = this.metric.selectedOptions[0]?.text ?? "";
    const every = Math.max(1, ...this.runs.map((run) => run.every));
    setText(this.note, "textContent", [every > 1 ? `Of the longest run, every ${every}th line is shown.` : "", isLog ? "A logarithmic scale shows values above 0 only." : ""].join(" ").trim());
    this.at.disabled = !all.length;
    if (!all.length) {
      this.drawn = "";
      this.chart.replaceChildren(element("p", { className: "soft" }, this.runs.some((run) => run.parts.training.length) ? "There is no point in this range." : "There is no point yet; the first appears with the first steps."));
      this.values.textContent = this.valuesKey = "";
      this.drawNumbers();
      return;
    }
    const steps = all.map(([step]) => step), values = all.map(([, value]) => value);
    const range = (numbers) => numbers.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    [this.first, this.last] = range(steps);
    this.drawChart(range(values), isLog, text);
    setText(this.at, "min", this.first);
    setText(this.at, "max", this.last);
    this.readOut(this.pointed ?? this.last);
    this.drawNumbers();
  }

  drawChart([lowest, highest], isLog, text) {
    const width = Math.max(this.width, 280), height = Math.round(Math.max(220, Math.min(420, width * 0.45))), left = 64, right = 14, top = 12, bottom = 34;
    const scale = isLog ? Math.log10 : (value) => value, ticks = isLog ? logTicks(lowest, highest) : linearTicks(lowest, highest);
    const low = Math.min(scale(lowest), scale(ticks[0])), high = Math.max(scale(highest), scale(ticks.at(-1)), low + 1e-9);
    this.x = (step) => left + (width - left - right) * (step - this.first) / (this.last - this.first || 1);
    const y = (value) => top + (height - top - bottom) * (high - scale(value)) / (high - low);
    // While a run is followed, only the points of the elements change.
    const drawn = JSON.stringify([width, low, high, ticks, isLog, this.first, this.lines.map(([run]) => [run.index, run.name])]);
    if (drawn !== this.drawn) this.makeChart({ width, height, left, right, top, bottom }, ticks, y);
    this.drawn = drawn;
    this.lines.forEach(([, points], index) => {
      const [curve, dots] = this.shapes[index], isShort = points.length <= 40;
      curve.setAttribute("points", curvePoints(points, this.x, y));
      if (isShort || dots.firstChild) dots.replaceChildren(...(isShort ? points.map(([step, value]) => svg("circle", { cx: this.x(step), cy: y(value), r: 2.5, class: curve.getAttribute("class") })) : []));
    });
    setText(this.lastLabel, "textContent", integers.format(this.last));
    const name = `${text}, steps ${integers.format(this.first)} to ${integers.format(this.last)}, of ${this.lines.length === 1 ? shortName(this.lines[0][0].name) : `${this.lines.length} runs`}`;
    this.drawing.setAttribute("aria-label", name);
    this.drawing.firstChild.textContent = name;
  }

  // The elements of the chart: grid, words, and for each run a line and dots without points.
  makeChart({ width, height, left, right, top, bottom }, ticks, y) {
    this.shapes = this.lines.map(([run]) => [svg("polyline", { class: `series-${run.index}`, "stroke-dasharray": CURVE_DASHES[run.index] }), svg("g")]);
    this.cursor = svg("line", { y1: top, y2: height - bottom, class: "cursor" });
    this.chosen = svg("rect", { y: top, height: height - top - bottom, class: "chosen", width: 0 });
    this.lastLabel = chartText("", width - right, height - 12, "end");
    const drawing = this.drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" }, svg("title"), ...chartGrid(ticks, y, left, width - right), this.chosen, ...this.shapes.flat(), this.cursor,
      chartText(integers.format(this.first), left, height - 12, "start"), chartText("step", (left + width - right) / 2, height - 12, "middle"), this.lastLabel);
    this.followPointer(drawing, (event) => {
      const share = ((event.clientX - drawing.getBoundingClientRect().left) * width / drawing.getBoundingClientRect().width - left) / (width - left - right);
      return Math.round(this.first + Math.max(0, Math.min(1, share)) * (this.last - this.first));
    });
    this.chart.replaceChildren(drawing);
  }

  // Pointing reads values; dragging chooses a range of steps.
  followPointer(drawing, stepAt) {
    let start = null;
    drawing.addEventListener("pointerdown", (event) => { start = stepAt(event); event.preventDefault(); });
    drawing.addEventListener("pointermove", (event) => {
      this.readOut(stepAt(event), true);
      if (start === null) return;
      const [low, high] = [start, stepAt(event)].sort((one, other) => one - other);
      this.chosen.setAttribute("x", this.x(low));
      this.chosen.setAttribute("width", this.x(high) - this.x(low));
    });
    drawing.addEventListener("pointerup", (event) => {
      const [low, high] = [start ?? 0, stepAt(event)].sort((one, other) => one - other);
      const isRange = start !== null && this.x(high) - this.x(low) > 8;
      start = null;
      this.chosen.setAttribute("width", 0);
      if (isRange) [this.from.value, this.to.value] = [low, high];
      this.draw();
    });
    drawing.addEventListener("pointerleave", () => { this.pointed = null; });
  }

  // The values of all runs at the point that is nearest to a step.
  readOut(step, isPointed = false) {
    if (isPointed) this.pointed = step;
    setText(this.at, "value", step);
    const x = String(this.x(step));
    if (this.cursor.getAttribute("x1") !== x) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, x);
    const shown = this.lines.filter(([, points]) => points.length), key = JSON.stringify(shown.map(([run]) => [run.index, run.name]));
    if (key !== this.valuesKey) this.values.replaceChildren(...shown.map(([run]) => element("span", {}, seriesSwatch(run.index), ` ${shortName(run.name)}: `, element("strong"), element("span"))));
    this.valuesKey = key;
    shown.forEach(([, points], index) => {
      const [at, value] = points[nearestPoint(points, step)], [number, place] = [...this.values.children[index].children].slice(1);
      setText(number, "textContent", formatNumber(value));
      setText(place, "textContent", ` at step ${integers.format(at)}`);
    });
    this.at.setAttribute("aria-valuetext", [...this.values.children].map((value) => value.textContent).join("; "));
  }

  // A table of at most 100 steps, which is made when it is opened.
  drawNumbers() {
    if (!this.details.open) return;
    const steps = [...new Set(this.lines.flatMap(([, points]) => points.map(([step]) => step)))].sort((one, other) => one - other);
    const shown = steps.filter((_, index) => index % Math.ceil(steps.length / 100) === 0 || index === steps.length - 1);
    const byStep = this.lines.map(([, points]) => new Map(points));
    this.numbers.replaceChildren(table(["step", ...this.lines.map(([run]) => shortName(run.name))], shown.map((step) => [step, ...byStep.map((values) => values.get(step) ?? null)]), "Values by step"));
  }
}

// The index of the point nearest to a step; points are in the order of their steps.
function nearestPoint(points, step) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle + 1;
    else high = middle;
  }
  return low > 0 && step - points[low - 1][0] < points[low][0] - step ? low - 1 : low;
}

function linearTicks(low, high) {
  const step = roundStep(low, high), first = Math.floor(low / step);
  return Array.from({ length: Math.max(2, Math.ceil(high / step) - first + 1) }, (_, index) => (first + index) * step);
}

function logTicks(low, high) {
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) for (const factor of [1, 2, 5]) all.push(factor * 10 ** power);
  const first = Math.max(0, all.findLastIndex((value) => value <= low)), last = all.findIndex((value) => value >= high);
  const ticks = all.slice(first, last < 0 ? undefined : last + 1), every = Math.ceil(ticks.length / 9);
  return ticks.filter((_, index) => index % every === 0);
}
