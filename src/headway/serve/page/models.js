"use strict";
// The tab of models: what the server has, how a program uses it, and small models that can be made here.

page.addTab({
  id: "models",
  title: "Models",
  show(panel) {
    this.list = element("div");
    this.making = element("div", { "aria-live": "polite" });
    this.starters = element("ul", { className: "starters" });
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
    this.offer = element("section", { hidden: true }, element("h2", {}, "Make one"),
      element("p", {}, "Small models that this computer trains from examples in minutes. You can stop at any time and continue later. Making a model continues when you close this page."),
      this.making, this.starters, make);
    panel.append(element("h2", {}, "Models"), this.list, this.program, this.offer);
    this.refresh();
  },
  refresh() {
    const rows = server.models.map((model) => [model.id, tryButton(model) ?? "", model.kind, model.verbs.join(", "), model.reads.join(", "), model.context, model.parameters]);
    this.list.replaceChildren(rows.length
      ? table(["name", "use", "type", "tasks", "input", "context", "parameters"], rows, "Models of this server")
      : element("p", {}, "There is no model yet. Make one below: most take a few minutes."));
    this.program.hidden = !rows.length;
    this.command.update();
    if (this.known) this.showStarters(this.known);
    else this.follow();
  },
  opened() {
    if (this.known) this.follow();
  },

  // Read the list of models to start with again, every two seconds while one is being made and the tab is open.
  async follow() {
    clearTimeout(this.timer);
    try {
      const answer = await server.json("/v1/starters");
      const finished = answer.data.filter((model) => model.state === "finished" && this.busy?.has(model.name));
      this.busy = new Set(answer.data.filter(isBusy).map((model) => model.name));
      this.showStarters(answer);
      if (finished.length) {
        this.making.replaceChildren(element("p", { className: "good" }, `${finished.map((model) => model.name).join(", ")}: made.`));
        await server.loadModels();
      }
    } catch (error) {
      if (error.status !== 401) page.fail(error, () => this.follow());
      return;
    }
    if (this.busy.size && page.current === this) this.timer = setTimeout(() => this.follow(), 2000);
  },

  showStarters(answer) {
    this.known = answer;
    this.offer.hidden = false;
    const focused = document.activeElement?.dataset?.starter;
    const open = new Set([...this.starters.querySelectorAll("details[open]")].map((details) => details.dataset.starter));
    this.starters.replaceChildren(...answer.data.map((model) => this.starter(model, answer.may_make, open.has(model.name))));
    if (focused) [...this.starters.querySelectorAll("button")].find((button) => button.dataset.starter === focused)?.focus();
  },

  starter(model, mayMake, isOpen) {
    const size = model.megabytes === null ? "size not measured" : `${model.megabytes} MB on disk`;
    const facts = `${model.minutes} minutes on two cores; ${size}; ${model.needs_network ? "downloads its data" : "needs no network"}.`;
    const sources = model.data.map((entry) => element("p", { className: "soft" }, `${sentence(entry.what)} Licence: ${entry.licence}. Source: ${entry.source}`));
    return element("li", {}, element("h4", {}, model.name), element("p", {}, model.purpose),
      element("p", { className: "soft" }, facts), element("p", { className: "soft" }, `Expected score: ${model.score}.`),
      element("details", { open: isOpen, "data-starter": model.name }, element("summary", {}, "Its data"), ...sources),
      progressOf(model), model.message ? element("p", { className: model.state === "starting" ? "soft" : "wrong" }, sentence(model.message)) : null,
      element("div", { className: "row" }, ...this.buttons(model, mayMake)));
  },

  buttons(model, mayMake) {
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
    const served = server.models.find((entry) => entry.id === model.name);
    if (model.state === "finished") return [element("span", { className: "good" }, "✓ Made"), served ? tryButton(served) : null].filter(Boolean);
    if (model.missing_extra) return [element("span", { className: "wrong" }, `Needs a package: pip install 'headway[${model.missing_extra}]'`)];
    if (!mayMake) return [element("span", { className: "soft" }, "Models cannot be made from this page: ", element("code", {}, `headway models make ${model.name}`))];
    if (model.state === "stopping") return [];
    if (isBusy(model)) return [button("Stop", "stop", false)];
    return [button({ stopped: "Continue", failed: "Try again" }[model.state] ?? "Make", "make", true)];
  },
});

const isBusy = (model) => ["starting", "running", "stopping"].includes(model.state);

// The progress of a model that is being made, or was stopped; null for others.
function progressOf(model) {
  if (!isBusy(model) && model.state !== "stopped") return null;
  const share = Math.min(1, model.seconds / model.planned_seconds), left = Math.max(0, model.planned_seconds - model.seconds);
  const time = left < 90 ? `about ${Math.max(5, Math.ceil(left / 5) * 5)} seconds left` : `about ${Math.round(left / 60)} minutes left`;
  const text = { starting: "Getting ready", running: `${percent(share)}, ${time}`, stopping: "Stopping after this step", stopped: `Stopped at ${percent(share)}` }[model.state];
  return element("div", {}, element("progress", { max: 1, value: share, "aria-label": `${model.name}: ${text}` }), element("p", { className: "soft" }, text));
}

// A button that opens the tab for a model; null if no tab uses it.
function tryButton(model) {
  const tab = page.tabs.find((entry) => entry.serves?.(model));
  return tab ? element("button", { type: "button", "aria-label": `Try ${model.id}`, onclick: () => {
    drafts.set(`model:${tab.id}`, model.id); // for a tab that was not opened yet
    page.open(tab.id);
    const select = tab.choice?.field.querySelector("select");
    if (!select || select.value === model.id) return;
    select.value = model.id;
    select.dispatchEvent(new Event("change"));
  } }, "Try it") : null;
}
