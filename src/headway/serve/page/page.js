"use strict";
// Tabs, messages, and what is remembered. Each tab is a file that calls page.addTab.

const page = {
  tabs: [],
  current: null,

  // Add a tab: {id, title, serves, show, refresh}. `serves` says for a model of /v1/models whether the tab uses it; without
  // it the tab is there unless its `exists` is false, which its `check()` finds out. `show(panel)` fills the panel when it
  // is opened first; `refresh()` follows when the models or the key change, `opened()` and `left()` when it comes and goes.
  addTab(tab) {
    this.tabs.push(tab);
    const known = { role: "tab", id: `tab-${tab.id}`, "aria-controls": `panel-${tab.id}`, "aria-selected": "false", tabIndex: -1 };
    tab.button = element("button", { type: "button", ...known, hidden: true, onclick: () => this.open(tab.id) }, tab.title);
    tab.panel = element("section", { role: "tabpanel", id: `panel-${tab.id}`, "aria-labelledby": `tab-${tab.id}`, hidden: true });
    document.getElementById("tabs").append(tab.button);
    document.getElementById("panels").append(tab.panel);
  },

  // Open a tab by its id; the address of the page names it, so that back and reload work.
  open(id, isNew = true) {
    const shown = this.tabs.filter((tab) => !tab.button.hidden);
    const tab = shown.find((entry) => entry.id === id) ?? shown[0];
    if (!tab) return;
    if (this.current && this.current !== tab && !this.current.button.hidden) this.fail(null);
    if (this.current !== tab) this.current?.left?.();
    this.current = tab;
    for (const other of this.tabs) {
      other.panel.hidden = other !== tab;
      other.button.setAttribute("aria-selected", String(other === tab));
      other.button.tabIndex = other === tab ? 0 : -1;
    }
    document.title = `${tab.title} - headway`;
    if (isNew && location.hash !== `#${tab.id}`) history.pushState(null, "", `#${tab.id}`);
    tab.button.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (!tab.wasShown) {
      tab.wasShown = true;
      tab.show(tab.panel);
      addTeachLine(tab);
    }
    tab.opened?.();
    trainingNotices.draw();
  },

  modelsChanged() {
    document.getElementById("loading")?.remove();
    document.getElementById("access").hidden = true;
    for (const tab of this.tabs) tab.button.hidden = tab.exists === false || (Boolean(tab.serves) && !server.models.some(tab.serves));
    for (const tab of this.tabs) tab.check?.();
    for (const tab of this.tabs) if (tab.wasShown) tab.refresh?.();
    const first = location.hash.slice(1) || (server.models.length ? "" : "models");
    if (!this.current || this.current.button.hidden) this.open(first, false);
    this.revealTab();
  },

  // Scroll the row of tabs, where it is too narrow for all, to the open one.
  revealTab() {
    if (!this.current) return;
    const tabs = document.getElementById("tabs"), row = tabs.getBoundingClientRect(), own = this.current.button.getBoundingClientRect();
    tabs.scrollLeft += Math.max(0, own.right - row.right) + Math.min(0, own.left - row.left);
  },

  // One line for the reader, with a way on: `retry` is called by the button "Try again". It stays until the reader goes
  // on, such as by new input in the error's `field`.
  fail(error, retry) {
    if (error?.name === "AbortError" || error?.status === 401) return; // the form for a key says so
    if (error && !(error instanceof ServerError)) console.error(error);
    if (error) document.getElementById("loading")?.remove();
    const notice = document.getElementById("notice"), again = document.getElementById("again");
    document.getElementById("message").textContent = error ? sentence(error.message) : "";
    notice.hidden = !error;
    again.hidden = !retry;
    again.onclick = () => { this.fail(null); retry(); };
    this.error = error;
    error?.field?.addEventListener("input", () => { if (this.error === error) this.fail(null); }, { once: true });
  },

  // A short confirmation, which disappears by itself.
  note(text) {
    const place = document.getElementById("note");
    clearTimeout(this.noted);
    place.textContent = text;
    this.noted = setTimeout(() => { place.textContent = ""; }, 5000);
  },

  // For as long as the server compiles the engine, once on a computer: since how many seconds it does (null: not now).
  showPreparing(seconds) {
    const place = document.getElementById("preparing"), isOver = seconds === null && !place.hidden;
    clearTimeout(this.preparing);
    place.hidden = seconds === null;
    if (seconds !== null) {
      const passed = seconds < 120 ? `${Math.round(seconds / 5) * 5} seconds` : `${Math.round(seconds / 60)} minutes`;
      const duration = seconds < 90 ? "That takes about a minute on an idle computer." : "That takes about a minute on an idle computer; this one is busy, so it takes longer.";
      setText(place, "textContent", `Getting ready: this computer prepares itself, once, for models that write, translate or transcribe. ${duration} Everything else works meanwhile. (${passed} so far)`);
      this.preparing = setTimeout(() => server.loadModels(false).catch(() => {}), 2000);
    } else if (isOver) this.note("Ready: models that write answer without a wait now.");
    for (const tab of this.tabs) if (tab.wasShown) tab.preparingChanged?.();
  },

  // Without a key, or with one that ended: the only message then. A server of `headway open` has no keys to type in.
  askForKey({ code, param, message }) {
    const form = document.getElementById("access"), isSession = code === "session_key";
    if (!form.hidden) return;
    this.fail(null);
    document.getElementById("loading")?.remove();
    form.hidden = false;
    const isRefused = param === "one_time_key" || (!isSession && server.key);
    document.getElementById("access-reason").textContent = isRefused ? sentence(message.split("; ")[0]) : "";
    document.getElementById("access-typed").hidden = isSession;
    document.getElementById("access-session").hidden = !isSession;
    if (!isSession) document.getElementById("key").focus();
  },
};

// A message as a sentence; one that begins with the name of a file keeps its first letter, and a long one its ends.
function sentence(message) {
  const text = message.length > 600 ? `${message.slice(0, 300)} … ${message.slice(-200)}` : message;
  return (/^[a-z'-]+[\s,;:]/.test(text) ? text.charAt(0).toUpperCase() : text.charAt(0)) + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

// Values that outlive a reload: `drafts` those of this browser tab, `settings` those of this browser.
class Store {
  constructor(storage, prefix) {
    this.storage = storage;
    this.prefix = prefix;
  }

  get(name, otherwise = null) {
    try {
      return JSON.parse(this.storage.getItem(this.prefix + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  set(name, value) {
    try {
      if (value === null) this.storage.removeItem(this.prefix + name);
      else this.storage.setItem(this.prefix + name, JSON.stringify(value));
      return true;
    } catch { // the browser's storage is full or turned off
      return false;
    }
  }

  names() {
    return Object.keys(this.storage).filter((name) => name.startsWith(this.prefix)).map((name) => name.slice(this.prefix.length));
  }
}
const drafts = new Store(sessionStorage, "draft:");
const settings = new Store(localStorage, "headway:");

// Keep what is typed into a field, so that a reload or an error loses nothing. `example` fills it at first.
function keepDraft(field, name, example = "") {
  const property = field.type === "checkbox" ? "checked" : "value";
  field[property] = drafts.get(name, example);
  field.addEventListener("input", () => drafts.set(name, field[property]));
  return field;
}

// A model in plain words, to tell it from others.
function modelInWords(model) {
  const kind = sentence(model.kind.replace(/ \(heads: .*\)/, "")).slice(0, -1);
  return `${model.purpose ? `${model.purpose} ` : ""}${kind} with ${roundNumber(model.parameters)} parameters, the numbers it learned; ${originOf(model)}.`;
}

const originOf = (model) => model.is_starter ? "made on the tab Models" : model.is_run ? "one of your runs" : "published, or from a file";

// The name of a model in a list; of two with the same last part, such as digits and models/digits, also where it is from.
function nameInList(model, models) {
  const last = (id) => id.split("/").at(-1), hasTwin = models.some((other) => other.id !== model.id && last(other.id) === last(model.id));
  return hasTwin ? `${model.id} (${originOf(model)})` : model.id;
}

// A selection of the models that a tab can use: at first the one that this browser trained last, otherwise the largest, or the first of `order`. It keeps its choice while
// the models change, also one that is gone, except with refresh(true).
function modelChoice(name, serves, changed = () => {}, order = (one, other) => other.parameters - one.parameters) {
  const select = element("select", { onchange: () => { drafts.set(`model:${name}`, select.value); page.fail(null); choice.refresh(); changed(); } });
  let last; // what was known about the chosen model
  const choice = {
    field: labelled("Model", select, " "),
    isGone: false, // the chosen model is not on the server any more
    get model() { return server.models.find((model) => model.id === select.value) ?? (select.value ? last : undefined); },
    refresh(again = false) {
      const before = (!again && select.value) || drafts.get(`model:${name}`), usable = server.models.filter(serves), isKnown = usable.some((model) => model.id === before);
      choice.isGone = !again && Boolean(select.value) && !isKnown && last?.id === before;
      select.replaceChildren(...(choice.isGone ? [last, ...usable] : usable).map((model) => new Option(nameInList(model, usable), model.id)));
      select.value = isKnown || choice.isGone ? before : (ownModel(usable) ?? usable.toSorted(order)[0])?.id ?? "";
      last = choice.model;
      choice.field.lastChild.textContent = choice.isGone ? `${shortName(before)} is gone from the server.${usable.length ? " Choose another model to go on." : ""}` : last ? modelInWords(last) : "";
      choice.field.hidden = !select.options.length;
      if (select.value !== before) changed();
    },
  };
  choice.field.classList.add("model");
  choice.refresh();
  return choice;
}

// A place for files, dropped or chosen. `limit` (bytes) is stated before the upload; `changed(files)` gets what fits, or with
// `takesLarge` everything; `dropped` returns the files of a drop.
function fileInput({ label, accept = "", multiple = false, folder = false, limit, takesLarge = false, changed, dropped = async (transfer) => [...transfer.files] }) {
  const input = element("input", { type: "file", accept, multiple: multiple || folder, webkitdirectory: folder });
  const names = element("p", { className: "soft", "aria-live": "polite" });
  const zone = labelled(label, input, `At most ${formatBytes(limit)}${multiple ? " each" : ""}. You can also drop ${multiple || folder ? "them" : "it"} here.`);
  zone.classList.add("drop");
  if (folder) zone.classList.add("folder"); // its label is the button: that of a browser would say "Choose Files"
  zone.append(names);
  const take = (files, isDropped = folder) => { // a field for files itself names those that were chosen
    const tooLarge = !takesLarge && files.find((file) => file.size > limit);
    if (tooLarge) {
      page.fail(new ServerError(`${shortName(tooLarge.name)} has ${formatBytes(tooLarge.size)}, and the limit is ${formatBytes(limit)}; choose a smaller file`, 413));
      return;
    }
    page.fail(null);
    names.textContent = !isDropped ? "" : files.length === 1 ? shortName(files[0].name) : files.length ? `${integers.format(files.length)} files` : "";
    changed(multiple || folder ? files : files.slice(0, 1));
  };
  input.addEventListener("change", () => take([...input.files]));
  zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => { event.preventDefault(); zone.classList.remove("over"); dropped(event.dataTransfer).then((files) => { input.value = ""; take(files, true); }, (error) => page.fail(error)); });
  const clear = () => { input.value = names.textContent = ""; };
  return { zone, input, take, clear };
}

// A file as a data: URL, which the API takes for images and sounds.
const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new ServerError(`${file.name} cannot be read; choose it again`, 0));
  reader.readAsDataURL(file);
});

// What "Show me the command" shows for a verb of a model: a shell line, and Python that ends with the lines `python`.
const modelCommand = (model, verb, shellArguments, python) => ({
  shell: `${server.key ? "HEADWAY_API_KEY=KEY " : ""}headway ${verb} ${shellWord(model?.id ?? "MODEL")} ${shellArguments} --server ${shellWord(location.origin)}`,
  python: `import headway as hw\nmodel = hw.connect(${pythonString(location.origin)}, model=${pythonString(model?.id ?? "MODEL")})\n${python}`,
});

// A form that sends one request at a time: its buttons are disabled until `work(signal)` ends, and Stop ends it early.
function workForm(children, work, label = "Send") {
  let controller = null;
  const send = element("button", { className: "main" }, label);
  const stop = element("button", { type: "button", disabled: true, onclick: () => controller?.abort() }, "Stop");
  const patience = element("p", { className: "soft", role: "status" });
  const form = element("form", { onsubmit: async (event) => {
    event.preventDefault();
    if (controller) return;
    controller = new AbortController();
    const timer = setTimeout(() => {
      patience.textContent = "Still working. The first use of a model takes longer, because the server loads it; on a busy computer that can be minutes.";
    }, 5000);
    send.disabled = !(stop.disabled = false);
    form.setAttribute("aria-busy", "true");
    page.fail(null);
    try {
      await work(controller.signal);
    } catch (error) {
      page.fail(error, error.status === 0 || error.status >= 500 ? () => form.requestSubmit() : undefined);
    } finally {
      clearTimeout(timer);
      patience.textContent = "";
      controller = null;
      send.disabled = !(stop.disabled = true);
      form.removeAttribute("aria-busy");
    }
  } }, ...children, element("div", { className: "row" }, send, stop), patience);
  return form;
}
