"use strict";
// The tab "Inside a transformer": a sentence on its way through a model, in six steps.

const INSIDE_EXAMPLES = {
  "a masked language model": "The capital of France is [MASK].",
  "an encoder-decoder": "A man is sleeping.",
};
const INSIDE_SENTENCE = "Once upon a time there was a fox named Tom. His friend was a bear named Anna.";

const attends = (model) => model.verbs.includes("attention");
const isRecurrent = (model) => model.verbs.includes("lens") && !attends(model);

// The beginning of a token, without the spaces around it.
const shortToken = (text) => tokenLabel(text.trim() || text).slice(0, 14);

// A part of the tab: a heading, sentences that explain it, and its content.
const insidePart = (title, sentences, ...content) => element("section", { className: "part" },
  element("h3", {}, title), ...sentences.map((text) => element("p", {}, text)), ...content);

page.addTab({
  id: "inside",
  title: "Inside a transformer",
  serves: (model) => model.verbs.includes("lens") || attends(model),
  show(panel) {
    this.text = element("textarea", { rows: 2, required: true });
    const anyAttends = () => server.models.some(attends);
    this.choice = modelChoice("inside", (model) => attends(model) || (isRecurrent(model) && !anyAttends()), () => this.modelChanged());
    this.other = modelChoice("inside-recurrent", isRecurrent, () => this.look());
    keepDraft(this.text, "inside", this.example());
    this.form = workForm([
      this.choice.field,
      labelled("Sentence", this.text, "A model reads at most 256 tokens here, about 200 words. Twenty words are easier to look at."),
    ], (signal) => this.work(signal), "Look inside");
    this.results = element("div", { className: "inside", "aria-live": "off" });
    this.status = element("p", { className: "soft", role: "status" });
    this.command = commandView(() => this.commandLines());
    panel.append(element("h2", {}, "Inside a transformer"),
      element("p", {}, "A language model reads a text and guesses how it goes on. Follow one sentence through a model, step by step: everything below is computed by the model that you choose, from its own weights. Change the sentence and look again."),
      this.form, this.status, this.results, insideQuestions(), this.command);
    this.look();
  },
  refresh() {
    this.choice.refresh();
    this.other.refresh();
    this.command.update();
  },
  opened() {
    if (!this.answer) this.look();
  },
  example() {
    const model = this.choice.model, own = model?.examples?.find((text) => text.length <= 80);
    return INSIDE_EXAMPLES[model?.kind] ?? own ?? INSIDE_SENTENCE;
  },
  // A sentence that nobody typed follows the model.
  modelChanged() {
    if (!this.form) return;
    if (drafts.get("inside") === null) this.text.value = this.example();
    this.command.update();
    this.look();
  },
  look() {
    if (this.form && this.choice.model) this.form.requestSubmit();
  },
  commandLines() {
    const model = this.choice.model, text = this.text.value;
    const picture = model && attends(model), reads = model?.verbs.includes("lens");
    const verb = reads ? "lens" : "attention";
    const lines = [reads && `lens = model.lens(${pythonString(text)}, neighbours=8)\nprint(lens.layers[-1].predictions[-1])`,
      picture && `attention = model.attention(${pythonString(text)})\nprint({name: weights.shape for name, weights in attention.maps.items()})`];
    const command = modelCommand(model, verb, `${reads ? "" : "attention.png "}--text ${shellWord(text)}`, lines.filter(Boolean).join("\n"));
    if (reads && picture) command.shell += `\n${modelCommand(model, "attention", `attention.png --text ${shellWord(text)}`, "").shell}`;
    return command;
  },
  // What the model makes of a text: its lens and its attention, or null for what it does not have.
  async ask(model, text, signal) {
    const body = { model: model.id, text };
    const send = (verb, more) => model.verbs.includes(verb)
      ? server.json(`/v1/${verb}`, { body: { ...body, ...more }, signal }).then((answer) => answer.result)
      : null;
    const [lens, attention] = await Promise.all([send("lens", { top: 5, neighbours: 8 }), send("attention", {})]);
    return { model, text, lens, attention, tokens: lens?.tokens ?? attention.symbols.map((symbol) => ({ text: symbol, id: null })) };
  },
  async work(signal) {
    const model = this.choice.model;
    this.status.textContent = "The model reads the sentence ...";
    try {
      const answer = await this.ask(model, this.text.value, signal);
      const other = isRecurrent(model) ? answer : this.other.model ? await this.ask(this.other.model, this.text.value.split(/\[MASK\]|<mask>/)[0].trim() || this.text.value, signal) : null;
      this.answer = answer;
      this.status.textContent = `${model.id} read ${answer.tokens.length} tokens. It has ${integers.format(model.parameters)} parameters: the numbers that it learned.`;
      this.results.replaceChildren(...this.parts(answer, other));
    } catch (error) {
      this.status.textContent = "";
      throw error;
    }
  },
  parts(answer, other) {
    const { lens, attention } = answer, hasMaps = attention && Object.keys(attention.maps).length > 0;
    return [
      tokensPart(answer),
      lens?.neighbours.length ? neighboursPart(lens) : null,
      hasMaps ? attentionPart(answer) : insidePart("3. Attention", [`${answer.model.id} has no attention. Choose a transformer to see some; step 6 explains what this model does instead.`]),
      hasMaps && attention.source.length === 0 ? orderPart(answer, (text) => this.ask(answer.model, text)) : null,
      lens ? layersPart(lens) : insidePart("4. What each layer would predict", [`${answer.model.id} has no vocabulary to predict words from: it was trained for another task.`]),
      lens ? temperaturePart(lens) : null,
      recurrentPart(other, answer, this.other.field),
    ].filter(Boolean);
  },
});

function tokensPart({ tokens, lens, attention }) {
  const chips = (list) => element("ul", { className: "chips" }, ...list.map((token) => element("li", {},
    element("span", { className: "piece" }, tokenLabel(token.text)), token.id === null ? null : element("span", { className: "soft" }, String(token.id)))));
  const isPair = attention?.source.length > 0;
  return insidePart("1. Tokens", [
    "A model does not read letters or words but tokens: pieces that occur often in its training texts. A frequent word is one token; a rare one is made of several. ␣ stands for a space.",
    lens ? "The number below a piece is its id: its place in the vocabulary, the list of all tokens that the model knows." : null,
    tokens.some((token) => /^<.+>$|^\[(CLS|SEP)\]$/.test(token.text)) ? "Tokens in brackets, such as the first one, are marks that nobody types: they tell the model where a text begins or ends." : null,
    isPair ? "This model reads a source sentence and writes a target. These are the tokens of the target, its own translation; below are those of the source." : null,
  ].filter(Boolean), chips(tokens), isPair ? element("p", { className: "soft" }, `Source: ${attention.source.map(tokenLabel).join(" | ")}`) : null);
}

function neighboursPart(lens) {
  const select = element("select", { onchange: () => { drafts.set("inside-neighbour", Number(select.value)); draw(); } }), list = element("div", { "aria-live": "polite" });
  select.append(...lens.tokens.map((token, index) => new Option(`${index + 1}: ${tokenLabel(token.text)}`, index)));
  const longest = lens.tokens.reduce((best, token, index) => /^\s*\p{L}+$/u.test(token.text) && token.text.length > lens.tokens[best].text.length ? index : best, lens.tokens.length - 1);
  select.value = Math.min(lens.tokens.length - 1, drafts.get("inside-neighbour", longest));
  const draw = () => {
    list.replaceChildren(bars(lens.neighbours[select.value].map((near) => [tokenLabel(near.text), near.score])));
  };
  draw();
  return insidePart("2. Tokens as lists of numbers", [
    "Inside the model, each token is a list of numbers: its row in the embedding table. Training moves tokens that are used alike to similar rows.",
    "Choose a token to see those with the most similar rows. 100 % means the same direction, 0 % nothing in common (the cosine of the angle between both lists). Lists of chance values would be alike, too, by up to 30 % in a small model; only what is above means something. A model that trained for minutes has found only some similarities.",
  ], labelled("Token", select), list);
}

// Questions that a reader can answer now, each with its answer.
function insideQuestions() {
  const questions = [
    ["What does attention look at?", "At the other tokens that this one may see: in a language model those before it and itself, in a masked model those on both sides. Each gets a share, and the shares add up to 100 %. The token takes over information from each in proportion to its share."],
    ["What does a head do?", "It is one of several attentions that work side by side in a layer, each with its own learned rule for whom to look at: one looks at the token before, another at the same word earlier in the text. The layer joins what they found."],
    ["Why does the order matter?", "Because the same words in another order mean something else. Attention alone would not notice, so a transformer is also told where each token stands. Swap two words in step 3, and attention and prediction change."],
    ["What does the temperature do?", "It changes how boldly the next token is chosen, not what the model knows. At 0 the most probable token is always taken; at 1 each has the model's own probability; above 1 improbable tokens come up more often."],
    ["How does an LSTM differ?", "It has no attention. It reads one token after the other and carries a single list of numbers, its state, from token to token; what it needs later has to be in there. A transformer can look back at any earlier token directly, and reads all tokens of a text at once."],
  ];
  return insidePart("What you can say now", ["Five questions to check yourself: think of an answer first, and then open it."],
    ...questions.map(([question, answer]) => element("details", {}, element("summary", {}, question), element("p", {}, answer))));
}
