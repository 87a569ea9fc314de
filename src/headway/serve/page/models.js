"use strict";
// The tab of models: what the server has, how a program uses it, and small models that can be made here.

page.addTab({
  id: "models",
  title: "Models",
  show(panel) {
    const heading = element("h2", { tabIndex: -1 }, "Make one");
    const jump = element("button", { type: "button", className: "plain", onclick: () => { heading.scrollIntoView(); heading.focus(); } }, "Make one");
    this.some = element("p", {}, "These are the models of this server. You can also make one: ", jump);
    this.none = element("p", {}, "There is no model yet. Make one here: most take a few minutes.");
    this.list = element("div");
    this.making = element("div", { "aria-live": "polite" });
    this.cards = new Map(); // by name: what a card shows, and its element
    this.starters = element("ul", { className: "starters" }, element("li", {}, "Loading …"));
    this.command = commandView(() => {
      const model = server.models[0]?.id ?? "MODEL", key = server.key ? " -H 'Authorization: Bearer KEY'" : "";
      return {
        shell: `curl ${location.origin}/v1/models${key}`,
        python: `import headway as hw\nmodel = hw.connect(${pythonString(location.origin)}, model=${pythonString(model)})\nprint(model.verbs)`,
      };
    });
    this.program = element("section", {}, element("h3", {}, "Use them from a program"), this.command);
    const make = commandView(() => ({
      shell: "headway models\nheadway models make digits",
      python: 'import subprocess\nsubprocess.run(["headway", "models", "make", "digits"], check=True)',
    }));
    panel.append(element("h2", {}, "Models"), this.some, this.none, this.list, this.program, heading,
      element("p", {}, "Small models that this computer trains from examples in minutes. You can stop at any time and continue later. Making a model continues when you close this page. These models are stored apart from your runs, so the tab Runs does not list them."),
      this.making, this.starters, make);
    this.refresh();
  },
  refresh() {
    const hasModels = server.models.length > 0, rows = server.models.map((model) => [nameInList(model, server.models), model.is_training ? "still being made" : tryButton(model) ?? "", tasksOf(model), inputsOf(model),
      model.reads.includes("texts") ? model.context : null, model.parameters]);
    this.list.replaceChildren(...hasModels ? [table(["name", "use", "what it does", "what you give it", "reads at most (tokens)", "size (weights)"], rows, "Models of this server"),
      element("p", { className: "soft" }, "Reads at most: the length of text that a model takes into account at once. A token is a word or a piece of one. Size: how many numbers, its weights, a model has learned; a larger one often knows more, and is slower.")] : []);
    this.some.hidden = this.list.hidden = this.program.hidden = !hasModels;
    this.none.hidden = hasModels;
    this.command.update();
    if (this.known) this.showStarters(this.known);
    else this.follow();
  },
  opened() {
    if (this.known) this.follow();
  },

  // While the tab is shown, read what can be made and what the server has again and again; what is unchanged stays as it is.
  async follow() {
    const turn = this.turn = (this.turn ?? 0) + 1;
    clearTimeout(this.timer);
    try {
      if (!document.hidden || !this.known) {
        const answer = await server.json("/v1/starters");
        if (turn !== this.turn) return;
        this.announce(answer.data);
        this.showStarters(answer);
        await server.loadModels(false);
      }
    } catch (error) {
      page.fail(error, () => this.follow());
      return;
    }
    if (turn === this.turn && page.current === this) this.timer = setTimeout(() => this.follow(), this.busy.size ? 2000 : 4000);
  },

  // Say which models were finished, or have stopped, since the last look.
  announce(models) {
    const ended = models.filter((model) => !isBusy(model) && this.busy?.has(model.name));
    this.busy = new Set(models.filter(isBusy).map((model) => model.name));
    if (ended.length) this.making.replaceChildren(...ended.map((model) => element("p", { className: model.state === "finished" ? "good" : "" }, `${model.name}: ${{ finished: "made", failed: "not made" }[model.state] ?? "stopped"}.`)));
  },

  showStarters(answer) {
    this.known = answer;
    const focused = document.activeElement?.dataset?.starter, label = document.activeElement?.textContent;
    if (!this.cards.size) this.starters.replaceChildren();
    for (const model of answer.data) {
      const other = server.models.find((entry) => entry.id === model.name && entry.id !== model.served), served = server.models.find((entry) => entry.id === model.served);
      const card = this.cards.get(model.name), content = JSON.stringify([model, answer.may_make, other, served]);
      if (card?.content === content) continue;
      const item = this.starter(model, answer.may_make, { other, served }, card?.item.querySelector("details").open ?? false);
      if (card) card.item.replaceWith(item);
      else this.starters.append(item);
      this.cards.set(model.name, { content, item });
      if (!focused || focused !== model.name) continue;
      const places = [...item.querySelectorAll("button, summary")];
      (places.find((place) => place.textContent === label) ?? places.at(-1)).focus();
    }
  },

  starter(model, mayMake, { other, served }, isOpen) {
    const size = model.megabytes === null ? "size not measured" : `${model.megabytes} MB on disk`, isMade = model.state === "finished";
    const facts = [`${model.minutes} minutes on two cores; ${size}; ${model.needs_network ? "downloads its data" : "needs no network"}.`, `Expected score: ${model.score}.`];
    const own = [`It trained for ${formatNumber(Math.round(model.seconds / 6) / 10)} minutes.${model.own_score ? ` Its score, on examples that it did not train on: ${model.own_score}.` : ""}`,
      served ? `Its name here is ${served.id}.` : "This server does not offer it."];
    const sources = model.data.map((entry) => element("p", { className: "soft" }, `${sentence(entry.what)} Licence: ${entry.licence}. Source: ${entry.source}`));
    return element("li", {}, element("h4", {}, model.name), element("p", {}, model.purpose),
      ...(isMade ? own : facts).map((text) => element("p", { className: "soft" }, text)),
      other && element("p", { className: "soft" }, `${other.is_run ? "Your own run" : "Another model"} ${model.name} has the same name. ${isMade ? "It is a different model." : "Making this one does not replace it."}`),
      element("details", { open: isOpen }, element("summary", { "data-starter": model.name }, "Its data"), ...sources),
      progressOf(model), model.message ? element("p", { className: model.state === "starting" ? "soft" : "wrong" }, sentence(model.message)) : null,
      element("div", { className: "row" }, ...this.buttons(model, mayMake, served)));
  },

  buttons(model, mayMake, served) {
    const act = (verb) => async () => {
      page.fail(null);
      try {
        await server.json(`/v1/starters/${model.name}/${verb}`, { method: "POST" });
        this.making.replaceChildren(element("p", {}, verb === "make" ? `${model.name} is being made.` : `${model.name} stops after its current step.`));
      } catch (error) {
        page.fail(error);
      }
      await this.follow();
    };
    const button = (label, verb, main) => element("button", { type: "button", className: main ? "main" : "", onclick: act(verb), "data-starter": model.name, "aria-label": `${label} ${model.name}` }, label);
    const report = () => element("button", { type: "button", onclick: () => server.openReport(`/v1/starters/${model.name}/report`), "data-starter": model.name, "aria-label": `Report of ${model.name}` }, "Report");
    if (model.state === "finished") return [element("span", { className: "good" }, "✓ Made"), served ? tryButton(served) : null, model.has_report ? report() : null].filter(Boolean);
    if (model.missing_extra) return [element("span", { className: "wrong" }, `Needs a package: pip install 'headway[${model.missing_extra}]'`)];
    if (!mayMake) return [element("span", { className: "soft" }, "Models cannot be made from this page: ", element("code", {}, `headway models make ${model.name}`))];
    if (model.state === "stopping") return [];
    if (isBusy(model)) return [button("Stop", "stop", false)];
    return [button({ stopped: "Continue", failed: "Try again" }[model.state] ?? "Make", "make", true)];
  },
});

const isBusy = (model) => ["starting", "running", "evaluating", "stopping"].includes(model.state);

// The progress of a model that is being made, or was stopped; null for others.
function progressOf(model) {
  if (!isBusy(model) && model.state !== "stopped") return null;
  const { share } = model, left = model.planned_seconds * (1 - share);
  const time = left < 90 ? `about ${Math.max(5, Math.ceil(left / 5) * 5)} seconds left` : `about ${Math.round(left / 60)} minutes left`;
  const text = {
    starting: "Getting ready: reading its data and measuring this computer", running: `${percent(Math.min(share, 0.99))}, ${time}`, stopping: "Stopping after this step",
    evaluating: "Evaluating: measuring how good it is on examples that it did not train on", stopped: `Stopped at ${percent(share)}`,
  }[model.state];
  return element("div", {}, element("progress", { max: 1, value: share, "aria-label": `${model.name}: ${text}` }), element("p", { className: "soft" }, text));
}

// What a model does and what it takes, in the words of the page.
const TASKS = {
  generate: "continues text", chat: "chats", translate: "translates", transcribe: "writes down speech", caption: "describes pictures", fill: "fills gaps", classify: "classifies", rerank: "ranks texts", answer: "answers questions",
  tag: "tags words", match: "matches pictures and texts", embed: "compares", forecast: "forecasts", move: "plays chess", act: "chooses actions", attention: "can be looked into", look: "shows where it looks",
};
const tasksOf = (model) => model.verbs.map((verb) => TASKS[verb]).filter(Boolean).join(", ");
const inputsOf = (model) => model.reads.map((kind) => ({ texts: "text", images: "pictures", sounds: "sound" })[kind] ?? kind).join(", ");

// A button that opens the tab for a model; null if no tab uses it.
function tryButton(model) {
  const tab = page.tabs.find((entry) => entry.serves?.(model));
  return tab ? element("button", { type: "button", "aria-label": `Try ${model.id}`, onclick: () => {
    chooseModel(tab, model);
    page.open(tab.id);
  } }, "Try it") : null;
}

// Choose a model in a tab that uses it.
function chooseModel(tab, model) {
  drafts.set(`model:${tab.id}`, model.id); // for a tab that was not opened yet
  const select = tab.choice?.field.querySelector("select");
  if (!select || select.value === model.id) return;
  tab.choice.refresh(); // the model may be new
  select.value = model.id;
  select.dispatchEvent(new Event("change"));
}
