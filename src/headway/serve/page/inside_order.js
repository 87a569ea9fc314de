"use strict";
// The same words in another order: two of them are swapped, and attention and prediction are compared.

// The tokens of each word at its place in the text: [start, end] of a token, or null for a mark that nobody typed, a part of
// a letter or an unknown word. After these, what they stand for is left out.
function tokenSpans({ text, tokens }) {
  let end = 0, lost = 0;
  return tokens.map((token) => {
    const piece = token.text.trim().replace(/^##/, ""), start = piece ? text.toLowerCase().indexOf(piece.toLowerCase(), end) : -1;
    const gap = text.slice(end, Math.max(end, start)).trim();
    if (start < 0 || (gap && gap.split(/\s+/).length > lost)) {
      if (piece.includes("\ufffd") || isUnknown(token)) lost++;
      return null;
    }
    [end, lost] = [start + piece.length, 0];
    return [start, end];
  });
}

// The words of a text that can be swapped, {text, index}, without marks such as [MASK].
const wordsOf = (text) => [...text.matchAll(/\[[^\]]*\]|<[^>]*>|[\p{L}\p{N}'’]+/gu)].filter(([word]) => /^[^[<]/.test(word)).map((match) => ({ text: match[0], index: match.index }));

const SMALL_WORDS = /^(the|an?|and|or|but|of|to|in|on|at|by|for|from|with|as|is|was|were|are|be|been|had|has|have|there|then|that|this|his|her|he|she|it|they|who|which|upon|not|once)$/i;
const VISIBLE_SHIFT = 0.1; // of the probability, from which a swap changes a prediction visibly
const MAX_SWAPS = 6, SWAPPED_PARAMETERS = 3e8; // tried by the page itself: about a second of work

// Pairs of words that can be swapped, as [first, second] indices into `words`. The first are those that a reader would
// take: names or longer words, in the same role, such as after the same word.
function swapPairs({ text }, words, spans) {
  const isName = ({ text: word, index }) => /^\p{Lu}/u.test(word) && /[\p{L},]\s+$/u.test(text.slice(0, index));
  const isOneToken = ({ text: word, index }) => spans.some((span) => span?.[0] === index && span[1] === index + word.length);
  const weight = (word) => (SMALL_WORDS.test(word.text) ? -100 : 0) + (isName(word) ? 50 : 0) + (isOneToken(word) ? 20 : 0) + word.text.length;
  const weights = words.map(weight), before = (index) => words[index - 1]?.text.toLowerCase();
  const role = (first, second) => first > 0 && before(first) === before(second) ? 40 : second === first + 1 ? -40 : 0;
  const pairs = words.flatMap((one, first) => words.slice(first + 1).map((other, more) => [first, first + 1 + more]))
    .filter(([first, second]) => !isSameWord(words[first], words[second]));
  const value = ([first, second]) => weights[first] + weights[second] + role(first, second);
  return pairs.map((pair) => [value(pair), pair]).sort((one, other) => other[0] - one[0]).map(([, pair]) => pair);
}

const isSameWord = (one, other) => one.text.toLowerCase() === other.text.toLowerCase();

// A text with two of its words swapped, and where the second word was and is: [start, end] in each text.
function swapWords(text, a, b) {
  const between = text.slice(a.index + a.text.length, b.index);
  return { swapped: text.slice(0, a.index) + b.text + between + a.text + text.slice(b.index + b.text.length), ranges: [b.index, a.index].map((start) => [start, start + b.text.length]) };
}

// The distribution after the text: {token, share} by id, of the 50 most probable tokens.
const nextShares = (answer) => new Map(nextAt(answer.lens.next, 1).map(([token, share]) => [token.id, { token, share }]));

// The share of the probability that goes to other tokens (the total variation distance, over the tokens that are known).
function predictionShift(before, after) {
  const [one, other] = [before, after].map(nextShares), ids = new Set([...one.keys(), ...other.keys()]);
  return [...ids].reduce((sum, id) => sum + Math.abs((one.get(id)?.share ?? 0) - (other.get(id)?.share ?? 0)), 0) / 2;
}

// Why the order matters. At first, the page tries a few swaps and shows the first that changes the prediction visibly, or
// the one that changes it most.
function orderPart(answer, ask) {
  const words = wordsOf(answer.text), pairs = swapPairs(answer, words, tokenSpans(answer)), result = element("div", { "aria-live": "polite" });
  const pick = (index) => element("select", { onchange: () => { state.isTouched = true; } }, ...words.map((word, place) => new Option(`${place + 1}: ${word.text}`, place, false, place === index)));
  const state = { isTouched: false }, [one, two] = (pairs[0] ?? [0, 0]).map(pick);
  const draw = () => state.changed && result.replaceChildren(...orderComparison(answer, state.changed));
  answer.headChanged = draw;
  const swapOf = async (first, second) => {
    const { swapped, ranges } = swapWords(answer.text, words[first], words[second]);
    return { answer: await ask(swapped), ranges, words: [words[first].text, words[second].text] };
  };
  const tryPairs = async () => {
    const count = Math.min(MAX_SWAPS, Math.floor(SWAPPED_PARAMETERS / answer.model.parameters));
    let best = null;
    const used = words.map(() => 0); // different words are tried: each in two swaps at most
    const tried = pairs.filter(([first, second]) => used[first] < 2 && used[second] < 2 && ++used[first] && ++used[second]);
    for (const [first, second] of tried.slice(0, answer.lens ? count : Math.min(1, count))) {
      const changed = await swapOf(first, second);
      if (state.isTouched || !result.isConnected) return; // the reader chose, or looks at another sentence
      const shift = answer.lens ? predictionShift(answer, changed.answer) : 1;
      if (!best || shift > best.shift) best = { pair: [first, second], changed, shift };
      if (shift >= VISIBLE_SHIFT) break;
    }
    if (!best) return;
    [one.value, two.value] = best.pair.map(String);
    state.changed = best.changed;
    draw();
  };
  const swap = element("button", { type: "button", onclick: async () => {
    const [first, second] = [Number(one.value), Number(two.value)].sort((a, b) => a - b);
    state.isTouched = true;
    if (isSameWord(words[first], words[second])) {
      state.changed = null;
      result.replaceChildren(element("p", { className: "finding" }, first === second ? `“${words[first].text}” is chosen twice; choose two different words.` : `“${words[first].text}” and “${words[second].text}” are the same word; choose two different ones.`));
      return;
    }
    swap.disabled = true;
    page.fail(null);
    try {
      state.changed = await swapOf(first, second);
      draw();
    } catch (error) {
      page.fail(error, error.status === 0 || error.status >= 500 ? () => swap.click() : undefined);
    } finally {
      swap.disabled = false;
    }
  } }, "Swap both words");
  tryPairs().catch(() => {}); // nobody asked for these swaps; the button reports errors
  return insidePart("Why the order matters", [
    "“The dog bit the man” and “the man bit the dog” have the same words. Attention compares words whatever their order, so the model is also told where each one stands. Swap two words and see what changes.",
  ], pairs.length ? element("div", { className: "row" }, labelled("First word", one), labelled("Second word", two), swap)
    : element("p", {}, "A swap needs two different words, and this sentence does not have them. Write a longer one above, or choose one of the examples."), result);
}

// The token of a swapped word to compare, as its index before and after: the last one, which has read the whole word, or the
// first one; null if no token is the same in both texts.
function swappedToken(answers, ranges) {
  const spans = answers.map(tokenSpans);
  for (const side of [1, 0]) {
    const places = spans.map((list, index) => list.findIndex((span) => span?.[side] === ranges[index][side]));
    const [one, other] = places.map((place, index) => answers[index].tokens[place]?.text.trim());
    if (one && one === other) return places;
  }
  return null;
}

// The attention of a swapped word before and after, {sentence, strips}; null if its tokens are not the same in both texts.
function attentionAfterSwap(answers, ranges) {
  const [layer, head] = answers[0].head, readers = swappedToken(answers, ranges);
  if (!readers) return null;
  const looks = answers.map((answer, index) => {
    const map = attentionMaps(answer)[layer], reader = readers[index], weights = headWeights(map, head)[reader], most = weights.indexOf(Math.max(...weights));
    const isSelf = most === reader;
    return { map, reader, weights, word: isSelf ? "" : map.columns[most].text.trim(), target: isSelf ? "itself" : quotedToken(map.columns, most), share: unbroken(weights[most]) };
  });
  const strips = looks.flatMap(({ map, reader, weights }, index) => [
    element("p", { className: "soft" }, `${["Before", "After"][index]}: where “${shortToken(map.rows[reader].text)}” looks, as token ${reader + 1} (${map.title.toLowerCase()}, ${head === MEAN_OF_HEADS ? "mean of all heads" : `head ${head + 1}`})`),
    attentionStrip(map.rows, weights, reader, { causal: map.causal }),
  ]);
  const [was, is] = looks, name = shortToken(was.map.rows[was.reader].text);
  const sentence = was.word === is.word ? `“${name}” looks most at ${was.target} with ${was.share} before, and at ${is.target} with ${is.share} after.`
    : `“${name}” looked most at ${was.target} with ${was.share} before, and looks most at ${is.target} with ${is.share} now.`;
  return { sentence, strips };
}

// The text before and after a swap: where the second word looks, and what the model predicts.
function orderComparison(before, { answer: after, ranges, words }) {
  const { sentence, strips } = attentionAfterSwap([before, after], ranges)
    ?? { sentence: `The tokens of “${words[1]}” differ between both texts, so its attention is not compared.`, strips: [] };
  const text = element("p", { className: "soft" }, `The same words, another order: ${after.text}`);
  if (!before.lens) return [text, element("p", { className: "finding" }, `What changed: ${sentence}`), ...strips];
  const both = [before, after].map(nextShares), best = both.map((next) => [...next.values()].slice(0, 5)), [first, then] = best.map((list) => list[0]);
  const ids = [...new Set(best.flat().map(({ token }) => token.id))], guesses = [before, after].map(({ lens }) => firstGuess(lens));
  const cell = (next, id) => next.has(id) ? percent(next.get(id).share) : "below the first 50";
  const place = before.lens.masked ? "for the mask" : "for the token after the last one", shift = predictionShift(before, after), [was, is] = [first, then].map(({ share }) => unbroken(share));
  const stays = `the first guess ${place} stays “${shortToken(first.token.text)}”: ${was === is ? `${is} before and after` : `${was} before, ${is} after`}.`;
  const change = first.token.id !== then.token.id ? `the first guess ${place} changes from ${guesses[0]} to ${guesses[1]}.`
    : shift < VISIBLE_SHIFT ? `${stays} This prediction hardly depends on the order of “${words[0]}” and “${words[1]}”; try two other words.`
      : shift - Math.abs(then.share - first.share) < VISIBLE_SHIFT ? stays : `${stays} Other tokens change more, as the table shows.`;
  return [
    text, element("p", { className: "finding" }, `What changed: ${change} ${sentence}`),
    table(["predicted token", "before", "after"], ids.map((id) => [tokenLabel((both[0].get(id) ?? both[1].get(id)).token.text), ...both.map((next) => cell(next, id))]), "Predictions before and after the swap"),
    ...strips,
  ];
}
