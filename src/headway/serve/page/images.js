"use strict";
// The tab of images: their class and where the model looked, captions, and how well texts match.

// How strongly parts of an image attract a model: the image that the model saw, with a heat map of any strength over it.
class AttentionView {
  constructor({ pixels, weights }, name) {
    this.image = AttentionView.bitmap(pixels, ([red, green, blue]) => [red, green, blue, 255]);
    this.heat = AttentionView.bitmap(weights, (weight) => [18 + 237 * weight, 24 + 190 * weight, 60 + 10 * weight, 255 - 70 * weight]);
    const scale = Math.ceil(224 / Math.min(this.image.width, this.image.height)), thirds = AttentionView.thirds(weights);
    const [first, second] = thirds.flatMap((row, y) => row.map((share, x) => [share, AttentionView.places[y][x]])).sort((a, b) => b[0] - a[0]);
    this.text = `The model looked most at the ${first[1]} (${percent(first[0])} of its attention), then at the ${second[1]} (${percent(second[0])}).`;
    this.canvas = element("canvas", { width: scale * this.image.width, height: scale * this.image.height, role: "img", "aria-label": `${name}. ${this.text}` });
    const rows = thirds.map((row, y) => [["top", "middle", "bottom"][y], ...row.map(percent)]);
    this.view = element("figure", {}, this.canvas, element("figcaption", {}, this.text),
      element("details", {}, element("summary", {}, "The same as numbers"), table(["", "left", "centre", "right"], rows, "Share of the attention")));
  }

  // A small canvas with a colour (RGBA) for each cell of rows.
  static bitmap(rows, colour) {
    const canvas = element("canvas", { width: rows[0].length, height: rows.length });
    const bytes = Uint8ClampedArray.from(rows.flatMap((row) => row.flatMap(colour)));
    canvas.getContext("2d").putImageData(new ImageData(bytes, canvas.width), 0, 0);
    return canvas;
  }

  // Shares of the weights in 3 x 3 parts of the image.
  static thirds(weights) {
    const sums = [[0, 0, 0], [0, 0, 0], [0, 0, 0]], third = (index, count) => Math.floor((3 * index + 1.5) / count);
    weights.forEach((row, y) => row.forEach((weight, x) => { sums[third(y, weights.length)][third(x, row.length)] += weight; }));
    const total = sums.flat().reduce((sum, part) => sum + part) || 1;
    return sums.map((row) => row.map((part) => part / total));
  }

  draw(strength) {
    const context = this.canvas.getContext("2d"), { width, height } = this.canvas;
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, width, height);
    context.globalAlpha = strength;
    context.imageSmoothingEnabled = true;
    context.drawImage(this.heat, 0, 0, width, height);
  }
}
AttentionView.places = ["top", "middle", "bottom"].map((row) => ["left", "centre", "right"].map((column) =>
  row === "middle" && column === "centre" ? "centre" : column === "centre" ? `${row} in the middle` : `${row} ${column}`.replace("middle ", "")));

page.addTab({
  id: "images",
  title: "Images",
  tasks: {
    classify: ["Classify", "The model sorts each image into one of the classes that it has learned, and shows where it looked."],
    caption: ["Write captions", "The model describes each image in a sentence."],
    match: ["Match", "The model compares each image with each text: which text fits best?"],
    look: ["Show where it looks", "The model has no classes, but it can show which parts of an image it looks at."],
  },
  serves: (model) => model.reads.includes("images") && model.verbs.some((verb) => ["classify", "look", "caption", "match"].includes(verb)),

  show(panel) {
    this.views = [];
    this.intro = element("p");
    this.previews = element("div", { className: "row previews" });
    this.place = element("div");
    this.texts = keepDraft(element("textarea", { rows: 3 }), "images:texts", "a red circle and a blue square\na handwritten digit\na photo of a dog");
    this.textField = labelled("Texts to compare with, one on each line", this.texts);
    this.strength = keepDraft(element("input", { type: "range", min: 0, max: 100 }), "images:strength", "60");
    this.strength.addEventListener("input", () => this.draw());
    this.strengthField = labelled("How strongly to show where the model looked", this.strength, "Dark parts counted little, bright yellow parts much.");
    this.strengthField.hidden = true;
    this.results = element("div", { "aria-live": "polite" });
    this.choice = modelChoice("images", this.serves, () => this.refresh());
    this.command = commandView(() => this.commandLines());
    this.form = workForm([this.choice.field, this.intro, this.place, this.previews, this.textField], (signal) => this.work(signal));
    panel.append(element("h2", {}, "Images"), this.form, this.strengthField, this.results, this.command);
    this.refresh();
  },

  get task() { return Object.keys(this.tasks).find((task) => this.choice.model?.verbs.includes(task)); },

  refresh() {
    if (!this.form) return;
    this.choice.refresh();
    if (!this.task) return;
    const [label, explanation] = this.tasks[this.task];
    this.form.querySelector("button.main").textContent = label;
    this.intro.textContent = explanation;
    this.textField.hidden = this.task !== "match";
    this.command.update();
    if (this.limit !== server.fileBytes) {
      this.limit = server.fileBytes;
      this.input = fileInput({ label: "Image files", accept: "image/*", multiple: true, limit: this.limit, changed: (files) => this.take(files) });
      this.place.replaceChildren(this.input.zone);
    }
    if (!this.files || (this.isExample && this.task !== this.exampleTask)) this.takeExample();
  },

  async takeExample() {
    this.exampleTask = this.task;
    const canvas = this.task === "classify" || this.task === "look" ? this.drawDigit() : this.drawShapes();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve));
    this.take([new File([blob], "example.png", { type: "image/png" })], true);
  },

  // A handwritten three, white on black, as in the data that digits are learned from.
  drawDigit() {
    const canvas = element("canvas", { width: 224, height: 224 }), context = canvas.getContext("2d");
    context.fillRect(0, 0, 224, 224);
    Object.assign(context, { strokeStyle: "#fff", lineWidth: 24, lineCap: "round", lineJoin: "round" });
    context.stroke(new Path2D("M68 52 Q112 20 148 56 Q166 96 104 108 Q176 116 156 164 Q116 214 62 176"));
    return canvas;
  },

  drawShapes() {
    const canvas = element("canvas", { width: 224, height: 224 }), context = canvas.getContext("2d");
    for (const [colour, shape] of [["#ebebeb", "M0 0H224V224H0Z"], ["#d62828", "M20 92A46 46 0 1 0 112 92A46 46 0 1 0 20 92"], ["#285ad6", "M136 118h64v64h-64Z"]]) {
      context.fillStyle = colour;
      context.fill(new Path2D(shape));
    }
    return canvas;
  },

  take(files, isExample = false) {
    const wrong = files.find((file) => !file.type.startsWith("image/"));
    if (wrong) return page.fail(new ServerError(`${shortName(wrong.name)} is not an image; choose files such as .png, .jpg or .webp`, 0));
    if (files.length > 100) return page.fail(new ServerError(`these are ${integers.format(files.length)} images; choose at most 100 at once`, 0));
    if (!files.length) return undefined;
    for (const url of this.urls ?? []) URL.revokeObjectURL(url);
    [this.files, this.isExample, this.urls] = [files, isExample, files.map((file) => URL.createObjectURL(file))];
    this.previews.replaceChildren(...files.map((file, index) => element("figure", {},
      element("img", { src: this.urls[index], alt: !isExample ? "" : ["classify", "look"].includes(this.task) ? "A handwritten three" : "A red circle and a blue square", className: "preview" }),
      element("figcaption", { className: "soft" }, isExample ? "Example, drawn by this page" : shortName(file.name)))));
    this.command.update();
    return undefined;
  },

  async work(signal) {
    const { model, task, files } = this, rows = [], texts = this.texts.value.split("\n").map((text) => text.trim()).filter(Boolean);
    if (task === "match" && !texts.length) throw new ServerError("there is no text to compare with; write at least one", 400);
    this.views = [];
    this.strengthField.hidden = true;
    this.results.replaceChildren();
    for (const [index, file] of files.entries()) {
      const name = this.isExample ? "The example" : shortName(file.name), card = element("article", { className: "card" }, element("h3", {}, name));
      this.results.append(card);
      try {
        const body = { model: this.choice.model.id, [task === "classify" ? "items" : "images"]: await dataUrl(file) };
        if (task === "match") {
          const { result } = await server.json("/v1/match", { body: { ...body, texts }, signal });
          rows.push([element("span", {}, element("img", { src: this.urls[index], alt: "", className: "thumb" }), name), ...result.probabilities]);
          card.remove();
        } else card.append(...await this[task](body, name, signal));
      } catch (error) {
        if (error.status !== 400 && error.status !== 413) throw error;
        card.append(element("p", { className: "wrong" }, sentence(error.message.replace(/^(the )?(image|item|input) 1\b/, name))));
      }
    }
    if (rows.length) this.results.prepend(this.matches(texts, rows));
  },

  async classify(body, name, signal) {
    const { result, thresholds } = await server.json("/v1/classify", { body, signal }), labels = likeliest(result);
    const parts = [labels.length === 1 && labels[0][0] === "value" ? element("p", {}, `Value: ${formatNumber(labels[0][1])}`) : bars(labels.slice(0, 10))];
    if (labels.length > 10) parts.push(element("p", { className: "soft" }, `These are the 10 likeliest of ${integers.format(labels.length)} classes.`));
    if (thresholds) parts.unshift(element("p", {}, `Labels: ${labels.filter(([label, share]) => share >= thresholds[label]).map(([label]) => label).join(", ") || "none"}.`));
    if (!this.choice.model.verbs.includes("look")) return parts;
    try {
      const [view] = await this.look({ model: body.model, images: body.items }, name, signal);
      return [element("div", { className: "looked" }, view, element("div", {}, ...parts))];
    } catch (error) {
      if (error.status !== 400) throw error;
      return [...parts, element("p", { className: "soft" }, `Where the model looked is not shown: ${error.message}.`)];
    }
  },

  async look(body, name, signal) {
    const view = new AttentionView((await server.json("/v1/look", { body, signal })).result, name);
    this.views.push(view);
    this.strengthField.hidden = false;
    this.draw();
    return [view.view];
  },

  async caption(body, name, signal) {
    return [element("p", {}, (await server.json("/v1/caption", { body, signal })).result)];
  },

  // Images against texts; the best text of each image is marked.
  matches(texts, rows) {
    const marked = rows.map(([image, ...shares]) => [image, ...shares.map((share) =>
      element(share === Math.max(...shares) ? "strong" : "span", {}, percent(share)))]);
    return table(["image", ...texts], marked, "How well each text fits each image");
  },

  draw() {
    for (const view of this.views) view.draw(this.strength.value / 100);
  },

  commandLines() {
    const names = this.isExample ? ["photo.png"] : this.files.map((file) => file.name), { task } = this, model = this.choice.model;
    const words = names.map(shellWord).join(" "), list = `[${names.map(pythonString).join(", ")}]`;
    const texts = this.texts.value.split("\n").filter((text) => text.trim());
    if (task === "match") {
      const python = `print(model.match(${list}, [${texts.map(pythonString).join(", ")}]).probabilities)`;
      return modelCommand(model, "match", `--image ${words} --text ${texts.map(shellWord).join(" ")}`, python);
    }
    if (task === "caption") return modelCommand(model, "caption", words, `print(model.caption(${list}))`);
    const look = modelCommand(model, "look", `${words} --out ${names.length > 1 ? "looks" : "look.png"}`, `for attention in model.look(${list}):\n    print(attention.weights)`);
    if (task === "look") return look;
    const classify = modelCommand(model, "classify", words, `print(model.classify(${list}))`);
    return { shell: `${classify.shell}\n${look.shell}`, python: `${classify.python}\n${look.python.split("\n").slice(2).join("\n")}` };
  },
});
