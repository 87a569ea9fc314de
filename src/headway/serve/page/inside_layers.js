"use strict";
// What each layer would predict, how the temperature changes the choice, and the same sentence in a recurrent network.

// The most probable next tokens of a distribution at a temperature, as [token, probability]: at 0 the first has all.
function nextAt(next, temperature) {
  if (temperature === 0) return next.candidates.map((token, index) => [token, index === 0 ? 1 : 0]);
  const place = next.temperatures.findIndex((value) => Math.abs(value - temperature) < 0.001);
  return next.candidates.map((token) => [token, Math.exp(token.score / temperature - next.log_totals[place])]);
}

// Where the model is least sure what comes next, of the places after a complete word; of a masked model its mask.
function leastSure({ each, tokens, next, masked }) {
  if (masked) return next.position;
  return each.reduce((best, { entropy, position }) => !isMark(tokens[position]) && endsWord(tokens, position) && entropy > each[best].entropy ? position : best, next.position);
}

// The last tokens up to a position, as text that begins with a complete word.
function textUpTo({ tokens }, position) {
  let start = Math.max(0, position - 5);
  while (start > 0 && !endsWord(tokens, start - 1)) start--;
  const text = tokens.slice(start, position + 1).map((token) => token.text).join("").replaceAll("\n", "⏎");
  return start > 0 ? `... ${text.trim()}` : text.trim() || "⏎";
}

// A sentence on the token at which the guess changes most from layer to layer: at first a complete word, and a guess of one.
function changingGuess({ layers, tokens }) {
  const guesses = tokens.map((_, position) => layers.map((layer) => layer.predictions[position]?.[0]));
  const clarity = guesses.map((best, position) => best.some((guess) => !guess) || best[0].id === best.at(-1).id ? 0
    : new Set(best.map((guess) => guess.id)).size + best.at(-1).score + (isWholeWord(tokens, position) ? 200 : endsWord(tokens, position) ? 100 : 0) + (isWord(best.at(-1)) ? 50 : 0));
  const position = clarity.indexOf(Math.max(...clarity)), best = guesses[position];
  if (!clarity[position]) return null;
  const changes = best.map((guess, layer) => [guess, layer]).filter(([guess, layer]) => layer === 0 || guess.id !== best[layer - 1].id);
  const steps = changes.map(([guess, layer]) => `layer ${layer + 1} guesses “${shortToken(guess.text)}” (${unbroken(guess.score)})`);
  return `For example, look at the column of “${shortToken(tokens[position].text)}” (token ${position + 1}): ${steps.join(", then ")}.`;
}

// What the first and the last layer guess at all tokens, in figures: a guess that the first layer makes at many of them, and
// how often it is that of the last.
function firstAndLast({ layers, tokens }) {
  const [first, last] = [layers[0], layers.at(-1)].map(({ predictions }) => predictions.map(([best]) => best)), count = tokens.length;
  if (layers.length < 2 || first.length < count || last.length < count) return null;
  const often = (list, id) => list.filter((token) => token.id === id).length;
  const common = first.reduce((one, other) => often(first, other.id) > often(first, one.id) ? other : one), [early, late] = [first, last].map((list) => often(list, common.id));
  const same = first.filter((token, position) => token.id === last[position].id).length;
  if (early > 2 && early >= count / 4 && early > late) return `The first layer guesses “${shortToken(common.text)}” at ${early} of ${tokenCount(count)}, and the last one at ${late}: later layers use the context.`;
  return `At ${same} of ${tokenCount(count)}, the first layer makes the same guess as the last one.`;
}

function layersPart(lens, chosen) {
  return insidePart("What each layer would predict", [
    `The sentence passes through ${lens.layers.length} layers, one after the other. Each adds something to the list of numbers at every token. What if the model stopped after the first layer, or the second? Each square shows the token that it would predict ${lens.masked ? "in this place" : "to come next"}, and its probability.`,
    `The last row is what the model really predicts. Read a column downwards to see how the guess changes. Choose a square to see its five most probable tokens.${lens.masked ? " This model sees the words on both sides, so it also predicts those that it was given; only [MASK] is hidden from it." : ""}`,
    [firstAndLast(lens), changingGuess(lens)].filter(Boolean).join(" "),
  ].filter(Boolean), lensGrid(lens, leastSure(lens), chosen));
}

// A grid of layers and tokens; a square is a button, arrow keys move between them, and its details are below. At first that
// of the token `opening` is chosen. `chosen(position)` follows.
function lensGrid(lens, opening, chosen = () => {}) {
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
  choose(lens.layers.length - 1, opening);
  const hint = element("p", { className: "soft", hidden: true }, `Scroll the table sideways to see all ${tokenCount(lens.tokens.length)}.`);
  requestAnimationFrame(() => { // to the chosen square, with a complete column at the left
    const [names, ...columns] = grid.querySelectorAll("thead th"), edge = names.offsetWidth, target = columns[opening];
    const wanted = Math.min(target.offsetLeft + (target.offsetWidth - grid.clientWidth - edge) / 2, grid.scrollWidth - grid.clientWidth);
    grid.style.scrollPaddingLeft = `${edge}px`;
    grid.scrollLeft = (columns.findLast(({ offsetLeft }) => offsetLeft - edge <= wanted)?.offsetLeft ?? edge) - edge;
  });
  new ResizeObserver(() => { hint.hidden = grid.scrollWidth <= grid.clientWidth; }).observe(grid);
  return element("div", {}, hint, grid, details);
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
    const sure = lens.each.length && position === opening && !lens.masked ? " Of all places after a complete word, this is where the model is least sure what comes next." : "";
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

// The changes of a layer's state; all layers have the same colours, of which the strongest means 100 %.
function stateStrip(tokens, { changes, number }) {
  const later = changes.slice(1), [least, most] = [Math.min(...later), Math.max(...later)];
  const at = (change) => `${quotedToken(tokens, 1 + later.indexOf(change))} (${unbroken(change)})`;
  return element("div", {},
    element("p", { className: "soft" }, `Layer ${number}. ${later.length > 1 ? `After the first token, ${at(most)} changes the state most: here the network forgets and adds most. ${at(least)} changes it least: here it keeps most.` : ""}`),
    attentionStrip(tokens, changes, -1, { shade: (change) => change ** 2 }));
}

// Texts in which a word has to be predicted that stands far back, in the style of the starter models and of other stories.
const LONG_TEXTS = [
  "Once upon a time there was a bear named Anna. One day Anna and Tom found a golden key at the well. “It is mine,” said Anna. “No, it is mine,” said Tom. They pulled until it broke. Anna looked at Tom, and Tom looked at Anna. “I am sorry,” said Anna. They mended the",
  "There was a brave frog named Otto. Otto was afraid of the dark. In spring Rosa the hen called for help from the mill. Otto was scared, but he went to the mill. There he found the hen and showed her the way. “You are very brave,” said",
  "Once upon a time there was a little girl named Lily. She had a toy robot. One day she went to the park with her mom. They saw a big dog and ate some cake. It was a lot of fun. When they came home, Lily was tired. She went to her room to play with her toy",
].map((text) => text.replace(/[“”]/g, '"'));
const FAR_BACK = 10; // tokens

// A model's first guess for the next token, and where in the text it was read last: {name, share, isNew, back} in tokens;
// back is 0 for a guess that is not a word by itself, or not in the text, and isNew tells both apart.
function recalledGuess({ lens, tokens }) {
  const [guess, share] = nextAt(lens.next, 1)[0], name = guess.text.trim(), isName = /^\p{L}{3,}$/u.test(name) && !SMALL_WORDS.test(name);
  const place = isName ? tokens.findLastIndex((token, index) => token.text.trim() === name && isWholeWord(tokens, index)) : -1;
  return { name, share, isNew: isName && place < 0, back: place < 0 ? 0 : tokens.length - place };
}

const isRecalled = (guess, other) => guess.back >= FAR_BACK && guess.name !== other.name;

// What both models make of a word far back, in sentences; null if neither predicts one.
function recallFinding(answer, other) {
  const both = [answer, other].map((one) => ({ ...recalledGuess(one), id: one.model.id, next: one.lens.next })), [mine, its] = both;
  const read = ({ back }) => `which it read ${tokenCount(back)} before`;
  if (mine.name === its.name && mine.back >= FAR_BACK && its.back > 0) return `Both predict “${mine.name}” here, which is ${tokenCount(mine.back)} back: the state of ${its.id} has kept it this far.`;
  const finder = [[mine, its], [its, mine]].find(([one, two]) => isRecalled(one, two));
  if (!finder) return null;
  const [one, two] = finder, share = nextAt(two.next, 1).find(([token]) => token.text.trim() === one.name)?.[1];
  const rest = share === undefined ? "" : ` It gives “${one.name}” ${unbroken(share)}.`;
  const what = `${one.id} predicts “${one.name}” (${unbroken(one.share)}), ${read(one)}. ${two.id} predicts “${shortToken(two.name)}” (${unbroken(two.share)})${two.isNew ? ", which is not in the text" : ""}.${rest}`;
  return one === mine && two.isNew ? `${what} The transformer looked back and found the word; the state of the other network has lost it.` : what;
}

// A button that looks for a longer text in which the transformer predicts a word far back and the recurrent model does not.
function longerText(answer, other, choose) {
  const told = element("p", { role: "status" }), read = async ({ model }, text) => {
    const { result } = await server.json("/v1/lens", { body: { model: model.id, text, top: 1 } });
    return recalledGuess({ lens: result, tokens: result.tokens });
  };
  const button = element("button", { type: "button", onclick: async () => {
    button.disabled = true;
    told.textContent = "Both models read longer texts ...";
    page.fail(null);
    try {
      for (const text of LONG_TEXTS) {
        const [mine, its] = await Promise.all([answer, other].map((one) => read(one, text)));
        if (isRecalled(mine, its)) return choose(text);
      }
      told.textContent = `In ${LONG_TEXTS.length} longer texts, ${answer.model.id} predicted no word far back that ${other.model.id} missed. Write a long text yourself, whose next word was named at its beginning.`;
    } catch (error) {
      told.textContent = "";
      page.fail(error, error.status === 0 || error.status >= 500 ? () => button.click() : undefined);
    } finally {
      button.disabled = false;
    }
  } }, "Find a longer text where they differ");
  return element("div", {}, element("div", { className: "row" }, button), told);
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

function recurrentPart(other, answer, field, choose) {
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
    element("p", { className: "soft" }, "At each token, the network keeps a part of its state, forgets the rest and adds something new. The number compares the state before and after. 0 %: it kept everything and added nothing. The higher the number, the more it forgot and added; the number does not separate these two. The stronger the colour, the higher the number, by the same scale in all layers. The first token counts as 100 %, because there was no state before it."),
    differs ? element("p", { className: "soft" }, "A word of several tokens is shown with the largest change of its tokens.") : null,
    ...layers.map(({ changes, number }) => {
      const words = differs ? changesOfWords(other, changes) : null;
      return stateStrip(words ?? lens.tokens, { number, changes: words?.map(({ change }) => change) ?? changes });
    }),
  ] : [];
  const comparesNext = other !== answer && isSameText && answer.lens, finding = comparesNext ? recallFinding(answer, other) : null;
  const comparison = comparesNext ? [finding ? element("p", { className: "finding" }, finding)
    : element("p", {}, "Neither predicts a word here that it read far back. The difference shows in a longer text, in which the next word was named long before."), LONG_TEXTS.includes(answer.text) ? null : longerText(answer, other, choose)] : [];
  return insidePart(title, explanation, field,
    element("p", {}, other === answer ? `${model.id} is such a model: it carries a state from token to token.` : `${model.id} read ${answer.lens?.masked && /\[MASK\]|<mask>/.test(answer.text) ? "the words before the mask" : "the same sentence"}. It has ${integers.format(model.parameters)} parameters; ${answer.model.id} has ${integers.format(answer.model.parameters)}.${answer.lens?.masked === false && !isPair && !finding ? ` Its first guess for the next token is ${firstGuess(lens)}, that of ${answer.model.id} ${firstGuess(answer.lens)}.` : ""}`),
    ...comparison, ...(differs && isSameText ? twoVocabularies(other, answer) : []), ...state, ...(other === answer ? [] : [element("h4", {}, "What its layers would predict"), lensGrid(lens, Math.max(0, lens.tokens.findIndex((token, index) => !isMark(token) && endsWord(lens.tokens, index))))]));
}
