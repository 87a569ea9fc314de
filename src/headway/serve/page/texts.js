"use strict";
// The tab Texts: a form for each task of a model that reads text.

const linesOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const pythonList = (texts) => `[${texts.map(pythonString).join(", ")}]`;
const shellWords = (texts) => texts.map(shellWord).join(" ");
const printLines = (texts) => `printf '%s\\n' ${shellWords(texts)} | `;
const isDefined = (value) => value !== undefined && value !== "" && value !== false;
const CUT = { name: "truncate", label: "Cut texts that are too long", type: "checkbox" };

// A task: its fields, the request, its result as {view, rows} where rows are saved as .csv and copied, and the command. `more` fields are optional.
const TEXT_TASKS = {
  translate: {
    title: "Translate", about: "Each line is translated by itself. A model that learned pronunciations translates words into sounds.",
    fields: [{ name: "lines", label: "Text, one sentence per line", rows: 4, examples: ["A dog runs along the beach.\nTwo people sit at a table."], joins: 3 }],
    more: [{ name: "source", label: "From language", hint: "Such as en; only for models of several languages." }, { name: "target", label: "To language", hint: "Such as de; only for models of several languages." },
      { name: "beam", label: "Thoroughness (beam)", type: "number", min: 1, max: 32, hint: "Number of translations that are followed at once, 1 to 32; empty: as in the model's evaluation." }],
    body: ({ lines, ...more }) => ({ lines: linesOf(lines), ...more }),
    result: (translations, { lines }) => ({
      view: table(["text", "translation"], linesOf(lines).map((line, index) => [line, element("strong", {}, translations[index] || "(no words)")]), "Translations"),
      rows: [["text", "translation"], ...linesOf(lines).map((line, index) => [line, translations[index]])],
    }),
    command: ({ lines, source, target, beam }) => ({ options: [shellWords(linesOf(lines)), source && `--from ${shellWord(source)}`, target && `--to ${shellWord(target)}`, beam && `--beam ${beam}`],
      python: [pythonList(linesOf(lines)), source && `source=${pythonString(source)}`, target && `target=${pythonString(target)}`, beam && `beam=${beam}`] }),
  },
  classify: {
    title: "Classify", about: "The model says how probable each of its labels is, for each line.",
    fields: [{ name: "items", label: "Text, one per line", rows: 4, examples: ["What a wonderful evening!\nThe card that I ordered has not arrived yet."], joins: 2 }],
    more: [{ name: "second", label: "Second text", hint: "Only for models that compare two texts: it is compared with each line." },
      { name: "labels", label: "Labels of your own, separated by commas", hint: "Only for models for natural language inference, such as bart-large-mnli." }, CUT],
    body: ({ items, second, labels, ...more }) => ({ items: linesOf(items).map((item) => second ? [item, second] : item), labels: labels && labels.split(",").map((label) => label.trim()).filter(Boolean), ...more }),
    result: (results, { items }, answer) => {
      const lines = linesOf(items), all = results.map(likeliest);
      const name = (label, share) => answer.thresholds && share >= (answer.thresholds[label] ?? 0.5) ? `✓ ${label}` : label;
      const one = (shares) => shares.every(([, share]) => share >= 0 && share <= 1) && shares[0][0] !== "value" ? bars(shares.slice(0, 8).map(([label, share]) => [name(label, share).slice(0, 300), share]))
        : element("p", {}, ...shares.map(([label, value]) => `${label}: ${formatNumber(value)} `));
      return {
        view: element("div", {}, ...lines.map((line, index) => element("section", {}, element("h3", {}, firstWords(line, 200)), one(all[index]),
          all[index].length > 8 ? element("p", { className: "soft" }, `${formatNumber(all[index].length - 8)} more labels are in the saved table.`) : null))),
        rows: [["text", "label", "probability"], ...lines.flatMap((line, index) => all[index].map(([label, share]) => [line, label, share]))],
      };
    },
    command: ({ items, second, labels, truncate }) => {
      const lines = linesOf(items), chosen = labels?.split(",").map((label) => label.trim()).filter(Boolean);
      return { options: [...(second ? ["--pairs", ...lines.map((line) => shellWord(`${line}\t${second}`))] : [shellWords(lines)]), chosen && `--labels ${shellWord(chosen.join(","))}`, truncate && "--truncate"],
        python: [second ? `[${lines.map((line) => `(${pythonString(line)}, ${pythonString(second)})`).join(", ")}]` : pythonList(lines), chosen && `labels=${pythonList(chosen)}`, truncate && "truncate=True"] };
    },
  },
  tag: {
    title: "Tag words", about: "The model marks words, such as the names of people and places. Each line is a text.",
    fields: [{ name: "texts", label: "Text, one per line", rows: 4, examples: ["Angela Merkel was born in Hamburg.\nAda Lovelace lived in London."], joins: 2 }],
    more: [CUT],
    body: ({ texts, ...more }) => ({ texts: linesOf(texts), ...more }),
    result: (results) => ({
      view: element("div", {}, ...results.map(({ words, tags, entities }) => {
        const marked = entities.length ? entities : tags.map((kind, index) => ({ kind, start: index, stop: index + 1 })).filter(({ kind }) => kind !== "O");
        const parts = [];
        for (let index = 0; index < words.length;) {
          const span = marked.find(({ start }) => start === index);
          parts.push(span ? element("mark", {}, words.slice(index, span.stop).join(" "), element("small", {}, ` ${span.kind.slice(0, 100)}`)) : words[index], " ");
          index = span ? span.stop : index + 1;
        }
        return element("p", { className: "tagged" }, ...parts);
      }), element("details", {}, element("summary", {}, "Every word with its tag"), element("pre", { tabIndex: 0 }, results.map(({ words, tags }) => words.map((word, index) => `${word}\t${tags[index]}`).join("\n")).join("\n\n")))),
      rows: [["text", "word", "tag"], ...results.flatMap(({ words, tags }, text) => words.map((word, index) => [text + 1, word, tags[index]]))],
    }),
    command: ({ texts, truncate }) => ({ input: printLines(linesOf(texts)), options: [truncate && "--truncate"], python: [pythonList(linesOf(texts)), truncate && "truncate=True"] }),
  },
  fill: {
    title: "Fill gaps", about: "Write [MASK] where a word is missing, and the model suggests words for each gap.",
    fields: [{ name: "text", label: "Text with [MASK]", rows: 3, examples: ["The capital of France is [MASK]."] }],
    more: [{ name: "top", label: "Suggestions per gap", type: "number", min: 1, max: 1000, hint: "1 to 1,000; empty: 5." }],
    body: ({ text, ...more }) => ({ text, ...more }),
    result: (gaps, { text }) => {
      const parts = text.split(/\[MASK\]|<mask>/), filled = element("p", { className: "text" }, parts[0]);
      parts.slice(1).forEach((part, index) => filled.append(gaps[index] ? element("mark", {}, gaps[index][0]?.text.trim() ?? "") : "", part));
      return {
        view: element("div", {}, filled, ...gaps.map((candidates, index) => element("section", {}, element("h3", {}, `Gap ${index + 1}`), bars(candidates.map((candidate) => [tokenLabel(candidate.text), candidate.probability]))))),
        rows: [["gap", "word", "probability"], ...gaps.flatMap((candidates, index) => candidates.map((candidate) => [index + 1, candidate.text, candidate.probability]))],
      };
    },
    command: ({ text, top }) => ({ options: [shellWord(text), top && `--top ${top}`], python: [pythonString(text), top && `top=${top}`] }),
  },
  answer: {
    title: "Answer", about: "The model marks the part of your text that answers the question.",
    fields: [{ name: "question", label: "Question", rows: 1, examples: ["Who wrote the first program?"], own: false },
      { name: "context", label: "Text that contains the answer", rows: 5, examples: ["Ada Lovelace wrote the first program in 1843, for a machine that was never built."], own: false }],
    more: [{ name: "allow_none", label: "The text may lack an answer", type: "checkbox", hint: "Only for models that learned to answer nothing, such as those for SQuAD 2." }],
    body: (values) => values,
    result: ({ text, start, end, score }, { context }) => {
      const characters = [...context]; // Python counts characters, JavaScript halves of some
      return {
        view: element("div", {}, element("p", {}, text ? element("strong", {}, text) : "The text has no answer.", ` (score ${percent(score)})`),
          element("p", { className: "text" }, characters.slice(0, start).join(""), text ? element("mark", {}, characters.slice(start, end).join("")) : "", characters.slice(end).join(""))),
        rows: [["answer", "start", "end", "score"], [text, start, end, score]],
      };
    },
    command: ({ question, context, allow_none: none }) => ({ options: [`--question ${shellWord(question)}`, shellWord(context), none && "--allow-none"], python: [pythonString(question), pythonString(context), none && "allow_none=True"] }),
  },
  rerank: {
    title: "Rank", about: "The model ranks the lines by how well they fit your question.",
    fields: [{ name: "query", label: "Question or search", rows: 1, examples: ["How do I bake bread?"] },
      { name: "documents", label: "Texts to rank, one per line", rows: 5, examples: ["Mix flour, water, salt and yeast, and bake the dough for 40 minutes.\nThe train to Paris leaves at noon.\nSourdough needs a day of rest before it goes into the oven."], own: false }],
    more: [{ name: "instruction", label: "What makes a text fit", hint: "Only for models whose prompt contains it, such as Qwen3-Reranker." }, CUT],
    body: ({ documents, ...more }) => ({ documents: linesOf(documents), ...more }),
    result: (results, { documents }) => {
      const lines = linesOf(documents), ranked = results.map(({ index, relevance_score: score }, rank) => [rank + 1, score, lines[index]]);
      return { view: table(["rank", "relevance", "text"], ranked, "Ranked texts"), rows: [["rank", "relevance", "text"], ...ranked] };
    },
    command: ({ query, documents, instruction, truncate }) => ({ options: [`--query ${shellWord(query)}`, `--documents ${shellWords(linesOf(documents))}`, instruction && `--instruction ${shellWord(instruction)}`, truncate && "--truncate"],
      python: [pythonString(query), pythonList(linesOf(documents)), instruction && `instruction=${pythonString(instruction)}`, truncate && "truncate=True"] }),
  },
  embed: {
    title: "Compare sentences", about: "The model turns each line into a vector. The cosine of two vectors is 1 if the model takes the lines for the same, and near 0 or below if they have nothing in common.", path: "/v1/embeddings",
    fields: [{ name: "input", label: "Sentences, one per line", rows: 5, examples: ["A man is playing a guitar.\nSomebody makes music.\nThe stock market fell today."], joins: 4 }],
    more: [{ name: "prompt", label: "Kind of text", hint: "Name of a prompt of the model, such as query or document; most models have none." }, CUT],
    body: ({ input, ...more }) => ({ input: linesOf(input), ...more }),
    result: (vectors, { input }) => {
      const lines = linesOf(input), unit = vectors.map(({ embedding }) => { const length = Math.hypot(...embedding) || 1; return embedding.map((value) => value / length); });
      const cosines = unit.map((a) => unit.map((b) => a.reduce((sum, value, index) => sum + value * b[index], 0)));
      const cell = (cosine) => {
        const shown = element("span", { className: "heat number" }, cosine.toFixed(2));
        shown.style.setProperty("--share", `${Math.round(45 * Math.max(0, cosine))}%`);
        return shown;
      };
      return {
        view: table(["sentence", ...lines.map((_, index) => String(index + 1))], lines.map((line, index) => [`${index + 1}. ${firstWords(line, 80)}`, ...cosines[index].map(cell)]), "Cosine of each pair of sentences"),
        rows: [["sentence", ...lines], ...lines.map((line, index) => [line, ...cosines[index].map((cosine) => Number(cosine.toFixed(6)))])],
      };
    },
    command: ({ input, prompt, truncate }) => ({ input: printLines(linesOf(input)), options: [prompt && `--prompt ${shellWord(prompt)}`, truncate && "--truncate"], python: [pythonList(linesOf(input)), prompt && `prompt=${pythonString(prompt)}`, truncate && "truncate=True"] }),
  },
};

const readsTexts = (model) => model.reads.includes("texts") && model.verbs.some((verb) => verb in TEXT_TASKS);

// The form of one task.
class TextForm {
  constructor(verb, choice) {
    this.task = TEXT_TASKS[verb];
    this.choice = choice;
    this.verb = verb;
    this.fields = Object.fromEntries([...this.task.fields, ...this.task.more].map((field) => [field.name, this.makeField(field)]));
    const labelOf = ({ name, label, hint }) => this.fields[name].type === "checkbox" ? element("label", { className: "field" }, element("span", {}, this.fields[name], ` ${label}`), hint && element("span", { className: "soft" }, hint)) : labelled(label, this.fields[name], hint);
    this.limit = element("p", { className: "soft" });
    this.examples = element("div");
    this.result = element("div", { "aria-live": "polite" });
    this.command = commandView(() => this.commands());
    this.form = workForm([...this.task.fields.map(labelOf), this.limit, this.examples, element("details", {}, element("summary", {}, "More settings"), element("div", { className: "settings" }, ...this.task.more.map(labelOf)))],
      (signal) => this.run(signal), this.task.title);
    this.form.addEventListener("input", () => this.command.update());
    this.root = element("div", {}, element("p", {}, this.task.about), this.form, this.result, this.command);
  }

  makeField({ name, rows, type, min, max }) {
    const field = rows > 1 ? element("textarea", { rows, required: true }) : element("input", { type: type ?? "text", min: min ?? "", max: max ?? "", required: Boolean(rows) });
    if (rows === 1) field.size = 60;
    field.oninvalid = () => { field.closest("details")?.setAttribute("open", ""); };
    return keepDraft(field, this.draft(name), type === "checkbox" ? false : "");
  }

  draft(name) {
    return `texts:${this.verb}:${name}`;
  }

  // Fields in which nothing was typed show examples of the model.
  refresh() {
    const { model } = this.choice, { examples: own, context } = model;
    const pairs = this.verb === "classify" && own.length && own.every((example) => example.split(" | ").length === 2);
    for (const { name, examples, joins = 1, own: usesOwn = true } of this.task.fields) {
      const suited = usesOwn && own.length ? own.map((example) => joins > 1 ? example.replace(/\s*\n\s*/g, " ") : example) : examples;
      if (drafts.get(this.draft(name)) === null) this.fields[name].value = suited === examples ? examples[0] : pairs ? suited[0].split(" | ")[0] : suited.slice(0, joins).join("\n");
      if (pairs && drafts.get(this.draft("second")) === null) this.fields.second.value = suited[0].split(" | ")[1];
      if (name !== this.task.fields[0].name) continue;
      const use = (example) => { this.fields[name].value = example; this.fields[name].dispatchEvent(new Event("input", { bubbles: true })); };
      this.examples.replaceChildren(...(suited.length > 1 && !pairs ? [exampleButtons(suited, use)] : []));
    }
    const most = this.verb === "answer" ? "Longer texts are read in parts." : "Longer texts are refused.";
    this.limit.textContent = `${this.task.fields.some(({ rows }) => rows > 1) && this.verb !== "answer" && this.verb !== "fill" ? `At most 2,048 lines and ${formatBytes(server.limits.body_bytes)}. ` : ""}${context ? `The model reads at most ${formatNumber(context)} tokens (words or parts of words) at once. ${most}` : ""}`;
    this.command.update();
  }

  values() {
    const entries = Object.entries(this.fields).map(([name, field]) => [name, field.type === "checkbox" ? field.checked : field.type === "number" ? field.value && Number(field.value) : field.value]);
    return Object.fromEntries(entries.filter(([, value]) => isDefined(value)));
  }

  async run(signal) {
    const values = this.values(), { model } = this.choice;
    const body = { model: model?.id, ...this.task.body(values) };
    const answer = await server.json(this.task.path ?? `/v1/${this.verb}`, { body, signal });
    const { view, rows } = this.task.result(answer.result ?? answer.results ?? answer.data, values, answer);
    const plain = () => rows.slice(1).map((row) => row.join("\t")).join("\n");
    this.result.replaceChildren(element("h3", {}, "Result"), view, element("div", { className: "row" }, copyButton(plain), element("button", { type: "button", onclick: () => saveFile(`${this.verb}.csv`, csvText(rows), "text/csv;charset=utf-8") }, "Save as table (.csv)")));
  }

  commands() {
    const { input = "", options, python } = this.task.command(this.values());
    const lines = modelCommand(this.choice.model, this.verb, options.filter(Boolean).join(" "), `print(model.${this.verb}(${python.filter(Boolean).join(", ")}))`);
    return { ...lines, shell: input + lines.shell };
  }
}

page.addTab({
  id: "texts",
  title: "Texts",
  serves: readsTexts,

  show(panel) {
    this.forms = new Map(); // by verb; each keeps its result
    this.place = element("div");
    this.select = element("select", { onchange: () => { drafts.set("texts:verb", this.select.value); this.showForm(); } });
    const suited = ownModel(server.models.filter(readsTexts)) ?? server.models.find((model) => readsTexts(model) && !model.verbs.includes("generate")); // not one that is for writing
    if (suited && drafts.get("model:texts") === null) drafts.set("model:texts", suited.id);
    this.choice = modelChoice("texts", readsTexts, () => this.modelChanged());
    this.verbField = labelled("Task", this.select);
    panel.append(element("h2", {}, "Work with texts"), element("div", { className: "row" }, this.choice.field, this.verbField), this.place);
    this.modelChanged();
  },

  refresh() {
    this.choice.refresh();
    this.modelChanged();
  },

  modelChanged() {
    const model = this.choice?.model;
    if (!model || !this.verbField) return;
    const before = drafts.get("texts:verb"), verbs = Object.keys(TEXT_TASKS).filter((verb) => model.verbs.includes(verb));
    this.select.replaceChildren(...verbs.map((verb) => new Option(TEXT_TASKS[verb].title, verb)));
    if (verbs.includes(before)) this.select.value = before;
    this.showForm();
  },

  showForm() {
    const verb = this.select.value;
    if (!this.forms.has(verb)) this.forms.set(verb, new TextForm(verb, this.choice));
    const form = this.forms.get(verb);
    form.refresh();
    if (this.place.firstChild !== form.root) this.place.replaceChildren(form.root);
  },
});
