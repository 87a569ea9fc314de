"use strict";
// A line on every tab for each training that this browser started: while it trains, when it has stopped, and when its model is ready.

const NOTICE_SECONDS = 3, IDLE_NOTICE_SECONDS = 10, MAX_NOTICES = 3, MAX_TRAININGS = 20, UNLISTED_MS = 60000;

const trainingNotices = {
  runs: new Map(),
  lines: new Map(), // by name: the state that a line is for, and its elements
  version: "",

  // {name, time, dismissed}: the newest last. `dismissed` is the state in which the reader closed the line.
  get all() { return settings.get("trainings", []); },
  set all(entries) { settings.set("trainings", entries.slice(-MAX_TRAININGS)); },

  // A run that is trained from now on because of a button in this browser.
  started(name) {
    this.all = [...this.all.filter((entry) => entry.name !== name), { name, time: Date.now() }];
    this.follow();
  },

  dismiss(name, state) {
    this.all = this.all.map((entry) => entry.name === name ? { ...entry, dismissed: state } : entry);
    this.draw();
  },

  // Look at the runs again and again, as long as there is something to report.
  async follow() {
    const turn = this.turn = (this.turn ?? 0) + 1;
    clearTimeout(this.timer);
    if (newRun.limits && !document.hidden && this.all.some((entry) => !entry.dismissed)) {
      const answer = await server.json(`/v1/runs?since=${encodeURIComponent(this.version)}`).catch(() => null); // the tabs report errors
      if (turn !== this.turn) return;
      if (answer) this.take(answer);
    }
    this.draw();
    this.timer = setTimeout(() => this.follow(), 1000 * ([...this.runs.values()].some(isTraining) ? NOTICE_SECONDS : IDLE_NOTICE_SECONDS));
  },

  take(answer) {
    if (answer.is_complete) this.runs.clear();
    for (const name of answer.removed) this.runs.delete(name);
    const own = new Set(this.all.map((entry) => entry.name));
    for (const run of answer.runs.filter((entry) => own.has(entry.name))) {
      const before = this.runs.get(run.name);
      this.runs.set(run.name, run);
      if (run.state === "finished" && before && isTraining(before)) this.finished(run);
    }
    this.version = answer.version;
    this.all = this.all.filter((entry) => this.runs.has(entry.name) || Date.now() - entry.time < UNLISTED_MS); // others were deleted
  },

  // Choose the new model in its tab, unless the reader works there.
  async finished(run) {
    page.note(`${shortName(run.name)} is ready.`);
    await server.loadModels().catch(() => {});
    const model = server.models.find((entry) => entry.id === run.name), tab = model && page.tabs.find((entry) => entry.serves?.(model));
    if (tab && tab !== page.current) chooseModel(tab, model);
  },

  draw() {
    const isHere = (name) => page.current?.id === "new" && newRun.state.run === name; // the tab shows it already
    const shown = !newRun.limits ? [] : this.all.filter((entry) => {
      const run = this.runs.get(entry.name);
      return run && !isHere(entry.name) && (isTraining(run) || entry.dismissed !== run.state);
    }).slice(-MAX_NOTICES).reverse();
    const lines = shown.map(({ name }) => this.line(this.runs.get(name))), place = document.getElementById("trainings");
    if (lines.length !== place.children.length || lines.some((line, index) => line !== place.children[index])) place.replaceChildren(...lines);
    place.hidden = !lines.length;
  },

  line(run) {
    const state = isTraining(run) ? "training" : run.state, name = shortName(run.name), known = this.lines.get(run.name);
    const text = { training: `${name} is being trained: ${stageText(run)}.`, stopped: `${name} is stopped${run.share ? ` at ${sharePercent(run.share)}` : ""}.`, finished: `${name} is ready.`, broken: `${name} failed.` }[state];
    if (known?.state === state) {
      setText(known.text, "textContent", text);
      return known.view;
    }
    const words = element("span", {}, text), problem = element("span"), button = (label, onclick) => element("button", { type: "button", "aria-label": `${label} ${name}`, onclick }, label);
    const show = () => page.tabs.find((tab) => tab.id === "new").showRun(run.name);
    const use = async () => { await useModel(run.name, problem); if (!problem.childElementCount) this.dismiss(run.name, state); };
    const proceed = async ({ target }) => {
      target.disabled = true;
      try {
        await server.json(`${runPath(run.name)}/resume`, { body: {} });
        this.started(run.name);
      } catch (error) {
        page.fail(error);
      }
      target.disabled = false;
    };
    const main = { training: () => button("Show", show), stopped: () => button("Continue", proceed), finished: () => button("Use it", use), broken: () => button("Show", show) }[state]();
    const close = state === "training" ? null : element("button", { type: "button", className: "plain", "aria-label": `Close the line about ${name}`, onclick: () => this.dismiss(run.name, state) }, "×");
    const view = element("div", {}, words, main, close, problem);
    this.lines.set(run.name, { state, text: words, view });
    return view;
  },
};

// The model of these that was trained last in this browser.
const ownModel = (models) => trainingNotices.all.map((entry) => models.find((model) => model.id === entry.name && !model.is_training)).findLast(Boolean);

// A line in a tab that uses models: where to train one on files of one's own.
const TEACH = { write: ["texts", "texts"], texts: ["labelled", "texts"], images: ["images", "photos"], sounds: ["sounds", "sounds"], series: ["series", "numbers"] };
function addTeachLine(tab) {
  const [kind, noun] = TEACH[tab.id] ?? [], place = tab.panel.querySelector("h2");
  if (!kind || !place) return;
  const open = () => { if (!newRun.state.run && !newRun.state.upload) newRun.remember({ kind }); page.open("new"); };
  place.after(element("p", { className: "soft teach", hidden: !newRun.limits }, `Teach it your own ${noun}: `, element("button", { type: "button", className: "plain", onclick: open }, "Train")));
}
