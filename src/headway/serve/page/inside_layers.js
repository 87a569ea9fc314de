"use strict";
// What each layer would predict, how the temperature changes the choice, and the same sentence in a recurrent network.

// The most probable next tokens of a distribution at a temperature, as [token, probability]: at 0 the first has all.
function nextAt(next, temperature) {
  if (temperature === 0) return next.candidates.map((token, index) => [token, index === 0 ? 1 : 0]);
  const place = next.temperatures.findIndex((value) => Math.abs(value - temperature) < 0.001);
  return next.candidates.map((token) => [token, Math.exp(token.score / temperature - next.log_totals[place])]);
}

// Where the model is least sure what comes next; of a masked model its mask.
function leastSure({ each, tokens, next, masked }) {
  if (masked) return next.position;
  return each.reduce((best, { entropy, position }) => !isMark(tokens[position]) && entropy > each[best].entropy ? position : best, next.position);
}

// The last tokens up to a position, as text.
function textUpTo({ tokens }, position) {
  const text = tokens.slice(Math.max(0, position - 5), position + 1).map((token) => token.text).join("").replaceAll("\n", "⏎");
  return position > 5 ? `... ${text.trim()}` : text.trim() || "⏎";
}

// A sentence on the token at which the guess changes most from layer to layer.
function changingGuess({ layers, tokens }) {
  const guesses = tokens.map((_, position) => layers.map((layer) => layer.predictions[position]?.[0]));
  const clarity = guesses.map((best) => best.some((guess) => !guess) || best[0].id === best.at(-1).id ? 0 : new Set(best.map((guess) => guess.id)).size + best.at(-1).score);
  const position = clarity.indexOf(Math.max(...clarity)), best = guesses[position];
  if (!clarity[position]) return null;
  const changes = best.map((guess, layer) => [guess, layer]).filter(([guess, layer]) => layer === 0 || guess.id !== best[layer - 1].id);
  const steps = changes.map(([guess, layer]) => `layer ${layer + 1} guesses “${shortToken(guess.text)}” (${unbroken(guess.score)})`);
  return `For example, look at the column of “${shortToken(tokens[position].text)}” (token ${position + 1}): ${steps.join(", then ")}.`;
}

function layersPart(lens, chosen) {
  return insidePart("What each layer would predict", [
    `The sentence passes through ${lens.layers.length} layers, one after the other. Each adds something to the list of numbers at every token. What if the model stopped after the first layer, or the second? Each square shows the token that it would predict ${lens.masked ? "in this place" : "to come next"}, and its probability.`,
    `The last row is what the model really predicts. Read a column downwards: early layers often guess a common word, and later ones use the context. Choose a square to see its five most probable tokens.${lens.masked ? " This model sees the words on both sides, so it also predicts those that it was given; only [MASK] is hidden from it." : ""}`,
    changingGuess(lens),
  ].filter(Boolean), lensGrid(lens, chosen));
}

// A grid of layers and tokens; a square is a button, arrow keys move between them, and its details are below.
// `chosen(position)` follows.
function lensGrid(lens, chosen = () => {}) {
  const details = element("div", { "aria-live": "polite" }), buttons = [];
  const choose = (layer, position) => {
    for (const button of buttons.flat()) button.tabIndex = -1;
    const button = buttons[layer]?.[position];
    if (!button) return;
    button.tabIndex = 0;
    grid.querySelector(".selected")?.classList.remove("selected");
    button.classList.add("selected");
    chosen(position);
    details.replaceChildren(element("p", {}, `Layer ${layer + 1}, ${lens.masked ? `in the place of token ${position + 1}, “${shortToken(lens.tokens[position].text)}”` : `after “${textUpTo(lens, position)}”`}:`),
      bars(lens.layers[layer].predictions[position].map((token) => [tokenLabel(token.text), token.score])));
  };
  const square = (layer, position) => {
    const best = lens.layers[layer].predictions[position]?.[0];
    if (!best) return element("td", {}, "");
    const button = element("button", { type: "button", tabIndex: -1, onfocus: () => choose(layer, position), onclick: () => choose(layer, position),
      "aria-label": `Layer ${layer + 1}, token ${position + 1}, ${shortToken(lens.tokens[position].text)}: ${tokenLabel(best.text)} ${percent(best.score)}` },
    element("span", {}, shortToken(best.text)), element("span", { className: "number" }, percent(best.score)));
    button.style.setProperty("--share", `${Math.round(55 * best.score)}%`);
    (buttons[layer] ??= [])[position] = button;
    return element("td", {}, button);
  };
  const head = element("tr", {}, element("th", { scope: "col" }, "Token"), ...lens.tokens.map((token) => element("th", { scope: "col" }, tokenLabel(token.text).slice(0, 14))));
  const body = lens.layers.map((_, layer) => element("tr", {}, element("th", { scope: "row" }, `Layer ${layer + 1}`), ...lens.tokens.map((_, position) => square(layer, position))));
  const grid = element("div", { className: "scroll lens-grid", role: "region", tabIndex: 0, "aria-label": "What each layer would predict", onkeydown: (event) => {
    const layer = buttons.findIndex((row) => row?.includes(document.activeElement)), position = buttons[layer]?.indexOf(document.activeElement);
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const next = step && layer >= 0 ? buttons[layer + step[0]]?.[position + step[1]] : null;
    if (!step || layer < 0) return;
    event.preventDefault();
    next?.focus();
  } }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  const opening = leastSure(lens);
  choose(lens.layers.length - 1, opening);
  requestAnimationFrame(() => { // to the chosen square
    const button = buttons.at(-1)?.[opening];
    if (button) grid.scrollLeft += button.getBoundingClientRect().left - grid.getBoundingClientRect().left - grid.clientWidth / 2;
  });
  return element("div", {}, grid, details);
}

// The part, and `follow(position)`, which shows the chances after another token.
function temperaturePart(lens) {
  const shown = 8, slider = element("input", { type: "range", min: 0, max: 2, step: 0.05 }), value = element("output");
  keepDraft(slider, "inside-temperature", "1");
  const list = element("div"), told = element("p", { className: "finding", "aria-live": "polite" }), where = element("p", { "aria-live": "polite" });
  const opening = leastSure(lens), state = {};
  const update = () => {
    const temperature = Number(slider.value), shares = nextAt(state.next, temperature).slice(0, shown).map(([, share]) => share);
    shares.push(Math.max(0, 1 - shares.reduce((sum, share) => sum + share, 0)));
    [...list.firstChild.children].forEach((line, index) => {
      line.querySelector(".bar").style.setProperty("--share", `${100 * shares[index]}%`);
      line.lastChild.textContent = percent(shares[index]);
    });
    value.textContent = temperature.toFixed(2);
    slider.setAttribute("aria-valuetext", temperature.toFixed(2));
    told.textContent = temperature === 0 ? "At 0 the most probable token is always taken: the same text every time."
      : temperature < 0.95 ? "Below 1 probable tokens gain and improbable ones lose: the text is safer and repeats itself more."
        : temperature > 1.05 ? "Above 1 improbable tokens gain: the text is more varied, and has more mistakes."
          : "At 1 each token is chosen with the probability that the model gives it.";
  };
  const follow = (chosen) => { // a long text in a large vocabulary has only one distribution
    state.next = lens.each[chosen] ?? lens.next;
    const { position } = state.next;
    list.replaceChildren(bars([...state.next.candidates.slice(0, shown).map((token) => [tokenLabel(token.text), 0]), ["all others together", 0]]));
    const sure = lens.each.length && position === opening && !lens.masked ? " Of all tokens of the sentence, this is where the model is least sure what comes next." : "";
    where.textContent = `Here are the most probable ones ${lens.masked ? `in the place of token ${position + 1}, “${shortToken(lens.tokens[position].text)}”` : `after “${textUpTo(lens, position)}”`}.${sure} ${lens.each.length ? "Choose a square of the step above to see those of another token." : "Shorten the text to see those of other tokens."}`;
    update();
  };
  slider.addEventListener("input", update);
  const part = insidePart("Temperature: how the next token is chosen", [
    "The last layer gives each token of the vocabulary a probability. To write a text, the next token is drawn by these chances, as from a bag with balls; then the model reads it, and predicts the one after.",
    "The temperature changes the chances before the draw. It has no unit. Move the slider.",
  ], where, element("div", { className: "row" }, labelled("Temperature, 0 to 2", slider), value), told, list);
  follow(opening);
  return { part, follow };
}

function firstGuess(lens) {
  const [token, share] = nextAt(lens.next, 1)[0];
  return `“${shortToken(token.text)}” (${unbroken(share)})`;
}

// The changes of a layer's state; the colours reach from the smallest to the largest after the first token.
function stateStrip(tokens, { changes, number }) {
  const later = changes.length > 1 ? changes.slice(1) : changes, least = Math.min(...later), most = Math.max(...later);
  return element("div", {},
    element("p", { className: "soft" }, `Layer ${number}. The square with the least colour is the smallest change in this sentence (${unbroken(least)}), that with the most colour the largest (${unbroken(most)}).`),
    attentionStrip(tokens, changes, -1, { shade: (change) => Math.min(1, (change - least) / (most - least || 1)) }));
}

// The tokens of an answer as the words that they belong to, each with the largest change of its tokens.
function changesOfWords({ text, tokens }, changes) {
  const words = wordsOf(text), groups = [];
  for (const [index, span] of tokenSpans({ text, tokens }).entries()) {
    const word = span && words.find((entry) => entry.index <= span[0] && span[1] <= entry.index + entry.text.length), last = groups.at(-1);
    if (word && last?.word === word) last.change = Math.max(last.change, changes[index]);
    else groups.push({ word, text: word?.text ?? tokens[index].text, change: changes[index] });
  }
  return groups;
}

// Of two models with different vocabularies: how each cuts the sentence.
function twoVocabularies(other, answer) {
  const cut = ({ model, tokens }) => element("p", { className: "soft" }, `${model.id}: ${tokens.slice(0, 60).map((token) => tokenLabel(token.text)).join(" | ")}${tokens.length > 60 ? " | ..." : ""}`);
  const unknown = other.tokens.filter(isUnknown).length;
  return [
    element("p", {}, `The two models have different vocabularies: ${other.model.id} cuts the sentence into ${tokenCount(other.tokens.length)}, ${answer.model.id} into ${tokenCount(answer.tokens.length)}. So compare words rather than tokens.${unknown ? ` ${tokenCount(unknown)} of ${other.model.id} ${unknown === 1 ? "is" : "are"} “${other.tokens.find(isUnknown).text.trim()}”, which stands for what its vocabulary does not contain.` : ""}`),
    cut(answer), cut(other),
  ];
}

function recurrentPart(other, answer, field) {
  const title = "The same sentence in an LSTM", explanation = [
    "Before transformers, networks such as the LSTM (1997) read texts. An LSTM has no attention. It reads one token after the other and carries one list of numbers, its state, from token to token. At each token it decides what to keep of the state, what to forget and what to add.",
    "So an LSTM has to keep everything that it needs later in this one list, while a transformer can look back at each earlier token. And an LSTM has to wait for the token before, while a transformer reads all tokens of a training text at once, which suits the machines of today better.",
  ];
  if (!other) {
    return insidePart(title, [...explanation, "This server has no such model. Make one in five minutes on the tab Models (“stories-lstm”), or with this command:"],
      element("pre", { tabIndex: 0 }, "headway models make stories-lstm"));
  }
  const isPair = answer.attention?.source.length > 0, pieces = ({ tokens }) => JSON.stringify(tokens.map((token) => token.text));
  const differs = pieces(other) !== pieces(answer), isSameText = !isPair && !answer.lens?.masked;
  const { lens, model } = other, layers = lens.layers.map((layer, index) => ({ ...layer, number: index + 1 })).filter((layer) => layer.changes.length);
  const state = layers.length ? [
    element("h4", {}, "How much each token changes the state"),
    element("p", { className: "soft" }, "0 %: the token leaves the state as it was. The higher the number, the more of the state is new. The first token counts as 100 %, because there was no state before it."),
    differs ? element("p", { className: "soft" }, "A word of several tokens is shown with the largest change of its tokens.") : null,
    ...layers.map(({ changes, number }) => {
      const words = differs ? changesOfWords(other, changes) : null;
      return stateStrip(words ?? lens.tokens, { number, changes: words?.map(({ change }) => change) ?? changes });
    }),
  ] : [];
  return insidePart(title, explanation, field,
    element("p", {}, other === answer ? `${model.id} is such a model: it carries a state from token to token.` : `${model.id} read ${answer.lens?.masked && /\[MASK\]|<mask>/.test(answer.text) ? "the words before the mask" : "the same sentence"}. It has ${integers.format(model.parameters)} parameters; ${answer.model.id} has ${integers.format(answer.model.parameters)}.${answer.lens?.masked === false && !isPair ? ` Its first guess for the next token is ${firstGuess(lens)}, that of ${answer.model.id} ${firstGuess(answer.lens)}.` : ""}`),
    ...(differs && isSameText ? twoVocabularies(other, answer) : []), ...state, ...(other === answer ? [] : [element("h4", {}, "What its layers would predict"), lensGrid(lens)]));
}
