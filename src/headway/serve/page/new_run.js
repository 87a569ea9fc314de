"use strict";
// The tab to train: what somebody has, their files, what was read, how long to train, and the training itself.

const newRun = {
  limits: null,
  refusal: "", // why this key may not train
  work: null, // the controller of what goes on now
  files: null, // those that were chosen, as long as this page has them

  // What is remembered over a reload: the kind of data, the upload, its files, and the name of the run.
  get state() { return settings.get("new-run", {}); },
  remember(changes) {
    if (!settings.set("new-run", { ...this.state, ...changes })) page.fail(new ServerError("the browser's storage is full, so a reload loses the choices here; keep this page open", 0));
  },
  get kind() { return trainingKinds.find((kind) => kind.id === this.state.kind); },

  // One activity at a time; `work(signal)` ends early with the button "Stop" of `place`.
  async during(place, text, work) {
    this.work?.abort();
    const controller = this.work = new AbortController(), started = performance.now();
    const seconds = element("span", { className: "soft" }), bar = element("progress", { "aria-label": text });
    const status = element("p", { role: "status" }, text);
    place.replaceChildren(status, element("div", { className: "row" }, bar, seconds, element("button", { type: "button", onclick: () => controller.abort() }, "Stop")));
    const clock = setInterval(() => { seconds.textContent = `${Math.round((performance.now() - started) / 1000)} s`; }, 1000);
    page.fail(null);
    try {
      return await work(controller.signal, (share, words) => { bar.value = share; status.textContent = words; });
    } finally {
      clearInterval(clock);
      if (this.work === controller) this.work = null;
    }
  },
};

page.addTab({
  id: "new",
  title: "Train",
  exists: false,

  // Whether this server trains, and whether this key may. It is asked again for another key.
  async check() {
    if (this.checked === server.key) return;
    this.checked = server.key;
    try {
      newRun.limits = await server.json("/v1/uploads");
      newRun.refusal = "";
    } catch (error) {
      newRun.limits = null;
      newRun.refusal = error.status === 403 ? error.message : "";
      if (error.status === 0 || error.status === 401) this.checked = null;
    }
    this.exists = Boolean(newRun.limits || newRun.refusal);
    this.button.hidden = !this.exists;
    for (const line of document.querySelectorAll(".teach")) line.hidden = !newRun.limits;
    trainingNotices.follow();
    if (this.wasShown) this.show(this.panel);
    if (this.exists && location.hash === "#new") page.open("new", false);
  },

  show(panel) {
    const heading = element("h2", {}, "Train a model on your own files");
    if (newRun.refusal) return panel.replaceChildren(heading, element("p", { className: "wrong" }, sentence(newRun.refusal)));
    this.parts = Object.fromEntries(["files", "arrived", "read", "plans", "start"].map((name) => [name, element("div")]));
    this.live = element("div");
    this.form = element("div", {}, kindChoice(() => this.chosen()), ...Object.values(this.parts));
    panel.replaceChildren(heading, element("p", {}, "The files stay on the computer of this server. Nothing is sent elsewhere."), this.live, this.form);
    if (newRun.state.run) return this.follow(newRun.state.run);
    if (newRun.kind) this.showFiles();
    if (newRun.state.upload) this.takeUp();
  },

  // Another kind of data was chosen.
  chosen() {
    newRun.work?.abort();
    this.clear("arrived", "read", "plans", "start");
    newRun.files = null;
    newRun.remember({ upload: null, expected: null, files: [], settings: {}, without: [] });
    this.showFiles();
  },

  readings: 0, // how often the files were read; an earlier reading shows nothing when other files are chosen

  clear(...names) {
    if (names.includes("read")) this.readings += 1;
    for (const name of names) this.parts[name].replaceChildren();
  },

  showFiles() {
    const kind = newRun.kind, limits = newRun.limits;
    const use = (chosen, isExample, others) => { for (const other of others) other.clear(); newRun.remember({ isExample }); this.take(chosen); };
    const input = { multiple: true, limit: limits.file_bytes, takesLarge: true, dropped: droppedFiles };
    const folder = fileInput({ ...input, label: "Choose a folder", folder: true, changed: (chosen) => use(chosen, false, [files]) });
    const files = fileInput({ ...input, label: "Choose files", accept: kind.kinds.join(), changed: (chosen) => use(chosen, false, [folder]) });
    const saved = async () => {
      const made = await kind.example();
      if (made.length === 1) saveFile(made[0].name, made[0]);
      else saveFile(`${filePath(made[0]).split("/")[0]}.zip`, await zipFiles(made));
    };
    this.parts.files.replaceChildren(element("h3", {}, "2. Your files"), element("p", {}, kind.rule), element("pre", { tabIndex: 0 }, kind.look),
      element("div", { className: "row" },
        element("button", { type: "button", onclick: async () => use(await kind.example(), true, [files, folder]) }, "Try it with an example"),
        element("button", { type: "button", onclick: saved }, "Download the example")),
      element("div", { className: "options wide" }, ...(kind.folders ? [folder.zone, files.zone] : [files.zone, folder.zone])),
      element("p", { className: "soft" }, `Kinds of files: ${kind.kinds.join(" ")}. All together at most ${integers.format(limits.files)} files and ${formatBytes(limits.upload_bytes)}.`));
  },

  // Files were chosen or dropped: make large photos smaller, send what fits, then read it.
  async take(files) {
    const { usable, others } = sortFiles(files, newRun.kind.kinds), limits = newRun.limits, total = totalBytes(usable);
    const problem = !files.length ? "there are no files in it; choose others"
      : !usable.length && !files.some((file) => file.size) ? `${filePath(files[0]).slice(0, 100)} is empty; choose a file with content`
      : !usable.length ? `${filePath(files[0]).slice(0, 100)} is not of a kind that is read here; choose ${newRun.kind.kinds.slice(0, 4).join(", ")}`
        : isClasses() && classFolders(usable.map(filePath)).size < 2 ? `${filePath(usable[0]).includes("/") ? "there is only one folder in it" : "these files are in no folders"}; choose a folder that contains two folders or more, one for each kind`
        : newRun.kind.id === "pairs" && usable.length !== 2 && usable.every((file) => /\.txt$/i.test(file.name)) ? `${usable.length === 1 ? "this is one text file" : `these are ${usable.length} text files`}; choose two, whose lines belong together, or a table`
        : usable.length > limits.files ? `these are ${integers.format(usable.length)} files, and the limit is ${integers.format(limits.files)}; choose fewer` : "";
    if (problem) return page.fail(new ServerError(problem, 413));
    this.clear("read", "plans", "start");
    newRun.remember({ leftOut: others.slice(0, 5).map((file) => filePath(file).slice(0, 100)), leftOutCount: others.length, without: [] });
    try {
      await newRun.during(this.parts.arrived, "Your files are being sent.", async (signal, progress) => {
        const most = Math.min(PHOTO_BYTES, limits.file_bytes, total > limits.upload_bytes ? limits.upload_bytes / usable.length : Infinity);
        const { files: made, shrunk } = newRun.kind.id === "images" ? await shrinkPhotos(usable, most, signal, progress) : { files: usable, shrunk: 0 };
        const fitting = made.filter((file) => file.size <= limits.file_bytes), tooLarge = made.filter((file) => file.size > limits.file_bytes);
        if (!fitting.length) throw new ServerError(`${shortName(filePath(made[0]))} has ${formatBytes(made[0].size)}, and the limit of a file is ${formatBytes(limits.file_bytes)}; choose smaller files`, 413);
        if (totalBytes(fitting) > limits.upload_bytes) throw new ServerError(`these are ${formatBytes(totalBytes(fitting))}, and the limit is ${formatBytes(limits.upload_bytes)}; choose fewer files`, 413);
        newRun.remember({ shrunk, tooLarge: tooLarge.slice(0, 5).map((file) => `${shortName(filePath(file))} (${formatBytes(file.size)})`), tooLargeCount: tooLarge.length });
        newRun.files = fitting;
        await this.send(fitting, signal, progress);
      });
      await this.takeUp();
    } catch (error) {
      this.parts.arrived.replaceChildren(element("p", {}, error.name === "AbortError" ? "Stopped. What has arrived is kept; choose the files again to continue." : ""));
      page.fail(error, error.status === 0 || error.status >= 500 ? () => this.take(files) : undefined);
    }
  },

  // An interrupted upload continues if the same files are chosen; other or edited files begin a new one.
  async send(files, signal, progress) {
    const { upload: earlier, choice } = newRun.state, chosen = choiceSum(newRun.files), total = totalBytes(files);
    let upload = earlier && await server.json(`/v1/uploads/${earlier}`).catch((error) => {
      if (error.status !== 404) throw error;
      return null;
    });
    if (upload && (choice !== chosen || upload.files.length >= files.length)) {
      server.request(`/v1/uploads/${earlier}`, { method: "DELETE" }).catch(() => {}); // refused if a training uses it
      upload = null;
    }
    upload ||= await server.json("/v1/uploads", { body: {} });
    newRun.remember({ upload: upload.id, expected: files.length, choice: chosen, files: [], settings: {} });
    await sendFiles(upload.id, files, new Map(upload.files.map((file) => [file.name, file.size])), signal,
      (count, bytes) => progress(total ? bytes / total : 1, `${integers.format(count)} of ${integers.format(files.length)} files have arrived (${formatBytes(bytes)} of ${formatBytes(total)}).`));
  },

  // Leave classes out, or use them again: the server removes the files of the former, and gets those of the latter.
  async useClasses(without, uploaded) {
    const classes = classFolders(uploaded), removed = without.filter(({ name }) => classes.has(name)), isLess = without.length === (newRun.state.without?.length ?? 0) + removed.length;
    try {
      await newRun.during(this.parts.arrived, "The folders are being changed.", async (signal, progress) => {
        let isUsed = false;
        for (const folder of removed.flatMap(({ name }) => [...classes.get(name).folders])) {
          await server.request(`/v1/uploads/${newRun.state.upload}/files/${folder.split("/").map(encodeURIComponent).join("/")}`, { method: "DELETE", signal }).catch((error) => {
            if (error.code !== "upload_used" || !newRun.files) throw error;
            isUsed = true; // a training needs the files as they are, so that the others are sent again
          });
        }
        const count = uploaded.length - removed.reduce((sum, { name }) => sum + classes.get(name).paths.length, 0);
        newRun.remember({ without, expected: count, ...(isUsed ? { choice: null } : {}) });
        if (isUsed || !isLess) await this.send(withoutClasses(newRun.files, without.map(({ name }) => name)), signal, progress);
      });
    } catch (error) {
      page.fail(error);
    }
    await this.takeUp();
  },

  // What has arrived, also after a reload; complete uploads are read.
  async takeUp() {
    const state = newRun.state;
    let upload;
    try {
      upload = await server.json(`/v1/uploads/${state.upload}`);
    } catch (error) {
      if (error.status !== 404) return page.fail(error, () => this.takeUp());
      newRun.remember({ upload: null });
      return this.parts.arrived.replaceChildren(element("p", {}, "Your files were removed, because no training used them for a day. Choose them again."));
    }
    const isComplete = upload.files.length >= (state.expected ?? 0), bytes = upload.files.reduce((sum, file) => sum + file.size, 0);
    const leftOut = state.leftOutCount ? `${state.leftOutCount === 1 ? "1 file is" : `${integers.format(state.leftOutCount)} files are`} left out, because ${state.leftOutCount === 1 ? "it is" : "they are"} empty or of another kind: ${state.leftOut.join(", ")}${state.leftOutCount > state.leftOut.length ? ", ..." : ""}.` : null;
    const tooLarge = state.tooLargeCount ? `${integers.format(state.tooLargeCount)} ${state.tooLargeCount === 1 ? "file is" : "files are"} larger than ${formatBytes(newRun.limits.file_bytes)} and left out: ${state.tooLarge.join(", ")}${state.tooLargeCount > state.tooLarge.length ? ", ..." : ""}. You can go on without them, or save smaller copies and choose the files again.` : null;
    const shrunk = state.shrunk ? `${integers.format(state.shrunk)} large ${state.shrunk === 1 ? "photo was" : "photos were"} sent with ${integers.format(PHOTO_SIDE)} pixels on the longest side, which is enough for every model here. Your own copies stay as they are.` : null;
    const uploaded = upload.files.map((file) => file.name);
    const others = () => { newRun.work?.abort(); server.request(`/v1/uploads/${upload.id}`, { method: "DELETE" }).catch(() => {}); this.chosen(); };
    this.parts.arrived.replaceChildren(
      element("p", { role: "status" }, isComplete ? `${integers.format(upload.files.length)} ${upload.files.length === 1 ? "file has" : "files have"} arrived (${formatBytes(bytes)}).`
        : `${integers.format(upload.files.length)} of ${integers.format(state.expected)} files have arrived. Choose the same files again to send the others.`),
      element("p", {}, `${state.isExample ? "The example is used, not files of yours" : "Your own files are used"}: ${fileNames(upload.files)}.`),
      ...[leftOut, tooLarge, shrunk].filter(Boolean).map((text) => element("p", { className: text === tooLarge ? "wrong" : "soft" }, text)),
      (isComplete && isClasses() && classChoice(uploaded, state.without ?? [], newRun.files, newRun.kind.id.slice(0, -1),
        () => { newRun.work?.abort(); this.clear("read", "plans", "start"); }, (without) => this.useClasses(without, uploaded))) || "",
      alignedChoice(upload.files, () => this.plan()) ?? "",
      element("button", { type: "button", onclick: others }, "Choose other files"));
    if (isComplete) await this.plan();
  },

  get body() {
    return { recipe: newRun.kind.recipe, upload: newRun.state.upload, files: newRun.state.files ?? [], settings: newRun.state.settings ?? {} };
  },

  // What was read and the plan of 5 minutes come first; then those of 30 minutes and 2 hours.
  async plan() {
    this.clear("plans", "start");
    const number = ++this.readings, isLate = () => number !== this.readings;
    const ask = (place, text, minutes) => newRun.during(place, text, (signal) => server.json("/v1/plans", { body: { ...this.body, minutes }, signal }));
    const reading = element("div");
    this.parts.read.replaceChildren(element("h3", {}, "3. What was read"), reading);
    try {
      const answer = await ask(reading, "Reading the files, and measuring this computer for the plan of 5 minutes. This takes a minute or two.", [5]).catch((error) => {
        if (!/--minutes/.test(error.message)) throw error;
        return { plans: [{ minutes: 5, steps: null, reasons: [error.message] }], data: null, notes: [] };
      });
      const waiting = element("div");
      const show = (plans, data) => {
        this.plans = plans;
        this.parts.read.replaceChildren(planData({ ...answer, data }));
        this.parts.plans.replaceChildren(planChoice(plans), waiting);
        if (!this.parts.start.childElementCount && plans.some((plan) => plan.steps !== null)) this.showStart();
      };
      show(answer.plans, answer.data);
      const longer = await ask(waiting, `${answer.data ? "Measuring" : "Reading the files again, and measuring"} this computer for the plans of 30 minutes and 2 hours.`, [30, 120]);
      waiting.replaceChildren();
      show([...answer.plans, ...longer.plans], answer.data ?? longer.data);
    } catch (error) {
      if (isLate()) return;
      if (this.parts.start.childElementCount) return this.parts.plans.lastChild.replaceChildren(element("p", { className: "soft" }, "The plans of longer trainings were not made."));
      const again = element("button", { type: "button", onclick: () => this.plan() }, "Read the files again");
      if (error.code !== "plan_failed") page.fail(error, error.name === "AbortError" ? undefined : () => this.plan());
      const problem = error.code === "plan_failed" ? await planProblem(error, newRun.state.upload, () => this.plan(), async () => this.take(await convertTexts(newRun.files))) : element("p", {}, error.name === "AbortError" ? "Stopped." : "The files were not read yet.");
      this.clear("plans");
      this.parts.read.replaceChildren(element("h3", {}, "3. What was read"), problem, again);
    }
  },

  showStart() {
    const name = keepDraft(element("input", { required: true, maxLength: 100, autocomplete: "off" }), "new-run:name", `my-${newRun.kind.id}`);
    const minutes = () => Number(this.parts.plans.querySelector("input:checked")?.value ?? 5);
    const plan = () => this.plans.find((entry) => entry.minutes === minutes());
    const command = commandView(() => {
      const run = `runs/${name.value}`, recipe = newRun.kind.recipe, { settings: named } = this.body;
      const chosen = { ...plan()?.settings, ...named, ...Object.fromEntries(["task.skip_bad", "task.fill"].filter((setting) => named[setting]).map((setting) => [setting, true])) };
      const settings = Object.entries(chosen).map(([setting, value]) => shellWord(`${setting}=${typeof value === "string" ? value : JSON.stringify(value)}`)).join(" ");
      return {
        shell: `headway train ${recipe} --data YOUR-FILES --run ${shellWord(run)} --minutes ${minutes()}${settings ? ` --set ${settings}` : ""}`,
        python: `import headway as hw\nhw.train(${pythonString(recipe)}, data="YOUR-FILES", run=${pythonString(run)}, minutes=${minutes()}${settings ? `, set={${Object.entries(chosen).map(([setting, value]) => `${pythonString(setting)}: ${pythonValue(value)}`).join(", ")}}` : ""})`,
      };
    });
    name.addEventListener("input", command.update);
    this.parts.plans.addEventListener("change", command.update);
    this.parts.start.replaceChildren(element("h3", {}, "5. Start"),
      workForm([element("div", { className: "row" }, labelled("Name of the model", name))], async (signal) => {
        const body = { ...this.body, minutes: minutes(), name: name.value, plan: plan()?.id ?? "" };
        const started = await server.json("/v1/runs", { body, signal }).catch((error) => {
          if (!["files_changed", "no_plan"].includes(error.code)) throw error;
          page.fail(error, () => this.plan());
        });
        if (!started) return;
        newRun.remember({ run: started.name, minutes: minutes() });
        trainingNotices.started(started.name);
        this.follow(started.name);
      }, "Start the training"), command);
  },

  // Open this tab with a training.
  showRun(name) {
    newRun.remember({ run: name });
    page.open(this.id);
    this.follow(name);
  },

  // The training from now on, instead of the form.
  follow(name) {
    this.form.hidden = true;
    newRun.work?.abort();
    this.stopFollowing?.();
    this.stopFollowing = followRun(this.live, name, () => {
      this.stopFollowing();
      newRun.remember({ run: null });
      this.live.replaceChildren();
      this.form.hidden = false;
      if (newRun.kind) this.showFiles();
      if (newRun.state.upload) this.takeUp();
    });
  },
});

// Whether each folder is a class.
const isClasses = () => ["images", "sounds"].includes(newRun.kind.id);

// The question "What do you have?": a card for each kind of data.
function kindChoice(changed) {
  const cards = trainingKinds.map((kind) => {
    const input = element("input", { type: "radio", name: "new-run-kind", value: kind.id, checked: newRun.state.kind === kind.id,
      onchange: () => { newRun.remember({ kind: kind.id }); changed(); } });
    return element("label", { className: "option" }, element("span", { className: "row" }, input, element("strong", {}, kind.title)),
      element("span", {}, kind.result), kindPicture(kind.id));
  });
  return element("fieldset", {}, element("legend", {}, "1. What do you have?"), element("div", { className: "options" }, ...cards));
}

// A small drawing of each kind of data, for the eye only.
function kindPicture(id) {
  const lines = (x, widths) => widths.map((width, row) => svg("rect", { x, y: 6 + 9 * row, width, height: 4, rx: 2 }));
  const tag = (x, y) => svg("rect", { x, y, width: 18, height: 8, rx: 4, class: "strong" });
  const folder = (x) => [svg("path", { d: `M${x} 8h10l3 4h17v24h-30z` })];
  const wave = (x) => svg("path", { d: `M${x} 22q3 -20 6 0t6 0t6 0t6 0`, class: "line" });
  const drawings = {
    texts: [...lines(4, [70, 84, 60, 76])],
    pairs: [...lines(4, [36, 30, 38, 26]), ...lines(56, [30, 36, 28, 34]).map((line) => { line.setAttribute("class", "strong"); return line; })],
    labelled: [...lines(4, [56, 50, 60, 44]), tag(72, 4), tag(72, 13), tag(72, 22), tag(72, 31)],
    images: [...folder(6), ...folder(54), svg("circle", { cx: 21, cy: 25, r: 6, class: "strong" }), svg("rect", { x: 63, y: 19, width: 12, height: 12, class: "strong" })],
    sounds: [...folder(6), ...folder(54), wave(9), wave(57)],
    series: [svg("path", { d: "M4 34l12 -12l10 6l12 -16l10 8l12 -10", class: "line" }), svg("path", { d: "M60 10l10 4l10 -8l10 4", class: "line dashed" })],
    conversations: [svg("rect", { x: 4, y: 4, width: 52, height: 12, rx: 6 }), svg("rect", { x: 36, y: 22, width: 52, height: 12, rx: 6, class: "strong" })],
    transcripts: [wave(8), svg("path", { d: "M42 22h10m-4 -4l4 4l-4 4", class: "line" }), ...lines(60, [28, 32, 22, 30])],
  };
  return svg("svg", { viewBox: "0 0 96 40", width: 96, height: 40, class: "kind", "aria-hidden": "true" }, ...drawings[id]);
}

// Two text files with lines that belong together: which of them the model gets.
function alignedChoice(files, changed) {
  const isTwo = newRun.kind.id === "pairs" && files.length === 2 && files.every((file) => file.name.endsWith(".txt"));
  if (!isTwo) return null;
  const names = files.map((file) => file.name), first = newRun.state.files?.[0] ?? names[0];
  const ordered = (name) => [name, names.find((other) => other !== name)];
  newRun.remember({ files: ordered(names.includes(first) ? first : names[0]) });
  const select = element("select", { onchange: () => { newRun.remember({ files: ordered(select.value) }); changed(); } }, ...names.map((name) => new Option(name, name)));
  select.value = newRun.state.files[0];
  return labelled("The model gets the lines of", select, "It answers with the lines of the other file.");
}

// What was read: how many samples, the classes, the first of them, and what is left out.
function planData({ data, notes }) {
  if (!data) return element("div", {}, element("h3", {}, "3. What was read"), element("p", {}, "This is listed here as soon as the longer plans below have read the files."), ...notes.map((note) => element("p", {}, note)));
  const total = Object.values(data.samples).reduce((sum, count) => sum + count, 0);
  const names = { train: "to learn from", validation: "to check while learning", test: "for the final score" };
  const parts = Object.entries(data.samples).map(([split, count]) => `${integers.format(count)} ${names[split] ?? split}`);
  const classes = Object.entries(data.classes).sort((one, other) => other[1] - one[1]), most = classes[0]?.[1] ?? 1;
  const counts = element("ul", { className: "bars" }, ...classes.slice(0, 20).map(([label, count]) => {
    const bar = element("span", { className: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", `${100 * count / most}%`);
    return element("li", {}, element("span", { className: "name" }, label.slice(0, 100)), bar, element("span", { className: "number" }, integers.format(count)));
  }));
  return element("div", {}, element("h3", {}, "3. What was read"),
    element("p", {}, total > 3 ? `${integers.format(total)} ${data.noun}: ${parts.join(", ")}.` : `Text of ${integers.format(data.targets)} tokens (pieces of words) to learn from.`),
    classes.length ? element("p", {}, `${integers.format(classes.length)} different labels${classes.length > 20 ? "; the 20 with most samples" : ""}:`) : null, classes.length ? counts : null,
    element("details", { open: true }, element("summary", {}, "Some of it"), element("ul", {}, ...data.preview.map((line) => element("li", {}, line)))),
    ...[...data.remarks, ...notes].map((note) => element("p", { className: "soft" }, sentence(note))));
}

// Why the files cannot be used, with the wrong line and those around it, and buttons for the settings that the message
// names: other columns, and samples to leave out.
async function planProblem(error, upload, again, convert) {
  const [, name, number] = /^(.*):(\d+)$/s.exec(error.param ?? "") ?? [];
  const around = name === undefined ? null
    : await server.json(`/v1/uploads/${upload}/lines/${number}/${name.split("/").map(encodeURIComponent).join("/")}`).catch(() => null);
  const line = (text, index) => element(around.first + index === around.line ? "mark" : "span", {}, `${String(around.first + index).padStart(6)}  ${text}\n`);
  const columns = [...error.message.matchAll(/no column '.*?' \(choose from: ([^)]*)\)|which of (.*?) is the/g)].map(([, names, others]) => (names ?? others).split(", "));
  const settings = [...error.message.matchAll(/(task\.(?:text2?|label|path|time|series|value|skip_bad|fill))=([^\s,;)]+)/g)]
    .flatMap(([, name, value]) => (value === "NAME" ? (columns.shift() ?? []).slice(0, 12) : [value]).map((column) => [name, column]));
  const isEncoding = /is not UTF-8.*cp1252/.test(error.message) && newRun.files;
  return element("div", { className: "problem", role: "alert" }, element("p", { className: "wrong" }, sentence(pageMessage(error.message))),
    /not a folder|neither a folder/.test(error.message) ? element("p", {}, newRun.kind.rule) : null,
    around && element("p", {}, `Line ${integers.format(around.line)} of ${around.name}, with the lines around it:`), around && element("pre", { tabIndex: 0 }, ...around.lines.map(line)),
    element("p", {}, `Mend the ${newRun.kind.folders ? "files" : "file"} on your computer, save, and choose again above${settings.length || isEncoding ? ", or:" : "."}`),
    isEncoding ? element("button", { type: "button", onclick: convert }, "Convert the text of an older program") : "",
    settings.length ? element("div", { className: "row" }, ...settings.map(([name, value]) => element("button", { type: "button",
      onclick: () => { newRun.remember({ settings: { ...newRun.state.settings, [name]: value } }); again(); } },
    { "task.skip_bad": "Leave such samples out", "task.fill": "Fill in what is missing" }[name] ?? `Use the column ${value} as ${name.slice(5)}`))) : "");
}

// A message without the words of the command line; the page has buttons for what they do.
const pageMessage = (message) => shortTimeReason(message).replace(/[;,:]? or (?:skip such \w+|set)\W[^;]*?task\.(?:skip_bad|fill)=true.*$/s, "").replace(/; add --set task\..*$/s, "; rename the columns, or choose some below").replace(/, or set task\.\w+=NAME.*$/s, ", or choose it below")
  .replace(/is binary \(.*?\); pass a UTF-8 text file/, "is not a text file, but perhaps a document of another program; save it there as plain text (UTF-8)")
  .replace(/has no key '(?:source|target)'; choose from: (.*)$/s, "has the columns $1; rename the two that belong together to source and target").replace(/has no key ('\w+'); (?:choose from: |did you mean )(.*?)\??$/s, "has no key $1, but $2; write it as in the example above")
  .replace(/, or set a larger share.*$/s, "").replace(/; convert it: iconv .*$/s, "; open it with a text editor, and save it as UTF-8");

const PLAN_WORDS = "Parameters are the numbers that the model learns; width and layers are its shape. A batch is what it reads before it corrects itself once, which is a step. An epoch is one pass over all samples. The loss says how wrong the model is (lower is better); validation measures it with samples kept apart from learning. The vocabulary is the list of word pieces that the model knows.";

// Why a time is too short, without the words of the command line.
function shortTimeReason(message) {
  const few = /only ([\d,.]+) s are left for training, and (.+) can take only (\d+) steps?; increase --minutes by ([\d.,]+)/.exec(message);
  if (few) return `too short: when the files are read, ${few[1]} seconds are left, in which ${few[2]} could correct itself only ${few[3]} times, too few to learn anything; about ${few[4]} minutes more are needed`;
  const slow = /only ([\d,.]+) s are left for training, but a step takes (\S+) s, an evaluation (\S+) s and the final results (\S+) s/.exec(message);
  if (slow) return `too short: ${slow[1]} seconds are left for learning, but one step of it takes ${slow[2]}, a check of the model ${slow[3]}, and the results at the end ${slow[4]} seconds`;
  return /reading the data takes too long/.test(message) ? "too short: reading the files alone takes longer; choose more time, or fewer files" : message;
}

// The names of the first files.
const fileNames = (files) => `${files.slice(0, 3).map((file) => shortName(file.name)).join(", ")}${files.length > 3 ? `, and ${integers.format(files.length - 3)} more` : ""}`;

// How long to train: a card for each plan, with its size and reasons.
function planChoice(plans) {
  const usable = plans.filter((plan) => plan.steps !== null), chosen = newRun.state.minutes ?? 5;
  const first = usable.find((plan) => plan.minutes === chosen) ?? usable[0];
  const cards = plans.map((plan) => {
    const input = element("input", { type: "radio", name: "new-run-minutes", value: plan.minutes, checked: plan === first, disabled: plan.steps === null, onchange: () => newRun.remember({ minutes: plan.minutes }) });
    const title = element("span", { className: "row" }, input, element("strong", {}, plan.minutes === 120 ? "2 hours" : `${plan.minutes} minutes`));
    if (plan.steps === null) return element("label", { className: "option" }, title, element("span", {}, sentence(shortTimeReason(plan.reasons[0]))));
    const epochs = plan.epochs === null ? null : element("span", {}, `sees each sample ${formatNumber(Number(plan.epochs.toPrecision(2)))} times`);
    return element("div", { className: "option" }, element("label", {}, title, element("span", {}, `a model of ${integers.format(plan.parameters)} numbers (parameters)`)), epochs,
      element("span", {}, `memory: ${formatBytes(plan.memory)} for the training`),
      element("details", {}, element("summary", {}, `Details (${title.textContent})`), element("ul", {}, ...plan.reasons.map((reason) => element("li", {}, reason))), element("p", { className: "soft" }, PLAN_WORDS)));
  });
  return element("fieldset", {}, element("legend", {}, "4. How long may it train?"), element("div", { className: "options wide" }, ...cards),
    element("p", { className: "soft" }, "The training has the size and the time that you choose here. If the computer is busier then, the model corrects itself fewer times."),
    element("p", { className: "soft" }, "A training may end earlier, when it no longer improves. You can stop it at any time and continue later."));
}
