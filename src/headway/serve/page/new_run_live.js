"use strict";
// A training that goes on: its state, time left, curve, and what the model writes at its end.

const FOLLOW_SECONDS = 2;
const TRAINING_STATES = { starting: "Starting: the files are being read.", running: "Training.", stopped: "Stopped.", finished: "Finished.", broken: "It failed." };

// Show a training in `place` and keep it up to date; the result ends that. `another()` is called for a new run.
function followRun(place, name, another) {
  const address = `/v1/runs/${encodeURIComponent(name)}`, curves = { training: [], validation: [] };
  const parts = Object.fromEntries(["state", "buttons", "chart", "samples"].map((part) => [part, element("div")]));
  const status = element("p", { role: "status" }), bar = element("progress", { "aria-label": "Progress of the training" });
  let timer = 0, position = "", last = "", isOver = false, hasFailed = false;
  const outlives = element("p", { className: "soft" }, "The training continues if you close this page or the server stops.");
  parts.state.append(status, bar, outlives);
  place.replaceChildren(element("h3", {}, `The training of ${name}`), ...Object.values(parts));

  const act = (action, body = {}) => async () => {
    try {
      await server.json(`${address}/${action}`, { body });
      position = "";
      curves.training = [];
      curves.validation = [];
      await look();
    } catch (error) {
      page.fail(error);
    }
  };
  const button = (text, onclick, className = "") => element("button", { type: "button", className, onclick }, text);
  const buttons = {
    running: () => [button("Stop the training", act("stop"))],
    stopped: () => [button("Continue", act("resume"), "main"), button("Use it as it is", () => useModel(name)), button("Train another", another)],
    finished: () => [button("Use it", () => useModel(name), "main"), button("Train 5 more minutes", act("extend", { minutes: 5 })), button("Train another", another)],
    broken: () => [button("Back to the files", another, "main")],
    starting: () => [button("Stop the training", act("stop"))],
  };

  async function look() {
    clearTimeout(timer);
    try {
      const { run, samples, scores } = await server.json(address);
      await readPoints();
      if (isOver) return;
      const reason = ["stopped", "broken"].includes(run.state) && run.reason && !run.reason.includes("--resume") ? ` ${sentence(shortReason(run.reason))}` : "";
      const text = `${TRAINING_STATES[run.state]}${reason}${trainingProgress(run)}`;
      if (status.textContent !== text) status.textContent = text;
      status.className = run.state === "broken" ? "wrong" : "";
      bar.hidden = outlives.hidden = !["starting", "running"].includes(run.state);
      if (run.state === "running" && run.steps) bar.value = run.step / run.steps;
      else bar.removeAttribute("value");
      parts.chart.replaceChildren(...lossChart(curves));
      if (last !== run.state) {
        parts.buttons.replaceChildren(element("div", { className: "row" }, ...buttons[run.state](), runsLink()));
        if (run.state === "finished") server.loadModels().catch(() => {});
      }
      last = run.state;
      parts.samples.replaceChildren(...trainingResult(samples, scores));
      if (hasFailed) page.fail(null);
      hasFailed = false;
    } catch (error) {
      if (isOver) return;
      hasFailed = true;
      page.fail(error);
      if (error.status === 404) parts.buttons.replaceChildren(element("div", { className: "row" }, button("Train another", another)));
    }
    if (!isOver) timer = setTimeout(look, 1000 * FOLLOW_SECONDS);
  }

  async function readPoints() {
    for (let hasMore = true; hasMore;) {
      const answer = await server.json(`${address}/points?after=${encodeURIComponent(position)}`).catch((error) => {
        if (error.status === 0) throw error;
        return { lines: [], after: position, has_more: false }; // it has no curve yet
      });
      if (answer.is_restart) curves.training = curves.validation = [];
      const points = (lines) => lines.map((line) => [line.step, line.loss]);
      curves.training = [...curves.training, ...points(answer.lines.filter((line) => !line.split && Number.isFinite(line.loss)))];
      curves.validation = [...curves.validation, ...points(answer.lines.filter((line) => line.split === "validation" && Number.isFinite(line.loss)))];
      position = answer.after;
      hasMore = answer.has_more;
    }
  }

  look();
  return () => { isOver = true; clearTimeout(timer); };
}

// A message without the server's name of an upload.
const shortReason = (reason) => reason.replace(/(\S*\/)?\.uploads\/[0-9a-f]+\/files\/?/g, "");

function trainingProgress(run) {
  const steps = run.steps ? ` Step ${integers.format(run.step)} of ${integers.format(run.steps)}.` : "";
  if (run.state !== "running" || run.minutes_left === null) return steps;
  const left = run.minutes_left < 1 ? "less than a minute" : `about ${Math.round(run.minutes_left)} ${Math.round(run.minutes_left) === 1 ? "minute" : "minutes"}`;
  return `${steps} ${sentence(`${left} left`)}`;
}

const runsLink = () => page.tabs.some((tab) => tab.id === "runs" && !tab.button.hidden)
  ? element("button", { type: "button", className: "plain", onclick: () => page.open("runs") }, "All runs") : null;

// Open the tab that uses a model.
async function useModel(name) {
  try {
    await server.loadModels();
    const model = server.models.find((entry) => entry.id === name), use = model && tryButton(model);
    if (!use) throw new ServerError(`this server does not offer ${name}; start it with headway serve runs/${name}, or open the tab Models`, 0);
    use.click();
  } catch (error) {
    page.fail(error);
  }
}

// The curve of the loss as a drawing, with its numbers as a table.
function lossChart({ training, validation }) {
  if (training.length < 2) return [];
  const points = [...training, ...validation], most = Math.max(...points.map((point) => point[0]));
  const low = Math.min(...points.map((point) => point[1])), high = Math.max(...points.map((point) => point[1]));
  const x = (step) => 8 + 384 * step / most, y = (loss) => 8 + 104 * (high - loss) / (high - low || 1);
  const every = Math.ceil(training.length / 400), thinned = training.filter((_, index) => index % every === 0 || index === training.length - 1);
  const line = (curve, name) => svg("polyline", { points: curve.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" "), class: name });
  const title = `Loss, which falls while the model learns: from ${formatNumber(training[0][1])} to ${formatNumber(training.at(-1)[1])} after ${integers.format(most)} steps`;
  const rows = validation.map(([step, loss]) => [step, loss]);
  return [element("figure", {},
    svg("svg", { viewBox: "0 0 400 120", class: "loss", role: "img", "aria-label": title }, line(thinned, "training"), line(validation, "validation"),
      ...validation.map(([step, loss]) => svg("circle", { cx: x(step), cy: y(loss), r: 3 }))),
    element("figcaption", { className: "soft" }, `${title}. Line: on what it learns from; dots: on samples it has not seen.`)),
  rows.length ? element("details", {}, element("summary", {}, "The numbers"), table(["step", "loss on unseen samples"], rows, "Loss by step")) : null].filter(Boolean);
}

// Scores and samples at the end of a training.
function trainingResult(samples, scores) {
  const shown = scores.length ? [element("details", { open: true }, element("summary", {}, "How good it is"), table(Object.keys(scores[0]), scores.map((row) => Object.values(row)), "Scores"))] : [];
  if (samples.length) {
    const names = { "": "right?", source: "input", prompt: "input", output: "the model's answer", reference: "right answer" };
    const keys = Object.keys(samples[0]).sort((one, other) => (one === "") - (other === ""));
    const rows = samples.slice(0, 5).map((sample) => keys.map((key) => String(sample[key] ?? "").slice(0, 500)));
    shown.push(element("h4", {}, "What it does with files that it has not seen"), table(keys.map((key) => names[key] ?? key), rows, "Samples"));
  }
  return shown;
}
