"use strict";
// The tab of models: what the server has, and how a program uses it.

page.addTab({
  id: "models",
  title: "Models",
  show(panel) {
    this.list = element("div");
    this.command = commandView(() => {
      const model = server.models[0]?.id ?? "MODEL", key = server.key ? " -H 'Authorization: Bearer KEY'" : "";
      return {
        shell: `curl ${location.origin}/v1/models${key}`,
        python: `import headway as hw\nmodel = hw.connect(${pythonString(location.origin)}, model=${pythonString(model)})\nprint(model.verbs)`,
      };
    });
    panel.append(element("h2", {}, "Models"), this.list, element("h3", {}, "Use them from a program"), this.command);
    this.refresh();
  },
  refresh() {
    const rows = server.models.map((model) => [model.id, model.kind, model.verbs.join(", "), model.reads.join(", "), model.context, model.parameters]);
    this.list.replaceChildren(rows.length
      ? table(["name", "type", "tasks", "input", "context", "parameters"], rows, "Models of this server")
      : element("p", {}, "There is no model yet."));
    this.command.update();
  },
});
