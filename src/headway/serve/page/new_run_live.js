"use strict";
// A training that goes on: its state, time left, curve, and what the model writes at its end.

const FOLLOW_SECONDS = 2, USE_ATTEMPTS = 5;
const STAGE_TITLES = { reading: "Starting: the files are being read, and the speed of this computer is measured.", stopping: "Stopping. The step that has begun is finished and saved first." };

// Show a training in `place` and keep it up to date; the result ends that. `another()` is called for a new run.
function followRun(place, name, another) {
  const address = `/v1/runs/${encodeURIComponent(name)}`, curves = { training: [], validation: [] };
  const parts = Object.fromEntries(["state", "buttons", "problem", "chart", "samples"].map((part) => [part, element("div")]));
  const status = element("p", { role: "status" }), bar = element("progress", { "aria-label": "Progress of the training" });
  const others = otherTrainings(name);
  let timer = 0, position = "", last = "", drawn = "", isOver = false, hasFailed = false, isStopping = false, looks = 0;
  const outlives = element("p", { className: "soft" }, "The training continues if you close this page or the server stops.");
  const stage = element("p", { className: "soft" }), facts = element("p", { className: "soft" }), details = element("details", {}, element("summary", {}, "Details"), facts);
  parts.problem.setAttribute("role", "alert");
  parts.state.append(status, bar, stage, outlives, details);
  place.replaceChildren(element("h3", {}, `The training of ${name}`), ...Object.values(parts));

  const act = (action, body = {}) => async ({ target }) => {
    target.disabled = true; // until the state changes
    isStopping = action === "stop";
    try {
      parts.problem.replaceChildren();
      await server.json(`${address}/${action}`, { body });
      if (!isStopping) trainingNotices.started(name);
      await look();
      target.disabled = isStopping;
    } catch (error) {
      isStopping = target.disabled = false;
      page.fail(error);
    }
  };
  const button = (text, onclick, className = "") => element("button", { type: "button", className, onclick }, text);
  const use = (text, className) => button(text, () => useModel(name, parts.problem), className);
  const buttons = {
    running: (run) => isStopping || run.stage === "checking" ? [] : [button("Stop the training", act("stop")), run.step ? element("span", { className: "soft" }, KEPT) : null],
    stopped: (run) => [button("Continue", act("resume"), "main"), run.has_model ? use("Use it as it is") : button("Finish early", act("finish")), button("Train another", another)],
    finished: (run) => [use("Use it", "main"), run.can_extend ? button("Train 5 more minutes", act("extend", { minutes: 5 })) : null, button("Train another", another)],
    broken: () => [button("Back to the files", another, "main")],
    starting: (run) => buttons.running(run),
  };

  // A button looks, too; an earlier look that has not ended yet changes nothing then.
  async function look() {
    clearTimeout(timer);
    const number = ++looks, isLate = () => isOver || number !== looks;
    try {
      const names = await others(), { run, samples, scores } = await server.json(address);
      await readPoints(isLate);
      if (isLate()) return;
      const reason = ["stopped", "broken"].includes(run.state) && run.reason ? ` ${sentence(shortTimeReason(shortReason(run.reason)))}` : "";
      isStopping = isTraining(run) && (isStopping || run.stage === "stopping");
      const isBusy = isTraining(run), other = names.length === 1 ? `another training on this computer, ${shortName(names[0])}, is` : `${names.length} other trainings on this computer are`;
      const text = isStopping ? STAGE_TITLES.stopping : `${trainingTitle(run)}${reason}`;
      setText(status, "textContent", text);
      facts.textContent = `${stepsText(run)}${run.parameters ? `. The model has ${integers.format(run.parameters)} numbers (parameters).` : ""}`;
      details.hidden = !run.steps;
      stage.textContent = [run.stage === "reading" && !isStopping ? startingStage(run) : "", isBusy && !isStopping && names.length ? `At the same time, ${other} going on, which makes all slower.` : "",
        run.state === "stopped" && !run.has_model ? "It has no model to use yet. Finish early trains for a tenth of the steps so far at most, and then you can use the model." : ""].join(" ").trim();
      status.className = run.state === "broken" ? "wrong" : "";
      bar.hidden = !isBusy;
      outlives.hidden = !isBusy || isStopping;
      if (run.stage === "training" && run.share !== null) bar.value = run.share;
      else bar.removeAttribute("value");
      const width = Math.max(280, Math.min(704, place.clientWidth)), news = [width, isBusy, isStopping, position, JSON.stringify([run.state, samples, scores])].join(" ");
      if (news !== drawn) {
        const isOpen = parts.chart.querySelector("details")?.open ?? false;
        parts.chart.replaceChildren(...lossChart(curves, width, isBusy && !isStopping, isOpen));
        parts.samples.replaceChildren(...trainingResult(run, samples, scores));
      }
      drawn = news;
      const offered = [run.state, run.has_model, isStopping, run.stage === "checking", Boolean(run.step)].join(" ");
      if (last !== offered) {
        parts.buttons.replaceChildren(element("div", { className: "row" }, ...buttons[run.state](run), runsLink()));
        if (run.state === "finished") server.loadModels().catch(() => {});
      }
      last = offered;
      if (hasFailed) page.fail(null);
      hasFailed = false;
    } catch (error) {
      if (isLate()) return;
      hasFailed = true;
      page.fail(error);
      if (error.status === 404) parts.buttons.replaceChildren(element("div", { className: "row" }, button("Train another", another)));
    }
    timer = setTimeout(look, 1000 * FOLLOW_SECONDS);
  }

  async function readPoints(isLate) {
    for (let hasMore = true; hasMore;) {
      const answer = await server.json(`${address}/points?after=${encodeURIComponent(position)}`).catch((error) => {
        if (error.status === 0) throw error;
        return { lines: [], after: position, has_more: false }; // it has no curve yet
      });
      if (isLate()) return;
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

// How long a training has been starting, and the last line of its output.
function startingStage(run) {
  const time = minutesText(Math.max(0, Date.now() / 1000 - (run.started ?? run.modified)) / 60);
  return `So far this has taken ${time}.${run.reason ? ` Its last message: ${sentence(shortReason(run.reason))}` : ""}`;
}

// A function that reads which other runs are being trained now.
function otherTrainings(name) {
  const training = new Set();
  let version = "";
  return async () => {
    const answer = await server.json(`/v1/runs?since=${encodeURIComponent(version)}`);
    if (answer.is_complete) training.clear();
    for (const run of answer.runs) training[isTraining(run) ? "add" : "delete"](run.name);
    for (const removed of answer.removed) training.delete(removed);
    training.delete(name);
    version = answer.version;
    return [...training];
  };
}

// The state of a training, and how far it is.
function trainingTitle(run) {
  if (isTraining(run)) return STAGE_TITLES[run.stage] ?? (run.stage === "training" ? `Training: ${stageText(run)}.` : sentence(stageText(run)));
  return { stopped: `Stopped${run.share ? ` at ${sharePercent(run.share)}` : ""}.`, finished: "Finished.", broken: "It failed." }[run.state];
}

const runsLink = () => page.tabs.some((tab) => tab.id === "runs" && !tab.button.hidden)
  ? element("button", { type: "button", className: "plain", onclick: () => page.open("runs") }, "All runs") : null;

// Open the tab that uses a model. The server may know a new one only after a moment; a problem is shown in `place`.
async function useModel(name, place) {
  place.replaceChildren(element("p", { className: "soft" }, "Opening the model."));
  try {
    for (let attempt = 1; attempt <= USE_ATTEMPTS; attempt++) {
      await server.loadModels();
      const model = server.models.find((entry) => entry.id === name);
      if (model) {
        const use = tryButton(model);
        place.replaceChildren(...(use ? [] : [element("p", {}, "No tab of this page uses a model of this kind; the tab Models lists it.")]));
        if (use) trainingNotices.dismiss(name, "finished");
        return use?.click();
      }
      if (attempt < USE_ATTEMPTS) await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    place.replaceChildren(element("p", { className: "wrong" }, `This server trains ${shortName(name)}, but does not offer the models of its runs. Start headway open instead, which offers them.`));
  } catch (error) {
    place.replaceChildren(element("p", { className: "wrong" }, sentence(error.message)));
  }
}

// The curve of the loss as a drawing with axes, with its numbers as a table; before the first point, when that comes.
function lossChart({ training, validation }, width, isBusy, isOpen) {
  if (!training.length) return isBusy ? [element("p", { className: "soft" }, "A curve will show here how the model learns. The first point comes after the first step, when the files are read and the speed of this computer is measured.")] : [];
  const points = [...training, ...validation], most = Math.max(2, ...points.map((point) => point[0])), height = 210, left = 56, right = 14, top = 12, bottom = 34;
  const ticks = linearTicks(...[Math.min, Math.max].map((extreme) => points.reduce((value, point) => extreme(value, point[1]), points[0][1])));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const x = (step) => left + (width - left - right) * step / most, y = (loss) => top + (height - top - bottom) * (high - loss) / (high - low || 1);
  const every = Math.ceil(training.length / 400), thinned = training.filter((_, index) => index % every === 0 || index === training.length - 1);
  const line = (curve, name) => svg("polyline", { points: curvePoints(curve, x, y), class: name });
  const dots = (curve, name) => curve.map(([step, loss]) => svg("circle", { cx: x(step), cy: y(loss), r: 3, class: name }));
  const axes = [svg("text", { x: 12, y: (height - bottom + top) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(height - bottom + top) / 2})` }, "loss"),
    chartText("0", left, height - 14, "middle"), chartText("steps", (left + width - right) / 2, height - 14, "middle"), chartText(integers.format(most), width - right, height - 14, "end")];
  const title = `Loss: how wrong the model is, so lower is better. From ${formatNumber(training[0][1])} to ${formatNumber(training.at(-1)[1])} after ${integers.format(training.at(-1)[0])} steps`;
  const seen = validation.length ? " Line: on the samples that it learns from; line with dots: on samples that it has not seen." : " The line is for the samples that it learns from.";
  return [element("figure", {},
    svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "loss", role: "img", "aria-label": title }, ...chartGrid(ticks, y, left, width - right), ...axes, line(thinned, "training"), line(validation, "validation"),
      ...(training.length === 1 ? dots(training, "training") : []), ...dots(validation, "validation")),
    element("figcaption", { className: "soft" }, `${title}.${seen}`)),
  ...(validation.length ? [element("details", { open: isOpen }, element("summary", {}, "The numbers"), table(["step", "loss on unseen samples"], validation, "Loss by step"))] : [])];
}

// Scores and samples at the end of a training.
function trainingResult(run, samples, scores) {
  const shown = scores.length ? [element("p", {}, element("strong", {}, resultText(run))), element("details", {}, element("summary", {}, "All scores"), table(Object.keys(scores[0]), scores.map((row) => Object.values(row)), "Scores"))] : [];
  if (samples.length) {
    const names = { "": "right?", source: "input", prompt: "input", output: "the model's answer", reference: "right answer" };
    shown.push(element("h4", {}, "What it does with files that it was not trained on"), sampleTable(run, samples.slice(0, 5), names));
  }
  return shown;
}
