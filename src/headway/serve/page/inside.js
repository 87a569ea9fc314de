"use strict";
// The tab "Inside a transformer": a sentence on its way through a model, in seven steps.

const INSIDE_EXAMPLES = {
  "a masked language model": "The capital of France is [MASK].",
  "an encoder-decoder": "A man is sleeping.",
};
const MAX_EXAMPLE = 140; // characters
const INSIDE_SENTENCE = "Once upon a time there was a fox named Tom. His friend was a bear named Anna.";

const attends = (model) => model.verbs.includes("attention");
const isRecurrent = (model) => model.verbs.includes("lens") && !attends(model);

const isWord = (token) => /\p{L}/u.test(token.text);
const isUnknown = (token) => /^(<unk>|\[UNK\])$/i.test(token.text.trim()); // stands for what is not in the vocabulary
const tokenCount = (count) => `${integers.format(count)} token${count === 1 ? "" : "s"}`;
const isMark = (token) => /^<.+>$|^\[(CLS|SEP|PAD)\]$/.test(token.text); // a token that nobody types

// Models with attention: the largest language model comes first, translators and others after it.
const byAttention = (one, other) => (other.kind === "a language model") - (one.kind === "a language model") || other.parameters - one.parameters;

// Recurrent models: the one whose name begins as the transformer's comes first, an LSTM before a GRU.
const byLikeness = (id) => (one, other) => {
  const likeness = ({ id: name }) => [...name].findIndex((letter, index) => letter !== id[index]);
  const alike = (model) => { const count = likeness(model); return (count < 0 ? model.id.length : count) > 2 ? 1 : 0; };
  const isLstm = (model) => /lstm/i.test(model.id) ? 2 : /gru/i.test(model.id) ? 0 : 1;
  return alike(other) - alike(one) || isLstm(other) - isLstm(one) || byAttention(one, other);
};

// The beginning of a token, without the spaces around it.
const shortToken = (text) => tokenLabel(text.trim() || text).slice(0, 14);

// A token in a sentence, with its number if the text has this token more than once.
function quotedToken(tokens, index) {
  const name = shortToken(tokens[index].text), isRepeated = tokens.some(({ text }, other) => other !== index && shortToken(text) === name);
  return `“${name}”${isRepeated ? ` (token ${index + 1})` : ""}`;
}

// Whether a word is complete after a token: the next one does not continue it. In a vocabulary like BERT's, whose tokens have
// no spaces, ## marks a continuation.
function endsWord(tokens, index) {
  const next = tokens[index + 1]?.text ?? "", hasSpaces = tokens.some(({ text }) => /^\s|\s$/.test(text)) || !tokens.some(({ text }) => /^\[(CLS|SEP)\]$/.test(text));
  return !/^##/.test(next) && !(hasSpaces && /[\p{L}\p{N}\ufffd]$/u.test(tokens[index].text) && /^[\p{L}\p{N}\ufffd]/u.test(next));
}

const isWholeWord = (tokens, index) => isWord(tokens[index]) && !isMark(tokens[index]) && endsWord(tokens, index) && (index === 0 || endsWord(tokens, index - 1));

// A part of the tab: a heading, sentences that explain it, and its content.
const insidePart = (title, sentences, ...content) => element("section", { className: "part" },
  element("h3", {}, title), ...sentences.map((text) => element("p", {}, text)), ...content);

page.addTab({
  id: "inside",
  title: "Inside a transformer",
  serves: (model) => model.verbs.includes("lens") || attends(model),
  show(panel) {
    this.text = element("textarea", { rows: 3, required: true });
    const anyAttends = () => server.models.some(attends);
    this.choice = modelChoice("inside", (model) => attends(model) || (isRecurrent(model) && !anyAttends()), () => this.modelChanged(), byAttention);
    this.other = modelChoice("inside-recurrent", isRecurrent, () => this.look(), (one, other) => byLikeness(this.choice.model?.id ?? "")(one, other));
    this.other.field.querySelector("label").textContent = "Recurrent model";
    keepDraft(this.text, "inside", this.example());
    this.examples = element("div");
    this.form = workForm([
      this.choice.field,
      labelled("Sentence", this.text, "A model reads at most 256 tokens here, about 200 words. Twenty words are easier to look at."),
      this.examples,
    ], (signal) => this.work(signal), "Look inside");
    this.results = element("div", { className: "inside", "aria-live": "off" });
    this.status = element("p", { className: "soft", role: "status" });
    this.command = commandView(() => this.commandLines());
    panel.append(element("h2", {}, "Inside a transformer"),
      element("p", {}, "A language model reads a text and guesses how it goes on. A transformer is the kind of network that most of them are today: its tokens exchange information by attention, in several layers, which are stages that every token passes one after the other. Follow one sentence, step by step: everything below is computed by the model named here, from its own weights, the numbers that it learned. Change the sentence and look again."),
      this.form, this.status, this.results, insideQuestions(), this.command);
    this.showExamples();
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
  // Sentences that fit the model: its own examples, which are in its vocabulary, without those that begin in the middle of
  // a sentence: with a small letter, while others begin with a capital one or have one. A model that the tab Models made of stories,
  // and one without examples, begins with a sentence of this page.
  sentences() {
    const model = this.choice.model, hasCapitals = model?.examples.some((text) => /\p{Lu}/u.test(text));
    const own = model?.examples.filter((text) => text.length <= MAX_EXAMPLE && !(hasCapitals && /^\P{L}*\p{Ll}/u.test(text))) ?? [];
    const isStories = model?.is_starter && model.kind === "a language model";
    return own.length && !isStories ? own : [INSIDE_EXAMPLES[model?.kind] ?? INSIDE_SENTENCE, ...own];
  },
  example() {
    return this.sentences()[0];
  },
  showExamples() {
    this.examples.replaceChildren(exampleButtons(this.sentences(), (text) => {
      this.text.value = text;
      drafts.set("inside", text);
      this.look();
    }));
  },
  // A sentence that nobody typed follows the model, and so does the temperature.
  modelChanged() {
    if (!this.form) return;
    drafts.set("inside-temperature", null);
    this.showExamples();
    if (drafts.get("inside") === null) this.text.value = this.example();
    if (drafts.get("model:inside-recurrent") === null) this.other.refresh(true);
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
    this.command.update();
    try {
      const answer = await this.ask(model, this.text.value, signal);
      const other = isRecurrent(model) ? answer : this.other.model ? await this.ask(this.other.model, this.text.value.split(/\[MASK\]|<mask>/)[0].trim() || this.text.value, signal) : null;
      this.answer = answer;
      const source = answer.attention?.source ?? [], written = source.length ? ` and wrote ${tokenCount(answer.tokens.length - 1)}` : "";
      this.status.textContent = `${model.id} read ${tokenCount(source.length || answer.tokens.length)}${written}. It has ${integers.format(model.parameters)} parameters, the numbers that it learned.`;
      this.results.replaceChildren(...this.parts(answer, other));
      if (this.showsLast) this.results.lastElementChild.scrollIntoView();
      this.showsLast = false;
    } catch (error) { // an earlier answer is not that of this sentence
      this.status.textContent = "";
      this.answer = null;
      this.results.replaceChildren();
      throw error;
    }
  },
  parts(answer, other) {
    const { lens, attention } = answer, hasMaps = attention && Object.keys(attention.maps).length > 0;
    const isShort = hasMaps && answer.tokens.length < 2 && attention.source.length < 2;
    const temperature = lens && temperaturePart(lens);
    const parts = [
      tokensPart(answer),
      lens?.neighbours.length ? neighboursPart(answer) : null,
      isShort ? insidePart("Attention", [`The model read one token, so there is no other to look at. Write more words above, or choose one of the examples.`])
        : hasMaps ? attentionPart(answer) : insidePart("Attention", [`${answer.model.id} has no attention. Choose a transformer to see some; the last step explains what this model does instead.`]),
      hasMaps && attention.source.length === 0 && (!isShort || wordsOf(answer.text).length < 2) ? orderPart(answer, (text) => this.ask(answer.model, text)) : null,
      lens ? layersPart(lens, temperature.follow) : insidePart("What each layer would predict", [`${answer.model.id} has no vocabulary to predict words from: it was trained for another task.`]),
      temperature?.part,
      recurrentPart(other, answer, this.other.field, (text) => {
        this.text.value = text;
        drafts.set("inside", text);
        this.showsLast = true;
        this.look();
      }),
    ].filter(Boolean);
    parts.forEach((part, index) => part.querySelector("h3").prepend(`${index + 1}. `));
    return parts;
  },
});

// What a reader should know about a sentence that does not fit the model; null if it fits.
function misfit({ model, tokens, attention }) {
  const source = attention?.source.length ? attention.source.map((text) => ({ text })) : tokens, unknown = source.filter(isUnknown).length;
  const facts = [
    unknown ? `${unknown} of the ${tokenCount(source.length)} that ${model.id} read ${unknown === 1 ? "is" : "are"} “${source.find(isUnknown).text.trim()}”: words or letters that its vocabulary does not contain.` : "",
    source !== tokens && tokens.length < 2 ? `${model.id} wrote nothing for this sentence, so only its first guess can be seen.` : "",
  ].filter(Boolean);
  return facts.length ? element("p", { className: "finding" }, `${facts.join(" ")} Choose one of the examples above, which it knows, or write a sentence like them.`) : null;
}

function tokensPart(answer) {
  const { tokens, lens, attention } = answer;
  const chips = (list) => element("ul", { className: "chips" }, ...list.map((token) => element("li", {},
    element("span", { className: "token-text" }, tokenLabel(token.text)), token.id === null ? null : element("span", { className: "soft" }, String(token.id)))));
  const isPair = attention?.source.length > 0;
  return insidePart("Tokens", [
    "A model does not read letters or words but tokens: pieces that occur often in its training texts. A frequent word is one token; a rare one is made of several. ␣ stands for a space.",
    tokens.some((token) => token.text.startsWith(" ")) ? "A word can therefore be split in two ways: at the beginning of a text it has no space before it, after another word it has, and these are different tokens." : null,
    lens ? "The number below a piece is its id: its place in the vocabulary, the list of all tokens that the model knows." : null,
    tokens.some((token) => token.text === "<|endoftext|>") ? "<|endoftext|> is a mark that nobody types: it marks the border between two texts."
      : tokens.some(isMark) ? "Tokens in brackets, such as the first one, are marks that nobody types: they tell the model where a text begins or ends." : null,
    tokens.some(({ text }) => text.includes("\ufffd")) ? "� is a part of a letter. The computer stores a letter such as é as two or more numbers, its bytes; where a letter is rare in the training texts, each of its bytes is a token, and together they are the letter." : null,
    isPair ? "This model reads a source sentence and writes a target. These are the tokens of the target, its own translation; below are those of the source." : null,
  ].filter(Boolean), misfit(answer), chips(tokens), isPair ? element("p", { className: "soft" }, `Source: ${attention.source.map(tokenLabel).join(" | ")}`) : null);
}

function neighboursPart({ lens, model, text }) {
  const of = `${model.id}: ${text}`, kept = drafts.get("inside-neighbour");
  const select = element("select", { onchange: () => { drafts.set("inside-neighbour", { of, token: select.value }); draw(); } }), list = element("div", { "aria-live": "polite" });
  select.append(...lens.tokens.map((token, index) => new Option(`${index + 1}: ${tokenLabel(token.text)}`, index)));
  const near = lens.neighbours.map((tokens) => tokens.filter(({ score }) => score > lens.chance));
  // At first a word with neighbours that are words, not the tokens that training never moved, which are all alike.
  const words = near.map((tokens) => tokens.filter(({ text: neighbour, score }) => /\p{L}{2}/u.test(neighbour) && score < 0.999));
  const clarity = (index) => isWord(lens.tokens[index]) && !isMark(lens.tokens[index]) ? words[index].length + (words[index][0]?.score ?? 0) + (/^\s/.test(lens.tokens[index].text) ? 0.5 : 0) : 0; // not the start of a text
  const clearest = near.reduce((best, _, index) => clarity(index) > clarity(best) ? index : best, 0);
  select.value = kept?.of === of ? kept.token : clearest;
  const draw = () => list.replaceChildren(near[select.value].length ? bars(near[select.value].map(({ text, score }) => [tokenLabel(text), score]))
    : element("p", { className: "finding" }, `This model has not learned any neighbour of “${shortToken(lens.tokens[select.value].text)}”.${near.some((tokens) => tokens.length) ? "" : " Nor has it of any other token of this sentence: models that trained longer on more texts do."}`));
  draw();
  return insidePart("Tokens as lists of numbers", [
    "Inside the model, each token is a list of numbers. The model compares this list with what it has read, to find how well the token continues a text. Training moves tokens that continue the same texts to similar lists.",
    `Choose a token to see those with the most similar lists, after what all lists have in common is taken away. 100 % means the same direction, 0 % nothing in common (the cosine of the angle between both lists). Only tokens above ${unbroken(lens.chance)} are shown, because unrelated tokens reach up to that by chance.`,
  ], labelled("Token", select), list);
}

// Questions that a reader can answer now, each with its answer.
function insideQuestions() {
  const questions = [
    ["What does attention look at?", "At the other tokens that this one may see: in a language model those before it and itself, in a model that fills gaps those on both sides. Each gets a share, and the shares add up to 100 %. The token takes over information from each in proportion to its share."],
    ["What does a head do?", "It is one of several attentions that work side by side in a layer, each with its own learned rule for whom to look at: one looks at the token before, another at the same word earlier in the text. The layer joins what they found."],
    ["Why does the order matter?", "Because the same words in another order mean something else. Attention alone would not notice, so a transformer is also told where each token stands. Swap two words above, and attention and prediction change."],
    ["What does the temperature do?", "It changes how boldly the next token is chosen, not what the model knows. At 0 the most probable token is always taken; at 1 each has the model's own probability; above 1 improbable tokens come up more often."],
    ["How does an LSTM differ?", "It has no attention. It reads one token after the other and carries a single list of numbers, its state, from token to token; what it needs later has to be in there. A transformer can look back at any earlier token directly, and reads all tokens of a text at once."],
  ];
  return insidePart("What you can say now", ["Five questions to check yourself: think of an answer first, and then open it."],
    ...questions.map(([question, answer]) => element("details", {}, element("summary", {}, question), element("p", {}, answer))));
}
