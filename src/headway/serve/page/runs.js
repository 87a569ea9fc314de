"use strict";
// The tab of runs: a table of all runs, the curves of some of them together, what differs between them, and what can be done with each.

const RETRY_SECONDS = 1.75, ROW_SECONDS = 10, MESSAGE_SECONDS = 12, UNDO_SECONDS = 120, FIRST_ROWS = 100, MAX_DIFFERENCES = 40, MAX_SAMPLE = 4000, GOOD_ACCURACY = 0.8;
const RUN_STATES = { starting: "◌ starting", running: "▶ running", stopped: "■ stopped", finished: "✓ finished", broken: "✕ broken" };
const STAGE_WORDS = { continuing: "▶ continuing", checking: "▶ checking", stopping: "■ stopping" };
const RUN_COLUMNS = [["name", "name"], ["state", "status"], ["recipe", "recipe"], ["value", "result"], ["share", "progress"], ["minutes", "time"], ["parameters", "parameters"], ["device", "device"], ["modified", "when"]];

const runPath = (name) => `/v1/runs/${encodeURIComponent(name)}`;
const localTime = (seconds) => new Date(1000 * seconds - 60000 * new Date(1000 * seconds).getTimezoneOffset()).toISOString().slice(0, 16).replace("T", " ");
const counted = (count, noun) => `${integers.format(count)} ${noun}${count === 1 ? "" : "s"}`;
const minutesText = (minutes) => minutes < 1 ? "less than a minute" : minutes < 90 ? counted(Math.round(minutes), "minute")
  : `${counted(Math.floor(Math.round(minutes) / 60), "hour")}${Math.round(minutes) % 60 ? ` ${counted(Math.round(minutes) % 60, "minute")}` : ""}`;
const folderOf = (run) => run.name.slice(0, run.name.lastIndexOf("/") + 1).slice(0, -1); // of several runs, such as a comparison
const isTraining = (run) => run.state === "running" || run.state === "starting";
const sharePercent = (share) => `${Math.floor(100 * share + 1e-6)} %`;
const KEPT = "Everything learned so far is kept; you can continue later.";

// What a run that is being trained does now, and how far it is.
function stageText(run) {
  const stage = {
    reading: "reading its data and measuring this computer", continuing: run.step ? `continuing after step ${integers.format(run.step)}` : "starting again",
    checking: "checking the finished model", stopping: "stopping after this step, which is saved first",
  }[run.stage];
  if (stage) return stage;
  return run.share === null ? "its first step" : `${sharePercent(Math.min(run.share, 0.99))}${run.minutes_left === null ? "" : `, ${minutesText(run.minutes_left)} left`}`;
}

const stepsText = (run) => run.steps ? `Step ${integers.format(run.step)} of ${integers.format(run.steps)}` : "";

// The final result of a run in plain words; "" before its end.
function resultText(run) {
  if (run.state !== "finished" || run.value === null) return "";
  const noun = { vision: "photos", audio: "sounds", classification: "texts", translation: "pairs" }[run.recipe] ?? "samples";
  const count = run.value_samples, samples = `${count === null ? "the" : integers.format(count)} ${noun} that it was not trained on`;
  if (run.goal !== "accuracy") return `Its result with ${samples}: ${run.value_text} ${run.goal_title} (${run.better} is better).`;
  const advice = run.value < GOOD_ACCURACY ? ` To make it better, train it longer, or add ${noun} and train again.` : "";
  const right = count === null ? run.value_text : integers.format(Math.round(run.value * count));
  return `It is right for ${right} of ${samples}${count === null ? "" : ` (${run.value_text})`}.${advice}`;
}

// A table of a run's samples; for keys that may train, with the images whose files are on the server.
function sampleTable(run, samples, titles, first = 0) {
  const names = [...new Set(samples.flatMap((sample) => Object.keys(sample)))].sort((one, other) => (one === "") - (other === ""));
  return table(names.map((name) => titles[name] ?? name), samples.map((sample, index) => names.map((name) => {
    const text = String(sample[name] ?? "").slice(0, MAX_SAMPLE);
    if (name !== "source" || !newRun.limits || !/\.(png|jpe?g|webp|gif|bmp)$/i.test(text)) return text;
    const place = element("span", {}, text);
    server.request(`${runPath(run.name)}/samples/${first + index}`).then((answer) => answer.blob()).then((blob) => {
      const url = URL.createObjectURL(blob);
      place.prepend(element("img", { src: url, alt: "", className: "sample", onload: () => URL.revokeObjectURL(url) }), element("br"));
    }).catch(() => {}); // its name stays
    return place;
  })), "Samples of its output");
}

page.addTab({
  id: "runs",
  title: "Runs",
  exists: false,
  runs: new Map(),
  rowTimes: new Map(), // when the row of a run was drawn
  deleted: [],
  version: "",
  failures: 0, // streams that failed one after the other
  chosen: drafts.get("runs:chosen", []),
  sort: drafts.get("runs:sort", { key: "modified", down: true }),

  // Whether this server has a folder of runs. It is asked again for another key.
  async check() {
    if (this.checked === server.key) return;
    this.checked = server.key;
    try {
      this.take(await server.json("/v1/runs"));
      this.exists = true;
    } catch (error) {
      this.exists = false;
      if (error.code !== "no_runs") this.checked = null;
    }
    this.button.hidden = !this.exists;
    if (this.exists && location.hash === "#runs" && page.current !== this) page.open("runs", false);
  },

  show(panel) {
    this.text = keepDraft(element("input", { type: "search", oninput: () => this.draw() }), "runs:text");
    const select = (name, options) => {
      const field = element("select", { onchange: () => { drafts.set(`runs:${name}`, field.value); this.draw(); } }, ...options);
      return field;
    };
    this.state = select("state", [new Option("all", ""), ...Object.entries(RUN_STATES).map(([value, text]) => new Option(text, value))]);
    this.state.value = drafts.get("runs:state", "");
    this.recipe = select("recipe", [new Option("all", "")]);
    this.folder = select("folder", [new Option("all", "")]);
    this.folderField = labelled("Folder", this.folder);
    this.count = element("p", { className: "soft", role: "status" });
    this.head = element("tr");
    this.body = element("tbody");
    this.all = element("button", { type: "button", hidden: true, onclick: () => { this.isWhole = true; this.draw(); } }, "Show all");
    this.done = element("div", { role: "status" });
    this.trash = element("details", { hidden: true }, element("summary", {}, "Deleted runs"), element("ul"));
    this.curves = new RunCurves();
    this.heads = element("div", { className: "cards" });
    this.cards = element("div", { className: "cards" });
    this.comparison = element("div");
    this.command = commandView(() => this.commandLines());
    this.table = element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Runs" }, element("table", { className: "runs" }, element("thead", {}, this.head), this.body));
    panel.append(element("h2", {}, "Runs"),
      element("p", {}, `A run is one training together with the model that it made. Tick up to ${MAX_CURVES} of them to see their curves, samples and settings next to each other.`),
      element("div", { className: "row" }, labelled("Search", this.text), labelled("Status", this.state), labelled("Recipe", this.recipe), this.folderField),
      this.count, this.table, this.all, this.done, this.trash, this.heads, this.curves.view, this.cards, this.comparison, this.command);
    document.addEventListener("visibilitychange", () => this.follow());
    this.draw();
    this.drawTrash();
    this.choose(this.chosen);
  },

  refresh() {
    this.version = "";
    this.follow();
  },

  opened() {
    this.follow();
  },

  left() {
    this.following?.abort();
  },

  // While somebody sees the tab, the server streams what changes: a new point is shown within two seconds.
  async follow() {
    this.following?.abort();
    clearTimeout(this.timer);
    if (document.visibilityState !== "visible" || page.current !== this) return;
    const { signal } = this.following = new AbortController();
    try {
      const query = new URLSearchParams({ follow: 1, since: this.version, points: JSON.stringify(this.curves.positions()) });
      for await (const answer of server.events(`/v1/runs?${query}`, undefined, signal)) {
        if (signal.aborted) return;
        this.take(answer);
        this.curves.take(answer.points);
        if (this.failures > 1) page.fail(null);
        this.failures = 0;
      }
    } catch (error) {
      if (signal.aborted || error.status === 401) return;
      this.failures++;
      if (this.failures === 2) page.fail(error); // one line, until the server is there again; it may only have started anew
    }
    if (!signal.aborted) this.timer = setTimeout(() => this.follow(), 1000 * RETRY_SECONDS);
  },

  // Take a list of changes.
  take(answer) {
    const before = new Map(this.runs);
    if (answer.is_complete) this.runs.clear();
    for (const run of answer.runs) this.runs.set(run.name, run);
    for (const name of answer.removed) if (!answer.runs.some((run) => run.name === name)) this.runs.delete(name);
    const isDeleted = JSON.stringify(answer.deleted) !== JSON.stringify(this.deleted);
    Object.assign(this, { version: answer.version, deleted: answer.deleted, mayTrain: answer.may_train });
    const isOther = before.size !== this.runs.size || [...this.runs.keys()].some((name) => !before.has(name));
    if (!this.wasShown || !this.body) return;
    if (isDeleted) this.drawTrash();
    if (isOther || answer.is_complete) this.draw();
    else for (const run of answer.runs) this.drawRow(run, before.get(run.name));
    const gone = this.chosen.filter((name) => !this.runs.has(name));
    if (gone.length) this.choose(this.chosen.filter((name) => this.runs.has(name)));
    for (const run of answer.runs) this.drawCard(run, before.get(run.name));
  },

  shown() {
    const words = this.text.value.toLowerCase().split(/\s+/).filter(Boolean), { key, down } = this.sort;
    const runs = [...this.runs.values()].filter((run) => (!this.state.value || run.state === this.state.value) && (!this.recipe.value || run.recipe === this.recipe.value) && (!this.folder.value || folderOf(run) === this.folder.value)
      && words.every((word) => `${run.name} ${run.recipe} ${run.goal} ${run.goal_title} ${run.device} ${run.reason}`.toLowerCase().includes(word)));
    const compare = (one, other) => one === other ? 0 : one === null ? 1 : other === null ? -1 : (typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other) * (down ? -1 : 1);
    runs.sort((one, other) => compare(one[key], other[key]) || one.name.localeCompare(other.name));
    const folders = Map.groupBy(runs, (run) => folderOf(run) || run); // runs of a folder follow the first of them
    return [...folders.values()].flat();
  },

  // Fill a selection with what the runs have, and keep its choice if it is still there.
  updateChoice(select, name, values) {
    const known = [...new Set(values.filter(Boolean))].sort(), before = select.value || drafts.get(`runs:${name}`, "");
    select.replaceChildren(new Option("all", ""), ...known.map((value) => new Option(shortName(value), value)));
    select.value = known.includes(before) ? before : "";
    return known.length;
  },

  draw() {
    const all = [...this.runs.values()];
    this.updateChoice(this.recipe, "recipe", all.map((run) => run.recipe));
    this.folderField.hidden = !this.updateChoice(this.folder, "folder", all.map(folderOf));
    const runs = this.shown(), visible = this.isWhole ? runs : runs.slice(0, FIRST_ROWS);
    this.head.replaceChildren(element("th", { scope: "col" }, "show"), ...RUN_COLUMNS.map(([key, title]) => {
      const direction = this.sort.key !== key ? undefined : this.sort.down ? "descending" : "ascending";
      const sort = () => { this.sort = { key, down: this.sort.key === key ? !this.sort.down : key === "modified" }; drafts.set("runs:sort", this.sort); this.draw(); [...this.head.querySelectorAll("button")].find((button) => button.dataset.key === key)?.focus(); };
      return element("th", { scope: "col", "aria-sort": direction }, element("button", { type: "button", className: "plain", "data-key": key, onclick: sort }, `${title}${direction ? (this.sort.down ? " ↓" : " ↑") : ""}`));
    }));
    this.rows = new Map(visible.map((run) => [run.name, this.row(run)]));
    this.body.replaceChildren(...visible.flatMap((run, index) => {
      const folder = folderOf(run), isFirst = folder && (index === 0 || folderOf(visible[index - 1]) !== folder);
      return [...(isFirst ? [this.folderRow(folder, runs)] : []), this.rows.get(run.name)];
    }));
    this.all.hidden = visible.length === runs.length;
    this.all.textContent = `Show all ${integers.format(runs.length)} runs`;
    const training = runs.filter(isTraining).length, total = this.runs.size;
    this.count.textContent = !total ? "There is no run in this folder yet." : `${integers.format(runs.length)} of ${integers.format(total)} runs${training ? `, ${training} of them training now` : ""}. Result: ↑ higher is better, ↓ lower is better.`;
    this.table.hidden = !runs.length;
  },

  // The title of the runs in a folder, with a button that shows their curves together.
  folderRow(folder, runs) {
    const names = runs.filter((run) => folderOf(run) === folder).map((run) => run.name), count = `${integers.format(names.length)} ${names.length === 1 ? "run" : "runs"}`;
    const show = element("button", { type: "button", "aria-label": `Compare the runs of ${shortName(folder)}`, onclick: () => { this.choose(names); this.curves.view.scrollIntoView({ block: "nearest" }); } },
      names.length > MAX_CURVES ? `Compare the first ${MAX_CURVES}` : "Compare");
    return element("tr", { className: "folder" }, element("td", {}), element("td", { colSpan: RUN_COLUMNS.length }, element("strong", {}, shortName(folder)), ` ${count} `, names.length > 1 ? show : null));
  },

  row(run) {
    const box = element("input", { type: "checkbox", checked: this.chosen.includes(run.name), "aria-label": `Show ${shortName(run.name)}`, onchange: () => this.tick(run.name, box) });
    const name = element("button", { type: "button", className: "plain", onclick: () => { this.choose([run.name]); this.heads.scrollIntoView({ block: "nearest" }); } }, shortName(run.name.slice(run.name.lastIndexOf("/") + 1)));
    const progress = run.share === null ? "" : element("span", { title: stepsText(run) }, sharePercent(run.share));
    const value = run.value === null ? "" : element("span", { title: resultText(run) || `in the last evaluation; ${run.better} is better` }, run.value_text, element("span", { className: "soft" }, ` ${run.goal_title} ${run.better === "lower" ? "↓" : "↑"}`));
    const cells = [value, progress, run.minutes === null ? "" : minutesText(run.minutes), run.parameters ?? "", shortName(run.device), run.modified ? localTime(run.modified) : ""];
    return element("tr", {}, element("td", {}, box), element("td", { className: folderOf(run) ? "name inner" : "name" }, name), element("td", { className: run.state === "broken" ? "wrong state" : "state", title: run.reason }, STAGE_WORDS[run.stage] ?? RUN_STATES[run.state]),
      element("td", { className: "name" }, shortName(run.recipe)), ...cells.map((cell, index) => element("td", { className: index < 4 ? "number" : "" }, typeof cell === "number" ? formatNumber(cell) : cell)));
  },

  // Replace the cells of a run that changed; the first two, which may have the focus, stay. The steps of a training are
  // shown now and then, because a table is laid out as a whole; the run's card has them at once.
  drawRow(run, before) {
    const row = this.rows?.get(run.name), isSoon = Date.now() < (this.rowTimes.get(run.name) ?? 0) + 1000 * ROW_SECONDS;
    if (!row || (isSoon && run.state === before?.state && run.stage === before.stage && run.value === before.value)) return;
    this.rowTimes.set(run.name, Date.now());
    const fresh = this.row(run).cells;
    [...row.cells].forEach((cell, index) => { if (index > 1 && cell.textContent !== fresh[index].textContent) cell.replaceWith(fresh[index].cloneNode(true)); });
  },

  tick(name, box) {
    if (box.checked && this.chosen.length >= MAX_CURVES) {
      box.checked = false;
      page.fail(new ServerError(`at most ${MAX_CURVES} runs are shown together; untick another one first`, 400));
      return;
    }
    this.choose(box.checked ? [...this.chosen, name] : this.chosen.filter((entry) => entry !== name));
  },

  // Show these runs: curves, a card for each, and what differs.
  async choose(names) {
    this.chosen = names.filter((name) => this.runs.has(name)).slice(0, MAX_CURVES);
    drafts.set("runs:chosen", this.chosen);
    for (const [name, row] of this.rows ?? []) row.querySelector("input").checked = this.chosen.includes(name);
    this.curves.choose(this.chosen);
    const known = this.shownCards ?? new Map();
    this.shownCards = new Map(this.chosen.map((name) => [name, known.get(name) ?? new RunCard(this, this.runs.get(name))]));
    for (const [name, card] of this.shownCards) card.setIndex(this.curves.indexOf(name));
    this.heads.replaceChildren(...[...this.shownCards.values()].map((card) => card.view));
    this.cards.replaceChildren(...[...this.shownCards.values()].map((card) => card.results));
    this.command.update();
    this.compare();
    try {
      this.follow();
      await Promise.all([...this.shownCards.values()].map((card) => card.load()));
      this.compare();
    } catch (error) {
      page.fail(error, () => this.choose(names));
    }
  },

  drawCard(run, before) {
    const card = this.shownCards?.get(run.name);
    if (!card) return;
    card.update(run);
    if (before && before.state !== run.state) card.load().then(() => this.compare()).catch((error) => page.fail(error));
  },

  // The settings and scores in which the chosen runs differ.
  compare() {
    const cards = [...(this.shownCards ?? new Map()).values()].filter((card) => card.details);
    if (cards.length < 2) return this.comparison.replaceChildren();
    const titles = cards.map((card) => shortName(card.run.name));
    const settings = cards.map((card) => card.details.settings), paths = [...new Set(settings.flatMap(Object.keys))].filter((path) => new Set(settings.map((values) => values[path])).size > 1);
    const [common, other] = [true, false].map((isCommon) => paths.filter((path) => settings.every((values) => path in values) === isCommon).map((path) => [path, ...settings.map((values) => values[path] ?? "-")]));
    const metrics = [...new Set(cards.flatMap((card) => card.details.scores.map((row) => row.metric)))];
    const scores = metrics.map((metric) => [metric, ...cards.map((card) => scoreText(card.details.scores.find((row) => row.metric === metric)))]);
    const rows = common.slice(0, MAX_DIFFERENCES), rest = [...common.slice(MAX_DIFFERENCES), ...other];
    const more = rest.length ? element("details", {}, element("summary", {}, `${rest.length} more settings, which some of these runs do not have`), table(["setting", ...titles], rest, "More settings that differ")) : null;
    this.comparison.replaceChildren(element("h3", {}, "Scores"), scores.length ? table(["metric", ...titles], scores, "Scores of the runs") : element("p", { className: "soft" }, "There is no score yet."),
      element("h3", {}, "Settings that differ"), rows.length ? table(["setting", ...titles], rows, "Settings that differ") : element("p", { className: "soft" }, rest.length ? "The settings that all have are the same." : "All settings are the same."), ...(more ? [more] : []));
  },

  // Change a run; the answer is one sentence next to its buttons, or for a deleted run below the table. It ends by itself.
  async act(name, action, body = {}) {
    page.fail(null);
    try {
      const answer = await server.json(`${runPath(name)}/${action}`, { body });
      const undo = answer.can_restore ? element("button", { type: "button", onclick: () => this.act(name, "restore") }, "Undo") : null, card = this.shownCards?.get(name);
      if (["resume", "extend", "finish"].includes(action)) trainingNotices.started(name);
      if (action !== "stop" && action !== "delete" && card) card.say(sentence(answer.message));
      else if (action !== "stop") this.say(element("div", { className: "row done" }, element("span", {}, `${shortName(name)}: ${answer.message}.`), undo), undo ? UNDO_SECONDS : MESSAGE_SECONDS);
      undo?.focus();
      this.follow();
    } catch (error) {
      page.fail(error, error.status === 0 || error.status >= 500 ? () => this.act(name, action, body) : undefined);
    }
  },

  say(message, seconds) {
    clearTimeout(this.said);
    this.done.replaceChildren(message);
    this.said = setTimeout(() => { if (!message.contains(document.activeElement)) message.remove(); }, 1000 * seconds);
  },

  drawTrash() {
    this.trash.hidden = !this.deleted.length;
    this.trash.lastChild.replaceChildren(...this.deleted.map((run) => element("li", {}, element("span", {}, `${shortName(run.name)}, deleted ${localTime(run.time)} `),
      this.mayTrain ? element("button", { type: "button", onclick: () => this.act(run.name, "restore") }, "Restore") : null)));
  },

  commandLines() {
    const card = this.shownCards?.values().next().value, folder = card?.details?.folder || "runs/NAME";
    return {
      shell: `headway board ${shellWord(folder.replace(/\/[^/]*$/, ""))}\nheadway train ${shellWord(`${folder}/recipe.json`)} --run ${shellWord(folder)} --resume --minutes 5`,
      python: `import headway as hw\nrun = hw.train(${pythonString(`${folder}/recipe.json`)}, run=${pythonString(folder)}, resume=True, minutes=5)\nprint(run.summary["scores"])`,
    };
  },
});

// A score with its interval, in a line.
function scoreText(row) {
  if (!row) return "-";
  const { metric, signature, "95 % interval": interval, ...values } = row;
  return Object.entries(values).filter(([, value]) => value !== null).map(([split, value]) => `${value}${interval && !split.startsWith("best") ? ` (${interval})` : ""} ${split}`).join(", ");
}

// What is known about one run, and what can be done with it.
class RunCard {
  constructor(tab, run) {
    this.tab = tab;
    this.title = element("h3");
    this.status = element("p");
    this.bar = element("progress", { max: 1, "aria-label": "Steps done" });
    this.facts = element("p", { className: "soft" });
    this.actions = element("div");
    this.message = element("div", { role: "status" });
    this.export = element("p", { "aria-live": "polite" });
    this.more = element("div");
    this.minutes = keepDraft(element("input", { type: "number", min: 0.1, max: 1000000, step: "any" }), `runs:minutes:${run.name}`, "5");
    this.format = element("select", {}, new Option("folder for transformers", "hf"), new Option(".gguf for llama.cpp", "gguf"), new Option(".onnx", "onnx"));
    this.view = element("section", { className: "card", "aria-label": `Run ${shortName(run.name)}` }, this.title, this.status, this.bar, this.facts, this.actions, this.message, this.export);
    this.results = element("section", { className: "card", "aria-label": `Results of ${shortName(run.name)}` }, this.more);
    this.index = 0;
    this.update(run);
  }

  setIndex(index) {
    this.index = index;
    this.title.replaceChildren(seriesSwatch(index), ` ${shortName(this.run.name)}`);
  }

  async load() {
    try {
      this.details = await server.json(runPath(this.run.name));
    } catch (error) {
      if (error.code === "unknown_run") return; // it is deleted just now; the next list leaves it out
      throw error;
    }
    const { samples, scores, environment, notes, folder, settings } = this.details, open = new Set([...this.more.querySelectorAll("details[open]")].map((part) => part.dataset.part));
    const part = (title, isOpen, ...content) => content[0] && element("details", { open: open.size ? open.has(title) : isOpen, "data-part": title }, element("summary", {}, title), ...content);
    const isAlone = this.tab.chosen.length === 1, titles = { "": "right" };
    this.more.replaceChildren(...[
      isAlone ? null : element("h3", {}, shortName(this.run.name)),
      part("Scores", isAlone, scores.length ? table(Object.keys(scores[0]), scores.map((row) => Object.values(row)), "Scores") : null),
      part("Samples", true, samples.length ? sampleTable(this.run, samples.slice(0, 3), titles) : null),
      part("More samples", false, samples.length > 3 ? sampleTable(this.run, samples.slice(3), titles, 3) : null),
      part("What happened", false, notes.length ? element("ul", {}, ...notes.map((note) => element("li", {}, note))) : null),
      part("Settings", false, Object.keys(settings).length ? table(["setting", "value"], Object.entries(settings), "Settings") : null),
      part("Machine and versions", false, Object.keys(environment).length ? table(["what", "value"], [...(folder ? [["folder", folder]] : []), ...Object.entries(environment)], "Machine and versions") : null),
    ].filter(Boolean));
  }

  update(run) {
    this.run = run;
    const reason = run.reason ? ` (${run.reason})` : "", speed = run.tokens_per_second === null ? "" : `, ${formatNumber(Math.round(run.tokens_per_second))} ${run.unit}s per second`;
    const after = isTraining(run) ? `: ${stageText(run)}` : run.state === "finished" ? `: trained for ${minutesText(run.minutes ?? 0)}. ${resultText(run)}` : run.share ? ` at ${sharePercent(run.share)}` : "";
    this.status.textContent = `${run.state === "starting" ? "▶ being trained" : RUN_STATES[run.state]}${after}${isTraining(run) ? "" : reason}`;
    this.facts.textContent = `${run.state === "finished" ? `${integers.format(run.step)} steps` : stepsText(run)}${speed}${isTraining(run) ? reason : ""}`;
    this.status.className = run.state === "broken" ? "wrong" : "";
    this.bar.hidden = !isTraining(run);
    if (run.stage === "training" && run.share !== null) this.bar.value = run.share;
    else this.bar.removeAttribute("value");
    const place = run.export_path ? ` to ${run.export_path}` : "", why = run.export_message ? `: ${run.export_message}` : "";
    const exported = run.export === "running" ? `Export${place} is running${why}` : run.export === "finished" ? `Exported${place}` : run.export ? `The export failed${why}` : "";
    setText(this.export, "textContent", exported);
    this.export.className = run.export === "failed" || run.export === "ended" ? "wrong" : "";
    if (this.state !== run.state) this.message.replaceChildren();
    this.state = run.state;
    const key = `${run.state} ${run.stage} ${run.has_model} ${run.step === null} ${run.can_extend} ${run.can_stop} ${run.has_report} ${run.export === "running"} ${this.tab.mayTrain}`;
    if (key !== this.key) this.drawActions();
    this.key = key;
  }

  // A message about the last action, which ends by itself.
  say(text) {
    clearTimeout(this.said);
    this.message.replaceChildren(element("p", {}, text));
    this.said = setTimeout(() => this.message.replaceChildren(), 1000 * MESSAGE_SECONDS);
  }

  // The buttons in the order of need; the question before a deletion replaces the last ones.
  drawActions() {
    const { run, tab } = this, button = (text, onclick, className = "") => element("button", { type: "button", className, onclick }, text);
    const act = (text, action, className) => button(text, () => tab.act(run.name, action), className), row = (...parts) => parts.some(Boolean) ? element("div", { className: "row" }, ...parts) : null;
    const isStopped = run.state === "stopped", isIdle = isStopped || run.state === "finished", may = tab.mayTrain;
    const use = may && isIdle && run.has_model ? button("Use it", () => useModel(run.name, this.message), isStopped ? "" : "main") : null;
    const more = may && (isStopped || (isIdle && run.can_extend)) ? element("div", { className: "pair" }, labelled("More minutes", this.minutes), button("Train on", () => tab.act(run.name, "extend", { minutes: Number(this.minutes.value) }))) : null;
    const stop = may && isTraining(run) && run.can_stop && !["stopping", "checking"].includes(run.stage) ? act("Stop", "stop") : null;
    const hint = stop ? (run.step ? KEPT : "") : !may ? "Your key may look at runs, but not change them." : isStopped ? "Continue trains to the planned end. Train on trains for the minutes that you type, counted from now. Finish early ends the training soon, with a model."
      : more ? "Train on makes this model learn for more minutes." : isIdle ? "This run was too short to add minutes to it; start a new run with more minutes." : "";
    const convert = may && isIdle && run.has_model && run.export !== "running" ? element("div", { className: "pair" }, labelled("Export as", this.format), button("Export", () => tab.act(run.name, "export", { format: this.format.value }))) : null;
    this.last = element("div", { className: "row" }, convert, run.has_report ? button("Report", () => server.openReport(`${runPath(run.name)}/report`)) : null, may && !isTraining(run) ? button("Delete", () => this.askDelete(), "apart") : null);
    this.actions.replaceChildren(...[row(may && isStopped ? act("Continue", "resume", "main") : null, stop, use, more, may && isStopped ? act("Finish early", "finish") : null), hint ? element("p", { className: "soft" }, hint) : null, this.last].filter(Boolean));
  }

  askDelete() {
    const keep = element("button", { type: "button", onclick: () => { this.drawActions(); this.actions.querySelector("button")?.focus(); } }, "Keep it");
    this.last.replaceChildren(element("span", {}, this.run.steps === null ? `Delete ${shortName(this.run.name)}?` : `Delete ${shortName(this.run.name)} with its model? You can restore it for a day.`),
      element("button", { type: "button", className: "main", onclick: () => { this.drawActions(); this.tab.act(this.run.name, "delete"); } }, "Delete it"), keep);
    keep.focus();
  }
}
