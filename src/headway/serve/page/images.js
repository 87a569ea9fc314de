"use strict";
// The tab of images: their class and where the model looked, captions, and how well texts match.

// How strongly parts of an image attract a model: the original (at `url`), and what the model saw with a heat map of any strength over it.
class AttentionView {
  constructor({ pixels, weights }, name, url) {
    this.image = AttentionView.bitmap(pixels, ([red, green, blue]) => [red, green, blue, 255]);
    this.heat = AttentionView.bitmap(weights, (weight) => [18 + 237 * weight, 24 + 190 * weight, 60 + 10 * weight, 255 - 70 * weight]);
    const side = Math.min(this.image.width, this.image.height), scale = Math.ceil(224 / side), thirds = AttentionView.thirds(weights);
    this.isTiny = side < 64; // then each pixel and each weight is a square, without a blur
    const [first, second] = thirds.flatMap((row, y) => row.map((share, x) => [share, AttentionView.places[y][x]])).sort((a, b) => b[0] - a[0]);
    this.text = `The model looked most at the ${first[1]} (${percent(first[0])} of its attention), then at the ${second[1]} (${percent(second[0])}).`;
    this.canvas = element("canvas", { width: scale * this.image.width, height: scale * this.image.height, role: "img", "aria-label": `${name}. ${this.text}` });
    const rows = thirds.map((row, y) => [["top", "middle", "bottom"][y], ...row.map(percent)]), part = (picture, caption) => element("figure", {}, picture, element("figcaption", { className: "soft" }, caption));
    this.strength = keepDraft(element("input", { type: "range", min: 0, max: 100, oninput: () => this.draw() }), "images:strength", "50");
    this.view = element("div", {}, element("p", {}, this.text),
      element("div", { className: "looked" }, part(element("img", { src: url, alt: `${name}, as it is`, onload: ({ target }) => target.classList.toggle("pixels", target.naturalWidth < 128) }), "Your picture"), part(this.canvas, "What the model saw, and where it looked")),
      element("p", { className: "legend soft" }, "Dark: hardly looked at", element("span", { "aria-hidden": "true" }), "Bright: looked at most"),
      labelled("Strength of these colours", this.strength),
      element("details", {}, element("summary", {}, "The same as numbers"), table(["", "left", "centre", "right"], rows, "Share of the attention")));
    this.draw();
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

  draw() {
    const context = this.canvas.getContext("2d"), { width, height } = this.canvas;
    context.globalAlpha = 1;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, width, height);
    context.globalAlpha = this.strength.value / 100;
    context.imageSmoothingEnabled = !this.isTiny;
    context.drawImage(this.heat, 0, 0, width, height);
  }
}
AttentionView.places = ["top", "middle", "bottom"].map((row) => ["left", "centre", "right"].map((column) =>
  row === "middle" && column === "centre" ? "centre" : column === "centre" ? `${row} in the middle` : `${row} ${column}`.replace("middle ", "")));

// A class in a sentence: labels are not always nouns.
const nameClass = (label) => /^\d+$/.test(label) ? `${/^(8|1[18]$)/.test(label) ? "an" : "a"} ${label}` : `“${label}”`;

page.addTab({
  id: "images",
  title: "Images",
  tasks: {
    classify: ["Classify", "The model sorts each image into one of the classes that it has learned, and can show where it looked."],
    caption: ["Write captions", "The model describes each image in a sentence."],
    match: ["Match", "The model compares each image with each text: which text fits best?"],
    look: ["Show where it looks", "The model has no classes, but it can show which parts of an image it looks at."],
  },
  serves: (model) => model.reads.includes("images") && model.verbs.some((verb) => ["classify", "look", "caption", "match"].includes(verb)),

  show(panel) {
    this.intro = element("p");
    this.previews = element("div", { className: "row previews" });
    this.note = element("p", { className: "soft", role: "status" });
    this.place = element("div");
    this.texts = keepDraft(element("textarea", { rows: 3 }), "images:texts", "a red circle and a blue square\na handwritten digit\na photo of a dog");
    this.textField = labelled("Texts to compare with, one on each line", this.texts);
    this.results = element("div", { "aria-live": "polite" });
    this.choice = modelChoice("images", this.serves, () => this.refresh());
    this.command = commandView(() => this.commandLines());
    this.form = workForm([this.choice.field, this.intro, this.place, this.previews, this.note, this.textField], (signal) => this.work(signal));
    panel.append(element("h2", {}, "Images"), this.form, this.results, this.command);
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
    if (this.results.dataset.model !== this.choice.model.id) this.results.replaceChildren();
    this.results.dataset.model = this.choice.model.id;
    this.textField.hidden = this.task !== "match";
    this.command.update();
    if (this.limit !== server.fileBytes) {
      this.limit = server.fileBytes;
      const shared = { accept: "image/*", multiple: true, limit: this.limit, dropped: (transfer) => this.dropped(transfer) };
      const files = fileInput({ ...shared, label: "Image files", changed: (chosen) => this.takeFrom(chosen, folder) });
      const folder = fileInput({ ...shared, label: "Choose a folder", folder: true, changed: (chosen) => this.takeFrom(chosen, files) });
      this.place.replaceChildren(element("div", { className: "row zones" }, files.zone, folder.zone), element("p", { className: "soft" }, "At most 100 images at once."));
    }
    if (!this.files || (this.isExample && this.task !== this.exampleTask)) this.takeExample();
  },

  async takeExample() {
    const { files } = this;
    this.exampleTask = this.task;
    const canvas = this.task === "classify" || this.task === "look" ? this.drawDigit() : this.drawShapes();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve));
    if (this.files === files) this.take([new File([blob], "example.png", { type: "image/png" })], true); // none was chosen meanwhile
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

  async dropped(transfer) {
    const files = await droppedFiles(transfer);
    if (!files.length) throw new ServerError("there is no file in this folder; choose one with images", 0);
    return files;
  },

  // Files or a folder were chosen or dropped at one of the two inputs; the `other` one names its files no longer.
  takeFrom(chosen, other) {
    if (!chosen.length) return undefined; // the dialog was closed
    const paths = new Intl.Collator("en", { numeric: true }), files = chosen.filter((file) => !IGNORED_FILES.test(filePath(file)));
    const images = files.filter((file) => file.type.startsWith("image/")).sort((one, two) => paths.compare(filePath(one), filePath(two)));
    const wrong = files.find((file) => !file.type.startsWith("image/") && (!images.length || !filePath(file).includes("/")));
    if (wrong) return page.fail(new ServerError(`${shortName(filePath(wrong))} is not an image; choose files such as .png, .jpg or .webp`, 0));
    if (!images.length) return page.fail(new ServerError("there is no image in this folder; choose one with files such as .png, .jpg or .webp", 0));
    other.clear();
    this.take(images.slice(0, 100));
    const others = files.length - images.length;
    this.note.textContent = `${images.length > 100 ? `These are ${integers.format(images.length)} images: the first 100 by name are used. ` : ""}${others ? `${integers.format(others)} other ${others === 1 ? "file is" : "files are"} left out.` : ""}`;
    return undefined;
  },

  take(files, isExample = false) {
    for (const url of this.urls ?? []) URL.revokeObjectURL(url);
    [this.files, this.isExample, this.urls] = [files, isExample, files.map((file) => URL.createObjectURL(file))];
    this.results.replaceChildren();
    this.note.textContent = "";
    this.previews.replaceChildren(...files.slice(0, 12).map((file, index) => element("figure", {},
      element("img", { src: this.urls[index], alt: !isExample ? "" : ["classify", "look"].includes(this.task) ? "A handwritten three" : "A red circle and a blue square", className: "preview" }),
      element("figcaption", { className: "soft" }, isExample ? "Example, drawn by this page" : files.length > 1 ? shortName(filePath(file)) : ""))), files.length > 12 ? `and ${files.length - 12} more` : "");
    this.command.update();
  },

  async work(signal) {
    const { task, files } = this, rows = [], texts = this.texts.value.split("\n").map((text) => text.trim()).filter(Boolean), model = this.choice.model.id;
    if (task === "match" && !texts.length) throw new ServerError("there is no text to compare with; write at least one", 400);
    const results = element("div", { className: "cards" });
    this.results.replaceChildren(results);
    for (const [index, file] of files.entries()) {
      if (!results.isConnected) return; // other files or another model were chosen
      const name = this.isExample ? "The example" : shortName(filePath(file)), picture = (className) => element("img", { src: this.urls[index], alt: "", className });
      const place = element("div", {}, element("h3", {}, name)), card = element("article", { className: "card" }, picture("picture"), place);
      results.append(card);
      try {
        const body = { model, [task === "classify" ? "items" : "images"]: await dataUrl(file) };
        if (task === "match") {
          const { result } = await server.json("/v1/match", { body: { ...body, texts }, signal });
          rows.push([element("span", {}, picture("thumb"), name), ...result.probabilities]);
          card.remove();
        } else place.append(...await this[task](body, { file, name, url: this.urls[index] }, signal));
      } catch (error) {
        if (error.status !== 400 && error.status !== 413) throw error;
        place.append(element("p", { className: "wrong" }, this.problem(error, name)));
      }
    }
    if (rows.length) results.prepend(this.matches(texts, rows));
  },

  problem: (error, name) => sentence(error.message.replace(/^(the )?(image|item|input) 1\b/, name)),

  async classify(body, image, signal) {
    const { result, thresholds, unexpected } = await server.json("/v1/classify", { body, signal }), labels = likeliest(result), [label, share] = labels[0];
    const looked = this.choice.model.verbs.includes("look") ? this.onDemand("Where the model looked", image.name, async () => this.look({ model: body.model, images: await dataUrl(image.file) }, image)) : "";
    const doubt = unexpected?.[0] ? element("p", { className: "wrong" }, `Careful: this picture is ${unexpected[0].replace("the images in training", "those that the model was trained on")}, so the answer may be wrong.`) : "";
    const swapped = /brighter|darker/.test(unexpected?.[0]) ? this.onDemand("Try it with dark and light swapped", image.name, () => this.swapped(body, image, signal)) : ""; // that may be like them
    if (labels.length === 1 && label === "value") return [element("p", {}, `Value: ${formatNumber(share)}`), doubt, looked];
    const named = nameClass(label);
    const text = thresholds ? `Labels: ${labels.filter(([one, value]) => value >= thresholds[one]).map(([one]) => one).join(", ") || "none"}.`
      : doubt ? `The model takes this for ${named} (${percent(share)}).` : share < 0.5 ? `The model is not sure. Its best guess is ${named} (${percent(share)}).` : `This is probably ${named} (${percent(share)}).`;
    const rest = labels.length > 3 ? this.onDemand("The other classes", image.name, () => [bars(labels.slice(3))]) : "";
    return [element("p", {}, element("strong", {}, text)), doubt, bars(labels.slice(0, 3)), element("div", { className: "row" }, swapped, rest, looked)];
  },

  // The answer for the negative of a picture.
  async swapped(body, { file, name }, signal) {
    const picture = await createImageBitmap(file), canvas = element("canvas", { width: picture.width, height: picture.height, className: "picture", role: "img", "aria-label": `${name}, dark and light swapped` });
    const context = canvas.getContext("2d");
    context.filter = "invert(1)";
    context.drawImage(picture, 0, 0);
    const { result } = await server.json("/v1/classify", { body: { ...body, items: canvas.toDataURL() }, signal }), labels = likeliest(result);
    return [canvas, element("p", {}, `The model takes this for ${nameClass(labels[0][0])} (${percent(labels[0][1])}).`), bars(labels.slice(0, 3))];
  },

  // A part that is made when it is opened first, and again after an error.
  onDemand(title, name, make) {
    const place = element("div");
    let isMade = false;
    return element("details", { ontoggle: async (event) => {
      if (!event.target.open || isMade) return;
      isMade = true;
      place.replaceChildren(element("p", { className: "soft" }, "One moment …"));
      try {
        place.replaceChildren(...await make());
      } catch (error) {
        isMade = false;
        if (error.status === 401) event.target.open = false; // the form for a key says so
        place.replaceChildren(element("p", { className: "wrong" }, this.problem(error, name)));
      }
    } }, element("summary", {}, title), place);
  },

  async look(body, { name, url }, signal) {
    return [new AttentionView((await server.json("/v1/look", { body, signal })).result, name, url).view];
  },

  async caption(body, image, signal) {
    return [element("p", {}, (await server.json("/v1/caption", { body, signal })).result)];
  },

  // Images against texts; the best text of each image is marked.
  matches(texts, rows) {
    const marked = rows.map(([image, ...shares]) => [image, ...shares.map((share) =>
      element(share === Math.max(...shares) ? "strong" : "span", {}, percent(share)))]);
    return table(["image", ...texts], marked, "How well each text fits each image");
  },

  commandLines() {
    const names = this.isExample ? ["photo.png"] : this.files.map(filePath), { task } = this, model = this.choice.model;
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
